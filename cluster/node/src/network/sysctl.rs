//! Settings of the kernel that belong to a pod's network and ipc namespaces (`securityContext.sysctls`).

use std::io;

use k8s_openapi::api::core::v1::Pod;

/// Those that touch nothing but the pod, as Kubernetes lists them.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// With dots.
    name: String,
    value: String,
}

impl Sysctl {
    /// Those of a pod.
    ///
    /// # Errors
    /// The first one that is not the pod's alone, with what is wrong about it.
    pub fn of(pod: &Pod) -> Result<Vec<Self>, String> {
        let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let wanted = context.into_iter().flat_map(|context| context.sysctls.iter().flatten());
        let one = |(place, wanted): (usize, &k8s_openapi::api::core::v1::Sysctl)| {
            let name = wanted.name.replace('/', ".");
            if !SAFE.contains(&name.as_str()) {
                return Err(format!(
                    "spec.securityContext.sysctls[{place}].name: forbidden sysctl: {:?}: it is not the pod's alone; possible are {}",
                    wanted.name,
                    SAFE.join(", ")
                ));
            }
            Ok(Self { name, value: wanted.value.clone() })
        };
        wanted.enumerate().map(one).collect()
    }

    /// Sets it in the namespaces of the calling thread.
    pub(super) fn set(&self) -> io::Result<()> {
        std::fs::write(format!("/proc/sys/{}", self.name.replace('.', "/")), &self.value)
            .map_err(|error| io::Error::new(error.kind(), format!("{:?}: {error}", self.value)))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_the_pods_alone() {
        let of = |name: &str| {
            let sysctls =
                json!([{"name": "net.ipv4.tcp_fin_timeout", "value": "31"}, {"name": name, "value": "1"}]);
            let pod = json!({"spec": {"containers": [], "securityContext": {"sysctls": sysctls}}});
            Sysctl::of(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(of("net/ipv4/tcp_syncookies").unwrap()[1].name, "net.ipv4.tcp_syncookies");
        for bad in ["kernel.msgmax", "net.ipv4.tcp_syncookies/../../kernel/panic", ""] {
            let refused = of(bad).unwrap_err();
            assert!(
                refused.starts_with("spec.securityContext.sysctls[1].name: forbidden sysctl"),
                "{refused}"
            );
        }
        assert_eq!(Sysctl::of(&Pod::default()), Ok(Vec::new()));
    }
}
