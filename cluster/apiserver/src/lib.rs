//! cluster-apiserver
