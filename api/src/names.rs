//! The rules of Kubernetes about names, in its own words, and the names of children.

use std::fmt::Write as _;

const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

const DNS_1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

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

/// What is wrong with the beginning of a DNS-1035 label, to which Kubernetes adds some characters.
#[must_use]
pub fn dns1035_prefix(text: &str) -> Vec<String> {
    match text.strip_suffix('-').filter(|rest| !rest.is_empty()) {
        Some(rest) => dns1035_label(&format!("{}a", &rest[..rest.floor_char_boundary(rest.len() - 1)])),
        None => dns1035_label(text),
    }
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

/// What is wrong with a DNS-1123 label.
#[must_use]
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > 63 {
        problems.push("must be no more than 63 characters".to_owned());
    }
    if !label_chars(text) {
        problems.push(DNS_1123_LABEL.to_owned());
    }
    problems
}

/// What is wrong with a domain name of at least two labels; a dot at its end is allowed.
#[must_use]
pub fn domain_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let problems = dns1123_subdomain(name);
    let invalid = |value: &str, why: &str| Some(format!("name: Invalid value: {value:?}: {why}"));
    if text.is_empty() {
        return Some("name: Required value".to_owned());
    }
    if !problems.is_empty() {
        return invalid(name, &problems.join(","));
    }
    if !name.contains('.') {
        return invalid(name, "should be a domain with at least two segments separated by dots");
    }
    let long = name.split('.').find(|label| !is_dns1123_label(label))?;
    invalid(long, &dns1123_label(long).join(","))
}

/// What is wrong with a qualified name: a name with dots and dashes, and perhaps a domain and a slash in front of it.
#[must_use]
pub fn qualified_name(text: &str) -> Vec<String> {
    let alnum = |c: char| c.is_ascii_alphanumeric();
    let mut problems = Vec::new();
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if name.contains('/') {
        return vec![format!(
            "a qualified name {QUALIFIED_NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )];
    }
    match prefix {
        Some("") => problems.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            problems.extend(dns1123_subdomain(prefix).into_iter().map(|p| format!("prefix part {p}")));
        }
        None => {}
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 characters".to_owned());
    }
    let good = name.chars().all(|c| alnum(c) || matches!(c, '-' | '_' | '.'));
    if !good || !name.starts_with(alnum) || !name.ends_with(alnum) {
        problems.push(format!("name part {QUALIFIED_NAME}"));
    }
    problems
}

/// The name of the `at`th EndpointSlice of a public Service.
#[must_use]
pub fn public_slice(service: &str, at: usize) -> String {
    child(service, &format!("-{at}"))
}

/// The name of a child as Knative makes it, so that clients who compute it find the object: `<parent><suffix>`, and where that is longer
/// than 63 characters a shortened parent with a checksum in between, so that it stays a label and stays unique.
#[must_use]
pub fn child(parent: &str, suffix: &str) -> String {
    const LONGEST: usize = 63;
    const CHECKSUM: usize = 32;
    if parent.len() + suffix.len() <= LONGEST {
        return format!("{parent}{suffix}");
    }
    let room = LONGEST - CHECKSUM;
    if suffix.len() < room {
        return format!("{}{}{suffix}", head(parent, room - suffix.len()), md5(parent));
    }
    // So long a suffix has no place: it is in the checksum.
    let mut name = format!("{}{}", head(parent, room), md5(&format!("{parent}{suffix}")));
    let left = LONGEST - name.len();
    name.push_str(head(suffix, left));
    name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

fn head(text: &str, length: usize) -> &str {
    &text[..text.floor_char_boundary(length)]
}

fn md5(text: &str) -> String {
    use md5::{Digest as _, Md5};
    let mut hex = String::with_capacity(32);
    for byte in Md5::digest(text) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
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
        // The MD5 of the parent, as Knative's clients expect.
        assert_eq!(one, "aaaaaaaaaaaaaaaaaaaa0f5c6c4e740bfcc08c3c26ccb2673d46-deployment");
        let suffix = format!("-{}", "b".repeat(29));
        assert!(child(&long, &suffix).ends_with(&suffix), "30 characters have their place");
        let none = child(&long, &"b".repeat(40));
        assert_eq!(none.len(), 63);
        assert!(none.starts_with(&"a".repeat(31)) && !none.contains("bb"), "{none}");
        assert_eq!(child("a", &"-".repeat(70)).len(), 33, "what would end with a dash is shorter");
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
