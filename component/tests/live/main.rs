//! Components as several replicas, against a real API server that may come and go.

#![allow(clippy::panic, clippy::unwrap_used)] // a test ends that way

mod election;
mod gateways;
mod outage;
mod replicas;
mod rotation;
mod stage;
