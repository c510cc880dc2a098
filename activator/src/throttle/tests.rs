use proptest::prelude::*;

use super::*;

fn pod(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8112))
}

fn with_pods(limit: u32, pods: u8) -> Throttle<u32> {
    let mut throttle = Throttle::new(limit);
    for n in 1..=pods {
        assert!(throttle.set(pod(n), true, 0).is_empty());
    }
    throttle
}

#[test]
fn without_pods_everybody_waits_and_then_goes_in_order() {
    let mut throttle = Throttle::new(1);
    assert_eq!(throttle.take(7), None);
    for waiter in 0..3 {
        throttle.wait(waiter).expect("room");
    }
    let first = throttle.set(pod(1), true, 0);
    assert_eq!(first.iter().map(|grant| grant.waiter).collect::<Vec<_>>(), [0]);
    let second = throttle.finish(first[0].slot, 0);
    assert_eq!(second.iter().map(|grant| grant.waiter).collect::<Vec<_>>(), [1]);
    let both = throttle.set(pod(2), true, 0);
    assert_eq!(both.iter().map(|grant| grant.waiter).collect::<Vec<_>>(), [2]);
}

#[test]
fn without_a_limit_one_pod_lets_all_go() {
    let mut throttle = Throttle::new(0);
    for waiter in 0..1000 {
        throttle.wait(waiter).expect("room");
    }
    assert_eq!(throttle.set(pod(1), true, 3).len(), 1000);
    assert_eq!(throttle.in_flight(), 1000);
    assert!(throttle.take(9).is_some());
}

#[test]
fn the_limit_holds_for_each_pod() {
    let mut throttle = with_pods(2, 2);
    let slots: Vec<_> = (0..4).map(|draw| throttle.take(draw).expect("room")).collect();
    assert_eq!(throttle.take(0), None);
    for address in [pod(1), pod(2)] {
        assert_eq!(slots.iter().filter(|slot| slot.address == address).count(), 2);
    }
}

#[test]
fn newcomers_do_not_overtake() {
    let mut throttle = with_pods(1, 1);
    let slot = throttle.take(0).expect("room");
    throttle.wait(1).expect("room");
    let grants = throttle.finish(slot, 0);
    assert_eq!(grants.len(), 1);
    assert_eq!(throttle.take(0), None, "the place went to who waited");
}

#[test]
fn the_queue_has_an_end() {
    let mut throttle = Throttle::new(1);
    for waiter in 0..QUEUE_DEPTH as u32 {
        throttle.wait(waiter).expect("room");
    }
    assert_eq!(throttle.wait(99_999), Err(99_999));
}

#[test]
fn who_leaves_frees_its_place() {
    let mut throttle = Throttle::new(1);
    let first = throttle.wait(1).expect("room");
    throttle.wait(2).expect("room");
    assert!(throttle.leave(first));
    assert!(!throttle.leave(first));
    let grants = throttle.set(pod(1), true, 0);
    assert_eq!(grants[0].waiter, 2);
}

#[test]
fn small_limits_fill_the_first_pod_larger_go_round() {
    let mut filled = with_pods(2, 3);
    let order: Vec<_> = (0..3).map(|_| filled.take(1).expect("room").address).collect();
    assert_eq!(order, [pod(1), pod(1), pod(2)]);
    let mut round = with_pods(10, 3);
    let order: Vec<_> = (0..4).map(|_| round.take(1).expect("room").address).collect();
    assert_eq!(order, [pod(1), pod(2), pod(3), pod(1)]);
}

#[test]
fn two_choices_even_out() {
    let mut throttle = with_pods(0, 10);
    let mut draw = 1u64;
    let mut counts = HashMap::new();
    for _ in 0..10_000 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *counts.entry(throttle.take(draw.rotate_left(17)).expect("room").address).or_insert(0u32) += 1;
    }
    assert_eq!(counts.len(), 10);
    let (least, most) = (counts.values().min().copied(), counts.values().max().copied());
    assert!(most.unwrap_or(0) - least.unwrap_or(0) < 20, "{counts:?}");
}

#[test]
fn an_unusable_pod_gets_nothing_and_a_removed_one_counts_nothing() {
    let mut throttle = with_pods(1, 1);
    let slot = throttle.take(0).expect("room");
    let _ = throttle.set(pod(1), false, 0);
    assert!(throttle.finish(slot, 0).is_empty());
    assert_eq!(throttle.take(0), None);
    assert!(!throttle.has_pods());
    assert!(throttle.remove(pod(1), 0).is_empty());
    let _ = throttle.set(pod(1), true, 0);
    let again = throttle.take(0).expect("room");
    assert_ne!(again, slot);
    assert!(throttle.finish(slot, 0).is_empty());
    assert_eq!(throttle.take(0), None, "the old slot freed nothing of the new pod");
}

