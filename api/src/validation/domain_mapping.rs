//! DomainMappings: the name is a host, and the target is of the same namespace.

use super::user_info;
use crate::config::CLUSTER_DOMAIN;
use crate::field_error::FieldErrors;
use crate::names;
use crate::serving::{DomainMapping, KReference};

/// Checks a DomainMapping; its name is a host.
#[must_use]
pub fn check(object: &DomainMapping, old: Option<&DomainMapping>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if object.metadata.generate_name.as_ref().is_some_and(|n| !n.is_empty()) {
        errors.add(FieldErrors::disallowed("generateName"));
    }
    if let Some(problem) = names::domain_name(name) {
        errors.add(FieldErrors::new(format!("invalid name {name:?}: {problem}"), &["name"]));
    }
    if name.ends_with(&format!(".{CLUSTER_DOMAIN}")) {
        let message = format!(
            "invalid name {name:?}: must not be a subdomain of cluster local domain {CLUSTER_DOMAIN:?}"
        );
        errors.add(FieldErrors::new(message, &["name"]));
    }
    let mut errors = errors.via_field("metadata");
    let own = object.metadata.namespace.as_deref().unwrap_or_default();
    errors.add(reference(&object.spec.reference, own).via_field("ref").via_field("spec"));
    if let Some(old) = old {
        errors.add(user_info(&old.metadata, &object.metadata, old.spec == object.spec));
    }
    errors
}

fn reference(to: &KReference, own: &str) -> FieldErrors {
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let mut errors = FieldErrors::none();
    for (field, value) in
        [("name", Some(&to.name)), ("apiVersion", to.api_version.as_ref()), ("kind", Some(&to.kind))]
    {
        if value.is_none_or(String::is_empty) {
            errors.add(FieldErrors::missing(field));
        }
    }
    if given(&to.group).is_some() {
        errors.add(FieldErrors::disallowed("group"));
    }
    if let Some(other) = given(&to.namespace).filter(|other| !own.is_empty() && other != own) {
        let details = format!("parent namespace: {own:?} does not match ref: {other:?}");
        errors.add(FieldErrors::new("mismatched namespaces", &["namespace"]).with_details(&details));
    }
    errors
}
