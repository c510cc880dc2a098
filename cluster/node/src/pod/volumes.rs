//! Volumes: folders of the pod below the data folder, filled before its containers start and kept up to date after.
//!
//! ConfigMaps, Secrets, tokens and the downward API are written the way kubelet does: files live in a folder with the
//! time in its name, `..data` points at it, the visible names point into `..data`; replacing that one link replaces all
//! files at once.

pub(crate) mod keeper;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, SecretProjection, Volume,
};

use super::env::{Facts, Lookup, field, resource};

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

pub(crate) type Files = BTreeMap<String, File>;

/// A token that a projected volume wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenWish {
    pub(crate) volume: String,
    pub(crate) path: String,
    pub(crate) audience: Option<String>,
    pub(crate) seconds: i64,
}

/// A token and when it is to be replaced.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) renew_at: Timestamp,
}

/// Tokens by volume and path.
pub(crate) type Tokens = HashMap<(String, String), Token>;

/// Whether a volume may hold what must not get onto the disk, as kubelet sees it: Secrets and tokens.
pub(crate) fn is_secret(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.projected.is_some()
}

/// When to replace a token that was just issued: after four fifths of its life, and at the latest after a day, as kubelet does.
pub(crate) fn renew_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    const DAY: SignedDuration = SignedDuration::from_hours(24);
    now + (expires.duration_since(now) * 4 / 5).min(DAY)
}

/// The tokens of a pod that are missing or due to be replaced.
pub(crate) fn due_tokens(pod: &Pod, tokens: &Tokens, now: Timestamp) -> Vec<TokenWish> {
    let due = |wish: &TokenWish| {
        let held = tokens.get(&(wish.volume.clone(), wish.path.clone()));
        held.is_none_or(|token| now >= token.renew_at)
    };
    token_wishes(pod).into_iter().filter(due).collect()
}

/// What kind of folder a volume needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An empty folder on disk.
    Empty,
    /// An empty folder in memory, with its limit.
    Memory(Option<u64>),
    /// Files that this module computes.
    Files(Files),
    /// A path of the machine.
    Host(PathBuf),
}

/// All tokens that a pod's volumes want.
fn token_wishes(pod: &Pod) -> Vec<TokenWish> {
    let mut wishes = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(token) = &source.service_account_token {
                wishes.push(TokenWish {
                    volume: volume.name.clone(),
                    path: token.path.clone(),
                    audience: token.audience.clone().filter(|audience| !audience.is_empty()),
                    seconds: token.expiration_seconds.unwrap_or(3600),
                });
            }
        }
    }
    wishes
}

/// What a volume holds. An error is shown as a FailedMount event and tried again.
pub(crate) fn source(
    pod: &Pod,
    volume: &Volume,
    facts: &Facts,
    lookup: &dyn Lookup,
    tokens: &Tokens,
) -> Result<Source, String> {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().and_then(|q| crate::quantity::units(&q.0)).filter(|s| *s > 0);
        return Ok(match empty.medium.as_deref() {
            Some("Memory") => Source::Memory(limit.and_then(|limit| u64::try_from(limit).ok())),
            _ => Source::Empty,
        });
    }
    if let Some(host) = &volume.host_path {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default()).map(Source::Host);
    }
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let projection = ConfigMapProjection {
            name: source.name.clone(),
            items: source.items.clone(),
            optional: source.optional,
        };
        config_map_files(&mut files, &projection, mode(source.default_mode), lookup)?;
    } else if let Some(source) = &volume.secret {
        let projection = SecretProjection {
            name: source.secret_name.clone().unwrap_or_default(),
            items: source.items.clone(),
            optional: source.optional,
        };
        secret_files(&mut files, &projection, mode(source.default_mode), lookup)?;
    } else if let Some(source) = &volume.downward_api {
        downward_files(&mut files, pod, source.items.iter().flatten(), mode(source.default_mode), facts)?;
    } else if let Some(projected) = &volume.projected {
        let default = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                config_map_files(&mut files, source, default, lookup)?;
            }
            if let Some(source) = &source.secret {
                secret_files(&mut files, source, default, lookup)?;
            }
            if let Some(source) = &source.downward_api {
                downward_files(&mut files, pod, source.items.iter().flatten(), default, facts)?;
            }
            if let Some(source) = &source.service_account_token {
                let token = tokens
                    .get(&(volume.name.clone(), source.path.clone()))
                    .ok_or_else(|| format!("no token for the volume {:?} yet", volume.name))?;
                insert(&mut files, &source.path, token.text.clone().into_bytes(), default)?;
            }
            if source.cluster_trust_bundle.is_some() {
                return Err(format!(
                    "volume {:?}: clusterTrustBundle is not supported by this node",
                    volume.name
                ));
            }
        }
    } else {
        return Err(format!(
            "volume {:?} is of a kind this node does not support; it has emptyDir, configMap, secret, projected, \
             downwardAPI and hostPath",
            volume.name
        ));
    }
    Ok(Source::Files(files))
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644) & 0o777
}

