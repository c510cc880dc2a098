//! What a user of the platform does: deploy, ask, wait for zero, wake, split, roll back, get it wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::Case;
use crate::harness::{Namespace, Platform, service_manifest};
use testkit::http::{self, Load, Tally};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("serving::hello", hello),
    ("serving::cold_start_after_zero", cold_start_after_zero),
    ("serving::web_socket_from_zero_keeps_its_pod", web_socket_from_zero),
    ("serving::thousand_at_one_cold_service", thousand_at_one_cold_service),
    ("serving::canary_counts_and_rollback", canary_counts_and_rollback),
    ("serving::new_revision_under_load_loses_nothing", new_revision_under_load),
    ("serving::bad_image_says_why", bad_image_says_why),
    ("serving::bad_manifest_is_refused_with_its_path", bad_manifest_is_refused),
    ("serving::revision_never_changes", revision_never_changes),
    ("serving::app_that_ends_is_started_again", app_that_ends_is_started_again),
    ("serving::app_that_fails_at_start_says_why", app_that_fails_at_start),
    ("serving::concurrency_scales_out", concurrency_scales_out),
    ("serving::cluster_local_is_refused_from_outside", cluster_local_is_refused),
    ("serving::environment_of_the_contract", environment_of_the_contract),
    ("serving::delete_takes_all_with_it", delete_takes_all),
];

/// Annotations that let a revision go to zero as soon as the contract allows.
const SHORT_WINDOW: &[(&str, &str)] = &[("autoscaling.knative.dev/window", "6s")];

fn hello(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-hello")?;
    ns.service("hello", &[], &[("NAME", "hello from the test")])?;
    ns.wait_ready("hello")?;
    let host = ns.host("hello")?;
    ensure!(host.starts_with("hello.e2e-hello."), "unexpected host {host}");
    let answer = http::get(p.gateway(), &host, "/")?;
    ensure!(answer.status == 200 && answer.body == "hello from the test\n", "{answer:?}");
    let table = p.kubectl(&["get", "ksvc", "-n", ns.name()])?;
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(head == ["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON"], "{table}");
    ensure!(table.contains("hello-00001") && table.contains("True"), "{table}");
    let unknown = http::get(p.gateway(), "nobody.e2e-hello.localhost", "/")?;
    ensure!(unknown.status == 404, "an unknown host got {}", unknown.status);
    Ok(())
}

fn cold_start_after_zero(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-zero")?;
    ns.service("sleepy", SHORT_WINDOW, &[("NAME", "awake")])?;
    ns.wait_ready("sleepy")?;
    ns.wait_zero()?;
    // Zero is a state of health.
    ns.wait_ready("sleepy")?;
    let host = ns.host("sleepy")?;
    let cold = http::get_with(p.gateway(), &host, "/", &[("ebb-timing", "1")])?;
    ensure!(cold.status == 200 && cold.body == "awake\n", "{cold:?}");
    let timing = cold
        .headers
        .get_all("server-timing")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect::<Vec<_>>()
        .join(", ");
    for part in ["queued", "decided", "proxied"] {
        ensure!(timing.contains(part), "Server-Timing lacks {part}: {timing}");
    }
    // Whichever was first: the sidecar's announcement or the activator's probe.
    ensure!(
        timing.contains("listening") || timing.contains("probed"),
        "Server-Timing lacks the pod's part: {timing}"
    );
    let warm = http::get(p.gateway(), &host, "/")?;
    ensure!(warm.status == 200, "{warm:?}");
    ensure!(ns.pods()?.len() == 1, "one request needs one pod: {:?}", ns.pods()?);
    ns.wait_zero()
}

