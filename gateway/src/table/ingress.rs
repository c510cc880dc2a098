//! From an Ingress to its routes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ebb_api::networking::{
    HttpIngressPath, HttpOption, Ingress, IngressBackendSplit, IngressSpec, IngressVisibility,
};
use ebb_http::headers::{KNATIVE_SERVING_NAMESPACE, KNATIVE_SERVING_REVISION};
use http::{HeaderName, HeaderValue};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{
    BackendKey, Certificate, Changes, Claims, Compiled, Edits, Key, Kind, Match, Owner, PathMatch, Port,
    Redirect, Rule, Side, Split, ingress_hash,
};

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
    /// The Secret of a host's certificate is missing, or holds none that can be used.
    NoCertificate {
        /// The Secret.
        secret: Key,
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
                    "host {host} belongs to the Ingress {by}, which comes first; remove it there or use another host"
                )
            }
            Problem::NoCertificate { secret } => {
                write!(
                    f,
                    "waiting for the Secret {secret} with a certificate in tls.crt and its key in tls.key"
                )
            }
        }
    }
}

/// Compiles an Ingress. `resolve` turns a Service port into a backend; `cluster_domain` is what DNS names in the cluster end in
/// (as `cluster.local`).
pub fn compile<B>(
    ingress: &Ingress,
    cluster_domain: &str,
    resolve: &mut impl FnMut(&BackendKey) -> B,
) -> Compiled<B> {
    let meta = &ingress.metadata;
    let key = Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    let hash = ingress_hash(&ingress.spec, &key);
    let owner = Arc::new(Owner { kind: Kind::Ingress, key });
    let made = claims(ingress, cluster_domain, &owner, &hash, resolve);
    let (claims, certificates, problem) = match made {
        Ok(claims) => (claims, certificates(&ingress.spec, &owner.key), None),
        Err(problem) => (Claims::default(), Vec::new(), Some(problem)),
    };
    Compiled {
        owner,
        created: meta.creation_timestamp.as_ref().map(|time| time.0),
        generation: meta.generation.unwrap_or(0),
        hash,
        claims,
        certificates,
        problem,
    }
}

fn claims<B>(
    ingress: &Ingress,
    cluster_domain: &str,
    owner: &Arc<Owner>,
    hash: &str,
    resolve: &mut impl FnMut(&BackendKey) -> B,
) -> Result<Claims<B>, Problem> {
    let hash = HeaderValue::from_str(hash).unwrap_or(HeaderValue::from_static(""));
    let redirect = (ingress.spec.http_option == Some(HttpOption::Redirected)).then_some(Redirect::HTTPS);
    let mut claims = Claims::default();
    for (index, rule) in ingress.spec.rules.iter().enumerate() {
        let paths = rule.http.as_ref().map(|http| http.paths.as_slice()).unwrap_or_default();
        if paths.is_empty() {
            return Err(Problem::NoPaths { rule: index });
        }
        let mut rules = Vec::with_capacity(paths.len());
        for path in paths {
            let (matches, changes, splits) = self::path(path, resolve)?;
            rules.push(Arc::new(Rule {
                matches,
                changes,
                redirect: redirect.clone(),
                timeout: None,
                backend_timeout: None,
                splits,
                hash: hash.clone(),
                owner: owner.clone(),
            }));
        }
        // A stable sort: of equals the first written counts.
        rules.sort_by_cached_key(|rule| rule.matches.precedence());
        let rules = rules.into();
        let visible = match rule.visibility {
            IngressVisibility::ExternalIP => Side::External,
            IngressVisibility::ClusterLocal => Side::Local,
        };
        for host in expanded(&rule.hosts, cluster_domain) {
            claims.add(&host, visible, &rules);
        }
    }
    Ok(claims)
}

/// The hosts in lower case, those of the cluster's DNS also in their shorter forms.
fn expanded(hosts: &[String], cluster_domain: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for host in hosts {
        let host = host.to_ascii_lowercase();
        if let Some(short) = host.strip_suffix(cluster_domain).and_then(|short| short.strip_suffix('.')) {
            if let Some(shorter) = short.strip_suffix(".svc") {
                all.insert(shorter.to_owned());
            }
            all.insert(short.to_owned());
        }
        all.insert(host);
    }
    all
}

fn certificates(spec: &IngressSpec, key: &Key) -> Vec<Certificate> {
    let mut all: Vec<Certificate> = Vec::new();
    for tls in &spec.tls {
        let namespace = tls.secret_namespace.as_ref().filter(|namespace| !namespace.is_empty());
        let secret = Key::new(namespace.unwrap_or(&key.namespace).clone(), tls.secret_name.clone());
        for host in &tls.hosts {
            let host: Arc<str> = host.to_ascii_lowercase().into();
            if !all.iter().any(|known| known.host == host) {
                all.push(Certificate { host, secret: secret.clone() });
            }
        }
    }
    all
}

fn path<B>(
    path: &HttpIngressPath,
    resolve: &mut impl FnMut(&BackendKey) -> B,
) -> Result<(Match, Changes, Vec<Split<B>>), Problem> {
    let mut splits = Vec::with_capacity(path.splits.len());
    let mut upto = 0u32;
    let single = path.splits.len() == 1;
    for split in &path.splits {
        let bad = || Problem::BadSplit { service: split.service_name.clone() };
        let percent = u32::try_from(split.percent).ok().filter(|percent| *percent <= 100).ok_or_else(bad)?;
        // A single split may leave its percentage out.
        upto += if single && percent == 0 { 100 } else { percent };
        let key = backend(split).ok_or_else(bad)?;
        let set = headers(split.append_headers.iter().map(|(name, value)| (name, value.as_str())))?;
        let changes = Changes { request: Edits { set, ..Edits::default() }, ..Changes::default() };
        let revision = revision(&split.append_headers, &split.service_namespace);
        splits.push(Split { upto, backend: Some(resolve(&key)), changes, revision });
    }
    let host = match path.rewrite_host.as_deref().filter(|host| !host.is_empty()) {
        None => None,
        Some(host) => Some(
            HeaderValue::from_str(host).map_err(|_| Problem::BadHeader { name: "rewriteHost".to_owned() })?,
        ),
    };
    let matches = Match {
        path: PathMatch::Letters(path.path.clone().unwrap_or_default()),
        headers: headers(path.headers.iter().map(|(name, value)| (name, value.exact.as_str())))?,
        ..Match::default()
    };
    let set = headers(path.append_headers.iter().map(|(name, value)| (name, value.as_str())))?;
    let changes = Changes { request: Edits { set, ..Edits::default() }, host, ..Changes::default() };
    Ok((matches, changes, splits))
}

/// The Revision that a split's headers name for those behind the gateway.
fn revision(headers: &BTreeMap<String, String>, namespace: &str) -> Option<Arc<Key>> {
    let of = |name: &str| {
        headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    };
    let name = of(KNATIVE_SERVING_REVISION.as_str())?;
    Some(Arc::new(Key::new(of(KNATIVE_SERVING_NAMESPACE.as_str()).unwrap_or(namespace), name)))
}

fn backend(split: &IngressBackendSplit) -> Option<BackendKey> {
    let port = match &split.service_port {
        IntOrString::Int(number) => Port::Number(u16::try_from(*number).ok().filter(|number| *number > 0)?),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Port::Number(number),
            Err(_) => Port::Name(name.clone()),
        },
    };
    let service = Key::new(split.service_namespace.clone(), split.service_name.clone());
    Some(BackendKey { service, port })
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
