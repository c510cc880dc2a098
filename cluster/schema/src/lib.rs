//! cluster-schema
