//! The activator.
pub mod dests;
pub mod throttle;
