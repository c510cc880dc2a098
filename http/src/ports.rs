//! The ports of the data path. Apps may not take the queue-proxy's: admission refuses them.

/// Queue-proxy and activator: HTTP/1.1, and h2c by prior knowledge.
pub const HTTP1: u16 = 8012;
/// Queue-proxy and activator: h2c (HTTP/1.1 is understood as well).
pub const H2C: u16 = 8013;
/// Mutual TLS, HTTP/1.1 or HTTP/2 by ALPN: queue-proxy, activator, and the autoscaler's report endpoint.
pub const MTLS: u16 = 8112;
/// Queue-proxy: drain and readiness, for kubelet and preStop.
pub const ADMIN: u16 = 8022;
/// Queue-proxy: load reports for the autoscaler, mutual TLS.
pub const AUTOSCALE_METRICS: u16 = 9090;
/// Queue-proxy: Prometheus metrics, plain.
pub const USER_METRICS: u16 = 9091;
/// Components other than the queue-proxy: Prometheus metrics.
pub const METRICS: u16 = 9090;
/// Components: liveness and readiness.
pub const HEALTH: u16 = 8081;
/// Controller: the certificate authority's endpoint.
pub const CA: u16 = 8114;
/// Gateway: the listener for requests from inside the cluster.
pub const GATEWAY_LOCAL: u16 = 8082;
