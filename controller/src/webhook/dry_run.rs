//! Tries the pod that a template would give against Kubernetes, without making it.
//!
//! What only Kubernetes knows (its own rules of pods, quotas, pod security, other webhooks) is then told when a Service is applied, and not
//! minutes later by a Revision that does not become ready. It is done for requests that are themselves dry runs, and for all others as the
//! flag `kubernetes.podspec-dryrun` and the annotation `features.knative.dev/podspec-dryrun` say.

use ebb_api::config::{Configs, Flag};
use ebb_api::defaults;
use ebb_api::meta::serving as keys;
use ebb_api::serving::{Revision, RevisionStatus, RevisionTemplateSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use serde_json::Value;

use super::Verdict;
use crate::revision::{Platform, deployment};

const NAME: &str = "dry-run-validation";

/// The verdict after the pod was tried too, if it is to be.
pub(super) async fn tried(
    verdict: Verdict,
    request: &Value,
    configs: &Configs,
    platform: &Platform,
    client: &Client,
) -> Verdict {
    let Verdict::Allowed(patch, mut warnings) = verdict else { return verdict };
    let Some(pod) = sample(request, configs, platform) else { return Verdict::Allowed(patch, warnings) };
    let pods: Api<Pod> =
        Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match pods.create(&params, &pod).await {
        Ok(_) => {}
        // Another webhook on pods that may not be called in a dry run.
        Err(Error::Api(status)) if status.message.contains("does not support dry run") => {}
        Err(Error::Api(status)) if (400..500).contains(&status.code) => {
            let message = format!("dry run failed with {}: spec.template", status.message);
            return Verdict::Denied(format!("validation callback failed: {message}"));
        }
        Err(error) => warnings.push(format!("the pod could not be tried: {error}")),
    }
    Verdict::Allowed(patch, warnings)
}

/// The pod to be tried.
fn sample(request: &Value, configs: &Configs, platform: &Platform) -> Option<Pod> {
    let object = &request["object"];
    let owned = object["metadata"]["labels"][keys::SERVICE].is_string();
    let meant = match request["kind"]["kind"].as_str()? {
        "Service" => true,
        "Configuration" => !owned,
        _ => false,
    };
    let asked = matches!(
        object["metadata"]["annotations"][keys::PODSPEC_DRYRUN].as_str(),
        Some("enabled" | "strict")
    );
    let wanted = match configs.features.get("kubernetes.podspec-dryrun") {
        Flag::Disabled => false,
        Flag::Enabled => true,
        _ => asked || request["dryRun"] == true,
    };
    if !meant || !wanted || super::admission::passes(request) {
        return None;
    }
    let template: RevisionTemplateSpec = serde_json::from_value(object["spec"]["template"].clone()).ok()?;
    let namespace = request["namespace"].as_str()?.to_owned();
    let mut revision = Revision::new(NAME, template.spec);
    revision.metadata.namespace = Some(namespace.clone());
    revision.metadata.annotations = template.metadata.annotations;
    defaults::revision(&mut revision, None, configs);
    let made = deployment(&revision, &RevisionStatus::default(), configs, platform).spec?.template;
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{NAME}-")),
            namespace: Some(namespace),
            ..made.metadata.unwrap_or_default()
        },
        spec: made.spec,
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn platform() -> Platform {
        crate::Config::default().platform(String::new())
    }

    fn request(kind: &str, dry_run: bool, annotation: Option<&str>) -> Value {
        let mut object = json!({
            "metadata": {"name": "hello"},
            "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "hello"}]}}}
        });
        if let Some(value) = annotation {
            object["metadata"]["annotations"] = json!({keys::PODSPEC_DRYRUN: value});
        }
        json!({"kind": {"kind": kind}, "namespace": "default", "dryRun": dry_run, "object": object})
    }

    #[test]
    fn which_requests_try_a_pod() {
        let flag = |value: &str| {
            let mut configs = Configs::default();
            let data = [("kubernetes.podspec-dryrun".to_owned(), value.to_owned())].into();
            configs.set("config-features", &data).expect("good");
            configs
        };
        for (kind, dry_run, annotation, state, want) in [
            ("Service", true, None, "allowed", true),
            ("Configuration", true, None, "allowed", true),
            ("Route", true, None, "allowed", false),
            ("Service", false, None, "allowed", false),
            ("Service", false, Some("enabled"), "allowed", true),
            ("Service", false, Some("no"), "allowed", false),
            ("Service", false, None, "enabled", true),
            ("Service", true, Some("strict"), "disabled", false),
        ] {
            let found = sample(&request(kind, dry_run, annotation), &flag(state), &platform());
            assert_eq!(found.is_some(), want, "{kind} {dry_run} {annotation:?} {state}");
        }
    }

    #[test]
    fn the_pod_is_the_one_that_would_be_made() {
        let pod = sample(&request("Service", true, None), &Configs::default(), &platform()).expect("a pod");
        let names: Vec<_> = pod.spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["app", "queue-proxy"]);
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("dry-run-validation-"));
    }
}
