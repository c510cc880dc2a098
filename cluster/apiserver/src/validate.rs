//! Checks of objects beyond their schema: names, labels, what may not change, what must agree.

use std::sync::LazyLock;

use cluster_schema::{FieldError, Schema};
use regex::Regex;
use serde_json::Value;

use crate::handlers::Ctx;
use crate::meta;
use crate::registry::Resource;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// What a key with more than one slash is told.
const SLASHES: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
/// All annotations of an object together.
const MAX_ANNOTATIONS: usize = 256 << 10;

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a literal of this file")
}

static IS_SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static IS_LABEL: LazyLock<Regex> = LazyLock::new(|| regex(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static IS_LABEL_1035: LazyLock<Regex> = LazyLock::new(|| regex(r"^[a-z]([-a-z0-9]*[a-z0-9])?$"));
static IS_QUALIFIED: LazyLock<Regex> = LazyLock::new(|| regex(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));

fn too_long(field: &str, most: usize) -> FieldError {
    FieldError {
        field: field.to_owned(),
        reason: cluster_schema::Reason::TooLong,
        bad_value: None,
        shown: None,
        detail: format!("may not be more than {most} bytes"),
    }
}

/// The rule for an object's name, by its type.
fn check_name(field: &str, resource: &Resource, name: &str, errors: &mut Vec<FieldError>) {
    let mut rule = |is: &Regex, most: usize, text: &str| {
        if name.len() > most {
            errors.push(FieldError::invalid(
                field,
                &name.into(),
                format!("must be no more than {most} characters"),
            ));
        }
        if !is.is_match(name) {
            errors.push(FieldError::invalid(field, &name.into(), text));
        }
    };
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Service") => rule(&IS_LABEL_1035, 63, LABEL_1035),
        ("", "Namespace") => {
            if name.contains('.') {
                errors.push(FieldError::invalid(field, &name.into(), "must not contain dots"));
            } else {
                rule(&IS_LABEL, 63, LABEL);
            }
        }
        ("rbac.authorization.k8s.io", _) => {
            if name == "." || name == ".." || name.contains(['/', '%']) {
                errors.push(FieldError::invalid(
                    field,
                    &name.into(),
                    "may not be '.' or '..' or contain '/' or '%'",
                ));
            }
        }
        _ => rule(&IS_SUBDOMAIN, 253, SUBDOMAIN),
    }
}

/// The key of a label, in a selector as in an object.
pub(crate) fn label_key(field: &str, key: &str, errors: &mut Vec<FieldError>) {
    if key.matches('/').count() > 1 {
        errors.push(FieldError::invalid(field, &key.into(), format!("a valid label key {SLASHES}")));
        return;
    }
    qualified(field, key, errors);
}

/// The value of a label.
pub(crate) fn label_value(field: &str, value: &str, errors: &mut Vec<FieldError>) {
    if value.len() > 63 {
        errors.push(FieldError::invalid(field, &value.into(), "must be no more than 63 bytes"));
    } else if !value.is_empty() && !IS_QUALIFIED.is_match(value) {
        errors.push(FieldError::invalid(field, &value.into(), LABEL_VALUE));
    }
}

/// Checks a qualified name such as a label's key.
fn qualified(field: &str, key: &str, errors: &mut Vec<FieldError>) {
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix == Some("") {
        errors.push(FieldError::invalid(field, &key.into(), "prefix part must be non-empty"));
    } else if let Some(prefix) = prefix
        && (prefix.len() > 253 || !IS_SUBDOMAIN.is_match(prefix))
    {
        errors.push(FieldError::invalid(field, &key.into(), format!("prefix part {SUBDOMAIN}")));
    }
    if name.is_empty() {
        errors.push(FieldError::invalid(field, &key.into(), "name part must be non-empty"));
        errors.push(FieldError::invalid(field, &key.into(), QUALIFIED));
    } else if name.len() > 63 {
        errors.push(FieldError::invalid(field, &key.into(), "name part must be no more than 63 bytes"));
    } else if !IS_QUALIFIED.is_match(name) {
        errors.push(FieldError::invalid(field, &key.into(), QUALIFIED));
    }
}

/// Checks labels at a path.
pub(crate) fn labels(field: &str, labels: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        label_key(field, key, errors);
        let Some(value) = value.as_str() else { continue };
        label_value(field, value, errors);
    }
}

