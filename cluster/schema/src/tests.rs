use serde_json::{Value, json};

use super::*;

fn builtin(group: &str, version: &str, kind: &str) -> Schema {
    Schema::builtin(group, version, kind).expect("built in")
}

fn defaulted(schema: &Schema, mut obj: Value) -> Value {
    schema.default(&mut obj);
    let once = obj.clone();
    schema.default(&mut obj);
    assert_eq!(once, obj, "defaulting twice is defaulting once");
    obj
}

fn errors(schema: &Schema, obj: &Value) -> Vec<String> {
    schema.validate(obj, None).iter().map(ToString::to_string).collect()
}

#[test]
fn every_builtin_kind_is_there() {
    let kinds = [
        (
            "",
            "v1",
            "Namespace Node Pod Service Endpoints ConfigMap Secret Event ServiceAccount PersistentVolume PersistentVolumeClaim \
          ReplicationController ResourceQuota LimitRange PodTemplate Status DeleteOptions",
        ),
        ("apps", "v1", "Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision"),
        ("batch", "v1", "Job CronJob"),
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        ("coordination.k8s.io", "v1", "Lease"),
        ("events.k8s.io", "v1", "Event"),
        ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration ValidatingWebhookConfiguration"),
        ("rbac.authorization.k8s.io", "v1", "Role RoleBinding ClusterRole ClusterRoleBinding"),
        ("networking.k8s.io", "v1", "NetworkPolicy Ingress IngressClass"),
        ("policy", "v1", "PodDisruptionBudget Eviction"),
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ("autoscaling", "v1", "Scale"),
        ("scheduling.k8s.io", "v1", "PriorityClass"),
        ("storage.k8s.io", "v1", "StorageClass"),
        ("authentication.k8s.io", "v1", "TokenReview TokenRequest"),
        (
            "authorization.k8s.io",
            "v1",
            "SubjectAccessReview SelfSubjectAccessReview LocalSubjectAccessReview",
        ),
    ];
    for (group, version, names) in kinds {
        for kind in names.split_whitespace() {
            let schema = builtin(group, version, kind);
            assert_eq!(schema.origin(), Origin::Builtin);
            assert!(schema.raw()["properties"].is_object(), "{kind}");
        }
    }
    assert!(Schema::builtin("apps", "v1", "Nonsense").is_none());
}

#[test]
fn a_deployment_is_defaulted_as_kubernetes_does() {
    let out = defaulted(
        &builtin("apps", "v1", "Deployment"),
        json!({"metadata": {"name": "d", "creationTimestamp": null}, "spec": {"strategy": {}, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{
                "name": "c", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
                "readinessProbe": {"httpGet": {"port": 80}}}],
                "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}]}}}}),
    );
    assert_eq!(
        out,
        json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "c", "image": "nginx", "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                    "readinessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1,
                        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}}],
                "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}]}}}})
    );
}

