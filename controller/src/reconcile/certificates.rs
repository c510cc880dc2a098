//! Certificates: who signs them is set up when the first of them is asked for.

use ebb_api::config::Configs;
use ebb_api::networking::Certificate;
use ebb_component::watch::events;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::runtime::watcher::{self, Event};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::sync::OnceCell;

use super::Reconciler;
use crate::certificate::cert_manager::{self, Ordered};
use crate::certificate::{Class, own};
use crate::config::Renewal;
use crate::custody::Custody;
use crate::error::Error;
use crate::plan::{controlled_by, controller_of};
use crate::world::{Key, Kind};

/// The Secret with the key that ebb signs certificates of hosts with, and in `ca.crt` the root to trust.
const SECRET: &str = "ebb-domain-ca";
const CERT_MANAGER: &str = "cert-manager.io/v1";

/// Who signs.
#[derive(Default)]
pub(super) struct Signers {
    own: OnceCell<Arc<Custody>>,
    /// Whether cert-manager was found when it was asked last.
    cert_manager: AtomicBool,
    /// Whether its objects are followed, which goes on when it is gone, for when it is back.
    followed: AtomicBool,
}

impl Reconciler {
    pub(super) async fn certificate(
        self: &Arc<Self>,
        key: &Key,
        configs: &Configs,
        now: Timestamp,
    ) -> Result<(), Error> {
        let Some(object) = self.world.certificates.get(&key.namespace, &key.name) else { return Ok(()) };
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        match Class::of(&object) {
            Some(Class::Ebb) => self.sign(key, &object, now).await,
            Some(Class::CertManager) => self.order(key, &object, configs, now).await,
            None => Ok(()),
        }
    }

    /// By the authority of the platform.
    async fn sign(self: &Arc<Self>, key: &Key, object: &Certificate, now: Timestamp) -> Result<(), Error> {
        let custody = self.authority_of_domains().await?;
        let root = custody.authority().roots_pem();
        let name = &object.spec.secret_name;
        let mut secret = self.world.secrets.get(&key.namespace, name);
        let clock = SystemTime::from(now);
        let mut due =
            own::due(&own::Observed { certificate: object, secret: secret.as_deref(), root: &root }, clock);
        if matches!(due, own::Due::Issue(_)) {
            // It may have been made a moment ago, or be somebody else's, which the watch does not tell.
            let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
            let found = api.get_opt(name).await;
            secret = found
                .map_err(|source| Error::Read { what: "a Secret", source: Box::new(source) })?
                .map(Arc::new);
            due = own::due(
                &own::Observed { certificate: object, secret: secret.as_deref(), root: &root },
                clock,
            );
        }
        let ours =
            secret.as_deref().is_some_and(|s| controlled_by(&s.metadata, object.metadata.uid.as_deref()));
        if !matches!(due, own::Due::Nothing(..)) && !ours {
            // Else two would write one Secret in turns, without end; or it is cert-manager's, and goes with what was asked of that.
            if let Err(error) = self.withdraw(key, object).await {
                // What is wrong there must not keep us from signing.
                tracing::warn!(certificate = %key.name, %error, "what cert-manager was asked for cannot be taken back");
            }
        }
        let made = matches!(due, own::Due::Issue(_)).then(|| {
            let made = custody.authority().certify_hosts(&object.spec.dns_names, clock);
            made.map_err(|error| error.to_string())
        });
        let observed = own::Observed { certificate: object, secret: secret.as_deref(), root: &root };
        self.execute(key, object, own::plan(&observed, &due, made, now)).await
    }

