//! Pods as a user sees them: a whole cluster in this process, real containers, asked with the real kubectl. Needs root.
//!
//! This program is also its own container helper, so it has a main function instead of the test harness.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod features;
mod image;
mod portforward;
mod probes;
mod pulls;
mod shutdown;
mod streams;
mod terminal;
mod volumes;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use world::World;

type Case = (&'static str, fn(&World));

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(cluster_node::runtime::HELPER_ARGUMENT) {
        cluster::container_helper();
    }
    if shutdown::child() {
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let cases: Vec<Case> = [
        portforward::CASES,
        streams::CASES,
        probes::CASES,
        pulls::CASES,
        features::CASES,
        shutdown::CASES,
        volumes::CASES,
    ]
    .concat();
    if arguments.list {
        let listed = cases.into_iter().map(|(name, _)| Trial::test(name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, listed).exit_code();
    }
    let world = Arc::new(World::start());
    let trials = cases.into_iter().map(|(name, case)| {
        let world = Arc::clone(&world);
        Trial::test(name, move || {
            case(&world);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    Arc::into_inner(world).unwrap().stop();
    conclusion.exit_code()
}
