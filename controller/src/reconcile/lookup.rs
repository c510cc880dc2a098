//! The lookup of images' digests, in the background: a registry may be slow, and none of what waits for it keeps anybody else waiting.

use ebb_api::serving::Revision;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::Api;
use std::sync::Arc;
use std::time::Duration;

use super::Reconciler;
use crate::revision::Digests;
use crate::revision::digest::Credentials;
use crate::world::Key;

impl Reconciler {
    /// How far the lookup of a revision's digests is; starts it if need be.
    pub(super) fn digests(
        self: &Arc<Self>,
        key: &Key,
        object: &Arc<Revision>,
        configs: &ebb_api::config::Configs,
    ) -> Digests {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let known = object.status.as_ref().is_some_and(|s| !s.container_statuses.is_empty());
        if known || object.metadata.deletion_timestamp.is_some() {
            self.digests.remove(&uid);
            return Digests::Pending;
        }
        if let Some(found) = self.digests.get(&uid) {
            return found.0.clone();
        }
        self.digests.insert(uid.clone(), (Digests::Pending, 0));
        self.start_lookup(key.clone(), uid, object.clone(), configs.deployment.clone(), 0);
        Digests::Pending
    }

    fn start_lookup(
        self: &Arc<Self>,
        key: Key,
        uid: String,
        object: Arc<Revision>,
        config: ebb_api::config::Deployment,
        failures: u32,
    ) {
        let this = self.clone();
        tokio::spawn(async move {
            let pod = &object.spec.pod;
            let credentials = this.credentials(&key.namespace, &object).await;
            let inits = pod.init_containers.as_deref().unwrap_or_default();
            let found = tokio::try_join!(
                this.resolver.resolve(&pod.containers, &config, &credentials),
                this.resolver.resolve(inits, &config, &credentials)
            );
            // Gone, or done by another controller: then nobody needs it any more.
            let needed = || {
                let found = this.world.revisions.get(&key.namespace, &key.name);
                found.filter(|r| r.metadata.uid.as_ref() == Some(&uid)).filter(|r| {
                    r.metadata.deletion_timestamp.is_none()
                        && r.status.as_ref().is_none_or(|s| s.container_statuses.is_empty())
                })
            };
            let failures = match found {
                Ok((containers, init_containers)) => {
                    let found = Digests::Resolved { containers, init_containers };
                    this.digests.insert(uid.clone(), (found, 0));
                    None
                }
                Err(message) => {
                    this.digests.insert(uid.clone(), (Digests::Failed(message), failures + 1));
                    Some(failures + 1)
                }
            };
            this.world.queue.add(key.clone());
            if let Some(failures) = failures {
                tokio::time::sleep(Duration::from_secs(1 << failures.min(7))).await;
                if let Some(object) = needed() {
                    let config = this.live.load().deployment.clone();
                    return this.start_lookup(key, uid, object, config, failures);
                }
            }
            if needed().is_none() {
                this.digests.remove(&uid);
            }
        });
    }

    /// The credentials of a pod's pull secrets and its account's.
    async fn credentials(&self, namespace: &str, object: &Revision) -> Credentials {
        let pod = &object.spec.pod;
        let mut names: Vec<String> =
            pod.image_pull_secrets.iter().flatten().map(|s| s.name.clone()).collect();
        let account = pod.service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        if let Ok(Some(account)) = accounts.get_opt(account).await {
            names.extend(account.image_pull_secrets.into_iter().flatten().map(|s| s.name));
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let mut credentials = Credentials::default();
        for name in names {
            match secrets.get_opt(&name).await {
                Ok(Some(secret)) => credentials.add(&secret),
                Ok(None) => credentials.lack(&name, "is not there"),
                Err(error) => credentials.lack(&name, &format!("could not be read: {error}")),
            }
        }
        credentials
    }
}