/// A web socket wakes its app through gateway, activator and sidecar, and holds the pod as long as it is open, though nothing is asked any more.
fn web_socket_from_zero(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-socket")?;
    ns.service("socket", SHORT_WINDOW, &[])?;
    ns.wait_ready("socket")?;
    ns.wait_zero()?;
    let host = ns.host("socket")?;
    let mut socket = TcpStream::connect(p.gateway())?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        socket,
        "GET /chat HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    // Longer than the window and what follows it.
    let until = Instant::now() + Duration::from_secs(15);
    let mut words = 0;
    while Instant::now() < until {
        let word = format!("{words:08}");
        socket.write_all(word.as_bytes())?;
        let mut back = [0; 8];
        socket.read_exact(&mut back)?;
        ensure!(back == *word.as_bytes(), "word {words} came back as {back:?}");
        words += 1;
        std::thread::sleep(Duration::from_millis(250));
    }
    ensure!(ns.pods()?.len() == 1, "an open socket holds one pod: {:?}", ns.pods()?);
    drop(socket);
    ns.wait_zero()
}

fn thousand_at_one_cold_service(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-storm")?;
    ns.service("storm", SHORT_WINDOW, &[])?;
    ns.wait_ready("storm")?;
    ns.wait_zero()?;
    let tally = http::many(p.gateway(), &ns.host("storm")?, "/", 1000, 1000, http::by_status);
    ensure!(tally == Tally::from([("200".into(), 1000)]), "{tally:?}");
    Ok(())
}

fn revision_manifest(p: &Platform, revision: &str, name: &str, traffic: &str) -> String {
    format!(
        r"
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: split
spec:
  template:
    metadata:
      name: split-{revision}
    spec:
      containers:
        - image: {}
          env:
            - name: NAME
              value: {name}
{traffic}
",
        p.image()
    )
}

fn canary_counts_and_rollback(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-canary")?;
    p.apply(ns.name(), &revision_manifest(p, "v1", "one", ""))?;
    ns.wait_ready("split")?;
    let canary = "
  traffic:
    - {revisionName: split-v1, percent: 90, tag: stable}
    - {revisionName: split-v2, percent: 10, tag: canary}
";
    p.apply(ns.name(), &revision_manifest(p, "v2", "two", canary))?;
    wait_generation(p, &ns, "split")?;
    let host = ns.host("split")?;
    let tally = http::many(p.gateway(), &host, "/", 2000, 16, http::by_body);
    let (one, two) = (count(&tally, "200 one"), count(&tally, "200 two"));
    ensure!(one + two == 2000, "{tally:?}");
    // 10 % of 2,000 is 200 with a standard deviation of 13.4: five of them either side.
    ensure!((133..=267).contains(&two), "the canary got {two} of 2000");
    for (tag, name) in [("stable", "one"), ("canary", "two")] {
        let answer = http::get(p.gateway(), &format!("{tag}-{host}"), "/")?;
        ensure!(answer.body.trim() == name, "tag {tag}: {answer:?}");
    }
    let back = "
  traffic:
    - {revisionName: split-v1, percent: 100}
    - {revisionName: split-v2, percent: 0, tag: canary}
";
    p.apply(ns.name(), &revision_manifest(p, "v2", "two", back))?;
    wait_generation(p, &ns, "split")?;
    let tally = http::many(p.gateway(), &host, "/", 500, 16, http::by_body);
    ensure!(tally == Tally::from([("200 one".into(), 500)]), "after the rollback: {tally:?}");
    let answer = http::get(p.gateway(), &format!("canary-{host}"), "/")?;
    ensure!(answer.body.trim() == "two", "the tag of a revision at 0 %: {answer:?}");
    Ok(())
}

fn new_revision_under_load(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-rollout")?;
    ns.service("rolling", SHORT_WINDOW, &[("NAME", "first")])?;
    ns.wait_ready("rolling")?;
    let host = ns.host("rolling")?;
    let load = Load::start(p.gateway(), &host, 4, http::by_body);
    ns.service("rolling", SHORT_WINDOW, &[("NAME", "second")])?;
    wait_generation(p, &ns, "rolling")?;
    let answer = http::get(p.gateway(), &host, "/")?;
    // Long enough for the first revision to be scaled down under the eyes of the load.
    ns.wait("the first revision has no pod", || {
        Ok(!ns.pods()?.iter().any(|pod| pod.contains("rolling-00001")))
    })?;
    let tally = load.stop();
    ensure!(answer.body.trim() == "second", "{answer:?}");
    ensure!(tally.keys().all(|k| k == "200 first" || k == "200 second"), "lost: {tally:?}");
    ensure!(count(&tally, "200 second") > 0, "{tally:?}");
    Ok(())
}

