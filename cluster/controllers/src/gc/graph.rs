//! Who owns whom, by uid, and what follows from it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Kind;

/// Finalizer of an object that waits for its dependents to be gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object that waits for its dependents to be let go.
pub(super) const ORPHAN: &str = "orphan";
/// How many absent owners are remembered.
const ABSENT: usize = 4096;

/// What the graph keeps of one object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) kind: Arc<Kind>,
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) version: Option<String>,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) finalizers: Vec<String>,
    pub(super) deleting: bool,
}

impl Object {
    pub(super) fn new(kind: Arc<Kind>, meta: ObjectMeta) -> Self {
        Self {
            kind,
            uid: meta.uid.unwrap_or_default(),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            version: meta.resource_version,
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|held| held == finalizer)
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|held| held.uid == owner && held.block_owner_deletion == Some(true))
    }
}

/// Look at the object of this uid.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Work(pub(super) String);

/// How dependents of a deleted object are treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What to do about one object.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Nothing,
    /// Ask the API server about these owners, which were never seen, then look again.
    Verify(Box<Object>, Vec<OwnerReference>),
    /// Take these owners off the object.
    DropOwners(Box<Object>, Vec<String>),
    Delete(Box<Object>, Propagation),
    /// Take the object off its dependents, then take finalizer [`ORPHAN`] off the object.
    Orphan(Box<Object>, Vec<Object>),
    /// Nothing blocks the object any more: take this finalizer off.
    Release(Box<Object>, &'static str),
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Graph {
    objects: HashMap<String, Object>,
    /// By the owner's uid, which need not be known.
    dependents: HashMap<String, HashSet<String>>,
    absent: HashSet<String>,
    absent_order: VecDeque<String>,
}

impl Graph {
    /// Takes in an object's present metadata; answers what has to be looked at.
    pub(super) fn upsert(&mut self, object: Object) -> Vec<Work> {
        let mut work = Vec::new();
        let uid = object.uid.clone();
        let old = self.objects.get(&uid);
        let had: HashSet<String> =
            old.iter().flat_map(|old| &old.owners).map(|owner| owner.uid.clone()).collect();
        let has: HashSet<String> = object.owners.iter().map(|owner| owner.uid.clone()).collect();
        let stopped_blocking: Vec<String> = old
            .iter()
            .flat_map(|old| {
                old.owners.iter().filter(|owner| old.blocks(&owner.uid) && !object.blocks(&owner.uid))
            })
            .map(|owner| owner.uid.clone())
            .collect();
        let was_going = old.is_some_and(|old| old.deleting);
        for owner in had.difference(&has) {
            self.unlink(owner, &uid);
        }
        for owner in &has {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
        }
        let doomed = |owner: &String| self.objects.get(owner).is_none_or(Object::waits_for_dependents);
        if has != had && has.iter().any(doomed) {
            work.push(Work(uid.clone()));
        }
        // Owners that wait for this one may be waiting no longer.
        let waiting = |owner: &&String| self.objects.get(*owner).is_some_and(Object::waits_for_dependents);
        work.extend(stopped_blocking.iter().filter(waiting).map(|owner| Work(owner.clone())));
        if object.deleting && (object.has(FOREGROUND) || object.has(ORPHAN)) {
            if !was_going && object.has(FOREGROUND) {
                work.extend(self.dependents.get(&uid).into_iter().flatten().map(|uid| Work(uid.clone())));
            }
            work.push(Work(uid.clone()));
        }
        self.objects.insert(uid, object);
        work
    }

    /// The object is gone; answers its namespace and what has to be looked at.
    pub(super) fn remove(&mut self, uid: &str) -> (Option<String>, Vec<Work>) {
        self.remember_absent(uid);
        let mut work: Vec<Work> =
            self.dependents.get(uid).into_iter().flatten().map(|dependent| Work(dependent.clone())).collect();
        let Some(object) = self.objects.remove(uid) else { return (None, work) };
        for owner in &object.owners {
            self.unlink(&owner.uid, uid);
            if self.objects.get(&owner.uid).is_some_and(Object::waits_for_dependents) {
                work.push(Work(owner.uid.clone()));
            }
        }
        (Some(object.namespace), work)
    }

    /// The API server says that there is no object of this uid.
    pub(super) fn remember_absent(&mut self, uid: &str) {
        if self.absent.insert(uid.to_owned()) {
            self.absent_order.push_back(uid.to_owned());
        }
        if self.absent_order.len() > ABSENT
            && let Some(oldest) = self.absent_order.pop_front()
        {
            self.absent.remove(&oldest);
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Object> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.objects.get(uid))
    }

    /// What to do about the object of this uid.
    pub(super) fn judge(&self, uid: &str) -> Verdict {
        let Some(object) = self.objects.get(uid) else { return Verdict::Nothing };
        let boxed = || Box::new(object.clone());
        if object.deleting {
            if object.has(ORPHAN) {
                return Verdict::Orphan(boxed(), self.dependents_of(uid).cloned().collect());
            }
            let blocked = self.dependents_of(uid).any(|dependent| dependent.blocks(uid));
            if object.has(FOREGROUND) && !blocked {
                return Verdict::Release(boxed(), FOREGROUND);
            }
            return Verdict::Nothing;
        }
        let (mut solid, mut dangling, mut waiting, mut unknown) = (0, Vec::new(), Vec::new(), Vec::new());
        for owner in &object.owners {
            match self.objects.get(&owner.uid) {
                Some(held) if held.waits_for_dependents() => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
                None if self.absent.contains(&owner.uid) => dangling.push(owner.uid.clone()),
                None => unknown.push(owner.clone()),
            }
        }
        if !unknown.is_empty() {
            return Verdict::Verify(boxed(), unknown);
        }
        if object.owners.is_empty() || (solid > 0 && dangling.is_empty() && waiting.is_empty()) {
            return Verdict::Nothing;
        }
        if solid > 0 {
            dangling.append(&mut waiting);
            return Verdict::DropOwners(boxed(), dangling);
        }
        // An owner that waits wants this one's dependents gone, too, before itself.
        let deep = !waiting.is_empty() && self.dependents_of(uid).next().is_some();
        let propagation = if object.has(ORPHAN) {
            Propagation::Orphan
        } else if deep || object.has(FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        Verdict::Delete(boxed(), propagation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Arc<Kind> {
        let gvk = kube::api::GroupVersionKind::gvk("apps", "v1", "Thing");
        Arc::new(Kind {
            resource: kube::api::ApiResource::from_gvk(&gvk),
            namespaced: true,
            verbs: Vec::new(),
        })
    }

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference { uid: uid.into(), block_owner_deletion: Some(true), ..OwnerReference::default() }
    }

    fn object(uid: &str, owners: &[&str]) -> Object {
        Object {
            kind: kind(),
            uid: uid.into(),
            namespace: "ns".into(),
            name: uid.into(),
            version: None,
            owners: owners.iter().map(|uid| owner(uid)).collect(),
            finalizers: Vec::new(),
            deleting: false,
        }
    }

    fn going(mut object: Object, finalizer: &str) -> Object {
        object.deleting = true;
        object.finalizers = vec![finalizer.into()];
        object
    }

    fn work(uids: &[&str]) -> HashSet<Work> {
        uids.iter().map(|uid| Work((*uid).into())).collect()
    }

    fn set(work: Vec<Work>) -> HashSet<Work> {
        work.into_iter().collect()
    }

    #[test]
    fn cascades_in_the_background() {
        let mut graph = Graph::default();
        assert!(graph.upsert(object("deployment", &[])).is_empty());
        assert!(graph.upsert(object("set", &["deployment"])).is_empty());
        assert!(graph.upsert(object("pod", &["set"])).is_empty());
        let (namespace, next) = graph.remove("deployment");
        assert_eq!((namespace.as_deref(), set(next)), (Some("ns"), work(&["set"])));
        assert!(matches!(graph.judge("set"), Verdict::Delete(_, Propagation::Background)));
        assert!(matches!(graph.judge("pod"), Verdict::Nothing), "its owner is still there");
        assert_eq!(set(graph.remove("set").1), work(&["pod"]));
        assert!(matches!(graph.judge("pod"), Verdict::Delete(..)));
    }

    #[test]
    fn an_owner_never_seen_is_verified_first() {
        let mut graph = Graph::default();
        assert_eq!(set(graph.upsert(object("set", &["deployment"]))), work(&["set"]));
        let Verdict::Verify(_, owners) = graph.judge("set") else { panic!("not verified") };
        assert_eq!(owners[0].uid, "deployment");
        graph.upsert(object("deployment", &[]));
        assert!(matches!(graph.judge("set"), Verdict::Nothing));
        graph.upsert(object("stray", &["nobody"]));
        graph.remember_absent("nobody");
        assert!(matches!(graph.judge("stray"), Verdict::Delete(..)));
    }

    #[test]
    fn one_owner_left_keeps_the_object() {
        let mut graph = Graph::default();
        graph.upsert(object("a", &[]));
        graph.upsert(object("b", &[]));
        graph.upsert(object("shared", &["a", "b"]));
        graph.remove("a");
        let Verdict::DropOwners(_, gone) = graph.judge("shared") else { panic!("owner kept") };
        assert_eq!(gone, ["a"]);
    }

    #[test]
    fn foreground_goes_from_the_leaves() {
        let mut graph = Graph::default();
        graph.upsert(object("deployment", &[]));
        graph.upsert(object("set", &["deployment"]));
        graph.upsert(object("pod", &["set"]));
        let next = graph.upsert(going(object("deployment", &[]), FOREGROUND));
        assert_eq!(set(next), work(&["deployment", "set"]));
        assert!(matches!(graph.judge("deployment"), Verdict::Nothing), "blocked");
        assert!(matches!(graph.judge("set"), Verdict::Delete(_, Propagation::Foreground)));
        assert_eq!(
            set(graph.upsert(going(object("set", &["deployment"]), FOREGROUND))),
            work(&["set", "pod"])
        );
        assert!(matches!(graph.judge("pod"), Verdict::Delete(_, Propagation::Background)));
        assert_eq!(set(graph.remove("pod").1), work(&["set"]));
        assert!(matches!(graph.judge("set"), Verdict::Release(_, FOREGROUND)));
        assert_eq!(set(graph.remove("set").1), work(&["deployment"]));
        assert!(matches!(graph.judge("deployment"), Verdict::Release(_, FOREGROUND)));
    }

    #[test]
    fn a_dependent_that_does_not_block_is_not_waited_for() {
        let mut graph = Graph::default();
        let mut loose = object("pod", &["set"]);
        loose.owners[0].block_owner_deletion = None;
        graph.upsert(object("set", &[]));
        graph.upsert(object("pod", &["set"]));
        graph.upsert(going(object("set", &[]), FOREGROUND));
        assert!(matches!(graph.judge("set"), Verdict::Nothing));
        assert_eq!(set(graph.upsert(loose)), work(&["set"]));
        assert!(matches!(graph.judge("set"), Verdict::Release(..)));
    }

    #[test]
    fn orphans_are_let_go() {
        let mut graph = Graph::default();
        graph.upsert(object("set", &[]));
        graph.upsert(object("pod", &["set"]));
        assert_eq!(set(graph.upsert(going(object("set", &[]), ORPHAN))), work(&["set"]));
        let Verdict::Orphan(_, dependents) = graph.judge("set") else { panic!("not orphaned") };
        assert_eq!(dependents[0].uid, "pod");
        graph.upsert(object("pod", &[]));
        assert!(graph.remove("set").1.is_empty(), "the orphan is not looked at");
    }

    #[test]
    fn what_is_going_already_is_left_alone() {
        let mut graph = Graph::default();
        graph.upsert(object("set", &[]));
        graph.upsert(object("pod", &["set"]));
        graph.upsert(going(object("pod", &["set"]), "example.com/own"));
        graph.remove("set");
        assert!(matches!(graph.judge("pod"), Verdict::Nothing));
    }
}