fn insert(files: &mut Files, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), String> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.is_empty() || path.starts_with("..") {
        return Err(format!("{path:?} is not a plain relative path"));
    }
    files.insert(path.to_owned(), File { bytes, mode });
    Ok(())
}

fn select(
    files: &mut Files,
    what: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    default: u32,
    optional: bool,
) -> Result<(), String> {
    match items.filter(|items| !items.is_empty()) {
        None => data.iter().try_for_each(|(key, bytes)| insert(files, key, bytes.clone(), default)),
        Some(items) => items.iter().try_for_each(|item| match data.get(&item.key) {
            Some(bytes) => {
                let mode = item.mode.map_or(default, |given| mode(Some(given)));
                insert(files, &item.path, bytes.clone(), mode)
            }
            None if optional => Ok(()),
            None => Err(format!("{what} references non-existent key: {}", item.key)),
        }),
    }
}

fn config_map_files(
    files: &mut Files,
    source: &ConfigMapProjection,
    default: u32,
    lookup: &dyn Lookup,
) -> Result<(), String> {
    let optional = source.optional == Some(true);
    let map: ConfigMap = match lookup.config_map(&source.name) {
        Some(map) => map,
        None if optional => return Ok(()),
        None => return Err(format!("configmap {:?} not found", source.name)),
    };
    let mut data: BTreeMap<String, Vec<u8>> =
        map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes())).collect();
    data.extend(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0)));
    select(files, &format!("configmap {:?}", source.name), &data, source.items.as_ref(), default, optional)
}

fn secret_files(
    files: &mut Files,
    source: &SecretProjection,
    default: u32,
    lookup: &dyn Lookup,
) -> Result<(), String> {
    let optional = source.optional == Some(true);
    let secret: Secret = match lookup.secret(&source.name) {
        Some(secret) => secret,
        None if optional => return Ok(()),
        None => return Err(format!("secret {:?} not found", source.name)),
    };
    let data = secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
    select(files, &format!("secret {:?}", source.name), &data, source.items.as_ref(), default, optional)
}

fn downward_files<'a>(
    files: &mut Files,
    pod: &Pod,
    items: impl Iterator<Item = &'a DownwardAPIVolumeFile>,
    default: u32,
    facts: &Facts,
) -> Result<(), String> {
    for item in items {
        let value = if let Some(reference) = &item.field_ref {
            field(pod, facts, &reference.field_path)
                .ok_or_else(|| format!("unknown field {:?}", reference.field_path))?
        } else if let Some(reference) = &item.resource_field_ref {
            let name = reference.container_name.as_deref().unwrap_or_default();
            let container = pod
                .spec
                .iter()
                .flat_map(|spec| spec.containers.iter())
                .find(|container| container.name == name)
                .ok_or_else(|| format!("no container {name:?} for a resource reference"))?;
            let divisor = reference.divisor.as_ref().map(|d| d.0.as_str()).filter(|d| *d != "0");
            resource(container, facts, &reference.resource, divisor)
                .ok_or_else(|| format!("unknown resource {:?}", reference.resource))?
        } else {
            continue;
        };
        insert(files, &item.path, value.into_bytes(), item.mode.map_or(default, |given| mode(Some(given))))?;
    }
    Ok(())
}

