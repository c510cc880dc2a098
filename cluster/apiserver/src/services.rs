//! Addresses of Services: cluster IPs and node ports, each held by at most one Service.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::{Value, json};

use cluster_schema::FieldError;

use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::meta;
use crate::store::{Key, Store};

/// Node ports: as upstream.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// The lower part of the range is left for those who choose an address themselves, as upstream.
const STATIC_SHARE: u32 = 16;

type Owner = (String, String);

#[derive(Debug, Default)]
struct Held {
    addresses: HashMap<Ipv4Addr, Owner>,
    ports: HashMap<(String, u16), Owner>,
}

/// Who holds which address.
#[derive(Debug)]
pub(crate) struct Addresses {
    range: Ipv4Net,
    held: Mutex<Held>,
}

/// What a write reserved: given back when dropped, unless kept.
pub(crate) struct Reserved<'a> {
    addresses: &'a Addresses,
    ips: Vec<Ipv4Addr>,
    ports: Vec<(String, u16)>,
}

impl<'a> Reserved<'a> {
    pub(crate) fn none(addresses: &'a Addresses) -> Self {
        Self { addresses, ips: Vec::new(), ports: Vec::new() }
    }

    /// The write succeeded.
    pub(crate) fn keep(mut self) {
        self.ips.clear();
        self.ports.clear();
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut held = self.addresses.held.lock();
        for ip in &self.ips {
            held.addresses.remove(ip);
        }
        for port in &self.ports {
            held.ports.remove(port);
        }
    }
}

fn cluster_ips(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    match spec["clusterIPs"].as_array() {
        Some(list) if !list.is_empty() => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).map(str::to_owned).into_iter().collect(),
    }
}

fn node_ports(service: &Value) -> Vec<(String, u16)> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let number = u16::try_from(port["nodePort"].as_u64()?).ok().filter(|number| *number > 0)?;
            Some((port["protocol"].as_str().unwrap_or("TCP").to_owned(), number))
        })
        .collect()
}

impl Addresses {
    /// With what the Services in the store hold.
    pub(crate) fn new(range: Ipv4Net, store: &Store) -> Self {
        let mut held = Held::default();
        for service in store.list("/services", None).1 {
            let owner = (service.key.namespace.clone(), service.key.name.clone());
            for ip in cluster_ips(&service.value).iter().filter_map(|ip| ip.parse().ok()) {
                held.addresses.insert(ip, owner.clone());
            }
            for port in node_ports(&service.value) {
                held.ports.insert(port, owner.clone());
            }
        }
        Self { range, held: Mutex::new(held) }
    }

