//! ConfigMaps are users' as much as the installation's: what somebody else has set stays, and is told.

use ebb_controller::Error;
use ebb_controller::install::{FIELD_MANAGER, apply};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Client;
use serde_json::Value;

/// Applies a ConfigMap but for the keys that others have set otherwise; gives these, in words.
pub(super) async fn put(client: &Client, map: &Value) -> Result<Vec<String>, Error> {
    let conflicts = match apply(client, map, false).await {
        Ok(_) => return Ok(vec![]),
        Err(error) => match conflicts(&error) {
            Some(conflicts) => conflicts,
            None => return Err(error),
        },
    };
    let (ours, kept) = without(map, &conflicts);
    apply(client, &ours, true).await?;
    Ok(kept)
}

/// Fields in conflict, and with whom.
type Conflicts = Vec<(String, String)>;

fn conflicts(error: &Error) -> Option<Conflicts> {
    let Error::Write { source, .. } = error else { return None };
    let kube::Error::Api(status) = &**source else { return None };
    if status.code != 409 {
        return None;
    }
    let causes = status.details.iter().flat_map(|d| &d.causes);
    let conflicts = causes.filter(|c| c.reason == "FieldManagerConflict");
    Some(
        conflicts
            .map(|c| {
                // As in: conflict with "kubectl-edit" using v1
                let with = c.message.split('"').nth(1).unwrap_or("another").to_owned();
                (c.field.clone(), with)
            })
            .collect(),
    )
}

/// The map without the keys of its data that are in conflict. The explanations under `_example` are the installation's own.
fn without(map: &Value, conflicts: &Conflicts) -> (Value, Vec<String>) {
    let (mut ours, mut kept) = (map.clone(), Vec::new());
    let name = map["metadata"]["name"].as_str().unwrap_or_default();
    for (field, with) in conflicts {
        let Some(key) = field.strip_prefix(".data.").filter(|key| *key != "_example") else { continue };
        if ours["data"].as_object_mut().is_some_and(|data| data.remove(key).is_some()) {
            kept.push(format!("{name}: {key} stays as {with} has set it"));
        }
    }
    (ours, kept)
}

/// The domain that an earlier installation was told.
pub(super) fn domain(map: &ConfigMap) -> Option<String> {
    let managed = map.metadata.managed_fields.iter().flatten();
    let ours = managed.filter(|m| m.manager.as_deref() == Some(FIELD_MANAGER));
    ours.flat_map(keys)
        .find(|key| key != "_example" && map.data.as_ref().is_some_and(|d| d.contains_key(key)))
}

/// The keys of the data that are in an entry.
fn keys(entry: &ManagedFieldsEntry) -> Vec<String> {
    let fields = entry.fields_v1.as_ref().and_then(|f| f.0["f:data"].as_object());
    fields.into_iter().flatten().filter_map(|(key, _)| key.strip_prefix("f:").map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_others_set_is_not_applied() {
        let map = json!({"metadata": {"name": "config-x", "labels": {}}, "data": {"a": "1", "b": "2", "_example": ""}});
        let conflict = |field: &str| (field.to_owned(), "kubectl-edit".to_owned());
        let conflicts = vec![conflict(".data.a"), conflict(".data._example"), conflict(".metadata.labels.x")];
        let (ours, kept) = without(&map, &conflicts);
        assert_eq!(ours["data"], json!({"b": "2", "_example": ""}));
        assert_eq!(kept, ["config-x: a stays as kubectl-edit has set it"]);
    }

    #[test]
    fn the_domain_of_before_is_remembered() {
        let map = |manager: &str| -> ConfigMap {
            serde_json::from_value(json!({
                "metadata": {"managedFields": [{
                    "manager": manager, "operation": "Apply", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:data": {"f:_example": {}, "f:example.com": {}, "f:gone.com": {}}},
                }]},
                "data": {"_example": "", "example.com": ""},
            }))
            .expect("a ConfigMap")
        };
        assert_eq!(domain(&map(FIELD_MANAGER)).as_deref(), Some("example.com"));
        assert_eq!(domain(&map("kubectl-edit")), None);
    }
}
