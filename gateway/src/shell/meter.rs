//! Requests by Revision: how many, how they ended, how long they took, and whether they went through the activator.
//!
//! Label sets are bounded: what comes beyond shares one that is called `other`. Series are made when they are first counted.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ebb_http::telemetry::Bounded;
use http::StatusCode;
use metrics::{Counter, Histogram, Label};

use crate::table::Key;

/// How many Revisions have series of their own.
const MOST: usize = 1000;
const CLASSES: [&str; 6] = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// Straight to a pod, or through the activator: a cold start, or one that has few pods.
const VIA: [&str; 2] = ["pod", "activator"];

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Meter(Bounded<Arc<Key>, Revision>);

#[derive(Debug)]
struct Revision {
    labels: [Label; 2],
    requests: [[OnceLock<Counter>; 6]; 2],
    duration: [OnceLock<Histogram>; 2],
}

impl Revision {
    fn new(namespace: &str, name: &str) -> Self {
        let labels = [
            Label::new("namespace_name", namespace.to_owned()),
            Label::new("revision_name", name.to_owned()),
        ];
        Self { labels, requests: Default::default(), duration: Default::default() }
    }

    fn record(&self, activator: bool, status: StatusCode, took: Duration) {
        let via = usize::from(activator);
        let class = usize::from(status.as_u16() / 100).min(CLASSES.len() - 1);
        let labels = |more: &[Label]| {
            let mut all = self.labels.to_vec();
            all.push(Label::from_static_parts("via", VIA[via]));
            all.extend_from_slice(more);
            all
        };
        let made = || {
            let class = Label::from_static_parts("code_class", CLASSES[class]);
            metrics::counter!("ebb_gateway_revision_requests_total", labels(&[class]))
        };
        self.requests[via][class].get_or_init(made).increment(1);
        let made = || metrics::histogram!("ebb_gateway_revision_request_duration_seconds", labels(&[]));
        self.duration[via].get_or_init(made).record(took.as_secs_f64());
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self(Bounded::new(MOST, Revision::new("other", "other")))
    }
}

impl Meter {
    /// Counts one answered request.
    pub(crate) fn record(&self, revision: &Arc<Key>, activator: bool, status: StatusCode, took: Duration) {
        let of = self.0.get(revision, || Revision::new(&revision.namespace, &revision.name));
        of.record(activator, status, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_by_revision_way_and_class() {
        ebb_component::metrics::recorder();
        let meter = Meter::default();
        let revision = Arc::new(Key::new("default", "hello-00001"));
        meter.record(&revision, true, StatusCode::OK, Duration::from_millis(3));
        meter.record(&revision, false, StatusCode::BAD_GATEWAY, Duration::from_millis(3));
        let text = ebb_component::metrics::render("gateway");
        for wanted in ["via=\"activator\",code_class=\"2xx\"} 1", "via=\"pod\",code_class=\"5xx\"} 1"] {
            let line = format!(
                "ebb_gateway_revision_requests_total{{namespace_name=\"default\",revision_name=\"hello-00001\",{wanted}"
            );
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }
}
