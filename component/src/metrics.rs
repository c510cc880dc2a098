//! Metrics of the process, as Prometheus reads them and as collectors get them. Histograms are kept in two forms, with the classic buckets and
//! [native](native/index.html) ones; the latter are told to whoever asks for protobuf, as Prometheus does that wants them.
//!
//! All components of a process share one recorder; the name of a metric says whose it is (`ebb_<component>_...`), and each component's port
//! tells its own only, so that they look the same in one process as in four. Labels are few and of a fixed set: what is told for each
//! revision comes from the component itself at the moment of asking, cut off at a number.

pub(crate) mod exposition;
mod native;
pub(crate) mod push;

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use ebb_http::otlp::metrics::text;

use self::native::{Both, Natives};

/// Bounds for what takes between a fraction of a millisecond and a minute.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Samples of histograms are kept one by one until somebody sums them up: so often at least.
pub const UPKEEP: Duration = Duration::from_secs(5);

/// Linux counts processor time in hundredths of a second, as seen by programs, on every architecture that there is.
const TICKS: f64 = 100.0;

/// The recorder of this process; the first call installs it. Metrics that are registered before that go nowhere.
pub fn recorder() -> &'static PrometheusHandle {
    &installed().0
}

fn installed() -> &'static (PrometheusHandle, Arc<Natives>) {
    static INSTALLED: OnceLock<(PrometheusHandle, Arc<Natives>)> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        // An empty list of bounds is the only one that is refused.
        let builder = builder.set_buckets(&SECONDS).unwrap_or_else(|_| PrometheusBuilder::new());
        let classic = builder.build_recorder();
        let (handle, natives) = (classic.handle(), Arc::<Natives>::default());
        if metrics::set_global_recorder(Both { classic, natives: natives.clone() }).is_err() {
            tracing::warn!("another recorder of metrics is installed: there are none to be read here");
        }
        (handle, natives)
    })
}

/// What `component`'s port answers, without what the component adds itself.
pub fn render(component: &str) -> String {
    let mut text = of_component(&recorder().render(), component);
    text.push_str(&process(component));
    text
}

/// A page of text in the form that carries native histograms.
pub(crate) fn exposition(page: &str) -> Vec<u8> {
    let natives = installed().1.snapshots();
    exposition::page(&text::parse(page), |family, point| {
        natives.get(&native::id(&family.name, point.labels.clone())).cloned()
    })
}

/// The families whose names begin with `ebb_<component>_`.
fn of_component(all: &str, component: &str) -> String {
    let prefix = format!("ebb_{component}_");
    let mut kept = String::new();
    for line in all.lines() {
        let name = line.strip_prefix("# TYPE ").or_else(|| line.strip_prefix("# HELP ")).unwrap_or(line);
        if name.starts_with(&prefix) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The process, by the names that dashboards know.
fn process(component: &str) -> String {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(
        text,
        "# TYPE ebb_build_info gauge\nebb_build_info{{component=\"{component}\",version=\"{version}\"}} 1"
    );
    let mut tell = |name: &str, kind: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        }
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may hold spaces.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let cpu = field(11).zip(field(12)).map(|(user, system)| (user + system) / TICKS);
    tell("process_cpu_seconds_total", "counter", cpu);
    tell("process_threads", "gauge", field(17));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    tell("process_resident_memory_bytes", "gauge", kilobytes.map(|kilobytes| kilobytes * 1024.0));
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    tell("process_open_fds", "gauge", open);
    let started = std::fs::metadata("/proc/self").and_then(|data| data.modified()).ok();
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64()).ok();
    tell("process_start_time_seconds", "gauge", started.and_then(seconds));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_component_tells_its_own() {
        let all = "# TYPE ebb_gateway_requests_total counter\nebb_gateway_requests_total{a=\"b\"} 1\n\n\
                   # TYPE ebb_activator_requests_total counter\nebb_activator_requests_total 2\n";
        assert_eq!(of_component(all, "activator").lines().count(), 2);
        assert!(of_component(all, "activator").contains("ebb_activator_requests_total 2"));
        assert_eq!(of_component(all, "act"), "");
    }

    #[test]
    fn what_is_recorded_can_be_read() {
        recorder();
        metrics::counter!("ebb_test_things_total", "kind" => "one").increment(3);
        metrics::histogram!("ebb_test_seconds").record(0.02);
        let text = render("test");
        assert!(text.contains("ebb_test_things_total{kind=\"one\"} 3"), "{text}");
        assert!(text.contains("ebb_test_seconds_bucket{le=\"0.025\"} 1"), "{text}");
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            assert!(value.is_some_and(|value| value >= 0.0), "{name}: {text}");
        }
    }
}
