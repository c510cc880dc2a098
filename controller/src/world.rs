//! Everything the reconcilers look at: local copies of all kinds, and who is to be looked at again when something changes.

use ebb_api::autoscaling::PodAutoscaler;
use ebb_api::caching::Image;
use ebb_api::meta::autoscaling::{CLASS, KPA};
use ebb_api::meta::ebb::{MESH_POLICY, MESH_ROOT, MTLS_MODE};
use ebb_api::meta::networking::{SKS, WILDCARD_DOMAIN};
use ebb_api::meta::serving as keys;
use ebb_api::mtls::{self, Mode};
use ebb_api::networking::{Certificate, ClusterDomainClaim, Ingress, ServerlessService};
use ebb_api::serving::{Configuration, DomainMapping, Revision, Route, Service};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service as CoreService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use std::sync::Arc;

use crate::cache::Cache;
use crate::plan::{annotation, controller_of, label};
use crate::queue::Queue;
use crate::revision::network_policy::network_policy;
use crate::sks::SERVICE_NAME;
use crate::wildcard;

/// What kind of object a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Service,
    Configuration,
    Revision,
    Route,
    Sks,
    DomainMapping,
    Certificate,
    /// The Certificates for all hosts of a namespace.
    Wildcard,
    /// The old revisions of a Configuration.
    Gc,
    /// What Kubernetes scales by itself: a PodAutoscaler of the class hpa.
    Hpa,
    /// The NetworkPolicy that keeps plaintext from the apps of a namespace.
    MeshPolicy,
}

/// An object to be reconciled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The caches and the queue.
pub(crate) struct World {
    pub(crate) queue: Queue<Key>,
    pub(crate) system_namespace: String,
    pub(crate) services: Cache<Service>,
    pub(crate) configurations: Cache<Configuration>,
    pub(crate) revisions: Cache<Revision>,
    pub(crate) routes: Cache<Route>,
    pub(crate) domain_mappings: Cache<DomainMapping>,
    pub(crate) claims: Cache<ClusterDomainClaim>,
    pub(crate) certificates: Cache<Certificate>,
    /// Those that were made for Certificates.
    pub(crate) secrets: Cache<Secret>,
    pub(crate) ingresses: Cache<Ingress>,
    pub(crate) skss: Cache<ServerlessService>,
    pub(crate) pod_autoscalers: Cache<PodAutoscaler>,
    pub(crate) horizontals: Cache<HorizontalPodAutoscaler>,
    pub(crate) images: Cache<Image>,
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) pods: Cache<Pod>,
    pub(crate) core_services: Cache<CoreService>,
    pub(crate) slices: Cache<EndpointSlice>,
    pub(crate) mesh_roots: Cache<ConfigMap>,
    pub(crate) network_policies: Cache<NetworkPolicy>,
    pub(crate) namespaces: Cache<Namespace>,
}

fn by_label(object: &impl ResourceExt, key: &str) -> Vec<String> {
    label(object.meta(), key).map(str::to_owned).into_iter().collect()
}

/// The entry of the index that has all revisions, or all Routes, of a namespace.
pub(crate) const ANY: &str = "any";

fn revision_index(revision: &Revision) -> Vec<String> {
    let configuration = label(&revision.metadata, keys::CONFIGURATION).map(|c| format!("cfg/{c}"));
    let routes = annotation(&revision.metadata, keys::ROUTES).unwrap_or_default();
    configuration
        .into_iter()
        .chain([ANY.to_owned()])
        .chain(routes.split(',').filter(|r| !r.is_empty()).map(|r| format!("route/{r}")))
        .collect()
}

fn route_index(route: &Route) -> Vec<String> {
    let resolved = route.status.iter().flat_map(|s| &s.traffic);
    route
        .spec
        .traffic
        .iter()
        .chain(resolved)
        .flat_map(|t| {
            let revision = t.revision_name.as_ref().map(|n| format!("rev/{n}"));
            let configuration = t.configuration_name.as_ref().map(|n| format!("cfg/{n}"));
            [revision, configuration]
        })
        .flatten()
        .chain([ANY.to_owned()])
        .collect()
}

fn certificate_index(certificate: &Certificate) -> Vec<String> {
    let wildcard = label(&certificate.metadata, WILDCARD_DOMAIN).map(|_| wildcard::ENTRY.to_owned());
    let route = label(&certificate.metadata, keys::ROUTE).map(|r| format!("route/{r}"));
    wildcard.into_iter().chain(route).collect()
}

