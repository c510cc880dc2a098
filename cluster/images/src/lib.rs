//! cluster-images
