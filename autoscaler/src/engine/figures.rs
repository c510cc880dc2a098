//! What is told of the revisions when the metrics are read.

use std::fmt::Write as _;

use super::{Engine, Key};

/// Of more revisions than this nothing is told one by one: what reads metrics has bounds, too.
const SHOWN: usize = 1000;

impl Engine {
    /// Lines as Prometheus reads them: totals, and the pods of each revision that has or wants some.
    pub fn figures(&self) -> String {
        let (all, resting) = self.counts();
        let mut awake: Vec<_> = self.revisions.iter().filter(|(_, revision)| revision.is_awake()).collect();
        awake.sort_unstable_by_key(|(key, _)| *key);
        let hidden = awake.len().saturating_sub(SHOWN);
        awake.truncate(SHOWN);
        let mut text = String::new();
        for (name, value) in
            [("revisions", all), ("revisions_at_rest", resting), ("revisions_not_shown", hidden)]
        {
            let _ = writeln!(text, "# TYPE ebb_autoscaler_{name} gauge\nebb_autoscaler_{name} {value}");
        }
        let mut family = |name: &str, value: &dyn Fn(&super::Revision) -> u32| {
            let _ = writeln!(text, "# TYPE ebb_autoscaler_{name} gauge");
            for (Key { namespace, name: revision }, of) in &awake {
                let labels = format!("namespace=\"{namespace}\",revision=\"{revision}\"");
                let _ = writeln!(text, "ebb_autoscaler_{name}{{{labels}}} {}", value(of));
            }
        };
        family("desired_pods", &|revision| revision.desired().unwrap_or(0));
        family("actual_pods", &super::Revision::ready);
        family("panicking", &|revision| u32::from(revision.is_panicking()));
        text
    }
}
