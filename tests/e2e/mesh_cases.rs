//! Inside, everything is mutual TLS: what a stranger on the pod network can and cannot do.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::harness::{Namespace, Platform, service_manifest};
use testkit::http;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("mesh::plaintext_to_a_pod_is_refused", plaintext_is_refused),
    ("mesh::kubelet_probe_is_answered", kubelet_probe_is_answered),
    ("mesh::stranger_without_a_certificate_is_refused", stranger_is_refused),
];

/// Cases that need a network that enforces NetworkPolicy, as `ebb up` is and not every cluster's.
pub(crate) const NETWORK_POLICY_CASES: &[(&str, Case)] = &[
    ("mesh::an_apps_own_port_is_closed_under_strict_only", own_port),
    ("mesh::network_policies_between_plain_pods", between_plain_pods),
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
    // With TLS 1.3 the client may be done with its handshake before it is refused: 35 and 56 are what curl calls a failure to shake hands,
    // and to read. Not 7, for the port is open.
    let refused = matches!(out.status.code(), Some(35 | 56))
        || (out.status.success() && said.trim_end().ends_with("403"));
    ensure!(refused, "a client without a certificate got ({}): {said}", out.status);
    ensure!(!said.contains("secret"), "the app was reached: {said}");
    Ok(())
}

/// A plain pod of the test app, which takes no part in the mesh.
fn plain_pod(p: &Platform, ns: &Namespace<'_>, name: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{
            "name": "app", "image": p.image(), "env": [{"name": "NAME", "value": name}],
            "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1},
        }]}
    });
    p.apply(ns.name(), &pod.to_string())?;
    Ok(())
}

fn wait_pod(p: &Platform, ns: &Namespace<'_>, name: &str) -> Result<String> {
    p.kubectl(&["wait", "-n", ns.name(), "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
    p.kubectl(&["get", "pod", "-n", ns.name(), name, "-o", "jsonpath={.status.podIP}"])
}

/// What a pod gets from an address; None if there is no connection.
fn from_pod(p: &Platform, ns: &Namespace<'_>, pod: &str, address: &str) -> Option<String> {
    p.kubectl(&["exec", "-n", ns.name(), pod, "--", "/proc/1/exe", "get", address]).ok()
}

/// What a process of this machine gets; None if there is no connection.
fn from_here(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().ok()?;
    std::net::TcpStream::connect_timeout(&address, Duration::from_secs(3)).ok()?;
    http::get(address, "anything", "/").ok().map(|answer| answer.body)
}

/// The address of the one running pod of a Service that is in this mode.
fn pod_in_mode(p: &Platform, ns: &Namespace<'_>, service: &str, mode: &str) -> Result<String> {
    let selector = format!("serving.knative.dev/service={service}");
    let mut address = String::new();
    ns.wait(&format!("{service} runs in mode {mode} only"), || {
        let pods = p.kubectl(&["get", "pods", "-n", ns.name(), "-l", &selector, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods)?;
        let pods = pods["items"].as_array().context("a list")?;
        let settled = |pod: &Value| {
            let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
            pod["metadata"]["labels"]["mesh.ebb.dev/mtls"] == mode
                && ready.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        address = pods.first().and_then(|pod| pod["status"]["podIP"].as_str()).unwrap_or_default().to_owned();
        Ok(pods.len() == 1 && settled(&pods[0]))
    })?;
    Ok(address)
}

fn own_port(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-own-port")?;
    plain_pod(p, &ns, "stranger")?;
    let service = |name: &str, annotations: &[(&str, &str)]| {
        let mut all = vec![("autoscaling.knative.dev/min-scale", "1")];
        all.extend(annotations);
        let mut manifest = service_manifest(name, p.image(), &all, &[("NAME", "secret")]);
        // Kubelet asks the app itself, at its own port: without an answer the pod never gets Ready.
        let container = &mut manifest["spec"]["template"]["spec"]["containers"][0];
        container["startupProbe"] =
            json!({"httpGet": {"path": "/"}, "periodSeconds": 1, "failureThreshold": 30});
        manifest
    };
    p.apply(ns.name(), &service("closed", &[]).to_string())?;
    ns.wait_ready("closed")?;
    wait_pod(p, &ns, "stranger")?;
    let ip = pod_in_mode(p, &ns, "closed", "strict")?;
    let shut = |ip: &str| -> Result<()> {
        let own = format!("{ip}:8080");
        let got = from_pod(p, &ns, "stranger", &own);
        ensure!(got.is_none(), "another pod gets from the app's own port: {got:?}");
        // Kubernetes lets everything in from a pod's own node.
        if p.as_given().is_none() {
            let got = from_here(&own);
            ensure!(got.is_none(), "this machine gets from the app's own port: {got:?}");
        }
        let sidecar = from_pod(p, &ns, "stranger", &format!("{ip}:8012")).unwrap_or_default();
        ensure!(sidecar.contains(" 403 "), "the sidecar's port is open, and refuses: {sidecar:?}");
        Ok(())
    };
    shut(&ip)?;
    // A Service of the user's own is no way around.
    let around = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "around"},
        "spec": {"selector": {"serving.knative.dev/service": "closed"}, "ports": [{"port": 80, "targetPort": 8080}]}
    });
    p.apply(ns.name(), &around.to_string())?;
    let slice =
        ["get", "endpointslices", "-n", ns.name(), "-l", "kubernetes.io/service-name=around", "-o", "name"];
    ns.wait("the Service has its endpoints", || Ok(!p.kubectl(&slice)?.is_empty()))?;
    let cluster_ip =
        p.kubectl(&["get", "svc", "-n", ns.name(), "around", "-o", "jsonpath={.spec.clusterIP}"])?;
    let got = from_pod(p, &ns, "stranger", &format!("{cluster_ip}:80"));
    ensure!(got.is_none(), "the app is reached by a Service: {got:?}");

    p.kubectl(&["label", "namespace", ns.name(), "mesh.ebb.dev/mtls=permissive"])?;
    let ip = pod_in_mode(p, &ns, "closed", "permissive")?;
    let own = format!("{ip}:8080");
    let got = from_pod(p, &ns, "stranger", &own).context("another pod is let in under PERMISSIVE")?;
    ensure!(got.contains("secret"), "{got}");
    ensure!(p.as_given().is_some() || from_here(&own).is_some(), "this machine is let in under PERMISSIVE");
    ns.wait("the policy is gone with the last strict revision", || {
        Ok(p.kubectl(&["get", "networkpolicy", "-n", ns.name(), "-o", "name"])?.is_empty())
    })?;
    // A Service's own word counts more than its namespace's.
    p.apply(ns.name(), &service("strict", &[("mesh.ebb.dev/mtls", "strict")]).to_string())?;
    ns.wait_ready("strict")?;
    shut(&pod_in_mode(p, &ns, "strict", "strict")?)?;
    ensure!(from_pod(p, &ns, "stranger", &own).is_some(), "the other one stays open");
    let bad = service("bad", &[("mesh.ebb.dev/mtls", "sometimes")]).to_string();
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&bad))?;
    ensure!(said.contains("spec.template.metadata.annotations.mesh.ebb.dev/mtls"), "{said}");
    Ok(())
}

