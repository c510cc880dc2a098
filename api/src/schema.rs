//! The parts of the CRDs' schemas that no derive gives: the pod template as Knative allows it.
//!
//! A whole pod spec with Kubernetes' own prose is 400 kB for each kind that has a template. What is kept: the fields that a
//! serverless workload may set, each with the first sentence of its description, so that `kubectl explain
//! ksvc.spec.template.spec` reads well; fields behind a feature flag, named with their flag and otherwise open; and fields
//! that are never allowed, so that they reach the admission webhook, which refuses them by path, instead of being
//! dropped in silence.

use k8s_openapi::api::core::v1::PodSpec;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

use crate::serving::RevisionSpec;

/// Fields of the pod spec that are always allowed.
pub const POD_FIELDS: &[&str] = &[
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "imagePullSecrets",
    "serviceAccountName",
    "volumes",
];

/// Fields of the pod spec behind a feature flag: field, flag of config-features, JSON type.
pub const FLAGGED_POD_FIELDS: &[(&str, &str, &str)] = &[
    ("affinity", "kubernetes.podspec-affinity", "object"),
    ("dnsConfig", "kubernetes.podspec-dnsconfig", "object"),
    ("dnsPolicy", "kubernetes.podspec-dnspolicy", "string"),
    ("hostAliases", "kubernetes.podspec-hostaliases", "array"),
    ("hostIPC", "kubernetes.podspec-hostipc", "boolean"),
    ("hostNetwork", "kubernetes.podspec-hostnetwork", "boolean"),
    ("hostPID", "kubernetes.podspec-hostpid", "boolean"),
    ("initContainers", "kubernetes.podspec-init-containers", "array"),
    ("nodeSelector", "kubernetes.podspec-nodeselector", "object"),
    ("priorityClassName", "kubernetes.podspec-priorityclassname", "string"),
    ("runtimeClassName", "kubernetes.podspec-runtimeclassname", "string"),
    ("schedulerName", "kubernetes.podspec-schedulername", "string"),
    ("securityContext", "kubernetes.podspec-securitycontext", "object"),
    ("shareProcessNamespace", "kubernetes.podspec-shareprocessnamespace", "boolean"),
    ("tolerations", "kubernetes.podspec-tolerations", "array"),
    ("topologySpreadConstraints", "kubernetes.podspec-topologyspreadconstraints", "array"),
];

/// Fields of the pod spec that are never allowed.
pub const REFUSED_POD_FIELDS: &[&str] = &[
    "activeDeadlineSeconds",
    "ephemeralContainers",
    "hostUsers",
    "hostname",
    "nodeName",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "schedulingGates",
    "serviceAccount",
    "setHostnameAsFQDN",
    "subdomain",
    "terminationGracePeriodSeconds",
];

/// Fields of a container that are allowed.
pub const CONTAINER_FIELDS: &[&str] = &[
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
    "workingDir",
];

/// Fields of a container that are never allowed.
pub const REFUSED_CONTAINER_FIELDS: &[&str] = &[
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "stdin",
    "stdinOnce",
    "tty",
    "volumeDevices",
];

/// Sources of a volume that are always allowed.
pub const VOLUME_SOURCES: &[&str] = &["configMap", "projected", "secret"];

/// Sources of a volume behind a feature flag.
pub const FLAGGED_VOLUME_SOURCES: &[(&str, &str)] = &[
    ("csi", "kubernetes.podspec-volumes-csi"),
    ("emptyDir", "kubernetes.podspec-volumes-emptydir"),
    ("ephemeral", "kubernetes.podspec-volumes-ephemeral"),
    ("hostPath", "kubernetes.podspec-volumes-hostpath"),
    ("image", "kubernetes.podspec-volumes-image"),
    ("persistentVolumeClaim", "kubernetes.podspec-persistent-volume-claim"),
];

