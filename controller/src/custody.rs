//! A key that signs certificates, kept in a Secret that all replicas share, and replaced by another one long before it is too old.
//!
//! The first replica makes it; of several, one write succeeds and all take what that one made. Each follows the Secret, so that all sign
//! with the same. A replacement takes the steps of [`ebb_mesh::ca::rotation`]; whichever replica sees that a step is due writes it, on
//! top of the version that it knows, so that a step is taken once. What must trust the key (the mesh's workloads, the API server) is
//! told of the new root a whole step before it signs, and of the old one until a step after.
//!
//! A Secret that a user made, with an intermediate of their own, has no time of issue: it is used as it is, followed, and never replaced.

use ebb_component::watch::{Change, follow};
use ebb_mesh::ca::rotation::{self, Rotation, Step, Stored};
use ebb_mesh::ca::{Authority, MaterialPem};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Renewal;
use crate::error::Error;
use crate::secrets::{self, Data};

/// How often the clock is asked whether a step is due, at most.
const LOOK: Duration = Duration::from_secs(3600);
/// Between two attempts to write a step.
const RETRY: Duration = Duration::from_secs(5);

/// The content of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    stored: Stored,
    /// When the newest root was made; none when it is not ours.
    issued: Option<SystemTime>,
}

impl Content {
    fn read(name: &str, data: &Data) -> Result<Self, Error> {
        let damaged = |message: String| Error::Secret { name: name.into(), message };
        let text = |key: &str| data.get(key).and_then(|v| String::from_utf8(v.clone()).ok());
        let field = |key: &str| text(key).ok_or_else(|| damaged(format!("{key} is missing or no text")));
        let current =
            MaterialPem { chain: field("tls.crt")?, key: field("tls.key")?, roots: field("ca.crt")? };
        let rotation: Option<Rotation> = match text("rotation") {
            None => None,
            Some(json) => Some(
                serde_json::from_str(&json)
                    .map_err(|error| damaged(format!("rotation cannot be read: {error}")))?,
            ),
        };
        let issued = text("issued").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let issued = issued.map(|since| UNIX_EPOCH + since);
        Ok(Self { stored: Stored { current, rotation }, issued })
    }

    fn write(&self) -> Result<Data, Error> {
        let mut data = Data::from([
            ("tls.crt".to_owned(), self.stored.current.chain.clone().into_bytes()),
            ("tls.key".to_owned(), self.stored.current.key.clone().into_bytes()),
            ("ca.crt".to_owned(), self.stored.current.roots.clone().into_bytes()),
        ]);
        if let Some(rotation) = &self.stored.rotation {
            data.insert("rotation".to_owned(), serde_json::to_vec(rotation).map_err(Error::Json)?);
        }
        if let Some(issued) = self.issued {
            let seconds = issued.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            data.insert("issued".to_owned(), seconds.to_string().into_bytes());
        }
        Ok(data)
    }

    fn new(trust_domain: &str, now: SystemTime) -> Result<Self, Error> {
        let current = MaterialPem::generate_root(trust_domain, now)?;
        Ok(Self { stored: Stored { current, rotation: None }, issued: Some(now) })
    }
}

/// What is to be done about a key.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Nothing, before this long.
    After(Duration),
    /// Begin to replace it.
    Begin,
    /// The next step of a replacement.
    Store(Box<Stored>),
}

/// Decides.
fn due(content: &Content, renewal: &Renewal, now: SystemTime) -> Due {
    let after = |at: SystemTime| Due::After(at.duration_since(now).unwrap_or_default());
    match rotation::plan(&content.stored, renewal.step, now) {
        Step::Store(stored) => Due::Store(stored),
        Step::Wait(Some(at)) => after(at),
        Step::Wait(None) => match content.issued.zip(renewal.after).map(|(issued, age)| issued + age) {
            Some(at) if at <= now => Due::Begin,
            Some(at) => after(at),
            None => Due::After(LOOK),
        },
    }
}

/// The key in force: see the module's documentation. Shared by `Arc`.
pub struct Custody {
    api: Api<Secret>,
    name: &'static str,
    authority: Arc<Authority>,
    renewal: Renewal,
    known: Mutex<Option<(Secret, Content)>>,
    changed: watch::Sender<()>,
}

impl Custody {
    /// Takes the key of the Secret `name`, or makes it. Waits for the API server.
    ///
    /// # Errors
    /// When the Secret is damaged.
    pub(crate) async fn open(
        client: &Client,
        namespace: &str,
        name: &'static str,
        trust_domain: &str,
        lifetime: Duration,
        renewal: &Renewal,
    ) -> Result<Arc<Self>, Error> {
        let make = || Content::new(trust_domain, SystemTime::now())?.write();
        let mut data = secrets::ensure(client, namespace, name, make).await?;
        if data.contains_key("ca-cert.pem") && !data.contains_key("tls.crt") {
            // As earlier versions kept the webhooks' key, whose only user is told of the new one anyway.
            data = make()?;
            secrets::replace(client, namespace, name, &data).await?;
        }
        let content = Content::read(name, &data)?;
        let authority = Authority::new(trust_domain, lifetime, &rotation::signing(&content.stored)?)?;
        Ok(Arc::new(Self {
            api: Api::namespaced(client.clone(), namespace),
            name,
            authority: Arc::new(authority),
            renewal: renewal.clone(),
            known: Mutex::new(None),
            changed: watch::Sender::new(()),
        }))
    }