#[test]
fn slices_apply_only_with_a_limit() {
    let mut limited = with_pods(5, 4);
    let _ = limited.assign(Some(Slice { index: 1, count: 2 }), 0);
    let got: Vec<_> = (0..10).map(|_| limited.take(0).expect("room").address).collect();
    assert!(got.iter().all(|address| *address == pod(3) || *address == pod(4)));
    assert_eq!(limited.take(0), None);
    let mut open = with_pods(0, 4);
    let _ = open.assign(Some(Slice { index: 1, count: 2 }), 0);
    assert!((0..100u64).any(|n| open.take(n << 30).expect("room").address == pod(1)));
}

#[derive(Debug, Clone)]
enum Op {
    Arrive,
    Finish(usize),
    Leave(usize),
    Set(u8, bool),
    Remove(u8),
    Assign(usize, usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Arrive),
        3 => any::<usize>().prop_map(Op::Finish),
        1 => any::<usize>().prop_map(Op::Leave),
        2 => (1u8..6, any::<bool>()).prop_map(|(n, usable)| Op::Set(n, usable)),
        1 => (1u8..6).prop_map(Op::Remove),
        1 => (0usize..3, 1usize..4).prop_map(|(index, count)| Op::Assign(index, count)),
    ]
}

proptest! {
    /// Nobody is lost, nobody is let go twice, no pod gets more than its limit, and nobody waits while there is room.
    #[test]
    fn conserves_requests(limit in 0u32..5, ops in proptest::collection::vec((any_op(), any::<u64>()), 1..200)) {
        let mut throttle: Throttle<u32> = Throttle::new(limit);
        let mut running: Vec<Slot> = Vec::new();
        let mut tickets: Vec<(Ticket, u32)> = Vec::new();
        let mut name = 0;
        for (op, draw) in ops {
            let grants = match op {
                Op::Arrive => {
                    name += 1;
                    match throttle.take(draw) {
                        Some(slot) => running.push(slot),
                        None => tickets.push((throttle.wait(name).expect("room"), name)),
                    }
                    Vec::new()
                }
                Op::Finish(n) if !running.is_empty() => throttle.finish(running.swap_remove(n % running.len()), draw),
                Op::Leave(n) if !tickets.is_empty() => {
                    let (ticket, _) = tickets.remove(n % tickets.len());
                    prop_assert!(throttle.leave(ticket));
                    Vec::new()
                }
                Op::Set(n, usable) => throttle.set(pod(n), usable, draw),
                Op::Remove(n) => {
                    running.retain(|slot| slot.address != pod(n));
                    throttle.remove(pod(n), draw)
                }
                Op::Assign(index, count) => throttle.assign(Some(Slice { index: index % count, count }), draw),
                _ => Vec::new(),
            };
            for grant in grants {
                let (_, expected) = tickets.remove(0);
                prop_assert_eq!(grant.waiter, expected, "first come, first served");
                running.push(grant.slot);
            }
            prop_assert_eq!(throttle.waiting(), tickets.len());
            prop_assert_eq!(throttle.in_flight() as usize, running.len());
            for n in 1..6 {
                let on_it = running.iter().filter(|slot| slot.address == pod(n)).count() as u32;
                prop_assert!(limit == 0 || on_it <= limit);
            }
            if !tickets.is_empty() {
                prop_assert!(throttle.pick(draw).is_none(), "somebody waits while there is room");
            }
        }
    }
}

#[test]
fn a_pod_that_failed_of_late_gets_less_until_it_is_forgiven() {
    const NOW: Duration = Duration::from_secs(100);
    let share = |throttle: &mut Throttle<u32>| {
        let mut taken = 0;
        for draw in 0..100u64 {
            let slot = throttle.take(draw.wrapping_mul(0x9E37_79B9_7F4A_7C15)).expect("room");
            taken += usize::from(slot.address == pod(1));
            assert!(throttle.finish(slot, draw).is_empty());
        }
        taken
    };
    for limit in [0, 1, 10] {
        let mut throttle = with_pods(limit, 2);
        assert!(share(&mut throttle) > 20, "limit {limit}");
        for _ in 0..5 {
            throttle.record(pod(1), true, NOW);
        }
        assert_eq!(share(&mut throttle), 0, "limit {limit}");
        // Where nobody else has room it is better than waiting.
        if limit > 0 {
            let all: Vec<_> = (0..2 * limit).map(|_| throttle.take(0).expect("room")).collect();
            for slot in all {
                let _ = throttle.finish(slot, 0);
            }
        }
        assert!(!throttle.advance(NOW + Duration::from_secs(60)), "nothing is left of it");
        assert!(share(&mut throttle) > 20, "limit {limit}");
    }
}
