//! Who is who, and the encryption that proves it: SPIFFE identities, the certificate authority that signs them, and
//! the mutual TLS that every hop between components and pods uses.
//!
//! A workload makes its key itself, in memory, and never writes it anywhere. It never speaks to Kubernetes: tokens and
//! roots come in as files, text or closures, and who may have which identity is decided by the host of the
//! [`ca::Authority`].
//!
//! - [`SpiffeId`]: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//! - [`ca`]: signing, and the rotation of roots.
//! - [`Identity`]: a workload's certificate, always fresh, behind one shared pair of TLS configurations.
//! - [`PeerPolicy`] and [`Policy`]: whom to talk to, and whom to let in.

pub mod ca;
mod clock;
mod error;
mod identity;
mod pem;
mod policy;
mod spiffe;
mod tls;
mod verify;

pub use error::Error;
pub use identity::{Backoff, Fetch, Identity, IdentityConfig, Issue, Source, dial_ca, renew_after};
pub use policy::{Mode, PeerPolicy, Policy, Refusal};
pub use spiffe::{SpiffeError, SpiffeId};
pub use tls::{MeshAcceptor, MeshStream};
pub use verify::{Verifier, peer_identity};

/// The path of the authority's endpoint.
pub const CERTIFICATES_PATH: &str = "/v1/certificates";
/// The audience of the tokens that the authority takes.
pub const TOKEN_AUDIENCE: &str = "ebb-mesh";
/// The name that the authority's endpoint proves, besides its longer forms.
pub const CA_SERVER_NAME: &str = "controller.ebb-system.svc";
/// The trust domain where nothing else is configured.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
