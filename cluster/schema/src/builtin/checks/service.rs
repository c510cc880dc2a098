//! Services.

use std::collections::HashSet;

use serde_json::Value;

use super::{label, list, one_of, port_name, port_number};
use crate::error::FieldError;

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
        if !numbers.insert((port["port"].as_i64(), port["protocol"].as_str())) {
            let mut key = serde_json::Map::new();
            for field in ["port", "protocol"] {
                key.insert(field.into(), port[field].clone());
            }
            errors.push(FieldError::duplicate(&path, &Value::Object(key)));
        }
    }
}
