//! Kubernetes as kubectl sees it: plain objects and plain workloads, without Knative.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::harness::{Platform, service_manifest};
use testkit::http;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("cluster::objects_by_every_kind_of_apply", objects),
    ("cluster::deployment_rolls_out_and_back", deployment),
    ("cluster::pod_configuration_logs_and_exec", pod),
    ("cluster::memory_limit_kills", memory_limit),
    ("cluster::missing_image_backs_off", missing_image),
    ("cluster::namespace_takes_its_content", namespace_deletion),
    ("cluster::service_names_resolve_in_pods", service_names),
    ("cluster::custom_resources_are_validated", custom_resources),
];

/// Where figures of pods are, which a plain cluster has not.
pub(crate) const OWN_CASES: &[(&str, Case)] = &[("cluster::class_hpa_scales_by_cpu", horizontal_class)];

fn objects(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-objects")?;
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  a: one\n";
    ensure!(p.apply(ns.name(), map)?.contains("configmap/m created"), "create");
    ensure!(p.apply(ns.name(), map)?.contains("configmap/m unchanged"), "unchanged");
    ensure!(p.apply(ns.name(), &map.replace("one", "two"))?.contains("configmap/m configured"), "configured");
    let server_side = ["apply", "-n", ns.name(), "--server-side", "--field-manager=other", "-f", "-"];
    let manifest = map.replace("one", "three");
    let said = p.kubectl_fails(&server_side, Some(&manifest))?;
    ensure!(said.contains("conflict") && said.contains(".data.a"), "{said}");
    let forced = [&server_side[..], &["--force-conflicts"]].concat();
    p.kubectl_with(&forced, &manifest)?;
    ensure!(p.get(ns.name(), "cm/m")?["data"]["a"] == "three", "server-side apply");
    p.kubectl(&["label", "-n", ns.name(), "cm/m", "tier=front"])?;
    p.kubectl(&["annotate", "-n", ns.name(), "cm/m", "note=x"])?;
    p.kubectl(&[
        "patch",
        "-n",
        ns.name(),
        "cm/m",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/b","value":"y"}]"#,
    ])?;
    let by_label = p.kubectl(&[
        "get",
        "cm",
        "-n",
        ns.name(),
        "-l",
        "tier in (front)",
        "-o",
        "jsonpath={.items[*].data.b}",
    ])?;
    ensure!(by_label == "y", "{by_label}");
    let wide = p.kubectl(&["get", "cm", "-n", ns.name(), "-o", "wide"])?;
    ensure!(wide.contains("DATA") && wide.contains("AGE"), "{wide}");
    ensure!(p.kubectl(&["describe", "-n", ns.name(), "cm/m"])?.contains("tier=front"), "describe");
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&format!("{map}bogus: 1\n")))?;
    ensure!(said.contains("unknown field \"bogus\""), "{said}");
    ensure!(p.kubectl(&["explain", "deployment.spec.strategy"])?.contains("rollingUpdate"), "explain");
    let mut diff = p.kubectl_command(&["diff", "-n", ns.name(), "-f", "-"])?;
    let mut child = diff.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        std::io::Write::write_all(&mut stdin, map.replace("one", "four").as_bytes())?;
    }
    let out = child.wait_with_output()?;
    ensure!(
        out.status.code() == Some(1) && String::from_utf8_lossy(&out.stdout).contains("+  a: four"),
        "diff: {out:?}"
    );
    p.kubectl(&["delete", "-n", ns.name(), "cm/m"])?;
    ensure!(p.kubectl_fails(&["get", "-n", ns.name(), "cm/m"], None)?.contains("NotFound"), "deleted");
    Ok(())
}

fn deployment_manifest(image: &str, name: &str, replicas: u32) -> String {
    format!(
        r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"web"}},"spec":{{"replicas":{replicas},
        "selector":{{"matchLabels":{{"app":"web"}}}},"template":{{"metadata":{{"labels":{{"app":"web"}}}},
        "spec":{{"terminationGracePeriodSeconds":1,"containers":[{{"name":"web","image":"{image}","env":[{{"name":"NAME","value":"{name}"}}],
        "readinessProbe":{{"httpGet":{{"path":"/","port":8080}},"periodSeconds":1}}}}]}}}}}}}}"#
    )
}

fn deployment(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-deploy")?;
    p.apply(ns.name(), &deployment_manifest(p.image(), "a", 2))?;
    let status = ["rollout", "status", "deployment/web", "-n", ns.name(), "--timeout=90s"];
    ensure!(p.kubectl(&status)?.contains("successfully rolled out"), "first rollout");
    p.apply(ns.name(), &deployment_manifest(p.image(), "b", 2))?;
    ensure!(p.kubectl(&status)?.contains("successfully rolled out"), "second rollout");
    p.kubectl(&["rollout", "undo", "deployment/web", "-n", ns.name()])?;
    p.kubectl(&status)?;
    let name = p.kubectl(&[
        "get",
        "deploy/web",
        "-n",
        ns.name(),
        "-o",
        "jsonpath={.spec.template.spec.containers[0].env[0].value}",
    ])?;
    ensure!(name == "a", "after the undo: {name}");
    p.kubectl(&["scale", "deployment/web", "--replicas=3", "-n", ns.name()])?;
    ns.wait("three are ready", || Ok(p.get(ns.name(), "deploy/web")?["status"]["readyReplicas"] == 3))?;
    p.kubectl(&["scale", "deployment/web", "--replicas=0", "-n", ns.name()])?;
    ns.wait_zero()
}