/// Checks `metadata` of any object.
pub(crate) fn metadata(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let prefix = meta::text(object, "generateName");
    if !prefix.is_empty() {
        // What is generated goes on where the prefix ends, so that a dash there is none at the end.
        let whole =
            format!("{}{}", prefix.trim_end_matches('-'), if prefix.ends_with('-') { "a" } else { "" });
        let before = errors.len();
        check_name("metadata.generateName", resource, &whole, &mut errors);
        errors[before..].iter_mut().for_each(|error| error.bad_value = Some(prefix.into()));
    }
    check_name("metadata.name", resource, meta::name(object), &mut errors);
    let metadata = &object["metadata"];
    labels("metadata.labels", &metadata["labels"], &mut errors);
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        qualified("metadata.annotations", &key.to_lowercase(), &mut errors);
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
    for (index, finalizer) in meta::finalizers(object).iter().enumerate() {
        let field = format!("metadata.finalizers[{index}]");
        let standard = ["orphan", "foregroundDeletion", "kubernetes"];
        qualified("metadata.finalizers", finalizer, &mut errors);
        if !finalizer.contains('/') && !standard.contains(finalizer) && resource.builtin {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(field, &(*finalizer).into(), detail));
        }
    }
    let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    for owner in owners {
        for field in ["apiVersion", "kind", "name", "uid"] {
            // As upstream: what is not there is empty, and the place in the list is not told.
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let detail =
                    if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences.{field}"),
                    &"".into(),
                    detail,
                ));
            }
        }
    }
    let controllers: Vec<_> = owners.iter().filter(|owner| owner["controller"] == true).collect();
    if controllers.len() > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true.",
        ));
    }
    errors
}

