//! ebb-queue-proxy
