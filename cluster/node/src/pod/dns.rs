//! The three files a pod gets from its node: resolv.conf, hosts, hostname.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;

/// The text of a pod's resolv.conf, by its dnsPolicy and dnsConfig
/// (<https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>). `host` is the machine's own file.
pub(crate) fn resolv_conf(pod: &Pod, dns_ip: Ipv4Addr, domain: &str, host: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in host.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => searches = words.map(str::to_owned).collect(),
            Some("options") => options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network == Some(true);
    match policy {
        "None" => (servers, searches, options) = (Vec::new(), Vec::new(), Vec::new()),
        "Default" => {}
        "ClusterFirst" if host_network => {}
        _ => {
            servers = vec![dns_ip.to_string()];
            let mut cluster =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            cluster.extend(searches);
            searches = cluster;
            options = vec!["ndots:5".to_owned()];
        }
    }
    if let Some(config) = spec.dns_config {
        servers.extend(config.nameservers.into_iter().flatten());
        searches.extend(config.searches.into_iter().flatten());
        for option in config.options.into_iter().flatten() {
            let name = option.name.unwrap_or_default();
            options.retain(|existing| existing.split(':').next() != Some(name.as_str()));
            options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text = String::new();
    if !searches.is_empty() {
        dedup(&mut searches);
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    dedup(&mut servers);
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|entry| seen.insert(entry.clone()));
}

/// The pod's host name: `spec.hostname` or its own name, at most 63 characters.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name =
        spec.and_then(|spec| spec.hostname.clone()).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The text of a pod's hosts file.
pub(crate) fn hosts(pod: &Pod, address: Ipv4Addr, domain: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let hostname = hostname(pod);
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    match spec.subdomain.filter(|subdomain| !subdomain.is_empty()) {
        Some(subdomain) => {
            text.push_str(&format!(
                "{address}\t{hostname}.{subdomain}.{namespace}.svc.{domain}\t{hostname}\n"
            ));
        }
        None => text.push_str(&format!("{address}\t{hostname}\n")),
    }
    let aliases = spec.host_aliases.unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.unwrap_or_default().join("\t")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOST: &str = "# comment\nnameserver 8.8.8.8\nsearch example.org\noptions edns0\n";

    fn resolv(spec: serde_json::Value) -> String {
        let pod = serde_json::from_value(json!({"metadata": {"namespace": "ns"}, "spec": spec})).unwrap();
        resolv_conf(&pod, [10, 0, 128, 10].into(), "cluster.local", HOST)
    }

    #[test]
    fn cluster_first() {
        assert_eq!(
            resolv(json!({"containers": []})),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.0.128.10\n\
             options ndots:5\n"
        );
    }

    #[test]
    fn default_none_and_extra_configuration() {
        assert_eq!(
            resolv(json!({"containers": [], "dnsPolicy": "Default"})),
            "search example.org\nnameserver 8.8.8.8\noptions edns0\n"
        );
        assert_eq!(
            resolv(json!({"containers": [], "hostNetwork": true})),
            "search example.org\nnameserver 8.8.8.8\noptions edns0\n"
        );
        assert_eq!(
            resolv(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}})),
            "nameserver 1.1.1.1\noptions ndots:2 rotate\n"
        );
    }

    #[test]
    fn hosts_file() {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {
            "containers": [], "subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let text = hosts(&pod, [10, 0, 0, 9].into(), "cluster.local");
        assert!(text.contains("10.0.0.9\tp.sub.ns.svc.cluster.local\tp\n"));
        assert!(text.ends_with("1.2.3.4\ta\tb\n"));
    }
}
