//! From an HTTPRoute to rules. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use kube::ResourceExt;

use super::types::{
    Filter, GROUP, HTTPRoute, HeaderModifier, HttpRouteMatch, NamedMatch, NamedValue, ParentRef, PathModifier,
};
use super::world::{Hosts, Why, World};
use crate::table::{
    BackendKey, Changes, Claims, Compiled, Edits, Key, Kind, Match, Owner, PathChange, PathMatch, Port,
    Redirect, Rule, Rules, Side, Split,
};

/// What comes of a route.
#[derive(Debug)]
pub struct Translated<B> {
    /// Its routes.
    pub compiled: Compiled<B>,
    /// For each parent of ours, whether it is accepted there.
    pub parents: Vec<(ParentRef, Result<(), Why>)>,
    /// Whether all that it names can be used.
    pub resolved: Result<(), Why>,
}

/// What is done with requests of a rule.
struct Shape<B> {
    matches: Vec<Match>,
    changes: Changes,
    redirect: Option<Redirect>,
    timeout: Option<Duration>,
    backend_timeout: Option<Duration>,
    splits: Vec<Shared<B>>,
}

/// A backend with its weight.
struct Shared<B> {
    upto: u32,
    backend: Option<B>,
    changes: Changes,
}

/// Translates a route. `resolve` turns a Service port into a backend.
pub fn translate<B: Clone>(
    world: &World,
    route: &HTTPRoute,
    resolve: &mut impl FnMut(&BackendKey) -> B,
) -> Translated<B> {
    let namespace = route.namespace().unwrap_or_default();
    let owner =
        Arc::new(Owner { kind: Kind::HttpRoute, key: Key::new(namespace.as_str(), route.name_any()) });
    let mut resolved = Ok(());
    let shapes: Result<Vec<Shape<B>>, Why> =
        (0..route.spec.rules.len()).map(|index| shape(world, route, index, resolve, &mut resolved)).collect();
    let mut parents = Vec::new();
    let mut hosts = Hosts::new();
    for parent in &route.spec.parent_refs {
        let Some((key, gateway)) = world.parent(parent, &namespace) else { continue };
        let accepted = match (&shapes, world.attach(route, parent, &key, gateway)) {
            (Err(why), _) => Err(why.clone()),
            (_, Err(why)) => Err(why),
            (Ok(_), Ok(some)) => {
                hosts.extend(some);
                Ok(())
            }
        };
        parents.push((parent.clone(), accepted));
    }
    let hash = route.metadata.uid.clone().unwrap_or_default();
    let generation = route.metadata.generation.unwrap_or(0);
    let hash = format!("{hash}-{generation}");
    let claims = shapes.map(|shapes| claims(&hosts, &shapes, &owner, &hash)).unwrap_or_default();
    let compiled = Compiled {
        owner,
        created: route.metadata.creation_timestamp.as_ref().map(|time| time.0),
        generation,
        hash,
        claims,
        certificates: Vec::new(),
        problem: None,
    };
    Translated { compiled, parents, resolved }
}

fn claims<B: Clone>(hosts: &Hosts, shapes: &[Shape<B>], owner: &Arc<Owner>, hash: &str) -> Claims<B> {
    let hash = HeaderValue::from_str(hash).unwrap_or(HeaderValue::from_static(""));
    // Of each host: only over TLS, only without, or both.
    let mut secure: BTreeMap<&str, Option<bool>> = BTreeMap::new();
    for (host, over_tls) in hosts {
        secure.entry(host).and_modify(|known| *known = None).or_insert(Some(*over_tls));
    }
    let mut made: BTreeMap<Option<bool>, Rules<B>> = BTreeMap::new();
    let mut claims = Claims::default();
    for (host, secure) in secure {
        let rules = made.entry(secure).or_insert_with(|| {
            let mut rules: Vec<Arc<Rule<B>>> = shapes
                .iter()
                .flat_map(|shape| shape.matches.iter().map(move |matches| (shape, matches)))
                .map(|(shape, matches)| {
                    Arc::new(rule(shape, Match { secure, ..matches.clone() }, owner, &hash))
                })
                .collect();
            rules.sort_by_cached_key(|rule| rule.matches.precedence());
            rules.into()
        });
        claims.add(host, Side::External, rules);
    }
    claims
}

