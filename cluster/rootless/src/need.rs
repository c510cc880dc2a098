//! Whether namespaces are needed, and what stands in their way.

/// The capabilities without which no pod runs: CAP_NET_ADMIN and CAP_SYS_ADMIN.
const NEEDED: u64 = (1 << 12) | (1 << 21);

/// Whether the process whose `/proc/self/status` this is lacks what pods need.
pub(crate) fn lacks_privilege(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0);
    effective & NEEDED != NEEDED
}

/// The settings that decide about user namespaces; None where the kernel has no such file.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// `user.max_user_namespaces`.
    pub(crate) max: Option<String>,
    /// `kernel.unprivileged_userns_clone` (Debian).
    pub(crate) unprivileged: Option<String>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later).
    pub(crate) apparmor: Option<String>,
}

impl Settings {
    pub(crate) fn read() -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok();
        Self {
            max: read("user/max_user_namespaces"),
            unprivileged: read("kernel/unprivileged_userns_clone"),
            apparmor: read("kernel/apparmor_restrict_unprivileged_userns"),
        }
    }

    /// What makes the kernel refuse, and the mend; None when nothing is known to.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let is = |value: &Option<String>, wanted: &str| value.as_deref().map(str::trim) == Some(wanted);
        if self.max.is_none() {
            return Some("this kernel has none (CONFIG_USER_NS); run as root".into());
        }
        if is(&self.max, "0") {
            return Some(
                "they are turned off; `sysctl user.max_user_namespaces=15000`, or run as root".into(),
            );
        }
        if is(&self.unprivileged, "0") {
            return Some(
                "only root may make them; `sysctl kernel.unprivileged_userns_clone=1`, or run as root".into(),
            );
        }
        is(&self.apparmor, "1").then(|| {
            "AppArmor forbids them to programs without a profile; `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or run as root"
                .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_needs_no_namespaces_and_a_user_does() {
        assert!(!lacks_privilege("Name:\tebb\nCapEff:\t000001fffeffffff\n"));
        assert!(lacks_privilege("Name:\tebb\nCapEff:\t0000000000000000\n"));
        // As in a container that may make network devices but not mount.
        assert!(lacks_privilege("CapEff:\t0000000000001000\n"));
    }

    #[test]
    fn each_obstacle_names_its_mend() {
        let allowed = Settings { max: Some("96365\n".into()), ..Settings::default() };
        assert_eq!(allowed.obstacle(), None);
        let off = Settings { max: Some("0\n".into()), ..Settings::default() };
        assert!(off.obstacle().unwrap().contains("user.max_user_namespaces=15000"));
        let debian = Settings { unprivileged: Some("0\n".into()), max: Some("9\n".into()), apparmor: None };
        assert!(debian.obstacle().unwrap().contains("unprivileged_userns_clone=1"));
        let ubuntu = Settings { apparmor: Some("1\n".into()), max: Some("9\n".into()), unprivileged: None };
        assert!(ubuntu.obstacle().unwrap().contains("apparmor_restrict"));
        assert!(Settings::default().obstacle().unwrap().contains("CONFIG_USER_NS"));
    }
}