impl JsonSchema for RevisionSpec {
    fn schema_name() -> Cow<'static, str> {
        "RevisionSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        revision_spec(generator)
    }
}

/// The schema of a revision's spec.
pub fn revision_spec(_: &mut SchemaGenerator) -> Schema {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let mut pod = settings.into_generator().into_root_schema_for::<PodSpec>().to_value();
    restrict_pod(&mut pod);
    tidy(&mut pod);
    pod["description"] = json!("What runs, as in a pod's spec, and the limits of its requests.");
    if let Some(properties) = properties(&mut pod) {
        let limits = [
            (
                "containerConcurrency",
                "Requests that one pod may have in flight at once; 0 for no limit. Unless set, as container-concurrency of config-defaults says (0).",
            ),
            (
                "timeoutSeconds",
                "Seconds that a request may take altogether. Unless set, as revision-timeout-seconds of config-defaults says (300).",
            ),
            (
                "responseStartTimeoutSeconds",
                "Seconds until the first byte of a response. Unless set, as revision-response-start-timeout-seconds of config-defaults says (300).",
            ),
            (
                "idleTimeoutSeconds",
                "Seconds without a byte from the app after which a request is ended. Unless set, as revision-idle-timeout-seconds of config-defaults says (none).",
            ),
        ];
        for (name, text) in limits {
            properties.insert(
                name.into(),
                json!({"type": "integer", "format": "int64", "description": text, "nullable": true}),
            );
        }
    }
    into_schema(pod)
}

/// The schema of a template's metadata.
pub fn template_metadata(_: &mut SchemaGenerator) -> Schema {
    let map = |text: &str| json!({"type": "object", "additionalProperties": {"type": "string"}, "description": text, "nullable": true});
    into_schema(json!({
        "type": "object",
        "description": "Labels and annotations of the revision, and its name if the user wants to give it.",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "name": {"type": "string", "description": "The revision's name; must begin with the Configuration's name and a dash."},
            "namespace": {"type": "string", "description": "Not used here: a revision is in the namespace of its Configuration."},
            "labels": map("Labels of the revision and its pods."),
            "annotations": map("Annotations of the revision, such as autoscaling.knative.dev/min-scale."),
            "finalizers": {"type": "array", "items": {"type": "string"}, "nullable": true, "description": "Not used here."}
        }
    }))
}

/// The schema of a reference to any object.
pub fn object_reference(_: &mut SchemaGenerator) -> Schema {
    into_schema(json!({
        "type": "object",
        "description": "The object referred to.",
        "properties": {
            "apiVersion": {"type": "string", "description": "Its group and version."},
            "fieldPath": {"type": "string", "description": "Not used here."},
            "kind": {"type": "string", "description": "Its kind."},
            "name": {"type": "string", "description": "Its name."},
            "namespace": {"type": "string", "description": "Not used here: it is in the same namespace."},
            "resourceVersion": {"type": "string", "description": "Not used here."},
            "uid": {"type": "string", "description": "Not used here."}
        }
    }))
}

/// The schema of a number or a name.
pub fn int_or_string(_: &mut SchemaGenerator) -> Schema {
    into_schema(json!({
        "description": "A port's number or name.",
        "x-kubernetes-int-or-string": true
    }))
}

/// The schema of a condition's severity.
pub fn severity(_: &mut SchemaGenerator) -> Schema {
    into_schema(
        json!({"type": "string", "description": "How bad it is if the condition is False; Error when absent."}),
    )
}

fn into_schema(value: Value) -> Schema {
    Schema::try_from(value).unwrap_or_default()
}

fn properties(schema: &mut Value) -> Option<&mut Map<String, Value>> {
    schema.get_mut("properties").and_then(Value::as_object_mut)
}

fn open(type_: Option<&str>, text: String) -> Value {
    match type_ {
        Some("array") => json!({
            "type": "array",
            "description": text,
            "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
        }),
        Some("object") => {
            json!({"type": "object", "description": text, "x-kubernetes-preserve-unknown-fields": true})
        }
        Some(scalar) => json!({"type": scalar, "description": text}),
        None => json!({"description": text, "x-kubernetes-preserve-unknown-fields": true}),
    }
}

