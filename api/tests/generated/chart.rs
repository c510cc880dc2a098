//! The Helm chart: the objects of `config/`, with what differs between clusters taken from values.

use std::cell::RefCell;

use serde_json::json;

use super::*;

const COMPONENTS: [&str; 4] = ["activator", "autoscaler", "controller", "gateway"];

thread_local! {
    /// The templates that markers stand for.
    static TEMPLATES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Stands in an object for a template, and takes its place in the YAML: short, so that the line is not folded.
fn marker(template: &str) -> Value {
    TEMPLATES.with(|all| {
        let mut all = all.borrow_mut();
        all.push(template.to_owned());
        json!(format!("helm-{}-helm", all.len() - 1))
    })
}

/// Puts the templates where their markers are, and protects what only looks like one.
fn templated(yaml: &str) -> String {
    let mut text = yaml.replace("{{", "{{ \"{{\" }}");
    TEMPLATES.with(|all| {
        for (n, template) in all.borrow().iter().enumerate() {
            text = text.replace(&format!("helm-{n}-helm"), template);
        }
    });
    text
}

fn component(object: &mut Value) {
    let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
    let spec = &mut object["spec"];
    spec["replicas"] = marker(&format!("{{{{ .Values.{name}.replicas }}}}"));
    let containers = spec["template"]["spec"]["containers"].as_array_mut().expect("containers");
    for container in containers.iter_mut() {
        container["image"] = marker("{{ include \"ebb.image\" (list . \"ebb\") }}");
    }
    let container = &mut containers[0];
    container["resources"] = marker(&format!("{{{{- toYaml .Values.{name}.resources | nindent 10 }}}}"));
    let log = container["env"].as_array_mut().expect("variables").iter_mut().find(|v| v["name"] == "EBB_LOG");
    log.expect("EBB_LOG")["value"] = marker(&format!("{{{{ .Values.{name}.log | quote }}}}"));
    let pod = &mut spec["template"]["spec"];
    for field in ["nodeSelector", "tolerations", "imagePullSecrets"] {
        let of = if field == "imagePullSecrets" {
            "image.pullSecrets".to_owned()
        } else {
            format!("{name}.{field}")
        };
        pod[field] = marker(&format!("{{{{- toYaml .Values.{of} | nindent 8 }}}}"));
    }
}

/// One ConfigMap: what users set by values goes beside what the installation sets.
fn settings(object: &Value) -> String {
    let mut object = object.clone();
    let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
    if name == "config-deployment" {
        object["data"]["queue-sidecar-image"] =
            marker("{{ include \"ebb.image\" (list . \"ebb-queue-proxy\") }}");
    }
    let text = templated(&yaml(std::slice::from_ref(&object)));
    let more = format!(
        "  {{{{- range $key, $value := index .Values.config \"{name}\" }}}}\n  {{{{ $key | quote }}}}: {{{{ $value | quote }}}}\n  {{{{- end }}}}\n"
    );
    text.replacen("data:\n", &format!("data:\n{more}"), 1)
}

fn values() -> String {
    let mut text = format!(
        "{ORIGIN}# The images of the components and the sidecar: `ebb image export` writes them.\n\
         image:\n  # Registry and path; localhost means that they are on the nodes already.\n  prefix: localhost\n  \
         # The version of the chart where empty.\n  tag: \"\"\n  pullSecrets: []\n\
         # Whether the CRDs are part of the release. They stay when it is uninstalled, for with them every Service would go.\n\
         crds:\n  install: true\n\
         # Keys of the ConfigMaps, by the name of the map. Each map explains its keys under _example.\n\
         config:\n"
    );
    for name in ebb_api::config::NAMES {
        text.push_str(&format!("  {name}: {{}}\n"));
    }
    for deployment in stages().into_iter().flat_map(|s| s.objects).filter(|o| o["kind"] == "Deployment") {
        let name = deployment["metadata"]["name"].as_str().expect("a name");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let resources = serde_saphyr::to_string(&container["resources"]).expect("YAML");
        let resources: String = resources.lines().map(|l| format!("    {l}\n")).collect();
        text.push_str(&format!(
            "{name}:\n  replicas: 1\n  # A filter for log lines, such as debug or info,ebb_{name}=debug.\n  log: info\n  \
             resources:\n{resources}  nodeSelector: {{}}\n  tolerations: []\n"
        ));
        if name == "gateway" {
            text.push_str(
                "  service:\n    # LoadBalancer, NodePort or ClusterIP.\n    type: LoadBalancer\n    annotations: {}\n",
            );
        }
    }
    text
}

const HELPERS: &str = r#"{{- define "ebb.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.prefix }}/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
"#;

const GUARD: &str = r#"{{- if ne .Release.Namespace "ebb-system" }}
{{- fail "the platform lives in the namespace ebb-system: helm install ebb charts/ebb --namespace ebb-system --create-namespace" }}
{{- end }}
"#;

const NOTES: &str = "ebb {{ .Chart.AppVersion }} is coming up: kubectl -n ebb-system rollout status deployment

Its images must be where the nodes find them ({{ .Values.image.prefix }}/ebb and {{ .Values.image.prefix }}/ebb-queue-proxy): `ebb image export FILE`
writes them. For Services that can be reached from outside, set a domain: --set-string 'config.config-domain.example\\.com='

The namespace is meant to allow only restricted pods:
  kubectl label namespace ebb-system pod-security.kubernetes.io/enforce=restricted
";

fn files() -> Files {
    let version = env!("CARGO_PKG_VERSION");
    let mut files = Files::from([
        (
            "Chart.yaml".to_owned(),
            format!(
                "{ORIGIN}apiVersion: v2\nname: ebb\ndescription: A serverless platform that speaks Knative's API\ntype: application\n\
                 version: {version}\nappVersion: \"{version}\"\nkubeVersion: \">=1.32.0-0\"\n"
            ),
        ),
        ("values.yaml".to_owned(), values()),
        ("templates/_helpers.tpl".to_owned(), HELPERS.to_owned()),
        ("templates/NOTES.txt".to_owned(), NOTES.to_owned()),
    ]);
    for mut stage in stages() {
        let text = match stage.name {
            // Helm makes the namespace of a release itself.
            "namespace" => GUARD.to_owned(),
            "crds" => {
                for crd in &mut stage.objects {
                    crd["metadata"]["annotations"]["helm.sh/resource-policy"] = json!("keep");
                }
                format!(
                    "{{{{- if .Values.crds.install }}}}\n{}{{{{- end }}}}\n",
                    templated(&yaml(&stage.objects))
                )
            }
            "settings" => stage.objects.iter().map(settings).collect::<Vec<_>>().join("---\n"),
            "components" => {
                stage.objects.iter_mut().for_each(component);
                templated(&yaml(&stage.objects))
            }
            "services" => {
                let gateway = stage.objects.iter_mut().find(|o| o["metadata"]["name"] == "gateway");
                let gateway = gateway.expect("the gateway's Service");
                gateway["spec"]["type"] = marker("{{ .Values.gateway.service.type }}");
                gateway["metadata"]["annotations"] =
                    marker("{{- toYaml .Values.gateway.service.annotations | nindent 4 }}");
                templated(&yaml(&stage.objects))
            }
            _ => templated(&yaml(&stage.objects)),
        };
        files.insert(format!("templates/{}.yaml", stage.name), format!("{ORIGIN}{text}"));
    }
    files
}

#[test]
fn the_chart_is_what_the_code_says() {
    settle("charts/ebb", &files(), &[]);
}

#[test]
fn every_component_can_be_sized() {
    let values: Value = serde_saphyr::from_str(&values()).expect("YAML");
    for name in COMPONENTS {
        assert!(values[name]["resources"]["requests"]["memory"].is_string(), "{name}");
        assert_eq!(values[name]["replicas"], 1);
    }
}

/// Rendered without values, the chart is the objects of `config/`.
#[test]
#[ignore = "needs helm 3 in PATH: go install helm.sh/helm/v3/cmd/helm@latest"]
fn helm_renders_the_same_objects() {
    let rendered = std::process::Command::new("helm")
        .args(["template", "ebb", "charts/ebb", "--namespace", "ebb-system", "--kube-version", "1.35.0"])
        .current_dir(root())
        .output()
        .expect("helm");
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let text = String::from_utf8(rendered.stdout).expect("text");
    let id = |o: &Value| format!("{} {}", o["kind"], o["metadata"]["name"]);
    let found: BTreeMap<String, Value> = text
        .split("\n---\n")
        .filter_map(|document| serde_saphyr::from_str::<Value>(document).ok())
        .filter(Value::is_object)
        .map(|mut object| {
            // Empty lists and maps of values without anything in them.
            drop_empty(&mut object);
            (id(&object), object)
        })
        .collect();
    for mut object in stages().into_iter().filter(|s| s.name != "namespace").flat_map(|s| s.objects) {
        let mut rendered =
            found.get(&id(&object)).unwrap_or_else(|| panic!("{} is missing", id(&object))).clone();
        // What only Helm is told.
        if let Some(annotations) = rendered["metadata"]["annotations"].as_object_mut() {
            annotations.retain(|key, _| !key.starts_with("helm.sh/"));
        }
        drop_empty(&mut rendered);
        drop_empty(&mut object);
        assert_eq!(rendered, object, "{}", id(&object));
    }
}

fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_empty);
            map.retain(|_, v| !v.is_null() && *v != json!({}) && *v != json!([]));
        }
        Value::Array(list) => list.iter_mut().for_each(drop_empty),
        _ => {}
    }
}
