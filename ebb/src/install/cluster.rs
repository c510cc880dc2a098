//! The cluster that is meant, and whether the platform can be put on it.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use ebb_api::manifests::{INSTALLATION, VERSION};
use ebb_component::told;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};

use crate::settings::Misuse;

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    /// The kubeconfig [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context in it [default: its current one].
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// A cluster that answers.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Its address, for people.
    pub(crate) url: String,
    /// Of Kubernetes, as it says itself.
    pub(crate) version: String,
}

impl ClusterArgs {
    /// Connects, and sees that the API server answers.
    pub(crate) async fn connect(&self) -> anyhow::Result<Cluster> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(file) => match Kubeconfig::read_from(file) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options).await,
                Err(error) => Err(error),
            },
            None => Config::from_kubeconfig(&options).await,
        };
        let config = config.map_err(|error| {
            // That of a file that cannot be parsed shows the place as well, over several lines.
            let cause = told(&error).lines().next().unwrap_or_default().to_owned();
            Misuse(format!(
                "no cluster is known: {cause}; name a kubeconfig with --kubeconfig or KUBECONFIG, and a context in it with --context"
            ))
        })?;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).with_context(|| format!("no connection to {url}"))?;
        let version = client.apiserver_version().await.map_err(|error| {
            anyhow!(
                "the cluster at {url} does not answer as Kubernetes: {}; is it the right one, and does it run?",
                told(&error)
            )
        })?;
        Ok(Cluster { client, url, version: version.git_version })
    }
}

/// What of a platform is on a cluster already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present {
    /// The labels of the CRD of Services, if there is one: whose they are.
    services_crd: Option<Vec<(String, String)>>,
    /// The version of the platform in the namespace.
    version: Option<String>,
}

impl Present {
    pub(crate) async fn look(cluster: &Cluster, namespace: &str) -> anyhow::Result<Self> {
        let crds: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
        let crd = crds.get_opt("services.serving.knative.dev").await.context("reading the cluster's CRDs")?;
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        let namespace = namespaces.get_opt(namespace).await.context("reading the namespace")?;
        Ok(Self {
            services_crd: crd.map(|c| c.labels().clone().into_iter().collect()),
            version: namespace.and_then(|n| n.labels().get(VERSION).cloned()),
        })
    }

    /// Whether anything of the platform is there.
    pub(crate) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Refuses where the platform would take what is another's.
    pub(crate) fn allows(&self, namespace: &str, version: &str) -> anyhow::Result<()> {
        if let Some(labels) = &self.services_crd {
            let label = |key: &str| labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
            if label("app.kubernetes.io/name") != Some("ebb") {
                let whose = label("app.kubernetes.io/name").unwrap_or("another installation");
                bail!(
                    "the CRD services.serving.knative.dev belongs to {whose}: Knative Serving and ebb serve the same API, so a \
                     cluster can have one of them; remove that first, its Services with it"
                );
            }
            if let Some(other) = label(INSTALLATION).filter(|other| *other != namespace) {
                bail!("ebb is installed in the namespace {other} already; a cluster can have one");
            }
        }
        if let Some(there) = self.version.as_deref().filter(|there| newer(there, version)) {
            bail!(
                "ebb {there} is installed, which is newer than this {version}: install with that build or a later one, or `ebb \
                 uninstall` first"
            );
        }
        Ok(())
    }
}

/// Whether `a` is a later version than `b`; what follows the three numbers does not count.
fn newer(a: &str, b: &str) -> bool {
    let numbers = |v: &str| -> Vec<u64> {
        let core = v.split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|n| n.parse().unwrap_or_default()).collect()
    };
    numbers(a) > numbers(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(labels: &[(&str, &str)], version: Option<&str>) -> Present {
        Present {
            services_crd: Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            version: version.map(Into::into),
        }
    }

    #[test]
    fn what_is_another_s_is_left_alone() {
        let refused = |p: Present| p.allows("ebb-system", "0.2.0").map_err(|e| e.to_string());
        assert_eq!(refused(Present::default()), Ok(()));
        let knative = refused(present(&[("app.kubernetes.io/name", "knative-serving")], None));
        assert!(knative.as_ref().is_err_and(|e| e.contains("belongs to knative-serving")), "{knative:?}");
        assert!(refused(present(&[], None)).is_err());
        let ours = [("app.kubernetes.io/name", "ebb"), (INSTALLATION, "ebb-system")];
        assert_eq!(refused(present(&ours, Some("0.1.9"))), Ok(()));
        assert_eq!(refused(present(&ours, Some("0.2.0"))), Ok(()));
        let newer = refused(present(&ours, Some("0.10.0")));
        assert!(newer.as_ref().is_err_and(|e| e.contains("0.10.0 is installed")), "{newer:?}");
        let elsewhere = refused(present(&[("app.kubernetes.io/name", "ebb"), (INSTALLATION, "other")], None));
        assert!(elsewhere.as_ref().is_err_and(|e| e.contains("namespace other")), "{elsewhere:?}");
    }
}