    /// Signs with the key in force.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Told whenever the roots to trust may be others.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Follows the Secret and takes the steps that are due, until `shutdown`.
    pub(crate) async fn keep(&self, shutdown: CancellationToken) {
        let of_secret = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut news = self.changed();
        let watched = follow(self.api.clone(), of_secret, shutdown.clone(), |change| match change {
            Change::Apply(secret) => self.take(secret),
            Change::Gone { .. } => {
                tracing::error!(
                    secret = self.name,
                    "the Secret was deleted; its key stays in force until the last controller ends"
                );
            }
            Change::Synced => {}
        });
        let steps = async {
            loop {
                let wait = self.step().await.unwrap_or_else(|error| {
                    tracing::warn!(secret = self.name, %error, "the next step of replacing a key could not be taken yet");
                    RETRY
                });
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = news.changed() => {}
                }
            }
        };
        tokio::select! {
            () = watched => {}
            () = steps => {}
        }
    }

    /// Takes over what is in the Secret.
    fn take(&self, secret: Secret) {
        let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
        let content = match Content::read(self.name, &data) {
            Ok(content) => content,
            Err(error) => return tracing::error!(%error, "what was in force stays"),
        };
        let replaced = rotation::signing(&content.stored).and_then(|pem| self.authority.replace(&pem));
        if let Err(error) = replaced {
            return tracing::error!(secret = self.name, %error, "the key cannot be used; the one in force stays");
        }
        *self.known.lock() = Some((secret, content));
        self.changed.send_replace(());
    }

    /// Takes the step that is due; answers when to look again.
    async fn step(&self) -> Result<Duration, Error> {
        let Some((secret, content)) = self.known.lock().clone() else { return Ok(LOOK) };
        let now = SystemTime::now();
        let (next, what) = match due(&content, &self.renewal, now) {
            Due::After(wait) => return Ok(wait.clamp(Duration::from_millis(100), LOOK)),
            Due::Store(stored) => {
                let what =
                    if stored.rotation.is_some() { "the new key signs" } else { "the old key is forgotten" };
                (Content { stored: *stored, issued: content.issued }, what)
            }
            Due::Begin => {
                let root = MaterialPem::generate_root(self.authority.trust_domain(), now)?;
                let Some(stored) = rotation::begin(&content.stored, root, now) else { return Ok(LOOK) };
                (Content { stored, issued: Some(now) }, "a new key is announced")
            }
        };
        let data: BTreeMap<String, ByteString> =
            next.write()?.into_iter().map(|(k, v)| (k, ByteString(v))).collect();
        // With the version that was read: of several replicas one takes this step.
        let secret = Secret { data: Some(data), ..secret };
        match self.api.replace(self.name, &PostParams::default(), &secret).await {
            Ok(written) => {
                tracing::info!(secret = written.name_any(), "{what}");
                self.take(written);
                Ok(Duration::ZERO)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(RETRY),
            Err(source) => {
                let object = format!("Secret {}", self.name);
                Err(Error::Write { verb: "change", object, source: Box::new(source) })
            }
        }
    }
}

impl std::fmt::Debug for Custody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Custody").field("secret", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::panic)] // a test ends that way
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn renewal() -> Renewal {
        Renewal { after: Some(365 * DAY), step: DAY }
    }

    #[test]
    fn a_key_is_replaced_by_and_by_when_it_is_old() {
        let born = UNIX_EPOCH + 10_000 * DAY;
        let mut content = Content::new("cluster.local", born).expect("a key");
        assert_eq!(due(&content, &renewal(), born), Due::After(365 * DAY));
        let old = born + 365 * DAY;
        assert_eq!(due(&content, &renewal(), old), Due::Begin);
        let never = Renewal { after: None, step: DAY };
        assert_eq!(due(&content, &never, old), Due::After(LOOK));
        let next = MaterialPem::generate_root("cluster.local", old).expect("a key");
        content = Content {
            stored: rotation::begin(&content.stored, next.clone(), old).expect("begun"),
            issued: Some(old),
        };
        let mut now = old;
        for _ in 0..2 {
            let Due::After(wait) = due(&content, &renewal(), now) else { panic!("too early") };
            assert!(wait > DAY);
            now += wait;
            let Due::Store(stored) = due(&content, &renewal(), now) else { panic!("due") };
            content.stored = *stored;
        }
        assert_eq!(content.stored, Stored { current: next, rotation: None });
        assert_eq!(due(&content, &renewal(), old + DAY), Due::After(364 * DAY));
    }

    #[test]
    fn a_secret_says_everything() {
        let now = UNIX_EPOCH + 10_000 * DAY;
        let mut content = Content::new("cluster.local", now).expect("a key");
        let next = MaterialPem::generate_root("cluster.local", now).expect("a key");
        content.stored = rotation::begin(&content.stored, next, now).expect("begun");
        let data = content.write().expect("written");
        assert_eq!(Content::read("x", &data).expect("read"), content);
    }

    #[test]
    fn a_users_own_key_is_never_replaced() {
        let now = UNIX_EPOCH + 10_000 * DAY;
        let mut data = Content::new("cluster.local", now).expect("a key").write().expect("written");
        data.remove("issued");
        let content = Content::read("x", &data).expect("read");
        assert_eq!(due(&content, &renewal(), now + 3650 * DAY), Due::After(LOOK));
        data.remove("tls.key");
        let error = Content::read("ebb-mesh-ca", &data).expect_err("damaged").to_string();
        assert!(error.contains("ebb-mesh-ca") && error.contains("tls.key"), "{error}");
    }
}
