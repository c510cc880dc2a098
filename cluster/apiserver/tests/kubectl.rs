//! The server as people meet it: real kubectl (from `$KUBECTL` or PATH), against TLS.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests, which clippy does not know as such.

mod common;

use std::process::Stdio;

use common::{Fixture, start};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

struct Kubectl {
    fixture: Fixture,
    kubeconfig: std::path::PathBuf,
}

impl Kubectl {
    async fn start() -> Self {
        let fixture = start().await;
        let kubeconfig = fixture.folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, fixture.server.admin_kubeconfig()).unwrap();
        let kubectl = Self { fixture, kubeconfig };
        kubectl.run("create serviceaccount default").await;
        kubectl
    }

    async fn output(&self, command: &str, input: &str) -> (bool, String) {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let mut child = Command::new(&program)
            .args(command.split_whitespace())
            .env("KUBECONFIG", &self.kubeconfig)
            // Discovery is cached by host and port, and ports are used again.
            .env("HOME", self.fixture.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run {program}: {error}; set KUBECTL or install kubectl 1.32 or later")
            });
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    async fn run(&self, command: &str) -> String {
        self.pipe(command, "").await
    }

    async fn pipe(&self, command: &str, input: &str) -> String {
        let (success, text) = self.output(command, input).await;
        assert!(success, "kubectl {command}: {text}");
        text
    }

    async fn fail(&self, command: &str, input: &str) -> String {
        let (success, text) = self.output(command, input).await;
        assert!(!success, "kubectl {command} should have failed: {text}");
        text
    }
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
";

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: \".status.conditions[?(@.type=='Ready')].status\"}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer, maximum: 10, description: How large it is.}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

const WIDGET: &str = "
apiVersion: example.com/v1
kind: Widget
metadata: {name: one}
spec: {size: 3}
";

#[tokio::test]
async fn a_deployment_from_apply_to_delete() {
    let kubectl = Kubectl::start().await;
    assert!(kubectl.pipe("apply -f -", DEPLOYMENT).await.contains("created"));
    assert!(kubectl.pipe("apply -f -", DEPLOYMENT).await.contains("unchanged"));
    kubectl.pipe("diff -f -", DEPLOYMENT).await;
    let changed = DEPLOYMENT.replace("replicas: 2", "replicas: 3");
    assert!(kubectl.fail("diff -f -", &changed).await.contains("+  replicas: 3"));
    assert!(kubectl.pipe("apply -f -", &changed).await.contains("configured"));
    let wide = kubectl.run("get deploy -o wide").await;
    assert!(wide.contains("0/3") && wide.contains("nginx") && wide.contains("app=web"), "{wide}");
    kubectl.run("scale deploy web --replicas=5").await;
    assert_eq!(kubectl.run("get deploy web -o jsonpath={.spec.replicas}").await, "5");
    kubectl.run("label deploy web tier=front").await;
    kubectl.run("annotate deploy web note=x").await;
    kubectl.run(r#"patch deploy web -p {"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"1"}]}]}}}}"#).await;
    assert!(
        kubectl.run("get deploy web -o yaml").await.contains("image: nginx"),
        "strategic patches merge by name"
    );
    kubectl.run("set image deploy/web c=nginx:2").await;
    let described = kubectl.run("describe deploy web").await;
    assert!(described.contains("tier=front") && described.contains("nginx:2"), "{described}");
    assert!(kubectl.run("delete deploy web").await.contains("deleted"));
    assert!(kubectl.fail("get deploy web", "").await.contains("(NotFound)"));
}

#[tokio::test]
async fn server_side_apply_and_definitions() {
    let kubectl = Kubectl::start().await;
    kubectl.pipe("apply --server-side -f -", DEFINITION).await;
    kubectl.run("wait --for=condition=Established crd/widgets.example.com --timeout=5s").await;
    assert!(kubectl.pipe("apply -f -", WIDGET).await.contains("created"));
    let table = kubectl.run("get wd").await;
    assert!(table.starts_with("NAME   SIZE   READY"), "{table}");
    assert!(kubectl.run("explain wd.spec.size").await.contains("How large it is."));
    kubectl.run(r#"patch wd one --type=merge --subresource=status -p {"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#).await;
    kubectl.run("wait --for=condition=Ready wd/one --timeout=5s").await;
    let large = WIDGET.replace("3}", "30}");
    assert!(kubectl.fail("apply -f -", &large).await.contains("spec.size: Invalid value: 30"));
    let typo = WIDGET.replace("size: 3", "size: 3, colour: red");
    assert!(kubectl.fail("apply -f -", &typo).await.contains("unknown field \"spec.colour\""));
    let other = WIDGET.replace("3}", "4}");
    assert!(
        kubectl
            .fail("apply --server-side --field-manager=another -f -", &other)
            .await
            .contains("conflict with \"kubectl-client-side-apply\"")
    );
    // kubectl itself takes over what it applied from its own side.
    kubectl.pipe("apply --server-side -f -", &other).await;
    assert!(kubectl.pipe("apply --server-side --dry-run=server -f -", &other).await.contains("dry run"));
    kubectl.run("delete crd widgets.example.com").await;
    kubectl.fail("get wd", "").await;
    assert!(!kubectl.run("api-resources").await.contains("widgets"));
}

#[tokio::test]
async fn what_kubectl_creates_in_protobuf() {
    let kubectl = Kubectl::start().await;
    kubectl.run("create configmap c --from-literal=a=b").await;
    kubectl.run("create secret generic s --from-literal=p=q").await;
    kubectl.run("create deployment d --image=nginx --replicas=0").await;
    kubectl.run("create job j --image=busybox -- true").await;
    kubectl.run("create service nodeport n --tcp=80:8080").await;
    kubectl.run("create role r --verb=get,list --resource=pods").await;
    kubectl.run("create rolebinding b --role=r --serviceaccount=default:default").await;
    assert_eq!(kubectl.run("create token default").await.trim().split('.').count(), 3);
    assert_eq!(kubectl.run("get secret s -o jsonpath={.data.p}").await, "cQ==");
    assert_eq!(kubectl.run("get deploy d -o jsonpath={.spec.replicas}").await, "0");
    assert!(kubectl.run("get svc n").await.contains("80:3"), "a node port is shown");
    let can = kubectl.run("auth can-i list pods --as=system:serviceaccount:default:default").await;
    assert_eq!(can.trim(), "yes");
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let kubectl = Kubectl::start().await;
    let bad = DEPLOYMENT
        .replace("replicas: 2", "replicas: -1")
        .replace("labels: {app: web}", "labels: {app: other}");
    let text = kubectl.fail("apply -f -", &bad).await;
    assert!(text.contains("spec.replicas: Invalid value: -1"), "{text}");
    assert!(text.contains("`selector` does not match template `labels`"), "{text}");
    let typo = DEPLOYMENT.replace("replicas:", "replicass:");
    assert!(kubectl.fail("apply -f -", &typo).await.contains("unknown field \"spec.replicass\""));
    kubectl.run("run p --image=nginx").await;
    assert_eq!(kubectl.run("logs p").await, "", "a pod that no node has yet has said nothing");
    assert!(kubectl.fail("exec p -- ls", "").await.contains("does not have a host assigned"));
    assert!(
        kubectl.fail("get pods --field-selector=a.b=c", "").await.contains("field label not supported: a.b")
    );
    assert!(kubectl.fail("create cm x -n missing", "").await.contains("namespaces \"missing\" not found"));
    assert!(kubectl.run("get pods").await.contains("Pending"));
    kubectl.run("delete pod p --timeout=5s").await;
}
