//! What one Job needs next. Its pods stay until the Job goes, so what succeeded and failed is counted from them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus},
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    jiff::Timestamp,
};

use super::COMPONENT;
use crate::{events::Draft, meta};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LAST_BACKOFF: Duration = Duration::from_secs(600);

/// The next step.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Pod>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Set if the status changes.
    pub(super) status: Option<JobStatus>,
    pub(super) events: Vec<Draft>,
    /// The Job has ended so long ago that it is to be deleted.
    pub(super) remove: bool,
    pub(super) again: Option<Duration>,
}

struct Counts {
    active: Vec<Arc<Pod>>,
    ready: i32,
    terminating: i32,
    failed: i32,
    succeeded: i32,
    /// Indexes that succeeded.
    done: BTreeSet<i32>,
    last_failure: Option<Timestamp>,
}

pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &job.spec else { return plan };
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = job.status.clone().unwrap_or_default();
    if let Some(ended) = ended(&status) {
        let counts = count(pods);
        plan.delete = counts.active;
        if let Some(life) = spec.ttl_seconds_after_finished {
            let due = ended + seconds(i64::from(life));
            plan.remove = due <= now;
            plan.again = Some(meta::until(due, now));
        }
        if status.terminating.unwrap_or(0) != counts.terminating {
            status.terminating = Some(counts.terminating);
            plan.status = Some(status);
        }
        return plan;
    }
    let counts = count(pods);
    let suspended = spec.suspend == Some(true);
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(meta::whole_seconds(now));
    }
    let failure = failure(spec, &status, &counts, now);
    let complete = failure.is_none() && is_complete(spec, &counts);
    status.succeeded = some(counts.succeeded);
    status.failed = some(counts.failed);
    status.terminating = Some(counts.terminating);
    if spec.completion_mode.as_deref() == Some("Indexed") {
        status.completed_indexes = Some(ranges(&counts.done)).filter(|ranges| !ranges.is_empty());
    }
    let mut active = counts.active.len();
    if let Some((reason, message)) = failure {
        active = 0;
        plan.delete = counts.active;
        condition(&mut status, "FailureTarget", true, reason, &message, now);
        condition(&mut status, "Failed", true, reason, &message, now);
        plan.events.push(Draft::warning(job, COMPONENT, reason, message));
    } else if complete {
        active = 0;
        plan.delete = counts.active;
        let message = "Reached expected number of succeeded pods";
        condition(&mut status, "SuccessCriteriaMet", true, "CompletionsReached", message, now);
        condition(&mut status, "Complete", true, "CompletionsReached", message, now);
        status.completion_time = Some(meta::whole_seconds(now));
        plan.events.push(Draft::normal(job, COMPONENT, "Completed", "Job completed".to_owned()));
    } else if suspended {
        active = 0;
        plan.delete = counts.active;
        if condition(&mut status, "Suspended", true, "JobSuspended", "Job suspended", now) {
            plan.events.push(Draft::normal(job, COMPONENT, "Suspended", "Job suspended".to_owned()));
        }
        status.start_time = None;
    } else {
        let was =
            status.conditions.iter().flatten().any(|held| held.type_ == "Suspended" && held.status == "True");
        if was {
            condition(&mut status, "Suspended", false, "JobResumed", "Job resumed", now);
            status.start_time = Some(meta::whole_seconds(now));
            plan.events.push(Draft::normal(job, COMPONENT, "Resumed", "Job resumed".to_owned()));
        }
        let wait = backoff(&counts, now);
        if wait.is_zero() {
            plan.create = missing(job, spec, &counts);
            active += plan.create.len();
        } else {
            plan.again = Some(wait);
        }
        let deadline = status.start_time.as_ref().zip(spec.active_deadline_seconds);
        if let Some((start, deadline)) = deadline {
            let left = meta::until(start.0 + seconds(deadline), now);
            plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
        }
    }
    status.active = some(i32::try_from(active).unwrap_or(i32::MAX));
    status.ready = Some(if active == 0 { 0 } else { counts.ready });
    plan.status = (job.status.as_ref() != Some(&status)).then_some(status);
    plan
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

