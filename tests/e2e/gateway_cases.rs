//! The gateway's own API besides Knative's: Gateway API, as somebody has it who installs its CRDs.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::harness::Platform;
use testkit::http;

pub(crate) const CASES: &[(&str, Case)] = &[("gateway::http_route_splits_rewrites_and_tells", http_route)];

/// The least that a CRD must say; users install those of Gateway API itself.
fn crd(kind: &str, plural: &str, version: &str, scope: &str) -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.gateway.networking.k8s.io"),
            // The group is Kubernetes' own, and wants to be told that this was approved.
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/2466"},
        },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}}}],
        },
    })
}

fn http_route(p: &Platform) -> Result<()> {
    let ns = p.namespace("e2e-http-route")?;
    for (kind, plural, version, scope) in [
        ("GatewayClass", "gatewayclasses", "v1", "Cluster"),
        ("Gateway", "gateways", "v1", "Namespaced"),
        ("ReferenceGrant", "referencegrants", "v1beta1", "Namespaced"),
        ("HTTPRoute", "httproutes", "v1", "Namespaced"),
    ] {
        p.apply(ns.name(), &crd(kind, plural, version, scope).to_string())?;
    }
    ns.wait("the gateway has made its class", || {
        Ok(p.kubectl(&["get", "gatewayclass", "ebb", "-o", "jsonpath={.status.conditions[0].status}"])
            .is_ok_and(|status| status == "True"))
    })?;
    for name in ["blue", "green"] {
        for object in [
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "app", "image": p.image(),
                    "env": [{"name": "NAME", "value": name}],
                    "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        ] {
            p.apply(ns.name(), &object.to_string())?;
        }
    }
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "front"},
        "spec": {"gatewayClassName": "ebb", "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.routes.test"},
            {"name": "odd", "port": 81, "protocol": "HTTP"}]}});
    p.apply(ns.name(), &gateway.to_string())?;
    let to = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": {"parentRefs": [{"name": "front"}], "hostnames": ["web.routes.test"], "rules": [
            {"backendRefs": [to("blue", 3), to("green", 1)]},
            {"matches": [{"path": {"value": "/green"}}], "backendRefs": [to("green", 1)],
             "filters": [{"type": "ResponseHeaderModifier",
                          "responseHeaderModifier": {"set": [{"name": "x-route", "value": "green"}]}},
                         {"type": "URLRewrite",
                          "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}]},
            {"matches": [{"path": {"value": "/old"}}],
             "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 301,
                          "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}]}]}});
    p.apply(ns.name(), &route.to_string())?;
    for name in ["pod/blue", "pod/green"] {
        p.kubectl(&["wait", "-n", ns.name(), "--for=condition=Ready", name, "--timeout=60s"])?;
    }
    let condition = |object: &Value, type_: &str| -> Result<Value> {
        let all = object.as_array().context("conditions")?;
        Ok(all.iter().find(|c| c["type"] == type_).cloned().unwrap_or_default())
    };
    ns.wait("the route is accepted", || {
        let route = p.get(ns.name(), "httproute/web")?;
        let parent = &route["status"]["parents"][0];
        Ok(parent["controllerName"] == "ebb.dev/gateway"
            && condition(&parent["conditions"], "Accepted").is_ok_and(|c| c["status"] == "True")
            && condition(&parent["conditions"], "ResolvedRefs").is_ok_and(|c| c["status"] == "True"))
    })?;
    let told = p.get(ns.name(), "gateway/front")?;
    ensure!(condition(&told["status"]["conditions"], "Programmed")?["status"] == "True", "{told}");
    ensure!(!told["status"]["addresses"][0]["value"].is_null(), "{told}");
    let odd = condition(&told["status"]["listeners"][1]["conditions"], "Accepted")?;
    ensure!(odd["reason"] == "PortUnavailable", "{odd}");

    let get = |path: &str| http::get(p.gateway(), "web.routes.test", path);
    let mut greens = 0;
    for _ in 0..200 {
        let answer = get("/")?;
        ensure!(answer.status == 200, "{answer:?}");
        greens += usize::from(answer.body.contains("green"));
    }
    ensure!((20..=85).contains(&greens), "{greens} of 200 at one in four");
    let answer = get("/green")?;
    ensure!(answer.body.contains("green") && answer.headers["x-route"] == "green", "{answer:?}");
    let answer = get("/old/x?a=b")?;
    let location = answer.headers.get("location").and_then(|l| l.to_str().ok()).unwrap_or_default();
    ensure!(answer.status == 301 && location.ends_with("/new/x?a=b"), "{answer:?}");
    ensure!(http::get(p.gateway(), "other.routes.test", "/")?.status == 404, "a host that no route has");

    // A host that is a Knative Service's already.
    ns.service("mine", &[], &[("NAME", "mine")])?;
    ns.wait_ready("mine")?;
    let host = ns.host("mine")?;
    // A route names it without a port.
    let host = host.split(':').next().unwrap_or_default().to_owned();
    let greedy = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "greedy"},
        "spec": {"parentRefs": [{"name": "every"}], "hostnames": [host],
            "rules": [{"backendRefs": [to("blue", 1)]}]}});
    let every = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "every"},
        "spec": {"gatewayClassName": "ebb", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}});
    p.apply(ns.name(), &every.to_string())?;
    p.apply(ns.name(), &greedy.to_string())?;
    ns.wait("the route says whose its host is", || {
        let route = p.get(ns.name(), "httproute/greedy")?;
        let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
        Ok(parents.iter().any(|parent| {
            condition(&parent["conditions"], "Accepted").is_ok_and(|told| {
                told["reason"] == "HostTaken" && told["message"].as_str().is_some_and(|m| m.contains(&host))
            })
        }))
    })?;
    ensure!(http::get(p.gateway(), &host, "/")?.body.contains("mine"), "the Service keeps its host");
    p.kubectl(&["delete", "-n", ns.name(), "ksvc/mine"])?;
    ns.wait("the route has the host that is free now", || {
        Ok(http::get(p.gateway(), &host, "/")?.body.contains("blue"))
    })?;

    p.kubectl(&["delete", "-n", ns.name(), "service/green"])?;
    ns.wait("the route says which backend is missing", || {
        let route = p.get(ns.name(), "httproute/web")?;
        let told = condition(&route["status"]["parents"][0]["conditions"], "ResolvedRefs")?;
        Ok(told["reason"] == "BackendNotFound"
            && told["message"].as_str().is_some_and(|m| m.contains("green")))
    })?;
    // Another replica than the one that answers may have told it.
    ns.wait("a backend that is not there is answered for", || Ok(get("/green")?.status == 500))?;
    p.kubectl(&["delete", "-n", ns.name(), "httproute/web"])?;
    ns.wait("the route is gone", || Ok(get("/")?.status == 404))?;
    Ok(())
}
