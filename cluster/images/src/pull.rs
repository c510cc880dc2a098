//! From a name to an image on this machine: local content first, then a registry.

mod download;
mod push;
mod remote;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::{
    Digest, Image, ImageError, Origin, Progress, ProgressSender, Reference, RegistryAuth, Store, auth,
    manifest::{Manifest, select},
    report,
};
use remote::Remote;

/// When to ask a registry: a container's `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PullPolicy {
    /// Each time, so that a moved tag is noticed; content that is here already is not transferred again.
    Always,
    /// If the image is not here.
    #[default]
    IfNotPresent,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// The policy of a container that names none: `Always` for `:latest`, written or not, else `IfNotPresent`.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`].
    pub fn default_for(image: &str) -> Result<Self, ImageError> {
        let reference = Reference::parse(image)?;
        Ok(if reference.digest.is_none() && reference.tag_or_latest() == "latest" {
            Self::Always
        } else {
            Self::IfNotPresent
        })
    }
}

impl std::str::FromStr for PullPolicy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "Always" => Ok(Self::Always),
            "IfNotPresent" => Ok(Self::IfNotPresent),
            "Never" => Ok(Self::Never),
            other => Err(format!("pull policy {other:?} must be Always, IfNotPresent or Never")),
        }
    }
}

impl Store {
    /// Makes `image` ready to be mounted: finds it, pulls it if the policy wants or allows that, and unpacks it once.
    ///
    /// What was built, loaded or pushed under the name here is taken whatever the policy, for there is nowhere to pull it
    /// from; so is an image by digest whose content is here. Only names that were pulled before obey `Always`.
    /// `auths` are tried for the image's registry, the most specific first. Callers at the same time share one pull; dropping
    /// the future does not stop it. When all is here already, this is a look into a table.
    ///
    /// # Errors
    /// Each kind of [`ImageError`] but `Build`; see [`ImageError::reason`] for what a container's status says.
    pub async fn ensure(
        self: &Arc<Self>,
        image: &str,
        policy: PullPolicy,
        auths: &[RegistryAuth],
        progress: Option<ProgressSender>,
    ) -> Result<Image, ImageError> {
        let reference = Reference::parse(image)?;
        if let Some((digest, origin)) = self.lookup(&reference)
            && (origin == Origin::Local || policy != PullPolicy::Always || reference.digest.is_some())
        {
            match self.prepare(reference.to_string(), &digest, progress.as_ref()).await {
                Ok(image) => return Ok(image),
                Err(error) if origin == Origin::Local || policy == PullPolicy::Never => return Err(error),
                Err(error) => {
                    tracing::warn!(image, %error, "content of an image that was pulled is incomplete, pulling again");
                }
            }
        }
        if policy == PullPolicy::Never {
            return Err(ImageError::NeverPull { image: image.to_owned() });
        }
        if self.is_own(&reference.registry) {
            return Err(ImageError::NotFound {
                image: image.to_owned(),
                detail: "nothing of this name was built, loaded or pushed into the embedded registry".into(),
            });
        }
        self.pull(image, reference, auths, progress).await
    }

    async fn pull(
        self: &Arc<Self>,
        image: &str,
        reference: Reference,
        auths: &[RegistryAuth],
        progress: Option<ProgressSender>,
    ) -> Result<Image, ImageError> {
        let candidates = auth::candidates(auths, &reference);
        // Other credentials are another pull: they may succeed where these fail, and must not be lent out.
        let mut hasher = DefaultHasher::new();
        for auth in auths
            .iter()
            .filter(|_| candidates.len() > 1 || candidates[0] != oci_client::secrets::RegistryAuth::Anonymous)
        {
            (&auth.server, &auth.username, &auth.password, &auth.bearer).hash(&mut hasher);
        }
        let key = format!("{reference} {:x}", hasher.finish());
        let (store, image) = (self.clone(), image.to_owned());
        self.pulls
            .run(key, move || async move {
                report(progress.as_ref(), || Progress::Resolving { image: reference.to_string() });
                let digest =
                    fetch_with_any(&store, &image, &reference, &candidates, progress.as_ref()).await?;
                let (names, named) = (store.clone(), reference.clone());
                let recorded = tokio::task::spawn_blocking(move || {
                    names.record_pulled(&named, &digest).map(|()| digest)
                });
                let digest = recorded.await.map_err(|e| ImageError::Internal(e.to_string()))??;
                store.prepare(reference.to_string(), &digest, progress.as_ref()).await
            })
            .await
    }
}

async fn fetch_with_any(
    store: &Arc<Store>,
    image: &str,
    reference: &Reference,
    candidates: &[oci_client::secrets::RegistryAuth],
    progress: Option<&ProgressSender>,
) -> Result<Digest, ImageError> {
    let mut refused = None;
    for auth in candidates {
        let remote = Remote::new(image, reference, auth.clone(), store.is_own(&reference.registry)).await?;
        match fetch(store, &remote, progress).await {
            Err(error @ ImageError::Unauthorized { .. }) => refused = Some(error),
            other => return other,
        }
    }
    Err(refused.unwrap_or_else(|| ImageError::Internal("no credentials to try, not even none".into())))
}

/// Transfers what is not here yet. Children come before what names them, so a manifest in the blobs is a whole image.
async fn fetch(
    store: &Arc<Store>,
    remote: &Remote,
    progress: Option<&ProgressSender>,
) -> Result<Digest, ImageError> {
    let mut documents = Vec::new();
    let mut wanted = remote.reference.digest.clone();
    let top = loop {
        let bytes = match wanted.as_ref().filter(|d| store.keep_blob(d)) {
            Some(here) => store.read_blob(here)?.into(),
            None => remote.manifest(wanted.as_ref()).await?,
        };
        let manifest = Manifest::parse(&bytes, None)
            .map_err(|e| remote.refused(&format!("its manifest is not valid: {e}")))?;
        documents.push(bytes);
        match manifest {
            Manifest::Image(image) => break image,
            Manifest::Index(index) if documents.len() < 4 => {
                let chosen = select(&index, &store.platform)
                    .ok_or_else(|| store.no_platform(&remote.image, &index.manifests))?;
                wanted = Some(chosen.digest.clone());
            }
            Manifest::Index(_) => return Err(remote.refused("its indexes are nested too deep")),
        }
    };
    if let Some(foreign) = top.layers.iter().find(|l| l.is_foreign()) {
        return Err(remote.refused(&format!(
            "layer {} is of type {}, which registries do not hand out",
            foreign.digest, foreign.media_type
        )));
    }
    download::all(store, remote, std::iter::once(&top.config).chain(&top.layers), progress).await?;
    let store = store.clone();
    let place = move || {
        let mut digest = None;
        for bytes in documents.iter().rev() {
            digest = Some(store.put_blob(bytes)?);
        }
        digest.ok_or_else(|| ImageError::Internal("a pull without a manifest".into()))
    };
    tokio::task::spawn_blocking(place).await.map_err(|e| ImageError::Internal(e.to_string()))?
}
