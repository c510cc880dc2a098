//! Admission webhooks: which configurations there are, and what a request tells them.

use serde_json::Value;

use crate::error::ApiError;
use crate::handlers::Ctx;

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// Calls the webhooks that are configured.
#[derive(Default)]
pub(crate) struct Hooks;

impl Hooks {
    pub(crate) fn new() -> Self {
        Self
    }
    /// Lets mutating webhooks change the object; was any called?
    pub(crate) async fn mutate(
        &self,
        _ctx: &Ctx,
        _operation: Operation,
        _old: Option<&Value>,
        _object: &mut Value,
        _dry_run: bool,
    ) -> Result<bool, ApiError> {
        std::future::ready(Ok(false)).await
    }

    /// Asks validating webhooks.
    pub(crate) async fn validate(
        &self,
        _ctx: &Ctx,
        _operation: Operation,
        _old: Option<&Value>,
        _object: Option<&Value>,
        _dry_run: bool,
    ) -> Result<(), ApiError> {
        std::future::ready(Ok(())).await
    }
}
