//! Log lines on standard error, and how many of them: as EBB_LOG says, until the ConfigMap `config-logging` says otherwise, which is followed.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use ebb_api::config::Logging;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::env::Env;
use crate::watch::{Change, follow};

/// The ConfigMap.
const NAME: &str = "config-logging";

/// What the process's filter is made of. Several components may share a process.
struct Levels {
    filter: reload::Handle<EnvFilter, Registry>,
    /// As the process was started.
    base: String,
    /// Levels by component.
    set: Mutex<BTreeMap<&'static str, &'static str>>,
}

static LEVELS: OnceLock<Levels> = OnceLock::new();

/// Sends log lines to standard error, as JSON or as text. A logger that is there already is as good.
///
/// # Errors
/// When `filter` is none.
pub fn start(filter: &str, json: bool) -> Result<(), String> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|why| format!("EBB_LOG is not a filter such as info or info,ebb_gateway=debug: {why}"))?;
    let (layer, handle) = reload::Layer::new(parsed);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let registry = tracing_subscriber::registry().with(layer);
    let started = if json { registry.with(lines.json()).try_init() } else { registry.with(lines).try_init() };
    if started.is_ok() {
        let _ = LEVELS.set(Levels { filter: handle, base: filter.to_owned(), set: Mutex::default() });
    }
    Ok(())
}

/// As [`start`], from EBB_LOG (default info) and EBB_LOG_FORMAT (text or json).
pub(crate) fn start_from(env: &Env<'_>) -> Result<(), String> {
    let json = match env.text("EBB_LOG_FORMAT", "text").as_str() {
        "text" => false,
        "json" => true,
        other => return Err(format!("EBB_LOG_FORMAT={other:?} is neither text nor json")),
    };
    start(&env.text("EBB_LOG", "info"), json)
}

/// Keeps the levels of `components` as `config-logging` in `namespace` says, until `shutdown`.
pub async fn keep(
    client: Client,
    namespace: String,
    components: Vec<&'static str>,
    shutdown: CancellationToken,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    follow(api, only, shutdown, |change| {
        let data = match change {
            Change::Apply(map) => map.data.unwrap_or_default(),
            Change::Gone { .. } => BTreeMap::new(),
            Change::Synced => return,
        };
        match Logging::parse(&data) {
            Ok(logging) => components.iter().for_each(|component| set(component, logging.of(component))),
            Err(errors) => {
                let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                tracing::warn!("{NAME} is bad, the last good levels stay: {}", errors.join("; "));
            }
        }
    })
    .await;
}

/// Sets the level of a component, or takes it back.
fn set(component: &'static str, level: Option<&'static str>) {
    let Some(levels) = LEVELS.get() else { return };
    let mut set = levels.set.lock();
    let old = match level {
        Some(level) => set.insert(component, level),
        None => set.remove(component),
    };
    if old == level {
        return;
    }
    let text = filter(&levels.base, &set);
    let done = EnvFilter::try_new(&text).map_err(|why| why.to_string());
    match done.and_then(|filter| levels.filter.reload(filter).map_err(|why| why.to_string())) {
        Ok(()) => tracing::info!(component, level = level.unwrap_or("as started"), "log level changed"),
        Err(why) => tracing::warn!(component, why, "the log level could not be changed"),
    }
}

/// What was there at the start, and the level of each component's own code after it, so that it counts.
fn filter(base: &str, set: &BTreeMap<&'static str, &'static str>) -> String {
    let own = set.iter().map(|(component, level)| format!("ebb_{component}={level}"));
    std::iter::once(base.to_owned()).chain(own).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_and_go() {
        let set = BTreeMap::from([("controller", "debug"), ("gateway", "warn")]);
        assert_eq!(filter("info,kube=warn", &set), "info,kube=warn,ebb_controller=debug,ebb_gateway=warn");
        assert_eq!(filter("info", &BTreeMap::new()), "info");

        let told = || tracing::enabled!(target: "ebb_gateway::table", tracing::Level::DEBUG);
        start("warn", false).expect("a filter");
        assert!(!told());
        super::set("gateway", Some("debug"));
        assert!(told());
        super::set("gateway", None);
        assert!(!told());
        assert!(start("no=such=filter", false).is_err());
    }
}
