//! How soon containers start, beside another runtime's.

use std::time::{Duration, Instant};

use cluster_node::spec::Limits;

use crate::oracle::Oracle;
use crate::world::{World, my_pod, network, pipes};

/// Both runtimes in turn, on a network of the same kind, from the command to a connection. Not an assertion about speed,
/// which a busy machine would break, but the figures to look at: `START_PAIRS=60`.
pub(crate) async fn start_times() {
    let pairs: usize = std::env::var("START_PAIRS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut world = World::with(2, 2, None).await;
    let (network, _) = network().await;
    let mut oracle = Oracle::new();
    let (mut ours, mut theirs, mut parked) = (Vec::new(), Vec::new(), 0);
    for round in 0..pairs * 2 {
        // Pools are filled in quiet moments.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut container = world.container(&["serve", "80"]);
        container.limits =
            Limits { cpu_shares: Some(100), memory: Some(64 << 20), pids: Some(99), cpu_quota_us: None };
        let begun = Instant::now();
        let pod = network.claim(my_pod()).await.unwrap();
        container.net = pod.net_path();
        container.ipc = Some(pod.ipc_path());
        container.uts = pod.uts_path();
        let address = pod.address.unwrap();
        let connected = move || {
            while std::net::TcpStream::connect((address, 80)).is_err() {
                std::thread::sleep(Duration::from_micros(100));
            }
            begun.elapsed()
        };
        if round % 2 == 0 {
            let (_reader, streams) = pipes();
            let (id, started) = world.begin(container, streams).await;
            ours.push(connected());
            let timings = started.unwrap().timings;
            parked += usize::from(timings.parked);
            if std::env::var_os("SHOW").is_some() {
                println!("{:?} {timings:?}", ours.last());
            }
            world.runtime.signal(&id, 9).await.unwrap();
            world.exit(&id).await;
        } else {
            let (id, _) = oracle.start(&container, &world.layer());
            theirs.push(connected());
            oracle.remove(&id);
        }
        network.release(&pod);
    }
    network.close().await;
    assert!(parked > 0, "no process was ready in time");
    if std::env::var_os("START_PAIRS").is_some() {
        ours.sort();
        theirs.sort();
        let at = |times: &[Duration], share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        for share in [0.5, 0.95, 0.99] {
            let (ours, theirs) = (at(&ours, share), at(&theirs, share));
            let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
            println!("p{:.0}: parked {ours:.1?}, libcontainer {theirs:.1?}, ratio {ratio:.1}", share * 100.0);
        }
        println!("of {pairs} starts {parked} found a parked process");
    }
}
