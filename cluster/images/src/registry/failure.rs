//! Errors in the specification's form: `{"errors":[{"code","message","detail"}]}`.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use crate::ImageError;

/// The specification's codes, with the status that goes with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    RangeInvalid,
    SizeInvalid,
    Denied,
    Unsupported,
    Unknown,
}

impl Code {
    fn parts(self) -> (&'static str, StatusCode) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", StatusCode::BAD_REQUEST),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND),
            Self::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            // 404 by the specification's table, as distribution does it 400: clients look at the code.
            Self::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Self::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST),
            Self::ManifestTooLarge => ("MANIFEST_INVALID", StatusCode::PAYLOAD_TOO_LARGE),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Self::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Self::RangeInvalid => ("RANGE_INVALID", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST),
            Self::Denied => ("DENIED", StatusCode::CONFLICT),
            Self::Unsupported => ("UNSUPPORTED", StatusCode::METHOD_NOT_ALLOWED),
            Self::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// One error of an answer.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::InvalidName { .. } => Code::NameInvalid,
            ImageError::NotFound { .. } => Code::ManifestUnknown,
            ImageError::Corrupt { .. } => Code::DigestInvalid,
            ImageError::Invalid { .. } => Code::ManifestInvalid,
            _ => Code::Unknown,
        };
        if code == Code::Unknown {
            tracing::warn!(%error, "registry request failed");
        }
        Self::new(code, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (code, status) = self.code.parts();
        let mut response = super::json(
            status,
            &json!({"errors": [{"code": code, "message": self.message, "detail": null}]}),
        );
        for (name, value) in self.headers {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
