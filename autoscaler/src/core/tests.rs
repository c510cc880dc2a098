use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1_700_000_000);

fn samples(ready: u32, stable: f64, panic: f64) -> Samples {
    Samples { ready, observed: Some(Observed { stable, panic }), initialized: true }
}

fn desired(spec: &Spec, state: &State, samples: Samples) -> u32 {
    decide(spec, state, &samples, NOW).desired.expect("something was observed")
}

#[test]
fn nothing_observed_changes_nothing() {
    let decision = decide(&Spec::default(), &State::default(), &Samples::default(), NOW);
    assert_eq!(decision.desired, None);
    assert_eq!(decision.mode, Mode::Proxy);
    assert_eq!(decision.state, State::default());
}

#[test]
fn stable_wants() {
    let spec = Spec { target: 10.0, total: 10.0, ..Spec::default() };
    for (ready, load, want) in [
        (1, 0.0, 0),
        (1, 0.001, 1),
        (1, 10.0, 1),
        (1, 10.1, 2),
        (10, 100.0, 10),
        (10, 95.0, 10),
        (4, 30.0, 3),
    ] {
        assert_eq!(
            desired(&spec, &State::default(), samples(ready, load, load)),
            want,
            "{ready} ready, load {load}"
        );
    }
}

#[test]
fn the_rates_bound_both_ways() {
    let spec =
        Spec { target: 1.0, max_up_rate: 2.0, max_down_rate: 2.0, panic_threshold: 100.0, ..Spec::default() };
    assert_eq!(desired(&spec, &State::default(), samples(4, 100.0, 0.0)), 8);
    assert_eq!(desired(&spec, &State::default(), samples(10, 1.0, 0.0)), 5);
    assert_eq!(desired(&spec, &State::default(), samples(1, 0.0, 0.0)), 0, "half of one pod is none");
    assert_eq!(desired(&spec, &State::default(), samples(0, 100.0, 0.0)), 2, "no pod counts as one");
    let slow = Spec { max_up_rate: 1.1, ..spec.clone() };
    assert_eq!(desired(&slow, &State::default(), samples(2, 3.0, 0.0)), 3, "one more pod is always allowed");
    let unreachable = Spec { reachable: false, ..spec };
    assert_eq!(
        desired(&unreachable, &State::default(), samples(10, 1.0, 0.0)),
        1,
        "unreachable shrinks at once"
    );
}

#[test]
fn panic_starts_at_the_threshold_and_never_shrinks() {
    let spec = Spec { target: 1.0, ..Spec::default() };
    let calm = decide(&spec, &State::default(), &samples(4, 4.0, 7.0), NOW);
    assert!(!calm.panicking, "7 of 4 is below twice");
    assert_eq!(calm.desired, Some(4), "without panic the panic window does not count");
    let started = decide(&spec, &State::default(), &samples(4, 4.0, 8.0), NOW);
    assert!(started.panicking);
    assert_eq!(started.desired, Some(8));

    // The load falls: still 8, until a stable window after the last crossing has passed.
    let later = NOW + spec.stable_window;
    let held = decide(&spec, &started.state, &samples(8, 3.0, 1.0), later);
    assert_eq!(held.desired, Some(8));
    assert!(held.reason.limits.contains(&Limit::Panic(8)));
    let left = decide(&spec, &held.state, &samples(8, 5.0, 1.0), later + Duration::from_millis(1));
    assert!(!left.panicking);
    assert_eq!(left.desired, Some(5));
}

#[test]
fn panic_is_rearmed_while_over_the_threshold() {
    let spec = Spec { target: 1.0, ..Spec::default() };
    let first = decide(&spec, &State::default(), &samples(1, 1.0, 10.0), NOW);
    let again = decide(&spec, &first.state, &samples(1, 1.0, 10.0), NOW + Duration::from_secs(50));
    let held = decide(&spec, &again.state, &samples(10, 1.0, 1.0), NOW + Duration::from_secs(100));
    assert!(held.panicking, "re-armed at 50 s, holds to 110 s");
}

#[test]
fn panic_takes_the_stable_window_when_that_is_larger() {
    let spec = Spec { target: 1.0, ..Spec::default() };
    assert_eq!(desired(&spec, &State::default(), samples(1, 9.0, 5.0)), 9);
}

