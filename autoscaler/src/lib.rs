//! ebb-autoscaler
