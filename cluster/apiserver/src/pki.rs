//! The server's own certificate authority, its keys, and kubeconfigs.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::auth::{MASTERS, User};
use crate::{Error, meta};

/// Keys and certificates, kept in a folder.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) token_key: KeyPair,
    server: (String, String),
    admin: (String, String),
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Pki(error.to_string())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::DataDir { path: path.to_owned(), cause }),
    }
}

/// Writes a file that only its owner can read, all of it or nothing.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |cause| Error::DataDir { path: path.to_owned(), cause };
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

fn key(path: &Path) -> Result<KeyPair, Error> {
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem).map_err(failed);
    }
    let key = KeyPair::generate().map_err(failed)?;
    write(path, &key.serialize_pem())?;
    Ok(key)
}

fn years(params: &mut CertificateParams, years: i32) {
    let now = meta::now();
    let year: i32 = now[..4].parse().unwrap_or(2026);
    let (month, day) = (now[5..7].parse().unwrap_or(1), now[8..10].parse::<u8>().unwrap_or(1).min(28));
    // A day back: clocks differ.
    params.not_before = rcgen::date_time_ymd(year - 1, month, day);
    params.not_after = rcgen::date_time_ymd(year + years, month, day);
}

fn named(name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(organization) = organization {
        distinguished.push(DnType::OrganizationName, organization);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

impl Pki {
    /// Reads what is there and makes what is not; the server's certificate is made anew at each start.
    pub(crate) fn open(folder: &Path, names: &[String]) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(|cause| Error::DataDir { path: folder.to_owned(), cause })?;
        let ca_key = key(&folder.join("ca.key"))?;
        let ca_path = folder.join("ca.crt");
        let ca_pem = match read(&ca_path)? {
            Some(pem) => pem,
            None => {
                let mut params = CertificateParams::default();
                params.distinguished_name = named("kubernetes", None);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![
                    KeyUsagePurpose::KeyCertSign,
                    KeyUsagePurpose::CrlSign,
                    KeyUsagePurpose::DigitalSignature,
                ];
                years(&mut params, 10);
                let pem = params.self_signed(&ca_key).map_err(failed)?.pem();
                write(&ca_path, &pem)?;
                pem
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, &ca_key).map_err(failed)?;
        let issue = |mut params: CertificateParams,
                     usage: ExtendedKeyUsagePurpose|
         -> Result<(String, String), Error> {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            years(&mut params, 5);
            let key = KeyPair::generate().map_err(failed)?;
            let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = named("kube-apiserver", None);
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            });
        }
        let server = issue(params, ExtendedKeyUsagePurpose::ServerAuth)?;
        let (certificate, private) = (folder.join("admin.crt"), folder.join("admin.key"));
        let admin = match (read(&certificate)?, read(&private)?) {
            (Some(certificate), Some(key)) => (certificate, key),
            _ => {
                let mut params = CertificateParams::default();
                params.distinguished_name = named("kubernetes-admin", Some(MASTERS));
                let admin = issue(params, ExtendedKeyUsagePurpose::ClientAuth)?;
                write(&certificate, &admin.0)?;
                write(&private, &admin.1)?;
                admin
            }
        };
        let token_key = key(&folder.join("sa.key"))?;
        Ok(Self { ca_pem, token_key, server, admin })
    }

    /// TLS that asks for a client certificate of this authority, and does without.
    pub(crate) fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(failed)?).map_err(failed)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(failed)?;
        let certificate = CertificateDer::from_pem_slice(self.server.0.as_bytes()).map_err(failed)?;
        let key = PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).map_err(failed)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .map_err(failed)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A kubeconfig with the administrator's certificate.
    pub(crate) fn admin_kubeconfig(&self, address: SocketAddr) -> String {
        let address = if address.ip().is_unspecified() {
            SocketAddr::from(([127, 0, 0, 1], address.port()))
        } else {
            address
        };
        let encode = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {CONTEXT}\n  cluster:\n    server: https://{address}\n    certificate-authority-data: {}\n\
             users:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
             contexts:\n- name: {CONTEXT}\n  context:\n    cluster: {CONTEXT}\n    user: admin\n    namespace: default\ncurrent-context: {CONTEXT}\n",
            encode(&self.ca_pem),
            encode(&self.admin.0),
            encode(&self.admin.1),
        )
    }
}

/// The name of cluster and context in kubeconfigs.
const CONTEXT: &str = "embedded";

/// The user that a verified client certificate names.
pub(crate) fn certificate_user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Some(User::new(&name, &groups))
}
