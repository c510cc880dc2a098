//! What a user sees when a Service does not come up: the root cause on the Service itself, in its status and its Events, soon; and that
//! it is Ready once the cause is mended, where it can be.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::harness::{Namespace, Platform, service_manifest};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("failures::missing_secret_in_the_environment_and_mended", missing_secret),
    ("failures::missing_secret_of_a_volume", missing_volume),
    ("failures::crash_with_its_exit_code_and_last_words", crash),
    ("failures::out_of_memory", out_of_memory),
    ("failures::readiness_probe_and_why_it_fails", unready),
    ("failures::quota_and_raised", quota),
    ("failures::unschedulable", unschedulable),
    ("failures::missing_service_account", missing_account),
];

pub(crate) const OWN_CASES: &[(&str, Case)] = &[("serving::old_revisions_are_collected", collected)];

/// Waits until the Service's Ready is as given, and its message has all of these in it.
fn wait_ready_says(p: &Platform, ns: &Namespace<'_>, status: &str, parts: &[&str]) -> Result<()> {
    ns.wait(&format!("Ready is {status} and says {parts:?}"), || {
        let object = p.get(ns.name(), "ksvc/it")?;
        let ready = condition(&object, "Ready");
        let message = ready["message"].as_str().unwrap_or_default();
        Ok(ready["status"] == status && parts.iter().all(|part| message.contains(part)))
    })
}

fn condition(object: &Value, kind: &str) -> Value {
    let mut all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind).cloned().unwrap_or_default()
}

/// A Service named `it`, changed by `change`.
fn apply(p: &Platform, ns: &Namespace<'_>, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut manifest = service_manifest("it", p.image(), &[], &[]);
    change(&mut manifest["spec"]["template"]);
    p.apply(ns.name(), &manifest.to_string()).map(drop)
}

fn reason_of_revision(p: &Platform, ns: &Namespace<'_>, kind: &str) -> Result<String> {
    let revision = p.get(ns.name(), "revision/it-00001")?;
    Ok(condition(&revision, kind)["reason"].as_str().unwrap_or_default().to_owned())
}

/// The Events of the Service, as `kubectl describe` shows them.
fn wait_told(p: &Platform, ns: &Namespace<'_>, parts: &[&str]) -> Result<()> {
    ns.wait(&format!("its Events tell {parts:?}"), || {
        let text = p.kubectl(&["describe", "ksvc/it", "-n", ns.name()])?;
        let events = text.split("\nEvents:").nth(1).unwrap_or_default();
        Ok(parts.iter().all(|part| events.contains(part)))
    })
}

fn missing_secret(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-no-secret")?;
    apply(p, &ns, |template| {
        template["spec"]["containers"][0]["env"] =
            json!([{"name": "NAME", "valueFrom": {"secretKeyRef": {"name": "later", "key": "name"}}}]);
    })?;
    wait_ready_says(p, &ns, "False", &["secret \"later\" not found"])?;
    let reason = reason_of_revision(p, &ns, "ResourcesAvailable")?;
    ensure!(reason == "CreateContainerConfigError", "the revision says {reason}");
    wait_told(
        p,
        &ns,
        &["Created Configuration", "Created Revision", "RevisionFailed", "secret \"later\" not found"],
    )?;
    p.kubectl(&["create", "secret", "generic", "later", "--from-literal=name=x", "-n", ns.name()])?;
    ns.wait_ready("it")?;
    wait_told(p, &ns, &["LatestReadyUpdate", "ServiceReady"])
}

