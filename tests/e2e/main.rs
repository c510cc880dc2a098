//! End to end: a platform as a user has it, asked with real kubectl and real HTTP.
//!
//! Without `EBB_E2E_KUBECONFIG` one `ebb up` is started on free ports for all cases (and one more for each case that breaks it);
//! with it, the cases run on the platform that the kubeconfig names, and those that need a process to kill are reported as ignored by name.

mod cluster_cases;
mod fault_cases;
mod harness;
mod mesh_cases;
mod serving_cases;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use harness::Platform;

type Case = fn(&Platform) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases share two cores with the platform and the apps: more at once only makes each wait longer.
    arguments.test_threads.get_or_insert(2);
    let cases: Vec<(&str, Case)> = [serving_cases::CASES, cluster_cases::CASES, mesh_cases::CASES].concat();
    let faults: Vec<(&str, Case)> = fault_cases::CASES.to_vec();
    if arguments.list {
        let listed = cases.into_iter().chain(faults).map(|(name, _)| Trial::test(name, || Ok(()))).collect();
        libtest_mimic::run(&arguments, listed).exit();
    }
    let platform = match Platform::shared() {
        Ok(platform) => Arc::new(platform),
        Err(e) => {
            eprintln!("no platform for the end-to-end tests: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let external = platform.is_external();
    let mut trials = Vec::new();
    for (name, case) in cases {
        trials.push(trial(name, case, platform.clone()));
    }
    for (name, case) in faults {
        trials.push(trial(name, case, platform.clone()).with_ignored_flag(external));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        platform.print_log_tail();
    }
    let stopped = Arc::into_inner(platform).map_or(Ok(()), Platform::stop);
    if let Err(e) = stopped {
        eprintln!("the platform did not stop cleanly: {e:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn trial(name: &'static str, case: Case, platform: Arc<Platform>) -> Trial {
    Trial::test(name, move || case(&platform).map_err(|e| Failed::from(format!("{e:#}"))))
}
