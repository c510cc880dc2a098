//! Certificate -> the Secret with a key and a certificate for hosts, from whom its class says: ebb's own authority ([`own`]) or
//! cert-manager ([`cert_manager`]). Those of other classes are other controllers'.
//!
//! Routes, DomainMappings and namespaces ask for Certificates; what they say about them and take from them is here as well.

pub mod cert_manager;
pub mod own;

use ebb_api::conditions::{Conditioned, ConditionedObject, READY};
use ebb_api::config::{Configs, HttpProtocol};
use ebb_api::meta::networking::{
    CERT_MANAGER_CLASS, CERTIFICATE_CLASS, CERTIFICATE_TYPE, DISABLE_EXTERNAL_DOMAIN_TLS,
    EBB_CERTIFICATE_CLASS, EXTERNAL_DOMAIN, HTTP_PROTOCOL, INGRESS_CLASS,
};
use ebb_api::networking::{Certificate, CertificateSpec, HttpOption};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, owner};

/// Who makes a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The authority of this platform.
    Ebb,
    /// cert-manager.
    CertManager,
}

impl Class {
    /// The class of a Certificate; none for one that is not ours to look after.
    pub fn of(certificate: &Certificate) -> Option<Self> {
        match CERTIFICATE_CLASS.value(certificate.metadata.annotations.as_ref())? {
            EBB_CERTIFICATE_CLASS => Some(Self::Ebb),
            CERT_MANAGER_CLASS => Some(Self::CertManager),
            _ => None,
        }
    }
}

/// The Certificate that `of` asks for, for one host below `domain`.
pub(crate) fn make<K>(
    of: &K,
    label: (&str, String),
    name: &str,
    host: &str,
    domain: &str,
    configs: &Configs,
) -> Certificate
where
    K: Resource<DynamicType = ()>,
{
    let found = of.meta().annotations.as_ref();
    let class = CERTIFICATE_CLASS.value(found).unwrap_or(&configs.network.certificate_class).to_owned();
    let mut annotations = found.cloned().unwrap_or_default();
    annotations.retain(|key, _| {
        !CLIENT_ANNOTATIONS.contains(&key.as_str())
            && !CERTIFICATE_CLASS.0.contains(&key.as_str())
            && !INGRESS_CLASS.0[1..].contains(&key.as_str())
    });
    annotations.insert(CERTIFICATE_CLASS.key().into(), class);
    let labels = BTreeMap::from([
        (label.0.to_owned(), label.1),
        (CERTIFICATE_TYPE.to_owned(), EXTERNAL_DOMAIN.to_owned()),
    ]);
    Certificate {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: of.meta().namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owner(of)),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec {
            dns_names: vec![host.to_owned()],
            domain: Some(domain.to_owned()),
            secret_name: name.to_owned(),
        },
        status: None,
    }
}

/// How far a Certificate is, from the best to the worst; with why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// Its Secret can be served.
    Ready,
    /// It is not there yet, but plain HTTP is served meanwhile.
    Downgraded(String),
    /// It is not there yet.
    NotReady(String),
    /// It could not be made.
    Failed(String),
    /// The name is somebody else's.
    NotOwned(String),
}

impl Progress {
    /// Makes `live` as `wanted`, and says how far it is.
    pub(crate) fn towards(
        plan: &mut Plan,
        live: Option<&Certificate>,
        wanted: &Certificate,
        uid: Option<&str>,
        configs: &Configs,
    ) -> Self {
        let name = wanted.name_any();
        if live.is_some_and(|live| !controlled_by(&live.metadata, uid)) {
            return Self::NotOwned(format!("There is an existing certificate {name} that we don't own."));
        }
        if live.is_none() {
            plan.note(
                "Created",
                format!("Created Certificate {name:?} for {}", wanted.spec.dns_names.join(", ")),
            );
        }
        let outdated = plan.ensure(live, wanted, Compare::Exact(&[]));
        Self::of(live.filter(|_| !outdated), &name, configs)
    }

    /// How far a Certificate is.
    pub(crate) fn of(live: Option<&Certificate>, name: &str, configs: &Configs) -> Self {
        let ready = live.and_then(|live| live.condition(READY));
        let why = ready.and_then(|c| c.message.clone().or_else(|| c.reason.clone())).unwrap_or_default();
        match live {
            Some(live) if live.is_ready() => Self::Ready,
            Some(live) if live.is_failed() => {
                Self::Failed(format!("Certificate {name} fails to be provisioned: {why}"))
            }
            _ if configs.network.http_protocol == HttpProtocol::Enabled => {
                Self::Downgraded(format!("Certificate {name} is not ready downgrade HTTP."))
            }
            _ => Self::NotReady(format!("Certificate {name} is not ready: {why}")),
        }
    }

    /// Whether clients shall come by TLS.
    pub(crate) fn is_secure(&self, configs: &Configs) -> bool {
        *self == Self::Ready || configs.network.http_protocol != HttpProtocol::Enabled
    }

    /// Notes it in the condition CertificateProvisioned.
    pub(crate) fn mark(&self, status: &mut impl Conditioned, now: Timestamp) {
        let mut manager = status.manage(now);
        match self {
            Self::Ready => manager.mark_true(PROVISIONED),
            Self::Downgraded(why) => manager.mark_true_because(PROVISIONED, "HTTPDowngrade", why),
            Self::NotReady(why) => manager.mark_unknown(PROVISIONED, "CertificateNotReady", why),
            Self::Failed(why) => manager.mark_false(PROVISIONED, "CertificateProvisionFailed", why),
            Self::NotOwned(why) => manager.mark_false(PROVISIONED, "CertificateNotOwned", why),
        };
    }
}

const PROVISIONED: &str = "CertificateProvisioned";

/// Says that no certificate is asked for.
pub(crate) fn not_enabled(status: &mut impl Conditioned, why: &str, now: Timestamp) {
    status.manage(now).mark_true_because(PROVISIONED, "TLSNotEnabled", why);
}

/// Whether hosts of an object with these annotations get certificates.
pub(crate) fn wanted(annotations: Option<&BTreeMap<String, String>>, configs: &Configs) -> bool {
    let off = DISABLE_EXTERNAL_DOMAIN_TLS.value(annotations);
    configs.network.external_domain_tls
        && !off.is_some_and(|off| matches!(off, "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// What plain HTTP gets at hosts of an object with these annotations. Without certificates there is nowhere to redirect to.
pub(crate) fn http_option(
    annotations: Option<&BTreeMap<String, String>>,
    secure: bool,
    configs: &Configs,
) -> HttpOption {
    let redirect = match HTTP_PROTOCOL.value(annotations) {
        Some(value) => value.eq_ignore_ascii_case("redirected"),
        None => configs.network.http_protocol == HttpProtocol::Redirected,
    };
    if redirect && secure { HttpOption::Redirected } else { HttpOption::Enabled }
}
