//! What must hold for any input. Each function is a fuzz target (`fuzz/`), and a test replays the corpus through it and changes it at random.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ebb_api::networking::Ingress;
use ebb_gateway::proxy_protocol::{Error, Header, MOST, parse};
use ebb_gateway::table::{Outcome, RequestParts, Routes, Shards, Side, Table, certified, compile, route};
use http::{HeaderMap, Method};
use serde_json::json;

/// A PROXY protocol header and what follows.
///
/// - A header lies within the input and the bound, and what follows it does not matter.
/// - It is read as the same however the bytes arrive: more are asked for until the verdict, and no further byte changes that.
/// - Whom it names stands in it, and read again in both versions it is the same.
pub(crate) fn proxy(input: &[u8]) {
    let verdict = parse(input);
    assert!(verdict != Err(Error::Incomplete) || input.len() < MOST, "no header is that long");
    let decided = (0..=input.len()).find(|cut| parse(&input[..*cut]) != Err(Error::Incomplete));
    for cut in decided.unwrap_or(input.len())..=input.len() {
        assert_eq!(parse(&input[..cut]), verdict, "with {cut} of {} bytes", input.len());
    }
    let Ok(header) = verdict else { return };
    assert!(header.length <= input.len() && header.length <= MOST, "{header:?} of {} bytes", input.len());
    assert_eq!(decided, Some(header.length), "where a header ends it is known");
    let Some(client) = header.client else { return };
    assert_eq!(named(&input[..header.length]), Some(client));
    for again in [line(client), binary(client)] {
        assert_eq!(parse(&again), Ok(Header { client: Some(client), length: again.len() }));
    }
}

/// Whom a header names that names somebody, read by its places alone.
fn named(header: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| Some(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?));
    if let Ok(text) = std::str::from_utf8(header)
        && let Some(words) = text.strip_prefix("PROXY ")
    {
        let words: Vec<_> = words.strip_suffix("\r\n")?.split(' ').collect();
        let [_, source, _, port, _] = words[..] else { return None };
        return Some(SocketAddr::new(source.parse().ok()?, port.parse().ok()?));
    }
    Some(match header.get(13)? {
        0x11 => SocketAddr::new(Ipv4Addr::from(*header.get(16..)?.first_chunk::<4>()?).into(), port(24)?),
        _ => SocketAddr::new(Ipv6Addr::from(*header.get(16..)?.first_chunk::<16>()?).into(), port(48)?),
    })
}

fn line(client: SocketAddr) -> Vec<u8> {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {0} {0} {1} {1}\r\n", client.ip(), client.port()).into_bytes()
}

fn binary(client: SocketAddr) -> Vec<u8> {
    let (family, octets) = match client.ip() {
        IpAddr::V4(ip) => (0x11, ip.octets().to_vec()),
        IpAddr::V6(ip) => (0x21, ip.octets().to_vec()),
    };
    let port = client.port().to_be_bytes();
    let body = [&octets[..], &octets, &port, &port].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, family, 0, body.len() as u8], &body].concat()
}

