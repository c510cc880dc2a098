//! Figures of the running containers: `/stats/summary`, of which the parts that metrics-server reads are there.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::context::Context;

pub(crate) async fn summary(State(context): State<Arc<Context>>) -> Json<Value> {
    let now = Timestamp::now();
    let mut pods = Vec::new();
    for pod in &context.pods {
        let (namespace, name) = pod.key();
        let live: Vec<_> = pod.live.lock().values().cloned().collect();
        let containers: Vec<Value> = live
            .iter()
            .filter_map(|container| {
                let usage = context.runtime.stats(&container.id)?;
                Some(json!({
                    "name": container.spec.name,
                    "cpu": { "time": now, "usageCoreNanoSeconds": usage.cpu_ns },
                    "memory": {
                        "time": now, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes,
                    },
                }))
            })
            .collect();
        pods.push(json!({
            "podRef": { "name": name, "namespace": namespace, "uid": pod.uid }, "containers": containers,
        }));
    }
    Json(json!({ "node": { "nodeName": context.node_name }, "pods": pods }))
}
