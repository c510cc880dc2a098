//! Conversion webhooks: custom objects between the versions of their definition.
//!
//! A `ConversionReview` of `apiextensions.k8s.io` takes objects of any versions to one. What comes back must be the same objects: of
//! `metadata` a webhook may change labels and annotations alone, and the rest is put back as it was.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::Webhooks;
use crate::client::Target;

/// As upstream, which does not let a definition say.
const TIMEOUT: u64 = 30;
/// Versions of the review that are spoken, which differ in nothing else.
pub const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

impl Webhooks {
    /// Converts objects of one kind to `wanted` (`group/version`), by `spec.conversion` of their definition; in the order given.
    ///
    /// # Errors
    /// Why it cannot be done, in Kubernetes' words.
    pub async fn convert(
        &self,
        conversion: &Value,
        wanted: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, String> {
        let Some(first) = objects.first() else { return Ok(objects) };
        let text = |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let subject =
            format!("conversion webhook for {}, Kind={}", text(first, "apiVersion"), text(first, "kind"));
        let failed = |cause: String| format!("{subject} failed: {cause}");
        let webhook = &conversion["webhook"];
        let spoken =
            webhook["conversionReviewVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let version = spoken.into_iter().find(|version| REVIEWS.contains(version)).unwrap_or(REVIEWS[0]);
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({"kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects}});
        let target = Target::parse(&webhook["clientConfig"], TIMEOUT).map_err(failed)?;
        let url = target.url.to_string();
        let call = self.clients.post(target, review.to_string().into_bytes());
        let body = match tokio::time::timeout(Duration::from_secs(TIMEOUT), call).await {
            Ok(answer) => answer.map_err(failed)?,
            Err(_) => return Err(failed(format!("Post {url:?}: context deadline exceeded"))),
        };
        let converted =
            answer(&body, review["apiVersion"].as_str().unwrap_or_default(), &uid).map_err(failed)?;
        if converted.len() != objects.len() {
            return Err(format!(
                "{subject} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            ));
        }
        let pairs = objects.iter().zip(converted).enumerate();
        pairs
            .map(|(index, (original, converted))| {
                same(original, converted, wanted).map_err(|wrong| match wrong {
                    Wrong::Object(cause) => {
                        format!("{subject} returned invalid converted object at index {index}: {cause}")
                    }
                    Wrong::Metadata(cause) => {
                        format!("{subject} returned invalid metadata in object at index {index}: {cause}")
                    }
                })
            })
            .collect()
    }
}

/// The objects of an answer.
fn answer(body: &[u8], api_version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let mut review: Value = serde_json::from_slice(body)
        .map_err(|e| format!("couldn't decode the answer as ConversionReview: {e}"))?;
    if review["kind"] != "ConversionReview" || review["apiVersion"] != api_version {
        let got = |field: &str| review[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (got("apiVersion"), got("kind"));
        let version = if version.contains('/') { version } else { format!("/{version}") };
        return Err(format!(
            "expected webhook response of {api_version}, Kind=ConversionReview, got {version}, Kind={kind}"
        ));
    }
    let response = &mut review["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {:?}",
            response["uid"].as_str().unwrap_or_default()
        ));
    }
    let status = response["result"]["status"].as_str().unwrap_or_default();
    if status != "Success" {
        return Err(match response["result"]["message"].as_str() {
            Some(message) if !message.is_empty() => message.to_owned(),
            _ => format!("response.result.status was '{status}', not 'Success'"),
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

enum Wrong {
    Object(String),
    Metadata(String),
}

/// The converted object, if it is the original in another version: with the original's metadata but for labels and annotations.
fn same(original: &Value, mut converted: Value, wanted: &str) -> Result<Value, Wrong> {
    for (field, expected) in [("apiVersion", wanted), ("kind", original["kind"].as_str().unwrap_or_default())]
    {
        if converted[field] != expected {
            let (what, got) = (
                if field == "kind" { "kind" } else { "groupVersion" },
                converted[field].as_str().unwrap_or_default(),
            );
            return Err(Wrong::Object(format!("invalid {what} (expected {expected}, received {got})")));
        }
    }
    let mut metadata: Map<String, Value> = original["metadata"].as_object().cloned().unwrap_or_default();
    let Some(Value::Object(given)) = converted.get_mut("metadata").map(Value::take) else {
        return Err(Wrong::Metadata("missing metadata in converted object".to_owned()));
    };
    for field in ["name", "namespace", "uid"] {
        if given.get(field) != metadata.get(field) {
            return Err(Wrong::Metadata(format!("must have the same {field}")));
        }
    }
    for field in ["labels", "annotations"] {
        match given.get(field) {
            None | Some(Value::Null) => drop(metadata.remove(field)),
            Some(Value::Object(map)) if map.values().all(Value::is_string) => {
                metadata.insert(field.to_owned(), Value::Object(map.clone()));
            }
            Some(_) => {
                return Err(Wrong::Metadata(format!("metadata.{field} must be a map of strings to strings")));
            }
        }
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "g.io/v2";

    fn review(response: Value) -> Vec<u8> {
        json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response})
            .to_string()
            .into_bytes()
    }

    fn told(response: Value) -> Result<Vec<Value>, String> {
        answer(&review(response), "apiextensions.k8s.io/v1", "u")
    }

    #[test]
    fn an_answer_says_that_it_is_one() {
        let good = told(json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{"a": 1}]}));
        assert_eq!(good, Ok(vec![json!({"a": 1})]));
        let refused = told(json!({"uid": "u", "result": {"status": "Failure", "message": "no way"}}));
        assert_eq!(refused, Err("no way".to_owned()));
        assert!(told(json!({"uid": "u"})).unwrap_err().contains("not 'Success'"));
        assert!(
            told(json!({"uid": "x", "result": {"status": "Success"}}))
                .unwrap_err()
                .contains("expected response.uid")
        );
        assert!(told(Value::Null).unwrap_err().contains("no response"));
        assert!(
            answer(b"{}", "apiextensions.k8s.io/v1", "u")
                .unwrap_err()
                .contains("expected webhook response of")
        );
    }

    #[test]
    fn what_comes_back_is_the_same_object() {
        let original = json!({"apiVersion": "g.io/v1", "kind": "Cup", "metadata": {"name": "a", "uid": "u", "labels": {"l": "1"}, "finalizers": ["f"]}});
        let back = |change: fn(&mut Value)| {
            let mut converted =
                json!({"apiVersion": V2, "kind": "Cup", "metadata": {"name": "a", "uid": "u"}, "spec": 1});
            change(&mut converted);
            same(&original, converted, V2)
        };
        let whole = back(|_| {}).ok().unwrap();
        assert_eq!(
            whole["metadata"],
            json!({"name": "a", "uid": "u", "finalizers": ["f"]}),
            "labels are the webhook's to take away"
        );
        assert!(matches!(back(|object| object["kind"] = "Mug".into()), Err(Wrong::Object(_))));
        assert!(matches!(back(|object| object["apiVersion"] = "g.io/v3".into()), Err(Wrong::Object(_))));
        assert!(matches!(back(|object| object["metadata"]["uid"] = "x".into()), Err(Wrong::Metadata(_))));
        assert!(matches!(
            back(|object| object["metadata"]["labels"] = json!({"a": 1})),
            Err(Wrong::Metadata(_))
        ));
        assert!(matches!(back(|object| object["metadata"] = Value::Null), Err(Wrong::Metadata(_))));
    }
}
