//! ServiceAccount tokens: ES256 JWTs with the claims that Kubernetes gives them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::User;
use crate::meta;
use crate::store::Store;

/// The issuer, and the audience of tokens for this server.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and verifies tokens.
pub(crate) struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    jwk: Value,
    key_id: String,
}

/// What a token is bound to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bound {
    /// `Pod` or `Secret`, empty if to nothing.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The pod's node, name and uid.
    pub node: Option<(String, String)>,
}

/// What a token to be signed says.
pub(crate) struct Claims<'a> {
    /// The ServiceAccount's namespace.
    pub namespace: &'a str,
    /// The ServiceAccount's name.
    pub name: &'a str,
    /// The ServiceAccount's uid.
    pub uid: &'a str,
    /// Who may accept it.
    pub audiences: &'a [String],
    /// For how many seconds.
    pub seconds: i64,
    /// The pod it is for.
    pub bound: &'a Bound,
}

/// A token that was found good.
pub(crate) struct Verified {
    /// Whose it is.
    pub user: User,
    /// Which of the audiences asked for it names.
    pub audiences: Vec<String>,
}

impl Tokens {
    /// With a P-256 key.
    ///
    /// # Errors
    /// What is wrong with the key.
    pub(crate) fn new(key: &KeyPair) -> Result<Self, String> {
        let text = |error: jsonwebtoken::errors::Error| error.to_string();
        let encoding = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).map_err(text)?;
        // An uncompressed point: 4, x, y.
        let raw = key.public_key_raw();
        if raw.len() != 65 {
            return Err("the token signing key is not a P-256 key".to_owned());
        }
        let (x, y) = (URL_SAFE_NO_PAD.encode(&raw[1..33]), URL_SAFE_NO_PAD.encode(&raw[33..]));
        let decoding = DecodingKey::from_ec_components(&x, &y).map_err(text)?;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(raw);
        let key_id = URL_SAFE_NO_PAD.encode(&digest[..16]);
        let jwk =
            json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": "ES256", "kid": key_id});
        Ok(Self { encoding, decoding, jwk, key_id })
    }

    /// The public key, as a set.
    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    /// Signs a token; with the time it expires.
    ///
    /// # Errors
    /// What the signer said.
    pub(crate) fn sign(&self, claims: &Claims<'_>, now: Timestamp) -> Result<(String, Timestamp), String> {
        let issued = now.as_second();
        let expires = issued + claims.seconds;
        let mut kubernetes = json!({
            "namespace": claims.namespace,
            "serviceaccount": {"name": claims.name, "uid": claims.uid},
        });
        let bound = claims.bound;
        if !bound.kind.is_empty() {
            kubernetes[bound.kind.to_lowercase()] = json!({"name": bound.name, "uid": bound.uid});
        }
        if let Some((name, uid)) = &bound.node {
            kubernetes["node"] = json!({"name": name, "uid": uid});
        }
        let body = json!({
            "aud": claims.audiences,
            "exp": expires,
            "iat": issued,
            "nbf": issued,
            "iss": ISSUER,
            "jti": uuid::Uuid::new_v4().to_string(),
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.name),
            "kubernetes.io": kubernetes,
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        let token = jsonwebtoken::encode(&header, &body, &self.encoding).map_err(|e| e.to_string())?;
        Ok((token, Timestamp::from_second(expires).unwrap_or(now)))
    }

    /// Checks signature, time, one of the audiences, and that the ServiceAccount and the pod are still there.
    pub(crate) fn verify(&self, store: &Store, token: &str, audiences: &[&str]) -> Option<Verified> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        let claims: Value = jsonwebtoken::decode(token, &self.decoding, &validation).ok()?.claims;
        let kubernetes = &claims["kubernetes.io"];
        let namespace = kubernetes["namespace"].as_str()?;
        let name = kubernetes["serviceaccount"]["name"].as_str()?;
        let uid = kubernetes["serviceaccount"]["uid"].as_str()?;
        let account = store.get("/serviceaccounts", namespace, name)?;
        if meta::uid(&account.value) != uid {
            return None;
        }
        let mut extra = serde_json::Map::new();
        if let Some(id) = claims["jti"].as_str() {
            extra.insert(
                "authentication.kubernetes.io/credential-id".to_owned(),
                json!([format!("JTI={id}")]),
            );
        }
        for (claim, kind) in [("pod", "/pods"), ("secret", "/secrets")] {
            if let (Some(bound), Some(bound_uid)) =
                (kubernetes[claim]["name"].as_str(), kubernetes[claim]["uid"].as_str())
            {
                let object = store.get(kind, namespace, bound)?;
                if meta::uid(&object.value) != bound_uid {
                    return None;
                }
                if claim == "pod" {
                    extra.insert("authentication.kubernetes.io/pod-name".to_owned(), json!([bound]));
                    extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), json!([bound_uid]));
                }
            }
        }
        if let Some(node) = kubernetes["node"]["name"].as_str() {
            extra.insert("authentication.kubernetes.io/node-name".to_owned(), json!([node]));
        }
        let named = claims["aud"].as_array()?;
        let audiences = audiences
            .iter()
            .filter(|audience| named.iter().any(|value| value == **audience))
            .map(|&audience| audience.to_owned())
            .collect();
        let mut user = User::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        );
        uid.clone_into(&mut user.uid);
        user.extra = extra;
        Some(Verified { user, audiences })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Expect, Key};

    #[tokio::test]
    async fn a_token_is_good_for_its_audience_while_its_account_lives() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), false).unwrap();
        let kind = "/serviceaccounts".into();
        let key = Key::new(&kind, "ns", "sa");
        let account = json!({"metadata": {"name": "sa", "namespace": "ns", "uid": "u1"}});
        let revision = store.put(&key, Expect::Absent, account).unwrap().object.revision;
        let tokens = Tokens::new(&KeyPair::generate().unwrap()).unwrap();
        let claims = Claims {
            namespace: "ns",
            name: "sa",
            uid: "u1",
            audiences: &["a".to_owned(), "b".to_owned()],
            seconds: 600,
            bound: &Bound::default(),
        };
        let (token, _) = tokens.sign(&claims, Timestamp::now()).unwrap();
        let verified = tokens.verify(&store, &token, &["b", "c"]).unwrap();
        assert_eq!(verified.audiences, ["b"]);
        assert_eq!(verified.user.name, "system:serviceaccount:ns:sa");
        assert!(tokens.verify(&store, &token, &["c"]).is_none(), "another audience");
        let long_ago = Timestamp::now().saturating_sub(jiff::SignedDuration::from_hours(2)).unwrap();
        let (old, _) = tokens.sign(&claims, long_ago).unwrap();
        assert!(tokens.verify(&store, &old, &["a"]).is_none(), "expired");
        let other = Tokens::new(&KeyPair::generate().unwrap()).unwrap();
        assert!(other.verify(&store, &token, &["a"]).is_none(), "another key");
        store.remove(&key, revision).unwrap();
        assert!(tokens.verify(&store, &token, &["a"]).is_none(), "the account is gone");
    }
}
