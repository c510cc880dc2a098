//! The writer's side of the table: who claims which host, and what a change of one object changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::{ANY, Key, Kind, Owner, Problem, Rule, Rules, Side, Table};

/// One object's routes, made of nothing but the object.
#[derive(Debug)]
pub struct Compiled<B> {
    /// Whose.
    pub owner: Arc<Owner>,
    /// When it was made: the older of two comes first.
    pub created: Option<Timestamp>,
    /// Its `metadata.generation`.
    pub generation: i64,
    /// The hash that a probe gets.
    pub hash: String,
    /// Rules by host.
    pub claims: Claims<B>,
    /// The Secrets of hosts.
    pub certificates: Vec<Certificate>,
    /// Why it is not served as it was written.
    pub problem: Option<Problem>,
}

/// Hosts in lower case and their rules, each host once for each side.
#[derive(Debug)]
pub struct Claims<B>(Vec<(Arc<str>, Side, Rules<B>)>);

/// The certificate of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The host, in lower case, perhaps a wildcard.
    pub host: Arc<str>,
    /// Where it is.
    pub secret: Key,
}

/// As what an Ingress is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its `metadata.generation`.
    pub generation: i64,
    /// The hash that a probe gets.
    pub hash: String,
    /// The hosts to probe, with whether they are only visible inside.
    pub hosts: Vec<(Arc<str>, Side)>,
}

/// What a change touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Whose hosts may be served otherwise now; the changed object is among them.
    pub owners: BTreeSet<Owner>,
    /// Hosts whose certificate may be another now.
    pub certificates: BTreeSet<Arc<str>>,
}

impl Touched {
    /// Adds what another change touched.
    pub fn extend(&mut self, other: Touched) {
        self.owners.extend(other.owners);
        self.certificates.extend(other.certificates);
    }
}

/// An Ingress before an HTTPRoute, the older before the younger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    kind: Kind,
    created: Option<Timestamp>,
    key: Key,
}

impl Rank {
    fn owner(&self) -> Owner {
        Owner { kind: self.kind, key: self.key.clone() }
    }
}

type Claimants<B> = BTreeMap<Rank, Rules<B>>;

/// All objects with routes, and the table of them.
#[derive(Debug)]
pub struct Routes<B> {
    table: Table<B>,
    objects: HashMap<Owner, Compiled<B>>,
    external: HashMap<Arc<str>, Claimants<B>>,
    local: HashMap<Arc<str>, Claimants<B>>,
    wildcards: usize,
    secrets: HashMap<Arc<str>, BTreeMap<Rank, Key>>,
}

impl<B> Default for Claims<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B> Claims<B> {
    /// Claims a host for the inside, and for the outside as well. Of two claims of one object the first counts.
    pub fn add(&mut self, host: &str, visible: Side, rules: &Rules<B>) {
        let host: Arc<str> = host.into();
        for side in [Side::External, Side::Local] {
            let there = self.0.iter().any(|claim| claim.0 == host && claim.1 == side);
            if !there && (side == Side::Local || visible == Side::External) {
                self.0.push((host.clone(), side, rules.clone()));
            }
        }
    }
}

impl<B> Default for Routes<B> {
    fn default() -> Self {
        Self {
            table: Table::default(),
            objects: HashMap::new(),
            external: HashMap::new(),
            local: HashMap::new(),
            wildcards: 0,
            secrets: HashMap::new(),
        }
    }
}

impl<B> Compiled<B> {
    fn rank(&self) -> Rank {
        Rank { kind: self.owner.kind, created: self.created, key: self.owner.key.clone() }
    }
}

