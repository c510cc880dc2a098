//! The components as tasks of this process: each at an address of its own with its usual ports, each with its own identity.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use cluster::Cluster;
use ebb_mesh::ca::Authority;
use ebb_mesh::{Identity, SpiffeId};
use kube::Client;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::install::Lead;

/// How long components may take to finish what is under way.
const DRAIN: Duration = Duration::from_secs(5);

/// Where each component listens.
pub(super) struct Addresses {
    pub(super) controller: Ipv4Addr,
    pub(super) autoscaler: Ipv4Addr,
    pub(super) activator: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
}

/// The tasks; the first that ends unasked is reported.
pub(super) struct Components {
    stop: CancellationToken,
    tasks: TaskTracker,
    report: mpsc::Sender<anyhow::Error>,
    failed: Mutex<mpsc::Receiver<anyhow::Error>>,
}

/// Which Service leads to which component.
pub(super) fn leads(at: &Addresses) -> [Lead; 5] {
    [
        Lead { service: "controller", address: at.controller, ports: &[("webhook", 8443), ("ca", 8114)] },
        Lead { service: "autoscaler", address: at.autoscaler, ports: &[("https", 8112)] },
        Lead {
            service: "activator",
            address: at.activator,
            ports: &[("http", 8012), ("http2", 8013), ("https", 8112)],
        },
        Lead { service: "gateway", address: at.gateway, ports: &[("http", 8080)] },
        Lead { service: "gateway-internal", address: at.gateway, ports: &[("http", 8082)] },
    ]
}