    /// Fills in and reserves the cluster IP and the node ports of a Service.
    pub(crate) fn assign<'a>(
        &'a self,
        ctx: &Ctx,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Reserved<'a>, ApiError> {
        let owner = (ctx.namespace.clone(), meta::name(service).to_owned());
        let invalid = |error: FieldError| ApiError::invalid("", "Service", &owner.1, &[error]);
        let mut reserved = Reserved::none(self);
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
        if kind == "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
            {
                if let Some(spec) = service["spec"].as_object_mut() {
                    spec.remove(field);
                }
            }
            return Ok(reserved);
        }
        if let Some(old) = old {
            let (before, after) = (&old["spec"]["clusterIP"], &service["spec"]["clusterIP"]);
            let given = after.as_str().filter(|ip| !ip.is_empty());
            if before.as_str().is_some_and(|ip| !ip.is_empty()) && given.is_some() && before != after {
                return Err(invalid(FieldError::invalid(
                    "spec.clusterIPs[0]",
                    &json!([after]),
                    "may not change once set",
                )));
            }
            // An update that leaves the addresses out keeps them.
            for field in ["clusterIP", "clusterIPs"] {
                let absent = service["spec"][field].as_str().is_none_or(str::is_empty)
                    && service["spec"][field].as_array().is_none_or(Vec::is_empty);
                if absent && old["spec"]["type"] != "ExternalName" {
                    let (from, to) = (old["spec"].clone(), &mut service["spec"]);
                    meta::carry(field, &from, to);
                }
            }
            keep_node_ports(service, old);
        }
        self.assign_ip(service, &owner, &mut reserved).map_err(invalid)?;
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            let wanted = kind == "NodePort" || service["spec"]["allocateLoadBalancerNodePorts"] != false;
            self.assign_ports(service, &owner, wanted, &mut reserved).map_err(invalid)?;
        } else {
            for (index, port) in meta::items_mut(&mut service["spec"], "ports").enumerate() {
                // A change of type leaves them behind; a new service that asks for one is mistaken.
                if old.is_none()
                    && kind == "ClusterIP"
                    && port["nodePort"].as_u64().is_some_and(|number| number > 0)
                {
                    let field = format!("spec.ports[{index}].nodePort");
                    return Err(invalid(FieldError::forbidden(
                        field,
                        "may not be used when `type` is 'ClusterIP'",
                    )));
                }
                if let Some(port) = port.as_object_mut() {
                    port.remove("nodePort");
                }
            }
            let external = service["spec"]["externalIPs"].as_array().is_some_and(|list| !list.is_empty());
            if let Some(spec) = service["spec"].as_object_mut()
                && !external
            {
                spec.remove("externalTrafficPolicy");
            }
        }
        if dry_run {
            drop(reserved);
            return Ok(Reserved::none(self));
        }
        Ok(reserved)
    }

    fn assign_ip(
        &self,
        service: &mut Value,
        owner: &Owner,
        reserved: &mut Reserved<'_>,
    ) -> Result<(), FieldError> {
        let wanted = cluster_ips(service).into_iter().next().unwrap_or_default();
        let mut held = self.held.lock();
        let ip = match wanted.as_str() {
            "None" => "None".to_owned(),
            "" => {
                let ip = self.free(&held).ok_or_else(|| {
                    FieldError::invalid(
                        "spec.clusterIP",
                        &json!(""),
                        "failed to allocate a serviceIP: range is full",
                    )
                })?;
                held.addresses.insert(ip, owner.clone());
                reserved.ips.push(ip);
                ip.to_string()
            }
            given => {
                let field = "spec.clusterIPs";
                let bad = |detail: String| FieldError::invalid(field, &json!([given]), detail);
                let ip: Ipv4Addr = given.parse().map_err(|_| {
                    let rule = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    FieldError::invalid("spec.clusterIPs[0]", &json!(given), rule)
                })?;
                if !self.range.contains(&ip) {
                    return Err(bad(format!(
                        "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                        self.range
                    )));
                }
                match held.addresses.get(&ip) {
                    Some(other) if other != owner => {
                        return Err(bad(format!(
                            "failed to allocate IP {ip}: provided IP is already allocated"
                        )));
                    }
                    Some(_) => {}
                    None => {
                        held.addresses.insert(ip, owner.clone());
                        reserved.ips.push(ip);
                    }
                }
                ip.to_string()
            }
        };
        let spec = &mut service["spec"];
        spec["clusterIP"] = ip.clone().into();
        spec["clusterIPs"] = json!([ip]);
        if !spec["ipFamilies"].is_array() {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        if !spec["ipFamilyPolicy"].is_string() {
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        Ok(())
    }

    /// A free address, from the part of the range that is not for those who choose.
    fn free(&self, held: &Held) -> Option<Ipv4Addr> {
        let first = u32::from(self.range.network());
        let size = 1_u32 << (32 - self.range.prefix_len()).min(31);
        let reserved = (size / STATIC_SHARE).clamp(1, 256);
        // The last address is a broadcast address.
        let last = size.saturating_sub(1);
        let start = if reserved + 1 < last { rand::rng().random_range(reserved..last) } else { 1 };
        (start..last)
            .chain(reserved..start)
            .chain(1..reserved)
            .map(|offset| Ipv4Addr::from(first + offset))
            .find(|ip| !held.addresses.contains_key(ip))
    }

    fn assign_ports(
        &self,
        service: &mut Value,
        owner: &Owner,
        wanted: bool,
        reserved: &mut Reserved<'_>,
    ) -> Result<(), FieldError> {
        let mut held = self.held.lock();
        let ports = meta::items_mut(&mut service["spec"], "ports");
        for (index, port) in ports.enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let given = port["nodePort"].as_u64().filter(|number| *number > 0);
            match given {
                Some(number) => {
                    let field = format!("spec.ports[{index}].nodePort");
                    let number = u16::try_from(number).unwrap_or(0);
                    let slot = (protocol, number);
                    match held.ports.get(&slot) {
                        Some(other) if other != owner => {
                            let error = FieldError::invalid(
                                field,
                                &json!(number),
                                "provided port is already allocated",
                            );
                            return Err(error);
                        }
                        Some(_) => {}
                        None => {
                            held.ports.insert(slot.clone(), owner.clone());
                            reserved.ports.push(slot);
                        }
                    }
                }
                None if wanted => {
                    let (low, high) = (*NODE_PORTS.start(), *NODE_PORTS.end());
                    let start = rand::rng().random_range(low..=high);
                    let number = (start..=high)
                        .chain(low..start)
                        .find(|number| !held.ports.contains_key(&(protocol.clone(), *number)))
                        .ok_or_else(|| {
                            FieldError::invalid(
                                format!("spec.ports[{index}].nodePort"),
                                &json!(0),
                                "range is full",
                            )
                        })?;
                    held.ports.insert((protocol.clone(), number), owner.clone());
                    reserved.ports.push((protocol, number));
                    port["nodePort"] = number.into();
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Gives back what this Service held and its present state (if any) does not.
    pub(crate) fn settle(&self, key: &Key, now: Option<&Value>) {
        let owner = (key.namespace.clone(), key.name.clone());
        let ips: Vec<Ipv4Addr> =
            now.map(cluster_ips).unwrap_or_default().iter().filter_map(|ip| ip.parse().ok()).collect();
        let ports = now.map(node_ports).unwrap_or_default();
        let mut held = self.held.lock();
        held.addresses.retain(|ip, other| *other != owner || ips.contains(ip));
        held.ports.retain(|port, other| *other != owner || ports.contains(port));
        for ip in ips {
            held.addresses.entry(ip).or_insert_with(|| owner.clone());
        }
        for port in ports {
            held.ports.entry(port).or_insert_with(|| owner.clone());
        }
    }
}

/// Ports that an update names without their node port keep the one they had.
fn keep_node_ports(service: &mut Value, old: &Value) {
    if !matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
        return;
    }
    let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let mut taken: Vec<u64> = node_ports(service).into_iter().map(|(_, number)| u64::from(number)).collect();
    for port in meta::items_mut(&mut service["spec"], "ports") {
        if port["nodePort"].as_u64().unwrap_or(0) > 0 {
            continue;
        }
        let same = before.iter().find(|old| {
            old["port"] == port["port"]
                && old["protocol"].as_str().unwrap_or("TCP") == port["protocol"].as_str().unwrap_or("TCP")
        });
        if let Some(number) =
            same.and_then(|old| old["nodePort"].as_u64()).filter(|number| !taken.contains(number))
        {
            taken.push(number);
            port["nodePort"] = number.into();
        }
    }
}
