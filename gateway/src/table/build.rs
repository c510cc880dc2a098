//! From Ingresses to a table.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use ebb_api::networking::{
    HttpIngressPath, HttpOption, Ingress, IngressBackendSplit, IngressRule, IngressVisibility,
};
use http::{HeaderName, HeaderValue};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{BackendKey, Key, Port, Rule, Served, Side, Split, Table, ingress_hash};

/// Why an Ingress is not served as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A rule has no paths.
    NoPaths {
        /// The rule's index.
        rule: usize,
    },
    /// A header's name or value is not valid in HTTP.
    BadHeader {
        /// The header.
        name: String,
    },
    /// A port or a percentage is out of range.
    BadSplit {
        /// The Service.
        service: String,
    },
    /// Another Ingress has the host.
    HostTaken {
        /// The host.
        host: String,
        /// Who has it.
        by: Key,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoPaths { rule } => {
                write!(f, "spec.rules[{rule}].http has no paths: nothing could match")
            }
            Problem::BadHeader { name } => {
                write!(f, "header {name:?} has a name or value that HTTP does not allow")
            }
            Problem::BadSplit { service } => {
                write!(
                    f,
                    "the split to {service} needs a port from 1 to 65535 and a percentage from 0 to 100"
                )
            }
            Problem::HostTaken { host, by } => {
                write!(
                    f,
                    "host {host} belongs to the older Ingress {by}; remove it there or use another host"
                )
            }
        }
    }
}

/// Builds a table. `resolve` turns a Service port into a backend and is asked once for each.
pub struct Builder<B, F> {
    resolve: F,
    resolved: HashMap<BackendKey, B>,
    cluster_suffix: String,
    table: Table<B>,
    owners: HashMap<(bool, Box<str>), Arc<Key>>,
}

impl<B: Clone, F: FnMut(&BackendKey) -> B> Builder<B, F> {
    /// A builder for a cluster whose DNS names end in `cluster_domain` (as `cluster.local`).
    pub fn new(cluster_domain: &str, resolve: F) -> Self {
        Self {
            resolve,
            resolved: HashMap::new(),
            cluster_suffix: format!(".{cluster_domain}"),
            table: Table::default(),
            owners: HashMap::new(),
        }
    }

