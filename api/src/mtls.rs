//! Whether pods take plaintext: strict or permissive.
//!
//! The nearest word counts: the annotation `mesh.ebb.dev/mtls` of a revision (set in the template of its Service), then the label
//! `mesh.ebb.dev/mtls` of its namespace, then `mtls-mode` in `config-network`, then what the controller was started with. What
//! cannot be understood is strict: a typo must not open anything.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::meta::ebb::MTLS_MODE;

/// Whether pods take plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Mutual TLS only.
    #[default]
    Strict,
    /// Both.
    Permissive,
}

impl Mode {
    /// As annotations and labels have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "strict" => Ok(Self::Strict),
            "permissive" => Ok(Self::Permissive),
            _ => Err(format!("{text:?} is neither strict nor permissive")),
        }
    }
}

type Pairs<'a> = Option<&'a BTreeMap<String, String>>;

/// What labels or annotations say.
///
/// # Errors
/// A value that is neither mode.
pub fn said(found: Pairs<'_>) -> Result<Option<Mode>, String> {
    found.and_then(|pairs| pairs.get(MTLS_MODE)).map(|value| value.parse()).transpose()
}

/// The mode of a revision, by its annotations, its namespace's labels, and what counts everywhere else.
#[must_use]
pub fn effective(annotations: Pairs<'_>, namespace_labels: Pairs<'_>, platform: Mode) -> Mode {
    for found in [annotations, namespace_labels] {
        match said(found) {
            Ok(Some(mode)) => return mode,
            Err(_) => return Mode::Strict,
            Ok(None) => {}
        }
    }
    platform
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(mode: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(MTLS_MODE.to_owned(), mode.to_owned())])
    }

    #[test]
    fn the_nearest_word_counts_and_a_typo_is_strict() {
        use Mode::{Permissive, Strict};
        let (strict, permissive, typo) = (says("STRICT"), says("permissive"), says("permisive"));
        let other = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        for (annotations, labels, platform, expected) in [
            (None, None, Strict, Strict),
            (Some(&other), Some(&other), Permissive, Permissive),
            (None, Some(&strict), Permissive, Strict),
            (Some(&permissive), Some(&strict), Strict, Permissive),
            (Some(&strict), Some(&permissive), Permissive, Strict),
            (Some(&typo), Some(&permissive), Permissive, Strict),
            (None, Some(&typo), Permissive, Strict),
        ] {
            assert_eq!(effective(annotations, labels, platform), expected, "{annotations:?} {labels:?}");
        }
        assert_eq!(said(Some(&typo)), Err("\"permisive\" is neither strict nor permissive".into()));
    }
}