fn rule<B: Clone>(shape: &Shape<B>, matches: Match, owner: &Arc<Owner>, hash: &HeaderValue) -> Rule<B> {
    let split = |shared: &Shared<B>| Split {
        upto: shared.upto,
        backend: shared.backend.clone(),
        changes: shared.changes.clone(),
        revision: None,
    };
    Rule {
        matches,
        changes: shape.changes.clone(),
        redirect: shape.redirect.clone(),
        timeout: shape.timeout,
        backend_timeout: shape.backend_timeout,
        splits: shape.splits.iter().map(split).collect(),
        hash: hash.clone(),
        owner: owner.clone(),
    }
}

fn unsupported(field: &str, index: usize, what: &str) -> Why {
    ("UnsupportedValue", format!("spec.rules[{index}].{field}: {what}"))
}

fn shape<B>(
    world: &World,
    route: &HTTPRoute,
    index: usize,
    resolve: &mut impl FnMut(&BackendKey) -> B,
    resolved: &mut Result<(), Why>,
) -> Result<Shape<B>, Why> {
    let rule = &route.spec.rules[index];
    let bad = |field: &str, what: String| unsupported(field, index, &what);
    let mut matches = Vec::new();
    for of in &rule.matches {
        matches.push(one_match(of).map_err(|what| bad("matches", what))?);
    }
    if matches.is_empty() {
        matches.push(Match { path: PathMatch::Segments(String::new()), ..Match::default() });
    }
    let (changes, redirect) = filters(&rule.filters).map_err(|what| bad("filters", what))?;
    let time = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match ebb_api::duration::parse(text) {
            // No limit at all.
            Some(Duration::ZERO) => Ok(None),
            Some(time) => Ok(Some(time)),
            None => Err(bad("timeouts", format!("{text:?} is no duration such as 10s"))),
        },
    };
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let mut upto = 0u32;
    let mut splits = Vec::new();
    for backend in &rule.backend_refs {
        let weight = u32::try_from(backend.weight.unwrap_or(1)).unwrap_or(0).min(1_000_000);
        let (changes, redirect) = filters(&backend.filters).map_err(|what| bad("backendRefs", what))?;
        if redirect.is_some() {
            return Err(bad("backendRefs", "a redirect is for the whole rule".to_owned()));
        }
        let found = service(world, route, backend);
        upto = upto.saturating_add(weight);
        let backend = match found {
            Ok(key) => Some(resolve(&key)),
            Err(why) => {
                if resolved.is_ok() {
                    *resolved = Err(why);
                }
                None
            }
        };
        splits.push(Shared { upto, backend, changes });
    }
    if redirect.is_none() && upto == 0 {
        // Nothing to go to: an error for the client, by the API's words.
        splits = vec![Shared { upto: 1, backend: None, changes: Changes::default() }];
    }
    let (timeout, backend_timeout) = (time(&timeouts.request)?, time(&timeouts.backend_request)?);
    Ok(Shape { matches, changes, redirect, timeout, backend_timeout, splits })
}

/// The Service port that a backend is.
fn service(world: &World, route: &HTTPRoute, backend: &super::types::BackendRef) -> Result<BackendKey, Why> {
    let kind = backend.to.kind.as_deref().unwrap_or("Service");
    if kind != "Service" || backend.to.group.as_deref().is_some_and(|group| !group.is_empty()) {
        return Err(("InvalidKind", format!("backends are Services here, not {kind}")));
    }
    let namespace = route.namespace().unwrap_or_default();
    let key = Key::new(backend.to.namespace.as_deref().unwrap_or(&namespace), backend.to.name.as_str());
    if !world.may_name((GROUP, "HTTPRoute"), &namespace, ("", "Service"), &key) {
        let of = &key.namespace;
        let why = format!("no ReferenceGrant in {of} lets HTTPRoutes of {namespace} name the Service {key}");
        return Err(("RefNotPermitted", why));
    }
    let port = backend.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let port = port.ok_or_else(|| ("BackendNotFound", format!("the backend {key} needs a port")))?;
    let ports =
        world.services.get(&key).ok_or_else(|| ("BackendNotFound", format!("there is no Service {key}")))?;
    if !ports.is_empty() && !ports.contains(&port) {
        return Err(("BackendNotFound", format!("the Service {key} has no port {port}")));
    }
    Ok(BackendKey { service: key, port: Port::Number(port) })
}

