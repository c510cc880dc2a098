//! A platform that is up already, on whatever cluster: what its kubeconfig cannot tell, the environment does.
//!
//! - `EBB_E2E_KUBECONFIG`: its administrator's kubeconfig.
//! - `EBB_E2E_GATEWAY`: ADDRESS:PORT of the gateway's HTTP listener; without it, the gateway's Service is asked.
//! - `EBB_E2E_GATEWAY_TLS`: the same of its TLS listener.
//! - `EBB_E2E_LOAD_IMAGE`: a command that is given an archive's path and makes its images usable on that cluster;
//!   without it, `EBB_E2E_IMAGE` names the test app's image, which must be there.
//! - `EBB_E2E_EBB`: the `ebb` that installed it (default: the one of this build).
//! - `EBB_E2E_KILL_CONTAINER`: a command that is given the id of a container (as in a pod's status) and ends it by SIGKILL.
//! - `EBB_E2E_RESTART_API_SERVER`: a command that takes the API server away for a while and brings it back.
//! - `EBB_E2E_NETWORK_POLICY`: set if the cluster's network plugin enforces NetworkPolicy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::run;

use crate::harness::{app_binary, kubectl_binary};

/// The test app's image where this suite brings it; digests of names in `dev.local` are not asked for.
const LOADED_IMAGE: &str = "dev.local/testapp:e2e";

/// What may be done to a platform that was not started here.
pub(crate) struct Given {
    ebb: PathBuf,
    kubeconfig: PathBuf,
    load_image: Option<String>,
    kill_container: Option<String>,
    restart_api_server: Option<String>,
    network_policy: bool,
}

impl Given {
    /// Reads the environment and brings the test app's image: what the platform lets one do, its gateway, the image.
    pub(crate) fn from_environment(kubeconfig: &Path) -> Result<(Self, SocketAddr, String)> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let gateway = match variable("EBB_E2E_GATEWAY") {
            Some(address) => address.parse().context("EBB_E2E_GATEWAY is not ADDRESS:PORT")?,
            None => gateway_address(kubeconfig, "http")?,
        };
        let given = Self {
            ebb: variable("EBB_E2E_EBB").map_or_else(|| env!("CARGO_BIN_EXE_ebb").into(), PathBuf::from),
            kubeconfig: kubeconfig.into(),
            load_image: variable("EBB_E2E_LOAD_IMAGE"),
            kill_container: variable("EBB_E2E_KILL_CONTAINER"),
            restart_api_server: variable("EBB_E2E_RESTART_API_SERVER"),
            network_policy: variable("EBB_E2E_NETWORK_POLICY").is_some(),
        };
        let image = match variable("EBB_E2E_IMAGE") {
            Some(image) => image,
            None => {
                let app = app_binary()?.display().to_string();
                given.load(|file| {
                    vec!["build".into(), app, "-t".into(), LOADED_IMAGE.into(), "-o".into(), file]
                })?;
                LOADED_IMAGE.into()
            }
        };
        Ok((given, gateway, image))
    }

    /// Whether the cases that kill its parts can run.
    pub(crate) fn may_be_disturbed(&self) -> bool {
        self.kill_container.is_some() && self.restart_api_server.is_some() && self.load_image.is_some()
    }

    /// Whether policies mean anything there.
    pub(crate) fn enforces_network_policy(&self) -> bool {
        self.network_policy
    }

    /// Runs the `ebb` that installed the platform.
    pub(crate) fn ebb(&self, args: &[String]) -> Result<String> {
        let mut command = Command::new(&self.ebb);
        command.args(args).env("KUBECONFIG", &self.kubeconfig);
        run(command, None)
    }

    /// Has `ebb` write an archive, and loads it.
    pub(crate) fn load(&self, arguments: impl FnOnce(String) -> Vec<String>) -> Result<()> {
        let load = self.load_image.as_ref();
        let load = load
            .context("EBB_E2E_LOAD_IMAGE is needed: a command that makes an archive's images usable there")?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("images.tar").display().to_string();
        self.ebb(&arguments(file.clone()))?;
        shell(load, &[&file]).map(drop)
    }

    /// SIGKILL for a container, by the id that the pod's status shows.
    pub(crate) fn kill_container(&self, id: &str) -> Result<()> {
        let bare = id.rsplit("//").next().unwrap_or(id);
        shell(self.kill_container.as_ref().context("EBB_E2E_KILL_CONTAINER is not set")?, &[bare]).map(drop)
    }

    /// The API server goes away and comes back.
    pub(crate) fn restart_api_server(&self) -> Result<()> {
        shell(self.restart_api_server.as_ref().context("EBB_E2E_RESTART_API_SERVER is not set")?, &[])
            .map(drop)
    }
}

fn shell(line: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{line} \"$@\""), "sh"]).args(args);
    run(command, None)
}

/// Where the Service of the gateway is reached from outside: at its load balancer, or at the port of a node.
pub(crate) fn gateway_address(kubeconfig: &Path, port: &str) -> Result<SocketAddr> {
    let kubectl = |args: &[&str]| -> Result<Value> {
        let mut command = Command::new(kubectl_binary()?);
        command.env("KUBECONFIG", kubeconfig).args(args).args(["-o", "json"]);
        Ok(serde_json::from_str(&run(command, None)?)?)
    };
    let service = kubectl(&["get", "service", "gateway", "-n", "ebb-system"])?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let named = |name: &str| ports.iter().find(|port| port["name"] == name).unwrap_or(&Value::Null);
    let port = named(port);
    let (address, port) = match service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str() {
        // `ebb up` says here that it listens on this machine at what the Service calls the node's port.
        Some("127.0.0.1") => ("127.0.0.1".into(), &port["nodePort"]),
        Some(balancer) => (balancer.to_owned(), &port["port"]),
        None => {
            let nodes = kubectl(&["get", "nodes"])?;
            let addresses = nodes["items"][0]["status"]["addresses"].as_array().cloned().unwrap_or_default();
            let internal = addresses.iter().find(|a| a["type"] == "InternalIP");
            let address =
                internal.and_then(|a| a["address"].as_str()).context("no node has an InternalIP")?;
            (address.to_owned(), &port["nodePort"])
        }
    };
    let port = port.as_u64().context("Service gateway has no port that is reached from outside")?;
    Ok(SocketAddr::new(address.parse()?, u16::try_from(port)?))
}