fn missing_volume(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-no-volume")?;
    apply(p, &ns, |template| {
        template["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "later"}}]);
        template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    })?;
    wait_ready_says(p, &ns, "False", &["secret \"later\" not found"])?;
    p.kubectl(&["create", "secret", "generic", "later", "--from-literal=name=x", "-n", ns.name()])?;
    ns.wait_ready("it")
}

fn crash(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-crashing")?;
    apply(p, &ns, |template| {
        template["spec"]["containers"][0]["env"] = json!([{"name": "FAIL_AT_START", "value": "7"}]);
    })?;
    wait_ready_says(p, &ns, "False", &["Container failed with: ", "told to fail at start"])?;
    let reason = reason_of_revision(p, &ns, "ContainerHealthy")?;
    ensure!(reason == "ExitCode7", "the revision says {reason}");
    wait_told(p, &ns, &["RevisionFailed", "told to fail at start"])
}

fn out_of_memory(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-oom")?;
    apply(p, &ns, |template| {
        let container = &mut template["spec"]["containers"][0];
        container["resources"] = json!({"limits": {"memory": "32Mi"}});
        // Its readiness is that it could take more memory than it has.
        container["readinessProbe"] = json!({"httpGet": {"path": "/fill?mb=256"}});
    })?;
    wait_ready_says(p, &ns, "False", &["out of memory"])?;
    let reason = reason_of_revision(p, &ns, "ContainerHealthy")?;
    ensure!(reason == "ExitCode137", "the revision says {reason}");
    Ok(())
}

fn unready(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-unready")?;
    apply(p, &ns, |template| {
        template["metadata"]["annotations"] = json!({"serving.knative.dev/progress-deadline": "8s"});
        template["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/nothing"}});
    })?;
    // While nothing is decided yet it says what it waits for, and at the deadline both.
    wait_ready_says(p, &ns, "Unknown", &["Readiness probe failed", "404", "/nothing"])?;
    wait_ready_says(p, &ns, "False", &["has timed out progressing.", "404", "/nothing"])?;
    let reason = reason_of_revision(p, &ns, "ResourcesAvailable")?;
    ensure!(reason == "ProgressDeadlineExceeded", "the revision says {reason}");
    wait_told(p, &ns, &["RevisionNotReady", "RevisionFailed", "/nothing"])
}

fn quota(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-quota")?;
    p.kubectl(&["create", "quota", "none", "--hard=pods=0", "-n", ns.name()])?;
    apply(p, &ns, |_| {})?;
    wait_ready_says(p, &ns, "False", &["exceeded quota: none"])?;
    let reason = reason_of_revision(p, &ns, "ResourcesAvailable")?;
    ensure!(reason == "FailedCreate", "the revision says {reason}");
    p.kubectl(&["delete", "quota", "none", "-n", ns.name()])?;
    ns.wait_ready("it")
}

fn unschedulable(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-huge")?;
    apply(p, &ns, |template| {
        template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    })?;
    wait_ready_says(p, &ns, "False", &["Insufficient cpu"])?;
    let reason = reason_of_revision(p, &ns, "ResourcesAvailable")?;
    ensure!(reason == "Unschedulable", "the revision says {reason}");
    Ok(())
}

fn missing_account(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-no-account")?;
    apply(p, &ns, |template| template["spec"]["serviceAccountName"] = "later".into())?;
    wait_ready_says(p, &ns, "False", &["serviceaccount \"later\" not found"])?;
    p.kubectl(&["create", "serviceaccount", "later", "-n", ns.name()])?;
    ns.wait_ready("it")
}

/// On a platform of its own: config-gc is for all.
fn collected(_: &Platform) -> Result<()> {
    let p = Platform::start()?;
    let ns = p.namespace("e2e-collected")?;
    for n in 1..=4 {
        ns.service("it", &[], &[("NAME", &n.to_string())])?;
        ns.wait("it is the latest ready one", || {
            Ok(p.get(ns.name(), "ksvc/it")?["status"]["latestReadyRevisionName"] == format!("it-0000{n}"))
        })?;
    }
    p.kubectl(&["annotate", "revision/it-00001", "serving.knative.dev/no-gc=true", "-n", ns.name()])?;
    let revisions = || p.kubectl(&["get", "revisions", "-o", "name", "-n", ns.name()]);
    ensure!(revisions()?.lines().count() == 4, "nothing goes by default: {}", revisions()?);
    let set = |data: Value| {
        let patch = json!({"data": data}).to_string();
        p.kubectl(&["patch", "configmap/config-gc", "-n", "ebb-system", "--type=merge", "-p", &patch])
            .map(drop)
    };
    // With both times disabled only what is too many goes, and that is the oldest but for the one that is kept.
    let off = "disabled";
    set(json!({"retain-since-create-time": off, "retain-since-last-active-time": off,
               "min-non-active-revisions": "0", "max-non-active-revisions": "1"}))?;
    ns.wait("the second has gone", || Ok(!revisions()?.contains("it-00002")))?;
    ensure!(revisions()?.lines().count() == 3, "{}", revisions()?);
    set(json!({"retain-since-last-active-time": "0s"}))?;
    ns.wait("the third has gone", || Ok(!revisions()?.contains("it-00003")))?;
    ensure!(revisions()?.contains("it-00001") && revisions()?.contains("it-00004"), "{}", revisions()?);
    drop(ns);
    p.stop()
}
