//! What resource types there are: one table for the built-in ones, and those that CRDs define at run time.

pub(crate) mod builtin;
pub(crate) mod crd;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use cluster_schema::Schema;
use parking_lot::Mutex;
use serde_json::Value;

/// Paths of the scale subresource, as a CRD names them (JSON paths without the leading dot).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScalePaths {
    /// Wanted replicas.
    pub spec: String,
    /// Observed replicas.
    pub status: String,
    /// The label selector, as text or as an object.
    pub selector: Option<String>,
}

/// A column of a CRD's table.
#[derive(Clone, Debug)]
pub(crate) struct CrdColumn {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// `int32`, `date-time` and such, or empty.
    pub format: String,
    /// For `kubectl explain` and the like.
    pub description: String,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i64,
    /// Where the cell's text comes from.
    pub path: String,
}

/// How rows of a table come to be.
#[derive(Clone, Debug)]
pub(crate) enum Columns {
    /// By the printers of [`crate::table`], chosen by kind.
    Builtin,
    /// By JSON paths.
    Crd(Vec<CrdColumn>),
}

/// One version of one resource type.
#[derive(Debug)]
pub(crate) struct Resource {
    /// API group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Plural, as in paths.
    pub plural: String,
    /// Singular.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Has it a namespace?
    pub namespaced: bool,
    /// Does the status subresource exist?
    pub status: bool,
    /// Paths of the scale subresource, if it exists.
    pub scale: Option<ScalePaths>,
    /// Further subresources.
    pub subresources: &'static [builtin::Sub],
    /// Where objects live: `group/plural`.
    pub storage: Arc<str>,
    /// The apiVersion under which objects are stored.
    pub storage_version: String,
    /// `spec.conversion` of a definition whose versions a webhook converts.
    pub conversion: Option<Value>,
    /// Is it one of Kubernetes' own?
    pub builtin: bool,
    /// Is it only ever created, never stored (reviews)?
    pub virtual_only: bool,
    /// Is it only ever read, never stored (what pods use at the moment)?
    pub computed: bool,
    /// What a table shows.
    pub columns: Columns,
    /// What clients of a deprecated version are warned of.
    pub deprecation: Option<String>,
    /// Field selectors beyond metadata (of CRDs).
    pub selectable: Vec<String>,
    schema: OnceLock<Schema>,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// The schema, made when first asked for.
    pub(crate) fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| {
            if self.computed {
                return Schema::untyped();
            }
            Schema::builtin(&self.group, &self.version, &self.kind).unwrap_or_else(|| {
                tracing::warn!(
                    group = self.group,
                    kind = self.kind,
                    "no schema is known: objects go unchecked"
                );
                Schema::untyped()
            })
        })
    }

    /// The kind of its lists.
    pub(crate) fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// All subresources by name.
    pub(crate) fn subresource_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.subresources.iter().map(|sub| sub.name.to_owned()).collect();
        if self.status {
            names.push("status".to_owned());
        }
        if self.scale.is_some() {
            names.push("scale".to_owned());
        }
        names.sort();
        names
    }

    /// Verbs on the resource itself.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        if self.virtual_only {
            &["create"]
        } else if self.computed {
            &["get", "list"]
        } else {
            match (self.builtin, self.kind.as_str()) {
                (true, "Namespace") => &["create", "delete", "get", "list", "patch", "update", "watch"],
                (true, _) => {
                    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
                }
                // In the order in which upstream lists them.
                (false, _) => {
                    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
                }
            }
        }
    }

    /// What an error says about an object of it.
    pub(crate) fn subject<'a>(&'a self, name: &'a str) -> crate::error::Subject<'a> {
        crate::error::Subject { group: &self.group, resource: &self.plural, name }
    }
}

/// `v1` or `apps/v1`.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A version of a group and its resources.
pub(crate) type Version = (String, Vec<Arc<Resource>>);

/// All resource types at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    by_path: HashMap<(String, String, String), Arc<Resource>>,
    /// Group to its versions, best first; each with its resources by plural.
    pub groups: BTreeMap<String, Vec<Version>>,
}

