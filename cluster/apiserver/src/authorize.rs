//! Role-based access control, over the roles and bindings in the store.

pub(crate) mod escalation;

use http::Method;
use serde_json::{Value, json};

use crate::auth::{MASTERS, User};
use crate::error::{ApiError, Subject};
use crate::server::Server;
use crate::store::Store;

const ROLES: &str = "rbac.authorization.k8s.io/roles";
const CLUSTER_ROLES: &str = "rbac.authorization.k8s.io/clusterroles";
const ROLE_BINDINGS: &str = "rbac.authorization.k8s.io/rolebindings";
const CLUSTER_ROLE_BINDINGS: &str = "rbac.authorization.k8s.io/clusterrolebindings";

/// What a request wants to do to a resource.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// What a user wants to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action<'a> {
    Resource(Attributes<'a>),
    NonResource { verb: &'a str, path: &'a str },
}

/// 403 unless the user may.
pub(crate) fn resource(server: &Server, user: &User, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    if allowed(&server.store, user, Action::Resource(*attributes)) {
        return Ok(());
    }
    let what = if attributes.subresource.is_empty() {
        attributes.resource.to_owned()
    } else {
        format!("{}/{}", attributes.resource, attributes.subresource)
    };
    let scope = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", attributes.namespace)
    };
    let cause = format!(
        "User \"{}\" cannot {} resource \"{what}\" in API group \"{}\" {scope}",
        user.name, attributes.verb, attributes.group
    );
    let subject = Subject { group: attributes.group, resource: attributes.resource, name: attributes.name };
    Err(ApiError::forbidden(subject, cause))
}

/// 403 unless the user may.
pub(crate) fn non_resource(
    server: &Server,
    user: &User,
    method: &Method,
    path: &str,
) -> Result<(), ApiError> {
    let verb = method.as_str().to_lowercase();
    let path = if path.is_empty() { "/" } else { path };
    if allowed(&server.store, user, Action::NonResource { verb: &verb, path }) {
        return Ok(());
    }
    let mut error = ApiError::forbidden(
        Subject::default(),
        format!("User \"{}\" cannot {verb} path \"{path}\"", user.name),
    );
    error.message = format!("forbidden: User \"{}\" cannot {verb} path \"{path}\"", user.name);
    Err(error)
}

/// May the user?
pub(crate) fn allowed(store: &Store, user: &User, action: Action<'_>) -> bool {
    if user.is_in(MASTERS) {
        return true;
    }
    let namespace = match action {
        Action::Resource(attributes) => attributes.namespace,
        Action::NonResource { .. } => "",
    };
    any_rule(store, user, namespace, &mut |rule| permits(rule, action))
}

/// All rules that a user has in a namespace (empty: cluster-wide only).
pub(crate) fn rules(store: &Store, user: &User, namespace: &str) -> Vec<Value> {
    let mut rules = Vec::new();
    if user.is_in(MASTERS) {
        // Paths follow from the role that the group is bound to.
        rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
    }
    any_rule(store, user, namespace, &mut |rule| {
        rules.push(rule.clone());
        false
    });
    rules
}

