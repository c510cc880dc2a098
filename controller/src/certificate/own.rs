//! Certificates by the platform's own authority: for development, and wherever all clients can be told to trust its root.
//!
//! A certificate is made when its Secret is missing, names other hosts than are asked for, was signed by a root that is no more, or has
//! used up two thirds of its life. Until the new one is there the old one is served.

use ebb_api::conditions::{Conditioned, READY};
use ebb_api::meta::networking::CERTIFICATE_UID;
use ebb_api::networking::Certificate;
use ebb_mesh::ca::{HostCertificate, inspect};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::plan::{Compare, Plan, controlled_by, label, owner};

/// How long the certificates live.
pub const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// What the plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Certificate.
    pub certificate: &'a Certificate,
    /// The Secret that it names, whoever owns it.
    pub secret: Option<&'a Secret>,
    /// The root to trust, PEM.
    pub root: &'a str,
}

/// What is to be done about the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing, until the time: when it expires, and when to renew it.
    Nothing(SystemTime, SystemTime),
    /// A certificate is needed; and why.
    Issue(&'static str),
    /// It is somebody else's.
    NotOwned,
}

/// Decides whether a certificate is needed.
pub fn due(observed: &Observed<'_>, now: SystemTime) -> Due {
    let certificate = observed.certificate;
    let Some(secret) = observed.secret else { return Due::Issue("there is none yet") };
    if !is_ours(secret, certificate) {
        return Due::NotOwned;
    }
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
    };
    let Ok(found) = inspect(text("tls.crt")) else { return Due::Issue("what is there cannot be read") };
    if text("tls.key").is_empty() {
        return Due::Issue("what is there has no key");
    }
    if text("ca.crt") != observed.root {
        return Due::Issue("the authority has another root");
    }
    let mut names = certificate.spec.dns_names.clone();
    names.sort();
    if found.names != names {
        return Due::Issue("the hosts are others");
    }
    let life = found.valid.end.duration_since(found.valid.start).unwrap_or_default();
    let renewal = found.valid.start + life * 2 / 3;
    // A clock that was set back must not end in a certificate that is not valid yet.
    if now >= renewal || now < found.valid.start {
        return Due::Issue("it is old");
    }
    Due::Nothing(found.valid.end, renewal)
}

/// Whether a Secret was made for this Certificate: by us, or by cert-manager, which leaves its Secrets without an owner, when this
/// was a Certificate of its class.
fn is_ours(secret: &Secret, certificate: &Certificate) -> bool {
    let (metadata, uid) = (&secret.metadata, certificate.metadata.uid.as_deref());
    let free = !metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true));
    controlled_by(metadata, uid) || free && uid.is_some() && label(metadata, CERTIFICATE_UID) == uid
}

/// Decides about a Certificate; `made` is what the authority signed if it was asked to.
pub fn plan(
    observed: &Observed<'_>,
    due: &Due,
    made: Option<Result<HostCertificate, String>>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let certificate = observed.certificate;
    let mut status = certificate.status.clone().unwrap_or_default();
    status.set_observed_generation(certificate.metadata.generation);
    status.manage(now).initialize();
    match (due, made) {
        (Due::NotOwned, _) => {
            let name = &certificate.spec.secret_name;
            let message = format!("There is an existing Secret {name:?} that we do not own.");
            status.manage(now).mark_false(READY, "NotOwned", &message);
        }
        (Due::Nothing(end, renewal), _) => {
            status.not_after = Timestamp::try_from(*end).ok().map(whole).map(Time);
            status.manage(now).mark_true(READY);
            let wait = renewal.duration_since(SystemTime::from(now)).unwrap_or_default();
            plan.again(wait + Duration::from_secs(1));
        }
        (Due::Issue(why), Some(Ok(made))) => {
            let until = Timestamp::try_from(made.not_after).map(whole).unwrap_or(now);
            let names = certificate.spec.dns_names.join(", ");
            plan.note("Issued", format!("A certificate for {names} until {until} was made: {why}"));
            plan.ensure(observed.secret, &secret(certificate, made, observed.root), Compare::Covers);
            // Its event brings us back. What is served till then stays good.
            if observed.secret.is_none() {
                status.manage(now).mark_unknown(READY, "Issuing", "The certificate is being made.");
            }
        }
        (Due::Issue(_), failed) => {
            let why = failed.and_then(Result::err).unwrap_or_else(|| "nobody was asked to sign".into());
            status.manage(now).mark_false(READY, "SigningFailed", &why);
        }
    }
    plan.set_status(certificate.status.as_ref(), &status);
    plan
}

/// Kubernetes writes whole seconds.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn secret(certificate: &Certificate, made: HostCertificate, root: &str) -> Secret {
    let data = [("tls.crt", made.chain), ("tls.key", made.key), ("ca.crt", root.to_owned())];
    Secret {
        metadata: ObjectMeta {
            name: Some(certificate.spec.secret_name.clone()),
            namespace: certificate.namespace(),
            labels: Some(BTreeMap::from([(
                CERTIFICATE_UID.to_owned(),
                certificate.metadata.uid.clone().unwrap_or_default(),
            )])),
            owner_references: Some(owner(certificate)),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).into()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests;
