//! cluster-controllers
