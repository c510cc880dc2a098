//! Pods: the STATUS column tells more than the phase.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Column, text};
use super::{age, name};

pub(super) const COLUMNS: &[Column] = columns![
    string "Name", string "Ready", string "Status", string "Restarts", string "Age",
    string "~IP", string "~Node", string "~Nominated Node", string "~Readiness Gates",
];

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn is_sidecar(pod: &Value, status: &Value) -> bool {
    list(&pod["spec"], "initContainers")
        .iter()
        .any(|container| container["name"] == status["name"] && container["restartPolicy"] == "Always")
}

/// Why a terminated container ended.
fn ended(state: &Value) -> String {
    let terminated = &state["terminated"];
    if let Some(reason) = terminated["reason"].as_str().filter(|reason| !reason.is_empty()) {
        return reason.to_owned();
    }
    match terminated["signal"].as_i64().filter(|signal| *signal != 0) {
        Some(signal) => format!("Signal:{signal}"),
        None => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
    }
}

/// What kubectl shows as a pod's status, and the number of ready containers and of restarts.
fn status(pod: &Value) -> (String, usize, i64, Option<String>) {
    let state = &pod["status"];
    let mut reason = state["reason"].as_str().or(state["phase"].as_str()).unwrap_or("Unknown").to_owned();
    for condition in list(state, "conditions") {
        if condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated" {
            "SchedulingGated".clone_into(&mut reason);
        }
    }
    let (mut ready, mut restarts) = (0, 0);
    let mut last_restart: Option<String> = None;
    let mut count = |status: &Value| {
        let finished = status["lastState"]["terminated"]["finishedAt"].as_str().map(str::to_owned);
        last_restart = last_restart.take().max(finished);
        status["restartCount"].as_i64().unwrap_or(0)
    };
    let mut initializing = false;
    let total = list(&pod["spec"], "initContainers").len();
    for (index, init) in list(state, "initContainerStatuses").iter().enumerate() {
        restarts += count(init);
        let now = &init["state"];
        if now["terminated"].is_object() && now["terminated"]["exitCode"].as_i64() == Some(0) {
            continue;
        }
        if is_sidecar(pod, init) && init["started"] == true {
            ready += usize::from(init["ready"] == true);
            continue;
        }
        reason = if now["terminated"].is_object() {
            format!("Init:{}", ended(now))
        } else {
            match now["waiting"]["reason"].as_str() {
                Some(waiting) if !waiting.is_empty() && waiting != "PodInitializing" => {
                    format!("Init:{waiting}")
                }
                _ => format!("Init:{index}/{total}"),
            }
        };
        initializing = true;
        break;
    }
    if !initializing {
        // Of sidecars, the restarts count still; those of finished init containers do not.
        restarts = list(state, "initContainerStatuses")
            .iter()
            .filter(|status| is_sidecar(pod, status))
            .map(|status| status["restartCount"].as_i64().unwrap_or(0))
            .sum();
        let mut running = false;
        for container in list(state, "containerStatuses").iter().rev() {
            restarts += count(container);
            let now = &container["state"];
            if let Some(waiting) = now["waiting"]["reason"].as_str().filter(|reason| !reason.is_empty()) {
                waiting.clone_into(&mut reason);
            } else if now["terminated"].is_object() {
                reason = ended(now);
            } else if container["ready"] == true && now["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready =
                list(state, "conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            if is_ready { "Running" } else { "NotReady" }.clone_into(&mut reason);
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        let lost = state["reason"] == "NodeLost";
        let ended = matches!(state["phase"].as_str(), Some("Succeeded" | "Failed"));
        if lost {
            "Unknown".clone_into(&mut reason);
        } else if !ended {
            "Terminating".clone_into(&mut reason);
        }
    }
    (reason, ready, restarts, last_restart)
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (reason, ready, restarts, last) = status(pod);
    let spec = &pod["spec"];
    let sidecars = list(spec, "initContainers").iter().filter(|c| c["restartPolicy"] == "Always").count();
    let total = list(spec, "containers").len() + sidecars;
    let restarts = match last.filter(|_| restarts > 0) {
        Some(last) => format!("{restarts} ({} ago)", text::age(&last, now)),
        None => restarts.to_string(),
    };
    let gates = list(spec, "readinessGates");
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|gate| {
                list(&pod["status"], "conditions").iter().any(|condition| {
                    condition["type"] == gate["conditionType"] && condition["status"] == "True"
                })
            })
            .count();
        format!("{met}/{}", gates.len())
    };
    vec![
        name(pod),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        age(pod, now),
        text::or_none(pod["status"]["podIP"].as_str().unwrap_or_default()),
        text::or_none(spec["nodeName"].as_str().unwrap_or_default()),
        text::or_none(pod["status"]["nominatedNodeName"].as_str().unwrap_or_default()),
        gates.into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(pod: &Value) -> Vec<String> {
        let now = Timestamp::from_second(100).unwrap();
        cells(pod, now).iter().take(4).map(|cell| cell.as_str().unwrap_or("-").to_owned()).collect()
    }

    #[test]
    fn a_running_pod() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {
            "phase": "Running", "containerStatuses": [
                {"ready": true, "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "1970-01-01T00:00:10Z"}}},
                {"ready": false, "restartCount": 0, "state": {"running": {}}}]}});
        assert_eq!(row(&pod), ["p", "1/2", "Running", "1 (90s ago)"]);
    }

    #[test]
    fn what_is_wrong_is_the_status() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}, "status": {
            "phase": "Pending", "containerStatuses": [{"ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}});
        assert_eq!(row(&pod)[2], "ImagePullBackOff");
        pod["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 3}});
        assert_eq!(row(&pod)[2], "ExitCode:3");
        pod["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        assert_eq!(row(&pod)[2], "Terminating");
    }

    #[test]
    fn init_containers_come_first() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "restartCount": 0, "state": {"running": {}}}]}});
        assert_eq!(row(&pod)[2], "Init:1/2");
    }
}
