//! The paths of a resource and their operations.

use serde_json::{Map, Value, json};

use super::{META, ResourceInfo, reference};

/// Kind of what a subresource takes, where that is not the resource's own: (group, version, kind) and the schema's name.
pub(super) fn subresource_kind(
    name: &str,
) -> Option<((&'static str, &'static str, &'static str), &'static str)> {
    Some(match name {
        "scale" => (("autoscaling", "v1", "Scale"), "io.k8s.api.autoscaling.v1.Scale"),
        "eviction" => (("policy", "v1", "Eviction"), "io.k8s.api.policy.v1.Eviction"),
        "binding" => (("", "v1", "Binding"), "io.k8s.api.core.v1.Binding"),
        "token" => {
            (("authentication.k8s.io", "v1", "TokenRequest"), "io.k8s.api.authentication.v1.TokenRequest")
        }
        _ => return None,
    })
}

struct Endpoint<'a> {
    resource: &'a ResourceInfo,
    /// Schema and kind of what is sent and answered.
    schema: String,
    gvk: Value,
    /// Part of operation ids, as in `AppsV1NamespacedDeploymentStatus`.
    id: String,
}

/// Adds all paths of a resource.
pub(super) fn add(paths: &mut Map<String, Value>, resource: &ResourceInfo, name: &str) {
    let base = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let (collection, scope) = if resource.namespaced {
        (format!("{base}/namespaces/{{namespace}}/{}", resource.plural), "Namespaced")
    } else {
        (format!("{base}/{}", resource.plural), "")
    };
    let gv = operation_prefix(resource);
    let endpoint = |schema: &str, gvk: Value, suffix: &str| Endpoint {
        resource,
        schema: schema.to_owned(),
        gvk,
        id: format!("{gv}{scope}{}{suffix}", resource.kind),
    };
    let whole = endpoint(name, resource.gvk(), "");
    let list = format!("{name}List");
    paths.insert(
        collection.clone(),
        json!({
            "get": whole.operation("list", "list", &list, collection_parameters(true)),
            "post": whole.write("create", "post", write_parameters()),
            "delete": whole.delete("deleteCollection", "deletecollection"),
            "parameters": path_parameters(resource, false),
        }),
    );
    if resource.namespaced {
        let everywhere = Endpoint {
            id: format!("{gv}{}ForAllNamespaces", resource.kind),
            ..endpoint(name, resource.gvk(), "")
        };
        paths.insert(
            format!("{base}/{}", resource.plural),
            json!({"get": everywhere.operation("list", "list", &list, collection_parameters(true))}),
        );
    }
    let item = format!("{collection}/{{name}}");
    paths.insert(item.clone(), whole.item(true, path_parameters(resource, true)));
    for sub in &resource.subresources {
        let suffix = capitalised(sub);
        let path = format!("{item}/{sub}");
        let parameters = path_parameters(resource, true);
        let value = match (sub.as_str(), subresource_kind(sub)) {
            ("scale", Some(((g, v, k), schema))) => {
                endpoint(schema, json!({"group": g, "version": v, "kind": k}), &suffix)
                    .item(false, parameters)
            }
            (_, Some(((g, v, k), schema))) => {
                let endpoint = endpoint(schema, json!({"group": g, "version": v, "kind": k}), &suffix);
                json!({"post": endpoint.write("create", "post", write_parameters()), "parameters": parameters})
            }
            ("status" | "ephemeralcontainers" | "resize" | "finalize" | "approval", None) => {
                endpoint(name, resource.gvk(), &suffix).item(false, parameters)
            }
            ("log", None) => {
                json!({"get": endpoint(name, resource.gvk(), &suffix).text(), "parameters": parameters})
            }
            (_, None) => {
                let endpoint = endpoint(name, resource.gvk(), &suffix);
                json!({"get": endpoint.connect("get"), "post": endpoint.connect("post"), "parameters": parameters})
            }
        };
        paths.insert(path, value);
    }
}

