//! The three patch formats: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch.

mod strategic;

use serde_json::Value;

use crate::{Origin, Schema};

/// Why a patch could not be applied.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well-formed and does not fit the object, such as a failed `test`: 422.
    #[error("{0}")]
    Unprocessable(String),
    /// Strategic merge patch on a custom resource: 415.
    #[error(
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
         application/merge-patch+json, application/apply-patch+yaml"
    )]
    UnsupportedMediaType,
}

/// Applies a JSON patch.
///
/// # Errors
/// [`PatchError::Malformed`] if the patch is no list of operations, [`PatchError::Unprocessable`] if one of them fails.
pub fn json_patch(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    const MAX_OPERATIONS: usize = 10_000;
    if let Some(operations) = patch.as_array().filter(|ops| ops.len() > MAX_OPERATIONS) {
        return Err(PatchError::Unprocessable(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let operations: json_patch::Patch = serde::Deserialize::deserialize(patch)
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    let mut doc = doc.clone();
    json_patch::patch(&mut doc, &operations).map_err(|e| {
        PatchError::Unprocessable(format!(
            "the server rejected our request due to an error in our request: {e}"
        ))
    })?;
    Ok(doc)
}

/// Applies a JSON merge patch: null removes, objects merge, everything else replaces.
pub fn merge_patch(doc: &Value, patch: &Value) -> Value {
    let mut doc = doc.clone();
    merge_into(&mut doc, patch);
    doc
}

fn merge_into(doc: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *doc = patch.clone();
        return;
    };
    if !doc.is_object() {
        *doc = Value::Object(serde_json::Map::new());
    }
    let Value::Object(doc) = doc else { return };
    for (key, value) in patch {
        if value.is_null() {
            doc.remove(key);
        } else {
            merge_into(doc.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Applies a strategic merge patch, whose lists merge by the keys that the schema names.
///
/// # Errors
/// [`PatchError::UnsupportedMediaType`] for CRDs, [`PatchError::Malformed`] for directives that make no sense.
pub fn strategic_merge(schema: &Schema, doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    if schema.origin() == Origin::Crd {
        return Err(PatchError::UnsupportedMediaType);
    }
    if !patch.is_object() {
        return Err(PatchError::Malformed(
            "cannot unmarshal patch: a strategic merge patch must be a JSON object".into(),
        ));
    }
    let mut doc = doc.clone();
    strategic::merge(Some(schema.root()), &mut doc, patch)?;
    Ok(doc)
}

#[cfg(test)]
mod tests;
