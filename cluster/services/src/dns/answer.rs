//! Answers from the index, after the specification of Kubernetes' DNS-based service discovery (1.1.0).

use std::{net::Ipv4Addr, sync::Arc};

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, CNAME, NS, PTR, SOA, SRV},
    },
};
use ipnet::Ipv4Net;

use crate::index::{Address, Index, Service};

const TTL: u32 = 5;
const NEGATIVE_TTL: u32 = 1;
/// An ExternalName may lead to another one; a circle ends here.
const ALIASES: usize = 8;

/// The names this server is the authority for.
pub(crate) struct Zone {
    domain: Name,
    reverse: Vec<Ipv4Net>,
}

/// An authoritative answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// The name outside of the cluster where a chain of aliases ends.
    pub(crate) external: Option<Name>,
}

/// What a name stands for.
enum Found {
    /// It exists and has these records.
    Records(Vec<Record>, Vec<Record>),
    Missing,
}

impl Zone {
    /// `domain` is the cluster's; one that is no name falls back to `cluster.local`.
    pub(crate) fn new(domain: &str, reverse: Vec<Ipv4Net>) -> Self {
        let parse =
            |text: &str| Name::from_ascii(format!("{}.", text.trim_matches('.').to_ascii_lowercase())).ok();
        let domain = parse(domain).or_else(|| parse("cluster.local")).unwrap_or_else(Name::root);
        Self { domain, reverse }
    }

    /// The answer, or none if the name belongs to others.
    pub(crate) fn answer(&self, index: &Index, query: &Query) -> Option<Answer> {
        let name = query.name().to_lowercase();
        if query.query_class() != DNSClass::IN {
            return None;
        }
        let kind = query.query_type();
        let (zone, found) = if self.domain.zone_of(&name) {
            (self.domain.clone(), self.find(index, &name, query.name(), kind))
        } else {
            let address = reverse_address(&name)?;
            self.reverse.iter().find(|zone| zone.contains(&address))?;
            (Name::from_ascii("in-addr.arpa.").ok()?, self.find_reverse(index, address, query.name(), kind))
        };
        let mut answer = Answer {
            code: ResponseCode::NoError,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            external: None,
        };
        match found {
            Found::Missing => answer.code = ResponseCode::NXDomain,
            Found::Records(records, additionals) => {
                answer.answers = records;
                answer.additionals = additionals;
            }
        }
        if let Some(Record { data: RData::CNAME(alias), .. }) = answer.answers.last()
            && !self.domain.zone_of(&alias.0)
        {
            answer.external = Some(alias.0.clone());
        }
        if answer.answers.is_empty() {
            answer.authorities.push(soa(&zone));
        }
        Some(answer)
    }

    fn service_name(&self, service: &Service) -> Option<Name> {
        Name::from_ascii(format!("{}.{}.svc", service.name, service.namespace))
            .ok()?
            .append_domain(&self.domain)
            .ok()
    }

    /// `lower` is the name to look for, `asked` the same in the client's own spelling, which the answer repeats.
    fn find(&self, index: &Index, lower: &Name, asked: &Name, kind: RecordType) -> Found {
        let depth = usize::from(lower.num_labels()) - usize::from(self.domain.num_labels());
        let labels: Vec<String> =
            lower.iter().take(depth).map(|label| String::from_utf8_lossy(label).into_owned()).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let exists = || Found::Records(Vec::new(), Vec::new());
        match labels.as_slice() {
            [] => match kind {
                RecordType::SOA => Found::Records(vec![soa(&self.domain)], Vec::new()),
                RecordType::NS => {
                    let server = Name::from_ascii("ns.dns").and_then(|name| name.append_domain(&self.domain));
                    let server = server.unwrap_or_else(|_| self.domain.clone());
                    Found::Records(
                        vec![Record::from_rdata(asked.clone(), TTL, RData::NS(NS(server)))],
                        Vec::new(),
                    )
                }
                _ => exists(),
            },
            ["svc" | "pod"] => exists(),
            ["dns-version"] if kind == RecordType::TXT => {
                let text = hickory_proto::rr::rdata::TXT::new(vec!["1.1.0".to_owned()]);
                Found::Records(vec![Record::from_rdata(asked.clone(), TTL, RData::TXT(text))], Vec::new())
            }
            ["dns-version"] => exists(),
            [_, "pod"] => exists(),
            [address, _, "pod"] => match address.replace('-', ".").parse::<Ipv4Addr>() {
                Ok(address) if kind == RecordType::A => Found::Records(vec![a(asked, address)], Vec::new()),
                Ok(_) => exists(),
                Err(_) => Found::Missing,
            },
            [namespace, "svc"] => {
                if index.has_namespace(namespace) {
                    exists()
                } else {
                    Found::Missing
                }
            }
            [rest @ .., service, namespace, "svc"] => match index.get(namespace, service) {
                Some(service) => self.of_service(index, &service, rest, asked, kind),
                None => Found::Missing,
            },
            _ => Found::Missing,
        }
    }

