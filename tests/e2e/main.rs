//! End to end: a platform as a user has it, asked with real kubectl and real HTTP.
//!
//! Without `EBB_E2E_KUBECONFIG` one `ebb up` is started on free ports for all cases (and one more for each case that breaks it);
//! with it, the same cases run on the platform that the kubeconfig names (`given.rs` says which variables go with it). Cases that need
//! a process of `ebb up` to kill, components that are pods, or a network that enforces NetworkPolicy, carry that in brackets before their name, and are reported as ignored elsewhere.

mod api_cases;
mod cluster_cases;
mod component_cases;
mod config_cases;
mod failure_cases;
mod fault_cases;
mod gateway_cases;
mod given;
mod harness;
mod mesh_cases;
mod routing_cases;
mod serving_cases;

use std::process::ExitCode;
use std::sync::{Arc, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use harness::Platform;

type Case = fn(&Platform) -> anyhow::Result<()>;

/// What a case needs of the platform.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    /// Nothing but a platform that works.
    Any,
    /// The platform for itself: its settings are changed meanwhile.
    Alone,
    /// A platform of its own, started as a process.
    EbbUp,
    /// A network that enforces NetworkPolicy.
    NetworkPolicy,
    /// Components that are pods, on a cluster whose parts may be killed; no other case runs meanwhile.
    Cluster,
}

impl Needs {
    fn kind(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Alone => "alone",
            Self::EbbUp => "ebb up",
            Self::NetworkPolicy => "network policy",
            Self::Cluster => "cluster",
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases share two cores with the platform and the apps: more at once only makes each wait longer.
    arguments.test_threads.get_or_insert(2);
    let mut cases: Vec<(&str, Case, Needs)> = Vec::new();
    for (table, needs) in [
        (serving_cases::CASES, Needs::Any),
        (api_cases::CASES, Needs::Any),
        (failure_cases::CASES, Needs::Any),
        (failure_cases::OWN_CASES, Needs::EbbUp),
        (cluster_cases::CASES, Needs::Any),
        (cluster_cases::OWN_CASES, Needs::EbbUp),
        (gateway_cases::CASES, Needs::Any),
        (mesh_cases::CASES, Needs::Any),
        (mesh_cases::NETWORK_POLICY_CASES, Needs::NetworkPolicy),
        (routing_cases::CASES, Needs::Any),
        (routing_cases::ALONE, Needs::Alone),
        (fault_cases::CASES, Needs::EbbUp),
        (config_cases::CASES, Needs::EbbUp),
        (component_cases::CASES, Needs::Cluster),
    ] {
        cases.extend(table.iter().map(|(name, case)| (*name, *case, needs)));
    }
    if arguments.list {
        let listed =
            cases.into_iter().map(|(name, _, needs)| Trial::test(name, || Ok(())).with_kind(needs.kind()));
        libtest_mimic::run(&arguments, listed.collect()).exit();
    }
    let platform = match Platform::shared() {
        Ok(platform) => Arc::new(platform),
        Err(e) => {
            eprintln!("no platform for the end-to-end tests: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials =
        cases.into_iter().map(|(name, case, needs)| trial(name, case, needs, platform.clone())).collect();
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

fn trial(name: &'static str, case: Case, needs: Needs, platform: Arc<Platform>) -> Trial {
    let ignored = match needs {
        Needs::Any | Needs::Alone => false,
        Needs::EbbUp => platform.as_given().is_some(),
        Needs::NetworkPolicy => !platform.as_given().is_none_or(given::Given::enforces_network_policy),
        Needs::Cluster => !platform.as_given().is_some_and(given::Given::may_be_disturbed),
    };
    let run = move || {
        let result = if matches!(needs, Needs::Cluster | Needs::Alone) {
            let _alone = platform.peace.write().unwrap_or_else(PoisonError::into_inner);
            case(&platform)
        } else {
            let _peace = platform.peace.read().unwrap_or_else(PoisonError::into_inner);
            case(&platform)
        };
        result.map_err(|e| Failed::from(format!("{e:#}")))
    };
    Trial::test(name, run).with_kind(needs.kind()).with_ignored_flag(ignored)
}
