//! `ebb install` and `ebb uninstall`: the platform on the cluster of a kubeconfig.

mod cluster;
mod run;
mod waiting;

pub(crate) use run::{InstallArgs, run};
