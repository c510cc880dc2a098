//! The resources of ebb, in Knative's own groups, kinds and fields, and the rules about them.
//!
//! Everything here is a pure function of its arguments: types, defaulting, validation, conditions, the parsing of the
//! `config-*` ConfigMaps, and the manifests of the platform itself. This crate never does IO and never reads a clock.

// The derive of custom resources takes one attribute for each printer column.
#![allow(clippy::duplicated_attributes)]

pub mod autoscaling;
pub mod caching;
pub mod conditions;
pub mod config;
pub mod crds;
pub mod defaults;
pub mod duration;
pub mod field_error;
pub mod manifests;
pub mod meta;
pub mod mtls;
pub mod names;
pub mod networking;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod serving;
pub mod template;
pub mod validation;