fn between_plain_pods(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-netpol")?;
    for name in ["server", "friend", "stranger"] {
        plain_pod(p, &ns, name)?;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": "web"}]}
    });
    p.apply(ns.name(), &service.to_string())?;
    let ip = wait_pod(p, &ns, "server")?;
    for name in ["friend", "stranger"] {
        wait_pod(p, &ns, name)?;
    }
    let (direct, by_name) = (format!("{ip}:8080"), "server:80".to_owned());
    // Whoever reaches the server does so both ways, or neither.
    let reaches = |pod: &str| -> Result<bool> {
        let (straight, by_service) = (from_pod(p, &ns, pod, &direct), from_pod(p, &ns, pod, &by_name));
        ensure!(
            straight.is_some() == by_service.is_some(),
            "{pod} got {straight:?} from the pod, and by its Service {by_service:?}"
        );
        Ok(straight.is_some())
    };
    ns.wait("the Service is served", || Ok(from_pod(p, &ns, "friend", &by_name).is_some()))?;
    ensure!(reaches("friend")? && reaches("stranger")?, "there is no policy yet");
    let policy = |name: &str, spec: Value| {
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec});
        p.apply(ns.name(), &policy.to_string())
    };
    policy("deny-all", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))?;
    ns.wait("nobody is let in", || Ok(from_pod(p, &ns, "stranger", &direct).is_none()))?;
    ensure!(!reaches("friend")? && !reaches("stranger")?, "deny-all");
    policy(
        "friends",
        json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{
            "from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["friend"]}]}}],
            "ports": [{"port": "web"}]
        }]}),
    )?;
    ns.wait("the friend is let in", || Ok(from_pod(p, &ns, "friend", &direct).is_some()))?;
    ensure!(reaches("friend")? && !reaches("stranger")?, "only the friend");
    // Labels are looked at as they change.
    p.kubectl(&["label", "pod", "-n", ns.name(), "stranger", "app=friend", "--overwrite"])?;
    ns.wait("the stranger has become a friend", || Ok(from_pod(p, &ns, "stranger", &direct).is_some()))?;
    // What goes out is judged as well, and names are still found.
    policy("keep-in", json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]}))?;
    ns.wait("the friend is kept in", || Ok(from_pod(p, &ns, "friend", &direct).is_none()))?;
    ensure!(!reaches("friend")?, "neither way");
    let server = p.get(ns.name(), "pod/server")?;
    let ready =
        server["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    ensure!(ready.is_some_and(|c| c["status"] == "True"), "probes go through: {ready:?}");
    ensure!(server["status"]["containerStatuses"][0]["restartCount"] == 0, "{server}");
    p.kubectl(&["delete", "networkpolicy", "-n", ns.name(), "--all"])?;
    ns.wait("all is open again", || Ok(from_pod(p, &ns, "stranger", &direct).is_some()))?;
    ns.wait("all is open again", || Ok(from_pod(p, &ns, "friend", &direct).is_some()))?;
    ensure!(reaches("friend")? && reaches("stranger")?, "without policies");
    Ok(())
}
