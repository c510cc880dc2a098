//! Gateway API: HTTPRoutes in the same table as Ingresses.
//!
//! Active while its CRDs are installed (users do that), which is watched. A GatewayClass `ebb` is made then. Gateways of classes with the
//! controller `ebb.dev/gateway` share the one data path and its ports; a listener for any other port is refused in its status.
//!
//! [`translate`] and [`status`] are pure; `Keeper` holds what there is, and writes statuses where they differ.

pub mod keeper;
pub mod status;
#[cfg(test)]
mod tests;
pub mod translate;
pub mod types;
pub mod world;

pub(crate) use keeper::{Keeper, News, watch};