fn pod(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-pod")?;
    p.kubectl(&["create", "configmap", "conf", "-n", ns.name(), "--from-literal=COLOUR=blue"])?;
    p.kubectl(&["create", "secret", "generic", "sec", "-n", ns.name(), "--from-literal=key=hidden"])?;
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "labels": {"app": "one"}},
        "spec": {
            "containers": [{
                "name": "main", "image": p.image(),
                "envFrom": [{"configMapRef": {"name": "conf"}}],
                "env": [
                    {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "key"}}},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "volumeMounts": [{"name": "c", "mountPath": "/conf"}],
                "resources": {"limits": {"memory": "64Mi"}},
            }],
            "volumes": [{"name": "c", "configMap": {"name": "conf"}}],
            "terminationGracePeriodSeconds": 1,
        },
    });
    p.apply(ns.name(), &manifest.to_string())?;
    p.kubectl(&["wait", "pod/one", "-n", ns.name(), "--for=condition=Ready", "--timeout=90s"])?;
    ensure!(p.kubectl(&["logs", "one", "-n", ns.name()])?.contains("listening on 8080"), "logs");
    let ip = p.kubectl(&["get", "pod/one", "-n", ns.name(), "-o", "jsonpath={.status.podIP}"])?;
    let env = testkit::http::get(format!("{ip}:8080").parse()?, "one", "/env")?.body;
    for line in ["COLOUR=blue", "SECRET=hidden", "POD=one"] {
        ensure!(env.lines().any(|l| l == line), "{line} is missing in {env}");
    }
    let own = p.kubectl(&["exec", "one", "-n", ns.name(), "--", "/proc/1/exe", "get", "127.0.0.1:8080"])?;
    ensure!(own.contains(" 200 "), "what runs by exec reaches the container's own port: {own}");
    let described = p.kubectl(&["describe", "pod/one", "-n", ns.name()])?;
    ensure!(described.contains("Started") && described.contains("Scheduled"), "{described}");
    p.kubectl(&["delete", "pod/one", "-n", ns.name()])?;
    Ok(())
}

fn memory_limit(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-oom")?;
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "greedy"},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "main", "image": p.image(), "resources": {"limits": {"memory": "32Mi"}},
        }]},
    });
    p.apply(ns.name(), &manifest.to_string())?;
    p.kubectl(&["wait", "pod/greedy", "-n", ns.name(), "--for=condition=Ready", "--timeout=90s"])?;
    let ip = p.kubectl(&["get", "pod/greedy", "-n", ns.name(), "-o", "jsonpath={.status.podIP}"])?;
    let _ = testkit::http::get(format!("{ip}:8080").parse()?, "greedy", "/fill?mb=100");
    ns.wait("OOMKilled is in the status", || {
        let pod = p.get(ns.name(), "pod/greedy")?;
        let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        Ok(terminated["reason"] == "OOMKilled" && terminated["exitCode"] == 137)
    })
}

fn missing_image(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-no-image")?;
    p.kubectl(&["run", "lost", "-n", ns.name(), "--image=localhost:1/nobody/nothing:v0"])?;
    ns.wait("the pod says ErrImagePull or ImagePullBackOff", || {
        let table = p.kubectl(&["get", "pods", "-n", ns.name()])?;
        Ok(table.contains("ErrImagePull") || table.contains("ImagePullBackOff"))
    })
}

fn namespace_deletion(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-doomed")?;
    p.kubectl(&["create", "configmap", "inside", "-n", ns.name()])?;
    p.apply(ns.name(), &deployment_manifest(p.image(), "a", 1))?;
    p.kubectl(&["delete", "namespace", ns.name(), "--timeout=90s"])?;
    ensure!(p.kubectl_fails(&["get", "namespace", ns.name()], None)?.contains("NotFound"), "still there");
    Ok(())
}

fn service_names(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-dns")?;
    p.apply(ns.name(), &deployment_manifest(p.image(), "found", 1))?;
    p.kubectl(&["expose", "deployment/web", "-n", ns.name(), "--port=80", "--target-port=8080"])?;
    p.kubectl(&["rollout", "status", "deployment/web", "-n", ns.name(), "--timeout=90s"])?;
    let ip = p.kubectl(&["get", "service/web", "-n", ns.name(), "-o", "jsonpath={.spec.clusterIP}"])?;
    let from_pod = |address: &str| {
        p.kubectl(&[
            "exec",
            "-n",
            ns.name(),
            "deploy/web",
            "--",
            "/proc/1/exe",
            "get",
            &format!("{address}:80"),
        ])
    };
    for address in [ip.as_str(), "web", "web.e2e-dns", "web.e2e-dns.svc.cluster.local"] {
        ns.wait(&format!("{address} answers in a pod"), || {
            Ok(from_pod(address).is_ok_and(|answer| answer.contains("found")))
        })?;
    }
    let unknown = from_pod("nobody.e2e-dns");
    ensure!(unknown.is_err(), "a name that nobody has answers: {unknown:?}");
    Ok(())
}

