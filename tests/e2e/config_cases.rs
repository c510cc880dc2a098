//! Settings: what a change of the `config-*` ConfigMaps does to a platform that runs, and to what runs on it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::http;

use crate::Case;
use crate::harness::{Namespace, Platform, service_manifest};

/// Each has a platform of its own: a setting is everybody's.
pub(crate) const CASES: &[(&str, Case)] = &[
    ("config::keys_act_while_all_runs", keys_act),
    ("config::a_bad_value_is_refused_by_its_key", bad_value),
];

/// Sets keys of one ConfigMap; a null takes one out.
fn set(p: &Platform, name: &str, data: &Value) -> Result<()> {
    let patch = json!({"data": data}).to_string();
    p.kubectl(&["patch", "configmap", name, "-n", "ebb-system", "--type=merge", "-p", &patch]).map(drop)
}

/// One value of an object, as text.
fn field(p: &Platform, ns: &Namespace<'_>, what: &str, path: &str) -> Result<String> {
    p.kubectl(&["get", "-n", ns.name(), what, "-o", &format!("jsonpath={path}")])
}

fn keys_act(_: &Platform) -> Result<()> {
    let p = Platform::start()?;
    {
        let ns = p.namespace("e2e-config")?;
        ns.service("runs", &[], &[("NAME", "still here")])?;
        ns.wait_ready("runs")?;
        to_zero_sooner(&p, &ns)?;
        another_host(&p, &ns)?;
        sidecar(&p, &ns)?;
        next_revisions(&p, &ns)?;
        old_revisions_go(&p, &ns)?;
    }
    p.stop()
}

