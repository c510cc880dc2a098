//! ebb-activator
