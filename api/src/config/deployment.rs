//! `config-deployment`: how a revision's pods are made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::reader::Reader;
use super::{ConfigError, Data};

/// How a revision's Deployment is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// The image of the sidecar.
    pub queue_sidecar_image: String,
    /// How long a Deployment may take to come up.
    pub progress_deadline: Duration,
    /// How long the lookup of an image's digest may take.
    pub digest_resolution_timeout: Duration,
    /// Registries whose images are taken by tag as they are.
    pub registries_skipping_tag_resolving: BTreeSet<String>,
    /// A registry to ask first, as a base URL; with `?ns=` for the registry that the image names.
    pub registry_mirror: Option<String>,
    /// Requests of the sidecar by resource.
    pub queue_sidecar_requests: BTreeMap<String, String>,
    /// Limits of the sidecar by resource.
    pub queue_sidecar_limits: BTreeMap<String, String>,
    /// Audiences of further tokens for the sidecar.
    pub queue_sidecar_token_audiences: BTreeSet<String>,
    /// Whether pods prefer nodes and zones without pods of their revision.
    pub spread_revision_over_nodes: bool,
    /// The runtime classes of revisions without one, and the labels that choose them; without labels for all others.
    pub runtime_classes: BTreeMap<String, BTreeMap<String, String>>,
    /// Whether a pod that cannot be scheduled is waited for instead of being reported.
    pub pod_is_always_schedulable: bool,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            queue_sidecar_image: String::new(),
            progress_deadline: Duration::from_secs(600),
            digest_resolution_timeout: Duration::from_secs(10),
            registries_skipping_tag_resolving: ["kind.local", "ko.local", "dev.local"]
                .map(String::from)
                .into(),
            registry_mirror: None,
            queue_sidecar_requests: BTreeMap::from([("cpu".into(), "25m".into())]),
            queue_sidecar_limits: BTreeMap::new(),
            queue_sidecar_token_audiences: BTreeSet::new(),
            spread_revision_over_nodes: true,
            runtime_classes: BTreeMap::new(),
            pod_is_always_schedulable: false,
        }
    }
}

impl Deployment {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        r.string("queue-sidecar-image", &mut c.queue_sidecar_image);
        r.check(!c.queue_sidecar_image.trim().is_empty(), "queue-sidecar-image", || {
            "cannot be empty or unset".into()
        });
        r.duration("progress-deadline", &mut c.progress_deadline);
        r.check(!c.progress_deadline.is_zero(), "progress-deadline", || {
            "cannot be a non-positive duration".into()
        });
        r.check(c.progress_deadline.subsec_nanos() == 0, "progress-deadline", || {
            "must be rounded to a whole second".into()
        });
        r.duration("digest-resolution-timeout", &mut c.digest_resolution_timeout);
        r.check(!c.digest_resolution_timeout.is_zero(), "digest-resolution-timeout", || {
            "cannot be a non-positive duration".into()
        });
        r.set("registries-skipping-tag-resolving", &mut c.registries_skipping_tag_resolving);
        c.registry_mirror = r
            .raw("registry-mirror")
            .map(|m| m.trim().trim_end_matches('/').to_owned())
            .filter(|m| !m.is_empty());
        let mirror_ok =
            c.registry_mirror.as_ref().is_none_or(|m| m.starts_with("http://") || m.starts_with("https://"));
        r.check(mirror_ok, "registry-mirror", || "must be a URL that begins with http:// or https://".into());
        for (resource, key) in
            [("cpu", "cpu"), ("memory", "memory"), ("ephemeral-storage", "ephemeral-storage")]
        {
            for (kind, map) in
                [("request", &mut c.queue_sidecar_requests), ("limit", &mut c.queue_sidecar_limits)]
            {
                let mut found = None;
                r.quantity(&format!("queue-sidecar-{key}-{kind}"), &mut found);
                map.extend(found.map(|q| (resource.to_owned(), q)));
            }
        }
        r.set("queue-sidecar-token-audiences", &mut c.queue_sidecar_token_audiences);
        if let Some(affinity) = r.raw("default-affinity-type") {
            match affinity {
                "none" => c.spread_revision_over_nodes = false,
                "prefer-spread-revision-over-nodes" | "" => {}
                other => r.fail(
                    "default-affinity-type",
                    format!("unsupported value {other:?}; use none or prefer-spread-revision-over-nodes"),
                ),
            }
        }
        if let Some(raw) = r.raw("runtime-class-name").filter(|raw| !raw.trim().is_empty()) {
            match runtime_classes(raw) {
                Ok(classes) => c.runtime_classes = classes,
                Err(message) => r.fail("runtime-class-name", message),
            }
        }
        // The sidecar trusts the mesh's own roots, and speaks TLS 1.3.
        for key in [
            "queue-sidecar-rootca",
            "queue-sidecar-tls-min-version",
            "queue-sidecar-tls-max-version",
            "queue-sidecar-tls-cipher-suites",
            "queue-sidecar-tls-curve-preferences",
        ] {
            r.raw(key);
        }
        r.bool("pod-is-always-schedulable", &mut c.pod_is_always_schedulable);
        r.finish(c)
    }

    /// The runtime class of a revision with these labels: of all that match the one with the most labels, of those the first by name.
    #[must_use]
    pub fn runtime_class(&self, labels: Option<&BTreeMap<String, String>>) -> Option<String> {
        let has = |(key, value): (&String, &String)| labels.and_then(|l| l.get(key)) == Some(value);
        let matching = self.runtime_classes.iter().filter(|(_, selector)| selector.iter().all(has));
        matching
            .max_by_key(|(name, selector)| (selector.len(), std::cmp::Reverse(*name)))
            .map(|(name, _)| name.clone())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Classes {
    ForAll(String),
    Chosen(BTreeMap<String, Option<Chosen>>),
}

#[derive(Deserialize)]
struct Chosen {
    #[serde(default)]
    selector: Option<BTreeMap<String, String>>,
}

/// Reads one name for all, or YAML of names, each with a selector or with nothing.
fn runtime_classes(raw: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    let classes: BTreeMap<_, _> = match serde_saphyr::from_str::<Classes>(raw) {
        Ok(Classes::ForAll(name)) => [(name, BTreeMap::new())].into(),
        Ok(Classes::Chosen(classes)) => classes
            .into_iter()
            .map(|(name, chosen)| (name, chosen.and_then(|c| c.selector).unwrap_or_default()))
            .collect(),
        Err(error) => return Err(format!("is neither a name nor YAML of names with selectors: {error}")),
    };
    match classes.keys().find(|name| !crate::names::dns1123_subdomain(name).is_empty()) {
        Some(bad) => Err(format!("{bad:?} cannot be the name of a RuntimeClass")),
        None => Ok(classes),
    }
}
