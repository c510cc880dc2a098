//! ebb-gateway