impl Snapshot {
    fn new(resources: Vec<Arc<Resource>>) -> Self {
        let mut snapshot = Self::default();
        for resource in resources {
            let versions = snapshot.groups.entry(resource.group.clone()).or_default();
            match versions.iter_mut().find(|(version, _)| *version == resource.version) {
                Some((_, list)) => list.push(resource.clone()),
                None => versions.push((resource.version.clone(), vec![resource.clone()])),
            }
            let path = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
            snapshot.by_path.insert(path, resource);
        }
        for versions in snapshot.groups.values_mut() {
            versions.sort_by_key(|(version, _)| std::cmp::Reverse(version_rank(version)));
            for (_, list) in versions {
                list.sort_by(|a, b| a.plural.cmp(&b.plural));
            }
        }
        snapshot
    }

    /// By group, version and plural.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// By apiVersion and kind.
    pub(crate) fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let versions = self.groups.get(group)?;
        let (_, list) = versions.iter().find(|(v, _)| v == version)?;
        list.iter().find(|resource| resource.kind == kind)
    }
}

/// Kubernetes' order of versions: v2, v1, v1beta2, v1beta1, v1alpha1, then the rest.
pub(crate) fn version_rank(version: &str) -> (u8, u64, u64) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let rest = &rest[digits..];
        if rest.is_empty() {
            return Some((3, major, 0));
        }
        let (stage, minor) = if let Some(minor) = rest.strip_prefix("beta") {
            (2, minor)
        } else {
            (1, rest.strip_prefix("alpha")?)
        };
        Some((stage, major, minor.parse().ok()?))
    };
    parse().unwrap_or((0, 0, 0))
}

/// The resource types, replaced as a whole whenever a CRD changes.
#[derive(Debug)]
pub(crate) struct Registry {
    builtin: Vec<Arc<Resource>>,
    /// Those that a node agent's figures are told by. They are served once there is one, which the lock says.
    computed: Vec<Arc<Resource>>,
    measured: Mutex<bool>,
    current: ArcSwap<Snapshot>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// With the built-in types.
    pub(crate) fn new() -> Self {
        let all = builtin::resources().into_iter().map(Arc::new);
        let (computed, builtin): (Vec<_>, Vec<_>) = all.partition(|resource| resource.computed);
        let current = ArcSwap::from_pointee(Snapshot::new(builtin.clone()));
        Self { builtin, computed, measured: Mutex::new(false), current }
    }

    /// From now on there are figures of what pods use.
    pub(crate) fn serve_figures(&self) {
        let mut measured = self.measured.lock();
        if std::mem::replace(&mut *measured, true) {
            return;
        }
        let before = self.current.load();
        let known = before.groups.values().flatten().flat_map(|(_, list)| list);
        self.current.store(Arc::new(Snapshot::new(known.chain(&self.computed).cloned().collect())));
    }

    /// The types as of now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Takes over what the CRDs (all of them) say. Types whose definition did not change keep their compiled schema.
    pub(crate) fn set_crds<'a>(&self, crds: impl Iterator<Item = &'a Value>) {
        let measured = self.measured.lock();
        let before = self.current.load_full();
        let mut resources = self.builtin.clone();
        if *measured {
            resources.extend(self.computed.iter().cloned());
        }
        for definition in crds {
            resources.extend(crd::resources(definition, &before));
        }
        self.current.store(Arc::new(Snapshot::new(resources)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_kubernetes_does() {
        let mut versions = vec!["v1beta1", "foo", "v1", "v2", "v1alpha1", "v1beta2", "v10"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn figures_are_served_where_there_are_some() {
        let registry = Registry::new();
        let served = || registry.snapshot().find("metrics.k8s.io", "v1beta1", "pods").is_some();
        assert!(!served(), "kubectl top says that there are none");
        registry.serve_figures();
        assert!(served());
        assert!(registry.snapshot().find("apps", "v1", "deployments").is_some());
        registry.set_crds(std::iter::empty());
        assert!(served());
    }

    #[test]
    fn builtin_types_are_found_by_path_and_by_kind() {
        let registry = Registry::new();
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.find("apps", "v1", "deployments").unwrap().kind, "Deployment");
        assert_eq!(snapshot.find_kind("v1", "Pod").unwrap().plural, "pods");
        let events = snapshot.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(events.storage, snapshot.find("", "v1", "events").unwrap().storage);
    }
}
