//! Resource types that CustomResourceDefinitions define, and the conditions of the definitions themselves.

use std::sync::{Arc, OnceLock};

use cluster_schema::Schema;
use serde_json::{Value, json};

use super::{Columns, CrdColumn, Resource, ScalePaths, Snapshot, api_version};

/// Where CRDs live.
pub(crate) const STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// The served versions of a definition whose names were accepted. `before` lends schemas that did not change.
pub(crate) fn resources(definition: &Value, before: &Snapshot) -> Vec<Arc<Resource>> {
    if !is_true(definition, "NamesAccepted") {
        return Vec::new();
    }
    let spec = &definition["spec"];
    let names = &definition["status"]["acceptedNames"];
    let group = text(&spec["group"]);
    let plural = text(&names["plural"]);
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage_version = versions
        .iter()
        .find(|version| version["storage"] == true)
        .map(|version| api_version(&group, &text(&version["name"])))
        .unwrap_or_default();
    let served = versions.iter().filter(|version| version["served"] == true);
    served
        .filter_map(|version| {
            let name = text(&version["name"]);
            let raw = &version["schema"]["openAPIV3Schema"];
            let known = before.find(&group, &name, &plural).and_then(|resource| {
                let schema = resource.schema.get()?;
                (schema.raw() == raw).then(|| schema.clone())
            });
            let schema = match known.map_or_else(|| Schema::from_crd(raw), Ok) {
                Ok(schema) => schema,
                Err(errors) => {
                    tracing::error!(?errors, group, plural, "a stored definition no longer compiles");
                    return None;
                }
            };
            let scale = &version["subresources"]["scale"];
            Some(Arc::new(Resource {
                group: group.clone(),
                version: name,
                kind: text(&names["kind"]),
                plural: plural.clone(),
                singular: text(&names["singular"]),
                short_names: texts(&names["shortNames"]),
                categories: texts(&names["categories"]),
                namespaced: spec["scope"] == "Namespaced",
                status: version["subresources"]["status"].is_object(),
                scale: scale.is_object().then(|| ScalePaths {
                    spec: dotless(&scale["specReplicasPath"]),
                    status: dotless(&scale["statusReplicasPath"]),
                    selector: scale["labelSelectorPath"]
                        .as_str()
                        .map(|path| path.trim_start_matches('.').to_owned()),
                }),
                subresources: &[],
                storage: Arc::from(format!("{group}/{plural}")),
                storage_version: storage_version.clone(),
                conversion: Some(&spec["conversion"]).filter(|it| it["strategy"] == "Webhook").cloned(),
                builtin: false,
                virtual_only: false,
                computed: false,
                columns: Columns::Crd(columns(&version["additionalPrinterColumns"])),
                deprecation: deprecation(&group, &text(&names["kind"]), version, versions),
                selectable: version["selectableFields"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|field| dotless(&field["jsonPath"]))
                    .collect(),
                schema: OnceLock::from(schema),
            }))
        })
        .collect()
}