fn host_path(path: &str, kind: &str) -> Result<PathBuf, String> {
    use std::os::unix::fs::FileTypeExt;
    let path = PathBuf::from(path);
    let create = |error: io::Error| format!("hostPath {}: {error}", path.display());
    match kind {
        "DirectoryOrCreate" => fs::create_dir_all(&path).map_err(create)?,
        "FileOrCreate" => {
            fs::OpenOptions::new().append(true).create(true).open(&path).map_err(create)?;
        }
        _ => {}
    }
    let found = fs::metadata(&path);
    if kind.is_empty() {
        if found.is_err() {
            fs::create_dir_all(&path).map_err(create)?;
        }
        return Ok(path);
    }
    let file_type = found.map_err(create)?.file_type();
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => file_type.is_dir(),
        "File" | "FileOrCreate" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        _ => false,
    };
    if fits {
        Ok(path)
    } else {
        Err(format!("hostPath type check failed: {} is not a {kind}", path.display()))
    }
}

/// Makes an empty volume's folder; `group` is the pod's fsGroup.
pub(crate) fn make_empty(folder: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let bits = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(folder, fs::Permissions::from_mode(bits))?;
    if group.is_some() {
        chown(folder, None, group)?;
    }
    Ok(())
}

/// Writes files into a volume, all at once for whoever reads them. Does nothing when they are the same already.
pub(crate) fn write(folder: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    make_folder(folder)?;
    let data = folder.join("..data");
    if same(&data, files) {
        return Ok(false);
    }
    let now = Timestamp::now();
    let version = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let target = folder.join(&version);
    if let Err(error) = write_version(&target, files, group) {
        // It is tried again: half a version each time would fill what is full already.
        let _ = fs::remove_dir_all(&target);
        return Err(error);
    }
    let old = fs::read_link(&data).ok();
    let link = folder.join("..data_tmp");
    let _ = fs::remove_file(&link);
    symlink(&version, &link)?;
    fs::rename(&link, &data)?;
    let tops: std::collections::BTreeSet<&str> =
        files.keys().map(|path| path.split('/').next().unwrap_or_default()).collect();
    for name in &tops {
        let visible = folder.join(name);
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(name), &visible)?;
        }
    }
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        let _ = fs::remove_dir_all(folder.join(old));
    }
    Ok(true)
}

fn write_version(target: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    make_folder(target)?;
    for (path, file) in files {
        let full = target.join(path);
        let folders: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        for folder in folders.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            make_folder(&target.join(folder))?;
        }
        fs::write(&full, &file.bytes)?;
        // The pod's group may read what its owner may.
        let bits = if group.is_some() { file.mode | 0o440 } else { file.mode };
        fs::set_permissions(&full, fs::Permissions::from_mode(bits))?;
        if group.is_some() {
            chown(&full, None, group)?;
        }
    }
    Ok(())
}

