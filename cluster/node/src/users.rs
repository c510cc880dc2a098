//! Who an image's `user` is: names are looked up in the image's own passwd(5) and group(5) files.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use crate::spec::User;

/// The account files of an image, as text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them from unpacked layers, top first. A whiteout (a device 0/0) hides what is below.
    pub(crate) fn read(layers: &[PathBuf]) -> Self {
        let find = |name: &str| {
            for layer in layers {
                let path = layer.join("etc").join(name);
                if let Ok(found) = fs::symlink_metadata(&path) {
                    if found.file_type().is_char_device() || found.len() > 4 << 20 {
                        return String::new();
                    }
                    // A symbolic link would lead out of the image.
                    return if found.is_file() {
                        fs::read_to_string(path).unwrap_or_default()
                    } else {
                        String::new()
                    };
                }
            }
            String::new()
        };
        Self { passwd: find("passwd"), group: find("group") }
    }

    /// Resolves `name`, `uid`, `name:group`, `uid:gid`. An empty text is root.
    pub(crate) fn resolve(&self, text: &str) -> Result<User, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
            fields.len() >= 4 && (fields[0] == user || (user.parse::<u32>().is_ok() && fields[2] == user))
        });
        let uid = match (user.parse::<u32>(), &entry) {
            (Ok(uid), _) => uid,
            (Err(_), Some(fields)) => {
                fields[2].parse().map_err(|_| format!("user {user:?}: bad line in /etc/passwd"))?
            }
            (Err(_), None) => {
                return Err(format!("unable to find user {user}: no matching entries in passwd file"));
            }
        };
        let gid = match group.filter(|group| !group.is_empty()) {
            None => entry.as_ref().and_then(|fields| fields[3].parse().ok()).unwrap_or(0),
            Some(group) => match group.parse::<u32>() {
                Ok(gid) => gid,
                Err(_) => self
                    .group
                    .lines()
                    .map(|line| line.split(':').collect::<Vec<_>>())
                    .find(|fields| fields.len() >= 3 && fields[0] == group)
                    .and_then(|fields| fields[2].parse().ok())
                    .ok_or_else(|| {
                        format!("unable to find group {group}: no matching entries in group file")
                    })?,
            },
        };
        // Memberships count only when the primary group is not given, as container engines do it.
        let groups = match (group, entry.as_ref().map(|fields| fields[0])) {
            (None, Some(name)) => self.memberships(name, gid),
            _ => Vec::new(),
        };
        Ok(User { uid, gid, groups })
    }

    fn memberships(&self, name: &str, primary: u32) -> Vec<u32> {
        self.group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|fields| fields.len() >= 4 && fields[3].split(',').any(|member| member == name))
            .filter_map(|fields| fields[2].parse().ok())
            .filter(|gid| *gid != primary)
            .collect()
    }

    /// The home folder of a user, for HOME; `/` when unknown.
    pub(crate) fn home(&self, uid: u32) -> String {
        let uid = uid.to_string();
        self.passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() >= 6 && fields[2] == uid)
            .map_or_else(|| "/".to_owned(), |fields| fields[5].to_owned())
    }
}

/// Whether the user part of an image's `user` is a number, or empty (root).
pub(crate) fn is_numeric(text: &str) -> bool {
    let user = text.split(':').next().unwrap_or_default();
    user.is_empty() || user.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n".to_owned(),
            group: "web:x:33:\nssl:x:104:web,other\n".to_owned(),
        }
    }

    #[test]
    fn names_and_numbers() {
        let user = |uid, gid, groups: &[u32]| Ok(User { uid, gid, groups: groups.to_vec() });
        assert_eq!(accounts().resolve("web"), user(33, 33, &[104]));
        assert_eq!(accounts().resolve("33"), user(33, 33, &[104]));
        assert_eq!(accounts().resolve("web:ssl"), user(33, 104, &[]));
        assert_eq!(accounts().resolve("65532:65532"), user(65532, 65532, &[]));
        assert_eq!(accounts().resolve(""), user(0, 0, &[]));
        assert!(accounts().resolve("nobody").is_err());
        assert_eq!(accounts().home(33), "/srv");
    }

    #[test]
    fn a_whiteout_of_a_link_is_not_followed() {
        let layer = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", layer.path().join("etc/passwd")).unwrap();
        assert_eq!(Accounts::read(&[layer.path().to_owned()]).passwd, "");
    }
}
