//! Manifests and indexes, OCI's and Docker's, which differ in media types only.
//!
//! Source: OCI image specification v1.1 (manifest.md, image-index.md), Docker image manifest v2 schema 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// All media types a registry may answer a manifest request with.
pub(crate) const ACCEPTED: &[&str] = &[OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// A manifest larger than this is refused, as registries do (they SHOULD take 4 MiB).
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// Operating system and processor an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor, in Go's names: `amd64`, `arm64`.
    pub architecture: String,
    /// Operating system: `linux`.
    pub os: String,
    /// Variant of the processor, as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        Self::linux(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        })
    }

    /// Linux on the given processor (`amd64`, `arm64`).
    pub fn linux(architecture: &str) -> Self {
        Self { architecture: architecture.into(), os: "linux".into(), variant: None }
    }

    /// Whether this machine, being `self`, runs an image for `image`.
    fn runs(&self, image: &Platform) -> bool {
        // "v8" is what arm64 is, written or not; amd64's higher variants may not run here.
        let baseline = match image.variant.as_deref() {
            None | Some("") => true,
            Some("v8") => image.architecture == "arm64",
            Some("v1") => image.architecture == "amd64",
            other => other == self.variant.as_deref(),
        };
        image.os == self.os && image.architecture == self.architecture && baseline
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: None,
            artifact_type: None,
            annotations: None,
            platform: None,
        }
    }

    /// Layers that registries are not to hold: their bytes come from elsewhere, if at all.
    pub(crate) fn is_foreign(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains("foreign")
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageManifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageIndex {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and short-lived")]
pub(crate) enum Manifest {
    Image(ImageManifest),
    Index(ImageIndex),
}

impl Manifest {
    /// Reads a manifest of either kind; `content_type`, when known, must agree with what the document says of itself.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            schema_version: Option<u32>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(|e| format!("not a manifest: {e}"))?;
        if probe.schema_version != Some(2) {
            return Err("schemaVersion must be 2; images of schema 1 are ten years old: push it again with a current tool".into());
        }
        let content_type = content_type.map(|t| t.split(';').next().unwrap_or_default().trim());
        if let (Some(own), Some(given)) = (probe.media_type.as_deref(), content_type)
            && own != given
        {
            return Err(format!("mediaType {own:?} is not the Content-Type {given:?} it came with"));
        }
        if let Some(media_type) = probe.media_type.as_deref().or(content_type)
            && !ACCEPTED.contains(&media_type)
        {
            return Err(format!(
                "media type {media_type:?} is not an image manifest or index, OCI's or Docker's"
            ));
        }
        match (probe.config.is_some() && probe.layers.is_some(), probe.manifests.is_some()) {
            (true, false) => serde_json::from_slice(bytes).map(Self::Image).map_err(|e| e.to_string()),
            (false, true) => serde_json::from_slice(bytes).map(Self::Index).map_err(|e| e.to_string()),
            // Both would be one document that two readers understand differently (CVE-2021-41190).
            (true, true) => Err("it is both a manifest and an index".into()),
            (false, false) => Err("it has neither config and layers nor manifests".into()),
        }
    }

    pub(crate) fn media_type(&self) -> &str {
        match self {
            Self::Image(m) => m.media_type.as_deref().unwrap_or(OCI_MANIFEST),
            Self::Index(i) => i.media_type.as_deref().unwrap_or(OCI_INDEX),
        }
    }

    pub(crate) fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(m) => m.subject.as_ref(),
            Self::Index(i) => i.subject.as_ref(),
        }
    }

    /// What the manifest points at and cannot do without.
    pub(crate) fn children(&self) -> Vec<&Descriptor> {
        match self {
            Self::Image(m) => {
                std::iter::once(&m.config).chain(&m.layers).filter(|d| !d.is_foreign()).collect()
            }
            Self::Index(i) => i.manifests.iter().collect(),
        }
    }

    /// Type of the artifact for the referrers API: its own field, else its config's media type.
    pub(crate) fn artifact_type(&self) -> Option<&str> {
        match self {
            Self::Image(m) => Some(m.artifact_type.as_deref().unwrap_or(&m.config.media_type)),
            Self::Index(i) => i.artifact_type.as_deref(),
        }
    }

    pub(crate) fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Self::Image(m) => m.annotations.as_ref(),
            Self::Index(i) => i.annotations.as_ref(),
        }
    }
}

/// The entry of an index that runs on `platform`: the first that says so, else a lone entry that says nothing.
pub(crate) fn select<'a>(index: &'a ImageIndex, platform: &Platform) -> Option<&'a Descriptor> {
    let image = |d: &&Descriptor| !d.media_type.contains("index") && !d.media_type.contains("list");
    let fits = index.manifests.iter().find(|d| d.platform.as_ref().is_some_and(|p| platform.runs(p)));
    fits.or_else(|| match index.manifests.as_slice() {
        [only] if only.platform.is_none() => Some(only).filter(image),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, arch: &str, variant: Option<&str>, content: &str) -> Descriptor {
        Descriptor {
            platform: Some(Platform {
                architecture: arch.into(),
                os: os.into(),
                variant: variant.map(Into::into),
            }),
            ..Descriptor::new(OCI_MANIFEST, Digest::of(content.as_bytes()), 1)
        }
    }

    #[test]
    fn the_entry_for_the_platform_is_chosen() {
        let index = ImageIndex {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            subject: None,
            annotations: None,
            manifests: vec![
                entry("unknown", "unknown", None, "attestation"),
                entry("windows", "amd64", None, "win"),
                entry("linux", "amd64", Some("v3"), "fast"),
                entry("linux", "amd64", None, "amd"),
                entry("linux", "arm64", Some("v8"), "arm"),
            ],
        };
        let chosen = |arch| select(&index, &Platform::linux(arch)).map(|d| d.digest.clone());
        assert_eq!(chosen("amd64"), Some(Digest::of(b"amd")));
        assert_eq!(chosen("arm64"), Some(Digest::of(b"arm")));
        assert_eq!(chosen("riscv64"), None);
    }

    #[test]
    fn ambiguous_or_foreign_documents_are_refused() {
        let digest = Digest::of(b"x");
        let config = format!(r#"{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":1}}"#);
        let good = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(matches!(Manifest::parse(good.as_bytes(), Some(OCI_MANIFEST)), Ok(Manifest::Image(_))));
        for (bad, kind) in [
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#), None),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None),
            (r#"{"schemaVersion":2}"#.to_owned(), None),
            ("[]".to_owned(), None),
            (good.clone(), Some("text/plain")),
            (
                good.replace(
                    "\"schema",
                    "\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"schema",
                ),
                Some(OCI_MANIFEST),
            ),
            (good.replace(digest.as_str(), "sha256:../x"), None),
        ] {
            assert!(Manifest::parse(bad.as_bytes(), kind).is_err(), "{bad}");
        }
    }
}
