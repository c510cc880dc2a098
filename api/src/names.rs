//! The rules of Kubernetes about names, in its own words, and the names of children.

use std::fmt::Write as _;

const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn label_chars(text: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.chars().all(|c| alnum(c) || c == '-')
        && text.starts_with(alnum)
        && text.ends_with(alnum)
}

/// What is wrong with a DNS-1035 label.
#[must_use]
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > 63 {
        problems.push("must be no more than 63 characters".to_owned());
    }
    if !label_chars(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        problems.push(DNS_1035.to_owned());
    }
    problems
}

/// Whether this is a DNS-1123 label.
#[must_use]
pub fn is_dns1123_label(text: &str) -> bool {
    text.len() <= 63 && label_chars(text)
}

/// What is wrong with a DNS-1123 subdomain.
#[must_use]
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > 253 {
        problems.push("must be no more than 253 characters".to_owned());
    }
    if !text.split('.').all(label_chars) {
        problems.push(DNS_1123.to_owned());
    }
    problems
}

/// Whether this can be an object's name as a qualified name without prefix.
#[must_use]
pub fn is_qualified_name(text: &str) -> bool {
    let alnum = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.chars().all(|c| alnum(c) || matches!(c, '-' | '_' | '.'))
        && text.starts_with(alnum)
        && text.ends_with(alnum)
}

/// The name of the `at`th EndpointSlice of a public Service.
#[must_use]
pub fn public_slice(service: &str, at: usize) -> String {
    child(service, &format!("-{at}"))
}

/// The name of a child: `<parent><suffix>`, and where that is longer than 63 characters a shortened parent with a
/// checksum of the whole in between, so that it stays a label and stays unique.
#[must_use]
pub fn child(parent: &str, suffix: &str) -> String {
    const LONGEST: usize = 63;
    if parent.len() + suffix.len() <= LONGEST {
        return format!("{parent}{suffix}");
    }
    // FNV-1a, twice with different bases: stable over versions of this program, which std's hasher is not.
    let mut digest = String::with_capacity(32);
    for basis in [0xcbf2_9ce4_8422_2325_u64, 0x6c62_272e_07bb_0142] {
        let hash = format!("{parent}{suffix}")
            .bytes()
            .fold(basis, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        let _ = write!(digest, "{hash:016x}");
    }
    let room = LONGEST.saturating_sub(suffix.len() + digest.len());
    let head: String = parent.chars().take(room).collect();
    let tail: String = suffix.chars().take(LONGEST - digest.len()).collect();
    let name = format!("{head}{digest}{tail}");
    name.trim_start_matches('-').trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_stay_labels() {
        assert_eq!(child("hello", "-00001"), "hello-00001");
        let long = "a".repeat(70);
        let (one, two) = (child(&long, "-deployment"), child(&format!("{long}b"), "-deployment"));
        assert_eq!(one.len(), 63);
        assert!(one.ends_with("-deployment"));
        assert_ne!(one, two);
        assert!(dns1035_label(&one).is_empty());
    }

    #[test]
    fn labels() {
        for (text, ok) in [
            ("a", true),
            ("a-1", true),
            ("1a", false),
            ("A", false),
            ("-a", false),
            ("a-", false),
            ("", false),
        ] {
            assert_eq!(dns1035_label(text).is_empty(), ok, "{text}");
        }
        assert!(is_dns1123_label("1a"));
        assert!(dns1123_subdomain("a.b").is_empty() && !dns1123_subdomain("a..b").is_empty());
    }
}
