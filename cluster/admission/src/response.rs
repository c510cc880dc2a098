//! The answer of a webhook.

use base64::Engine;
use serde_json::Value;

use crate::Denied;

/// A well-formed answer.
#[derive(Debug)]
pub(crate) struct Answer {
    allowed: bool,
    status: Option<Value>,
    pub(crate) patch: Option<Value>,
    pub(crate) warnings: Vec<String>,
}

/// Reads an `AdmissionReview`.
///
/// # Errors
/// What is wrong with it, in Kubernetes' words where it has some.
pub(crate) fn parse(body: &[u8], uid: &str) -> Result<Answer, String> {
    let review: Value = serde_json::from_slice(body)
        .map_err(|e| format!("couldn't decode the answer as AdmissionReview: {e}"))?;
    let text =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&review, "apiVersion"), text(&review, "kind"));
    if api_version.is_empty() && kind.is_empty() && !review["response"].is_object() {
        return Err("webhook response was absent".into());
    }
    if api_version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
        ));
    }
    let Some(response) = review.get("response").filter(|r| r.is_object()) else {
        return Err("webhook response was absent".into());
    };
    let answered = text(response, "uid");
    if answered != uid {
        return Err(format!("expected response.uid={uid:?}, got {answered:?}"));
    }
    let patch = match (response.get("patch").and_then(Value::as_str), text(response, "patchType").as_str()) {
        (None | Some(""), "") => None,
        (None | Some(""), _) => {
            return Err("webhook returned response.patchType but not response.patch".into());
        }
        (Some(_), "") => return Err("webhook returned response.patch but not response.patchType".into()),
        (Some(patch), "JSONPatch") => {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(patch)
                .map_err(|e| format!("response.patch is not base64: {e}"))?;
            Some(serde_json::from_slice(&bytes).map_err(|e| format!("response.patch is not JSON: {e}"))?)
        }
        (Some(_), other) => {
            return Err(format!("invalid response.patchType of {other:?}, expected \"JSONPatch\""));
        }
    };
    let warnings = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
    Ok(Answer {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        status: response.get("status").filter(|s| s.is_object()).cloned(),
        patch,
        warnings: warnings.filter_map(Value::as_str).map(str::to_owned).collect(),
    })
}

impl Answer {
    /// The answer, if it allows the request; else the refusal.
    pub(crate) fn allowed(self, webhook: &str) -> Result<Answer, Denied> {
        if self.allowed {
            return Ok(self);
        }
        let status = self.status.unwrap_or_default();
        let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = status
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|c| u16::try_from(c).ok())
            .unwrap_or_default();
        let by = format!("admission webhook {webhook:?} denied the request");
        let (reason, message) = (text("reason"), text("message"));
        let message = if !message.is_empty() {
            format!("{by}: {message}")
        } else if !reason.is_empty() {
            format!("{by}: {reason}")
        } else {
            format!("{by} without explanation")
        };
        // A refusal is a refusal, whatever code came with it.
        let code = if (400..600).contains(&code) { code } else { 400 };
        Err(Denied {
            code,
            reason,
            message,
            details: status.get("details").filter(|d| d.is_object()).cloned(),
        })
    }
}
