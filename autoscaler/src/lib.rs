//! Decides how many pods each revision has, and sees to it.
//!
//! A pure core decides ([`core::decide`], [`zero::step`]), a synchronous [`engine`] keeps all revisions, and a thin
//! shell around it watches Kubernetes, collects load, and writes scales, ServerlessServices, Metrics and statuses. A
//! request to a revision at zero does not wait for any tick: the activator's report is decided upon at once, and the
//! write of the scale is on its way before the report is answered.
//!
//! It never touches a request, and never scales to zero but by the protocol of [`zero`].

pub mod config;
pub mod core;
pub mod engine;
pub mod sample;
pub mod settings;
mod shell;
pub mod window;
pub mod zero;

pub use config::Config;
pub use shell::{Error, run};
