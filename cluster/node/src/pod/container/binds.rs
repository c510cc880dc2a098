//! What of the machine a container sees as its files: its volumes, and the files that the node makes for it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::VolumeMount;

use super::Run;
use crate::pod::{env, volume_root};
use crate::spec::{Bind, SubPath};

impl Run {
    pub(super) fn volume_binds(&self, variables: &BTreeMap<String, String>) -> Result<Vec<Bind>, String> {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let by_name: BTreeMap<&str, _> = volumes.map(|volume| (volume.name.as_str(), volume)).collect();
        let mut binds = Vec::new();
        for mount in self.spec.volume_mounts.iter().flatten() {
            let volume = by_name.get(mount.name.as_str()).ok_or_else(|| {
                format!("volumeMount names the volume {:?}, which the pod does not have", mount.name)
            })?;
            let root = match &volume.host_path {
                Some(host) => PathBuf::from(&host.path),
                None => volume_root(&self.context, &self.pod_dir, volume),
            };
            let writable = volume.empty_dir.is_some() || volume.host_path.is_some();
            binds.push(Bind {
                source: root,
                sub_path: sub_path(mount, variables, writable)?,
                target: absolute(&mount.mount_path),
                read_only: mount.read_only == Some(true) || !writable,
                propagate: mount.mount_propagation.as_deref().is_some_and(|mode| mode != "None"),
            });
        }
        Ok(binds)
    }

    /// hosts, hostname, resolv.conf and the termination log.
    pub(super) fn file_binds(
        &self,
        binds: &mut Vec<Bind>,
        termination: &Path,
        read_only_root: bool,
    ) -> std::io::Result<()> {
        let taken = |binds: &[Bind], target: &str| binds.iter().any(|bind| bind.target == target);
        for (name, target) in
            [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
        {
            let source = self.pod_dir.join(name);
            if !taken(binds, target) && source.exists() {
                binds.push(Bind {
                    source,
                    sub_path: None,
                    target: target.to_owned(),
                    read_only: read_only_root,
                    propagate: false,
                });
            }
        }
        if let Some(parent) = termination.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(termination, "")?;
        std::fs::set_permissions(termination, std::fs::Permissions::from_mode(0o666))?;
        let target =
            self.spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned());
        if !taken(binds, &target) {
            let source = termination.to_owned();
            binds.push(Bind { source, sub_path: None, target, read_only: false, propagate: false });
        }
        Ok(())
    }
}

fn absolute(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.starts_with('/') { trimmed.to_owned() } else { format!("/{trimmed}") }
}

/// Where below a volume a mount begins; None for the volume itself.
fn sub_path(
    mount: &VolumeMount,
    variables: &BTreeMap<String, String>,
    writable: bool,
) -> Result<Option<SubPath>, String> {
    let expanded =
        mount.sub_path_expr.as_ref().map(|text| env::expand(text, |name| variables.get(name).cloned()));
    let Some(path) = expanded.or_else(|| mount.sub_path.clone()).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let plain = Path::new(&path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain {
        return Err(format!("subPath {path:?} must be relative and must not contain \"..\""));
    }
    Ok(Some(SubPath { path, make: writable }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_are_plain() {
        let mount = |sub: &str| VolumeMount { sub_path: Some(sub.to_owned()), ..VolumeMount::default() };
        let none = BTreeMap::new();
        let plain = sub_path(&mount("a/b"), &none, true).unwrap();
        assert_eq!(plain, Some(SubPath { path: "a/b".to_owned(), make: true }));
        assert_eq!(sub_path(&mount(""), &none, true), Ok(None));
        for bad in ["../x", "a/../../b", "/a"] {
            assert!(sub_path(&mount(bad), &none, true).unwrap_err().contains(bad));
        }
        let expr = VolumeMount { sub_path_expr: Some("$(POD)/x".to_owned()), ..VolumeMount::default() };
        let vars = BTreeMap::from([("POD".to_owned(), "p1".to_owned())]);
        assert_eq!(sub_path(&expr, &vars, false).unwrap().unwrap().path, "p1/x");
    }
}
