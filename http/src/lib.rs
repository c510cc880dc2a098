//! ebb-http