impl<B> Routes<B> {
    /// The table of the moment, to be swapped in.
    pub fn table(&self) -> Table<B> {
        self.table.clone()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Takes an object over, in place of what it was before.
    pub fn set(&mut self, compiled: Compiled<B>) -> Touched {
        let mut touched = Touched::default();
        let mut hosts = HashSet::new();
        self.withdraw(&compiled.owner, &mut hosts, &mut touched);
        let rank = compiled.rank();
        for (host, side, rules) in &compiled.claims.0 {
            let by_host = if *side == Side::External { &mut self.external } else { &mut self.local };
            by_host.entry(host.clone()).or_default().insert(rank.clone(), rules.clone());
            hosts.insert((host.clone(), *side == Side::External));
        }
        for certificate in &compiled.certificates {
            let by_rank = self.secrets.entry(certificate.host.clone()).or_default();
            by_rank.entry(rank.clone()).or_insert_with(|| certificate.secret.clone());
            touched.certificates.insert(certificate.host.clone());
        }
        touched.owners.insert((*compiled.owner).clone());
        self.objects.insert((*compiled.owner).clone(), compiled);
        self.decide(hosts, &mut touched);
        touched
    }

    /// Takes an object out.
    pub fn remove(&mut self, owner: &Owner) -> Touched {
        let mut touched = Touched::default();
        let mut hosts = HashSet::new();
        self.withdraw(owner, &mut hosts, &mut touched);
        self.decide(hosts, &mut touched);
        touched
    }

    fn withdraw(&mut self, owner: &Owner, hosts: &mut HashSet<(Arc<str>, bool)>, touched: &mut Touched) {
        let Some(before) = self.objects.remove(owner) else { return };
        touched.owners.insert(owner.clone());
        let rank = before.rank();
        for (host, side, _) in before.claims.0 {
            let by_host = if side == Side::External { &mut self.external } else { &mut self.local };
            if let Some(claimants) = by_host.get_mut(&host) {
                claimants.remove(&rank);
                if claimants.is_empty() {
                    by_host.remove(&host);
                }
            }
            hosts.insert((host, side == Side::External));
        }
        for Certificate { host, .. } in before.certificates {
            if let Some(by_rank) = self.secrets.get_mut(&host) {
                by_rank.remove(&rank);
                if by_rank.is_empty() {
                    self.secrets.remove(&host);
                }
            }
            touched.certificates.insert(host);
        }
    }

    /// Whose claims of these hosts hold.
    fn decide(&mut self, hosts: HashSet<(Arc<str>, bool)>, touched: &mut Touched) {
        for (host, external) in hosts {
            let (by_host, served) = if external {
                (&self.external, &mut self.table.external)
            } else {
                (&self.local, &mut self.table.local)
            };
            let before = served.get(&host).is_some();
            let after = match by_host.get(&host) {
                Some(claimants) => {
                    touched.owners.extend(claimants.keys().map(Rank::owner));
                    served.insert(&host, winners(claimants));
                    true
                }
                None => {
                    served.remove(&host);
                    false
                }
            };
            if host.starts_with(ANY) {
                self.wildcards = self.wildcards + usize::from(after) - usize::from(before);
            }
        }
        self.table.wildcards = self.wildcards > 0;
    }

    /// As what an object is served; none where it is not at all.
    pub fn served(&self, owner: &Owner) -> Option<Served> {
        let object = self.objects.get(owner)?;
        if matches!(object.problem, Some(ref problem) if !matches!(problem, Problem::HostTaken { .. })) {
            return None;
        }
        let mut hosts: Vec<(Arc<str>, Side)> = Vec::new();
        let mut taken = HashSet::new();
        for (host, side, _) in &object.claims.0 {
            if self
                .holder(host, *side)
                .is_some_and(|holder| holder.key != owner.key || holder.kind != owner.kind)
            {
                taken.insert(host);
            }
        }
        for (host, side, _) in &object.claims.0 {
            // The outside comes first, and counts where a host is on both.
            if !taken.contains(host) && !hosts.iter().any(|(known, _)| known == host) {
                hosts.push((host.clone(), *side));
            }
        }
        Some(Served { generation: object.generation, hash: object.hash.clone(), hosts })
    }

    /// Who has a host for itself; for a host that is shared none.
    fn holder(&self, host: &str, side: Side) -> Option<&Rank> {
        let by_host = if side == Side::External { &self.external } else { &self.local };
        by_host.get(host)?.first_key_value().map(|(rank, _)| rank).filter(|rank| rank.kind == Kind::Ingress)
    }

    /// Why an object is not served as it was written.
    pub fn problem(&self, owner: &Owner) -> Option<Problem> {
        let object = self.objects.get(owner)?;
        object.problem.clone().or_else(|| {
            object.claims.0.iter().find_map(|(host, side, _)| {
                let holder = self.holder(host, *side)?;
                (holder.kind != owner.kind || holder.key != owner.key)
                    .then(|| Problem::HostTaken { host: host.to_string(), by: holder.key.clone() })
            })
        })
    }

    /// The certificates that an object asks for.
    pub fn certificates(&self, owner: &Owner) -> &[Certificate] {
        self.objects.get(owner).map(|object| object.certificates.as_slice()).unwrap_or_default()
    }

    /// The Secret of a host's certificate: of several the one of the oldest object.
    pub fn secret(&self, host: &str) -> Option<&Key> {
        self.secrets.get(host)?.values().next()
    }

    /// All objects that ask for a certificate for a host.
    pub fn certified_at(&self, host: &str) -> impl Iterator<Item = Owner> {
        self.secrets.get(host).into_iter().flat_map(|by_rank| by_rank.keys().map(Rank::owner))
    }

    /// All hosts with certificates.
    pub fn secured(&self) -> impl Iterator<Item = (&Arc<str>, &Key)> {
        self.secrets.iter().filter_map(|(host, by_rank)| Some((host, by_rank.values().next()?)))
    }
}

/// The rules of a host: of its oldest Ingress, else of all its HTTPRoutes.
fn winners<B>(claimants: &Claimants<B>) -> Rules<B> {
    match claimants.first_key_value() {
        Some((rank, rules)) if rank.kind == Kind::Ingress || claimants.len() == 1 => rules.clone(),
        _ => {
            let mut all: Vec<Arc<Rule<B>>> =
                claimants.values().flat_map(|rules| rules.iter().cloned()).collect();
            // A stable sort: of equals the older object's counts.
            all.sort_by_cached_key(|rule| rule.matches.precedence());
            all.into()
        }
    }
}
