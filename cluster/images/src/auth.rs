//! Credentials for registries, as `imagePullSecrets` bring them.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::{ImageError, Reference};

/// Credentials for one registry, or one path on it.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth {
    /// Host with optional port and path, as written in the secret; labels of the host may be globs (`*.gcr.io/team`).
    pub server: String,
    /// User name.
    pub username: String,
    /// Password, or token in its place.
    pub password: String,
    /// A token that the registry takes as it is; user name and password are then unused.
    pub bearer: Option<String>,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("server", &self.server)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Login {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl RegistryAuth {
    /// Reads a secret's `.dockerconfigjson`, or its older form `.dockercfg`. Entries without credentials are left out.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] if it is not such a document.
    pub fn from_dockerconfigjson(bytes: &[u8]) -> Result<Vec<Self>, ImageError> {
        let invalid =
            |e: &dyn std::fmt::Display| ImageError::invalid("the pull secret's dockerconfigjson", e);
        let mut document: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(bytes).map_err(|e| invalid(&e))?;
        let logins = document.remove("auths").unwrap_or(serde_json::Value::Object(document));
        let logins: BTreeMap<String, serde_json::Value> =
            serde_json::from_value(logins).map_err(|e| invalid(&e))?;
        let mut found = Vec::new();
        for (server, login) in logins {
            // A config file has more than logins ("credHelpers", "HttpHeaders"); those have no such fields.
            let Ok(login) = serde_json::from_value::<Login>(login) else { continue };
            let (mut username, mut password) =
                (login.username.unwrap_or_default(), login.password.unwrap_or_default());
            if let Some(auth) = login.auth.filter(|a| !a.is_empty()) {
                let decoded =
                    BASE64_STANDARD.decode(auth.trim()).ok().and_then(|b| String::from_utf8(b).ok());
                let Some((user, pass)) = decoded.as_deref().and_then(|d| d.split_once(':')) else {
                    return Err(invalid(&format!("auth of {server:?} must be base64 of \"user:password\"")));
                };
                // Some tools end the password with NULs.
                (username, password) = (user.to_owned(), pass.trim_end_matches('\0').to_owned());
            }
            if let Some(token) = login.identitytoken.filter(|t| !t.is_empty()) {
                password = token;
            }
            if !username.is_empty() || !password.is_empty() || login.registrytoken.is_some() {
                found.push(Self { server, username, password, bearer: login.registrytoken });
            }
        }
        Ok(found)
    }

    fn parts(&self) -> (&str, &str) {
        let server = self.server.trim_start_matches("https://").trim_start_matches("http://");
        let (host, path) = server.split_once('/').unwrap_or((server, ""));
        // What `docker login` writes for Hub and old registries; not a part of any image's name.
        let path = path.trim_end_matches('/');
        (host, if path == "v1" || path == "v2" { "" } else { path })
    }

    fn fits(&self, image: &Reference) -> bool {
        let (host, path) = self.parts();
        let hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let host_fits = host_fits(host, &image.registry) || (hub(host) && hub(&image.registry));
        let rest = image.repository.strip_prefix(path);
        host_fits && (path.is_empty() || rest.is_some_and(|r| r.is_empty() || r.starts_with('/')))
    }

    fn to_client(&self) -> oci_client::secrets::RegistryAuth {
        match &self.bearer {
            Some(token) => oci_client::secrets::RegistryAuth::Bearer(token.clone()),
            None => oci_client::secrets::RegistryAuth::Basic(self.username.clone(), self.password.clone()),
        }
    }
}

/// What to try for `image`, the most specific first as kubelet does; anonymous if nothing fits.
pub(crate) fn candidates(
    auths: &[RegistryAuth],
    image: &Reference,
) -> Vec<oci_client::secrets::RegistryAuth> {
    let mut fitting: Vec<&RegistryAuth> = auths.iter().filter(|a| a.fits(image)).collect();
    fitting.sort_by_key(|a| std::cmp::Reverse(a.parts().1.len()));
    let mut list: Vec<_> = fitting.into_iter().map(RegistryAuth::to_client).collect();
    list.dedup();
    if list.is_empty() {
        list.push(oci_client::secrets::RegistryAuth::Anonymous);
    }
    list
}

/// Label by label, with `*` and `?` inside a label; ports must be the same.
fn host_fits(pattern: &str, host: &str) -> bool {
    let split = |h: &str| {
        h.rsplit_once(':').map_or((h.to_owned(), None), |(n, p)| (n.to_owned(), Some(p.to_owned())))
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(labels).all(|(p, l)| glob(p.as_bytes(), l.as_bytes()))
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|n| glob(rest, &text[n..])),
        Some((b'?', rest)) => !text.is_empty() && glob(rest, &text[1..]),
        Some((c, rest)) => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_client::secrets::RegistryAuth::{Anonymous, Basic, Bearer};

    #[test]
    fn secrets_are_read_in_all_their_forms() {
        let json =
            br#"{"auths":{"a.io":{"auth":"dTpwOnE="},"b.io":{"username":"x","password":"y","email":"z"},
            "c.io":{"registrytoken":"t"},"empty.io":{}},"credHelpers":{"d.io":"x"}}"#;
        let auths = RegistryAuth::from_dockerconfigjson(json).unwrap();
        let of = |name: &str| candidates(&auths, &Reference::parse(name).unwrap());
        assert_eq!(of("a.io/x"), [Basic("u".into(), "p:q".into())]);
        assert_eq!(of("b.io/x"), [Basic("x".into(), "y".into())]);
        assert_eq!(of("c.io/x"), [Bearer("t".into())]);
        assert_eq!(of("empty.io/x"), [Anonymous]);
        let old = RegistryAuth::from_dockerconfigjson(br#"{"a.io":{"auth":"dTpw"}}"#).unwrap();
        assert_eq!((old[0].username.as_str(), old[0].password.as_str()), ("u", "p"));
        for bad in [&b"[]"[..], b"x", br#"{"auths":{"a.io":{"auth":"!"}}}"#, br#"{"auths":[]}"#] {
            assert!(RegistryAuth::from_dockerconfigjson(bad).is_err());
        }
        assert!(!format!("{auths:?}").contains("p:q"));
    }

    #[test]
    fn the_most_specific_login_is_tried_first() {
        let auth = |server: &str| RegistryAuth {
            server: server.into(),
            username: server.into(),
            password: String::new(),
            bearer: None,
        };
        let auths =
            ["gcr.io", "gcr.io/team", "*.gcr.io", "https://index.docker.io/v1/", "r.io:5000"].map(auth);
        let users = |name: &str| -> Vec<String> {
            let found = candidates(&auths, &Reference::parse(name).unwrap());
            found.into_iter().map(|a| if let Basic(user, _) = a { user } else { "-".into() }).collect()
        };
        assert_eq!(users("gcr.io/team/app"), ["gcr.io/team", "gcr.io"]);
        assert_eq!(users("gcr.io/teams/app"), ["gcr.io"]);
        assert_eq!(users("eu.gcr.io/x"), ["*.gcr.io"]);
        assert_eq!(users("a.eu.gcr.io/x"), ["-"]);
        assert_eq!(users("foo"), ["https://index.docker.io/v1/"]);
        assert_eq!(users("r.io:5000/x"), ["r.io:5000"]);
        assert_eq!(users("r.io/x"), ["-"]);
    }
}
