//! The NetworkPolicy that keeps plaintext from the apps of a namespace.
//!
//! The sidecar refuses plaintext at its own ports; the app's port it cannot guard, as the app listens there itself. One policy for each
//! namespace lets nothing in to pods in mode strict but the sidecar's ports. It goes by the label that each pod's mode is written in,
//! so that while a change of mode is rolled out each pod is guarded as its own sidecar behaves, and it is no use to a namespace
//! without strict revisions, where it is deleted.
//!
//! On a cluster the network plugin enforces it; traffic from a pod's own node, which kubelet's probes are, always comes in there.

use std::collections::BTreeMap;

use ebb_api::meta::ebb::{MESH_POLICY, MTLS_MODE};
use ebb_api::meta::serving as keys;
use ebb_api::mtls::Mode;
use ebb_http::ports;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::plan::Plan;

/// All ports of the sidecar, one by one: not every network plugin knows ranges.
const OPEN: [u16; 6] =
    [ports::HTTP1, ports::H2C, ports::MTLS, ports::ADMIN, ports::AUTOSCALE_METRICS, ports::USER_METRICS];

/// The policy of a namespace.
pub fn network_policy(namespace: Option<String>) -> NetworkPolicy {
    let requirement = |key: &str, operator: &str, values: Option<Vec<String>>| LabelSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values,
    };
    let port = |number: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(number))),
        protocol: Some("TCP".into()),
        end_port: None,
    };
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(MESH_POLICY.into()),
            namespace,
            labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".into(), "ebb".into())])),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_expressions: Some(vec![
                    requirement(keys::REVISION, "Exists", None),
                    requirement(MTLS_MODE, "In", Some(vec![Mode::Strict.to_string()])),
                ]),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: None,
                ports: Some(OPEN.into_iter().map(port).collect()),
            }]),
            egress: None,
        }),
    }
}

/// What becomes of a namespace's policy; `needed`: there is a revision in mode strict.
pub fn plan(live: &NetworkPolicy, needed: bool) -> Plan {
    let mut plan = Plan::default();
    if !needed {
        plan.delete(live);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apps_port_is_not_among_the_open_ones() {
        let policy = serde_json::to_value(network_policy(Some("shop".into()))).expect("JSON");
        let ports: Vec<i64> = policy["spec"]["ingress"][0]["ports"]
            .as_array()
            .expect("ports")
            .iter()
            .filter_map(|port| port["port"].as_i64())
            .collect();
        assert_eq!(ports, [8012, 8013, 8112, 8022, 9090, 9091]);
        assert!(policy["spec"]["ingress"][0].get("from").is_none(), "from anybody");
        assert_eq!(policy["spec"]["policyTypes"], serde_json::json!(["Ingress"]));
    }

    #[test]
    fn it_goes_with_the_last_strict_revision() {
        let live = network_policy(Some("shop".into()));
        assert_eq!(crate::testing::summary(&plan(&live, true)), [""; 0]);
        assert_eq!(crate::testing::summary(&plan(&live, false)), ["delete NetworkPolicy/ebb-mesh"]);
    }
}