#[test]
fn pods_and_services_are_defaulted() {
    let pod = defaulted(
        &builtin("", "v1", "Pod"),
        json!({"spec": {"serviceAccountName": "sa", "containers": [
            {"name": "a", "image": "reg:5000/x:1.2", "resources": {"limits": {"cpu": "1"}}},
            {"name": "b", "image": "x@sha256:00"}, {"name": "c", "image": "reg:5000/x"}]}}),
    );
    let policies: Vec<&str> = pod["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["imagePullPolicy"].as_str().unwrap())
        .collect();
    assert_eq!(policies, ["IfNotPresent", "IfNotPresent", "Always"]);
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1"}));
    assert_eq!(pod["spec"]["enableServiceLinks"], true);
    assert_eq!(pod["spec"]["serviceAccount"], "sa");
    let service = defaulted(
        &builtin("", "v1", "Service"),
        json!({"spec": {"ports": [{"port": 80}, {"port": 81, "targetPort": "x"}]}}),
    );
    assert_eq!(
        service,
        json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [
            {"port": 80, "protocol": "TCP", "targetPort": 80}, {"port": 81, "protocol": "TCP", "targetPort": "x"}]},
            "status": {"loadBalancer": {}}})
    );
    let balancer = defaulted(&builtin("", "v1", "Service"), json!({"spec": {"type": "LoadBalancer"}}));
    assert_eq!(balancer["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(balancer["spec"]["allocateLoadBalancerNodePorts"], true);
    let secret =
        defaulted(&builtin("", "v1", "Secret"), json!({"data": {"a": "eA=="}, "stringData": {"b": "y"}}));
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eA==", "b": "eQ=="}}));
    let namespace = defaulted(&builtin("", "v1", "Namespace"), json!({"metadata": {"name": "n"}}));
    assert_eq!(namespace["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
}

#[test]
fn defaulting_survives_nonsense() {
    let bad = [
        json!(null),
        json!([]),
        json!({"spec": 5}),
        json!({"spec": {"template": [], "strategy": "x", "containers": {}}}),
    ];
    for (group, kind) in [
        ("apps", "Deployment"),
        ("", "Pod"),
        ("", "Service"),
        ("batch", "Job"),
        ("apps", "StatefulSet"),
        ("", "Namespace"),
    ] {
        for obj in &bad {
            builtin(group, "v1", kind).default(&mut obj.clone());
        }
    }
}

#[test]
fn unknown_fields_are_named_and_pruned() {
    let schema = builtin("apps", "v1", "Deployment");
    let mut obj = json!({"kind": "Deployment", "metadata": {"labels": {"x": "y"}, "foo": 1}, "spec": {"replcas": 1, "template": {"spec": {
        "containers": [{"name": "c", "imag": "x"}], "nodeSelector": {"any": "thing"}}}}});
    assert_eq!(
        schema.unknown_fields(&obj),
        ["metadata.foo", "spec.replcas", "spec.template.spec.containers[0].imag"]
    );
    schema.prune(&mut obj);
    assert_eq!(schema.unknown_fields(&obj), Vec::<String>::new());
    assert_eq!(obj["spec"]["template"]["spec"]["nodeSelector"], json!({"any": "thing"}));
    assert_eq!(obj["spec"]["template"]["spec"]["containers"], json!([{"name": "c"}]));
    // A CRD holds schemas, which are recursive and may hold any default.
    let crd = builtin("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let obj = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"a": {"properties": {"b": {
        "default": {"any": ["thing"]}, "x-kubernetes-preserve-unknown-fields": true, "nonsense": 1}}}}}}}]}});
    assert_eq!(
        crd.unknown_fields(&obj),
        ["spec.versions[0].schema.openAPIV3Schema.properties.a.properties.b.nonsense"]
    );
}

fn crd(spec: Value) -> Schema {
    Schema::from_crd(&json!({"type": "object", "properties": {"spec": spec}})).expect("a good schema")
}

#[test]
fn preserving_and_embedding() {
    let schema = crd(json!({"type": "object", "properties": {
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        "object": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}}}}));
    let mut obj = json!({"apiVersion": "v", "kind": "K", "metadata": {"name": "n"}, "x": 1, "spec": {"y": 1,
        "free": {"any": {"thing": 1}, "known": {"a": "1", "b": 2}},
        "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "nonsense": 1}, "spec": {"z": 1}, "w": 1},
        "map": {"k": {"a": "1", "b": 1}}}});
    let mut unknown = schema.unknown_fields(&obj);
    unknown.sort();
    assert_eq!(
        unknown,
        [
            "spec.free.known.b",
            "spec.map.k.b",
            "spec.object.metadata.nonsense",
            "spec.object.spec.z",
            "spec.object.w",
            "spec.y",
            "x"
        ]
    );
    schema.prune(&mut obj);
    assert_eq!(
        obj,
        json!({"apiVersion": "v", "kind": "K", "metadata": {"name": "n"}, "spec": {
            "free": {"any": {"thing": 1}, "known": {"a": "1"}},
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}},
            "map": {"k": {"a": "1"}}}})
    );
}

#[test]
fn crd_defaults() {
    let schema = crd(json!({"type": "object", "default": {}, "properties": {
        "size": {"type": "integer", "default": 3},
        "nested": {"type": "object", "default": {"a": 1}, "properties": {"a": {"type": "integer"}, "b": {"type": "string", "default": "x"}}},
        "maybe": {"type": "string", "nullable": true, "default": "d"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "q"}}}}}}));
    assert_eq!(
        defaulted(&schema, json!({"spec": {"size": null, "maybe": null, "list": [{}, {"p": "z"}]}})),
        json!({"spec": {"size": 3, "maybe": null, "nested": {"a": 1, "b": "x"}, "list": [{"p": "q"}, {"p": "z"}]}})
    );
    assert_eq!(
        defaulted(&schema, json!({})),
        json!({"spec": {"size": 3, "maybe": "d", "nested": {"a": 1, "b": "x"}}})
    );
}

