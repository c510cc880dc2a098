//! `ebb install` and `ebb uninstall`: the platform on the cluster of a kubeconfig.

mod cluster;
mod prune;
mod run;
mod settings;
mod uninstall;
mod waiting;

pub(crate) use run::{InstallArgs, run};
pub(crate) use uninstall::{UninstallArgs, run as uninstall};
