//! `config-features`: what users may do beyond the default.

use std::collections::BTreeMap;

use super::{ConfigError, Data};

/// The state of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// On, and used where the user said nothing.
    Enabled,
    /// On when the user asks for it.
    Allowed,
    /// Off.
    Disabled,
    /// For secure-pod-defaults: secure defaults, but root allowed.
    AllowRootBounded,
}

/// The flags, with their defaults.
const DEFAULTS: &[(&str, Flag)] = &[
    ("autodetect-http2", Flag::Disabled),
    ("kubernetes.containerspec-addcapabilities", Flag::Disabled),
    ("kubernetes.podspec-affinity", Flag::Disabled),
    ("kubernetes.podspec-dnsconfig", Flag::Disabled),
    ("kubernetes.podspec-dnspolicy", Flag::Disabled),
    ("kubernetes.podspec-dryrun", Flag::Allowed),
    ("kubernetes.podspec-fieldref", Flag::Disabled),
    ("kubernetes.podspec-hostaliases", Flag::Disabled),
    ("kubernetes.podspec-hostipc", Flag::Disabled),
    ("kubernetes.podspec-hostnetwork", Flag::Disabled),
    ("kubernetes.podspec-hostpid", Flag::Disabled),
    ("kubernetes.podspec-init-containers", Flag::Disabled),
    ("kubernetes.podspec-nodeselector", Flag::Disabled),
    ("kubernetes.podspec-persistent-volume-claim", Flag::Disabled),
    ("kubernetes.podspec-persistent-volume-write", Flag::Disabled),
    ("kubernetes.podspec-priorityclassname", Flag::Disabled),
    ("kubernetes.podspec-runtimeclassname", Flag::Disabled),
    ("kubernetes.podspec-schedulername", Flag::Disabled),
    ("kubernetes.podspec-securitycontext", Flag::Disabled),
    ("kubernetes.podspec-shareprocessnamespace", Flag::Disabled),
    ("kubernetes.podspec-tolerations", Flag::Disabled),
    ("kubernetes.podspec-topologyspreadconstraints", Flag::Disabled),
    ("kubernetes.podspec-volumes-csi", Flag::Disabled),
    ("kubernetes.podspec-volumes-emptydir", Flag::Enabled),
    ("kubernetes.podspec-volumes-ephemeral", Flag::Disabled),
    ("kubernetes.podspec-volumes-hostpath", Flag::Disabled),
    ("kubernetes.podspec-volumes-image", Flag::Disabled),
    ("kubernetes.podspec-volumes-mount-propagation", Flag::Disabled),
    ("multi-container", Flag::Enabled),
    ("multi-container-probing", Flag::Disabled),
    ("queueproxy.mount-podinfo", Flag::Disabled),
    ("queueproxy.resource-defaults", Flag::Disabled),
    ("secure-pod-defaults", Flag::Disabled),
    ("tag-header-based-routing", Flag::Disabled),
];

/// The state of every feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    flags: BTreeMap<&'static str, Flag>,
}

impl Default for Features {
    fn default() -> Self {
        Self { flags: DEFAULTS.iter().copied().collect() }
    }
}

impl Features {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut features = Self::default();
        let mut errors = Vec::new();
        for (key, _) in DEFAULTS {
            #[cfg(test)]
            super::READ.with(|keys| keys.borrow_mut().insert((*key).to_owned()));
            let Some(raw) = data.get(*key) else { continue };
            let flag = match raw.to_ascii_lowercase().as_str() {
                "enabled" => Flag::Enabled,
                "allowed" => Flag::Allowed,
                "disabled" => Flag::Disabled,
                "allowrootbounded" if *key == "secure-pod-defaults" => Flag::AllowRootBounded,
                _ => {
                    let message = format!("{raw:?} is not one of enabled, allowed, disabled");
                    errors.push(ConfigError { key: (*key).to_owned(), message });
                    continue;
                }
            };
            features.flags.insert(key, flag);
        }
        if errors.is_empty() { Ok(features) } else { Err(errors) }
    }

    /// The state of a feature; one that is not known is off.
    #[must_use]
    pub fn get(&self, key: &str) -> Flag {
        self.flags.get(key).copied().unwrap_or(Flag::Disabled)
    }

    /// Whether a feature is on for all.
    #[must_use]
    pub fn enabled(&self, key: &str) -> bool {
        self.get(key) == Flag::Enabled
    }

    /// Whether a user may use a feature.
    #[must_use]
    pub fn allowed(&self, key: &str) -> bool {
        self.get(key) != Flag::Disabled
    }
}