    fn of_service(
        &self,
        index: &Index,
        service: &Service,
        rest: &[&str],
        asked: &Name,
        kind: RecordType,
    ) -> Found {
        match rest {
            [] => match (&service.address, kind) {
                (Address::External(target), _) => {
                    Found::Records(self.alias(index, target, asked, kind), Vec::new())
                }
                (Address::Cluster(address), RecordType::A) => {
                    Found::Records(vec![a(asked, *address)], Vec::new())
                }
                (Address::Headless, RecordType::A) => {
                    let mut addresses: Vec<Ipv4Addr> =
                        service.ready().map(|endpoint| endpoint.address).collect();
                    addresses.sort_unstable();
                    addresses.dedup();
                    Found::Records(
                        addresses.into_iter().map(|address| a(asked, address)).collect(),
                        Vec::new(),
                    )
                }
                (_, RecordType::SRV) => self.srv(service, None, asked),
                _ => Found::Records(Vec::new(), Vec::new()),
            },
            [protocol @ ("_tcp" | "_udp")] => {
                let any = service.ports.iter().any(|port| port.protocol.label() == *protocol);
                if any { Found::Records(Vec::new(), Vec::new()) } else { Found::Missing }
            }
            [port, protocol @ ("_tcp" | "_udp")] => {
                let Some(name) = port.strip_prefix('_') else { return Found::Missing };
                let known =
                    |held: &crate::index::Port| held.name == name && held.protocol.label() == *protocol;
                let endpoints = service.endpoints.iter().flat_map(|endpoint| &endpoint.ports);
                let mut held = endpoints.map(|(held, label, _)| held == name && label.label() == *protocol);
                if !service.ports.iter().any(known) && !held.any(|held| held) {
                    return Found::Missing;
                }
                match kind {
                    RecordType::SRV => self.srv(service, Some((name, protocol)), asked),
                    _ => Found::Records(Vec::new(), Vec::new()),
                }
            }
            // One endpoint by its hostname, or by its address with dashes.
            [label] if service.address == Address::Headless => {
                let mut held = service.ready().filter(|endpoint| endpoint.label() == *label).peekable();
                if held.peek().is_none() {
                    return Found::Missing;
                }
                match kind {
                    RecordType::A => {
                        Found::Records(held.map(|endpoint| a(asked, endpoint.address)).collect(), Vec::new())
                    }
                    _ => Found::Records(Vec::new(), Vec::new()),
                }
            }
            _ => Found::Missing,
        }
    }

