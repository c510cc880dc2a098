//! References of images.

use crate::field_error::FieldErrors;

/// Checks the image of a container.
pub(super) fn check(image: &str) -> FieldErrors {
    if image.is_empty() {
        return FieldErrors::missing("image");
    }
    match image_problem(image) {
        None => FieldErrors::none(),
        Some(problem) => FieldErrors::new("Failed to parse image reference", &["image"])
            .with_details(&format!("image: {image:?}, error: could not parse reference: {image}: {problem}")),
    }
}

/// Why this is not `[registry[:port]/]repository[:tag][@digest]`.
fn image_problem(image: &str) -> Option<String> {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Some(format!("{digest} is not sha256: with 64 hexadecimal digits"));
        }
    }
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        let good = tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !good {
            return Some(format!("{tag:?} is not a tag"));
        }
    }
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    if registry.is_some_and(|r| {
        !r.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '[' | ']'))
    }) {
        return Some(format!("{name:?} has a bad registry"));
    }
    let good = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-'))
    };
    if !repository.split('/').all(good) {
        return Some(format!(
            "repository can only contain the characters `abcdefghijklmnopqrstuvwxyz0123456789_-./`: {repository}"
        ));
    }
    None
}