fn one_match(of: &HttpRouteMatch) -> Result<Match, String> {
    let path = of.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    let path = match path.type_.as_deref().unwrap_or("PathPrefix") {
        "Exact" => PathMatch::Exact(value),
        "PathPrefix" => PathMatch::Segments(value.trim_end_matches('/').to_owned()),
        other => return Err(format!("path type {other} is not supported; use Exact or PathPrefix")),
    };
    let exact = |named: &NamedMatch| match named.type_.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(()),
        other => Err(format!("type {other} of {:?} is not supported; use Exact", named.name)),
    };
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for named in &of.headers {
        exact(named)?;
        let (name, value) = header(&named.name, &named.value)?;
        // Of one name the first counts.
        if !headers.iter().any(|known| known.0 == name) {
            headers.push((name, value));
        }
    }
    let mut query: Vec<(String, String)> = Vec::new();
    for named in &of.query_params {
        exact(named)?;
        if !query.iter().any(|known| known.0 == named.name) {
            query.push((named.name.clone(), named.value.clone()));
        }
    }
    let method = of.method.as_ref().map(|method| Method::from_bytes(method.as_bytes()));
    let method = method.transpose().map_err(|_| "method is none".to_owned())?;
    Ok(Match { path, method, headers, query, secure: None })
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        _ => Err(format!("header {name:?} has a name or value that HTTP does not allow")),
    }
}

fn filters(all: &[Filter]) -> Result<(Changes, Option<Redirect>), String> {
    let mut changes = Changes::default();
    let mut redirect = None;
    for filter in all {
        match filter.type_.as_str() {
            "RequestHeaderModifier" => changes.request = edits(filter.request_header_modifier.as_ref())?,
            "ResponseHeaderModifier" => changes.response = edits(filter.response_header_modifier.as_ref())?,
            "URLRewrite" => {
                let rewrite = filter.url_rewrite.clone().unwrap_or_default();
                let host = rewrite.hostname.as_deref().map(HeaderValue::from_str);
                changes.host = host.transpose().map_err(|_| "urlRewrite.hostname is no host".to_owned())?;
                changes.path = rewrite.path.as_ref().map(path_change).transpose()?;
            }
            "RequestRedirect" => {
                let to = filter.request_redirect.clone().unwrap_or_default();
                let scheme = match to.scheme.as_deref() {
                    None => None,
                    Some("http") => Some("http"),
                    Some("https") => Some("https"),
                    Some(other) => return Err(format!("scheme {other:?} is neither http nor https")),
                };
                let status = to.status_code.unwrap_or(302);
                let status = [301, 302, 303, 307, 308].contains(&status).then_some(status);
                redirect = Some(Redirect {
                    plain_only: false,
                    scheme,
                    host: to.hostname,
                    port: to.port.and_then(|port| u16::try_from(port).ok()),
                    path: to.path.as_ref().map(path_change).transpose()?,
                    status: status
                        .and_then(|status| StatusCode::from_u16(status).ok())
                        .ok_or("statusCode is none of 301, 302, 303, 307 and 308")?,
                });
            }
            other => return Err(format!("{other} is not supported")),
        }
    }
    Ok((changes, redirect))
}

fn path_change(of: &PathModifier) -> Result<PathChange, String> {
    match of.type_.as_str() {
        "ReplaceFullPath" => {
            Ok(PathChange::Whole(of.replace_full_path.clone().unwrap_or_else(|| "/".to_owned())))
        }
        "ReplacePrefixMatch" => Ok(PathChange::Prefix(of.replace_prefix_match.clone().unwrap_or_default())),
        other => Err(format!("path type {other} is neither ReplaceFullPath nor ReplacePrefixMatch")),
    }
}

fn edits(of: Option<&HeaderModifier>) -> Result<Edits, String> {
    let Some(of) = of else { return Ok(Edits::default()) };
    let pairs = |all: &[NamedValue]| {
        all.iter().map(|named| header(&named.name, &named.value)).collect::<Result<Vec<_>, _>>()
    };
    let remove = of.remove.iter().map(|name| HeaderName::from_bytes(name.as_bytes()));
    Ok(Edits {
        remove: remove.collect::<Result<_, _>>().map_err(|_| "remove names what is no header".to_owned())?,
        set: pairs(&of.set)?,
        add: pairs(&of.add)?,
    })
}
