//! ebb-api
