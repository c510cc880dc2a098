use super::*;

const DEPENDENTS: &[&str] = &["A", "B"];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn status_of(conditions: &[Condition], type_: &str) -> (Status, Option<String>) {
    let found = conditions.iter().find(|c| c.type_ == type_).expect("the condition");
    (found.status, found.reason.clone())
}

#[test]
fn ready_sums_the_dependents_up() {
    use Status::{False, True, Unknown};
    for (a, b, want) in [
        (True, True, True),
        (True, Unknown, Unknown),
        (Unknown, Unknown, Unknown),
        (False, Unknown, False),
        (False, True, False),
        (True, False, False),
        (False, False, False),
    ] {
        let mut list = Vec::new();
        let mut manager = Manager::new(&mut list, DEPENDENTS, at(1));
        manager.initialize();
        for (name, status) in [("A", a), ("B", b)] {
            match status {
                True => manager.mark_true(name),
                False => manager.mark_false(name, "Bad", "it is bad"),
                Unknown => manager.mark_unknown(name, "Wait", "wait"),
            };
        }
        let (status, reason) = status_of(&list, READY);
        assert_eq!(status, want, "{a:?} {b:?}");
        let want_reason = match want {
            True => None,
            False => Some("Bad"),
            Unknown => Some("Wait"),
        };
        assert_eq!(reason.as_deref(), want_reason);
    }
}

#[test]
fn times_move_only_with_the_status() {
    let mut list = Vec::new();
    Manager::new(&mut list, DEPENDENTS, at(1)).initialize().mark_unknown("A", "Wait", "one");
    let before = list.clone();
    Manager::new(&mut list, DEPENDENTS, at(2)).initialize().mark_unknown("A", "Wait", "one");
    assert_eq!(list, before, "the same again changes nothing");
    Manager::new(&mut list, DEPENDENTS, at(3)).mark_unknown("A", "Wait", "two");
    let time = |list: &[Condition], type_: &str| {
        list.iter().find(|c| c.type_ == type_).and_then(|c| c.last_transition_time.clone()).expect("a time").0
    };
    assert_eq!(time(&list, "A"), at(1), "another message is no transition");
    Manager::new(&mut list, DEPENDENTS, at(4)).mark_true("A");
    assert_eq!((time(&list, "A"), time(&list, "B")), (at(4), at(1)));
}

#[test]
fn informational_conditions_do_not_count() {
    let mut list = Vec::new();
    Manager::new(&mut list, DEPENDENTS, at(1)).mark_true("A").mark_true("B").mark_false(
        "Active",
        "NoTraffic",
        "idle",
    );
    assert_eq!(status_of(&list, READY).0, Status::True);
    let active = list.iter().find(|c| c.type_ == "Active").expect("the condition");
    assert_eq!(active.severity, Severity::Info);
    let written = serde_json::to_value(active).expect("JSON");
    assert_eq!(written["severity"], "Info");
    Manager::new(&mut list, DEPENDENTS, at(2)).clear("Active").clear("A");
    let types: Vec<_> = list.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, ["A", "B", READY]);
}

#[test]
fn a_new_dependent_of_a_happy_object_is_taken_as_true() {
    let mut list = Vec::new();
    Manager::new(&mut list, &["A"], at(1)).mark_true("A");
    Manager::new(&mut list, DEPENDENTS, at(2)).initialize();
    assert_eq!(status_of(&list, "B").0, Status::True);
}
