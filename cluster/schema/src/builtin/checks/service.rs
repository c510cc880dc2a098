//! Services.

use std::collections::HashSet;

use serde_json::Value;

use super::others::{label_keys, subdomain};
use super::{label, list, one_of, port_name, port_number};
use crate::error::{FieldError, go_struct};

const IP_RULE: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

pub(super) fn object(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"], errors);
    let ports = list(spec, "ports");
    let headless = spec["clusterIP"] == "None";
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && spec["externalName"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    if kind == "ExternalName" && spec["externalName"].as_str().is_some_and(|name| !name.is_empty()) {
        subdomain("spec.externalName", &spec["externalName"], errors);
    }
    label_keys("spec.selector", &spec["selector"], errors);
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        if ip.as_str().is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_err()) {
            errors.push(FieldError::invalid(format!("spec.externalIPs[{i}]"), ip, IP_RULE));
        }
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &"None".into(), detail));
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            label(&format!("{path}.name"), &port["name"], errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
        }
        port_number(&format!("{path}.port"), &port["port"], errors);
        one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"], errors);
        let target = &port["targetPort"];
        if target.is_string() {
            port_name(&format!("{path}.targetPort"), target, errors);
        } else if !target.is_null() {
            port_number(&format!("{path}.targetPort"), target, errors);
        }
        if kind == "ClusterIP" && port["nodePort"].as_i64().is_some_and(|port| port != 0) {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(format!("{path}.nodePort"), detail));
        }
        if !numbers.insert((port["port"].as_i64(), port["protocol"].as_str())) {
            // As Go prints the part of a port that must be one of a kind.
            let shown = go_struct(&[
                ("Name", "".into()),
                ("Protocol", port["protocol"].clone()),
                ("AppProtocol", Value::Null),
                ("Port", port["port"].clone()),
                ("TargetPort", 0.into()),
                ("NodePort", 0.into()),
            ]);
            errors.push(FieldError::duplicate(&path, port).showing(shown));
        }
    }
}
