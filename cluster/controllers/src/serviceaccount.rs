//! Every active namespace has ServiceAccount `default` and ConfigMap `kube-root-ca.crt`; what was deleted or altered is mended.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Config, Error, cache::Key, meta, queue::Queue, world::World};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";

pub(crate) fn start(world: &Arc<World>, config: &Config, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<String>> = Queue::new();
    world.namespaces.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(meta::name(change.latest().as_ref()).to_owned())
    });
    world.service_accounts.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(Key::of(change.latest().as_ref()).namespace)
    });
    world.root_cas.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(Key::of(change.latest().as_ref()).namespace)
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    let root_ca: Arc<str> = config.root_ca_pem.as_str().into();
    tasks.spawn(async move {
        tokio::join!(world.namespaces.synced(), world.service_accounts.synced(), world.root_cas.synced());
        let handle = move |namespace: String| reconcile(Arc::clone(&world), Arc::clone(&root_ca), namespace);
        queue.run("serviceaccount", 8, shutdown, handle).await;
    });
}

#[derive(PartialEq, Debug)]
enum Mend {
    CreateAccount,
    CreateRootCa,
    CorrectRootCa,
}

fn plan(
    namespace: &Namespace,
    account: Option<&ServiceAccount>,
    root_ca: Option<&ConfigMap>,
    pem: &str,
) -> Vec<Mend> {
    let mut mends = Vec::new();
    if namespace.metadata.deletion_timestamp.is_some() {
        return mends;
    }
    if account.is_none() {
        mends.push(Mend::CreateAccount);
    }
    match root_ca {
        None => mends.push(Mend::CreateRootCa),
        Some(held)
            if held.data.as_ref().and_then(|data| data.get(CA_KEY)).map(String::as_str) != Some(pem) =>
        {
            mends.push(Mend::CorrectRootCa);
        }
        Some(_) => {}
    }
    mends
}

async fn reconcile(world: Arc<World>, pem: Arc<str>, name: String) -> Result<Option<Duration>, Error> {
    let Some(namespace) = world.namespaces.get(&Key::new("", &name)) else { return Ok(None) };
    let account = world.service_accounts.get(&Key::new(&name, ACCOUNT));
    let root_ca = world.root_cas.get(&Key::new(&name, ROOT_CA));
    for mend in plan(&namespace, account.as_deref(), root_ca.as_deref(), &pem) {
        let written = match mend {
            Mend::CreateAccount => {
                let mut account = ServiceAccount::default();
                account.metadata.name = Some(ACCOUNT.to_owned());
                account.metadata.namespace = Some(name.clone());
                world.create(&world.service_accounts, &account).await.map(drop)
            }
            Mend::CreateRootCa => {
                let mut map = ConfigMap::default();
                map.metadata.name = Some(ROOT_CA.to_owned());
                map.metadata.namespace = Some(name.clone());
                let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
                map.metadata.annotations =
                    Some([("kubernetes.io/description".to_owned(), about.to_owned())].into());
                map.data = Some([(CA_KEY.to_owned(), pem.to_string())].into());
                world.create(&world.root_cas, &map).await.map(drop)
            }
            Mend::CorrectRootCa => {
                world
                    .merge(
                        &world.root_cas,
                        &Key::new(&name, ROOT_CA),
                        &json!({"data": {CA_KEY: pem.as_ref()}}),
                    )
                    .await
            }
        };
        match written {
            // Made by somebody else meanwhile, or the namespace is going away.
            Err(error) if error.is_conflict() || error.is_not_found() || is_forbidden(&error) => {}
            other => other?,
        }
    }
    Ok(None)
}

fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Api(kube::Error::Api(status)) if status.code == 403)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    #[test]
    fn mends_what_is_missing_or_wrong() {
        let namespace = Namespace::default();
        let map = |pem: &str| ConfigMap {
            data: Some([(CA_KEY.to_owned(), pem.to_owned())].into()),
            ..ConfigMap::default()
        };
        let account = ServiceAccount::default();
        assert_eq!(plan(&namespace, None, None, "pem"), [Mend::CreateAccount, Mend::CreateRootCa]);
        assert_eq!(plan(&namespace, Some(&account), Some(&map("old")), "pem"), [Mend::CorrectRootCa]);
        assert_eq!(plan(&namespace, Some(&account), Some(&map("pem")), "pem"), []);
        let mut going = Namespace::default();
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(plan(&going, None, None, "pem"), []);
    }
}
