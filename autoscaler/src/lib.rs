//! The autoscaler.
pub mod core;
pub mod engine;
pub mod sample;
pub mod settings;
pub mod window;
pub mod zero;
