//! cluster-services
