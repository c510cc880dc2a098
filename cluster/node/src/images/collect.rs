//! Images that no pod uses go when the disk gets full, as with kubelet: above 85 percent, those unused for the longest time, until no
//! more than 80 are used.
//!
//! Only images that were fetched from elsewhere go, for they can be fetched again; what was pushed or built here is nowhere else. What
//! is chosen is pure ([`demand`], [`choose`]).

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::{Cached, ImageSource};
use crate::context::Context;

/// How often the disk is looked at.
const PERIOD: Duration = Duration::from_secs(300);

/// When images go. The defaults are kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Percent of the disk in use above which images go.
    pub(crate) high: u64,
    /// Percent at which enough have gone.
    pub(crate) low: u64,
    /// Younger ones stay: a pod that wants it may be on its way.
    pub(crate) min_age: SignedDuration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { high: 85, low: 80, min_age: SignedDuration::from_mins(2) }
    }
}

/// The disk that images are on, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) capacity: u64,
    pub(crate) available: u64,
}

impl Disk {
    fn of(path: &Path) -> Option<Self> {
        let stat = nix::sys::statvfs::statvfs(path).ok()?;
        // The types differ between architectures.
        #[allow(clippy::useless_conversion)]
        let (size, blocks) = (u64::from(stat.fragment_size()), u64::from(stat.blocks()));
        #[allow(clippy::useless_conversion)]
        let free = u64::from(stat.blocks_available());
        Some(Self { capacity: blocks * size, available: free * size })
    }
}

/// How many bytes have to be freed; None while the disk is not too full.
pub(crate) fn demand(disk: Disk, thresholds: Thresholds) -> Option<u64> {
    let percent = |share: u64| u128::from(disk.capacity) * u128::from(share) / 100;
    let used = u128::from(disk.capacity.saturating_sub(disk.available));
    if disk.capacity == 0 || used <= percent(thresholds.high) {
        return None;
    }
    u64::try_from(used - percent(thresholds.low)).ok()
}

/// Which images pods use, and when each was last used. Images are known by their digests.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    inner: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by_pod: HashMap<String, HashSet<String>>,
    last: HashMap<String, Timestamp>,
}

impl Uses {
    /// A pod has an image; `id` is `name@digest`.
    pub(crate) fn take(&self, pod: &str, id: &str) {
        self.inner.lock().by_pod.entry(pod.to_owned()).or_default().insert(digest(id).to_owned());
    }

    /// A pod is gone.
    pub(crate) fn leave(&self, pod: &str, now: Timestamp) {
        let mut held = self.inner.lock();
        for digest in held.by_pod.remove(pod).unwrap_or_default() {
            held.last.insert(digest, now);
        }
    }

    fn in_use(&self) -> HashSet<String> {
        self.inner.lock().by_pod.values().flatten().cloned().collect()
    }

    fn last(&self, digest: &str) -> Option<Timestamp> {
        self.inner.lock().last.get(digest).copied()
    }

    fn keep(&self, digests: &HashSet<String>) {
        self.inner.lock().last.retain(|digest, _| digests.contains(digest));
    }
}

fn digest(id: &str) -> &str {
    id.rsplit_once('@').map_or(id, |(_, digest)| digest)
}

/// The names to be forgotten, those unused for the longest time first, until `need` bytes are hoped to be free.
pub(crate) fn choose(
    cached: &[Cached],
    uses: &Uses,
    need: u64,
    min_age: SignedDuration,
    now: Timestamp,
) -> Vec<String> {
    let in_use = uses.in_use();
    let last_used = |image: &Cached| uses.last(&image.digest).unwrap_or(image.since).max(image.since);
    let mut unused: Vec<&Cached> = cached
        .iter()
        .filter(|image| !in_use.contains(&image.digest) && now.duration_since(image.since) >= min_age)
        .collect();
    unused.sort_by_key(|image| (last_used(image), image.since, &image.name));
    let (mut names, mut freed) = (Vec::new(), 0);
    let mut counted = HashSet::new();
    for image in unused {
        // Further names of an image that goes are of no use either, and free nothing.
        if freed >= need && !counted.contains(&image.digest) {
            break;
        }
        if counted.insert(&image.digest) {
            freed += image.bytes;
        }
        names.push(image.name.clone());
    }
    names
}

