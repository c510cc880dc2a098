//! Certificates by cert-manager: an object of its own kind for each, whose readiness is taken over.

use ebb_api::conditions::{Conditioned, ConditionedObject, READY};
use ebb_api::config::{CertManager, IssuerRef};
use ebb_api::meta::networking::CERTIFICATE_UID;
use ebb_api::networking::Certificate;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{CustomResource, ResourceExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, cause_of, controlled_by, owner};

/// The longest common name of a certificate (RFC 5280, ub-common-name, is 64; with what signers allow).
const LONGEST: usize = 63;
/// What stands before the domain in the common name of a certificate whose host is too long for it.
const SHORT: &str = "k.";
/// How long until it is asked again whether cert-manager is there.
const AGAIN: Duration = Duration::from_secs(30);
/// Reasons of cert-manager's for "not ready" that are no failure.
const UNDER_WAY: &[&str] = &["InProgress", "Pending", "TemporaryCertificate", "DoesNotExist", "Issuing"];
/// Reasons of cert-manager's for "not ready" that mean that there is nothing to be served meanwhile.
const LOST: &[&str] = &["DoesNotExist", "MissingData", "InvalidKeyPair", "InvalidCertificate", "Expired"];
/// cert-manager's condition while it makes a certificate, and, as False, when it could not.
const ISSUING: &str = "Issuing";
/// What a reference to an issuer means where it does not say.
const DEFAULT_ISSUER: (&str, &str) = ("cert-manager.io", "Issuer");

/// What is asked of cert-manager.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "cert-manager.io",
    version = "v1",
    kind = "Certificate",
    root = "Ordered",
    plural = "certificates",
    namespaced,
    status = "OrderedStatus",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct OrderedSpec {
    /// The subject's common name.
    #[serde(default)]
    pub common_name: String,
    /// All names.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Where the result goes.
    pub secret_name: String,
    /// Who signs.
    pub issuer_ref: IssuerRef,
    /// What the Secret carries besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_template: Option<SecretTemplate>,
}

/// What a Secret carries besides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What cert-manager says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderedStatus {
    /// `Ready` among others.
    #[serde(default)]
    pub conditions: Vec<Said>,
    /// When it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
}

/// A condition of cert-manager's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in one word.
    #[serde(default)]
    pub reason: String,
    /// Why, for people.
    #[serde(default)]
    pub message: String,
}

/// What the plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Certificate.
    pub certificate: &'a Certificate,
    /// cert-manager's object of its name; none while it does not exist.
    pub ordered: Option<&'a Ordered>,
    /// Whether cert-manager is installed.
    pub installed: bool,
}