fn ended(status: &JobStatus) -> Option<Timestamp> {
    let over =
        |held: &&JobCondition| matches!(held.type_.as_str(), "Complete" | "Failed") && held.status == "True";
    let held = status.conditions.iter().flatten().find(over)?;
    Some(held.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

fn index(pod: &Pod) -> Option<i32> {
    meta::annotation(pod, INDEX)?.parse().ok()
}

fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ends =
        containers.iter().filter_map(|held| held.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.map(|time| time.0).max()
}

fn count(pods: &[Arc<Pod>]) -> Counts {
    let mut counts = Counts {
        active: Vec::new(),
        ready: 0,
        terminating: 0,
        failed: 0,
        succeeded: 0,
        done: BTreeSet::new(),
        last_failure: None,
    };
    for pod in pods {
        match meta::phase(pod) {
            "Succeeded" => {
                counts.succeeded += 1;
                counts.done.extend(index(pod));
            }
            "Failed" => {
                counts.failed += 1;
                let at = finished_at(pod).or_else(|| meta::created(pod.as_ref()));
                counts.last_failure = counts.last_failure.max(at);
            }
            _ if pod.metadata.deletion_timestamp.is_some() => counts.terminating += 1,
            _ => {
                counts.ready += i32::from(meta::is_ready(pod));
                counts.active.push(Arc::clone(pod));
            }
        }
    }
    counts
}

fn failure(
    spec: &JobSpec,
    status: &JobStatus,
    counts: &Counts,
    now: Timestamp,
) -> Option<(&'static str, String)> {
    let unsupported = [
        (spec.pod_failure_policy.is_some(), "podFailurePolicy"),
        (spec.success_policy.is_some(), "successPolicy"),
        (spec.backoff_limit_per_index.is_some(), "backoffLimitPerIndex"),
    ];
    if let Some((_, field)) = unsupported.iter().find(|(asked, _)| *asked) {
        return Some(("Unsupported", format!("spec.{field} is not supported by this cluster; remove it")));
    }
    let restarts: i32 = counts
        .active
        .iter()
        .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref())
        .flatten()
        .map(|held| held.restart_count)
        .sum();
    let on_failure =
        spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("OnFailure");
    let failures = counts.failed + if on_failure { restarts } else { 0 };
    let limit = spec.backoff_limit.unwrap_or(6);
    if failures > limit || on_failure && restarts > 0 && failures >= limit.max(1) {
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".to_owned()));
    }
    let (start, deadline) = status.start_time.as_ref().zip(spec.active_deadline_seconds)?;
    let late = spec.suspend != Some(true) && start.0 + seconds(deadline) <= now;
    late.then(|| ("DeadlineExceeded", "Job was active longer than specified deadline".to_owned()))
}

fn is_complete(spec: &JobSpec, counts: &Counts) -> bool {
    match spec.completions {
        Some(wanted) if spec.completion_mode.as_deref() == Some("Indexed") => {
            i32::try_from(counts.done.len()).unwrap_or(i32::MAX) >= wanted
        }
        Some(wanted) => counts.succeeded >= wanted,
        // A work queue: any success means that there is no more to do, once the others have ended.
        None => counts.succeeded > 0 && counts.active.is_empty(),
    }
}

/// After failures a Job waits 10 s, 20 s, ... before it makes pods again.
fn backoff(counts: &Counts, now: Timestamp) -> Duration {
    let Some(last) = counts.last_failure else { return Duration::ZERO };
    let doublings = u32::try_from(counts.failed - 1).unwrap_or(0).min(16);
    let pause = FIRST_BACKOFF.saturating_mul(1 << doublings).min(LAST_BACKOFF);
    meta::until(last + pause, now)
}

fn missing(job: &Job, spec: &JobSpec, counts: &Counts) -> Vec<Pod> {
    let parallel = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let active = counts.active.len();
    if spec.completion_mode.as_deref() == Some("Indexed") {
        let running: BTreeSet<i32> = counts.active.iter().filter_map(|pod| index(pod)).collect();
        let open = (0..spec.completions.unwrap_or(0))
            .filter(|index| !counts.done.contains(index) && !running.contains(index));
        return open.take(parallel.saturating_sub(active)).map(|index| pod(job, spec, Some(index))).collect();
    }
    let wanted = match spec.completions {
        Some(completions) => parallel.min(usize::try_from(completions - counts.succeeded).unwrap_or(0)),
        None if counts.succeeded > 0 => active,
        None => parallel,
    };
    (active..wanted).map(|_| pod(job, spec, None)).collect()
}

fn pod(job: &Job, spec: &JobSpec, index: Option<i32>) -> Pod {
    let mut pod = meta::pod_from(&spec.template, job);
    let labels = pod.metadata.labels.get_or_insert_default();
    for (key, value) in [("job-name", meta::name(job)), ("controller-uid", meta::uid(job))] {
        labels.insert(format!("batch.kubernetes.io/{key}"), value.to_owned());
        labels.insert(key.to_owned(), value.to_owned());
    }
    let Some(index) = index else { return pod };
    labels.insert(INDEX.to_owned(), index.to_string());
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.generate_name = Some(format!("{}-{index}-", meta::name(job)));
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{}-{index}", meta::name(job)));
        let source =
            ObjectFieldSelector { field_path: format!("metadata.annotations['{INDEX}']"), api_version: None };
        let value = EnvVar {
            name: "JOB_COMPLETION_INDEX".to_owned(),
            value_from: Some(EnvVarSource { field_ref: Some(source), ..EnvVarSource::default() }),
            value: None,
        };
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.env.get_or_insert_default().push(value.clone());
        }
    }
    pod
}

