//! ebb-controller