    async fn authority_of_domains(self: &Arc<Self>) -> Result<Arc<Custody>, Error> {
        let custody = self.signers.own.get_or_try_init(async || {
            let namespace = &self.config.system_namespace;
            let domain = format!("domains.{namespace}");
            // People trust its root by hand: it is never replaced unasked.
            let renewal = Renewal { after: None, step: own::LIFETIME };
            let custody =
                Custody::open(&self.client, namespace, SECRET, &domain, own::LIFETIME, &renewal).await?;
            let (kept, shutdown) = (custody.clone(), self.shutdown.clone());
            tokio::spawn(async move { kept.keep(shutdown).await });
            let (mut news, this, shutdown) = (custody.changed(), self.world.clone(), self.shutdown.clone());
            tokio::spawn(shutdown.run_until_cancelled_owned(async move {
                while news.changed().await.is_ok() {
                    this.want_certificates();
                }
            }));
            Ok::<_, Error>(custody)
        });
        custody.await.cloned()
    }

    /// What was asked of cert-manager for a Certificate; none where that is not installed, which the second answer says.
    async fn ordered(self: &Arc<Self>, key: &Key) -> Result<(Option<Ordered>, bool), Error> {
        let read = |source| Error::Read { what: "cert-manager's Certificates", source: Box::new(source) };
        if !self.finds_cert_manager().await.map_err(read)? {
            return Ok((None, false));
        }
        let api: Api<Ordered> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = api.get_opt(&key.name).await;
        if found.is_err() {
            // Its kinds may be gone: to be found out the next time.
            self.signers.cert_manager.store(false, Ordering::Release);
        }
        Ok((found.map_err(read)?, true))
    }

    /// Takes back what was asked of cert-manager for a Certificate, when its class is another now.
    async fn withdraw(self: &Arc<Self>, key: &Key, object: &Certificate) -> Result<(), Error> {
        let (Some(found), _) = self.ordered(key).await? else { return Ok(()) };
        if controlled_by(&found.metadata, object.metadata.uid.as_deref()) {
            let of = Preconditions { uid: found.metadata.uid.clone(), resource_version: None };
            let how = DeleteParams { preconditions: Some(of), ..DeleteParams::default() };
            let api: Api<Ordered> = Api::namespaced(self.client.clone(), &key.namespace);
            match api.delete(&key.name, &how).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                done => {
                    let what = "cert-manager's Certificates";
                    done.map_err(|source| Error::Read { what, source: Box::new(source) })?;
                }
            }
        }
        Ok(())
    }

    /// By cert-manager.
    async fn order(
        self: &Arc<Self>,
        key: &Key,
        object: &Certificate,
        configs: &Configs,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (ordered, installed) = self.ordered(key).await?;
        let observed = cert_manager::Observed { certificate: object, ordered: ordered.as_ref(), installed };
        self.execute(key, object, cert_manager::plan(&observed, &configs.certmanager, now)).await
    }

    /// Whether cert-manager is there; from then on its objects are followed.
    async fn finds_cert_manager(self: &Arc<Self>) -> Result<bool, kube::Error> {
        if self.signers.cert_manager.load(Ordering::Acquire) {
            return Ok(true);
        }
        match self.client.list_api_group_resources(CERT_MANAGER).await {
            Ok(list) if list.resources.iter().any(|r| r.name == "certificates") => {}
            Ok(_) => return Ok(false),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            Err(error) => return Err(error),
        }
        self.signers.cert_manager.store(true, Ordering::Release);
        if !self.signers.followed.swap(true, Ordering::AcqRel) {
            let (world, api) = (self.world.clone(), Api::<Ordered>::all(self.client.clone()));
            let shutdown = self.shutdown.clone();
            tokio::spawn(shutdown.run_until_cancelled_owned(async move {
                let mut events = std::pin::pin!(events(api, watcher::Config::default()));
                while let Some(event) = events.next().await {
                    if let Ok(Event::Apply(found) | Event::InitApply(found) | Event::Delete(found)) = event
                        && let Some(owner) = controller_of(&found.metadata, "Certificate")
                    {
                        world.want(Kind::Certificate, &found.namespace().unwrap_or_default(), &owner.name);
                    }
                }
            }));
        }
        Ok(true)
    }
}
