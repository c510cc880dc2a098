//! The documentation that a ConfigMap carries under `_example`, and how a change of it is noticed: users who edit it mean to set something.

/// The key.
pub const KEY: &str = "_example";
/// The annotation with the checksum of what is under [`KEY`].
pub const ANNOTATION: &str = "knative.dev/example-checksum";

/// The checksum as Knative makes it: CRC-32 of the text without spaces around it, each run of line ends written as `\n` in two characters.
#[must_use]
pub fn checksum(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for line in text.trim().split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
        if line.is_empty() {
            continue;
        }
        if !plain.is_empty() {
            plain.push_str("\\n");
        }
        plain.push_str(line);
    }
    format!("{:08x}", crc32fast::hash(plain.as_bytes()))
}

#[cfg(test)]
mod tests {
    /// The second has the sum that Knative's own file of this content carries.
    #[test]
    fn sums() {
        assert_eq!(super::checksum("123456789"), "cbf43926");
        assert_eq!(super::checksum("\n a\r\n\n\nb \n"), super::checksum("a\nb"));
        assert_ne!(super::checksum("a\nb"), super::checksum("ab"));
    }
}
