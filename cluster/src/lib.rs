//! A Kubernetes cluster of one node in one process: [`Cluster::start`] brings up the API server, the controllers, DNS and the service
//! proxy, an image registry and the node agent, on a network of their own; [`Cluster::shutdown`] leaves nothing behind.
//!
//! Each instance takes a free `10.N.0.0/16` of the machine ([`NetworkPlan`]), so that several run side by side:
//!
//! | addresses | of |
//! |---|---|
//! | `10.N.0.1` | the node: the bridge's address, the pods' gateway |
//! | `10.N.0.2` to `.15` | components that run in this process and want their usual ports to themselves |
//! | `10.N.0.16` to `10.N.127.255` | pods |
//! | `10.N.128.0/17` | Services; local to the machine, served by a userspace proxy |
//!
//! What runs on the cluster is none of this crate's business, and it runs no other program but the helpers that start containers.

mod cluster;
mod config;
mod error;
mod link;
mod masquerade;
mod plan;
mod policies;
mod ready;

pub use crate::cluster::Cluster;
pub use cluster_images as images;
pub use cluster_node::runtime::helper_main as container_helper;
pub use cluster_rootless as rootless;
pub use config::ClusterConfig;
pub use error::Error;
pub use plan::NetworkPlan;
