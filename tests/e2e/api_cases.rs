//! What users are told when they get the API wrong, and where they look things up.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::Case;
use crate::harness::{Platform, service_manifest};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("api::a_dry_run_tries_the_pod", dry_run),
    ("api::kinds_between_components_are_checked", internal_kinds),
    ("api::settings_are_checked_and_live", settings),
    ("api::explain_knows_every_field", explain),
];

fn dry_run(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-dry-run")?;
    let apply = ["apply", "--dry-run=server", "-n", ns.name(), "-f", "-"];
    let mut manifest = service_manifest("tried", p.image(), &[], &[]);
    let said = p.kubectl_with(&apply, &manifest.to_string())?;
    ensure!(said.contains("tried created (server dry run)"), "{said}");
    // Only Kubernetes knows that a request must not exceed its limit.
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}});
    let said = p.kubectl_fails(&apply, Some(&manifest.to_string()))?;
    ensure!(said.contains("validation callback failed: dry run failed with"), "{said}");
    ensure!(said.contains("memory limit") && said.contains("spec.template"), "{said}");
    // The annotation asks for the same where it is no dry run.
    manifest["metadata"]["annotations"] = json!({"features.knative.dev/podspec-dryrun": "enabled"});
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&manifest.to_string()))?;
    ensure!(said.contains("dry run failed with"), "{said}");
    let left = p.kubectl(&["get", "ksvc,pods", "-n", ns.name(), "-o", "name"])?;
    ensure!(left.is_empty(), "a dry run left {left}");
    Ok(())
}

fn internal_kinds(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-internal-kinds")?;
    let ingress = |percent: i32| {
        json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": {"name": "by-hand"},
            "spec": {"rules": [{"hosts": ["by-hand.example.com"], "http": {"paths": [{"splits": [
                {"serviceName": "a", "serviceNamespace": ns.name(), "servicePort": 80, "percent": percent}
            ]}]}}]}
        })
        .to_string()
    };
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&ingress(90)))?;
    ensure!(
        said.contains(
            "traffic split percentage must total to 100, but was 90: spec.rules[0].http.paths[0].splits"
        ),
        "{said}"
    );
    p.apply(ns.name(), &ingress(0))?;
    let stored = p.get(ns.name(), "king/by-hand")?;
    let percent = &stored["spec"]["rules"][0]["http"]["paths"][0]["splits"][0]["percent"];
    ensure!(*percent == 100, "a single split takes {percent}");
    Ok(())
}

fn settings(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-settings")?;
    let patch = |data: serde_json::Value| json!({"data": data}).to_string();
    let arguments = |map: &'static str, patch: &str| -> Vec<String> {
        ["patch", "configmap", map, "-n", "ebb-system", "--type=merge", "-p", patch].map(str::to_owned).into()
    };
    let refused = |map, data| {
        let args = arguments(map, &patch(data));
        p.kubectl_fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), None)
    };
    let set = |map, data| {
        let args = arguments(map, &patch(data));
        p.kubectl(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let said = refused("config-gc", json!({"min-non-active-revisions": "few"}))?;
    ensure!(said.contains("data[min-non-active-revisions]"), "{said}");
    let said = refused("config-gc", json!({"_example": "min-non-active-revisions: \"3\""}))?;
    ensure!(said.contains("the update modifies a key in \"_example\""), "{said}");
    let said = refused("config-logging", json!({"loglevel.gateway": "loud"}))?;
    ensure!(said.contains("data.[loglevel.gateway]"), "{said}");

    // A flag opens a field as soon as the controller has seen it.
    let mut manifest = service_manifest("flagged", p.image(), &[], &[]);
    manifest["spec"]["template"]["spec"]["hostAliases"] = json!([{"ip": "10.1.2.3", "hostnames": ["other"]}]);
    let apply = ["apply", "--dry-run=server", "-n", ns.name(), "-f", "-"];
    let said = p.kubectl_fails(&apply, Some(&manifest.to_string()))?;
    ensure!(said.contains("must not set the field(s): spec.template.spec.hostAliases"), "{said}");
    set("config-features", json!({"kubernetes.podspec-hostaliases": "enabled"}))?;
    let opened =
        ns.wait("the flag opens the field", || Ok(p.kubectl_with(&apply, &manifest.to_string()).is_ok()));
    set("config-features", json!({"kubernetes.podspec-hostaliases": null}))?;
    opened
}

fn explain(p: &Platform) -> Result<()> {
    for (path, words) in [
        ("ksvc.spec.template.spec.containers.env", "environment variables"),
        ("rev.spec.containerConcurrency", "in flight"),
        ("rt.spec.traffic", "One share of the traffic"),
        ("dm.spec.ref", "The target"),
        ("kpa.spec.scaleTargetRef.name", "Its name"),
        ("king.spec.rules", "of which the first"),
    ] {
        let said = p.kubectl(&["explain", path])?;
        ensure!(said.contains(words), "{path}: {said}");
    }
    Ok(())
}
