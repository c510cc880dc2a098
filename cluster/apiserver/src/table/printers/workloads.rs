//! Deployments, ReplicaSets, jobs and their like.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Column, text};
use super::{age, name, number};
use crate::meta;

pub(super) fn columns(kind: &str) -> Option<&'static [Column]> {
    Some(match kind {
        "Deployment" => columns![
            string "Name", string "Ready", string "Up-to-date", string "Available", string "Age",
            string "~Containers", string "~Images", string "~Selector",
        ],
        "ReplicaSet" | "ReplicationController" => columns![
            string "Name", integer "Desired", integer "Current", integer "Ready", string "Age",
            string "~Containers", string "~Images", string "~Selector",
        ],
        "StatefulSet" => columns![
            string "Name", string "Ready", string "Age", string "~Containers", string "~Images",
        ],
        "DaemonSet" => columns![
            string "Name", integer "Desired", integer "Current", integer "Ready", integer "Up-to-date",
            integer "Available", string "Node Selector", string "Age",
            string "~Containers", string "~Images", string "~Selector",
        ],
        "Job" => columns![
            string "Name", string "Status", string "Completions", string "Duration", string "Age",
            string "~Containers", string "~Images", string "~Selector",
        ],
        "CronJob" => columns![
            string "Name", string "Schedule", string "Timezone", string "Suspend", integer "Active",
            string "Last Schedule", string "Age", string "~Containers", string "~Images", string "~Selector",
        ],
        "ControllerRevision" => {
            columns![string "Name", string "Controller", integer "Revision", string "Age"]
        }
        "HorizontalPodAutoscaler" => columns![
            string "Name", string "Reference", string "Targets", string "MinPods", string "MaxPods",
            integer "Replicas", string "Age",
        ],
        "PodDisruptionBudget" => columns![
            string "Name", string "Min Available", string "Max Unavailable", integer "Allowed Disruptions", string "Age",
        ],
        _ => return None,
    })
}

fn template(object: &Value) -> [Value; 2] {
    let containers = &object["spec"]["template"]["spec"]["containers"];
    [text::each(containers, "name").into(), text::each(containers, "image").into()]
}

fn selector(object: &Value) -> Value {
    let selector = &object["spec"]["selector"];
    let labels = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
    text::pairs(labels).into()
}

fn or_na(value: &Value) -> Value {
    match value {
        Value::Null => "N/A".into(),
        Value::String(_) => value.clone(),
        other => other.to_string().into(),
    }
}

pub(super) fn cells(kind: &str, object: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let of = |field: &str| number(&status[field]);
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let [containers, images] = template(object);
    Some(match kind {
        "Deployment" => vec![
            name(object),
            format!("{}/{wanted}", of("readyReplicas")).into(),
            of("updatedReplicas"),
            of("availableReplicas"),
            age(object, now),
            containers,
            images,
            selector(object),
        ],
        "ReplicaSet" | "ReplicationController" => vec![
            name(object),
            wanted.into(),
            of("replicas"),
            of("readyReplicas"),
            age(object, now),
            containers,
            images,
            selector(object),
        ],
        "StatefulSet" => vec![
            name(object),
            format!("{}/{wanted}", of("readyReplicas")).into(),
            age(object, now),
            containers,
            images,
        ],
        "DaemonSet" => vec![
            name(object),
            of("desiredNumberScheduled"),
            of("currentNumberScheduled"),
            of("numberReady"),
            of("updatedNumberScheduled"),
            of("numberAvailable"),
            text::pairs(&spec["template"]["spec"]["nodeSelector"]).into(),
            age(object, now),
            containers,
            images,
            selector(object),
        ],
        "Job" => vec![
            name(object),
            job_status(object).into(),
            job_completions(object).into(),
            job_duration(status, now),
            age(object, now),
            containers,
            images,
            selector(object),
        ],
        "CronJob" => {
            let job = &spec["jobTemplate"];
            let [containers, images] = template(job);
            let last = status["lastScheduleTime"].as_str();
            vec![
                name(object),
                spec["schedule"].clone(),
                text::or_none(spec["timeZone"].as_str().unwrap_or_default()),
                if spec["suspend"] == true { "True" } else { "False" }.into(),
                text::count(&status["active"]).into(),
                last.map_or_else(|| "<none>".to_owned(), |time| text::age(time, now)).into(),
                age(object, now),
                containers,
                images,
                selector(job),
            ]
        }
        "ControllerRevision" => {
            let owners = object["metadata"]["ownerReferences"].as_array();
            let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
            let owner = owner.map_or_else(
                || "<none>".to_owned(),
                |owner| {
                    let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
                    let (version, kind) = (text("apiVersion"), text("kind").to_lowercase());
                    let group =
                        version.split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
                    format!("{kind}{group}/{}", text("name"))
                },
            );
            vec![name(object), owner.into(), number(&object["revision"]), age(object, now)]
        }
        "HorizontalPodAutoscaler" => {
            let target = &spec["scaleTargetRef"];
            let text = |field: &str| target[field].as_str().unwrap_or_default().to_owned();
            vec![
                name(object),
                format!("{}/{}", text("kind"), text("name")).into(),
                targets(object).into(),
                spec["minReplicas"].as_i64().map_or("<unset>".to_owned(), |n| n.to_string()).into(),
                spec["maxReplicas"].as_i64().unwrap_or(0).to_string().into(),
                of("currentReplicas"),
                age(object, now),
            ]
        }
        "PodDisruptionBudget" => vec![
            name(object),
            or_na(&spec["minAvailable"]),
            or_na(&spec["maxUnavailable"]),
            of("disruptionsAllowed"),
            age(object, now),
        ],
        _ => return None,
    })
}

