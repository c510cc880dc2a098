//! Errors about fields, in the words and with the paths that Knative uses.
//!
//! A rule names the path from where it stands; whoever called it puts its own part in front with [`FieldErrors::via_field`]
//! and the like. Errors of one message are printed together: `missing field(s): spec.a, spec.b`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The path of the object on which a rule stands.
pub const CURRENT: &str = "";

/// One message about one or more fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// What is wrong.
    pub message: String,
    /// Where, from the root of the object.
    pub paths: Vec<String>,
    /// More about it.
    pub details: String,
    /// Whether the object is accepted all the same.
    pub warning: bool,
}

/// All that is wrong with an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// Nothing wrong.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// One message.
    pub fn new(message: impl Into<String>, paths: &[&str]) -> Self {
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        Self(vec![FieldError { message: message.into(), paths, details: String::new(), warning: false }])
    }

    /// A required field is absent.
    #[must_use]
    pub fn missing(path: &str) -> Self {
        Self::new("missing field(s)", &[path])
    }

    /// A field is set that must not be.
    #[must_use]
    pub fn disallowed(path: &str) -> Self {
        Self::new("must not set the field(s)", &[path])
    }

    /// A value that does not make sense.
    pub fn invalid(value: impl fmt::Display, path: &str) -> Self {
        Self::new(format!("invalid value: {value}"), &[path])
    }

    /// A number out of its range.
    pub fn out_of_bounds(
        value: impl fmt::Display,
        low: impl fmt::Display,
        high: impl fmt::Display,
        path: &str,
    ) -> Self {
        Self::new(format!("expected {low} <= {value} <= {high}"), &[path])
    }

    /// None of several fields is set.
    #[must_use]
    pub fn missing_one_of(paths: &[&str]) -> Self {
        Self::new("expected exactly one, got neither", paths)
    }

    /// More than one of several fields is set.
    #[must_use]
    pub fn multiple_one_of(paths: &[&str]) -> Self {
        Self::new("expected exactly one, got both", paths)
    }

    /// A key that must not be used here.
    #[must_use]
    pub fn invalid_key(key: &str, path: &str, details: &str) -> Self {
        Self::new(format!("invalid key name \"{key}\""), &[path]).with_details(details)
    }

    /// Adds an explanation.
    #[must_use]
    pub fn with_details(mut self, details: &str) -> Self {
        for error in &mut self.0 {
            details.clone_into(&mut error.details);
        }
        self
    }

    /// Makes warnings of all.
    #[must_use]
    pub fn as_warnings(mut self) -> Self {
        self.0.iter_mut().for_each(|e| e.warning = true);
        self
    }

    /// Adds others.
    #[must_use]
    pub fn also(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Adds others in place.
    pub fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Puts a field's name in front of all paths.
    #[must_use]
    pub fn via_field(mut self, field: &str) -> Self {
        for path in self.0.iter_mut().flat_map(|e| e.paths.iter_mut()) {
            *path = match path.as_str() {
                "" => field.to_owned(),
                rest if rest.starts_with(['[', '.']) => format!("{field}{rest}"),
                rest => format!("{field}.{rest}"),
            };
        }
        self
    }

    /// Puts an index in front of all paths.
    #[must_use]
    pub fn via_index(mut self, index: usize) -> Self {
        for path in self.0.iter_mut().flat_map(|e| e.paths.iter_mut()) {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            *path = format!("[{index}]{dot}{path}");
        }
        self
    }

    /// Puts a map's key in front of all paths. A key with dots stands apart from the field before it, as Knative writes it:
    /// `annotations.[a.b/c]`.
    #[must_use]
    pub fn via_key(mut self, key: &str) -> Self {
        let apart = if key.contains('.') { "." } else { "" };
        for path in self.0.iter_mut().flat_map(|e| e.paths.iter_mut()) {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            *path = format!("{apart}[{key}]{dot}{path}");
        }
        self
    }

    /// Puts a list's name and an index in front of all paths.
    #[must_use]
    pub fn via_field_index(self, field: &str, index: usize) -> Self {
        self.via_index(index).via_field(field)
    }

    /// Whether there is nothing that refuses the object (warnings do not).
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.0.iter().all(|e| e.warning)
    }

    /// The errors and warnings.
    #[must_use]
    pub fn list(&self) -> &[FieldError] {
        &self.0
    }

    /// Only what refuses the object.
    #[must_use]
    pub fn errors(&self) -> Self {
        Self(self.0.iter().filter(|e| !e.warning).cloned().collect())
    }

    /// The warnings, each on one line: an HTTP header carries them.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let warnings = Self(self.0.iter().filter(|e| e.warning).cloned().collect());
        warnings.printed().into_iter().map(|w| w.replace('\n', ": ")).collect()
    }

    /// One text for each message and its details, with all the paths where it holds.
    fn printed(&self) -> Vec<String> {
        let mut merged: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for error in &self.0 {
            let paths = merged.entry((&error.message, &error.details)).or_default();
            paths.extend(error.paths.iter().map(|path| path.strip_prefix('.').unwrap_or(path)));
        }
        let print = |((message, details), paths): ((&str, &str), BTreeSet<&str>)| {
            let paths = paths.into_iter().collect::<Vec<_>>().join(", ");
            let end = if details.is_empty() { String::new() } else { format!("\n{details}") };
            format!("{message}: {paths}{end}")
        };
        merged.into_iter().map(print).collect()
    }
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.printed().join("\n"))
    }
}