/// Checks what an update may not do to `metadata`.
pub(crate) fn metadata_update(_resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if meta::is_terminating(old) {
        let before = meta::finalizers(old);
        let added: Vec<String> = meta::finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
    errors
}

/// How deep an object may be nested. What is stored is read back by a parser that goes no deeper than 128, and `managedFields` nest a few levels
/// deeper than what they tell of. Requests end there as well; what a patch or a webhook adds to an object would not.
const DEEPEST: usize = 100;

/// Whether a value is nested deeper than that; looks no further.
fn is_deeper(value: &Value, left: usize) -> bool {
    match (value, left.checked_sub(1)) {
        (Value::Array(items), Some(left)) => items.iter().any(|item| is_deeper(item, left)),
        (Value::Object(map), Some(left)) => map.values().any(|value| is_deeper(value, left)),
        (Value::Array(_) | Value::Object(_), None) => true,
        _ => false,
    }
}

/// What is nested too deep to be kept, by the field of the object that it is in.
fn depth(new: &Value) -> Vec<FieldError> {
    let fields = new.as_object().into_iter().flatten();
    let deep = fields.filter(|(name, value)| *name != "metadata" && is_deeper(value, DEEPEST - 1));
    deep.map(|(name, _)| {
        let detail = format!("is nested deeper than {DEEPEST} levels: flatten it, or keep it as text");
        FieldError::forbidden(name.as_str(), detail)
    })
    .collect()
}

/// Checks against the schema.
pub(crate) fn schema(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let deep = depth(new);
    // One that is stored may still be mended, and taken away.
    if !deep.is_empty() && old.is_none_or(|old| depth(old).is_empty()) {
        return deep;
    }
    let mut errors = resource.schema().validate(new, old);
    // What is missing there is told with the rest of the metadata.
    errors.retain(|error| {
        error.reason != cluster_schema::Reason::Required
            || !error.field.starts_with("metadata.ownerReferences[")
    });
    if resource.builtin && resource.kind == "CustomResourceDefinition" {
        // What a schema may hold is better said by compiling it, below.
        errors.retain(|error| !error.field.contains(".openAPIV3Schema."));
    }
    errors
}

/// Checks by kind.
pub(crate) fn object(ctx: &Ctx, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let resource = &ctx.resource;
    if !resource.builtin {
        errors.extend(resource.scale.as_ref().and_then(|paths| scale_leads_nowhere(&paths.spec, new)));
        return errors;
    }
    match resource.kind.as_str() {
        "CustomResourceDefinition" => definition(new, old, &mut errors),
        "Pod" => match (old, ctx.sub.as_str()) {
            (Some(old), "") => pod_update(new, old, &mut errors),
            (Some(old), "ephemeralcontainers") => {
                crate::handlers::ephemeral::check(new, old, &mut errors);
            }
            _ => {}
        },
        _ => {}
    }
    errors
}

/// The scale's path must lead through objects, as far as it leads.
fn scale_leads_nowhere(path: &str, object: &Value) -> Option<FieldError> {
    let mut value = object;
    for part in path.split('.') {
        match value {
            Value::Object(map) => value = map.get(part)?,
            other => {
                let (text, ty) =
                    (cluster_schema::decode::go_text(other), cluster_schema::decode::go_type_of(other));
                let detail = format!(
                    ".{path} accessor error: {text} is of the type {ty}, expected map[string]interface{{}}"
                );
                return Some(FieldError::invalid(format!(".{path}"), &0.into(), detail));
            }
        }
    }
    None
}

/// Of a pod's spec, only a few fields may change.
fn pod_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if old["spec"] == new["spec"] {
        return;
    }
    let mut expected = old["spec"].clone();
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"]
    {
        meta::carry(field, &new["spec"], &mut expected);
    }
    for list in ["containers", "initContainers"] {
        let news = new["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        for (container, new) in meta::items_mut(&mut expected, list).zip(news) {
            meta::carry("image", new, container);
        }
    }
    let deadline = |pod: &Value| pod["spec"]["activeDeadlineSeconds"].as_i64();
    match (deadline(old), deadline(new)) {
        (Some(before), Some(after)) if after > before => errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            &after.into(),
            "must be less than or equal to previous value",
        )),
        _ => {}
    }
    if expected != new["spec"] {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

/// Versions as Go prints them: what is the same in all of them stands elsewhere in its structures.
fn printed(versions: &[Value]) -> String {
    let flag = |version: &Value, field: &str| Value::from(version[field] == true);
    let own = |version: &Value, field: &str| match versions.iter().all(|other| other[field] == version[field])
    {
        true => Value::Null,
        false => version[field].clone(),
    };
    let versions: Vec<String> = versions
        .iter()
        .map(|version| {
            cluster_schema::go_struct(&[
                ("Name", version["name"].clone()),
                ("Served", flag(version, "served")),
                ("Storage", flag(version, "storage")),
                ("Deprecated", flag(version, "deprecated")),
                ("DeprecationWarning", version["deprecationWarning"].clone()),
                ("Schema", own(version, "schema")),
                ("Subresources", own(version, "subresources")),
                ("AdditionalPrinterColumns", own(version, "additionalPrinterColumns")),
                ("SelectableFields", own(version, "selectableFields")),
            ])
        })
        .collect();
    format!("[{}]", versions.join(","))
}

/// How versions of a definition are converted. Upstream names the fields as it has them inside.
fn conversion(conversion: &Value, preserves: bool, errors: &mut Vec<FieldError>) {
    const CLIENT: &str = "spec.conversion.webhookClientConfig";
    const VERSIONS: &str = "spec.conversion.conversionReviewVersions";
    let (strategy, webhook) = (&conversion["strategy"], &conversion["webhook"]);
    let client = &webhook["clientConfig"];
    let versions = webhook["conversionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    match strategy.as_str().unwrap_or_default() {
        "None" => {
            let detail = "should not be set when strategy is not set to Webhook";
            if client.is_object() {
                errors.push(FieldError::forbidden(CLIENT, detail));
            }
            if !versions.is_empty() {
                errors.push(FieldError::forbidden(VERSIONS, detail));
            }
        }
        "Webhook" => {
            if preserves {
                let detail = "must be None if spec.preserveUnknownFields is true";
                errors.push(FieldError::invalid("spec.conversion.strategy", strategy, detail));
            }
            match (client.is_object(), client["url"].as_str(), client["service"].is_object()) {
                (false, ..) => {
                    errors.push(FieldError::required(CLIENT, "required when strategy is set to Webhook"));
                }
                (true, None, false) | (true, Some(_), true) => {
                    errors.push(FieldError::required(CLIENT, "exactly one of url or service is required"));
                }
                (true, Some(url), false) if !url.starts_with("https://") => {
                    let detail =
                        "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                    errors.push(FieldError::invalid(
                        format!("{CLIENT}.url"),
                        &url.split("://").next().into(),
                        detail,
                    ));
                }
                _ => {}
            }
            let known =
                |version: &Value| version.as_str().is_some_and(|v| cluster_admission::REVIEWS.contains(&v));
            if versions.is_empty() {
                errors.push(FieldError::required(VERSIONS, ""));
            } else if !versions.iter().any(known) {
                let detail =
                    format!("must include at least one of {}", cluster_admission::REVIEWS.join(", "));
                errors.push(FieldError::invalid(VERSIONS, &versions.into(), detail));
            }
        }
        _ => {
            errors.push(FieldError::not_supported(
                "spec.conversion.strategy",
                strategy,
                &["None", "Webhook"],
            ));
        }
    }
}