/// Shows each rule that a user has in a namespace, until one is `such`: every request asks, so nothing is copied.
fn any_rule(store: &Store, user: &User, namespace: &str, such: &mut dyn FnMut(&Value) -> bool) -> bool {
    let mut look = |binding: &Value, binding_namespace: &str| {
        let subjects = binding["subjects"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !subjects.iter().any(|subject| is_subject(user, subject, binding_namespace)) {
            return false;
        }
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let role = if binding["roleRef"]["kind"] == "Role" {
            store.get(ROLES, binding_namespace, name)
        } else {
            store.get(CLUSTER_ROLES, "", name)
        };
        role.is_some_and(|role| any_of_role(store, &role.value, such))
    };
    store.list(CLUSTER_ROLE_BINDINGS, None).1.iter().any(|binding| look(&binding.value, ""))
        || (!namespace.is_empty()
            && store
                .list(ROLE_BINDINGS, Some(namespace))
                .1
                .iter()
                .any(|binding| look(&binding.value, namespace)))
}

/// A role's rules; of an aggregated one, those of the roles it selects too.
fn role_rules(store: &Store, role: &Value) -> Vec<Value> {
    let mut rules = Vec::new();
    any_of_role(store, role, &mut |rule| {
        rules.push(rule.clone());
        false
    });
    rules
}

/// Shows them one by one, until one is `such`.
fn any_of_role(store: &Store, role: &Value, such: &mut dyn FnMut(&Value) -> bool) -> bool {
    if role["rules"].as_array().into_iter().flatten().any(&mut *such) {
        return true;
    }
    for selector in role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten() {
        let selector = crate::selector::LabelSelector::from_object(selector);
        for other in store.list(CLUSTER_ROLES, None).1 {
            if selector.matches(&other.value)
                && other.value["rules"].as_array().into_iter().flatten().any(&mut *such)
            {
                return true;
            }
        }
    }
    false
}

fn is_subject(user: &User, subject: &Value, binding_namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.is_in(name),
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().unwrap_or(binding_namespace);
            user.name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|own| own == (namespace, name))
        }
        _ => false,
    }
}

fn permits(rule: &Value, action: Action<'_>) -> bool {
    let has = |field: &str, wanted: &dyn Fn(&str) -> bool| {
        rule[field].as_array().is_some_and(|list| list.iter().filter_map(Value::as_str).any(wanted))
    };
    match action {
        Action::NonResource { verb, path } => {
            has("verbs", &|v| v == "*" || v == verb)
                && has("nonResourceURLs", &|url| match url.strip_suffix('*') {
                    Some(prefix) => path.starts_with(prefix),
                    None => url == path,
                })
        }
        Action::Resource(a) => {
            let names = rule["resourceNames"].as_array().is_some_and(|list| !list.is_empty());
            has("verbs", &|v| v == "*" || v == a.verb)
                && has("apiGroups", &|group| group == "*" || group == a.group)
                && has("resources", &|resource| {
                    if resource == "*" {
                        return true;
                    }
                    match resource.split_once('/') {
                        None => a.subresource.is_empty() && resource == a.resource,
                        Some((main, sub)) => {
                            (main == "*" || main == a.resource)
                                && !a.subresource.is_empty()
                                && sub == a.subresource
                        }
                    }
                })
                && (!names || has("resourceNames", &|name| name == a.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action<'a>(verb: &'a str, resource: &'a str, subresource: &'a str, name: &'a str) -> Action<'a> {
        Action::Resource(Attributes { verb, group: "", resource, subresource, namespace: "ns", name })
    }

    #[test]
    fn rules_permit_what_they_name() {
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]});
        assert!(permits(&rule, action("get", "pods", "", "a")));
        assert!(permits(&rule, action("get", "pods", "log", "a")));
        assert!(!permits(&rule, action("get", "pods", "exec", "a")));
        assert!(!permits(&rule, action("list", "pods", "", "")));
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["x"]});
        assert!(permits(&named, action("get", "secrets", "", "x")));
        assert!(!permits(&named, action("get", "secrets", "", "y")));
        let urls = json!({"verbs": ["get"], "nonResourceURLs": ["/api/*"]});
        assert!(permits(&urls, Action::NonResource { verb: "get", path: "/api/v1" }));
        assert!(!permits(&urls, Action::NonResource { verb: "get", path: "/apis" }));
    }

    #[test]
    fn subjects() {
        let user = User::new("system:serviceaccount:ns:sa", &["g"]);
        assert!(is_subject(&user, &json!({"kind": "ServiceAccount", "namespace": "ns", "name": "sa"}), ""));
        assert!(!is_subject(
            &user,
            &json!({"kind": "ServiceAccount", "namespace": "other", "name": "sa"}),
            ""
        ));
        assert!(is_subject(&user, &json!({"kind": "Group", "name": "system:authenticated"}), ""));
    }
}
