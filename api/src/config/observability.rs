//! `config-observability`: logs, metrics and traces.

use std::time::Duration;

use super::reader::Reader;
use super::{ConfigError, Data};

/// A request's line where no form is given, as Knative has it: one JSON object.
pub const REQUEST_LOG_TEMPLATE: &str = concat!(
    r#"{"httpRequest": {"requestMethod": "{{.Request.Method}}", "requestUrl": "{{js .Request.RequestURI}}", "#,
    r#""requestSize": "{{.Request.ContentLength}}", "status": {{.Response.Code}}, "responseSize": "{{.Response.Size}}", "#,
    r#""userAgent": "{{js .Request.UserAgent}}", "remoteIp": "{{js .Request.RemoteAddr}}", "serverIp": "{{.Revision.PodIP}}", "#,
    r#""referer": "{{js .Request.Referer}}", "latency": "{{.Response.Latency}}s", "protocol": "{{.Request.Proto}}"}, "#,
    r#""traceId": "{{.TraceID}}"}"#,
);

/// What is written down about requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Observability {
    /// Whether each request is logged.
    pub enable_request_log: bool,
    /// Whether probes are logged as well.
    pub enable_probe_request_log: bool,
    /// The form of a log line.
    pub request_log_template: String,
    /// Whether the gateway logs each request.
    pub enable_gateway_access_log: bool,
    /// The form of its lines; empty for JSON.
    pub gateway_access_log_template: String,
    /// Where the logs of a revision are to be found; `${REVISION_UID}` stands for its uid. Empty: nowhere.
    pub revision_url_template: String,
    /// Whether what apps write below `/var/log` goes to a volume for the node's collector of logs.
    pub enable_var_log_collection: bool,
    /// How often metrics are sent; zero leaves it to the sender.
    pub metrics_export_interval: Duration,
    /// none, prometheus, grpc or http/protobuf.
    pub metrics_protocol: String,
    /// Where metrics are sent.
    pub metrics_endpoint: String,
    /// How often sidecars send the metrics of their requests; zero leaves it to them.
    pub request_metrics_export_interval: Duration,
    /// none, prometheus, grpc or http/protobuf.
    pub request_metrics_protocol: String,
    /// Where they send them.
    pub request_metrics_endpoint: String,
    /// none, grpc, http/protobuf or stdout.
    pub tracing_protocol: String,
    /// Where traces are sent.
    pub tracing_endpoint: String,
    /// The share of requests that are traced, 0 to 1.
    pub tracing_sampling_rate: f64,
}

impl Default for Observability {
    fn default() -> Self {
        Self {
            enable_request_log: false,
            enable_probe_request_log: false,
            request_log_template: REQUEST_LOG_TEMPLATE.into(),
            enable_gateway_access_log: false,
            gateway_access_log_template: String::new(),
            revision_url_template: String::new(),
            enable_var_log_collection: false,
            metrics_export_interval: Duration::ZERO,
            metrics_protocol: String::new(),
            metrics_endpoint: String::new(),
            request_metrics_export_interval: Duration::ZERO,
            request_metrics_protocol: String::new(),
            request_metrics_endpoint: String::new(),
            tracing_protocol: String::new(),
            tracing_endpoint: String::new(),
            tracing_sampling_rate: 0.0,
        }
    }
}

impl Observability {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        r.bool("logging.enable-request-log", &mut c.enable_request_log);
        r.bool("logging.enable-probe-request-log", &mut c.enable_probe_request_log);
        r.string("logging.request-log-template", &mut c.request_log_template);
        r.check(
            !c.enable_request_log || !c.request_log_template.is_empty(),
            "logging.request-log-template",
            || "must not be empty when logging.enable-request-log is true; without the key, lines are as Knative's".into(),
        );
        r.bool("logging.enable-gateway-access-log", &mut c.enable_gateway_access_log);
        r.string("logging.gateway-access-log-template", &mut c.gateway_access_log_template);
        r.string("logging.revision-url-template", &mut c.revision_url_template);
        r.bool("logging.enable-var-log-collection", &mut c.enable_var_log_collection);
        r.duration("metrics-export-interval", &mut c.metrics_export_interval);
        r.string("metrics-protocol", &mut c.metrics_protocol);
        r.string("metrics-endpoint", &mut c.metrics_endpoint);
        r.duration("request-metrics-export-interval", &mut c.request_metrics_export_interval);
        r.string("request-metrics-protocol", &mut c.request_metrics_protocol);
        r.string("request-metrics-endpoint", &mut c.request_metrics_endpoint);
        r.string("tracing-protocol", &mut c.tracing_protocol);
        r.string("tracing-endpoint", &mut c.tracing_endpoint);
        r.float("tracing-sampling-rate", &mut c.tracing_sampling_rate);
        for (key, value, known) in [
            (
                "metrics-protocol",
                &c.metrics_protocol,
                &["", "none", "prometheus", "grpc", "http/protobuf"][..],
            ),
            (
                "request-metrics-protocol",
                &c.request_metrics_protocol,
                &["", "none", "prometheus", "grpc", "http/protobuf"],
            ),
            ("tracing-protocol", &c.tracing_protocol, &["", "none", "grpc", "http/protobuf", "stdout"]),
        ] {
            r.check(known.contains(&value.as_str()), key, || {
                format!("{value:?} is not one of {}", known[1..].join(", "))
            });
        }
        let rate = c.tracing_sampling_rate;
        r.check((0.0..=1.0).contains(&rate), "tracing-sampling-rate", || {
            format!("must be in [0, 1], was: {rate}")
        });
        r.finish(c)
    }
}