impl World {
    pub(crate) fn new(system_namespace: String) -> Arc<Self> {
        Arc::new(Self {
            queue: Queue::new(),
            system_namespace,
            services: Cache::new(|_| Vec::new()),
            configurations: Cache::new(|_| Vec::new()),
            revisions: Cache::new(revision_index),
            routes: Cache::new(route_index),
            domain_mappings: Cache::new(|m| {
                vec![format!("ref/{}", m.spec.reference.name), format!("/{}", m.name_any())]
            }),
            claims: Cache::new(|_| Vec::new()),
            certificates: Cache::new(certificate_index),
            secrets: Cache::new(|_| Vec::new()),
            ingresses: Cache::new(|_| Vec::new()),
            skss: Cache::new(|_| Vec::new()),
            pod_autoscalers: Cache::new(|_| Vec::new()),
            horizontals: Cache::new(|_| Vec::new()),
            images: Cache::new(|i| by_label(i, keys::REVISION)),
            deployments: Cache::new(|_| Vec::new()),
            pods: Cache::new(|p| by_label(p, keys::REVISION)),
            core_services: Cache::new(|s| by_label(s, keys::ROUTE)),
            slices: Cache::new(|s| by_label(s, SERVICE_NAME)),
            mesh_roots: Cache::new(|_| Vec::new()),
            network_policies: Cache::new(|_| Vec::new()),
            namespaces: Cache::new(|_| Vec::new()),
        })
    }

    pub(crate) fn is_synced(&self) -> bool {
        [
            self.services.is_synced(),
            self.configurations.is_synced(),
            self.revisions.is_synced(),
            self.routes.is_synced(),
            self.domain_mappings.is_synced(),
            self.claims.is_synced(),
            self.certificates.is_synced(),
            self.secrets.is_synced(),
            self.ingresses.is_synced(),
            self.skss.is_synced(),
            self.pod_autoscalers.is_synced(),
            self.horizontals.is_synced(),
            self.images.is_synced(),
            self.deployments.is_synced(),
            self.pods.is_synced(),
            self.core_services.is_synced(),
            self.slices.is_synced(),
            self.mesh_roots.is_synced(),
            self.network_policies.is_synced(),
            self.namespaces.is_synced(),
        ]
        .into_iter()
        .all(|synced| synced)
    }

    pub(crate) fn want(&self, kind: Kind, namespace: &str, name: &str) {
        self.queue.add(Key { kind, namespace: namespace.to_owned(), name: name.to_owned() });
    }

    fn want_owner(&self, object: &impl ResourceExt, kind: Kind, owner: &str) {
        if let Some(owner) = controller_of(object.meta(), owner) {
            self.want(kind, &object.namespace().unwrap_or_default(), &owner.name);
        }
    }

    /// Everything is looked at again, as after a change of configuration.
    pub(crate) fn want_all(&self) {
        self.want_each(Kind::Service, self.services.all());
        self.want_each(Kind::Configuration, self.configurations.all());
        self.want_each(Kind::Gc, self.configurations.all());
        self.want_revisions();
        self.want_each(Kind::Route, self.routes.all());
        self.want_each(Kind::Sks, self.skss.all());
        self.want_each(Kind::Hpa, self.pod_autoscalers.all());
        self.want_each(Kind::DomainMapping, self.domain_mappings.all());
        // Some of them are of mappings that are no more.
        self.claims.all().iter().for_each(|claim| self.claim_changed(claim));
        self.want_certificates();
        self.want_each(Kind::Wildcard, self.namespaces.all());
        self.want_each(Kind::MeshPolicy, self.network_policies.all());
    }

    pub(crate) fn want_certificates(&self) {
        self.want_each(Kind::Certificate, self.certificates.all());
    }

    pub(crate) fn want_revisions(&self) {
        self.want_each(Kind::Revision, self.revisions.all());
    }

    fn want_each<K: ResourceExt>(&self, kind: Kind, all: Vec<Arc<K>>) {
        for object in all {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            self.queue.add_idle(Key { kind, namespace, name });
        }
    }

    /// Whether plaintext is refused at the pods of a revision.
    pub(crate) fn mode(&self, revision: &Revision, platform: Mode) -> Mode {
        let namespace = self.namespaces.get("", &revision.namespace().unwrap_or_default());
        let labels = namespace.as_ref().and_then(|found| found.metadata.labels.as_ref());
        mtls::effective(revision.metadata.annotations.as_ref(), labels, platform)
    }

