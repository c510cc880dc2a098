//! cluster-admission
