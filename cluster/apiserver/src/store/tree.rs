//! An object as a tree of JSON, made of its bytes when somebody looks.
//!
//! A tree takes eight times the room of its bytes: one map with one field is 600 bytes. Most objects of a large cluster are not looked at
//! for a long time, and reading one takes some ten microseconds.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;

/// See the module's documentation. It is a [`Value`] to whoever looks.
pub(crate) struct Tree {
    api_version: Arc<str>,
    /// What it is made of; empty where it was made otherwise.
    json: Bytes,
    whole: OnceLock<Value>,
}

impl Tree {
    /// Of a value that is there already, and its bytes.
    pub(super) fn of(value: Value, json: Bytes) -> Self {
        let api_version = value["apiVersion"].as_str().unwrap_or_default().into();
        Self { api_version, json, whole: OnceLock::from(value) }
    }

    /// The same, not yet read.
    pub(super) fn folded(&self) -> Self {
        Self { api_version: self.api_version.clone(), json: self.json.clone(), whole: OnceLock::new() }
    }

    /// Its `apiVersion`, known without reading it; empty where there is none.
    pub(crate) fn api_version(&self) -> &str {
        &self.api_version
    }

    /// Looks at it without keeping what had to be read for that.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Value) -> T) -> T {
        match self.whole.get() {
            Some(whole) => look(whole),
            None => look(&self.read()),
        }
    }

    fn read(&self) -> Value {
        // This program wrote the bytes.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn is_read(&self) -> bool {
        self.whole.get().is_some()
    }
}

impl Deref for Tree {
    type Target = Value;

    fn deref(&self) -> &Value {
        self.whole.get_or_init(|| self.read())
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whole.get() {
            Some(value) => value.fmt(f),
            None => write!(f, "{} bytes", self.json.len()),
        }
    }
}
