//! Where images come from, as the node needs it: a narrow trait, so that tests bring their own.

pub(crate) mod collect;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cluster_images::{Origin, Progress, PullPolicy, RegistryAuth, Store};

/// When an image is fetched although it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Look at the registry each time.
    Always,
    /// Only when it is not here.
    IfNotPresent,
    /// Never fetch.
    Never,
}

/// An image that is here and unpacked.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// What the status shows as image id: `name@sha256:...`.
    pub id: String,
    /// Entrypoint of its configuration.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// User, in any of the forms Dockerfiles have.
    pub user: String,
    /// Working folder.
    pub working_dir: String,
    /// The signal that asks it to end, a name or a number.
    pub stop_signal: Option<String>,
    /// Unpacked layers, top first.
    pub layers: Vec<PathBuf>,
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFailure {
    /// The reason as a kubelet writes it: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`.
    pub reason: String,
    /// Cause and mend.
    pub message: String,
}

/// An image that could be fetched again, by one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// What [`ImageSource::discard`] takes.
    pub name: String,
    /// `sha256:...`
    pub digest: String,
    /// How much of the disk it takes, about.
    pub bytes: u64,
    /// Since when it has been here.
    pub since: jiff::Timestamp,
}

/// Gives images.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The image, fetched if `policy` says so. `secrets` are the contents of `.dockerconfigjson` secrets.
    /// `pulling` is called once if something has to be fetched.
    async fn ensure(
        &self,
        image: &str,
        policy: Policy,
        secrets: &[Vec<u8>],
        pulling: Box<dyn FnOnce() + Send>,
    ) -> Result<Image, ImageFailure>;

    /// The images that may go when the disk is full.
    fn cached(&self) -> Vec<Cached> {
        Vec::new()
    }

    /// Forgets names and removes content that nothing leads to any more, but none of the images `in_use` (digests). How many bytes
    /// that freed.
    async fn discard(&self, names: &[String], in_use: &[String]) -> Result<u64, String> {
        let _ = (names, in_use);
        Ok(0)
    }
}

#[async_trait]
impl ImageSource for Arc<cluster_images::Store> {
    async fn ensure(
        &self,
        image: &str,
        policy: Policy,
        secrets: &[Vec<u8>],
        pulling: Box<dyn FnOnce() + Send>,
    ) -> Result<Image, ImageFailure> {
        let policy = match policy {
            Policy::Always => PullPolicy::Always,
            Policy::IfNotPresent => PullPolicy::IfNotPresent,
            Policy::Never => PullPolicy::Never,
        };
        // A secret that cannot be read is as good as none: the registry's refusal tells the user.
        let auths: Vec<RegistryAuth> =
            secrets.iter().filter_map(|s| RegistryAuth::from_dockerconfigjson(s).ok()).flatten().collect();
        let (progress, mut steps) = tokio::sync::mpsc::unbounded_channel();
        let announcer = tokio::spawn(async move {
            while let Some(step) = steps.recv().await {
                if matches!(step, Progress::Resolving { .. } | Progress::Downloading { .. }) {
                    return pulling();
                }
            }
        });
        let ensured = Store::ensure(self, image, policy, &auths, Some(progress)).await;
        // All steps are sent by now: the event must not come after the one that says that the image is here.
        let _ = announcer.await;
        let found = ensured.map_err(|error| ImageFailure {
            reason: error.reason().to_owned(),
            message: error.to_string(),
        })?;
        let config = found.config.config().clone().unwrap_or_default();
        let (name, _) = found.reference.split_once('@').unwrap_or((&found.reference, ""));
        let name = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => name,
        };
        Ok(Image {
            id: format!("{name}@{}", found.digest),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone(),
            layers: found.layers,
        })
    }

    fn cached(&self) -> Vec<Cached> {
        let pulled = self.list().into_iter().filter(|image| image.origin == Origin::Pulled);
        let cached = pulled.map(|image| Cached {
            name: match image.tag.as_str() {
                "" => format!("{}@{}", image.repository, image.digest),
                tag => format!("{}:{tag}", image.repository),
            },
            digest: image.digest,
            bytes: image.size,
            since: image.created.parse().unwrap_or_default(),
        });
        cached.collect()
    }

    async fn discard(&self, names: &[String], in_use: &[String]) -> Result<u64, String> {
        let (store, names) = (Arc::clone(self), names.to_vec());
        let forget = move || names.iter().try_for_each(|name| store.forget_pulled(name).map(drop));
        let forgotten = tokio::task::spawn_blocking(forget).await;
        forgotten.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        // Manifests without a name here may be what a Revision names by digest: they stay.
        let collected = self.collect_garbage(in_use, false).await.map_err(|error| error.to_string())?;
        Ok(collected.bytes)
    }
}
