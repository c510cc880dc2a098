//! `config-network`: hosts, certificates and what lies between.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::reader::Reader;
use super::{ConfigError, Data};
use crate::meta::networking::{EBB_CERTIFICATE_CLASS, EBB_INGRESS_CLASS};
use crate::mtls::Mode;
use crate::selector;
use crate::template::{Template, Values};

const DOMAIN_FIELDS: &[&str] = &["Name", "Namespace", "Domain"];
const TAG_FIELDS: &[&str] = &["Name", "Tag"];

/// What plain HTTP gets at hosts that have TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpProtocol {
    /// It is served.
    #[default]
    Enabled,
    /// It is redirected.
    Redirected,
}

/// Where the gateway is behind a load balancer that tells by the PROXY protocol who connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// At its port for HTTP.
    pub http: bool,
    /// At its port for TLS.
    pub https: bool,
}

/// How Routes get their hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// The gateway of Ingresses without a class.
    pub ingress_class: String,
    /// Who makes certificates.
    pub certificate_class: String,
    /// The host of a Route.
    pub domain_template: Template,
    /// The first label of a tag's host.
    pub tag_template: Template,
    /// Whether external hosts get certificates.
    pub external_domain_tls: bool,
    /// Whether cluster-local hosts get certificates.
    pub cluster_local_domain_tls: bool,
    /// Namespaces that get one certificate for all their hosts; none where nothing is selected.
    pub namespace_wildcard_cert_selector: Option<LabelSelector>,
    /// What plain HTTP gets.
    pub http_protocol: HttpProtocol,
    /// How long traffic takes to move to a new latest revision.
    pub rollout_duration: Duration,
    /// Whether a DomainMapping may claim its domain itself.
    pub autocreate_cluster_domain_claims: bool,
    /// The scheme of URLs of hosts without certificates.
    pub default_external_scheme: String,
    /// A port to be put into external URLs, where the gateway has another than the scheme's own.
    pub external_url_port: Option<u16>,
    /// The same for https.
    pub external_url_tls_port: Option<u16>,
    /// Whether connections to the gateway's port for HTTP, and for TLS, begin with a PROXY protocol header.
    pub gateway_proxy_protocol: ProxyProtocol,
    /// Whether pods take plaintext, where neither revision nor namespace says so; none leaves it to the controller's settings.
    pub mtls_mode: Option<Mode>,
}

impl Default for Network {
    fn default() -> Self {
        let template =
            |t: &str, f: &[&str]| Template::parse(t, f).expect("the default templates are understood");
        Self {
            ingress_class: EBB_INGRESS_CLASS.into(),
            certificate_class: EBB_CERTIFICATE_CLASS.into(),
            domain_template: template("{{.Name}}.{{.Namespace}}.{{.Domain}}", DOMAIN_FIELDS),
            tag_template: template("{{.Tag}}-{{.Name}}", TAG_FIELDS),
            external_domain_tls: false,
            cluster_local_domain_tls: false,
            namespace_wildcard_cert_selector: None,
            http_protocol: HttpProtocol::Enabled,
            rollout_duration: Duration::ZERO,
            autocreate_cluster_domain_claims: false,
            default_external_scheme: "http".into(),
            external_url_port: None,
            external_url_tls_port: None,
            gateway_proxy_protocol: ProxyProtocol::default(),
            mtls_mode: None,
        }
    }
}