fn bad_image_says_why(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-bad-image")?;
    p.apply(ns.name(), &service_manifest("bad", "localhost:1/nobody/nothing:v0", &[], &[]).to_string())?;
    // Configuration and Route fail one after the other; the cause is what the user is to see in the end.
    ns.wait("Ready is False with a reason and names the image", || {
        let ready = condition(&p.get(ns.name(), "ksvc/bad")?, "Ready").unwrap_or_default();
        let text = |field: &str| ready[field].as_str().unwrap_or_default().to_string();
        Ok(text("status") == "False"
            && !text("reason").is_empty()
            && text("message").contains("localhost:1/nobody/nothing:v0"))
    })
}

fn bad_manifest_is_refused(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-bad-manifest")?;
    let mut manifest = service_manifest("bad", p.image(), &[], &[]);
    manifest["spec"]["template"]["spec"]["containerConcurrency"] = (-1).into();
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&manifest.to_string()))?;
    ensure!(said.contains("spec.template.spec.containerConcurrency"), "no path in: {said}");
    let mut manifest = service_manifest("bad", p.image(), &[], &[]);
    manifest["spec"]["template"]["spec"]["containers"][0]["lifecycle"] =
        serde_json::json!({"preStop": {"exec": {"command": ["true"]}}});
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&manifest.to_string()))?;
    ensure!(said.contains("containers[0].lifecycle"), "no path in: {said}");
    let manifest = service_manifest("bad", p.image(), &[("autoscaling.knative.dev/window", "1s")], &[]);
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&manifest.to_string()))?;
    ensure!(said.contains("autoscaling.knative.dev/window"), "no key in: {said}");
    let mut manifest = service_manifest("bad", p.image(), &[], &[("A", "b")]);
    manifest["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = true.into();
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&manifest.to_string()))?;
    ensure!(said.contains("spec.template.spec.containers[0].env[0].value"), "no path in: {said}");
    ensure!(
        p.kubectl(&["get", "ksvc", "-n", ns.name(), "-o", "name"])?.is_empty(),
        "a refused Service exists"
    );
    Ok(())
}

fn revision_never_changes(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-immutable")?;
    ns.service("fixed", &[], &[])?;
    ns.wait_ready("fixed")?;
    let patch = r#"{"spec":{"containerConcurrency":7}}"#;
    let said = p.kubectl_fails(
        &["patch", "-n", ns.name(), "revision/fixed-00001", "--type=merge", "-p", patch],
        None,
    )?;
    ensure!(said.contains("Immutable"), "{said}");
    Ok(())
}

fn app_that_ends_is_started_again(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-crash")?;
    ns.service("fragile", &[("autoscaling.knative.dev/min-scale", "1")], &[])?;
    ns.wait_ready("fragile")?;
    let host = ns.host("fragile")?;
    // Its own request dies with it; the next ones wait or go elsewhere.
    let _ = http::get(p.gateway(), &host, "/exit?code=3")?;
    ns.wait("the app was restarted", || {
        let pods = p.kubectl(&["get", "pods", "-n", ns.name(), "-o", "json"])?;
        let pods: serde_json::Value = serde_json::from_str(&pods)?;
        let statuses =
            pods["items"][0]["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(statuses.iter().any(|c| {
            c["restartCount"].as_u64() == Some(1)
                && c["lastState"]["terminated"]["exitCode"].as_u64() == Some(3)
        }))
    })?;
    ns.wait("it answers again", || Ok(http::get(p.gateway(), &host, "/")?.status == 200))
}

