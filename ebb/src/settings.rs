//! What a running platform leaves in its folder so that the other commands find it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::cli::DataDir;

/// What the user has said cannot be done; the command ends as for bad arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(pub(crate) String);

/// `platform.json` in the platform's folder: written when it is ready, removed when it stops.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Process id of `ebb up`.
    pub(crate) pid: u32,
    /// Port of the Kubernetes API on 127.0.0.1.
    pub(crate) api_port: u16,
    /// Port of the gateway on 127.0.0.1.
    pub(crate) gateway_port: u16,
    /// Port of the gateway for https on 127.0.0.1.
    #[serde(default)]
    pub(crate) gateway_tls_port: u16,
    /// Port of the image registry on 127.0.0.1.
    pub(crate) registry_port: u16,
}

impl DataDir {
    /// The folder, absolute.
    pub(crate) fn resolve(&self) -> anyhow::Result<PathBuf> {
        let dir = match &self.data_dir {
            Some(dir) => dir.clone(),
            None => {
                let home =
                    std::env::var_os("HOME").context("HOME is not set; name the folder with --data-dir")?;
                Path::new(&home).join(".ebb")
            }
        };
        std::path::absolute(&dir).with_context(|| format!("--data-dir {}", dir.display()))
    }

    /// The platform that runs on this folder.
    pub(crate) fn running(&self) -> anyhow::Result<Running> {
        let dir = self.resolve()?;
        Running::read(&dir)
    }
}

impl Running {
    const FILE: &str = "platform.json";

    /// Reads it and sees that the process is still there.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(Self::FILE);
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "no platform runs on {}: start one with `ebb up`, or name its folder with --data-dir",
                    dir.display()
                )
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let running: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?;
        if !Path::new("/proc").join(running.pid.to_string()).exists() {
            bail!(
                "the platform on {} has ended without cleaning up: start it again with `ebb up`",
                dir.display()
            );
        }
        Ok(running)
    }

    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let file = dir.join(Self::FILE);
        let new = dir.join(format!("{}.new", Self::FILE));
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", new.display()))?;
        std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    pub(crate) fn remove(dir: &Path) {
        let _ = std::fs::remove_file(dir.join(Self::FILE));
    }
}
