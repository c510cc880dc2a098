//! Inside, everything is mutual TLS: what a stranger on the pod network can and cannot do.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use crate::Case;
use crate::harness::Platform;
use testkit::http;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("mesh::plaintext_to_a_pod_is_refused", plaintext_is_refused),
    ("mesh::kubelet_probe_is_answered", kubelet_probe_is_answered),
    ("mesh::stranger_without_a_certificate_is_refused", stranger_is_refused),
];

fn pod_address(p: &Platform, ns: &str) -> Result<String> {
    let ip = p.kubectl(&["get", "pods", "-n", ns, "-o", "jsonpath={.items[0].status.podIP}"])?;
    ensure!(!ip.is_empty(), "the pod has no address");
    Ok(ip)
}

fn plaintext_is_refused(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-strict")?;
    ns.service("closed", &[("autoscaling.knative.dev/min-scale", "1")], &[("NAME", "secret")])?;
    ns.wait_ready("closed")?;
    let ip = pod_address(p, ns.name())?;
    for port in [8012, 8013] {
        let address: SocketAddr = format!("{ip}:{port}").parse()?;
        match http::get(address, "closed.e2e-strict.localhost", "/") {
            Ok(answer) => {
                ensure!(answer.status == 403 && !answer.body.contains("secret"), "port {port}: {answer:?}");
            }
            Err(e) => ensure!(!format!("{e:#}").contains("connecting"), "port {port} does not listen: {e:#}"),
        }
    }
    Ok(())
}

fn kubelet_probe_is_answered(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-probe")?;
    ns.service("probed", &[("autoscaling.knative.dev/min-scale", "1")], &[])?;
    ns.wait_ready("probed")?;
    let address: SocketAddr = format!("{}:8012", pod_address(p, ns.name())?).parse()?;
    let answer = http::get_with(address, "probe", "/", &[("k-network-probe", "queue")])?;
    ensure!(answer.status == 200 && answer.body == "queue", "{answer:?}");
    let answer = http::get_with(address, "probe", "/", &[("k-network-probe", "wrong")])?;
    ensure!(answer.status == 400, "{answer:?}");
    Ok(())
}

fn stranger_is_refused(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-stranger")?;
    ns.service("closed", &[("autoscaling.knative.dev/min-scale", "1")], &[("NAME", "secret")])?;
    ns.wait_ready("closed")?;
    let ip = pod_address(p, ns.name())?;
    // A TLS client with no certificate of the mesh, as curl -k would be: refused in the handshake or by policy.
    let out = std::process::Command::new("curl")
        .args(["-sk", "--max-time", "5", "-w", " %{http_code}", &format!("https://{ip}:8112/")])
        .output()
        .context("curl is needed for this case")?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(
        !out.status.success() || said.trim_end().ends_with("403"),
        "a client without a certificate got: {said}"
    );
    ensure!(!said.contains("secret"), "the app was reached: {said}");
    Ok(())
}