/// What clients of a deprecated version are told: in its definition's words, or naming the best other version.
fn deprecation(group: &str, kind: &str, version: &Value, all: &[Value]) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    if let Some(warning) = version["deprecationWarning"].as_str() {
        return Some(warning.to_owned());
    }
    let own = text(&version["name"]);
    let rank = |version: &&Value| super::version_rank(version["name"].as_str().unwrap_or_default());
    let newer = all
        .iter()
        .filter(|other| other["served"] == true && other["deprecated"] != true)
        .filter(|other| rank(other) > rank(&version))
        .max_by_key(rank);
    let instead =
        newer.map(|newer| format!("; use {group}/{} {kind}", text(&newer["name"]))).unwrap_or_default();
    Some(format!("{group}/{own} {kind} is deprecated{instead}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn dotless(value: &Value) -> String {
    value.as_str().unwrap_or_default().trim_start_matches('.').to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn columns(value: &Value) -> Vec<CrdColumn> {
    let column = |column: &Value| CrdColumn {
        name: text(&column["name"]),
        kind: text(&column["type"]),
        format: text(&column["format"]),
        description: text(&column["description"]),
        priority: column["priority"].as_i64().unwrap_or(0),
        path: text(&column["jsonPath"]),
    };
    match value.as_array() {
        Some(list) if !list.is_empty() => list.iter().map(column).collect(),
        _ => vec![CrdColumn {
            name: "Age".to_owned(),
            kind: "date".to_owned(),
            format: String::new(),
            description:
                "CreationTimestamp is a timestamp representing the server time when this object was created."
                    .to_owned(),
            priority: 0,
            path: ".metadata.creationTimestamp".to_owned(),
        }],
    }
}

fn is_true(definition: &Value, condition: &str) -> bool {
    definition["status"]["conditions"]
        .as_array()
        .is_some_and(|list| list.iter().any(|c| c["type"] == condition && c["status"] == "True"))
}

/// Fills in what a definition leaves out: singular, listKind, conversion, scope of names.
pub(crate) fn default(definition: &mut Value) {
    let kind = text(&definition["spec"]["names"]["kind"]);
    let spec = &mut definition["spec"];
    if let Some(names) = spec["names"].as_object_mut() {
        names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
        names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    }
    if !spec["conversion"].is_object() {
        spec["conversion"] = json!({"strategy": "None"});
    }
    let service = spec["conversion"].pointer_mut("/webhook/clientConfig/service");
    if let Some(service) = service.and_then(Value::as_object_mut) {
        service.entry("port").or_insert_with(|| 443.into());
    }
}

/// Sets `status`: names accepted and established at once, unless another definition has the names.
pub(crate) fn establish<'a>(definition: &mut Value, others: impl Iterator<Item = &'a Value>, now: &str) {
    let name = super::super::meta::name(definition).to_owned();
    let group = text(&definition["spec"]["group"]);
    let wanted = definition["spec"]["names"].clone();
    let taken = others
        .filter(|other| super::super::meta::name(other) != name && other["spec"]["group"] == group.as_str())
        .find(|other| {
            let accepted = &other["status"]["acceptedNames"];
            accepted["kind"] == wanted["kind"] || accepted["listKind"] == wanted["listKind"]
        });
    let accepted = taken.is_none();
    let reason = match taken {
        None => ("NoConflicts", "no conflicts found".to_owned()),
        Some(_) => ("KindConflict", format!("{} is already in use", wanted["kind"])),
    };
    let established = accepted || is_true(definition, "Established");
    let state = |yes: bool| if yes { "True" } else { "False" };
    set_condition(definition, "NamesAccepted", state(accepted), reason.0, &reason.1, now);
    if established {
        set_condition(
            definition,
            "Established",
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
            now,
        );
    } else {
        set_condition(definition, "Established", "False", "NotAccepted", "not all names are accepted", now);
    }
    if accepted {
        definition["status"]["acceptedNames"] = wanted;
    } else if !definition["status"]["acceptedNames"].is_object() {
        definition["status"]["acceptedNames"] = json!({"plural": "", "kind": ""});
    }
    let storage = definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|version| version["storage"] == true)
        .map(|version| version["name"].clone());
    if let Some(storage) = storage {
        let stored = &mut definition["status"]["storedVersions"];
        if !stored.is_array() {
            *stored = json!([]);
        }
        if let Some(list) = stored.as_array_mut()
            && !list.contains(&storage)
        {
            list.push(storage);
        }
    }
}

fn set_condition(definition: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: &str) {
    if !definition["status"]["conditions"].is_array() {
        definition["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = definition["status"]["conditions"].as_array_mut() else { return };
    let new = json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(condition) if condition["status"] == status => {
            condition["reason"] = reason.into();
            condition["message"] = message.into();
        }
        Some(condition) => *condition = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widget() -> Value {
        json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    #[test]
    fn a_new_definition_is_established_at_once() {
        let mut definition = widget();
        default(&mut definition);
        assert_eq!(definition["spec"]["names"]["listKind"], "WidgetList");
        establish(&mut definition, std::iter::empty(), "2026-01-01T00:00:00Z");
        assert!(is_true(&definition, "Established"));
        assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(resources(&definition, &Snapshot::default()).len(), 1);
    }

    #[test]
    fn a_kind_that_is_taken_is_not_accepted() {
        let mut first = widget();
        default(&mut first);
        establish(&mut first, std::iter::empty(), "t");
        let mut second = widget();
        second["metadata"]["name"] = "others.example.com".into();
        second["spec"]["names"]["plural"] = "others".into();
        default(&mut second);
        establish(&mut second, [&first].into_iter(), "t");
        assert!(!is_true(&second, "NamesAccepted"));
        assert!(resources(&second, &Snapshot::default()).is_empty());
    }
}