    pub(crate) fn namespace_changed(&self, before: Option<&Namespace>, after: &Namespace) {
        let labels = |object: &Namespace| object.metadata.labels.clone();
        if before.map(labels) != Some(labels(after)) {
            self.want(Kind::Wildcard, "", &after.name_any());
        }
        let said = |object: &Namespace| label(&object.metadata, MTLS_MODE).map(str::to_owned);
        if before.map(said) == Some(said(after)) || (before.is_none() && said(after).is_none()) {
            return;
        }
        let name = after.name_any();
        if let Err(problem) = mtls::said(after.metadata.labels.as_ref()) {
            tracing::warn!(namespace = %name, label = MTLS_MODE, %problem, "strict is in force");
        }
        for revision in self.revisions.find(&name, ANY) {
            self.want(Kind::Revision, &name, &revision.name_any());
        }
        self.want(Kind::MeshPolicy, &name, MESH_POLICY);
    }

    pub(crate) fn network_policy_changed(&self, object: &NetworkPolicy, gone: bool) {
        let namespace = object.namespace().unwrap_or_default();
        self.want(Kind::MeshPolicy, &namespace, MESH_POLICY);
        // Its revisions make it again, or put it right.
        if gone || object.spec != network_policy(Some(namespace.clone())).spec {
            for revision in self.revisions.find(&namespace, ANY) {
                self.want(Kind::Revision, &namespace, &revision.name_any());
            }
        }
    }

    pub(crate) fn service_changed(&self, object: &Service) {
        let namespace = object.namespace().unwrap_or_default();
        self.want(Kind::Service, &namespace, &object.name_any());
        self.mapped(&namespace, &object.name_any());
    }

    fn mapped(&self, namespace: &str, target: &str) {
        for mapping in self.domain_mappings.find(namespace, &format!("ref/{target}")) {
            self.want(Kind::DomainMapping, namespace, &mapping.name_any());
        }
    }

