//! `config/`: what `kubectl apply -k config/` applies, the same objects as `ebb install` does.

use super::*;

/// The files, without their folder.
pub(crate) fn files() -> Files {
    let mut files = Files::new();
    for stage in stages() {
        if stage.name == "crds" {
            for crd in stage.objects {
                let name = crd["metadata"]["name"].as_str().expect("a name");
                files.insert(
                    format!("crds/{name}.yaml"),
                    format!("{ORIGIN}{}", yaml(std::slice::from_ref(&crd))),
                );
            }
        } else {
            files.insert(format!("{}.yaml", stage.name), format!("{ORIGIN}{}", yaml(&stage.objects)));
        }
    }
    // Kustomize puts namespace and CRDs first by itself.
    let resources: Vec<String> = files.keys().map(|name| format!("- {name}\n")).collect();
    let kustomization = format!(
        "{ORIGIN}# With images of a registry: `kustomize edit set image localhost/ebb=REGISTRY/ebb`, and queue-sidecar-image in the\n\
         # ConfigMap config-deployment.\n\
         apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{}",
        resources.concat()
    );
    files.insert("kustomization.yaml".into(), kustomization);
    files
}

#[test]
fn config_is_what_the_code_says() {
    settle("config", &files(), &[]);
}

/// `kubectl apply` keeps what it applied in an annotation, and these may have 256 KiB.
#[test]
fn objects_are_small_enough_for_kubectl() {
    for object in stages().iter().flat_map(|s| &s.objects) {
        let size = object.to_string().len();
        assert!(size < 200 << 10, "{} has {size} bytes", object["metadata"]["name"]);
    }
}

/// A user's `kubectl apply -k` and `ebb install --dry-run` are the same objects.
#[test]
fn files_hold_every_object() {
    let documents: usize = files()
        .iter()
        .filter(|(name, _)| *name != "kustomization.yaml")
        .map(|(_, text)| text.split("---\n").count())
        .sum();
    assert_eq!(documents, stages().iter().map(|s| s.objects.len()).sum::<usize>());
}
