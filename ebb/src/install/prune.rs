//! What an older version had and this one has not.

use std::collections::BTreeSet;

use anyhow::Context;
use ebb_api::manifests::INSTALLATION;
use ebb_controller::install::{FIELD_MANAGER, resource};
use futures::future::try_join_all;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

/// The kinds that any version had, those that are looked for in the platform's namespace only first. Never CRDs: with one, all of
/// users' objects of its kind would go.
const AT_HOME: &[(&str, &str)] = &[
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
];
/// See [`AT_HOME`].
const EVERYWHERE: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
];

/// An object that is there.
pub(super) struct Found {
    kind: &'static str,
    resource: ApiResource,
    object: DynamicObject,
}

impl Found {
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.kind, self.object.name_any())
    }

    pub(super) fn is_webhook(&self) -> bool {
        self.kind.ends_with("WebhookConfiguration")
    }

    /// Deletes it; that it is gone already is no error.
    pub(super) async fn delete(&self, client: &Client) -> anyhow::Result<()> {
        let api: Api<DynamicObject> = match self.object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        };
        match api.delete(&self.object.name_any(), &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting {}", self.name())),
        }
    }
}

/// Everything of the installation that is of these kinds.
pub(super) async fn find(
    client: &Client,
    namespace: &str,
    home: bool,
    everywhere: bool,
) -> anyhow::Result<Vec<Found>> {
    let ours = ListParams::default().labels(&format!("{INSTALLATION}={namespace}"));
    let kinds = AT_HOME.iter().filter(|_| home).map(|k| (k, true));
    let kinds = kinds.chain(EVERYWHERE.iter().filter(|_| everywhere).map(|k| (k, false)));
    let lists = kinds.map(|((api_version, kind), home)| {
        let resource = resource(api_version, kind);
        let api: Api<DynamicObject> = if home {
            Api::namespaced_with(client.clone(), namespace, &resource)
        } else {
            Api::all_with(client.clone(), &resource)
        };
        let ours = &ours;
        async move {
            let list = api.list(ours).await.with_context(|| format!("looking for {}", resource.plural))?;
            let found =
                list.items.into_iter().map(|object| Found { kind, resource: resource.clone(), object });
            anyhow::Ok(found.collect::<Vec<_>>())
        }
    });
    Ok(try_join_all(lists).await?.into_iter().flatten().collect())
}

/// What of `found` is not wanted any more.
pub(super) fn stale<'a>(wanted: &[Value], found: &'a [Found]) -> Vec<&'a Found> {
    let id = |kind: &str, name: &str| format!("{kind} {name}");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let wanted: BTreeSet<String> =
        wanted.iter().map(|o| id(&text(&o["kind"]), &text(&o["metadata"]["name"]))).collect();
    found
        .iter()
        .filter(|f| !wanted.contains(&id(f.kind, &f.object.name_any())))
        .filter(|f| f.object.metadata.owner_references.is_none())
        .filter(|f| f.kind != "ConfigMap" || untouched(&f.object))
        .collect()
}

/// Whether nobody but the installation has written it.
fn untouched(object: &DynamicObject) -> bool {
    let managers = object.metadata.managed_fields.iter().flatten();
    managers.into_iter().all(|m| m.manager.as_deref() == Some(FIELD_MANAGER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(kind: &'static str, name: &str, manager: &str, owned: bool) -> Found {
        let resource = resource("v1", kind);
        let mut object = DynamicObject::new(name, &resource);
        object.metadata.managed_fields =
            serde_json::from_value(json!([{"manager": manager}])).expect("fields");
        if owned {
            object.metadata.owner_references =
                serde_json::from_value(json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "1"}]))
                    .expect("owner");
        }
        Found { kind, resource, object }
    }

    #[test]
    fn only_what_nobody_wants_goes() {
        let wanted = [json!({"kind": "Service", "metadata": {"name": "gateway"}})];
        let there = [
            found("Service", "gateway", FIELD_MANAGER, false),
            found("Service", "old", FIELD_MANAGER, false),
            found("Service", "somebodys", FIELD_MANAGER, true),
            found("Deployment", "gateway", FIELD_MANAGER, false),
            found("ConfigMap", "config-old", FIELD_MANAGER, false),
            found("ConfigMap", "config-edited", "kubectl-edit", false),
        ];
        let stale: Vec<String> = stale(&wanted, &there).into_iter().map(Found::name).collect();
        assert_eq!(stale, ["Service old", "Deployment gateway", "ConfigMap config-old"]);
    }
}
