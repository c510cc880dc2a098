//! cluster-node