    /// Builds the table of these Ingresses, in any order.
    pub fn build<'a>(mut self, ingresses: impl IntoIterator<Item = &'a Ingress>) -> Table<B> {
        let mut sorted: Vec<&Ingress> = ingresses.into_iter().collect();
        sorted.sort_by_cached_key(|ingress| {
            let meta = &ingress.metadata;
            (meta.creation_timestamp.as_ref().map(|time| time.0), meta.namespace.clone(), meta.name.clone())
        });
        for ingress in sorted {
            let key = Key::new(
                ingress.metadata.namespace.clone().unwrap_or_default(),
                ingress.metadata.name.clone().unwrap_or_default(),
            );
            if let Err(problem) = self.add(ingress, &key) {
                self.table.problems.insert(key, problem);
            }
        }
        self.table
    }

    fn add(&mut self, ingress: &Ingress, key: &Key) -> Result<(), Problem> {
        let owner = Arc::new(key.clone());
        let hash = ingress_hash(&ingress.spec, key);
        let hash_value = HeaderValue::from_str(&hash).unwrap_or(HeaderValue::from_static(""));
        let redirect = ingress.spec.http_option == Some(HttpOption::Redirected);
        let mut prepared = Vec::new();
        for (index, rule) in ingress.spec.rules.iter().enumerate() {
            let paths = rule.http.as_ref().map(|http| http.paths.as_slice()).unwrap_or_default();
            if paths.is_empty() {
                return Err(Problem::NoPaths { rule: index });
            }
            let mut rules: Vec<Rule<B>> = Vec::with_capacity(paths.len());
            for path in paths {
                rules.push(self.rule(path, &hash_value, redirect, &owner)?);
            }
            // A stable sort: of equals the first written counts.
            rules.sort_by_key(|rule| std::cmp::Reverse((rule.prefix.len(), rule.headers.len())));
            prepared.push((rule, Arc::new(rules)));
        }
        let mut served =
            Served { generation: ingress.metadata.generation.unwrap_or(0), hash, hosts: Vec::new() };
        for (rule, rules) in prepared {
            self.claim(rule, &rules, &owner, &mut served);
        }
        for tls in &ingress.spec.tls {
            let secret = Key::new(
                tls.secret_namespace
                    .clone()
                    .filter(|ns| !ns.is_empty())
                    .unwrap_or_else(|| key.namespace.clone()),
                tls.secret_name.clone(),
            );
            for host in &tls.hosts {
                self.table.certificates.entry(host.to_ascii_lowercase()).or_insert_with(|| secret.clone());
            }
        }
        self.table.served.insert(key.clone(), served);
        Ok(())
    }

    fn claim(
        &mut self,
        rule: &IngressRule,
        rules: &Arc<Vec<Rule<B>>>,
        owner: &Arc<Key>,
        served: &mut Served,
    ) {
        let external = rule.visibility == IngressVisibility::ExternalIP;
        for host in self.expanded(&rule.hosts) {
            let mut taken = false;
            for on_external in [true, false] {
                if on_external && !external {
                    continue;
                }
                let holder =
                    self.owners.entry((on_external, host.as_str().into())).or_insert_with(|| owner.clone());
                if **holder != **owner {
                    let by = (**holder).clone();
                    self.table
                        .problems
                        .entry((**owner).clone())
                        .or_insert_with(|| Problem::HostTaken { host: host.clone(), by });
                    taken = true;
                    continue;
                }
                let hosts = if on_external { &mut self.table.external } else { &mut self.table.local };
                hosts.entry(host.as_str().into()).or_insert_with(|| rules.clone());
            }
            if !taken {
                served.hosts.push((host, if external { Side::External } else { Side::Local }));
            }
        }
    }

    /// The hosts in lower case, those of the cluster's DNS also in their shorter forms.
    fn expanded(&self, hosts: &[String]) -> Vec<String> {
        let mut all: BTreeMap<String, ()> = BTreeMap::new();
        for host in hosts {
            let host = host.to_ascii_lowercase();
            if let Some(short) = host.strip_suffix(&self.cluster_suffix) {
                if let Some(shorter) = short.strip_suffix(".svc") {
                    all.insert(shorter.to_owned(), ());
                }
                all.insert(short.to_owned(), ());
            }
            all.insert(host, ());
        }
        all.into_keys().collect()
    }

    fn rule(
        &mut self,
        path: &HttpIngressPath,
        hash: &HeaderValue,
        redirect: bool,
        owner: &Arc<Key>,
    ) -> Result<Rule<B>, Problem> {
        let mut splits = Vec::with_capacity(path.splits.len());
        let mut total = 0u32;
        let single = path.splits.len() == 1;
        for split in &path.splits {
            let bad = || Problem::BadSplit { service: split.service_name.clone() };
            let percent =
                u32::try_from(split.percent).ok().filter(|percent| *percent <= 100).ok_or_else(bad)?;
            // A single split may leave its percentage out.
            let percent = if single && percent == 0 { 100 } else { percent };
            let backend = self.backend(split).ok_or_else(bad)?;
            let append = headers(split.append_headers.iter().map(|(name, value)| (name, value.as_str())))?;
            total += percent;
            splits.push(Split { upto: total, backend, append });
        }
        let rewrite_host = match path.rewrite_host.as_deref().filter(|host| !host.is_empty()) {
            None => None,
            Some(host) => Some(
                HeaderValue::from_str(host)
                    .map_err(|_| Problem::BadHeader { name: "rewriteHost".to_owned() })?,
            ),
        };
        Ok(Rule {
            prefix: path.path.clone().unwrap_or_default(),
            headers: headers(path.headers.iter().map(|(name, value)| (name, value.exact.as_str())))?,
            rewrite_host,
            append: headers(path.append_headers.iter().map(|(name, value)| (name, value.as_str())))?,
            splits,
            total,
            hash: hash.clone(),
            redirect,
            ingress: owner.clone(),
        })
    }

    fn backend(&mut self, split: &IngressBackendSplit) -> Option<B> {
        let port = match &split.service_port {
            IntOrString::Int(number) => {
                Port::Number(u16::try_from(*number).ok().filter(|number| *number > 0)?)
            }
            IntOrString::String(name) => match name.parse() {
                Ok(number) => Port::Number(number),
                Err(_) => Port::Name(name.clone()),
            },
        };
        let key = BackendKey {
            service: Key::new(split.service_namespace.clone(), split.service_name.clone()),
            port,
        };
        if let Some(backend) = self.resolved.get(&key) {
            return Some(backend.clone());
        }
        let backend = (self.resolve)(&key);
        self.resolved.insert(key, backend.clone());
        Some(backend)
    }
}

fn headers<'a>(
    from: impl Iterator<Item = (&'a String, &'a str)>,
) -> Result<Vec<(HeaderName, HeaderValue)>, Problem> {
    from.map(|(name, value)| match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        _ => Err(Problem::BadHeader { name: name.clone() }),
    })
    .collect()
}
