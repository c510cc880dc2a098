use serde_json::json;

use super::*;

/// Revisions and their shares, from the oldest.
type Shares<'a> = &'a [(&'a str, i64)];

fn following(percent: i64, shares: Shares<'_>) -> Following {
    let share =
        |(name, percent): &(&str, i64)| Share { revision_name: (*name).to_owned(), percent: *percent };
    Following {
        configuration_name: "hello".into(),
        tag: String::new(),
        percent,
        revisions: shares.iter().map(share).collect(),
        step_params: Steps::default(),
    }
}

fn one(found: Following) -> Rollout {
    Rollout { configurations: vec![found] }
}

fn shares(rollout: &Rollout) -> Vec<(&str, i64)> {
    rollout.configurations[0].revisions.iter().map(|s| (s.revision_name.as_str(), s.percent)).collect()
}

const fn at(seconds: i64) -> i64 {
    1_700_000_000 * SECOND + seconds * SECOND
}

#[test]
fn it_begins_with_one_percent_and_waits_for_the_gateway() {
    let before = one(following(100, &[("a", 100)]));
    let goal = || one(following(100, &[("b", 100)]));
    let (first, due) = goal().step(Some(before), at(0));
    assert_eq!((shares(&first), due), (vec![("a", 99), ("b", 1)], None));
    // Hours later nothing has moved: the gateway has not served the first step.
    let (still, due) = goal().step(Some(first.clone()), at(7200));
    assert_eq!((&still, due), (&first, None));
    let steps = &first.configurations[0].step_params;
    assert_eq!(*steps, Steps { start_time: at(0), ..Steps::default() });
}

#[test]
fn steps_by_how_long_the_gateway_takes() {
    for (percent, took, seconds, size, every) in [
        // As many steps as there are percents left.
        (100, 1, 120, 1, 119.0 / 99.0),
        (10, 1, 120, 1, 119.0 / 9.0),
        // As many as fit.
        (100, 10, 50, 25, 10.0),
        (100, 1, 11, 10, 1.0),
        // It has taken longer than all shall take: the rest at once, a second later.
        (100, 60, 30, 99, 1.0),
    ] {
        let mut found = following(percent, &[("a", percent - 1), ("b", 1)]);
        found.step_params.start_time = at(0);
        let mut rollout = one(found);
        rollout.served(at(took), f64::from(seconds));
        let steps = rollout.configurations[0].step_params.clone();
        assert_eq!(steps.step_size, size, "{percent} % in {seconds} s, {took} s each");
        let period = steps.step_duration as f64 / SECOND as f64;
        assert!((period - every).abs() < 0.001, "{period} instead of {every}");
        assert_eq!(steps.next_step_time, at(took) + steps.step_duration);
        let same = rollout.clone();
        rollout.served(at(took + 5), f64::from(seconds));
        assert_eq!(rollout, same, "worked out once");
    }
}

/// Follows a rollout from its first step to its last by the times it asks for; all states after the first.
fn run(mut rollout: Rollout, goal: &Rollout, from: i64, seconds: f64) -> Vec<(i64, Rollout)> {
    let mut now = from;
    let mut seen = Vec::new();
    rollout.served(now, seconds);
    loop {
        let (next, due) = goal.clone().step(Some(rollout), now);
        let percent: i64 = next.configurations[0].revisions.iter().map(|s| s.percent).sum();
        assert_eq!(percent, next.configurations[0].percent, "nothing is lost: {next:?}");
        seen.push((now, next.clone()));
        rollout = next;
        match due {
            Some(due) => {
                assert!(due > now);
                now = due;
            }
            None => return seen,
        }
    }
}

#[test]
fn it_ends_when_it_shall() {
    let goal = one(following(100, &[("b", 100)]));
    let (first, _) = goal.clone().step(Some(one(following(100, &[("a", 100)]))), at(0));
    let seen = run(first, &goal, at(1), 120.0);
    let (end, last) = seen.last().expect("states");
    assert!(last.is_done());
    assert_eq!((shares(last), &last.configurations[0].step_params), (vec![("b", 100)], &Steps::default()));
    assert!((at(119)..=at(121)).contains(end), "it took {} s", (end - at(0)) / SECOND);
    assert_eq!(seen.len(), 100);
    let halfway = seen.iter().find(|(now, _)| *now >= at(60)).map(|(_, state)| shares(state)[1].1);
    assert!(halfway.is_some_and(|p| (48..=52).contains(&p)), "{halfway:?}");
}

#[test]
fn a_third_revision_takes_from_the_second_first() {
    let mut before = following(100, &[("a", 60), ("b", 40)]);
    before.step_params =
        Steps { start_time: at(0), next_step_time: at(50), step_duration: SECOND, step_size: 1 };
    let goal = one(following(100, &[("c", 100)]));
    let (state, due) = goal.clone().step(Some(one(before)), at(49));
    assert_eq!((shares(&state), due), (vec![("a", 60), ("b", 39), ("c", 1)], None));
    let seen = run(state, &goal, at(50), 12.0);
    let steps: Vec<_> = seen.iter().map(|(_, state)| shares(state)).collect();
    // One second for the first step leaves eleven of 9 %.
    assert_eq!(steps[1], [("a", 60), ("b", 30), ("c", 10)]);
    assert_eq!(steps[5], [("a", 54), ("c", 46)], "what b has not is taken from a");
    assert_eq!(steps.last().expect("states"), &[("c", 100)]);
}

#[test]
fn back_to_the_revision_before_keeps_its_share() {
    let before = following(100, &[("a", 60), ("b", 40)]);
    let (state, _) = one(following(100, &[("a", 100)])).step(Some(one(before)), at(0));
    assert_eq!(shares(&state), [("b", 40), ("a", 60)]);
}

#[test]
fn the_share_of_the_configuration_changes_under_way() {
    let before = || following(100, &[("a", 60), ("b", 40)]);
    for (percent, want) in [
        (70, &[("a", 30), ("b", 40)][..]),
        (40, &[("b", 40)]),
        (20, &[("b", 20)]),
        (1, &[("b", 1)]),
        (100, &[("a", 60), ("b", 40)]),
    ] {
        let (state, _) = one(following(percent, &[("b", percent)])).step(Some(one(before())), at(0));
        assert_eq!(shares(&state), want, "{percent} %");
    }
    let less = following(40, &[("a", 30), ("b", 10)]);
    let (state, _) = one(following(90, &[("b", 90)])).step(Some(one(less)), at(0));
    assert_eq!(shares(&state), [("a", 30), ("b", 60)], "more goes to the newest");
}

#[test]
fn a_revision_that_is_no_more_leaves_its_share_to_the_newest() {
    let mut state = one(following(100, &[("a", 50), ("b", 30), ("c", 20)]));
    state.without(|name| name == "a");
    assert_eq!(shares(&state), [("b", 30), ("c", 70)]);
    state.without(|_| true);
    assert_eq!(shares(&state), [("c", 100)]);
}

#[test]
fn one_percent_moves_at_once_and_so_does_what_is_new() {
    let (state, due) = one(following(1, &[("b", 1)])).step(Some(one(following(1, &[("a", 1)]))), at(0));
    assert_eq!((shares(&state), due), (vec![("b", 1)], None));
    let other = Following { configuration_name: "other".into(), ..following(50, &[("x", 50)]) };
    let goal = Rollout { configurations: vec![following(50, &[("a", 50)]), other] };
    let (state, due) = goal.clone().step(Some(one(following(100, &[("a", 100)]))), at(0));
    assert_eq!((state, due), (goal, None));
}

#[test]
fn the_annotation_is_knatives() {
    let text = json!({"configurations": [{
        "configurationName": "hello", "tag": "blue", "percent": 40,
        "revisions": [{"revisionName": "a", "percent": 30}, {"revisionName": "b", "percent": 10}],
        "stepParams": {"starttime": 5, "nextStepTime": 7, "stepDuration": 1, "stepSize": 2}
    }]});
    let ingress = |text: String| -> Ingress {
        crate::testing::object(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": "hello", "annotations": {ROLLOUT: text}}, "spec": {}
        }))
    };
    let read = Rollout::of(&ingress(text.to_string())).expect("it is understood");
    assert_eq!(serde_json::to_value(&read).expect("JSON"), text);
    let mut wrong = text.clone();
    wrong["configurations"][0]["percent"] = json!(41);
    let mut large = text.clone();
    large["configurations"][0]["stepParams"]["stepSize"] = json!(41);
    for bad in [wrong.to_string(), large.to_string(), "{".into(), String::new()] {
        assert_eq!(Rollout::of(&ingress(bad.clone())), None, "{bad}");
    }
}
