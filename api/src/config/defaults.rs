//! `config-defaults`: what a revision gets where its user said nothing.

use std::collections::BTreeMap;

use super::reader::Reader;
use super::{ConfigError, Data};
use crate::template::{Template, Values};

/// Defaults and bounds of revisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// timeoutSeconds.
    pub revision_timeout_seconds: i64,
    /// The longest timeoutSeconds allowed.
    pub max_revision_timeout_seconds: i64,
    /// responseStartTimeoutSeconds; the same as the timeout unless set.
    pub revision_response_start_timeout_seconds: i64,
    /// idleTimeoutSeconds; 0 for none.
    pub revision_idle_timeout_seconds: i64,
    /// containerConcurrency; 0 for no limit.
    pub container_concurrency: i64,
    /// The highest containerConcurrency allowed.
    pub container_concurrency_max_limit: i64,
    /// Whether containerConcurrency may be 0.
    pub allow_container_concurrency_zero: bool,
    /// enableServiceLinks; none leaves it to Kubernetes.
    pub enable_service_links: Option<bool>,
    /// Requests and limits by resource (cpu, memory, ephemeral-storage).
    pub requests: BTreeMap<String, String>,
    /// Limits by resource.
    pub limits: BTreeMap<String, String>,
    /// Names a container without a name.
    pub container_name: Template,
    /// Names an init container without a name.
    pub init_container_name: Template,
}

impl Default for Defaults {
    fn default() -> Self {
        let text = |t: &str| {
            Template::parse(t, &["Name", "Namespace"]).expect("the default templates are plain text")
        };
        Self {
            revision_timeout_seconds: 300,
            max_revision_timeout_seconds: 600,
            revision_response_start_timeout_seconds: 300,
            revision_idle_timeout_seconds: 0,
            container_concurrency: 0,
            container_concurrency_max_limit: 1000,
            allow_container_concurrency_zero: true,
            enable_service_links: Some(false),
            requests: BTreeMap::new(),
            limits: BTreeMap::new(),
            container_name: text("user-container"),
            init_container_name: text("init-container"),
        }
    }
}

impl Defaults {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        r.int64("revision-timeout-seconds", &mut c.revision_timeout_seconds);
        r.int64("max-revision-timeout-seconds", &mut c.max_revision_timeout_seconds);
        c.revision_response_start_timeout_seconds = c.revision_timeout_seconds;
        r.int64("revision-response-start-timeout-seconds", &mut c.revision_response_start_timeout_seconds);
        r.int64("revision-idle-timeout-seconds", &mut c.revision_idle_timeout_seconds);
        r.int64("container-concurrency", &mut c.container_concurrency);
        r.int64("container-concurrency-max-limit", &mut c.container_concurrency_max_limit);
        r.bool("allow-container-concurrency-zero", &mut c.allow_container_concurrency_zero);
        if let Some(raw) = r.raw("enable-service-links") {
            c.enable_service_links = match raw.to_ascii_lowercase().as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            };
        }
        for (resource, key) in
            [("cpu", "cpu"), ("memory", "memory"), ("ephemeral-storage", "ephemeral-storage")]
        {
            for (kind, map) in [("request", &mut c.requests), ("limit", &mut c.limits)] {
                let mut found = None;
                r.quantity(&format!("revision-{key}-{kind}"), &mut found);
                map.extend(found.map(|q| (resource.to_owned(), q)));
            }
        }
        for (key, target) in [
            ("container-name-template", &mut c.container_name),
            ("init-container-name-template", &mut c.init_container_name),
        ] {
            match r.raw(key).map(|raw| Template::parse(raw, &["Name", "Namespace"])) {
                Some(Ok(template)) => *target = template,
                Some(Err(message)) => r.fail(key, message),
                None => {}
            }
        }
        let (timeout, longest) = (c.revision_timeout_seconds, c.max_revision_timeout_seconds);
        r.check((0..=longest).contains(&timeout), "revision-timeout-seconds", || {
            format!("({timeout}) cannot be negative or greater than max-revision-timeout-seconds ({longest})")
        });
        let start = c.revision_response_start_timeout_seconds;
        r.check((0..=timeout.max(0)).contains(&start), "revision-response-start-timeout-seconds", || {
            format!("({start}) cannot be negative or greater than revision-timeout-seconds ({timeout})")
        });
        let idle = c.revision_idle_timeout_seconds;
        r.check((0..=timeout.max(0)).contains(&idle), "revision-idle-timeout-seconds", || {
            format!("({idle}) cannot be negative or greater than revision-timeout-seconds ({timeout})")
        });
        let limit = c.container_concurrency_max_limit;
        r.check(limit >= 1, "container-concurrency-max-limit", || {
            format!("expected 1 <= {limit} <= {}", i32::MAX)
        });
        let concurrency = c.container_concurrency;
        r.check((0..=limit).contains(&concurrency), "container-concurrency", || {
            format!("expected 0 <= {concurrency} <= {limit}")
        });
        r.finish(c)
    }

    /// The name of a container without one, for the revision template of the object `name`.
    #[must_use]
    pub fn container_name_for(&self, init: bool, name: &str, namespace: &str) -> String {
        let template = if init { &self.init_container_name } else { &self.container_name };
        let values = Values {
            fields: BTreeMap::from([("Name", name), ("Namespace", namespace)]),
            ..Values::default()
        };
        template.render(&values)
    }
}