/// A revision that runs with a stable window of a minute and 30 s of grace goes by shorter ones as soon as they are set.
fn to_zero_sooner(p: &Platform, ns: &Namespace<'_>) -> Result<()> {
    let begun = Instant::now();
    set(
        p,
        "config-autoscaler",
        &json!({"stable-window": "6s", "scale-to-zero-grace-period": "1s", "target-burst-capacity": "-1"}),
    )?;
    ns.wait("the window is told on", || {
        Ok(field(p, ns, "metric.autoscaling.internal.knative.dev/runs-00001", "{.spec.stableWindow}")?
            == "6000000000")
    })?;
    ns.wait_zero()?;
    ensure!(
        begun.elapsed() < Duration::from_secs(55),
        "it took {:?}, as with the former window",
        begun.elapsed()
    );
    // It wakes, and with a burst capacity of -1 the activator stays before it.
    let answer = http::get(p.gateway(), &ns.host("runs")?, "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    let mode = field(p, ns, "sks/runs-00001", "{.spec.mode}")?;
    ensure!(mode == "Proxy", "{mode}");
    Ok(())
}

/// The host of a Route that is there follows the domain and the template, and the gateway answers at it.
fn another_host(p: &Platform, ns: &Namespace<'_>) -> Result<()> {
    let follows = |wanted: &str| -> Result<()> {
        ns.wait(&format!("the host is {wanted}"), || {
            Ok(field(p, ns, "ksvc/runs", "{.status.url}")?.contains(&format!("//{wanted}")))
        })?;
        ns.wait_ready("runs")?;
        let answer = http::get(p.gateway(), wanted, "/")?;
        ensure!(answer.status == 200 && answer.body == "still here\n", "{wanted}: {answer:?}");
        Ok(())
    };
    set(p, "config-domain", &json!({"localhost": null, "changed.localhost": ""}))?;
    follows("runs.e2e-config.changed.localhost")?;
    set(p, "config-network", &json!({"domain-template": "{{.Name}}--{{.Namespace}}.{{.Domain}}"}))?;
    follows("runs--e2e-config.changed.localhost")?;
    let former = http::get(p.gateway(), "runs.e2e-config.changed.localhost", "/")?;
    ensure!(former.status == 404, "the former host: {former:?}");
    set(p, "config-network", &json!({"domain-template": null}))?;
    follows("runs.e2e-config.changed.localhost")
}

/// The Deployment of a revision that is there is made anew, and made as before when the keys go.
fn sidecar(p: &Platform, ns: &Namespace<'_>) -> Result<()> {
    let container = || -> Result<Value> {
        let deployment = p.get(ns.name(), "deployment/runs-00001-deployment")?;
        let all =
            deployment["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["name"] == "queue-proxy").context("no queue-proxy")
    };
    let env = |name: &str| -> Result<String> {
        let container = container()?;
        let found = container["env"].as_array().into_iter().flatten().find(|e| e["name"] == name);
        Ok(found.and_then(|e| e["value"].as_str()).unwrap_or_default().to_owned())
    };
    set(
        p,
        "config-deployment",
        &json!({"queue-sidecar-cpu-request": "9m", "queue-sidecar-memory-limit": "99Mi"}),
    )?;
    ns.wait("the sidecar's resources follow", || {
        let resources = container()?["resources"].clone();
        Ok(resources["requests"]["cpu"] == "9m" && resources["limits"]["memory"] == "99Mi")
    })?;
    set(p, "config-deployment", &json!({"queue-sidecar-memory-limit": null}))?;
    ns.wait("the limit goes again", || Ok(container()?["resources"]["limits"]["memory"].is_null()))?;
    set(p, "config-observability", &json!({"logging.enable-request-log": "true"}))?;
    ns.wait("requests are logged", || Ok(env("SERVING_ENABLE_REQUEST_LOG")? == "true"))?;
    ns.wait("a request has its line, in Knative's form", || {
        // The pods that log take over from those that do not.
        let answer = http::get(p.gateway(), &ns.host("runs")?, "/?logged")?;
        ensure!(answer.status == 200, "{answer:?}");
        let pods = ["-n", ns.name(), "-l", "serving.knative.dev/service=runs", "-c", "queue-proxy"];
        // Of two pods one may be about to start or gone.
        let logs = p.kubectl(&[&["logs", "--tail=-1"], &pods[..]].concat()).unwrap_or_default();
        let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.into_iter().any(|line| line["httpRequest"]["requestUrl"] == "/?logged"))
    })
}

/// What is applied next gets other defaults, and may do more.
fn next_revisions(p: &Platform, ns: &Namespace<'_>) -> Result<()> {
    let dry = ["apply", "-n", ns.name(), "--dry-run=server", "-f", "-"];
    let mut first = service_manifest("first", p.image(), &[], &[]);
    first["spec"]["template"]["spec"]["initContainers"] = json!([{"image": p.image()}]);
    let refused = p.kubectl_fails(&dry, Some(&first.to_string()))?;
    ensure!(refused.contains("initContainers"), "{refused}");
    set(p, "config-features", &json!({"kubernetes.podspec-init-containers": "enabled"}))?;
    ns.wait("init containers are taken", || Ok(p.kubectl_with(&dry, &first.to_string()).is_ok()))?;
    set(
        p,
        "config-defaults",
        &json!({"revision-timeout-seconds": "77", "container-concurrency": "7", "revision-cpu-request": "11m"}),
    )?;
    let template = |path: &str| -> Result<String> {
        let manifest = service_manifest("next", p.image(), &[], &[]).to_string();
        p.kubectl_with(
            &["apply", "-n", ns.name(), "--dry-run=server", "-f", "-", "-o", &format!("jsonpath={path}")],
            &manifest,
        )
    };
    ns.wait("the timeout is another", || Ok(template("{.spec.template.spec.timeoutSeconds}")? == "77"))?;
    let concurrency = template("{.spec.template.spec.containerConcurrency}")?;
    let request = template("{.spec.template.spec.containers[0].resources.requests.cpu}")?;
    ensure!((concurrency.as_str(), request.as_str()) == ("7", "11m"), "{concurrency} {request}");
    Ok(())
}

/// Old revisions that were to stay for hours go at once.
fn old_revisions_go(p: &Platform, ns: &Namespace<'_>) -> Result<()> {
    for generation in ["2", "3"] {
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"generation": generation}}}}});
        p.kubectl(&["patch", "ksvc", "runs", "-n", ns.name(), "--type=merge", "-p", &patch.to_string()])?;
        let wanted = format!("runs-0000{generation}");
        ns.wait(&format!("{wanted} is ready"), || {
            Ok(field(p, ns, "ksvc/runs", "{.status.latestReadyRevisionName}")? == wanted)
        })?;
    }
    let revisions = || p.kubectl(&["get", "rev", "-n", ns.name(), "-o", "name"]);
    ensure!(revisions()?.lines().count() == 3, "{}", revisions()?);
    set(p, "config-gc", &json!({"min-non-active-revisions": "0", "max-non-active-revisions": "0"}))?;
    ns.wait("only the latest revision is left", || Ok(revisions()?.trim().ends_with("/runs-00003")))
}

fn bad_value(p: &Platform) -> Result<()> {
    for (name, key, value) in [
        ("config-autoscaler", "stable-window", "1s"),
        ("config-gc", "min-non-active-revisions", "-1"),
        ("config-network", "rollout-duration", "soon"),
    ] {
        let patch = json!({"data": {(key): value}}).to_string();
        let args = ["patch", "configmap", name, "-n", "ebb-system", "--type=merge", "-p", &patch];
        let refused = p.kubectl_fails(&args, None)?;
        ensure!(refused.contains(key), "{refused}");
    }
    Ok(())
}
