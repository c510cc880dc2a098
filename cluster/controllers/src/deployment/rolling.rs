//! The arithmetic of a rolling update.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::revision::MAX;
use crate::meta;

/// How far a Deployment may deviate from its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bounds {
    pub(crate) surge: i32,
    pub(crate) unavailable: i32,
}

pub(crate) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The available pods that will stay: a set that has just been made smaller still reports those it is about to delete.
pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0).min(size(set))
}

pub(crate) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
}

fn resolve(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        None => resolve(Some(&IntOrString::String("25%".to_owned())), of, round_up),
        Some(IntOrString::Int(count)) => (*count).max(0),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let scaled = percent.max(0) * i64::from(of);
            let count = if round_up { (scaled + 99) / 100 } else { scaled / 100 };
            i32::try_from(count).unwrap_or(i32::MAX)
        }
    }
}

/// maxSurge (rounded up) and maxUnavailable (rounded down); not both are zero, or nothing could ever move.
pub(crate) fn bounds(deployment: &Deployment) -> Bounds {
    let wanted = replicas(deployment);
    if is_recreate(deployment) || wanted == 0 {
        return Bounds { surge: 0, unavailable: 0 };
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), wanted, true);
    let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), wanted, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Bounds { surge, unavailable: unavailable.min(wanted) }
}

/// The size of the new ReplicaSet, which has `held` replicas of the `total` that all sets have.
pub(crate) fn new_size(deployment: &Deployment, held: i32, total: i32) -> i32 {
    let wanted = replicas(deployment);
    if is_recreate(deployment) || held >= wanted {
        return wanted;
    }
    let room = wanted + bounds(deployment).surge - total;
    held + room.clamp(0, wanted - held)
}

/// The new sizes of the old sets (same order as given, oldest first): first those pods go that do not work, then as many of
/// those that do as the new set's available pods allow.
pub(crate) fn shrink_old(deployment: &Deployment, new: &ReplicaSet, old: &[&ReplicaSet]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|set| size(set)).collect();
    let least = replicas(deployment) - bounds(deployment).unavailable;
    let total: i32 = sizes.iter().sum::<i32>() + size(new);
    let unready_new = size(new) - available(new);
    let mut may_go = total - least - unready_new;
    if may_go <= 0 {
        return sizes;
    }
    for (held, set) in sizes.iter_mut().zip(old) {
        let broken = (*held - available(set)).clamp(0, may_go);
        *held -= broken;
        may_go -= broken;
    }
    let available: i32 = available(new) + old.iter().map(|set| available(set)).sum::<i32>();
    let mut working = (available - least).max(0);
    for held in &mut sizes {
        let gone = working.min(*held);
        *held -= gone;
        working -= gone;
    }
    sizes
}

/// Spreads a change of the Deployment's size over several active sets in proportion to their sizes (a Deployment scaled in the middle of a
/// rolling update); the sets come largest first, and what rounding leaves goes to the first.
pub(crate) fn proportional(deployment: &Deployment, sets: &[&ReplicaSet]) -> Vec<i32> {
    let wanted = replicas(deployment);
    let allowed = if wanted > 0 { wanted + bounds(deployment).surge } else { 0 };
    let to_add = allowed - sets.iter().map(|set| size(set)).sum::<i32>();
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for set in sets {
        let share = share(deployment, set, to_add, added);
        added += share;
        sizes.push(size(set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let held = size(set);
    if held == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let wanted = replicas(deployment);
    let fraction = if wanted == 0 {
        -held
    } else {
        let reported = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let before = meta::annotation(set, MAX).and_then(|max| max.parse().ok()).unwrap_or(reported);
        let after = wanted + bounds(deployment).surge;
        let scaled = f64::from(held) * f64::from(after) / f64::from(before.max(1));
        // Sizes fit i32, and so does their quotient.
        #[allow(clippy::cast_possible_truncation)]
        let scaled = scaled.round() as i32;
        scaled - held
    };
    if to_add > 0 { fraction.min(to_add - added) } else { fraction.max(to_add - added) }
}
