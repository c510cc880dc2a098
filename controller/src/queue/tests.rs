use super::*;

#[tokio::test(start_paused = true)]
async fn one_key_at_a_time_and_none_lost() {
    let queue = Queue::new();
    let _open = queue.open();
    queue.add("a");
    queue.add("a");
    queue.add("b");
    assert_eq!(queue.next().await, "a");
    queue.add("a");
    assert_eq!(queue.next().await, "b");
    queue.done(&"a", true);
    assert_eq!(queue.next().await, "a");
    queue.done(&"a", true);
    queue.done(&"b", true);
    queue.add_after("c", Duration::from_secs(60));
    queue.add_after("c", Duration::from_secs(1));
    queue.add_after("c", Duration::from_secs(30));
    let before = Instant::now();
    assert_eq!(queue.next().await, "c");
    assert_eq!((Instant::now() - before).as_secs(), 1);
    queue.done(&"c", false);
    let before = Instant::now();
    assert_eq!(queue.next().await, "c");
    assert!(Instant::now() - before >= Duration::from_millis(100));
}
#[tokio::test(start_paused = true)]
async fn nothing_is_kept_while_nobody_takes_it() {
    let kept = |queue: &Queue<u32>| {
        let state = queue.state.lock();
        let (ready, later) =
            (state.ready.len() + state.idle.len() + state.waiting.len(), state.later.len() + state.due.len());
        ready + later + state.again.len() + state.failures.len()
    };
    let queue = Queue::new();
    for key in 0..1000 {
        queue.add(key);
        queue.add_idle(key);
        queue.add_after(key, Duration::from_secs(1));
    }
    assert_eq!(kept(&queue), 0);
    let open = queue.open();
    queue.add(1);
    queue.add(2);
    queue.add_after(3, Duration::from_secs(1));
    assert_eq!(queue.next().await, 1);
    drop(open);
    // What was begun ends in its own time, and is one of its kind until then.
    queue.done(&1, false);
    assert_eq!((kept(&queue), queue.lengths()), (0, (0, 0)));
    let _open = queue.open();
    queue.add(4);
    assert_eq!(queue.next().await, 4);
}

#[tokio::test(start_paused = true)]
async fn pauses_double_up_to_a_minute_and_begin_anew_after_a_success() {
    let queue = Queue::new();
    let _open = queue.open();
    queue.add("a");
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let before = Instant::now();
        assert_eq!(queue.next().await, "a");
        pauses.push((Instant::now() - before).as_millis());
        queue.done(&"a", false);
    }
    // Timers are exact to a millisecond.
    let wanted = [0, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 60_000];
    assert!(pauses.iter().zip(wanted).all(|(pause, wanted)| pause.abs_diff(wanted) <= 1), "{pauses:?}");
    assert_eq!(queue.next().await, "a");
    queue.done(&"a", true);
    queue.add("a");
    assert_eq!(queue.next().await, "a");
    queue.done(&"a", false);
    let before = Instant::now();
    queue.next().await;
    assert!(before.elapsed() < 2 * FIRST_RETRY, "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn all_retries_together_are_bounded() {
    const KEYS: u32 = 2000;
    let queue = Queue::new();
    let _open = queue.open();
    (0..KEYS).for_each(|key| queue.add(key));
    for _ in 0..KEYS {
        let key = queue.next().await;
        queue.done(&key, false);
    }
    let before = Instant::now();
    let mut first_second = 0;
    for _ in 0..KEYS {
        queue.next().await;
        first_second += u32::from(before.elapsed() <= Duration::from_secs(1));
    }
    let span = RETRIES * (KEYS - BURST);
    assert!(before.elapsed() >= span - Duration::from_millis(10), "{:?}", before.elapsed());
    assert!(before.elapsed() < span + Duration::from_secs(1), "{:?}", before.elapsed());
    assert!(first_second <= 2 * BURST + 1, "{first_second}");
    // What happens is not held back by what fails.
    queue.add(KEYS);
    let before = Instant::now();
    assert_eq!(queue.next().await, KEYS);
    assert!(before.elapsed() < RETRIES);
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_a_key_fails_is_looked_at_at_once() {
    let queue = Queue::new();
    let _open = queue.open();
    queue.add("a");
    for _ in 0..20 {
        queue.next().await;
        queue.done(&"a", false);
    }
    queue.next().await;
    queue.add("a");
    queue.done(&"a", false);
    let before = Instant::now();
    queue.next().await;
    assert!(before.elapsed() < FIRST_RETRY, "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_never_rests_takes_turns_with_the_others() {
    let queue = Queue::new();
    let _open = queue.open();
    ["busy", "a", "b", "c"].into_iter().for_each(|key| queue.add(key));
    let mut order = Vec::new();
    for _ in 0..6 {
        let key = queue.next().await;
        if key == "busy" {
            queue.add(key);
        }
        queue.done(&key, true);
        order.push(key);
    }
    assert_eq!(order, ["busy", "a", "b", "c", "busy", "busy"]);
}

#[tokio::test(start_paused = true)]
async fn what_happens_goes_before_what_is_looked_at_again() {
    let queue = Queue::new();
    let _open = queue.open();
    (0..1000).for_each(|key| queue.add_idle(key));
    // Of a key that becomes urgent no second turn is left.
    queue.add(999);
    queue.add(1000);
    assert_eq!(queue.lengths(), (1001, 0));
    assert_eq!((queue.next().await, queue.next().await), (999, 1000));
    let mut seen = std::collections::HashSet::from([999, 1000]);
    let mut urgent = 0;
    while seen.len() < 1001 {
        // One that is always urgent holds nothing up for ever.
        queue.add(5000);
        match queue.next().await {
            5000 => {
                urgent += 1;
                queue.done(&5000, true);
            }
            key => assert!(seen.insert(key), "{key} came twice"),
        }
    }
    assert_eq!(queue.lengths().0, 1, "only the urgent one is left");
    assert!(urgent >= 999 * (SHARE - 1) / 2, "{urgent}");
}
