use ebb_mesh::ca::{Authority, MaterialPem};
use serde_json::json;
use std::time::UNIX_EPOCH;

use super::*;
use crate::plan::Change;
use crate::testing::{condition, object, pair, summary};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn day(n: u32) -> SystemTime {
    UNIX_EPOCH + (20_000 + n) * DAY
}

fn at(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).expect("a time")
}

fn certificate(hosts: &[&str]) -> Certificate {
    object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Certificate",
        "metadata": {"name": "route-1", "namespace": "default", "uid": "cert-uid", "generation": 1},
        "spec": {"dnsNames": hosts, "secretName": "route-1"}
    }))
}

struct Signer {
    authority: Authority,
    root: String,
}

impl Signer {
    fn new() -> Self {
        let material = MaterialPem::generate_root("domains", day(0)).expect("a root");
        let authority = Authority::new("domains", LIFETIME, &material).expect("an authority");
        Self { root: authority.roots_pem(), authority }
    }

    /// What the plan does, and the Secret after it.
    fn run(
        &self,
        certificate: &Certificate,
        secret: Option<&Secret>,
        now: SystemTime,
    ) -> (Plan, Option<Secret>) {
        let observed = Observed { certificate, secret, root: &self.root };
        let due = due(&observed, now);
        let made = matches!(due, Due::Issue(_)).then(|| {
            let made = self.authority.certify_hosts(&certificate.spec.dns_names, now);
            made.map_err(|error| error.to_string())
        });
        let plan = plan(&observed, &due, made, at(now));
        let after = plan.then.first().map(|change| match change {
            Change::Create(_, body) => object(body.clone()),
            Change::Patch(_, patch) => {
                let mut value = serde_json::to_value(secret).expect("JSON");
                value["data"] = patch["data"].clone();
                object(value)
            }
            Change::Delete(..) => panic!("nothing is deleted"),
        });
        (plan, after.or_else(|| secret.cloned()))
    }
}

#[test]
fn it_is_made_then_ready_then_renewed_in_time() {
    let signer = Signer::new();
    let certificate = certificate(&["b.example.com", "a.example.com"]);
    let (plan, secret) = signer.run(&certificate, None, day(1));
    assert_eq!(summary(&plan), ["create Secret/route-1"]);
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "Issuing"));
    let secret = secret.expect("a Secret");
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(secret.metadata.labels.as_ref().expect("labels")[CERTIFICATE_UID], "cert-uid");
    assert_eq!(secret.data.as_ref().expect("data")["ca.crt"].0, signer.root.as_bytes());

    let (plan, same) = signer.run(&certificate, Some(&secret), day(2));
    assert_eq!((summary(&plan), same.as_ref()), (Vec::new(), Some(&secret)));
    assert_eq!(condition(&plan, "Ready"), pair("True", ""));
    let status = plan.status.clone().expect("a status");
    assert_eq!(status["notAfter"], json!(Time(at(day(91)))));
    // Two thirds of 90 days, from when it was made.
    let wait = plan.requeue_after.expect("a time");
    assert!((58 * DAY..60 * DAY).contains(&wait), "{wait:?}");

    let mut ready = certificate.clone();
    ready.status = Some(object(status));
    let (plan, renewed) = signer.run(&ready, Some(&secret), day(2) + wait);
    assert_eq!(summary(&plan), ["patch Secret/route-1"]);
    assert_eq!(plan.status, None, "what is served stays good meanwhile");
    let (plan, _) = signer.run(&ready, renewed.as_ref(), day(2) + wait);
    assert_eq!(summary(&plan), [""; 0]);
    assert_ne!(plan.status.expect("a status")["notAfter"], json!(Time(at(day(91)))));
}

#[test]
fn why_another_one_is_needed() {
    let signer = Signer::new();
    let wanted = certificate(&["a.example.com"]);
    let (_, secret) = signer.run(&wanted, None, day(1));
    let secret = secret.expect("a Secret");
    let root = signer.root.as_str();
    let due = |certificate: &Certificate, secret: &Secret, root: &str, now| {
        super::due(&Observed { certificate, secret: Some(secret), root }, now)
    };
    assert!(matches!(due(&wanted, &secret, root, day(1)), Due::Nothing(..)));
    assert_eq!(
        due(&certificate(&["b.example.com"]), &secret, root, day(1)),
        Due::Issue("the hosts are others")
    );
    let other = Signer::new();
    assert_eq!(due(&wanted, &secret, &other.root, day(1)), Due::Issue("the authority has another root"));
    assert_eq!(due(&wanted, &secret, root, day(200)), Due::Issue("it is old"));
    assert_eq!(due(&wanted, &secret, root, day(0)), Due::Issue("it is old"));
    for (key, value) in [("tls.crt", &b"x"[..]), ("tls.key", b"")] {
        let mut broken = secret.clone();
        broken.data.get_or_insert_default().insert(key.to_owned(), ByteString(value.to_vec()));
        assert!(matches!(due(&wanted, &broken, root, day(1)), Due::Issue(_)), "{key}");
    }
}

#[test]
fn a_secret_of_somebody_else_is_left_alone() {
    let signer = Signer::new();
    let certificate = certificate(&["a.example.com"]);
    let (_, secret) = signer.run(&certificate, None, day(1));
    let mut secret = secret.expect("a Secret");
    secret.metadata.owner_references = None;
    secret.metadata.labels = None;
    let (plan, _) = signer.run(&certificate, Some(&secret), day(1));
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "NotOwned"));
}

#[test]
fn one_that_cert_manager_left_is_taken_over() {
    let (signer, before) = (Signer::new(), Signer::new());
    let certificate = certificate(&["a.example.com"]);
    let (_, secret) = before.run(&certificate, None, day(1));
    let mut secret = secret.expect("a Secret");
    // It leaves the label that it was asked for, and no owner.
    secret.metadata.owner_references = None;
    let (plan, _) = signer.run(&certificate, Some(&secret), day(1));
    assert_eq!(summary(&plan), ["patch Secret/route-1"]);
}

#[test]
fn a_name_that_cannot_be_signed_is_said() {
    let signer = Signer::new();
    let (plan, secret) = signer.run(&certificate(&["hö.example.com"]), None, day(1));
    assert_eq!((summary(&plan), secret), (Vec::new(), None));
    assert_eq!(condition(&plan, "Ready"), pair("False", "SigningFailed"));
}