/// A CustomResourceDefinition must name itself rightly, store one version, and have structural schemas.
fn definition(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &new["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let expected = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    if meta::name(new) != expected {
        errors.push(FieldError::invalid(
            "metadata.name",
            &meta::name(new).into(),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if spec["conversion"].is_object() {
        conversion(&spec["conversion"], spec["preserveUnknownFields"] == true, errors);
    }
    if !matches!(spec["scope"].as_str(), Some("Cluster" | "Namespaced")) {
        errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let stored = versions.iter().filter(|version| version["storage"] == true).count();
    if stored != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors
            .push(FieldError::invalid("spec.versions", &spec["versions"], detail).showing(printed(versions)));
    }
    if stored == 0 {
        let detail = "must have at least one stored version";
        errors.push(FieldError::invalid("status.storedVersions", &Value::Null, detail));
    }
    let mut seen = std::collections::HashSet::new();
    if !versions.iter().all(|version| seen.insert(text(&version["name"]))) {
        let detail = "must contain unique version names";
        errors
            .push(FieldError::invalid("spec.versions", &spec["versions"], detail).showing(printed(versions)));
    }
    let old_versions =
        old.and_then(|old| old["spec"]["versions"].as_array()).map(Vec::as_slice).unwrap_or_default();
    for (index, version) in versions.iter().enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_null() {
            let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
            errors.push(FieldError::required(path, ""));
            continue;
        }
        // Upstream keeps a schema that all versions share in one place, and names that.
        let path = match versions.iter().all(|other| other["schema"] == version["schema"]) {
            true => "spec.validation.openAPIV3Schema".to_owned(),
            false => format!("spec.versions[{index}].schema.openAPIV3Schema"),
        };
        let known = old_versions
            .iter()
            .any(|old| old["name"] == version["name"] && old["schema"]["openAPIV3Schema"] == *schema);
        if known {
            continue;
        }
        if let Err(found) = Schema::from_crd(schema) {
            errors.extend(found.into_iter().map(|mut error| {
                let rest = error.field.strip_prefix("openAPIV3Schema").unwrap_or(&error.field);
                error.field = format!(
                    "{path}{}{rest}",
                    if rest.is_empty() || rest.starts_with(['.', '[']) { "" } else { "." }
                );
                error
            }));
        }
    }
    if let Some(old) = old {
        for field in ["group", "scope"] {
            if old["spec"][field] != spec[field] {
                errors.push(FieldError::invalid(format!("spec.{field}"), &spec[field], "field is immutable"));
            }
        }
        for field in ["plural", "kind"] {
            if old["spec"]["names"][field] != spec["names"][field] {
                let value = &spec["names"][field];
                errors.push(FieldError::invalid(format!("spec.names.{field}"), value, "field is immutable"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    fn errors(plural: &str, object: &Value) -> Vec<String> {
        let snapshot = Registry::new().snapshot();
        let resource = snapshot.find("", "v1", plural).unwrap();
        metadata(resource, object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names() {
        assert!(errors("pods", &json!({"metadata": {"name": "a.b-c"}})).is_empty());
        assert!(
            errors("pods", &json!({"metadata": {"name": "Bad"}}))[0]
                .starts_with("metadata.name: Invalid value: \"Bad\"")
        );
        assert_eq!(errors("services", &json!({"metadata": {"name": "1a"}})).len(), 1);
        assert_eq!(errors("services", &json!({"metadata": {"name": "a.b"}})).len(), 1);
    }

    #[test]
    fn labels_and_owners() {
        let object = json!({"metadata": {"name": "a", "labels": {"a/b/c": "x", "ok": "bad value"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]}});
        assert_eq!(errors("pods", &object).len(), 3);
    }

    #[test]
    fn definitions_must_agree_with_themselves() {
        let mut found = Vec::new();
        let bad = json!({"metadata": {"name": "x"}, "spec": {"group": "g.io", "scope": "Cluster", "names": {"plural": "as"}, "versions": [
            {"name": "v1", "served": true, "storage": false}]}});
        definition(&bad, None, &mut found);
        let fields: Vec<_> = found.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "spec.versions",
                "status.storedVersions",
                "spec.versions[0].schema.openAPIV3Schema"
            ]
        );
    }

    #[test]
    fn what_could_not_be_read_back_is_refused() {
        let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({"a": inner}));
        let told = |spec: Value| -> Vec<String> {
            depth(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
        };
        assert_eq!(told(nested(DEEPEST - 1)), [""; 0]);
        let refused = told(nested(DEEPEST));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("spec: Forbidden: is nested deeper than 100 levels"), "{refused:?}");
        assert_eq!(told(nested(1_000)).len(), 1);
    }
}
