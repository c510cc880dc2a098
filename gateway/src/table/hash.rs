//! The hash by which a prober knows which version of an Ingress a gateway serves.

use ebb_api::networking::IngressSpec;
use sha2::{Digest, Sha256};

use super::Key;

/// SHA-256 over the spec's JSON as Go writes it, the namespace and the name, in hex: what
/// `knative.dev/networking/pkg/ingress.ComputeHash` yields, so that its conformance tests can compare.
pub fn ingress_hash(spec: &IngressSpec, key: &Key) -> String {
    let json = serde_json::to_string(spec).unwrap_or_default();
    let mut hasher = Sha256::new();
    hasher.update(go_escaped(&json));
    hasher.update(&key.namespace);
    hasher.update(&key.name);
    hex::encode(hasher.finalize())
}

/// Go's `json.Marshal` escapes what could break out of HTML.
fn go_escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for char in json.chars() {
        match char {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_with_spec_namespace_and_name() {
        let spec = IngressSpec::default();
        let hash = ingress_hash(&spec, &Key::new("default", "hello"));
        assert_eq!(hash.len(), 64);
        assert_ne!(hash, ingress_hash(&spec, &Key::new("other", "hello")));
        assert_ne!(hash, ingress_hash(&spec, &Key::new("default", "other")));
        let other = serde_json::from_value(serde_json::json!({"rules": [{"hosts": ["a.b"]}]})).expect("spec");
        assert_ne!(hash, ingress_hash(&other, &Key::new("default", "hello")));
    }

    #[test]
    fn empty_spec_hashes_as_in_go() {
        // sha256 of `{}defaulthello`.
        let expected = hex::encode(Sha256::digest(b"{}defaulthello"));
        assert_eq!(ingress_hash(&IngressSpec::default(), &Key::new("default", "hello")), expected);
    }

    #[test]
    fn escapes_like_go() {
        assert_eq!(go_escaped("a<b>&c"), "a\\u003cb\\u003e\\u0026c");
    }
}
