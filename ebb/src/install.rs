//! `ebb install` and `ebb uninstall`: the platform on the cluster of a kubeconfig.

mod cluster;
mod prune;
mod run;
mod settings;
mod uninstall;
mod waiting;

pub(crate) use run::{InstallArgs, run};
pub(crate) use uninstall::{UninstallArgs, run as uninstall};

/// Adds what to do when the API server refuses who asks.
pub(crate) fn mend(error: anyhow::Error) -> anyhow::Error {
    let said = ebb_component::told(error.as_ref());
    if said.contains(" is forbidden: User ") {
        anyhow::anyhow!("{said}; choose a context that may administer the cluster (--context)")
    } else {
        error
    }
}