fn restrict_pod(pod: &mut Value) {
    let Some(fields) = properties(pod) else { return };
    fields.retain(|name, _| POD_FIELDS.contains(&name.as_str()));
    for (name, flag, type_) in FLAGGED_POD_FIELDS {
        fields.insert((*name).into(), open(Some(type_), format!("Needs the feature flag {flag}.")));
    }
    for name in REFUSED_POD_FIELDS {
        fields.insert((*name).into(), open(None, "Not allowed here.".into()));
    }
    if let Some(container) = fields.get_mut("containers").and_then(|c| c.get_mut("items")) {
        restrict_container(container);
    }
    let Some(volume) = fields.get_mut("volumes").and_then(|v| v.get_mut("items")).and_then(properties) else {
        return;
    };
    // The flag of emptyDir is on by default, so it is told in full.
    let kept = |name: &str| matches!(name, "name" | "emptyDir") || VOLUME_SOURCES.contains(&name);
    volume.retain(|name, _| kept(name));
    for (name, flag) in FLAGGED_VOLUME_SOURCES {
        let open = || open(Some("object"), format!("Needs the feature flag {flag}."));
        volume.entry(*name).or_insert_with(open);
    }
}

fn restrict_container(container: &mut Value) {
    let Some(fields) = properties(container) else { return };
    fields.retain(|name, _| CONTAINER_FIELDS.contains(&name.as_str()));
    for name in REFUSED_CONTAINER_FIELDS {
        fields.insert((*name).into(), open(None, "Not allowed here.".into()));
    }
    // A probe without a port means the serving port.
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        for handler in ["httpGet", "tcpSocket", "grpc"] {
            let path = format!("/properties/{probe}/properties/{handler}/required");
            container.pointer_mut(&path).and_then(Value::as_array_mut).into_iter().for_each(Vec::clear);
        }
    }
    // The name is filled in by defaulting, and a port needs no number.
    if let Some(required) = container.get_mut("required").and_then(Value::as_array_mut) {
        required.clear();
    }
    if let Some(port) =
        container.pointer_mut("/properties/ports/items/required").and_then(Value::as_array_mut)
    {
        port.clear();
    }
}

/// Shortens descriptions, opens quantities to numbers, and drops what a structural schema must not have.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for key in ["$schema", "title", "$id", "components", "definitions"] {
                if map.get(key).is_some_and(|v| key != "title" || v.is_string()) {
                    map.remove(key);
                }
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = first_sentence(text);
            }
            if map.get("required").and_then(Value::as_array).is_some_and(Vec::is_empty) {
                map.remove("required");
            }
            for (key, value) in map.iter_mut() {
                if key == "properties" {
                    tidy_properties(value);
                } else if key != "required" && key != "enum" {
                    tidy(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn tidy_properties(properties: &mut Value) {
    let Some(map) = properties.as_object_mut() else { return };
    for (name, value) in map.iter_mut() {
        tidy(value);
        match name.as_str() {
            "limits" | "requests" => value["additionalProperties"] = quantity(None),
            "sizeLimit" | "divisor" => *value = quantity(value.get("description").cloned()),
            _ => {}
        }
    }
}

fn quantity(description: Option<Value>) -> Value {
    let mut schema = json!({
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        "x-kubernetes-int-or-string": true
    });
    if let Some(text) = description {
        schema["description"] = text;
    }
    schema
}

fn first_sentence(text: &str) -> String {
    let end = text.find(". ").map_or(text.len(), |at| at + 1);
    let line = text[..end].lines().next().unwrap_or_default();
    if line.chars().count() <= 200 {
        return line.to_owned();
    }
    let cut: String = line.chars().take(197).collect();
    format!("{cut}...")
}
