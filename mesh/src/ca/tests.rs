use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls::pki_types::{CertificateDer, UnixTime};

use super::rotation::{self, Step, Stored};
use super::*;
use crate::verify::Verifier;

const TD: &str = "cluster.local";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn csr() -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec!["evil.example".into()]).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn id(ns: &str) -> SpiffeId {
    SpiffeId::new(TD, ns, "default").unwrap()
}

fn chain(answer: &CertificateResponse) -> Vec<CertificateDer<'static>> {
    pem::certificates("chain", &answer.chain).unwrap()
}

fn roots(pem_text: &str) -> Vec<CertificateDer<'static>> {
    pem::certificates("roots", pem_text).unwrap()
}

fn at(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

#[test]
fn signs_for_the_given_identity_and_ignores_the_requests_names() {
    let now = SystemTime::now();
    let authority = Authority::new(TD, DEFAULT_TTL, &MaterialPem::generate_root(TD, now).unwrap()).unwrap();
    let answer = authority.issue(&csr(), &id("a"), now).unwrap();
    let verifier = Verifier::new(roots(&answer.roots), TD, provider()).unwrap();
    assert_eq!(verifier.verify_server(&chain(&answer), at(now)).unwrap(), id("a"));
    assert_eq!(verifier.verify_client(&chain(&answer), at(now)).unwrap(), id("a"));
    let leaf = chain(&answer).remove(0);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(!leaf.is_ca());
}

#[test]
fn refuses_what_is_expired_foreign_or_not_yet_valid() {
    let now = SystemTime::now();
    let root = MaterialPem::generate_root(TD, now).unwrap();
    let authority = Authority::new(TD, DEFAULT_TTL, &root).unwrap();
    let answer = authority.issue(&csr(), &id("a"), now).unwrap();
    let verifier = Verifier::new(roots(&root.roots), TD, provider()).unwrap();
    let later = now + DEFAULT_TTL + Duration::from_secs(1);
    assert!(verifier.verify_server(&chain(&answer), at(later)).is_err(), "expired");
    assert!(verifier.verify_client(&chain(&answer), at(later)).is_err(), "expired");
    assert!(
        verifier.verify_resumed(&chain(&answer), at(later), true).is_err(),
        "a session must not outlive it"
    );
    assert!(verifier.verify_server(&chain(&answer), at(now - Duration::from_secs(3600))).is_err(), "not yet");

    let foreign = Verifier::new(roots(&root.roots), "other.example", provider()).unwrap();
    assert!(foreign.verify_server(&chain(&answer), at(now)).is_err(), "wrong trust domain");
    let stranger = MaterialPem::generate_root(TD, now).unwrap();
    let stranger = Verifier::new(roots(&stranger.roots), TD, provider()).unwrap();
    assert!(stranger.verify_client(&chain(&answer), at(now)).is_err(), "unknown root");
    assert!(authority.issue(&csr(), &SpiffeId::new("other", "a", "b").unwrap(), now).is_err());
}

#[test]
fn refuses_requests_that_prove_nothing() {
    let now = SystemTime::now();
    let authority = Authority::new(TD, DEFAULT_TTL, &MaterialPem::generate_root(TD, now).unwrap()).unwrap();
    let issue = |csr: &str| authority.issue(csr, &id("a"), now).map(|_| ());
    assert!(matches!(issue("nonsense"), Err(Error::Csr(_))));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let other = CertificateParams::default().serialize_request(&p384).unwrap().pem().unwrap();
    assert!(matches!(issue(&other), Err(Error::Csr(_))), "another kind of key");

    // A request with one bit of its signature changed.
    let der = CertificateSigningRequestDer::from_pem_slice(csr().as_bytes()).unwrap();
    let mut der = der.as_ref().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
    assert!(matches!(issue(&forged), Err(Error::Csr(_))), "a forged signature");
}

#[test]
fn an_intermediate_signs_and_its_end_is_the_end() {
    let now = SystemTime::now();
    let root = MaterialPem::generate_root(TD, now).unwrap();
    let short = Duration::from_secs(3600);
    let intermediate = root.generate_intermediate(TD, now, short).unwrap();
    let authority = Authority::new(TD, DEFAULT_TTL, &intermediate).unwrap();
    let answer = authority.issue(&csr(), &id("a"), now).unwrap();
    assert_eq!(chain(&answer).len(), 2, "leaf and intermediate, no root");
    assert!(answer.ttl_seconds <= short.as_secs(), "never longer than its issuer");
    let verifier = Verifier::new(roots(&root.roots), TD, provider()).unwrap();
    verifier.verify_server(&chain(&answer), at(now)).unwrap();
    assert!(authority.issue(&csr(), &id("a"), now + short * 2).is_err());
}

#[test]
fn mismatched_material_is_refused() {
    let now = SystemTime::now();
    let a = MaterialPem::generate_root(TD, now).unwrap();
    let b = MaterialPem::generate_root(TD, now).unwrap();
    assert!(Material::from_pem(&MaterialPem { key: b.key.clone(), ..a.clone() }).is_err());
    assert!(!format!("{a:?}").contains("PRIVATE"), "a debug line must not leak the key");
}

/// Workloads that renew at different times trust each other at every moment of a rotation.
#[test]
fn rotation_never_separates_two_workloads() {
    struct Workload {
        renewed: i64,
        chain: Vec<CertificateDer<'static>>,
        verifier: Verifier,
    }
    let start = SystemTime::now();
    let ttl = Duration::from_secs(24 * 3600);
    let mut stored = Stored { current: MaterialPem::generate_root(TD, start).unwrap(), rotation: None };
    let authority = Authority::new(TD, ttl, &stored.current).unwrap();
    let obtain = |hour: u64| {
        let answer = authority.issue(&csr(), &id("a"), start + Duration::from_secs(hour * 3600)).unwrap();
        let verifier = Verifier::new(roots(&answer.roots), TD, provider()).unwrap();
        Workload { renewed: hour as i64, chain: chain(&answer), verifier }
    };
    // The same certificates, but renewed at different times.
    let mut workloads: Vec<_> = (0..4).map(|i| Workload { renewed: -4 * i, ..obtain(0) }).collect();
    let next = MaterialPem::generate_root(TD, start).unwrap();
    let new_root = roots(&next.roots);
    let mut finished = None;
    for hour in 1..120u64 {
        let now = start + Duration::from_secs(hour * 3600);
        if hour == 20 {
            stored = rotation::begin(&stored, next.clone(), now).unwrap();
            assert!(rotation::begin(&stored, next.clone(), now).is_none(), "one at a time");
            authority.replace(&rotation::signing(&stored).unwrap()).unwrap();
        }
        if let Step::Store(after) = rotation::plan(&stored, ttl, now) {
            stored = *after;
            authority.replace(&rotation::signing(&stored).unwrap()).unwrap();
            if stored.rotation.is_none() {
                finished = Some(hour);
            }
        }
        for w in &mut workloads {
            if hour as i64 >= w.renewed + 16 {
                *w = obtain(hour);
            }
        }
        for a in &workloads {
            for b in &workloads {
                a.verifier
                    .verify_server(&b.chain, at(now))
                    .unwrap_or_else(|e| panic!("hour {hour}: {e} between {} and {}", a.renewed, b.renewed));
            }
        }
    }
    assert!(finished.is_some_and(|h| h < 100), "{finished:?}");
    assert_eq!(roots(&authority.roots_pem()), new_root, "the old root is gone in the end");
}
