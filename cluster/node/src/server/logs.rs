//! `kubectl logs`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{Refusal, find};
use crate::context::Context;
use crate::logs::Logs;
use crate::logs::reader::{self, Options};

/// The query, in the names of `PodLogOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Parameters {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<usize>,
}

fn flag(value: Option<&String>) -> bool {
    value.is_some_and(|value| matches!(value.as_str(), "" | "true" | "1"))
}

impl Parameters {
    fn options(&self, now: Timestamp) -> Result<Options, Refusal> {
        let bad = |message: &str| (StatusCode::BAD_REQUEST, format!("{message}\n"));
        let since = match (&self.since_time, self.since_seconds) {
            (Some(time), _) => Some(time.parse().map_err(|_| bad("sinceTime is no RFC 3339 time"))?),
            (None, Some(seconds)) => Some(now - SignedDuration::from_secs(seconds)),
            (None, None) => None,
        };
        let tail = match self.tail_lines {
            Some(lines) if lines < 0 => return Err(bad("tailLines must be greater than or equal to 0")),
            other => other.and_then(|lines| usize::try_from(lines).ok()),
        };
        Ok(Options {
            follow: flag(self.follow.as_ref()),
            tail,
            since,
            timestamps: flag(self.timestamps.as_ref()),
            limit_bytes: self.limit_bytes,
        })
    }
}

pub(crate) async fn logs(
    State(context): State<Arc<Context>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    let view = find(&context, &namespace, &pod)?;
    let latest = view.attempts.lock().get(&container).copied().ok_or_else(|| {
        (StatusCode::NOT_FOUND, format!("container {container} is not valid for pod {pod}\n"))
    })?;
    let options = parameters.options(Timestamp::now())?;
    let number = if flag(parameters.previous.as_ref()) { latest - 1 } else { latest };
    let mut path = Logs::path(&view.log_dir, &container, number);
    if !path.exists() {
        // Between two runs the latest log is the last run's.
        let before = Logs::path(&view.log_dir, &container, number - 1);
        if flag(parameters.previous.as_ref()) || !before.exists() {
            let what = if number < latest { "previous terminated container" } else { "container" };
            let message = format!("{what} {container:?} in pod {pod:?} is waiting to start or not found\n");
            return Err((StatusCode::BAD_REQUEST, message));
        }
        path = before;
    }
    let live = context.logs.watch(&path);
    let stream = reader::read(path, options, live);
    Ok(([("content-type", "text/plain")], Body::from_stream(stream)).into_response())
}
