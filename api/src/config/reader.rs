//! Reads values of a ConfigMap and gathers what is wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ConfigError, Data};
use crate::{duration, quantity};

/// Reads one ConfigMap's data.
pub(super) struct Reader<'a> {
    data: &'a Data,
    errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a Data) -> Self {
        Self { data, errors: Vec::new() }
    }

    /// The value under the kebab-case key, or under its camelCase form.
    pub(super) fn raw(&self, key: &str) -> Option<&'a str> {
        #[cfg(test)]
        super::READ.with(|keys| keys.borrow_mut().insert(key.to_owned()));
        self.data.get(key).or_else(|| self.data.get(&camel(key))).map(String::as_str)
    }

    pub(super) fn fail(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(ConfigError { key: key.to_owned(), message: message.into() });
    }

    /// Notes an error unless `ok`.
    pub(super) fn check(&mut self, ok: bool, key: &str, message: impl FnOnce() -> String) {
        if !ok {
            self.fail(key, message());
        }
    }

    fn with<T>(&mut self, key: &str, target: &mut T, kind: &str, parse: impl FnOnce(&str) -> Option<T>) {
        let Some(raw) = self.raw(key) else { return };
        match parse(raw.trim()) {
            Some(value) => *target = value,
            None => self.fail(key, format!("{raw:?} is not {kind}")),
        }
    }

    pub(super) fn string(&mut self, key: &str, target: &mut String) {
        if let Some(raw) = self.raw(key) {
            raw.clone_into(target);
        }
    }

    pub(super) fn bool(&mut self, key: &str, target: &mut bool) {
        self.with(key, target, "true or false", parse_bool);
    }

    /// enabled or disabled, and true or false for short.
    pub(super) fn switch(&mut self, key: &str, target: &mut bool) {
        self.with(key, target, "enabled or disabled", |raw| match raw.to_ascii_lowercase().as_str() {
            "enabled" => Some(true),
            "disabled" | "" => Some(false),
            _ => parse_bool(raw),
        });
    }

    pub(super) fn int64(&mut self, key: &str, target: &mut i64) {
        self.with(key, target, "a whole number", |raw| raw.parse().ok());
    }

    pub(super) fn int32(&mut self, key: &str, target: &mut i32) {
        self.with(key, target, "a whole number of 32 bits", |raw| raw.parse().ok());
    }

    pub(super) fn float(&mut self, key: &str, target: &mut f64) {
        self.with(key, target, "a number", |raw| raw.parse().ok().filter(|n: &f64| n.is_finite()));
    }

    pub(super) fn duration(&mut self, key: &str, target: &mut Duration) {
        self.with(key, target, "a duration that is not negative, such as 30s", duration::parse);
    }

    pub(super) fn quantity(&mut self, key: &str, target: &mut Option<String>) {
        self.with(key, target, "a quantity, such as 100m or 64Mi", |raw| {
            quantity::parse(raw).map(|_| Some(raw.to_owned()))
        });
    }

    pub(super) fn set(&mut self, key: &str, target: &mut BTreeSet<String>) {
        if let Some(raw) = self.raw(key) {
            *target = raw.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        }
    }

    /// Checks a key that has no effect, or one that is read elsewhere.
    pub(super) fn one_of(&mut self, key: &str, known: &[&str]) {
        let Some(raw) = self.raw(key) else { return };
        if !known.iter().any(|value| value.eq_ignore_ascii_case(raw)) {
            self.fail(key, format!("{raw:?} is not one of {}", known.join(", ")));
        }
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<ConfigError>> {
        if self.errors.is_empty() { Ok(value) } else { Err(self.errors) }
    }
}

fn parse_bool(raw: &str) -> Option<bool> {
    match raw {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => Some(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" => Some(false),
        _ => None,
    }
}

fn camel(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut up = false;
    for c in key.chars() {
        if c == '-' {
            up = true;
        } else if up {
            out.extend(c.to_uppercase());
            up = false;
        } else {
            out.push(c);
        }
    }
    out
}
