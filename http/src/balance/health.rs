//! How much a backend has failed of late, as a factor on its load: whoever fails fast must not look idle and draw all requests.
//!
//! Each failure adds one, each success halves, and time halves every [`HALF_LIFE`]. Nobody is ever shut out: a backend with a penalty is chosen
//! where the other one is busier by that factor, and after a while without failures it is like all others again. A fault that all share
//! (the app's own bug) changes nothing, because it is the comparison that counts. Slow backends need no penalty: their requests pile up.

use std::time::Duration;

/// After so long a penalty is half of what it was.
pub const HALF_LIFE: Duration = Duration::from_secs(5);
/// More failures than this make no difference, so that recovery does not take longer than a minute.
const MOST: f64 = 1000.0;

/// See the module's documentation. Times are of any monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    failures: f64,
    at: Duration,
}

impl Health {
    /// A request failed, or did not.
    pub fn record(&mut self, failed: bool, now: Duration) {
        let before = self.penalty(now);
        self.failures = if failed { (before + 1.0).min(MOST) } else { before / 2.0 };
        self.at = now;
    }

    /// Recent failures; 0 for a good backend.
    pub fn penalty(&self, now: Duration) -> f64 {
        if self.failures == 0.0 {
            return 0.0;
        }
        let halves = now.saturating_sub(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let left = self.failures * (-halves).exp2();
        // Half of one failure is none: however little load there is, whoever failed once is asked again.
        if left <= 0.5 { 0.0 } else { left }
    }
}

/// What balancing compares: requests under way, this one included, times the penalty.
pub fn load(in_flight: usize, penalty: f64) -> f64 {
    (in_flight as f64 + 1.0) * (1.0 + penalty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Random, p2c};

    /// Pods that take requests of one virtual second's `rate` for a while; `serve` says how long one takes and whether it fails.
    fn simulate(
        seconds: u64,
        rate: u64,
        pods: usize,
        serve: impl Fn(usize, Duration) -> (Duration, bool),
    ) -> Vec<Vec<u32>> {
        let mut random = Random::new(11);
        let mut health = vec![Health::default(); pods];
        let mut under_way: Vec<Vec<(Duration, bool)>> = vec![Vec::new(); pods];
        let mut counts = Vec::new();
        for second in 0..seconds {
            let mut taken = vec![0; pods];
            for n in 0..rate {
                let now = Duration::from_secs(second) + Duration::from_secs(1) * n as u32 / rate as u32;
                for pod in 0..pods {
                    under_way[pod].retain(|&(end, failed)| {
                        if end <= now {
                            health[pod].record(failed, end);
                        }
                        end > now
                    });
                }
                let pod = p2c(pods, random.next_u64(), |i| load(under_way[i].len(), health[i].penalty(now)));
                let pod = pod.unwrap();
                taken[pod] += 1;
                let (took, failed) = serve(pod, now);
                under_way[pod].push((now + took, failed));
            }
            counts.push(taken);
        }
        counts
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn good_pods_share_evenly() {
        let counts = simulate(10, 1000, 4, |_, _| (20 * MS, false));
        let of: Vec<u32> = (0..4).map(|pod| counts.iter().map(|s| s[pod]).sum()).collect();
        assert!(of.iter().all(|n| (2300..2700).contains(n)), "{of:?}");
    }

    #[test]
    fn a_pod_that_fails_fast_draws_no_more_than_its_probes_and_is_forgiven() {
        let until = Duration::from_secs(10);
        let counts =
            simulate(
                60,
                500,
                3,
                |pod, now| {
                    if pod == 0 && now < until { (MS, true) } else { (20 * MS, false) }
                },
            );
        let failed: u32 = counts[..10].iter().map(|s| s[0]).sum();
        assert!(failed < 150, "{failed} of 5000 went to the failing pod");
        let later: u32 = counts[50..].iter().map(|s| s[0]).sum();
        assert!((1400..1950).contains(&later), "{later} of 5000 once it is well");
    }

    #[test]
    fn a_slow_pod_gets_what_it_can_do() {
        let counts =
            simulate(20, 500, 3, |pod, _| if pod == 0 { (500 * MS, false) } else { (20 * MS, false) });
        let slow: u32 = counts[5..].iter().map(|s| s[0]).sum();
        let all: u32 = counts[5..].iter().flatten().sum();
        assert!(f64::from(slow) < 0.1 * f64::from(all), "{slow} of {all}");
    }

    #[test]
    fn a_fault_of_all_is_nobodys() {
        let counts = simulate(10, 500, 3, |_, _| (5 * MS, true));
        let of: Vec<u32> = (0..3).map(|pod| counts.iter().map(|s| s[pod]).sum()).collect();
        assert!(of.iter().all(|n| (1300..2050).contains(n)), "{of:?}");
    }
}