/// Whose a host is: a request's by its authority, a handshake's by SNI. The first line is `HOST PATH`, each further one `VISIBILITY HOST PREFIX`,
/// a rule of one Ingress; a host's first rule counts.
///
/// - The rule is the host's own, else that of the longest wildcard, on either side; port, case and one dot at the end do not matter.
/// - What is visible inside only is never served outside.
/// - A name of a TLS client gets what is for it, else for the wildcard of its first label, else for all hosts.
pub(crate) fn hosts(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let Some(asked) = lines.next() else { return };
    let (host, path) = (asked[0], asked.get(1).copied().unwrap_or_default());
    let rules: Vec<Line<'_>> = lines
        .take(32)
        .filter_map(|words| match words[..] {
            [visibility, host, prefix, ..] => Some(Line { inside: visibility == "I", host, prefix }),
            _ => None,
        })
        .collect();
    let compiled = compile(&ingress(&rules), DOMAIN, &mut |backend| backend.service.name.clone());
    assert_eq!(compiled.problem, None);
    let mut routes = Routes::default();
    routes.set(compiled);
    let table = routes.table();
    for side in [Side::External, Side::Local] {
        let expected = expected(&rules, side, host, path);
        assert_eq!(told(&table, side, host, path), expected, "{side:?}");
        let plain = normal(host);
        for same in [plain.clone(), plain.to_ascii_uppercase(), format!("{plain}:80"), format!("{plain}.:80")]
        {
            if normal(&same) == plain {
                assert_eq!(told(&table, side, &same, path), expected, "{side:?} as {same:?}");
            }
        }
    }
    let mut certificates = Shards::default();
    for rule in rules.iter().rev() {
        certificates.insert(&rule.host.to_ascii_lowercase().into(), rule.host);
    }
    let of = |wanted: &str| rules.iter().map(|rule| rule.host).find(|host| host.eq_ignore_ascii_case(wanted));
    let first_label = host.find('.').and_then(|dot| of(&format!("*{}", &host[dot..])));
    assert_eq!(certified(&certificates, host), of(host).or(first_label).or_else(|| of("*")).as_ref());
}

const DOMAIN: &str = "cluster.local";

struct Line<'a> {
    inside: bool,
    host: &'a str,
    prefix: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// To the rule with this index.
    To(usize),
    Unknown,
    Inside,
    NoPath,
}

fn ingress(rules: &[Line<'_>]) -> Ingress {
    let rules: Vec<_> = rules
        .iter()
        .enumerate()
        .map(|(n, rule)| {
            let split = json!({"serviceNamespace": "n", "serviceName": n.to_string(), "servicePort": 80});
            json!({"hosts": [rule.host], "visibility": if rule.inside { "ClusterLocal" } else { "ExternalIP" },
                "http": {"paths": [{"path": rule.prefix, "splits": [split]}]}})
        })
        .collect();
    serde_json::from_value(
        json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"namespace": "n", "name": "i"}, "spec": {"rules": rules}}),
    )
    .unwrap()
}

fn told(table: &Table<String>, side: Side, host: &str, path: &str) -> Told {
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request =
        RequestParts { side, host, path, query: None, method: &method, headers: &headers, secure: false };
    match route(table, &request, 0) {
        Outcome::Forward(rule, split) => {
            Told::To(rule.splits[split].backend.as_ref().unwrap().parse().unwrap())
        }
        Outcome::UnknownHost => Told::Unknown,
        Outcome::OnlyLocal => Told::Inside,
        Outcome::UnknownPath => Told::NoPath,
        other => panic!("{other:?}"),
    }
}

fn normal(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Every rule is looked at.
fn expected(rules: &[Line<'_>], side: Side, host: &str, path: &str) -> Told {
    let host = normal(host);
    let whose = |side: Side| {
        let visible = rules.iter().enumerate().filter(|(_, rule)| side == Side::Local || !rule.inside);
        let named = visible.flat_map(|(n, rule)| forms(rule.host).into_iter().map(move |form| (n, form)));
        let reach = |form: &str| match form.strip_prefix('*') {
            _ if form == host => usize::MAX,
            Some(rest) if (rest.is_empty() || rest.starts_with('.')) && host.ends_with(rest) => form.len(),
            _ => 0,
        };
        let best = named.map(|(n, form)| (reach(&form), std::cmp::Reverse(n))).max()?;
        (best.0 > 0).then_some(best.1.0)
    };
    match whose(side) {
        Some(n) if path.starts_with(rules[n].prefix) => Told::To(n),
        Some(_) => Told::NoPath,
        None if side == Side::External && whose(Side::Local).is_some() => Told::Inside,
        None => Told::Unknown,
    }
}

/// What a host of a rule is also known by: names of the cluster's DNS may be cut short.
fn forms(host: &str) -> Vec<String> {
    let host = host.to_ascii_lowercase();
    let short = |end: &str| host.strip_suffix(end).map(str::to_owned);
    [short(".cluster.local"), short(".svc.cluster.local")]
        .into_iter()
        .flatten()
        .chain([host.clone()])
        .collect()
}