    pub(crate) fn configuration_changed(&self, object: &Configuration) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        self.want(Kind::Configuration, &namespace, &name);
        self.want(Kind::Gc, &namespace, &name);
        self.want_owner(object, Kind::Service, "Service");
        for route in self.routes.find(&namespace, &format!("cfg/{name}")) {
            self.want(Kind::Route, &namespace, &route.name_any());
        }
        // Which revision is the latest decides about the labels of the one before and of the new one.
        let status = object.status.iter();
        let latest = status.flat_map(|s| [&s.latest_created_revision_name, &s.latest_ready_revision_name]);
        for revision in latest.flatten() {
            self.want(Kind::Revision, &namespace, revision);
        }
    }

    pub(crate) fn revision_changed(&self, object: &Revision) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        self.want(Kind::Revision, &namespace, &name);
        if self.revisions.get(&namespace, &name).is_none() {
            self.want(Kind::MeshPolicy, &namespace, MESH_POLICY);
        }
        if let Some(configuration) = label(&object.metadata, keys::CONFIGURATION) {
            self.want(Kind::Configuration, &namespace, configuration);
            self.want(Kind::Gc, &namespace, configuration);
        }
        for route in self.routes.find(&namespace, &format!("rev/{name}")) {
            self.want(Kind::Route, &namespace, &route.name_any());
        }
    }

    pub(crate) fn route_changed(&self, object: &Route) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        self.want(Kind::Route, &namespace, &name);
        self.want_owner(object, Kind::Service, "Service");
        self.mapped(&namespace, &name);
        let resolved = object.status.iter().flat_map(|s| &s.traffic);
        for target in object.spec.traffic.iter().chain(resolved) {
            if let Some(revision) = &target.revision_name {
                self.want(Kind::Revision, &namespace, revision);
                let found = self.revisions.get(&namespace, revision);
                let owner = found.as_ref().and_then(|r| label(&r.metadata, keys::CONFIGURATION));
                owner.into_iter().for_each(|owner| self.want(Kind::Configuration, &namespace, owner));
            }
            if let Some(configuration) = &target.configuration_name {
                self.want(Kind::Configuration, &namespace, configuration);
                let latest = self
                    .configurations
                    .get(&namespace, configuration)
                    .and_then(|c| c.status.as_ref().and_then(|s| s.latest_created_revision_name.clone()));
                latest.iter().for_each(|revision| self.want(Kind::Revision, &namespace, revision));
            }
        }
        for revision in self.revisions.find(&namespace, &format!("route/{name}")) {
            self.want(Kind::Revision, &namespace, &revision.name_any());
        }
    }

    /// Of the mappings of a domain, in whatever namespace, one may have waited for this.
    pub(crate) fn claim_changed(&self, object: &ClusterDomainClaim) {
        let domain = object.name_any();
        self.want(Kind::DomainMapping, &object.spec.namespace, &domain);
        for mapping in self.domain_mappings.find_anywhere(&format!("/{domain}")) {
            self.want(Kind::DomainMapping, &mapping.namespace().unwrap_or_default(), &domain);
        }
    }

    pub(crate) fn certificate_changed(&self, object: &Certificate) {
        let namespace = object.namespace().unwrap_or_default();
        self.want(Kind::Certificate, &namespace, &object.name_any());
        self.want_owner(object, Kind::Route, "Route");
        self.want_owner(object, Kind::DomainMapping, "DomainMapping");
        if label(&object.metadata, WILDCARD_DOMAIN).is_some() {
            self.want(Kind::Wildcard, "", &namespace);
            for route in self.routes.find(&namespace, ANY) {
                self.want(Kind::Route, &namespace, &route.name_any());
            }
        }
    }

    pub(crate) fn secret_changed(&self, object: &Secret) {
        self.want_owner(object, Kind::Certificate, "Certificate");
    }

    pub(crate) fn ingress_changed(&self, object: &Ingress) {
        self.want_owner(object, Kind::Route, "Route");
        self.want_owner(object, Kind::DomainMapping, "DomainMapping");
    }

    pub(crate) fn belongs_to_revision(&self, object: &impl ResourceExt) {
        if let Some(revision) = label(object.meta(), keys::REVISION) {
            self.want(Kind::Revision, &object.namespace().unwrap_or_default(), revision);
        }
    }

    pub(crate) fn pod_autoscaler_changed(&self, object: &PodAutoscaler) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        self.want(Kind::Revision, &namespace, &name);
        // One of another class has nothing that Kubernetes scales, unless it was of that class before.
        let class = CLASS.value(object.metadata.annotations.as_ref());
        if class != Some(KPA) || self.horizontals.get(&namespace, &name).is_some() {
            self.want(Kind::Hpa, &namespace, &name);
        }
    }

    pub(crate) fn horizontal_changed(&self, object: &HorizontalPodAutoscaler) {
        self.want_owner(object, Kind::Hpa, "PodAutoscaler");
    }

    pub(crate) fn sks_changed(&self, object: &ServerlessService) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        self.want(Kind::Sks, &namespace, &name);
        if self.horizontals.get(&namespace, &name).is_some() {
            self.want(Kind::Hpa, &namespace, &name);
        }
    }

    pub(crate) fn deployment_changed(&self, object: &Deployment, fresh: bool) {
        self.belongs_to_revision(object);
        // Its selector, which never changes, is all that a ServerlessService takes from it.
        if let Some(revision) = label(&object.metadata, keys::REVISION).filter(|_| fresh) {
            self.want(Kind::Sks, &object.namespace().unwrap_or_default(), revision);
        }
    }

    pub(crate) fn core_service_changed(&self, object: &CoreService) {
        let namespace = object.namespace().unwrap_or_default();
        if let Some(sks) = label(&object.metadata, SKS) {
            self.want(Kind::Sks, &namespace, sks);
        }
        self.want_owner(object, Kind::Route, "Route");
        // A name that was taken may be free now.
        let name = object.name_any();
        if self.routes.get(&namespace, &name).is_some() {
            self.want(Kind::Route, &namespace, &name);
        }
        self.mapped(&namespace, &name);
    }

    pub(crate) fn slice_changed(&self, before: Option<&EndpointSlice>, after: Option<&EndpointSlice>) {
        let Some(object) = after.or(before) else { return };
        let namespace = object.namespace().unwrap_or_default();
        let Some(service) = label(&object.metadata, SERVICE_NAME) else { return };
        if namespace == self.system_namespace && service == "activator" {
            // All of them: a Serve revision returns to its activators, and must find the present ones.
            let same = |before: &EndpointSlice, after: &EndpointSlice| {
                before.endpoints == after.endpoints && before.ports == after.ports
            };
            if !before.zip(after).is_some_and(|(before, after)| same(before, after)) {
                for sks in self.skss.all() {
                    self.want(Kind::Sks, &sks.namespace().unwrap_or_default(), &sks.name_any());
                }
            }
            return;
        }
        let owner = self.core_services.get(&namespace, service);
        if let Some(sks) = owner.as_ref().and_then(|s| label(&s.metadata, SKS)) {
            self.want(Kind::Sks, &namespace, sks);
        }
    }

    pub(crate) fn mesh_root_changed(&self, object: &ConfigMap, gone: bool) {
        if gone && object.name_any() == MESH_ROOT {
            let namespace = object.namespace().unwrap_or_default();
            for revision in self.revisions.find(&namespace, ANY) {
                self.want(Kind::Revision, &namespace, &revision.name_any());
            }
        }
    }
}
