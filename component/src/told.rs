//! Errors for people: each cause once, and of what the API server answered the message alone.

use std::error::Error;

/// An error with its causes. What a message says already is not said again.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = one(error);
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = one(inner);
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        // Its own cause is the whole answer, in another form.
        cause = if kube(inner).is_some() { None } else { inner.source() };
    }
    text
}

/// What the API server answered, or why it could not be asked. An error of the crate kube shows all fields of the answer as well.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::Service(cause) => told(&**cause),
        other => other.to_string(),
    }
}

fn one(error: &(dyn Error + 'static)) -> String {
    kube(error).map_or_else(|| error.to_string(), said)
}

fn kube<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a kube::Error> {
    error.downcast_ref::<kube::Error>().or_else(|| error.downcast_ref::<Box<kube::Error>>().map(|b| &**b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot read {path}: {source}")]
        Says { path: &'static str, source: std::io::Error },
        #[error("cannot look")]
        Keeps(#[source] Box<kube::Error>),
    }

    #[test]
    fn a_cause_is_said_once_and_an_answer_without_its_fields() {
        let says = Outer::Says { path: "/x", source: std::io::Error::other("it is gone") };
        assert_eq!(told(&says), "cannot read /x: it is gone");
        let status: kube::core::Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "message": "pods is forbidden", "reason": "Forbidden", "code": 403
        }))
        .expect("a status");
        let keeps = Outer::Keeps(Box::new(kube::Error::Api(Box::new(status))));
        assert_eq!(told(&keeps), "cannot look: pods is forbidden");
    }
}
