//! Where the time of a cold request went, for the `Server-Timing` header.

use std::time::Duration;

use ebb_http::timing;
use ebb_http::wire::{Announcement, PokeResponse};
use http::HeaderMap;

/// Moments of one request, in microseconds since the Unix epoch.
#[derive(Debug)]
pub(super) struct Breakdown {
    arrived: u64,
    placed: u64,
}

impl Breakdown {
    pub(super) fn new(now: u64) -> Self {
        Self { arrived: now, placed: now }
    }

    /// It got a place at a pod.
    pub(super) fn placed(&mut self, now: u64) {
        self.placed = now;
    }

    /// The pod's answer has begun. `queued` is the whole wait; the entries after it are its parts and come only when
    /// the pod came to be during the wait: `decided` until the autoscaler had decided, `pod` until the sidecar's process
    /// ran (object, scheduling, sandbox), `certified` until it had its certificate, `listening` until the app answered,
    /// `announced` until the request went on. Where the activator's own probe was faster than the announcement, `probed` stands
    /// for all of them after `decided`. `proxied` is the time from there to the head of the answer.
    pub(super) fn finish(
        self,
        headers: &mut HeaderMap,
        poked: Option<&PokeResponse>,
        announced: Option<&Announcement>,
        now: u64,
    ) {
        let between = |from: u64, to: u64| Duration::from_micros(to.saturating_sub(from));
        let mut entries = vec![("queued", between(self.arrived, self.placed))];
        let mut from = self.arrived;
        let decided =
            poked.map(|poked| poked.decided_at_us).filter(|at| (self.arrived..=self.placed).contains(at));
        if let Some(decided) = decided {
            entries.push(("decided", between(from, decided)));
            from = decided;
        }
        if let Some(pod) = announced.filter(|pod| pod.started_at_us > self.arrived) {
            entries.push(("pod", between(from, pod.started_at_us)));
            entries.push(("certified", between(pod.started_at_us, pod.certified_at_us)));
            entries.push((
                "listening",
                between(pod.certified_at_us.max(pod.started_at_us), pod.listening_at_us),
            ));
            entries.push(("announced", between(pod.listening_at_us.max(pod.certified_at_us), self.placed)));
        } else if decided.is_some() {
            entries.push(("probed", between(from, self.placed)));
        }
        entries.push(("proxied", between(self.placed, now)));
        timing::add(headers, &entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(headers: &HeaderMap) -> Vec<String> {
        let text = headers[ebb_http::headers::SERVER_TIMING].to_str().expect("text");
        text.split(", ").map(str::to_owned).collect()
    }

    #[test]
    fn warm_and_cold() {
        let mut headers = HeaderMap::new();
        let mut warm = Breakdown::new(1_000_000);
        warm.placed(1_001_000);
        warm.finish(&mut headers, None, None, 1_003_000);
        assert_eq!(entries(&headers), ["queued;dur=1.000", "proxied;dur=2.000"]);

        let poked = PokeResponse { decided_at_us: 1_001_000, ..PokeResponse::default() };
        let mut headers = HeaderMap::new();
        let mut probed = Breakdown::new(1_000_000);
        probed.placed(1_010_000);
        probed.finish(&mut headers, Some(&poked), None, 1_012_000);
        assert_eq!(
            entries(&headers),
            ["queued;dur=10.000", "decided;dur=1.000", "probed;dur=9.000", "proxied;dur=2.000"]
        );

        let mut headers = HeaderMap::new();
        let mut cold = Breakdown::new(1_000_000);
        cold.placed(1_010_000);
        let poked = PokeResponse { decided_at_us: 1_001_000, ..PokeResponse::default() };
        let pod = Announcement {
            started_at_us: 1_005_000,
            certified_at_us: 1_006_000,
            listening_at_us: 1_009_000,
            ..Announcement::default()
        };
        cold.finish(&mut headers, Some(&poked), Some(&pod), 1_012_000);
        assert_eq!(
            entries(&headers),
            [
                "queued;dur=10.000",
                "decided;dur=1.000",
                "pod;dur=4.000",
                "certified;dur=1.000",
                "listening;dur=3.000",
                "announced;dur=1.000",
                "proxied;dur=2.000"
            ]
        );
    }
}
