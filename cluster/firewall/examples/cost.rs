//! What loading the rules of a pod costs, each time in a new network namespace: `cargo run --release -p cluster-firewall --example cost`, as root.

use std::error::Error;
use std::time::{Duration, Instant};

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict, load, make};
use nix::sched::{CloneFlags, unshare};

const ROUNDS: usize = 100;

/// As many as a revision under STRICT has.
fn rules() -> Ruleset {
    let rule = |matches: Vec<Match>, verdict| Rule { matches, verdict };
    let untracked = |name: &str, hook| Chain {
        name: name.into(),
        hook,
        rules: vec![rule(vec![Match::Protocol(6)], Verdict::NoTrack)],
    };
    let free = [Match::TcpUnderWay, Match::FromInterface("lo".into()), Match::Established];
    let ports = [8012, 8022, 8112, 9090].map(|port| Match::Tcp(port, port + 1));
    let mut rules: Vec<Rule> =
        free.into_iter().chain(ports).map(|one| rule(vec![one], Verdict::Accept)).collect();
    rules.push(rule(vec![Match::Protocol(6)], Verdict::Reset));
    rules.push(rule(vec![], Verdict::Drop));
    let chains = vec![
        untracked("arriving", Hook::RawArrive),
        untracked("leaving", Hook::RawLeave),
        Chain { name: "input".into(), hook: Hook::Input, rules },
    ];
    Ruleset { table: "cost".into(), family: Family::Inet, chains }
}

fn once() -> Result<(Duration, Duration), Box<dyn Error + Send + Sync>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let (rules, begun) = (rules(), Instant::now());
    make(&rules)?;
    let made = begun.elapsed();
    load(&rules)?;
    Ok((made, begun.elapsed() - made))
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (made, loaded) = std::thread::spawn(once).join().map_err(|_| "a round panicked")??;
        first.push(made);
        again.push(loaded);
    }
    for (name, mut times) in [("first", first), ("again", again)] {
        times.sort();
        println!("{name}: p50 {:?} p95 {:?} max {:?}", times[50], times[95], times[ROUNDS - 1]);
    }
    Ok(())
}