fn job_status(job: &Value) -> &'static str {
    let has = |kind: &str| {
        let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if meta::is_terminating(job) {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn job_completions(job: &Value) -> String {
    let done = job["status"]["succeeded"].as_i64().unwrap_or(0);
    match job["spec"]["completions"].as_i64() {
        Some(wanted) => format!("{done}/{wanted}"),
        None => match job["spec"]["parallelism"].as_i64() {
            Some(parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
            _ => format!("{done}/1"),
        },
    }
}

fn job_duration(status: &Value, now: Timestamp) -> Value {
    let time = |field: &str| status[field].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let Some(start) = time("startTime") else { return "".into() };
    let end = time("completionTime").unwrap_or(now);
    text::duration(end.as_second() - start.as_second()).into()
}

/// What an autoscaler's metrics are and should be: the first two of them.
fn targets(object: &Value) -> String {
    let (spec, status) = (&object["spec"], &object["status"]);
    let shown = |value: &Value, unit: &str, unknown: &str| match value {
        Value::Null => unknown.to_owned(),
        Value::String(text) => text.clone(),
        other => format!("{other}{unit}"),
    };
    let percent = |is: &Value, wanted: &Value| {
        format!("{}/{}", shown(is, "%", "<unknown>"), shown(wanted, "%", "<auto>"))
    };
    let wanted = &spec["targetCPUUtilizationPercentage"];
    if !wanted.is_null() {
        return format!("cpu: {}", percent(&status["currentCPUUtilizationPercentage"], wanted));
    }
    let metrics = spec["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told = metrics.iter().enumerate().map(|(index, metric)| {
        let field = match metric["type"].as_str().unwrap_or_default() {
            "External" => "external",
            "Pods" => "pods",
            "Object" => "object",
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            _ => return "<unknown type>".to_owned(),
        };
        let (target, current) =
            (&metric[field]["target"], &status["currentMetrics"][index][field]["current"]);
        let name = metric[field]["name"].as_str().unwrap_or_default();
        let pair = |value: &str| {
            format!("{}/{}", shown(&current[value], "", "<unknown>"), shown(&target[value], "", ""))
        };
        match field {
            "resource" | "containerResource" if target["averageValue"].is_null() => {
                format!("{name}: {}", percent(&current["averageUtilization"], &target["averageUtilization"]))
            }
            "resource" | "containerResource" => format!("{name}: {}", pair("averageValue")),
            "pods" => pair("averageValue"),
            _ if target["averageValue"].is_null() => pair("value"),
            _ => format!("{} (avg)", pair("averageValue")),
        }
    });
    let told: Vec<String> = told.collect();
    match told.len() {
        0 => "<none>".to_owned(),
        1 | 2 => told.join(", "),
        more => format!("{} + {} more...", told[..2].join(", "), more - 2),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_of_autoscalers() {
        let resource = |name: &str, target: Value| json!({"type": "Resource", "resource": {"name": name, "target": target}});
        let cpu = resource("cpu", json!({"type": "Utilization", "averageUtilization": 80}));
        let memory = resource("memory", json!({"type": "AverageValue", "averageValue": "1Gi"}));
        let shown = |spec: Value, status: Value| targets(&json!({"spec": spec, "status": status}));
        assert_eq!(shown(json!({}), Value::Null), "<none>");
        assert_eq!(shown(json!({"metrics": [cpu]}), Value::Null), "cpu: <unknown>/80%");
        let current = json!([{"resource": {"current": {"averageUtilization": 5, "averageValue": "5m"}}},
            {"resource": {"current": {"averageValue": "300Mi"}}}]);
        let both = json!({"metrics": [cpu, memory]});
        assert_eq!(shown(both, json!({"currentMetrics": current})), "cpu: 5%/80%, memory: 300Mi/1Gi");
        let pods =
            json!({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"averageValue": "9"}}});
        let three = json!({"metrics": [pods, cpu, cpu]});
        assert_eq!(shown(three, Value::Null), "<unknown>/9, cpu: <unknown>/80% + 1 more...");
        let first = json!({"targetCPUUtilizationPercentage": 50});
        assert_eq!(shown(first, json!({"currentCPUUtilizationPercentage": 7})), "cpu: 7%/50%");
    }
}
