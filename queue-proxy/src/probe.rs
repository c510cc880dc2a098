//! Is the app ready? Kubernetes' probe of the user's container, run by the sidecar, because it can look far more often
//! than kubelet does.

mod detect;
mod run;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

pub use self::run::Prober;

/// What to ask the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How.
    pub action: Action,
    /// One attempt takes no longer.
    pub timeout: Duration,
    /// So many in a row make it ready.
    pub successes: u32,
    /// Nothing is asked before; Kubernetes' `initialDelaySeconds`.
    pub initial_delay: Duration,
}

/// The kinds of probe. `exec` runs inside the user's container and is kubelet's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A connection.
    Tcp {
        /// Where.
        port: u16,
    },
    /// A GET answered with 200 to 399.
    Http {
        /// Where.
        port: u16,
        /// Path and query.
        path: String,
        /// Extra headers; `Host` among them wins.
        headers: Vec<(String, String)>,
    },
    /// `grpc.health.v1.Health/Check` answered with SERVING.
    Grpc {
        /// Where.
        port: u16,
        /// The service asked for.
        service: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    tcp_socket: Option<Tcp>,
    http_get: Option<Http>,
    grpc: Option<Grpc>,
    exec: Option<serde_json::Value>,
    timeout_seconds: Option<u64>,
    success_threshold: Option<u32>,
    initial_delay_seconds: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tcp {
    port: serde_json::Value,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    port: serde_json::Value,
    path: String,
    scheme: String,
    http_headers: Vec<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Grpc {
    port: serde_json::Value,
    service: Option<String>,
}

impl Probe {
    /// A TCP connection to `port`.
    pub fn tcp(port: u16) -> Self {
        Self {
            action: Action::Tcp { port },
            timeout: Duration::from_secs(1),
            successes: 1,
            initial_delay: Duration::ZERO,
        }
    }

    /// Reads one probe or a list of them, of which the first is the app's. There is always one.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn parse_all(json: &str, user_port: u16) -> Result<Vec<Self>, String> {
        if !json.trim_start().starts_with('[') {
            return Ok(vec![Self::parse(json, user_port)?]);
        }
        let list: Vec<serde_json::Value> =
            serde_json::from_str(json).map_err(|e| format!("is not a list of probes: {e}"))?;
        let probes: Vec<Self> =
            list.iter().map(|probe| Self::parse(&probe.to_string(), user_port)).collect::<Result<_, _>>()?;
        if probes.is_empty() { Ok(vec![Self::tcp(user_port)]) } else { Ok(probes) }
    }

    /// Reads a `Probe` of Kubernetes. A port that is missing, 0 or a name is the app's.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn parse(json: &str, user_port: u16) -> Result<Self, String> {
        let spec: Spec = serde_json::from_str(json).map_err(|e| format!("is not a probe: {e}"))?;
        let port = |v: &serde_json::Value| match v {
            serde_json::Value::Number(n) => match n.as_u64().map(u16::try_from) {
                Some(Ok(0)) => Ok(user_port),
                Some(Ok(port)) => Ok(port),
                _ => Err(format!("has a port that is none: {n}")),
            },
            serde_json::Value::String(s) => Ok(s.parse().unwrap_or(user_port)),
            _ => Ok(user_port),
        };
        let action = match (spec.http_get, spec.tcp_socket, spec.grpc, spec.exec) {
            (Some(http), None, None, None) => {
                if http.scheme.eq_ignore_ascii_case("https") {
                    return Err("asks for HTTPS, which the app does not speak on its serving port".into());
                }
                let header = |mut h: BTreeMap<String, String>| Some((h.remove("name")?, h.remove("value")?));
                let path = if http.path.starts_with('/') { http.path } else { format!("/{}", http.path) };
                Action::Http {
                    port: port(&http.port)?,
                    path,
                    headers: http.http_headers.into_iter().filter_map(header).collect(),
                }
            }
            (None, Some(tcp), None, None) => Action::Tcp { port: port(&tcp.port)? },
            (None, None, Some(grpc), None) => {
                Action::Grpc { port: port(&grpc.port)?, service: grpc.service.unwrap_or_default() }
            }
            // Kubelet runs it in the app's container; that the app listens is ours to see.
            (None, None, None, _) => Action::Tcp { port: user_port },
            _ => return Err("has more than one of httpGet, tcpSocket, grpc and exec".into()),
        };
        Ok(Self {
            action,
            timeout: Duration::from_secs(spec.timeout_seconds.unwrap_or(1).max(1)),
            successes: spec.success_threshold.unwrap_or(1).max(1),
            initial_delay: Duration::from_secs(spec.initial_delay_seconds.unwrap_or(0)),
        })
    }
}

/// The pause before the next attempt while the app starts: a twentieth of the time so far, 1 to 50 ms. So an app is never
/// noticed later than by 5 % of its own start, plus a millisecond, and a slow one is not hammered.
pub fn pause(since_start: Duration) -> Duration {
    (since_start / 20).clamp(Duration::from_millis(1), Duration::from_millis(50))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        let p = Probe::parse(
            r#"{"httpGet":{"path":"/ready","port":0,"scheme":"HTTP","httpHeaders":[{"name":"X-A","value":"1"}]},"timeoutSeconds":3,"successThreshold":2,"periodSeconds":10}"#,
            8080,
        )
        .unwrap();
        let headers = vec![("X-A".into(), "1".into())];
        assert_eq!(p.action, Action::Http { port: 8080, path: "/ready".into(), headers });
        assert_eq!((p.timeout, p.successes), (Duration::from_secs(3), 2));
        assert_eq!(
            Probe::parse(r#"{"tcpSocket":{"port":9000}}"#, 8080).unwrap().action,
            Action::Tcp { port: 9000 }
        );
        assert_eq!(
            Probe::parse(r#"{"grpc":{"port":8080,"service":null}}"#, 8080).unwrap().action,
            Action::Grpc { port: 8080, service: String::new() }
        );
        assert_eq!(
            Probe::parse(r#"{"exec":{"command":["x"]}}"#, 8080).unwrap().action,
            Action::Tcp { port: 8080 }
        );
        assert!(Probe::parse(r#"{"tcpSocket":{},"grpc":{}}"#, 8080).is_err());
        let all = Probe::parse_all(r#"[{"tcpSocket":{"port":0}}, {"tcpSocket":{"port":9}}]"#, 8080).unwrap();
        let ports: Vec<_> = all.into_iter().map(|p| p.action).collect();
        assert_eq!(ports, [Action::Tcp { port: 8080 }, Action::Tcp { port: 9 }]);
        assert_eq!(Probe::parse_all("[]", 8080).unwrap(), [Probe::tcp(8080)]);
        assert!(Probe::parse_all("[{}, 1]", 8080).is_err());
        assert!(Probe::parse(r#"{"httpGet":{"port":70000}}"#, 8080).is_err());
    }

    #[test]
    fn a_fast_app_is_noticed_fast_and_a_slow_one_is_not_hammered() {
        assert_eq!(pause(Duration::ZERO), Duration::from_millis(1));
        assert_eq!(pause(Duration::from_millis(20)), Duration::from_millis(1));
        assert_eq!(pause(Duration::from_millis(400)), Duration::from_millis(20));
        assert_eq!(pause(Duration::from_secs(30)), Duration::from_millis(50));
    }
}
