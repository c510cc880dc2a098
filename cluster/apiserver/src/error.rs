//! Kubernetes' `Status` errors.

use cluster_schema::FieldError;
use http::StatusCode;
use serde_json::{Value, json};

use crate::store::StoreError;

/// An answer other than success, as clients of Kubernetes know it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    /// The HTTP status.
    pub code: StatusCode,
    /// The machine-readable reason.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// `details` of the Status.
    pub details: Option<Value>,
}

/// What an error is about: group, plural (or kind) and name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Subject<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural resource name.
    pub resource: &'a str,
    /// Object name.
    pub name: &'a str,
}

impl Subject<'_> {
    /// `deployments.apps`, or `pods`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    fn details(&self) -> Value {
        let mut details = json!({});
        if !self.resource.is_empty() {
            details["kind"] = self.resource.into();
        }
        if !self.name.is_empty() {
            details["name"] = self.name.into();
        }
        if !self.group.is_empty() {
            details["group"] = self.group.into();
        }
        details
    }
}

/// The reason of errors that are no `Status`.
const PAGE: &str = "page";

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, subject: Subject<'_>) -> Self {
        self.details = Some(subject.details());
        self
    }

    /// 400: the request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403, with the cause.
    pub(crate) fn forbidden(subject: Subject<'_>, cause: impl std::fmt::Display) -> Self {
        let qualified = subject.qualified();
        let message = if subject.name.is_empty() {
            format!("{qualified} is forbidden: {cause}")
        } else {
            format!("{qualified} \"{}\" is forbidden: {cause}", subject.name)
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(subject)
    }

    /// 404: no such object.
    pub(crate) fn not_found(subject: Subject<'_>) -> Self {
        let message = format!("{} \"{}\" not found", subject.qualified(), subject.name);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(subject)
    }

    /// 404: no such path.
    pub(crate) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
            .with_empty_details()
    }

    /// 404 outside of every API group: upstream answers in plain text.
    pub(crate) fn no_such_page() -> Self {
        Self::new(StatusCode::NOT_FOUND, PAGE, "404 page not found")
    }

    /// Is it an answer in plain text?
    pub(crate) fn is_page(&self) -> bool {
        self.reason == PAGE
    }

    /// 422: what is wrong with a request's own options, such as `DeleteOptions`.
    pub(crate) fn options(kind: &str, errors: &[FieldError]) -> Self {
        Self::invalid("meta.k8s.io", kind, "", errors)
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).with_empty_details()
    }

    /// Upstream's generic answers carry `details: {}`.
    fn with_empty_details(mut self) -> Self {
        self.details = Some(json!({}));
        self
    }

    /// 406: none of the accepted forms can be produced.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml",
        )
        .with_empty_details()
    }

    /// 415: a patch of no known kind.
    pub(crate) fn unknown_patch() -> Self {
        let message = "415: Unsupported Media Type";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message).with_empty_details()
    }

    /// 415.
    pub(crate) fn unsupported_media(accepted: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// 409: an object of that name is there.
    pub(crate) fn already_exists(subject: Subject<'_>) -> Self {
        let message = format!("{} \"{}\" already exists", subject.qualified(), subject.name);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(subject)
    }

    /// 409: another writer was faster, or a precondition does not hold.
    pub(crate) fn conflict(subject: Subject<'_>, cause: impl std::fmt::Display) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{}\": {cause}", subject.qualified(), subject.name);
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(subject)
    }

    /// 409: the object is not in the state that the writer saw.
    pub(crate) fn modified(subject: Subject<'_>) -> Self {
        Self::conflict(
            subject,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of server-side apply: `(manager, field)` for each field that another manager owns. One conflict is told in a line, more
    /// of them by manager.
    pub(crate) fn apply_conflicts(conflicts: &[(String, String)]) -> Self {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field})
            })
            .collect();
        let mut lines: Vec<String> = Vec::new();
        let mut managers: Vec<&str> = conflicts.iter().map(|(manager, _)| manager.as_str()).collect();
        managers.sort_unstable();
        managers.dedup();
        for manager in managers {
            let fields = conflicts.iter().filter(|(other, _)| other == manager).map(|(_, field)| field);
            if conflicts.len() == 1 {
                lines.extend(fields.map(|field| format!("conflict with {manager}: {field}")));
            } else {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(fields.map(|field| format!("- {field}")));
            }
        }
        let plural = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
        let message = format!("Apply failed with {} {plural}: {}", conflicts.len(), lines.join("\n"));
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        error.details = Some(json!({"causes": causes}));
        error
    }

    /// 410: the revision asked for is no longer known.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 422, with a cause for each field.
    pub(crate) fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| {
                let field = if error.field.is_empty() { "<nil>" } else { &error.field };
                json!({"reason": error.reason.as_str(), "message": error.body(), "field": field})
            })
            .collect();
        let subject = Subject { group, resource: kind, name };
        let mut lines: Vec<String> = Vec::with_capacity(errors.len());
        for line in errors.iter().map(ToString::to_string) {
            // The same said twice is read once; the causes keep both.
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let list = if lines.len() == 1 { lines[0].clone() } else { format!("[{}]", lines.join(", ")) };
        let qualified = subject.qualified();
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {list}"),
        );
        let mut details = subject.details();
        details["causes"] = causes.into();
        error.details = Some(details);
        error
    }

    /// 429: a disruption budget or a quota says not now.
    pub(crate) fn too_many_requests(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }

    /// 500.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {cause}"),
        )
    }

    /// 500 in the words of whatever failed, without a reason: what upstream answers where it has no better class of error.
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// 503.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// An error that an admission webhook gave.
    pub(crate) fn denied(code: u16, reason: &str, message: String, details: Option<Value>) -> Self {
        let code = StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN);
        let known =
            ["Forbidden", "Invalid", "BadRequest", "Conflict", "NotFound", "AlreadyExists", "InternalError"];
        // As upstream, the webhook's own reason or none.
        let reason = known.into_iter().find(|known| *known == reason).unwrap_or_default();
        Self { code, reason, message, details }
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}