#[test]
fn a_restart_with_pods_starts_in_panic() {
    let spec = Spec { target: 1.0, ..Spec::default() };
    let state = State::starting(7, NOW);
    assert_eq!(desired(&spec, &state, samples(7, 0.5, 0.5)), 7);
    assert_eq!(State::starting(1, NOW), State::default());
    assert_eq!(State::starting(0, NOW), State::default());
}

#[test]
fn activation_scale_lifts_only_what_is_wanted() {
    let spec = Spec { activation_scale: 5, ..Spec::default() };
    assert_eq!(desired(&spec, &State::default(), samples(0, 1.0, 1.0)), 5);
    assert_eq!(desired(&spec, &State::default(), samples(1, 0.0, 0.0)), 0);
    assert_eq!(desired(&spec, &State::default(), samples(8, 700.0, 700.0)), 10);
}

#[test]
fn scale_down_waits_for_the_delay() {
    let spec = Spec { target: 1.0, scale_down_delay: Duration::from_secs(60), ..Spec::default() };
    let at = |state: &State, load: f64, seconds: u64| {
        decide(&spec, state, &samples(4, load, load), NOW + Duration::from_secs(seconds))
    };
    let high = at(&State::default(), 4.0, 0);
    let low = at(&high.state, 2.0, 30);
    assert_eq!(low.desired, Some(4));
    let still = at(&low.state, 2.0, 60);
    assert_eq!(still.desired, Some(4));
    let done = at(&still.state, 2.0, 61);
    assert_eq!(done.desired, Some(2));
    let unreachable = Spec { reachable: false, ..spec.clone() };
    assert_eq!(
        decide(&unreachable, &high.state, &samples(4, 1.0, 1.0), NOW).desired,
        Some(1),
        "nobody waits for an unreachable revision"
    );
}

#[test]
fn excess_burst_capacity_decides_the_mode() {
    let spec = Spec { total: 100.0, burst: 200.0, ..Spec::default() };
    let ebc = |ready, panic| decide(&spec, &State::default(), &samples(ready, 10.0, panic), NOW);
    assert_eq!(ebc(2, 0.0).excess_burst, 0);
    assert_eq!(ebc(2, 0.0).mode, Mode::Serve);
    assert_eq!(ebc(2, 0.5).excess_burst, -1);
    assert_eq!(ebc(2, 0.5).mode, Mode::Proxy);
    let always = Spec { burst: -1.0, ..spec.clone() };
    assert_eq!(decide(&always, &State::default(), &samples(100, 10.0, 0.0), NOW).mode, Mode::Proxy);
    let never = Spec { burst: 0.0, ..spec.clone() };
    assert_eq!(decide(&never, &State::default(), &samples(1, 10.0, 900.0), NOW).mode, Mode::Serve);
    assert_eq!(decide(&never, &State::default(), &samples(1, 0.0, 0.0), NOW).mode, Mode::Proxy, "at zero");
}

#[test]
fn number_of_activators() {
    let spec = Spec { total: 100.0, burst: 211.0, activator_capacity: 100.0, ..Spec::default() };
    assert_eq!(spec.activators(0), 3);
    assert_eq!(spec.activators(10), 13);
    assert_eq!(Spec { burst: 0.0, ..spec.clone() }.activators(100), 2);
    assert_eq!(Spec { burst: -1.0, ..spec.clone() }.activators(1), 2);
    assert_eq!(Spec { burst: -1.0, ..spec }.activators(5), 5);
}

#[test]
fn bounds() {
    let spec = Spec { min: 2, max: 4, initial: 3, ..Spec::default() };
    let at = |spec: &Spec, initialized, load| {
        let seen = Samples { initialized, ..samples(2, load, load) };
        decide(spec, &State::default(), &seen, NOW).desired
    };
    assert_eq!(at(&spec, true, 0.0), Some(2));
    assert_eq!(at(&spec, false, 0.0), Some(3), "initial scale until reached once");
    assert_eq!(at(&spec, true, 7000.0), Some(4));
    let gone = Spec { reachable: false, ..spec };
    assert_eq!(at(&gone, true, 0.0), Some(0), "an unreachable revision has no minimum");
    assert_eq!(at(&gone, false, 0.0), Some(0));
}

#[test]
fn a_reason_tells_the_way() {
    let spec = Spec { target: 10.0, max: 3, ..Spec::default() };
    let decision = decide(&spec, &State::default(), &samples(1, 45.0, 50.0), NOW);
    assert_eq!(
        decision.reason.to_string(),
        "concurrency 45.00 (panic window 50.00) at 10.00 per pod wants 5 (panic 5) with 1 ready; panic mode holds \
         at least 5; cut to max-scale 3"
    );
}