    /// SRV records of one port, or of all, with the targets' addresses in addition.
    fn srv(&self, service: &Service, port: Option<(&str, &str)>, asked: &Name) -> Found {
        let Some(target) = self.service_name(service) else { return Found::Missing };
        let wanted = |name: &str, protocol: &str| port.is_none_or(|port| port == (name, protocol));
        let (mut records, mut additionals) = (Vec::new(), Vec::new());
        let mut add = |number: u16, target: Name, address: Ipv4Addr| {
            let srv = SRV::new(0, 100, number, target.clone());
            records.push(Record::from_rdata(asked.clone(), TTL, RData::SRV(srv)));
            let address = a(&target, address);
            if !additionals.contains(&address) {
                additionals.push(address);
            }
        };
        match service.address {
            Address::Cluster(address) => {
                for port in service.ports.iter().filter(|port| wanted(&port.name, port.protocol.label())) {
                    add(port.number, target.clone(), address);
                }
            }
            Address::Headless => {
                for endpoint in service.ready() {
                    let Ok(target) =
                        Name::from_ascii(endpoint.label()).and_then(|label| label.append_domain(&target))
                    else {
                        continue;
                    };
                    for (_, _, number) in endpoint.ports.iter().filter(|(n, p, _)| wanted(n, p.label())) {
                        add(*number, target.clone(), endpoint.address);
                    }
                }
            }
            Address::External(_) | Address::None => {}
        }
        Found::Records(records, additionals)
    }

    /// The alias, and what it stands for as far as that is in the cluster.
    fn alias(&self, index: &Index, target: &str, asked: &Name, kind: RecordType) -> Vec<Record> {
        let mut records = Vec::new();
        let (mut owner, mut target) = (asked.clone(), target.to_owned());
        for _ in 0..ALIASES {
            let Ok(name) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) else { break };
            records.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(name.clone()))));
            let lower = name.to_lowercase();
            if kind == RecordType::CNAME || !self.domain.zone_of(&lower) {
                break;
            }
            match self.target(index, &lower) {
                Some(service) if matches!(service.address, Address::External(_)) => {
                    let Address::External(next) = &service.address else { break };
                    (owner, target) = (name, next.clone());
                }
                _ => {
                    if let Found::Records(found, _) = self.find(index, &lower, &name, kind) {
                        records.extend(found);
                    }
                    break;
                }
            }
        }
        records
    }

    fn target(&self, index: &Index, lower: &Name) -> Option<Arc<Service>> {
        let labels: Vec<String> =
            lower.iter().map(|label| String::from_utf8_lossy(label).into_owned()).collect();
        let own = usize::from(self.domain.num_labels());
        match labels.get(..labels.len().checked_sub(own)?)? {
            [service, namespace, svc] if svc == "svc" => index.get(namespace, service),
            _ => None,
        }
    }

    fn find_reverse(&self, index: &Index, address: Ipv4Addr, asked: &Name, kind: RecordType) -> Found {
        let names = index.owners(address).into_iter().filter_map(|service| {
            let name = self.service_name(&service)?;
            if service.address == Address::Headless {
                let endpoint = service.endpoints.iter().find(|endpoint| endpoint.address == address)?;
                return Name::from_ascii(endpoint.label()).ok()?.append_domain(&name).ok();
            }
            Some(name)
        });
        let records: Vec<Record> =
            names.map(|name| Record::from_rdata(asked.clone(), TTL, RData::PTR(PTR(name)))).collect();
        match (records.is_empty(), kind) {
            (true, _) => Found::Missing,
            (false, RecordType::PTR) => Found::Records(records, Vec::new()),
            (false, _) => Found::Records(Vec::new(), Vec::new()),
        }
    }
}

fn a(name: &Name, address: Ipv4Addr) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::A(A(address)))
}

fn soa(zone: &Name) -> Record {
    let sub = |label: &str| {
        Name::from_ascii(label).and_then(|name| name.append_domain(zone)).unwrap_or_else(|_| zone.clone())
    };
    let soa = SOA::new(sub("ns.dns"), sub("hostmaster"), 1, 7200, 1800, 86_400, NEGATIVE_TTL);
    Record::from_rdata(zone.clone(), NEGATIVE_TTL, RData::SOA(soa))
}

/// The address of a name like `4.3.2.1.in-addr.arpa.`
fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let labels: Vec<String> = name.iter().map(|label| String::from_utf8_lossy(label).into_owned()).collect();
    match labels.as_slice() {
        [d, c, b, a, arpa @ ..] if arpa == ["in-addr", "arpa"] => format!("{a}.{b}.{c}.{d}").parse().ok(),
        _ => None,
    }
}
