//! An embedded Kubernetes in one process: API server, core controllers, DNS, Services, images and a node that runs real containers.
//!
//! It knows nothing of what is deployed on it. Whoever starts it gets a client, a kubeconfig and a network plan.

mod error;
mod host;
mod plan;

pub use error::Error;
pub use plan::{NetworkPlan, Taken, choose};
