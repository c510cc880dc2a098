//! The gateway.
pub mod table;
