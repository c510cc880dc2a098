//! `serving.knative.dev`: what users write (Service, Configuration, Revision, Route, DomainMapping).

mod configuration;
mod domain_mapping;
mod revision;
mod route;
mod service;

pub use configuration::{Configuration, ConfigurationSpec, ConfigurationStatus};
pub use domain_mapping::{DomainMapping, DomainMappingSpec, DomainMappingStatus, KReference, SecretTls};
pub use revision::{ContainerStatus, Revision, RevisionSpec, RevisionStatus, RevisionTemplateSpec, UserPort};
pub use route::{Addressable, Route, RouteSpec, RouteStatus, TrafficTarget};
pub use service::{Service, ServiceSpec, ServiceStatus};

/// The API group of all kinds here.
pub const GROUP: &str = "serving.knative.dev";
