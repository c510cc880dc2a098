//! `config-deployment`: how a revision's pods are made.

use serde::Deserialize;
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
    /// Runtime classes of revisions without one, each with the labels that a revision must have for it.
    pub runtime_class_names: BTreeMap<String, BTreeMap<String, String>>,
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
            runtime_class_names: BTreeMap::new(),
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
        if let Some(raw) = r.raw("runtime-class-name").map(str::trim).filter(|raw| !raw.is_empty()) {
            match runtime_classes(raw) {
                Ok(classes) => c.runtime_class_names = classes,
                Err(message) => r.fail("runtime-class-name", message),
            }
        }
        r.bool("pod-is-always-schedulable", &mut c.pod_is_always_schedulable);
        r.finish(c)
    }

    /// The runtime class of a revision with these labels: of all whose selectors match, the one with the most labels, and of equals the
    /// first by name.
    #[must_use]
    pub fn runtime_class(&self, labels: Option<&BTreeMap<String, String>>) -> Option<String> {
        let has = |(k, v): (&String, &String)| labels.and_then(|l| l.get(k)) == Some(v);
        let fitting = self.runtime_class_names.iter().filter(|(_, selector)| selector.iter().all(has));
        let mut best: Option<(&String, usize)> = None;
        for (class, selector) in fitting {
            if best.is_none_or(|(_, most)| selector.len() > most) {
                best = Some((class, selector.len()));
            }
        }
        best.map(|(class, _)| class.clone())
    }
}

/// A name alone, or YAML: each class with the labels that select it.
fn runtime_classes(raw: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    #[derive(Default, Deserialize)]
    struct Choice {
        #[serde(default)]
        selector: Option<BTreeMap<String, String>>,
    }
    let valid = |name: &str| crate::names::dns1123_subdomain(name).is_empty();
    if valid(raw) {
        return Ok(BTreeMap::from([(raw.to_owned(), BTreeMap::new())]));
    }
    let found: BTreeMap<String, Option<Choice>> = serde_saphyr::from_str(raw)
        .map_err(|e| format!("is neither a name nor YAML of classes, each with a selector: {e}"))?;
    match found.keys().find(|name| !valid(name)) {
        Some(name) => Err(format!("{name:?} is not the name of a RuntimeClass")),
        None => Ok(found
            .into_iter()
            .map(|(name, choice)| (name, choice.unwrap_or_default().selector.unwrap_or_default()))
            .collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(raw: &str) -> Result<Deployment, Vec<ConfigError>> {
        let data = [("queue-sidecar-image", "q"), ("runtime-class-name", raw)];
        Deployment::parse(&data.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    #[test]
    fn runtime_classes_by_labels() {
        let labels = BTreeMap::from([("safe".to_owned(), "yes".to_owned())]);
        let config = classes("kata: {}\ngvisor:\n  selector:\n    safe: \"yes\"\n").expect("good");
        assert_eq!(config.runtime_class(Some(&labels)).as_deref(), Some("gvisor"));
        assert_eq!(config.runtime_class(None).as_deref(), Some("kata"));
        assert_eq!(classes("gvisor").expect("good").runtime_class(None).as_deref(), Some("gvisor"));
        assert_eq!(classes("").expect("good").runtime_class(Some(&labels)), None);
        for bad in ["Not_A_Name: {}", "a: [", "- a"] {
            assert_eq!(classes(bad).expect_err(bad)[0].key, "runtime-class-name");
        }
    }
}