/// A folder for all users of a pod, whatever the umask.
fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn same(data: &Path, files: &Files) -> bool {
    fn collect(root: &Path, below: &Path, found: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
        for entry in fs::read_dir(below)? {
            let path = entry?.path();
            if path.is_dir() {
                collect(root, &path, found)?;
            } else if let Ok(name) = path.strip_prefix(root) {
                found.insert(name.display().to_string(), fs::read(&path)?);
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    collect(data, data, &mut found).is_ok()
        && found.len() == files.len()
        && files.iter().all(|(path, file)| found.get(path) == Some(&file.bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Objects;
    impl Lookup for Objects {
        fn config_map(&self, name: &str) -> Option<ConfigMap> {
            (name == "cm").then(|| {
                serde_json::from_value(json!({"metadata": {}, "data": {"a": "1", "b": "2"}})).unwrap()
            })
        }
        fn secret(&self, _: &str) -> Option<Secret> {
            None
        }
    }

    fn files(volume: serde_json::Value) -> Result<Files, String> {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"labels": {"x": "y"}}, "spec": {"containers": []}}))
                .unwrap();
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let tokens = Tokens::from([(
            ("v".to_owned(), "token".to_owned()),
            Token { text: "jwt".to_owned(), renew_at: Timestamp::UNIX_EPOCH },
        )]);
        match source(&pod, &volume, &Facts::default(), &Objects, &tokens)? {
            Source::Files(files) => Ok(files),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn projected_volumes_gather_all_sources() {
        let files = files(json!({"name": "v", "projected": {"defaultMode": 0o400, "sources": [
            {"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "cm", "items": [{"key": "a", "path": "sub/a", "mode": 0o600}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"secret": {"name": "none", "optional": true}}
        ]}}))
        .unwrap();
        assert_eq!(files["token"], File { bytes: b"jwt".to_vec(), mode: 0o400 });
        assert_eq!(files["sub/a"], File { bytes: b"1".to_vec(), mode: 0o600 });
        assert_eq!(files["labels"].bytes, b"x=\"y\"");
    }

    #[test]
    fn what_is_missing_or_leads_out_is_refused() {
        assert!(
            files(json!({"name": "v", "secret": {"secretName": "s"}})).unwrap_err().contains("not found")
        );
        let key = json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}});
        assert!(files(key).unwrap_err().contains("non-existent key: z"));
        let up = json!({"name": "v", "configMap": {"name": "cm", "items": [{"key": "a", "path": "../a"}]}});
        assert!(files(up).is_err());
        assert!(files(json!({"name": "v", "nfs": {"server": "s", "path": "/"}})).is_err());
    }

    #[test]
    fn secrets_and_tokens_stay_off_the_disk() {
        let secret = |value| is_secret(&serde_json::from_value::<Volume>(value).unwrap());
        assert!(secret(json!({"name": "v", "secret": {"secretName": "s"}})));
        assert!(secret(json!({"name": "v", "projected": {"sources": []}})));
        assert!(!secret(json!({"name": "v", "configMap": {"name": "c"}})));
        assert!(!secret(json!({"name": "v", "emptyDir": {}})));
    }

    #[test]
    fn tokens_are_renewed_well_before_they_expire() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        assert_eq!(renew_at(at(0), at(3600)), at(2880));
        assert_eq!(renew_at(at(100), at(700)), at(580));
        assert_eq!(renew_at(at(0), at(365 * 86_400)), at(86_400), "a day at the latest");
        assert!(renew_at(at(10), at(0)) < at(10), "at once, if it has expired already");
    }

    #[test]
    fn a_token_is_replaced_when_it_is_due_and_the_others_stay() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "volumes": [
            {"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "short", "expirationSeconds": 600}},
                {"serviceAccountToken": {"path": "long", "audience": "x"}}
            ]}}
        ]}}))
        .unwrap();
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let mut tokens = Tokens::new();
        let due = |tokens: &Tokens, now| -> Vec<String> {
            due_tokens(&pod, tokens, now).into_iter().map(|wish| wish.path).collect()
        };
        assert_eq!(due(&tokens, at(0)), ["short", "long"]);
        for (path, expires) in [("short", 600), ("long", 3600)] {
            let token = Token { text: path.to_owned(), renew_at: renew_at(at(0), at(expires)) };
            tokens.insert(("v".to_owned(), path.to_owned()), token);
        }
        assert_eq!(due(&tokens, at(479)), [""; 0]);
        assert_eq!(due(&tokens, at(480)), ["short"], "two minutes before it expires");
    }

    #[test]
    fn the_pods_group_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::from([("a".to_owned(), File { bytes: Vec::new(), mode: 0o400 })]);
        write(folder.path(), &files, Some(1234)).unwrap();
        let found = fs::metadata(folder.path().join("a")).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o440);
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&found), 1234);
    }

    #[test]
    fn files_are_swapped_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let set = |pairs: &[(&str, &str)]| -> Files {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), File { bytes: v.as_bytes().to_vec(), mode: 0o640 }))
                .collect()
        };
        assert!(write(folder.path(), &set(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert!(!write(folder.path(), &set(&[("a", "1"), ("d/b", "2")]), None).unwrap(), "unchanged");
        assert_eq!(fs::read_to_string(folder.path().join("d/b")).unwrap(), "2");
        let before = fs::read_link(folder.path().join("..data")).unwrap();
        assert!(write(folder.path(), &set(&[("a", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(folder.path().join("d")).is_err(), "removed keys disappear");
        assert!(!folder.path().join(before).exists(), "old versions are removed");
        assert_eq!(fs::metadata(folder.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
