//! Settings that change while the gateway runs: from the platform's ConfigMaps.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use ebb_api::config::{Data, Network, Observability, ProxyProtocol};
use ebb_component::Traces;
use ebb_http::log::Template;

use super::access_log::{AccessLog, JSON};

const NETWORK: &str = "config-network";
const OBSERVABILITY: &str = "config-observability";

/// What connections and requests look at.
#[derive(Debug, Default)]
pub struct Live {
    /// Whether connections begin with a PROXY protocol header, at the port for HTTP and that for TLS.
    proxied: [AtomicBool; 2],
    /// At which port clients reach the gateway by TLS; 0 for the scheme's own.
    tls_port: AtomicU16,
    /// The access log.
    pub access_log: Arc<AccessLog>,
    traces: OnceLock<Arc<Traces>>,
}

/// One of the ports for the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Http,
    Https,
}

impl Live {
    /// Which ports are behind a load balancer that speaks the PROXY protocol.
    pub fn set_proxy_protocol(&self, at: ProxyProtocol) {
        for (flag, on) in self.proxied.iter().zip([at.http, at.https]) {
            flag.store(on, Ordering::Relaxed);
        }
    }

    /// At which port clients reach the gateway by TLS, where it is not the scheme's own.
    pub(crate) fn tls_port(&self) -> Option<u16> {
        Some(self.tls_port.load(Ordering::Relaxed)).filter(|port| *port != 0)
    }

    /// Traces go here; only the first call counts. Before it there are none.
    pub fn trace_by(&self, traces: Arc<Traces>) {
        let _ = self.traces.set(traces);
    }

    pub(crate) fn traces(&self) -> Option<&Arc<Traces>> {
        self.traces.get()
    }

    pub(crate) fn is_proxied(&self, door: Door) -> bool {
        self.proxied[door as usize].load(Ordering::Relaxed)
    }

    /// Takes a ConfigMap over; an absent one counts as an empty one, a bad one changes nothing.
    pub(crate) fn configure(&self, name: &str, data: &Data) {
        let said = match name {
            NETWORK => Network::parse(data)
                .map(|network| {
                    self.set_proxy_protocol(network.gateway_proxy_protocol);
                    self.tls_port.store(network.external_url_tls_port.unwrap_or(0), Ordering::Relaxed);
                })
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            OBSERVABILITY => Observability::parse(data)
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
                .and_then(|observability| self.observe(&observability)),
            _ => return,
        };
        if let Err(why) = said {
            tracing::warn!(
                config = name,
                why,
                "a ConfigMap cannot be used; what it said before stays in force"
            );
        }
    }

    fn observe(&self, config: &Observability) -> Result<(), String> {
        let form = Some(config.gateway_access_log_template.as_str()).filter(|form| !form.is_empty());
        let template = Template::parse(form.unwrap_or(JSON))
            .map_err(|error| format!("logging.gateway-access-log-template: {error}"))?;
        if let Some(traces) = self.traces() {
            traces.configure(config)?;
        }
        self.access_log.set(config.enable_gateway_access_log.then_some(template));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> Data {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn ports_by_name_and_a_bad_map_changes_nothing() {
        let live = Live::default();
        live.configure(NETWORK, &data(&[("gateway-proxy-protocol", "https")]));
        assert!(live.is_proxied(Door::Https) && !live.is_proxied(Door::Http));
        live.configure(NETWORK, &data(&[("gateway-proxy-protocol", "http,smtp")]));
        assert!(live.is_proxied(Door::Https) && !live.is_proxied(Door::Http));
        live.configure(NETWORK, &data(&[("external-url-tls-port", "8443")]));
        assert_eq!(live.tls_port(), Some(8443));
        live.configure(NETWORK, &data(&[]));
        assert_eq!(live.tls_port(), None);
        assert!(!live.is_proxied(Door::Https));
    }
}