#[test]
fn values_are_checked_in_kubernetes_words() {
    let schema = crd(json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        "count": {"type": "integer", "minimum": 1, "maximum": 10, "format": "int32"},
        "ratio": {"type": "number", "exclusiveMinimum": true, "minimum": 0},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "when": {"type": "string", "format": "date-time"},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 2, "items": {"type": "string"}},
        "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}},
        "either": {"type": "object", "oneOf": [{"required": ["x"]}, {"required": ["y"]}],
            "properties": {"x": {"type": "string"}, "y": {"type": "string"}}}}}));
    let cases = [
        (json!({"name": "ok", "port": "http", "when": "2026-01-01T00:00:00Z", "either": {"x": "1"}}), vec![]),
        (json!({"port": 80}), vec!["spec.name: Required value"]),
        (
            json!({"name": 5}),
            vec![
                "spec.name: Invalid value: \"integer\": spec.name in body must be of type string: \"integer\"",
            ],
        ),
        (
            json!({"name": null}),
            vec!["spec.name: Invalid value: \"null\": spec.name in body must be of type string: \"null\""],
        ),
        (
            json!({"name": "UP"}),
            vec!["spec.name: Invalid value: \"UP\": spec.name in body should match '^[a-z]+$'"],
        ),
        (json!({"name": "toolong"}), vec!["spec.name: Too long: may not be more than 5 bytes"]),
        (
            json!({"name": "a", "count": 0}),
            vec!["spec.count: Invalid value: 0: spec.count in body should be greater than or equal to 1"],
        ),
        (
            json!({"name": "a", "count": 1.5}),
            vec![
                "spec.count: Invalid value: \"number\": spec.count in body must be of type integer: \"number\"",
            ],
        ),
        (
            json!({"name": "a", "ratio": 0}),
            vec!["spec.ratio: Invalid value: 0: spec.ratio in body should be greater than 0"],
        ),
        (
            json!({"name": "a", "mode": "c"}),
            vec!["spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""],
        ),
        (
            json!({"name": "a", "port": true}),
            vec![
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ],
        ),
        (
            json!({"name": "a", "when": "now"}),
            vec!["spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\""],
        ),
        (json!({"name": "a", "tags": ["x", "x"]}), vec!["spec.tags[1]: Duplicate value: \"x\""]),
        (
            json!({"name": "a", "tags": ["x", "y", "z"]}),
            vec!["spec.tags: Too many: 3: must have at most 2 items"],
        ),
        (
            json!({"name": "a", "items": [{"k": "1"}, {"k": "1"}]}),
            vec!["spec.items[1]: Duplicate value: {\"k\":\"1\"}"],
        ),
        (json!({"name": "a", "items": [{}]}), vec!["spec.items[0].k: Required value"]),
        (
            json!({"name": "a", "either": {}}),
            vec![
                "spec.either: Invalid value: {}: \"spec.either\" must validate one and only one schema (oneOf). Found none valid",
            ],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(&schema, &json!({"spec": spec})), expected, "{spec}");
    }
}