impl Network {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        for (key, older, target) in [
            ("ingress-class", "ingress.class", &mut c.ingress_class),
            ("certificate-class", "certificate.class", &mut c.certificate_class),
        ] {
            r.string(older, target);
            r.string(key, target);
        }
        for (key, fields, target) in [
            ("domain-template", DOMAIN_FIELDS, &mut c.domain_template),
            ("tag-template", TAG_FIELDS, &mut c.tag_template),
        ] {
            let Some(raw) = r.raw(key) else { continue };
            match Template::parse(raw, fields) {
                Err(message) => r.fail(key, message),
                Ok(template) => match check(&template, fields) {
                    Some(message) => r.fail(key, message),
                    None => *target = template,
                },
            }
        }
        r.switch("auto-tls", &mut c.external_domain_tls);
        r.switch("external-domain-tls", &mut c.external_domain_tls);
        r.switch("cluster-local-domain-tls", &mut c.cluster_local_domain_tls);
        if let Some(raw) = r.raw("namespace-wildcard-cert-selector").filter(|s| !s.trim().is_empty()) {
            match serde_saphyr::from_str::<LabelSelector>(raw).map_err(|e| e.to_string()).and_then(|found| {
                selector::check(&found)?;
                Ok(found)
            }) {
                Ok(found) => c.namespace_wildcard_cert_selector = Some(found),
                Err(message) => r.fail(
                    "namespace-wildcard-cert-selector",
                    format!("must be YAML of a label selector (matchLabels, matchExpressions): {message}"),
                ),
            }
        }
        // Everything inside speaks mutual TLS whatever these two say; they are read so that a typo is noticed.
        r.switch("system-internal-tls", &mut true);
        r.switch("internal-encryption", &mut true);
        // Pods are always spoken to at their own addresses.
        r.bool("enable-mesh-pod-addressability", &mut true);
        r.one_of("mesh-compatibility-mode", &["enabled", "disabled", "auto"]);
        match r.raw("http-protocol").map(str::to_ascii_lowercase).as_deref() {
            None | Some("" | "enabled") => {}
            Some("redirected") => c.http_protocol = HttpProtocol::Redirected,
            Some(other) => r.fail("http-protocol", format!("{other:?} is neither enabled nor redirected")),
        }
        let mut seconds = 0;
        r.int64("rollout-duration", &mut seconds);
        match u64::try_from(seconds) {
            Ok(seconds) => c.rollout_duration = Duration::from_secs(seconds),
            Err(_) => {
                r.fail("rollout-duration", format!("must be a number of seconds from 0, was: {seconds}"));
            }
        }
        r.bool("autocreate-cluster-domain-claims", &mut c.autocreate_cluster_domain_claims);
        r.string("default-external-scheme", &mut c.default_external_scheme);
        r.check(
            matches!(c.default_external_scheme.as_str(), "http" | "https"),
            "default-external-scheme",
            || format!("{:?} is neither http nor https", c.default_external_scheme),
        );
        for (key, target) in [
            ("external-url-port", &mut c.external_url_port),
            ("external-url-tls-port", &mut c.external_url_tls_port),
        ] {
            let Some(raw) = r.raw(key).filter(|p| !p.is_empty()) else { continue };
            match raw.parse::<u16>() {
                Ok(port) if port > 0 => *target = Some(port),
                _ => r.fail(key, format!("{raw:?} is not a port")),
            }
        }
        let mut listeners = BTreeSet::new();
        r.set("gateway-proxy-protocol", &mut listeners);
        for listener in listeners {
            match listener.as_str() {
                "http" => c.gateway_proxy_protocol.http = true,
                "https" => c.gateway_proxy_protocol.https = true,
                other => r.fail("gateway-proxy-protocol", format!("{other:?} is neither http nor https")),
            }
        }
        if let Some(raw) = r.raw("mtls-mode").filter(|mode| !mode.is_empty()) {
            match raw.parse() {
                Ok(mode) => c.mtls_mode = Some(mode),
                Err(message) => r.fail("mtls-mode", message),
            }
        }
        r.finish(c)
    }

    /// The host of the Route `name` under `domain`.
    #[must_use]
    pub fn host(
        &self,
        name: &str,
        namespace: &str,
        domain: &str,
        labels: Option<&BTreeMap<String, String>>,
        annotations: Option<&BTreeMap<String, String>>,
    ) -> String {
        let fields = BTreeMap::from([("Name", name), ("Namespace", namespace), ("Domain", domain)]);
        self.domain_template.render(&Values { fields, labels, annotations })
    }

    /// The name that a tag of the Route `name` has in place of the Route's.
    #[must_use]
    pub fn tag_name(&self, name: &str, tag: &str) -> String {
        let fields = BTreeMap::from([("Name", name), ("Tag", tag)]);
        self.tag_template.render(&Values { fields, ..Values::default() })
    }

    /// The URL of an external host.
    #[must_use]
    pub fn external_url(&self, scheme: &str, host: &str) -> String {
        let (port, own) = match scheme {
            "https" => (self.external_url_tls_port, 443),
            _ => (self.external_url_port, 80),
        };
        match port {
            Some(port) if port != own => format!("{scheme}://{host}:{port}"),
            _ => format!("{scheme}://{host}"),
        }
    }
}

fn check(template: &Template, fields: &[&str]) -> Option<String> {
    let example =
        BTreeMap::from([("Name", "foo"), ("Namespace", "bar"), ("Domain", "baz.com"), ("Tag", "v2")]);
    let keys: BTreeMap<String, String> =
        template.keys().map(|key| (key.to_owned(), "x".to_owned())).collect();
    let host = template.render(&Values { fields: example, labels: Some(&keys), annotations: Some(&keys) });
    if !crate::names::dns1123_subdomain(&host).is_empty() {
        return Some(format!("makes {host:?} of an example, which is not a host name"));
    }
    // Hosts may be made of an annotation alone, or without the namespace where there is but one. Of Services with the names that
    // tags make there can only be one, though.
    let missing = |f: &&&str| fields == TAG_FIELDS && !template.uses(f);
    fields
        .iter()
        .find(missing)
        .map(|f| format!("must use .{f}, else hosts of different objects would be the same"))
}
