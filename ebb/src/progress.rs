//! What a person sees while waiting: a spinner with the stage on a terminal, a line a stage elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One long step.
pub(crate) struct Stage {
    bar: Option<ProgressBar>,
    name: String,
    start: Instant,
}

impl Stage {
    /// Begins a step and shows its name.
    pub(crate) fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>5}") {
                bar.set_style(style);
            }
            bar.set_message(name.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            Some(bar)
        } else {
            eprintln!("  ... {name}");
            None
        };
        Self { bar, name, start: Instant::now() }
    }

    /// What it is doing right now.
    pub(crate) fn note(&self, what: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {}", self.name, what.as_ref())),
            None => eprintln!("      {}", what.as_ref()),
        }
    }

    /// [`Self::note`] for another task.
    pub(crate) fn notes(&self) -> impl Fn(&str) + Send + 'static {
        let (bar, name) = (self.bar.clone(), self.name.clone());
        move |what| match &bar {
            Some(bar) => bar.set_message(format!("{name}: {what}")),
            None => eprintln!("      {what}"),
        }
    }

    /// The step came out right.
    pub(crate) fn done(self, result: impl AsRef<str>) -> Duration {
        let took = self.start.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("  ok  {}: {} ({})", self.name, result.as_ref(), duration(took));
        took
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && !bar.is_finished()
        {
            bar.finish_and_clear();
            eprintln!("  !!  {}", self.name);
        }
    }
}

/// A duration as a person reads it.
pub(crate) fn duration(d: Duration) -> String {
    let ms = d.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1e3)
    }
}

/// A number of bytes as a person reads it.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 1.0 { format!("{:.0} KiB", mib * 1024.0) } else { format!("{mib:.1} MiB") }
}

/// A number of things as a person reads it.
pub(crate) fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}