#[test]
fn rules_are_evaluated() {
    let schema = crd(json!({"type": "object", "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "ratio": {"type": "number"},
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]},
        "namespace": {"type": "string"},
        "once": {"type": "string", "x-kubernetes-validations": [
            {"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true, "message": "once"}]},
        "items": {"type": "array", "items": {"type": "object", "properties": {"v": {"type": "integer", "x-kubernetes-validations": [
            {"rule": "self > 0", "messageExpression": "'got ' + string(self)"}]}}}}},
        "x-kubernetes-validations": [
            {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "message": "min must not be above max", "fieldPath": ".min"},
            {"rule": "!has(self.ratio) || self.ratio < 1.0"},
            {"rule": "!has(self.__namespace__) || self.__namespace__.startsWith('n')", "reason": "FieldValueForbidden", "message": "no"}]}));
    let cases = [
        (json!({"min": 1, "max": 2, "ratio": 0, "items": [{"v": 1}]}), vec![]),
        (json!({"min": 3, "max": 2}), vec!["spec.min: Invalid value: min must not be above max"]),
        (json!({"ratio": 1}), vec!["spec: Invalid value: failed rule: !has(self.ratio) || self.ratio < 1.0"]),
        (json!({"namespace": "x"}), vec!["spec: Forbidden: no"]),
        (json!({"items": [{"v": 1}, {"v": -1}]}), vec!["spec.items[1].v: Invalid value: -1: got -1"]),
        (json!({"name": "first", "once": "a"}), vec![]),
        (
            json!({"min": "x", "max": 1}),
            vec![
                "spec.min: Invalid value: \"string\": spec.min in body must be of type integer: \"string\"",
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the \
                 existing errors to complete validation",
            ],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(&schema, &json!({"spec": spec})), expected, "{spec}");
    }
    let old = json!({"spec": {"name": "a", "once": "x"}});
    let change = |spec: Value| -> Vec<String> {
        schema.validate(&json!({"spec": spec}), Some(&old)).iter().map(ToString::to_string).collect()
    };
    assert_eq!(change(json!({"name": "b"})), ["spec.name: Invalid value: \"b\": name is immutable"]);
    assert_eq!(change(json!({"name": "a"})), Vec::<String>::new());
    assert_eq!(change(json!({"name": "a", "once": "y"})), ["spec.once: Invalid value: \"y\": once"]);
}

#[test]
fn what_did_not_change_is_not_judged_again() {
    let schema = crd(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1,
            "x-kubernetes-validations": [{"rule": "self != 'n'"}]}}}));
    let old = json!({"spec": {"a": "stored before", "b": "n"}});
    assert_eq!(schema.validate(&json!({"spec": {"a": "stored before", "b": "x"}}), Some(&old)), []);
    assert_eq!(schema.validate(&json!({"spec": {"a": "changed", "b": "n"}}), Some(&old)).len(), 2);
    assert_eq!(schema.validate(&old, None).len(), 2);
}

#[test]
fn bad_crds_are_refused() {
    let refused = |schema: Value| -> Vec<String> {
        Schema::from_crd(&schema).expect_err("a bad schema").iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        refused(json!({})),
        [
            "openAPIV3Schema.type: Required value: must not be empty at the root",
            "openAPIV3Schema.type: Required value: must not be empty for specified object fields"
        ]
    );
    assert!(
        refused(json!({"type": "object", "properties": {"a": {}}}))[0]
            .starts_with("openAPIV3Schema.properties[a].type: Required value")
    );
    assert!(
        refused(json!({"type": "object", "properties": {"a": {"type": "array"}}}))[0]
            .contains("items: Required value")
    );
    assert!(
        refused(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}))[0]
            .contains("valid regular expression")
    );
    assert!(
        refused(json!({"type": "object", "properties": {"a": {"type": "string", "default": 1}}}))[0]
            .contains(".default: Invalid value")
    );
    let rule = |rule: &str| {
        refused(
            json!({"type": "object", "properties": {"a": {"type": "string", "x-kubernetes-validations": [{"rule": rule}]}}}),
        )
    };
    assert!(
        rule("self ==")[0]
            .contains("x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self ==\",")
    );
    assert!(rule("slef == 'x'")[0].contains("undeclared reference to 'slef'"));
    let fields = |rule: &str| {
        refused(json!({"type": "object", "properties": {"a": {"type": "object", "properties": {
            "l": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}}},
            "x-kubernetes-validations": [{"rule": rule}]}}}))
    };
    assert!(fields("self.m == 'x'")[0].contains("undefined field 'm'"));
    assert!(fields("has(self.m)")[0].contains("undefined field 'm'"));
    assert!(fields("self.l.all(e, e.y == 'x')")[0].contains("undefined field 'y'"));
    assert!(fields("self.l[0].y == 'x'")[0].contains("undefined field 'y'"));
    assert!(rule("")[0].contains("Required value"));
    assert!(rule("self == 'x' &&\n  self > 'y' && self.z")[0].ends_with(
        "compilation failed: ERROR: <input>:2:21: type 'string' does not support field selection\n |   self > 'y' && self.z\n | ....................^"
    ));
    for (wrong, words) in [
        ("self > 1", "found no matching overload for '_>_' applied to '(string, int)'"),
        ("self + 1 == 'x'", "found no matching overload for '_+_' applied to '(string, int)'"),
        ("self && true", "found no matching overload for '_&&_' applied to '(string, bool)'"),
        ("size(self)", "cel expression must evaluate to a bool"),
        ("self.all(c, c == 'x')", "expression of type 'string' cannot be range of a comprehension"),
        ("self.starts('x')", "undeclared reference to 'starts'"),
        ("self in 5", "found no matching overload for '@in' applied to '(string, int)'"),
    ] {
        assert!(rule(wrong)[0].contains(words), "{wrong}: {}", rule(wrong)[0]);
    }
    let empty = |rule: &str| {
        refused(
            json!({"type": "object", "properties": {"a": {"type": "object", "x-kubernetes-validations": [{"rule": rule}]}}}),
        )
    };
    assert!(empty("self.nothere > 1")[0].contains("<input>:1:5: undefined field 'nothere'"));
    let told = refused(json!({"type": "object", "properties": {"a": {"type": "integer",
        "x-kubernetes-validations": [{"rule": "self > 1", "messageExpression": "self"}]}}}));
    assert!(
        told[0].contains("x-kubernetes-validations[0].messageExpression")
            && told[0].contains("must evaluate to a string")
    );
    assert!(
        refused(json!({"type": "object", "properties": {"a": {"$ref": "#/x"}}}))
            .iter()
            .any(|e| e.contains("$ref: Forbidden"))
    );
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert!(refused(deep)[0].contains("64 levels"));
}