/// Sets a condition; true if its status changed.
fn condition(
    status: &mut JobStatus,
    type_: &str,
    set: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let value = if set { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    if conditions.iter().any(|held| held.type_ == type_ && held.status == value) {
        return false;
    }
    conditions.retain(|held| held.type_ != type_);
    conditions.push(JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(meta::whole_seconds(now)),
        last_transition_time: Some(meta::whole_seconds(now)),
    });
    true
}

/// `0-2,5` and the like.
fn ranges(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for &index in indexes {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == index => *end = index,
            _ => ranges.push((index, index)),
        }
    }
    let text = ranges.into_iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, Value, json};

    use super::*;

    fn job(spec: Value) -> Job {
        let mut job = json!({
            "metadata": {"name": "j", "namespace": "ns", "uid": "j"},
            "spec": {"completions": 1, "parallelism": 1, "template": {"spec": {"containers": [{"name": "c"}]}}},
        });
        job["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(job).unwrap()
    }

    fn pod(phase: &str, ended: i64) -> Arc<Pod> {
        let ended = Timestamp::from_second(ended).unwrap().to_string();
        let state = json!({"terminated": {"exitCode": 1, "finishedAt": ended}});
        let container = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let status = json!({"phase": phase, "containerStatuses": [container]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": phase}, "status": status})).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn has(status: &JobStatus, type_: &str) -> bool {
        status.conditions.iter().flatten().any(|held| held.type_ == type_ && held.status == "True")
    }

    #[test]
    fn runs_to_completion_and_goes_after_its_ttl() {
        let mut job = job(json!({"completions": 3, "parallelism": 2, "ttlSecondsAfterFinished": 60}));
        let first = plan(&job, &[], at(100));
        assert_eq!(first.create.len(), 2);
        assert_eq!(first.create[0].metadata.labels.as_ref().unwrap()["job-name"], "j");
        let two = [pod("Succeeded", 100), pod("Succeeded", 100)];
        assert_eq!(plan(&job, &two, at(100)).create.len(), 1);
        let three = [pod("Succeeded", 100), pod("Succeeded", 100), pod("Succeeded", 100)];
        job.status = plan(&job, &three, at(100)).status;
        assert!(has(job.status.as_ref().unwrap(), "Complete"));
        assert_eq!(plan(&job, &three, at(120)).again, Some(Duration::from_secs(40)));
        assert!(plan(&job, &three, at(160)).remove);
    }

    #[test]
    fn failures_back_off_and_then_fail_the_job() {
        let job = job(json!({"backoffLimit": 1}));
        let once = plan(&job, &[pod("Failed", 100)], at(104));
        assert_eq!((once.create.len(), once.again), (0, Some(Duration::from_secs(6))));
        assert_eq!(plan(&job, &[pod("Failed", 100)], at(110)).create.len(), 1);
        let twice = plan(&job, &[pod("Failed", 100), pod("Failed", 120)], at(121));
        assert!(has(twice.status.as_ref().unwrap(), "Failed"));
    }

    #[test]
    fn deadline_and_suspension() {
        let mut late = job(json!({"activeDeadlineSeconds": 30}));
        late.status = plan(&late, &[], at(100)).status;
        let running = [pod("Running", 0)];
        assert_eq!(plan(&late, &running, at(110)).again, Some(Duration::from_secs(20)));
        let over = plan(&late, &running, at(130));
        assert!(has(over.status.as_ref().unwrap(), "Failed"));
        assert_eq!(over.delete.len(), 1);
        let suspended = plan(&job(json!({"suspend": true})), &running, at(100));
        assert_eq!((suspended.create.len(), suspended.delete.len()), (0, 1));
    }

    #[test]
    fn indexes() {
        let job = job(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"}));
        let made = plan(&job, &[], at(0)).create;
        let indexes: Vec<_> = made.iter().filter_map(index).collect();
        assert_eq!(indexes, [0, 1, 2]);
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 5])), "0-2,5");
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let asked = job(json!({"podFailurePolicy": {"rules": []}}));
        let made = plan(&asked, &[], at(0));
        assert!(made.create.is_empty());
        let status = made.status.unwrap();
        assert!(status.conditions.unwrap()[0].message.as_ref().unwrap().contains("podFailurePolicy"));
    }
}
