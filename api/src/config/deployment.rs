//! `config-deployment`: how a revision's pods are made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
    /// The runtime class of every revision without one.
    pub runtime_class_name: Option<String>,
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
            runtime_class_name: None,
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
        c.runtime_class_name =
            r.raw("runtime-class-name").map(|n| n.trim().to_owned()).filter(|n| !n.is_empty());
        let class_ok =
            c.runtime_class_name.as_ref().is_none_or(|n| crate::names::dns1123_subdomain(n).is_empty());
        r.check(class_ok, "runtime-class-name", || "must be the name of one RuntimeClass".into());
        r.bool("pod-is-always-schedulable", &mut c.pod_is_always_schedulable);
        r.finish(c)
    }
}
