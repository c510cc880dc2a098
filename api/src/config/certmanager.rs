//! `config-certmanager`: who signs what cert-manager makes.

use serde::{Deserialize, Serialize};

use super::reader::Reader;
use super::{ConfigError, Data};

/// A reference to an issuer of cert-manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerRef {
    /// Issuer or ClusterIssuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// The API group of an issuer that is not cert-manager's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// The issuers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertManager {
    /// Of certificates for hosts that are served to the outside.
    pub issuer_ref: IssuerRef,
}

impl Default for CertManager {
    fn default() -> Self {
        let (kind, name) = (Some("ClusterIssuer".into()), "knative-selfsigned-issuer".into());
        Self { issuer_ref: IssuerRef { kind, name, group: None } }
    }
}

impl CertManager {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        // The other two are read so that a typo is noticed: hosts inside the cluster are served by mutual TLS already.
        for (key, target) in [
            ("issuerRef", Some(&mut c.issuer_ref)),
            ("clusterLocalIssuerRef", None),
            ("systemInternalIssuerRef", None),
        ] {
            let Some(raw) = r.raw(key).filter(|raw| !raw.trim().is_empty()) else { continue };
            match serde_saphyr::from_str::<IssuerRef>(raw) {
                Ok(found) => target.into_iter().for_each(|target| target.clone_from(&found)),
                Err(error) => {
                    r.fail(key, format!("must be YAML of kind, name and, if need be, group: {error}"));
                }
            }
        }
        r.finish(c)
    }
}