#[test]
fn rules_that_are_right_compile() {
    let schema = json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "d": {"type": "number"}, "s": {"type": "string", "nullable": true}, "q": {"x-kubernetes-int-or-string": true},
        "t": {"type": "string", "format": "date-time"}, "w": {"type": "string", "format": "duration"}, "m": {"type": "object", "additionalProperties": {"type": "integer"}},
        "l": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "metadata": {"type": "object"}}});
    for rule in [
        "self.n > self.d",
        "self.n == 1 || self.s == null",
        "self.q == 5 || self.q == '5%'",
        "self.t > timestamp('2026-01-01T00:00:00Z') && self.t + duration('1h') > self.t",
        "self.w <= duration('5m') && self.w.getSeconds() < 300",
        "self.m.all(k, self.m[k] > 0 && k.startsWith('x')) && 'a' in self.m",
        "self.l.map(e, e.v).sum() < 10 && self.l.filter(e, e.v > 1).size() == 1",
        "self.l.exists_one(e, e.k == self.metadata.name) && self.metadata.name.matches('^a')",
        "(has(self.n) ? self.n : 5) > size(self.l) && self.kind == 'X'",
        "quantity('1Gi').isGreaterThan(quantity('1Mi')) && url('https://a').getHost() == 'a' && math.greatest(self.n, 3) > 2",
        "!has(oldSelf.s) || oldSelf.s == self.s && [1, 2].exists(i, i == self.n) && type(self.s) == string",
        "self.l == oldSelf.l && self.s.lowerAscii().trim().contains('x') && int(self.s) + self.n > 2",
    ] {
        let mut schema = schema.clone();
        schema["x-kubernetes-validations"] =
            json!([{"rule": rule, "messageExpression": "'n is ' + string(self.n)"}]);
        assert!(Schema::from_crd(&schema).is_ok(), "{rule}: {:?}", Schema::from_crd(&schema).err());
    }
}

#[test]
fn comprehensions_in_rules_compile() {
    let schema = crd(
        json!({"type": "object", "properties": {"t": {"type": "array", "items": {"type": "object", "properties": {
        "percent": {"type": "integer"}}}}, "q": {"x-kubernetes-int-or-string": true}},
        "x-kubernetes-validations": [
            {"rule": "!has(self.t) || self.t.all(e, e.percent >= 0)", "message": "negative"},
            {"rule": "!has(self.t) || self.t.exists_one(e, e.percent > 50)", "message": "one"},
            {"rule": "!has(self.q) || (type(self.q) == int ? self.q > 0 : quantity(self.q).isGreaterThan(quantity('1Mi')))", "message": "q"}]}),
    );
    assert_eq!(
        errors(&schema, &json!({"spec": {"t": [{"percent": 90}, {"percent": 10}], "q": "2Mi"}})),
        Vec::<String>::new()
    );
    assert_eq!(errors(&schema, &json!({"spec": {"t": [{"percent": 90}, {"percent": -1}], "q": 0}})).len(), 2);
}