fn app_that_fails_at_start(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-never")?;
    ns.service("never", &[], &[("FAIL_AT_START", "7")])?;
    ns.wait("the Service says why it is not Ready", || {
        let object = p.get(ns.name(), "ksvc/never")?;
        let message = condition(&object, "Ready").map(|c| c["message"].to_string()).unwrap_or_default();
        Ok(message.contains("told to fail at start") || message.contains("exit code 7"))
    })
}

fn concurrency_scales_out(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-scale")?;
    let annotations = [
        ("autoscaling.knative.dev/target", "1"),
        ("autoscaling.knative.dev/window", "6s"),
        ("autoscaling.knative.dev/max-scale", "3"),
    ];
    ns.service("busy", &annotations, &[])?;
    ns.wait_ready("busy")?;
    let tally = http::many(p.gateway(), &ns.host("busy")?, "/?sleep=2000", 24, 6, http::by_status);
    ensure!(tally == Tally::from([("200".into(), 24)]), "{tally:?}");
    let pods = ns.pods()?.len();
    ensure!((2..=3).contains(&pods), "6 at once with a target of 1 and at most 3 pods made {pods}");
    ns.wait_zero()
}

fn cluster_local_is_refused(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-local")?;
    let mut manifest = service_manifest("inner", p.image(), &[], &[]);
    manifest["metadata"]["labels"] =
        serde_json::json!({"networking.knative.dev/visibility": "cluster-local"});
    p.apply(ns.name(), &manifest.to_string())?;
    ns.wait_ready("inner")?;
    let host = ns.host("inner")?;
    ensure!(host == "inner.e2e-local.svc.cluster.local", "{host}");
    let answer = http::get(p.gateway(), &host, "/")?;
    ensure!(answer.status == 404, "the outer listener served a cluster-local host: {answer:?}");
    Ok(())
}

fn environment_of_the_contract(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-env")?;
    ns.service("env", &[], &[("NAME", "x")])?;
    ns.wait_ready("env")?;
    let answer = http::get(p.gateway(), &ns.host("env")?, "/env")?;
    for line in ["PORT=8080", "K_SERVICE=env", "K_CONFIGURATION=env", "K_REVISION=env-00001"] {
        ensure!(answer.body.lines().any(|l| l == line), "{line} is missing in {}", answer.body);
    }
    let answer = http::get(p.gateway(), &ns.host("env")?, "/echo")?;
    let head = answer.body.to_ascii_lowercase();
    ensure!(
        head.contains(&format!("host: {}", ns.host("env")?.split(':').next().unwrap_or_default())),
        "{head}"
    );
    ensure!(head.contains("forwarded:") && head.contains("x-forwarded-for:"), "{head}");
    ensure!(!head.contains("knative-serving-revision"), "an internal header reached the app: {head}");
    Ok(())
}

fn delete_takes_all(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-delete")?;
    ns.service("gone", &[], &[])?;
    ns.wait_ready("gone")?;
    let host = ns.host("gone")?;
    p.kubectl(&["delete", "ksvc", "gone", "-n", ns.name()])?;
    ns.wait("everything of it is gone", || {
        let kinds = "ksvc,configurations,routes,revisions,deployments,replicasets,pods,services,podautoscalers.autoscaling.internal.knative.dev";
        Ok(p.kubectl(&["get", kinds, "-n", ns.name(), "-o", "name"])?.is_empty())
    })?;
    ns.wait("its host is unknown", || Ok(http::get(p.gateway(), &host, "/")?.status == 404))
}

fn condition(object: &serde_json::Value, kind: &str) -> Option<serde_json::Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
}

fn count(tally: &Tally, key: &str) -> usize {
    tally.get(key).copied().unwrap_or(0)
}

/// Waits until the status is that of the latest spec, and Ready.
fn wait_generation(p: &Platform, ns: &Namespace<'_>, service: &str) -> Result<()> {
    ns.wait("the new generation is Ready", || {
        let object = p.get(ns.name(), &format!("ksvc/{service}"))?;
        Ok(object["status"]["observedGeneration"] == object["metadata"]["generation"]
            && condition(&object, "Ready").is_some_and(|c| c["status"] == "True"))
    })
}