prop_compose! {
    fn any_spec()(
        target in 0.01f64..500.0,
        over in 1.0f64..3.0,
        threshold in 1.1f64..10.0,
        up in 1.1f64..1000.0,
        down in 1.1f64..10.0,
        burst in prop_oneof![Just(-1.0), Just(0.0), 1.0f64..500.0],
        activation_scale in prop_oneof![Just(0u32), 2u32..20],
        delay in prop_oneof![Just(0u64), 1u64..600],
        min in 0u32..10,
        span in 0u32..50,
        unbounded in any::<bool>(),
        initial in 0u32..8,
        reachable in any::<bool>(),
    ) -> Spec {
        Spec {
            target,
            total: target * over,
            panic_threshold: threshold,
            max_up_rate: up,
            max_down_rate: down,
            burst,
            activation_scale,
            scale_down_delay: Duration::from_secs(delay),
            min,
            max: if unbounded { 0 } else { (min + span).max(1) },
            initial,
            reachable,
            ..Spec::default()
        }
    }
}

prop_compose! {
    fn any_state()(
        panic in proptest::option::of((0u64..120, 0u32..100)),
        wishes in proptest::collection::vec((0u64..120, 0u32..100), 0..8),
    ) -> State {
        let mut state = State {
            panic: panic.map(|(ago, most)| Panic { since: NOW - Duration::from_secs(ago), most }),
            delay: WindowedMax::default(),
        };
        let mut wishes = wishes;
        wishes.sort_by_key(|wish| std::cmp::Reverse(wish.0));
        for (ago, wish) in wishes {
            state.delay.record(NOW - Duration::from_secs(ago), wish, Duration::from_secs(600));
        }
        state
    }
}

proptest! {
    #[test]
    fn within_bounds(spec in any_spec(), state in any_state(), ready in 0u32..200, stable in 0f64..1e6,
                     panic in 0f64..1e6, initialized in any::<bool>()) {
        let seen = Samples { ready, observed: Some(Observed { stable, panic }), initialized };
        let got = decide(&spec, &state, &seen, NOW).desired.expect("observed");
        let (min, max) = spec.bounds(initialized);
        prop_assert!(max == 0 || got <= max);
        let least = if max == 0 { min } else { min.min(max) };
        prop_assert!(got >= least);
    }

    #[test]
    fn more_load_never_wants_fewer(spec in any_spec(), state in any_state(), ready in 0u32..200,
                                   stable in 0f64..1e5, panic in 0f64..1e5,
                                   more_stable in 0f64..1e5, more_panic in 0f64..1e5) {
        let less = decide(&spec, &state, &samples(ready, stable, panic), NOW);
        let more = decide(&spec, &state, &samples(ready, stable + more_stable, panic + more_panic), NOW);
        prop_assert!(more.desired >= less.desired, "{less:?}\n{more:?}");
        prop_assert!(more.excess_burst <= less.excess_burst);
    }

    #[test]
    fn load_always_wants_a_pod(spec in any_spec(), state in any_state(), ready in 0u32..200, load in 1e-3f64..1e5) {
        prop_assert!(decide(&spec, &state, &samples(ready, load, load), NOW).desired >= Some(1));
    }

    #[test]
    fn zero_wished_is_never_served_directly(spec in any_spec(), state in any_state(), ready in 0u32..200) {
        let decision = decide(&spec, &state, &samples(ready, 0.0, 0.0), NOW);
        if decision.desired == Some(0) {
            prop_assert_eq!(decision.mode, Mode::Proxy);
        }
        prop_assert!(decision.num_activators >= 2);
    }

    #[test]
    fn panic_never_shrinks(spec in any_spec(), loads in proptest::collection::vec(0f64..1e5, 1..30)) {
        let spec = Spec { max: 0, ..spec };
        let mut state = State::default();
        let mut before: Option<u32> = None;
        for (step, load) in loads.into_iter().enumerate() {
            let now = NOW + Duration::from_secs(2 * step as u64);
            let decision = decide(&spec, &state, &samples(3, load, load), now);
            if decision.panicking && state.panic.is_some() {
                prop_assert!(decision.desired >= before);
            }
            before = decision.desired;
            state = decision.state;
        }
    }
}