#[test]
fn builtin_objects_are_checked() {
    let deployment = builtin("apps", "v1", "Deployment");
    let good = defaulted(
        &deployment,
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": "i"}]}}}}),
    );
    assert_eq!(errors(&deployment, &good), Vec::<String>::new());
    let with = |path: &str, value: Value| {
        let mut obj = good.clone();
        *obj.pointer_mut(path).expect("is there") = value;
        errors(&deployment, &obj)
    };
    let cases = [
        ("/spec/replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (
            "/spec/replicas",
            json!("x"),
            "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
        ),
        (
            "/spec/template/metadata/labels",
            json!({"a": "c"}),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
        ),
        ("/spec/template/spec/containers", json!([]), "spec.template.spec.containers: Required value"),
        (
            "/spec/template/spec/containers",
            json!([{"name": "c"}]),
            "spec.template.spec.containers[0].image: Required value",
        ),
        (
            "/spec/template/spec/containers",
            json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]),
            "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            "/spec/template/spec/containers",
            json!([{"name": "c", "image": "i", "ports": [{"containerPort": 70000}]}]),
            "spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "/spec/template/spec/containers",
            json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}}}]),
            "spec.template.spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 500m",
        ),
        (
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
    ];
    for (path, value, expected) in cases {
        assert_eq!(with(path, value), [expected]);
    }
    let mut moved = good.clone();
    moved["spec"]["selector"] = json!({"matchLabels": {"x": "y"}});
    moved["spec"]["template"]["metadata"]["labels"] = json!({"x": "y"});
    let found = deployment.validate(&moved, Some(&good));
    assert_eq!(
        found[0].to_string(),
        "spec.selector: Invalid value: {\"matchLabels\":{\"x\":\"y\"}}: field is immutable"
    );
    let service = builtin("", "v1", "Service");
    assert_eq!(errors(&service, &defaulted(&service, json!({"spec": {}}))), ["spec.ports: Required value"]);
    assert_eq!(
        errors(&service, &defaulted(&service, json!({"spec": {"clusterIP": "None"}}))),
        Vec::<String>::new()
    );
    let map = builtin("", "v1", "ConfigMap");
    assert!(
        errors(&map, &json!({"data": {"a b": "x"}}))[0]
            .starts_with("data[a b]: Invalid value: \"a b\": a valid config key")
    );
    let old = json!({"immutable": true, "data": {"a": "1"}});
    assert_eq!(
        map.validate(&json!({"immutable": true, "data": {"a": "2"}}), Some(&old))[0].to_string(),
        "data: Forbidden: field is immutable when `immutable` is set"
    );
}

/// The rules that Kubernetes users write most: an API that grows needs them to compile.
#[test]
fn common_rules_compile_and_hold() {
    let schema = crd(
        json!({"type": "object", "properties": {"spec": {"type": "string"}, "list": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties": {"type": "string"}}, "when": {"type": "string", "format": "date-time"}},
        "x-kubernetes-validations": [
            {"rule": "self.list.all(x, self.list.exists_one(y, x == y))", "message": "unique"},
            {"rule": "self.map.all(k, self.map[k].size() > 0)", "message": "filled"},
            {"rule": "!has(self.when) || self.when > timestamp('2020-01-01T00:00:00Z')", "message": "after"},
            {"rule": "self.list.map(x, x.upperAscii()).isSorted()", "message": "sorted"},
            {"rule": "size(self.list) == 0 || self.list[0].matches('^[a-z]+$')", "message": "first"}]}),
    );
    let good = json!({"spec": {"list": ["a", "b"], "map": {"k-x": "v"}, "when": "2026-01-01T00:00:00Z"}});
    assert_eq!(errors(&schema, &good), Vec::<String>::new());
    let bad = json!({"spec": {"list": ["B", "a", "a"], "map": {"k": ""}, "when": "2019-01-01T00:00:00Z"}});
    let found = errors(&schema, &bad);
    assert_eq!(found.len(), 5, "{found:?}");
}
