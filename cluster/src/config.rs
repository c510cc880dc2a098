//! What a caller decides.

use std::path::PathBuf;

use cluster_rootless::Door;

/// What a cluster needs to know.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Where all state is kept: objects, keys, images, pods' volumes and logs. One cluster at a time.
    pub data_dir: PathBuf,
    /// The API server's port on 127.0.0.1; 0 takes a free one.
    pub api_port: u16,
    /// The image registry's port on 127.0.0.1 and on the node's address; 0 takes a free one.
    pub registry_port: u16,
    /// What `/version` says, such as `v1.35.0`.
    pub git_version: String,
    /// The program whose main function calls `cluster_node::runtime::helper_main` when asked to; normally `/proc/self/exe`.
    pub helper_exe: PathBuf,
    /// The one node's name.
    pub node_name: String,
    /// The cluster's DNS suffix.
    pub cluster_domain: String,
    /// Names of network devices begin with it: the bridge is it and N. At most five letters.
    pub device_prefix: String,
    /// The N of the network; none takes that of the last start in this data directory, or a free one.
    pub network: Option<u8>,
    /// Whether the API server acknowledges a write only when it is on disk, or already when it is with the kernel (which outlives
    /// the process, but not a power cut).
    pub durable: bool,
    /// Further names and addresses in the API server's certificate.
    pub extra_sans: Vec<String>,
    /// How many processes start containers; each can start many side by side.
    pub helpers: usize,
    /// Pod networks that are kept ready.
    pub network_pool: usize,
    /// The way to the machine's loopback and to the world, where this process has a network of its own.
    pub door: Option<Door>,
}

impl ClusterConfig {
    /// A cluster in `data_dir` with free ports; its helpers are this program.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            api_port: 0,
            registry_port: 0,
            git_version: "v1.35.0".to_owned(),
            helper_exe: PathBuf::from("/proc/self/exe"),
            node_name: "node".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            device_prefix: "pods".to_owned(),
            network: None,
            durable: true,
            extra_sans: Vec::new(),
            helpers: 2,
            network_pool: 8,
            door: None,
        }
    }
}