/// `AppsV1`, `CoreV1`, `ServingKnativeDevV1`.
fn operation_prefix(resource: &ResourceInfo) -> String {
    let group = match resource.group.as_str() {
        "" => "core",
        group => group.strip_suffix(".k8s.io").unwrap_or(group),
    };
    let group: String = group.split(['.', '-']).map(capitalised).collect();
    format!("{group}{}", capitalised(&resource.version))
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

impl Endpoint<'_> {
    fn item(&self, deletable: bool, parameters: Value) -> Value {
        let mut out = json!({
            "get": self.operation("read", "get", &self.schema, json!([])),
            "put": self.write("replace", "put", write_parameters()),
            "patch": self.patch(),
            "parameters": parameters,
        });
        if deletable {
            out["delete"] = self.delete("delete", "delete");
        }
        out
    }

    fn operation(&self, verb: &str, action: &str, answer: &str, parameters: Value) -> Value {
        json!({
            "description": format!("{verb} {}", self.resource.kind),
            "operationId": format!("{verb}{}", self.id),
            "tags": [tag(self.resource)],
            "parameters": parameters,
            "responses": responses(answer),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self.gvk,
        })
    }

    fn write(&self, verb: &str, action: &str, parameters: Value) -> Value {
        let mut out = self.operation(verb, action, &self.schema, parameters);
        out["requestBody"] =
            json!({"required": true, "content": {"*/*": {"schema": reference(&self.schema)}}});
        out
    }

    fn delete(&self, verb: &str, action: &str) -> Value {
        let collection = action == "deletecollection";
        let mut parameters = if collection { collection_parameters(false) } else { json!([]) };
        if let Some(parameters) = parameters.as_array_mut() {
            parameters.extend([
                query("dryRun", "string", DRY_RUN),
                query(
                    "gracePeriodSeconds",
                    "integer",
                    "The duration in seconds before the object should be deleted.",
                ),
                query(
                    "propagationPolicy",
                    "string",
                    "Whether and how garbage collection will be performed: Orphan, Background or Foreground.",
                ),
            ]);
        }
        let mut out = self.operation(verb, action, &format!("{META}.Status"), parameters);
        out["requestBody"] =
            json!({"content": {"*/*": {"schema": reference(&format!("{META}.DeleteOptions"))}}});
        out
    }

    fn patch(&self) -> Value {
        let mut parameters = write_parameters();
        if let Some(parameters) = parameters.as_array_mut() {
            parameters.push(query(
                "force",
                "boolean",
                "Take over fields that others own; for apply requests only.",
            ));
        }
        let mut out = self.operation("patch", "patch", &self.schema, parameters);
        let body = json!({"schema": reference(&format!("{META}.Patch"))});
        let mut content = Map::new();
        for format in
            ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"]
        {
            content.insert(format.into(), body.clone());
        }
        if self.resource.builtin {
            content.insert("application/strategic-merge-patch+json".into(), body);
        }
        out["requestBody"] = json!({"required": true, "content": content});
        out
    }

    fn connect(&self, method: &str) -> Value {
        json!({
            "description": format!("connect {} requests to {}", method.to_uppercase(), self.resource.kind),
            "operationId": format!("connect{}{}", capitalised(method), self.id),
            "tags": [tag(self.resource)],
            "responses": {"200": {"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}},
            "x-kubernetes-action": "connect",
            "x-kubernetes-group-version-kind": self.gvk,
        })
    }

    fn text(&self) -> Value {
        json!({
            "description": format!("read log of the specified {}", self.resource.kind),
            "operationId": format!("read{}", self.id),
            "tags": [tag(self.resource)],
            "responses": {"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}},
            "x-kubernetes-action": "get",
            "x-kubernetes-group-version-kind": self.gvk,
        })
    }
}

fn tag(resource: &ResourceInfo) -> String {
    let group =
        if resource.group.is_empty() { "core" } else { resource.group.split('.').next().unwrap_or_default() };
    format!("{group}_{}", resource.version)
}

fn responses(answer: &str) -> Value {
    let schema = json!({"schema": reference(answer)});
    json!({
        "200": {"description": "OK", "content": {"application/json": schema}},
        "401": {"description": "Unauthorized"},
    })
}

const DRY_RUN: &str =
    "When present, indicates that modifications should not be persisted. Valid values are: All.";

fn query(name: &str, kind: &str, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true}})
}

fn write_parameters() -> Value {
    json!([
        query("dryRun", "string", DRY_RUN),
        query("fieldManager", "string", "Name of the actor that is making these changes."),
        query(
            "fieldValidation",
            "string",
            "How to handle unknown or duplicate fields: Ignore, Warn or Strict. The default is Warn."
        ),
    ])
}

fn collection_parameters(watch: bool) -> Value {
    let mut out = vec![
        query("continue", "string", "Where to go on with a list that was limited before."),
        query("fieldSelector", "string", "Restrict the list by the objects' fields."),
        query("labelSelector", "string", "Restrict the list by the objects' labels."),
        query("limit", "integer", "Most objects to answer with at once."),
        query("resourceVersion", "string", "Constraint on the state that the answer is of."),
        query("resourceVersionMatch", "string", "How resourceVersion constrains: Exact or NotOlderThan."),
        query("timeoutSeconds", "integer", "Most seconds that the call may take."),
    ];
    if watch {
        out.push(query("allowWatchBookmarks", "boolean", "Ask for events of type BOOKMARK."));
        out.push(query("sendInitialEvents", "boolean", "Begin a watch with the objects that are there."));
        out.push(query("watch", "boolean", "Answer with a stream of changes."));
    }
    Value::Array(out)
}

fn path_parameters(resource: &ResourceInfo, named: bool) -> Value {
    let parameter = |name: &str, description: &str| {
        json!({"name": name, "in": "path", "required": true, "description": description,
            "schema": {"type": "string", "uniqueItems": true}})
    };
    let mut out = Vec::new();
    if named {
        out.push(parameter("name", &format!("name of the {}", resource.kind)));
    }
    if resource.namespaced {
        out.push(parameter("namespace", "object name and auth scope, such as for teams and projects"));
    }
    Value::Array(out)
}
