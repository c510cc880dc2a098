//! Packet rules in the kernel's nf_tables, told over netlink: which connections a pod takes, and the address that pods show outside.
//!
//! Rules are values ([`Ruleset`]), encoded purely and loaded as one transaction ([`load`]): either all of a table is
//! there or nothing changed. No `nft` binary and no C library is needed. The rules of a network namespace are loaded by a thread inside it.
//!
//! Wire format: Linux `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`.

mod encode;
mod message;
mod origin;
mod rules;
mod socket;

pub use origin::Origin;
pub use rules::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};
pub use socket::{Held, hold, load, make, remove};

/// Why rules could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket itself failed.
    #[error("cannot talk to nf_tables: {0}; it needs CAP_NET_ADMIN in the network namespace")]
    Socket(#[source] std::io::Error),
    /// The kernel refused the transaction.
    #[error("the kernel refused the rules of table {table}: {source}; it needs nf_tables (CONFIG_NF_TABLES)")]
    Refused {
        /// The table.
        table: String,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}
