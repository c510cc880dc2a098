//! The resources of ebb, in Knative's own groups, kinds and fields, and the rules about them.
//!
//! Everything here is a pure function of its arguments: types, defaulting, validation, conditions, the parsing of the
//! `config-*` ConfigMaps, and the manifests of the platform itself. This crate never does IO and never reads a clock.

pub mod autoscaling;
pub mod caching;
pub mod conditions;
pub mod crds;
pub mod meta;
pub mod networking;
pub mod schema;
pub mod serving;
