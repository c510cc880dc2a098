//! Nobody grants what he does not have: a role holds only rights of its author, and a binding gives only a role whose rights its author has,
//! unless he may `escalate` or `bind`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Action, Attributes, allowed, role_rules, rules};
use crate::auth::MASTERS;
use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::meta;

const GROUP: &str = "rbac.authorization.k8s.io";

/// 403 if the write would give away rights that its author does not have.
pub(crate) fn check(ctx: &Ctx, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let user = &ctx.user;
    if user.is_in(MASTERS) {
        return Ok(());
    }
    let may = |verb: &str, resource: &str, name: &str| {
        let namespace = ctx.namespace.as_str();
        let attributes = Attributes { verb, group: GROUP, resource, subresource: "", namespace, name };
        allowed(&ctx.server.store, user, Action::Resource(attributes))
    };
    let same =
        |fields: &[&str]| old.is_some_and(|old| fields.iter().all(|field| old[field] == object[field]));
    let granted: Vec<Value> = match ctx.resource.kind.as_str() {
        "Role" | "ClusterRole" => {
            let plural = ctx.resource.plural.as_str();
            if same(&["rules", "aggregationRule"]) || may("escalate", plural, meta::name(object)) {
                return Ok(());
            }
            match object["aggregationRule"].is_object() {
                // What is gathered may be anything.
                true => vec![
                    serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
                    serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
                ],
                false => object["rules"].as_array().cloned().unwrap_or_default(),
            }
        }
        _ => {
            let name = object["roleRef"]["name"].as_str().unwrap_or_default();
            let (plural, storage, namespace) = match object["roleRef"]["kind"] == "Role" {
                true => ("roles", super::ROLES, ctx.namespace.as_str()),
                false => ("clusterroles", super::CLUSTER_ROLES, ""),
            };
            if same(&["roleRef", "subjects"]) || may("bind", plural, name) {
                return Ok(());
            }
            // As upstream, which names the binding's type and the role's name.
            let subject = ctx.resource.subject(name);
            let role = ctx.server.store.get(storage, namespace, name);
            role_rules(&ctx.server.store, &role.ok_or_else(|| ApiError::not_found(subject))?.value)
        }
    };
    let held = rules(&ctx.server.store, user, &ctx.namespace);
    let missing = missing(&held, &granted);
    if missing.is_empty() {
        return Ok(());
    }
    let cause = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        missing.join("\n")
    );
    Err(ApiError::forbidden(ctx.resource.subject(meta::name(object)), cause))
}

fn texts(rule: &Value, field: &str) -> Vec<String> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A list as Go prints it with `%q`.
fn quoted(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", list.join(" "))
}

/// What of the granted rules no held one permits, one line for each group, resource and names.
fn missing(held: &[Value], granted: &[Value]) -> Vec<String> {
    let lacks = |action: Action<'_>| !held.iter().any(|rule| super::permits(rule, action));
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for rule in granted {
        let (names, verbs) = (texts(rule, "resourceNames"), texts(rule, "verbs"));
        for url in texts(rule, "nonResourceURLs") {
            for verb in verbs.iter().filter(|verb| lacks(Action::NonResource { verb, path: &url })) {
                lines.entry(format!("NonResourceURLs:[{url:?}]")).or_default().push(verb.clone());
            }
        }
        let any = if names.is_empty() { vec![String::new()] } else { names };
        for group in texts(rule, "apiGroups") {
            for whole in texts(rule, "resources") {
                let (resource, subresource) = whole.split_once('/').unwrap_or((&whole, ""));
                for name in &any {
                    let what = match name.is_empty() {
                        true => format!("APIGroups:[{group:?}], Resources:[{whole:?}]"),
                        false => {
                            format!("APIGroups:[{group:?}], Resources:[{whole:?}], ResourceNames:[{name:?}]")
                        }
                    };
                    let action = |verb| {
                        Action::Resource(Attributes {
                            verb,
                            group: &group,
                            resource,
                            subresource,
                            namespace: "",
                            name,
                        })
                    };
                    for verb in verbs.iter().filter(|verb| lacks(action(verb))) {
                        lines.entry(what.clone()).or_default().push(verb.clone());
                    }
                }
            }
        }
    }
    lines.into_iter().map(|(what, verbs)| format!("{{{what}, Verbs:{}}}", quoted(&verbs))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_held_is_granted() {
        let held = [
            json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}),
            json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]}),
            json!({"verbs": ["get"], "nonResourceURLs": ["/metrics*"]}),
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"]}),
        ];
        let lacks = |rule: Value| missing(&held, &[rule]);
        for fine in [
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}),
            json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"]}),
            json!({"verbs": ["get"], "nonResourceURLs": ["/metrics/x"]}),
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"]}),
        ] {
            assert_eq!(lacks(fine), Vec::<String>::new());
        }
        assert_eq!(
            lacks(json!({"verbs": ["get", "delete", "watch"], "apiGroups": [""], "resources": ["pods"]})),
            [r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#]
        );
        for more in [
            json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}),
            json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}),
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["*"]}),
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods/exec"]}),
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}),
            json!({"verbs": ["get"], "nonResourceURLs": ["*"]}),
        ] {
            assert_eq!(lacks(more.clone()).len(), 1, "{more}");
        }
    }
}
