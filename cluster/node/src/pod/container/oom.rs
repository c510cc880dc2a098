//! How readily the kernel ends a container when the machine's memory runs out.

use k8s_openapi::api::core::v1::{Container, Pod};

/// Kubernetes' scores: who asked for nothing goes first, who asked for all that it may use goes last, and in between who
/// uses more than it asked for. `machine` is the node's memory in bytes.
pub(super) fn score(pod: &Pod, container: &Container, machine: i64) -> i32 {
    let class = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let asked = requests
        .and_then(|requests| requests.get("memory"))
        .and_then(|quantity| crate::quantity::units(&quantity.0))
        .unwrap_or(0);
    match class {
        Some("Guaranteed") => -997,
        Some("Burstable") => {
            let share = i128::from(asked) * 1000 / i128::from(machine.max(1));
            i32::try_from(1000 - share).unwrap_or(0).clamp(3, 999)
        }
        _ => 1000,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_are_those_of_kubernetes() {
        let of = |class: &str, memory: &str| {
            let pod = serde_json::from_value(json!({ "status": { "qosClass": class } })).unwrap();
            let container = json!({ "name": "c", "resources": { "requests": { "memory": memory } } });
            score(&pod, &serde_json::from_value(container).unwrap(), 1000 << 20)
        };
        assert_eq!(of("Guaranteed", "1Mi"), -997);
        assert_eq!(of("BestEffort", "0"), 1000);
        assert_eq!(of("Burstable", "0"), 999);
        assert_eq!(of("Burstable", "250Mi"), 750);
        assert_eq!(of("Burstable", "2000Mi"), 3);
    }
}