/// Looks once; what was freed, if anything had to be.
pub(crate) async fn round(
    images: &dyn ImageSource,
    uses: &Uses,
    disk: Disk,
    thresholds: Thresholds,
    now: Timestamp,
) -> Option<u64> {
    let need = demand(disk, thresholds)?;
    let cached = images.cached();
    uses.keep(&cached.iter().map(|image| image.digest.clone()).collect());
    let names = choose(&cached, uses, need, thresholds.min_age, now);
    let in_use: Vec<String> = uses.in_use().into_iter().collect();
    match images.discard(&names, &in_use).await {
        Ok(freed) if freed >= need => {
            info!(need, freed, ?names, "the disk was too full: unused images are gone");
        }
        Ok(freed) => {
            warn!(
                "the disk of the data directory is more than {} % full, and removing unused images is not enough: free {:.1} GiB of it",
                thresholds.high,
                (need - freed) as f64 / f64::from(1 << 30)
            );
            return Some(freed);
        }
        Err(cause) => {
            warn!(need, cause, "the disk is too full, and unused images cannot be removed");
            return Some(0);
        }
    }
    Some(need)
}

/// When to look: not right at the start, when no pod has its images yet, so that all would seem unused.
fn looks() -> Interval {
    let mut looks = interval_at(Instant::now() + PERIOD, PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Looks now and then, until the node is stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let mut tick = looks();
    loop {
        tokio::select! {
            () = context.closing.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Some(disk) = Disk::of(&context.data_dir) {
            let thresholds = Thresholds::default();
            round(context.images.as_ref(), &context.image_uses, disk, thresholds, Timestamp::now()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::images::{Image, ImageFailure, Policy};

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    fn cached(name: &str, digest: &str, bytes: u64, since: i64) -> Cached {
        Cached { name: name.into(), digest: digest.into(), bytes, since: at(since) }
    }

    #[test]
    fn nothing_is_asked_for_up_to_the_high_mark_and_then_down_to_the_low_one() {
        let disk = |used: u64| Disk { capacity: 1000, available: 1000 - used };
        let defaults = Thresholds::default();
        assert_eq!(demand(disk(850), defaults), None);
        assert_eq!(demand(disk(851), defaults), Some(51));
        assert_eq!(demand(disk(1000), defaults), Some(200));
        assert_eq!(demand(Disk { capacity: 0, available: 0 }, defaults), None);
    }

    #[test]
    fn the_longest_unused_go_first_and_those_in_use_or_young_stay() {
        let uses = Uses::default();
        uses.take("a", "app@sha256:used");
        uses.take("b", "app@sha256:lately");
        uses.take("b", "app@sha256:used");
        uses.leave("b", at(50));
        let all = [
            cached("used", "sha256:used", 100, 1),
            cached("lately", "sha256:lately", 100, 1),
            cached("old", "sha256:old", 100, 2),
            cached("older", "sha256:older", 100, 1),
            cached("older-too", "sha256:older", 100, 1),
            cached("young", "sha256:young", 100, 59),
        ];
        let chosen = |need| choose(&all, &uses, need, SignedDuration::from_mins(2), at(60));
        assert_eq!(chosen(1), ["older", "older-too"], "with all its names");
        assert_eq!(chosen(100), ["older", "older-too"]);
        assert_eq!(chosen(101), ["older", "older-too", "old"]);
        assert_eq!(chosen(u64::MAX), ["older", "older-too", "old", "lately"]);
        uses.leave("a", at(55));
        assert_eq!(chosen(u64::MAX).last().map(String::as_str), Some("used"), "no pod has it any more");
    }

    #[derive(Default)]
    struct Source(Mutex<Vec<(Vec<String>, Vec<String>)>>);

    #[async_trait]
    impl ImageSource for Source {
        async fn ensure(
            &self,
            _: &str,
            _: Policy,
            _: &[Vec<u8>],
            _: Box<dyn FnOnce() + Send>,
        ) -> Result<Image, ImageFailure> {
            unreachable!("no pod is started here")
        }

        fn cached(&self) -> Vec<Cached> {
            vec![cached("old", "sha256:old", 60, 0), cached("used", "sha256:used", 60, 0)]
        }

        async fn discard(&self, names: &[String], in_use: &[String]) -> Result<u64, String> {
            self.0.lock().push((names.to_vec(), in_use.to_vec()));
            Ok(60)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_have_time_to_take_their_images() {
        let begun = Instant::now();
        looks().tick().await;
        assert!(begun.elapsed() >= PERIOD);
    }

    #[tokio::test]
    async fn a_full_disk_loses_what_no_pod_uses() {
        let (source, uses) = (Source::default(), Uses::default());
        uses.take("a", "app@sha256:used");
        let look = async |available| {
            round(&source, &uses, Disk { capacity: 1000, available }, Thresholds::default(), at(60)).await
        };
        assert_eq!(look(150).await, None);
        assert!(source.0.lock().is_empty());
        assert_eq!(look(149).await, Some(51));
        assert_eq!(*source.0.lock(), [(vec!["old".to_owned()], vec!["sha256:used".to_owned()])]);
        assert_eq!(look(0).await, Some(60), "all there is, and not enough");
    }
}