/// Decides about a Certificate.
pub fn plan(observed: &Observed<'_>, config: &CertManager, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let certificate = observed.certificate;
    let mut status = certificate.status.clone().unwrap_or_default();
    status.set_observed_generation(certificate.metadata.generation);
    status.manage(now).initialize();
    let name = certificate.name_any();
    let foreign = |o: &Ordered| !controlled_by(&o.metadata, certificate.metadata.uid.as_deref());
    match (observed.ordered, order(certificate, config)) {
        _ if !observed.installed => {
            let message = "there is no cert-manager.io/v1 on this cluster: install cert-manager, or set certificate-class in config-network to another class";
            status.manage(now).mark_false(READY, "CertManagerNotInstalled", message);
            plan.again(AGAIN);
        }
        (_, Err(message)) => {
            status.manage(now).mark_false(READY, "CommonNameTooLong", &message);
        }
        (Some(ordered), _) if foreign(ordered) => {
            let message = format!("There is an existing CertManagerCertificate {name:?} that we do not own.");
            status.manage(now).mark_false(READY, "NotOwned", &message);
        }
        (live, Ok(wanted)) => {
            if live.is_none() {
                plan.note("Created", format!("Created Cert-Manager Certificate {name:?}"));
            }
            let outdated = plan.ensure(live, &wanted, Compare::Covers);
            let said = live.filter(|_| !outdated).and_then(|o| o.status.as_ref());
            let condition = |type_: &str| said.and_then(|s| s.conditions.iter().find(|c| c.type_ == type_));
            let (ready, issuing) = (condition(READY), condition(ISSUING));
            // A certificate for these hosts that is still good is served until the next is there, whoever signs that.
            let lives = status.not_after.as_ref().is_some_and(|end| end.0 > now);
            let kept =
                certificate.is_ready() && lives && !ready.is_some_and(|r| LOST.contains(&r.reason.as_str()));
            if let Some(end) = said.and_then(|s| s.not_after.clone()) {
                status.not_after = Some(end);
            } else if !kept {
                status.not_after = None;
            }
            if let Some(end) = status.not_after.as_ref().filter(|_| kept) {
                // Nobody tells when it is over.
                plan.again(
                    Duration::try_from(end.0.duration_since(now)).unwrap_or_default()
                        + Duration::from_secs(1),
                );
            }
            let failed = issuing.filter(|said| said.status == "False");
            if let Some(failed) = failed.filter(|_| kept) {
                plan.warn("IssuingFailed", cause_of(Some(&failed.reason), Some(&failed.message)));
            }
            let mut manager = status.manage(now);
            match (ready, failed) {
                (Some(said), _) if said.status == "True" => manager.mark_true(READY),
                (said, failed) if kept => {
                    let (reason, message) = failed
                        .or(said)
                        .map_or(("Reissuing", ""), |said| (said.reason.as_str(), said.message.as_str()));
                    manager.mark_true_because(READY, reason, message)
                }
                (None, _) => manager.mark_unknown(
                    READY,
                    "NoCertManagerCertCondition",
                    "The ready condition of Cert Manager Certificate does not exist.",
                ),
                // Why there is none says the attempt, not that there is none.
                (Some(_), Some(failed)) => manager.mark_false(READY, &failed.reason, &failed.message),
                (Some(said), None)
                    if said.status == "False"
                        && issuing.is_none()
                        && !UNDER_WAY.contains(&said.reason.as_str()) =>
                {
                    manager.mark_false(READY, &said.reason, &said.message)
                }
                (Some(said), None) => manager.mark_unknown(READY, &said.reason, &said.message),
            };
        }
    }
    plan.set_status(certificate.status.as_ref(), &status);
    plan
}

/// What is asked of cert-manager for a Certificate, or why nothing can be.
fn order(certificate: &Certificate, config: &CertManager) -> Result<Ordered, String> {
    let spec = &certificate.spec;
    let mut names = spec.dns_names.clone();
    let mut common_name = names.first().cloned().unwrap_or_default();
    if common_name.len() > LONGEST {
        // A host that is its own domain, as a DomainMapping's, has no shorter name that is the same owner's.
        let domain = spec.domain.as_deref().filter(|d| !d.is_empty() && *d != common_name);
        let short = domain.map(|domain| format!("{SHORT}{domain}")).filter(|name| name.len() <= LONGEST);
        common_name = short.ok_or_else(|| {
            format!("{common_name} is longer than the {LONGEST} characters that a common name may have, and so is {SHORT}<domain>")
        })?;
        names.insert(0, common_name.clone());
    }
    let mut annotations = certificate.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !CLIENT_ANNOTATIONS.contains(&key.as_str()));
    let uid = certificate.metadata.uid.clone().unwrap_or_default();
    let issuer = &config.issuer_ref;
    Ok(Ordered {
        metadata: ObjectMeta {
            name: certificate.metadata.name.clone(),
            namespace: certificate.metadata.namespace.clone(),
            labels: certificate.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(owner(certificate)),
            ..ObjectMeta::default()
        },
        spec: OrderedSpec {
            common_name,
            dns_names: names,
            secret_name: spec.secret_name.clone(),
            // Said in full: what is left out stays as it was when the order is patched.
            issuer_ref: IssuerRef {
                kind: Some(issuer.kind.clone().unwrap_or_else(|| DEFAULT_ISSUER.1.to_owned())),
                group: Some(issuer.group.clone().unwrap_or_else(|| DEFAULT_ISSUER.0.to_owned())),
                name: issuer.name.clone(),
            },
            secret_template: Some(SecretTemplate {
                labels: BTreeMap::from([(CERTIFICATE_UID.to_owned(), uid)]),
            }),
        },
        status: None,
    })
}

#[cfg(test)]
mod tests;