fn custom_resources(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-crd")?;
    let crd = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"boats.e2e.test"},
    "spec":{"group":"e2e.test","scope":"Namespaced","names":{"plural":"boats","singular":"boat","kind":"Boat","shortNames":["bt"]},
    "versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{
    "spec":{"type":"object","required":["sails"],"properties":{"sails":{"type":"integer","minimum":1},"colour":{"type":"string","default":"white"}},
    "x-kubernetes-validations":[{"rule":"self.sails < 10","message":"too many sails"}]}}}},
    "additionalPrinterColumns":[{"name":"Sails","type":"integer","jsonPath":".spec.sails"}]}]}}"#;
    p.kubectl_with(&["apply", "-f", "-"], crd)?;
    p.kubectl(&["wait", "crd/boats.e2e.test", "--for=condition=Established", "--timeout=30s"])?;
    let boat = |sails: u32| {
        format!(
            r#"{{"apiVersion":"e2e.test/v1","kind":"Boat","metadata":{{"name":"b"}},"spec":{{"sails":{sails}}}}}"#
        )
    };
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&boat(0)))?;
    ensure!(said.contains("spec.sails") && said.contains("greater than or equal to 1"), "{said}");
    let said = p.kubectl_fails(&["apply", "-n", ns.name(), "-f", "-"], Some(&boat(12)))?;
    ensure!(said.contains("too many sails"), "{said}");
    p.apply(ns.name(), &boat(3))?;
    ensure!(p.get(ns.name(), "bt/b")?["spec"]["colour"] == "white", "the default is missing");
    let table = p.kubectl(&["get", "boats", "-n", ns.name()])?;
    ensure!(table.contains("SAILS"), "{table}");
    p.kubectl(&["delete", "crd", "boats.e2e.test"])?;
    Ok(())
}

/// A Service of the class hpa, and what its pods use.
fn horizontal_class(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-hpa")?;
    let annotations = [
        ("autoscaling.knative.dev/class", "hpa.autoscaling.knative.dev"),
        ("autoscaling.knative.dev/metric", "cpu"),
        ("autoscaling.knative.dev/target", "20"),
        ("autoscaling.knative.dev/window", "10s"),
        ("autoscaling.knative.dev/max-scale", "2"),
    ];
    let mut manifest = service_manifest("busy", p.image(), &annotations, &[]);
    manifest["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    p.apply(ns.name(), &manifest.to_string())?;
    ns.wait_ready("busy")?;
    let host = ns.host("busy")?;
    // Whatever else the machine is busy with; paced, as other cases run beside it.
    let busy = AtomicBool::new(true);
    let load = || -> Result<()> {
        while busy.load(Ordering::Relaxed) {
            ensure!(http::get(p.gateway(), &host, "/")?.status == 200, "under load");
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    };
    let autoscaler = || -> Result<Value> {
        let list = p.get(ns.name(), "hpa")?;
        Ok(list["items"][0].clone())
    };
    let scaled = || -> Result<Value> {
        ns.wait("there are two pods", || Ok(autoscaler()?["status"]["desiredReplicas"] == 2))?;
        let seen = autoscaler()?;
        let conditions = seen["status"]["conditions"].as_array().context("conditions")?;
        let active = conditions.iter().find(|one| one["type"] == "ScalingActive").context("ScalingActive")?;
        ensure!(active["reason"] == "ValidMetricFound", "{active}");
        ns.wait("both are shown with what they use", || {
            let top = p.kubectl(&["top", "pods", "-n", ns.name(), "--containers", "--no-headers"])?;
            let apps = top.lines().filter(|line| line.contains("user-container") && line.contains("Mi"));
            Ok(apps.count() == 2)
        })?;
        Ok(seen)
    };
    let seen = std::thread::scope(|threads| {
        let loads = [threads.spawn(load), threads.spawn(load)];
        let seen = scaled();
        busy.store(false, Ordering::Relaxed);
        for load in loads {
            load.join().map_err(|_| anyhow!("the load panicked"))??;
        }
        seen
    })?;
    let node = p.kubectl(&["top", "nodes", "--no-headers"])?;
    ensure!(node.contains('%') && !node.contains("unknown"), "{node}");
    let name = seen["metadata"]["name"].as_str().context("a name")?;
    let described = p.kubectl(&["describe", "-n", ns.name(), "hpa", name])?;
    ensure!(described.contains("New size: 2; reason: cpu resource utilization"), "{described}");
    ns.wait("one pod is enough again", || Ok(autoscaler()?["status"]["desiredReplicas"] == 1))?;
    p.kubectl(&["delete", "-n", ns.name(), "ksvc/busy"])?;
    ns.wait("its autoscaler is gone", || Ok(autoscaler()?.is_null()))
}
