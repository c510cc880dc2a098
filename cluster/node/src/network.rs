//! Pod networking: a network, ipc and uts namespace per pod, a veth pair to the instance's bridge, an address.
//!
//! Namespaces are held by open descriptors of this process and named to the runtime as `/proc/PID/fd/N`: no bind
//! mounts, so that a killed node leaves no namespace behind, and no device either, since a veth pair goes with the
//! namespace of one end. One thread makes them (it alone changes its own namespaces) and keeps some ready, with link
//! up and address set: a cold start then takes one from the shelf.

mod ipam;
mod netlink;
mod sysctl;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use cluster_firewall::{Family, Ruleset};
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use parking_lot::Mutex;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use ipam::Ipam;
use netlink::Netlink;

pub use sysctl::Sysctl;

/// How long a port of a pod may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// How pods are connected.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The bridge device; made with `node_ip` when it does not exist. Its name marks what belongs to this instance.
    pub bridge: String,
    /// The bridge's address, the pods' gateway, and the node's address in the API.
    pub node_ip: Ipv4Addr,
    /// Pod addresses.
    pub pod_cidr: Ipv4Net,
    /// Offset in `pod_cidr` of the first pod's address; those below belong to the node and the system.
    pub first_pod_ip: u32,
    /// The cluster's DNS server.
    pub dns_ip: Ipv4Addr,
    /// The cluster's DNS suffix, normally `cluster.local`.
    pub cluster_domain: String,
    /// How many namespaces to keep ready.
    pub pool: usize,
}

/// A pod's namespaces. Dropping it without [`Network::release`] leaks its address until the node restarts.
#[derive(Debug)]
pub struct PodNetwork {
    /// The pod's address; None on the host's network.
    pub address: Option<Ipv4Addr>,
    net: Option<File>,
    ipc: File,
    uts: Option<File>,
    device: Option<String>,
}

impl PodNetwork {
    /// A path to the network namespace for as long as this value lives; None on the host's network.
    #[must_use]
    pub fn net_path(&self) -> Option<PathBuf> {
        self.net.as_ref().map(path)
    }

    /// A path to the ipc namespace for as long as this value lives.
    #[must_use]
    pub fn ipc_path(&self) -> PathBuf {
        path(&self.ipc)
    }

    /// A path to the uts namespace for as long as this value lives; None on the host's network.
    #[must_use]
    pub fn uts_path(&self) -> Option<PathBuf> {
        self.uts.as_ref().map(path)
    }
}

/// In the network namespace of the calling thread.
fn tcp_socket(family: AddressFamily) -> io::Result<TcpSocket> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(family, SockType::Stream, flags, None)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// Why there is no network for a pod.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The range is used up.
    #[error("no free address in the pod range {0}; delete pods or use a larger range")]
    Exhausted(Ipv4Net),
    /// The kernel refused.
    #[error("{what}: {cause}")]
    Kernel {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The pod's packet rules cannot be loaded; without them it may not run.
    #[error("the pod's network policies cannot be enforced: {0}")]
    Rules(#[from] cluster_firewall::Error),
    /// A setting that is not the pod's alone.
    #[error("{0}")]
    Sysctl(String),
    /// The thread that makes namespaces has ended.
    #[error("the thread that makes pod networks has ended; restart the node")]
    Gone,
}

enum Job {
    Claim(Box<Claim>, oneshot::Sender<Result<PodNetwork, NetworkError>>),
    Host(oneshot::Sender<Result<PodNetwork, NetworkError>>),
    Release { device: Option<String>, address: Option<Ipv4Addr> },
    Enter(Box<EnterJob>),
    Close(oneshot::Sender<()>),
}

/// What a pod's namespaces are to be like.
#[derive(Debug, Default)]
pub struct Claim {
    /// The pod's host name.
    pub hostname: String,
    /// Settings of the kernel for them alone.
    pub sysctls: Vec<Sysctl>,
    /// Packet rules that are to be in force from the beginning.
    pub rules: Option<Ruleset>,
}

struct EnterJob {
    net: File,
    family: AddressFamily,
    reply: oneshot::Sender<io::Result<TcpSocket>>,
}

/// A handle to the thread that makes pod networks.
#[derive(Debug, Clone)]
pub struct Network {
    jobs: Arc<Mutex<Sender<Job>>>,
}

impl Network {
    /// Makes the bridge if there is none, removes devices a former process left on it, and starts the thread.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let (jobs, inbox) = channel();
        let (ready, started) = oneshot::channel();
        std::thread::Builder::new()
            .name("pod-networks".to_owned())
            .spawn(move || match Maker::new(config) {
                Ok(mut maker) => {
                    let _ = ready.send(Ok(()));
                    maker.run(&inbox);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|cause| NetworkError::Kernel { what: "cannot start a thread".to_owned(), cause })?;
        started.await.map_err(|_| NetworkError::Gone)??;
        Ok(Self { jobs: Arc::new(Mutex::new(jobs)) })
    }

    /// Namespaces and an address for a pod.
    pub async fn claim(&self, claim: Claim) -> Result<PodNetwork, NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Claim(Box::new(claim), reply))?;
        answer.await.map_err(|_| NetworkError::Gone)?
    }

    /// Puts packet rules in the place of those that a pod has; none opens it.
    pub async fn enforce(&self, network: &PodNetwork, rules: Option<Ruleset>) -> Result<(), NetworkError> {
        let Some(net) = &network.net else { return Ok(()) };
        let net = net.try_clone().map_err(kernel("cannot duplicate a descriptor"))?;
        let (reply, answer) = oneshot::channel();
        let work = move || {
            let entered = setns(&net, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| kernel("cannot enter a pod's network namespace")(errno.into()));
            entered.and_then(|()| match rules {
                Some(rules) => Ok(cluster_firewall::load(&rules)?),
                None => Ok(cluster_firewall::remove(crate::policy::TABLE, Family::Inet)?),
            })
        };
        // A thread of its own, which need not find its way back, and keeps no pod that is being started waiting.
        std::thread::Builder::new()
            .name("pod-rules".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || reply.send(work()))
            .map_err(kernel("cannot start a thread"))?;
        answer.await.map_err(|_| NetworkError::Gone)?
    }

    /// Namespaces for a pod on the host's network.
    pub async fn claim_host(&self) -> Result<PodNetwork, NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Host(reply))?;
        answer.await.map_err(|_| NetworkError::Gone)?
    }

    /// Removes a pod's device and frees its address, once. The namespaces go with the last process and the last handle.
    pub fn release(&self, network: &PodNetwork) {
        let _ = self.send(Job::Release { device: network.device.clone(), address: network.address });
    }

    /// Connects to a port on the loopback address inside a pod, where port-forward goes: of IPv4, or else of IPv6.
    pub async fn connect_inside(&self, network: &PodNetwork, port: u16) -> io::Result<TcpStream> {
        let mut first = None;
        for (family, address) in [
            (AddressFamily::Inet, IpAddr::from(Ipv4Addr::LOCALHOST)),
            (AddressFamily::Inet6, IpAddr::from(Ipv6Addr::LOCALHOST)),
        ] {
            let connected = async {
                let socket = self.socket_inside(network, family).await?;
                let connecting = socket.connect((address, port).into());
                tokio::time::timeout(CONNECT_WITHIN, connecting)
                    .await
                    .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            };
            match connected.await {
                Ok(stream) => return Ok(stream),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
    }

    /// A socket stays in the namespace it was made in: only its making needs the thread that goes there, so that a connection that hangs
    /// holds nobody up.
    async fn socket_inside(&self, network: &PodNetwork, family: AddressFamily) -> io::Result<TcpSocket> {
        let Some(net) = &network.net else { return tcp_socket(family) };
        let (reply, answer) = oneshot::channel();
        let job = Job::Enter(Box::new(EnterJob { net: net.try_clone()?, family, reply }));
        self.send(job).map_err(io::Error::other)?;
        answer.await.map_err(io::Error::other)?
    }

    /// Removes the shelf's devices after all earlier releases, and the bridge if it was made here.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Job::Close(reply)).is_ok() {
            let _ = answer.await;
        }
    }

    fn send(&self, job: Job) -> Result<(), NetworkError> {
        self.jobs.lock().send(job).map_err(|_| NetworkError::Gone)
    }
}

/// The thread's own state. Its host sockets and files are of the namespaces it started in.
struct Maker {
    config: NetworkConfig,
    host: Netlink,
    host_net: File,
    host_ipc: File,
    host_uts: File,
    bridge: u32,
    /// The bridge did not exist before and goes with us.
    made_bridge: bool,
    ipam: Ipam,
    serial: u32,
    shelf: Vec<PodNetwork>,
    /// The shelf could not be filled; not before this.
    fill_at: Instant,
}

fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |cause| NetworkError::Kernel { what, cause }
}

fn own(kind: &str) -> Result<File, NetworkError> {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path).map_err(kernel(format!("cannot open {path}")))
}

impl Maker {
    fn new(config: NetworkConfig) -> Result<Self, NetworkError> {
        let mut host = Netlink::open().map_err(kernel("cannot open a netlink socket"))?;
        let links = host.links().map_err(kernel("cannot list network devices"))?;
        let existing = links.iter().find(|link| link.name == config.bridge).map(|link| link.index);
        let bridge = match existing {
            Some(index) => index,
            None => make_bridge(&mut host, &config)?,
        };
        for stale in links.iter().filter(|link| link.controller == Some(bridge)) {
            debug!(device = stale.name, "removing a device of a former process");
            let _ = host.delete(&stale.name);
        }
        let ipam = Ipam::new(config.pod_cidr, config.first_pod_ip);
        // Teardown of devices is asynchronous: names must not come again at once, also not after a restart.
        let serial = std::process::id() << 8;
        Ok(Self {
            host,
            host_net: own("net")?,
            host_ipc: own("ipc")?,
            host_uts: own("uts")?,
            bridge,
            made_bridge: existing.is_none(),
            ipam,
            serial,
            shelf: Vec::new(),
            fill_at: Instant::now(),
            config,
        })
    }

    fn run(&mut self, inbox: &Receiver<Job>) {
        loop {
            // Filling the shelf waits for a quiet moment: a start in progress needs the processor more.
            let job = if self.shelf.len() < self.config.pool {
                let quiet = Duration::from_millis(if self.shelf.is_empty() { 5 } else { 100 });
                match inbox.recv_timeout(quiet.max(self.fill_at.saturating_duration_since(Instant::now()))) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                match inbox.recv() {
                    Ok(job) => Some(job),
                    Err(_) => break,
                }
            };
            match job {
                Some(Job::Claim(claim, reply)) => {
                    let network = if self.shelf.is_empty() { self.make() } else { Ok(self.shelf.remove(0)) };
                    let network = network.and_then(|network| match self.equip(&network, &claim) {
                        Ok(()) => Ok(network),
                        Err(error) => {
                            self.release(network.device.as_deref(), network.address);
                            Err(error)
                        }
                    });
                    if let Err(Ok(unclaimed)) = reply.send(network) {
                        self.release(unclaimed.device.as_deref(), unclaimed.address);
                    }
                }
                Some(Job::Host(reply)) => {
                    let _ = reply.send(self.make_host());
                }
                Some(Job::Release { device, address }) => self.release(device.as_deref(), address),
                Some(Job::Enter(job)) => {
                    let _ = job.reply.send(self.socket(&job.net, job.family));
                }
                Some(Job::Close(reply)) => {
                    self.config.pool = 0;
                    self.empty_shelf();
                    if self.made_bridge {
                        let _ = self.host.delete(&self.config.bridge);
                    }
                    let _ = reply.send(());
                }
                None => match self.make() {
                    Ok(network) => self.shelf.push(network),
                    Err(error) => {
                        warn!(%error, "cannot prepare a pod network ahead of time");
                        self.fill_at = Instant::now() + Duration::from_secs(1);
                    }
                },
            }
        }
        self.empty_shelf();
    }

    fn empty_shelf(&mut self) {
        for network in std::mem::take(&mut self.shelf) {
            self.release(network.device.as_deref(), network.address);
        }
    }

    fn make(&mut self) -> Result<PodNetwork, NetworkError> {
        let address = self.ipam.take().ok_or(NetworkError::Exhausted(self.config.pod_cidr))?;
        let made = self.make_at(address);
        if made.is_err() {
            self.ipam.free(address);
        }
        made
    }

    fn make_at(&mut self, address: Ipv4Addr) -> Result<PodNetwork, NetworkError> {
        self.serial = self.serial.wrapping_add(1);
        let mut device = format!("{}-{:x}", self.config.bridge, self.serial & 0x00ff_ffff);
        device.truncate(15);
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
            .map_err(|errno| kernel("cannot make namespaces (CAP_SYS_ADMIN is needed)")(errno.into()))?;
        let inside = self.configure(address, &device);
        self.return_home();
        inside
    }

    /// Runs in the new namespaces; `self.host` is a socket of the old one.
    fn configure(&mut self, address: Ipv4Addr, device: &str) -> Result<PodNetwork, NetworkError> {
        let (net, ipc, uts) = (own("net")?, own("ipc")?, own("uts")?);
        let octets = address.octets();
        let mac = [0x0a, 0x58, octets[0], octets[1], octets[2], octets[3]];
        self.host
            .create_veth(device, self.bridge, net.as_raw_fd(), mac)
            .map_err(kernel(format!("cannot make the device {device} on {}", self.config.bridge)))?;
        let mut inside = Netlink::open().map_err(kernel("cannot open a netlink socket in the pod"))?;
        let prefix = self.config.pod_cidr.prefix_len();
        inside
            .up(netlink::LO)
            .and_then(|()| inside.add_address(netlink::ETH0, address, prefix))
            .and_then(|()| inside.up(netlink::ETH0))
            .and_then(|()| inside.default_route(netlink::ETH0, self.config.node_ip))
            .map_err(kernel(format!("cannot give the pod its address {address}")))?;
        // As containerd does: a process that is not root may listen on port 80 and ping.
        for (name, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")] {
            if let Err(error) = std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value) {
                debug!(%error, name, "cannot set a sysctl");
            }
        }
        Ok(PodNetwork {
            address: Some(address),
            net: Some(net),
            ipc,
            uts: Some(uts),
            device: Some(device.to_owned()),
        })
    }

    /// Sets the host name, which belongs to the pod and not to one of its containers, settings of the kernel, and packet rules.
    fn equip(&self, network: &PodNetwork, claim: &Claim) -> Result<(), NetworkError> {
        let Some(uts) = &network.uts else { return Ok(()) };
        let hostname = claim.hostname.as_str();
        let named = setns(uts, CloneFlags::CLONE_NEWUTS).and_then(|()| nix::unistd::sethostname(hostname));
        if let Err(error) = named {
            warn!(%error, hostname, "cannot set a pod's host name");
        }
        let equipped = match &network.net {
            Some(net) if claim.rules.is_some() || !claim.sysctls.is_empty() => {
                setns(net, CloneFlags::CLONE_NEWNET)
                    .and_then(|()| setns(&network.ipc, CloneFlags::CLONE_NEWIPC))
                    .map_err(|errno| kernel("cannot enter a pod's namespaces")(errno.into()))
                    .and_then(|()| set(&claim.sysctls))
                    .and_then(|()| match &claim.rules {
                        Some(rules) => Ok(cluster_firewall::make(rules)?),
                        None => Ok(()),
                    })
            }
            _ => Ok(()),
        };
        self.return_home();
        equipped
    }

    fn make_host(&mut self) -> Result<PodNetwork, NetworkError> {
        unshare(CloneFlags::CLONE_NEWIPC).map_err(|errno| {
            kernel("cannot make an ipc namespace (CAP_SYS_ADMIN is needed)")(errno.into())
        })?;
        let ipc = own("ipc");
        self.return_home();
        Ok(PodNetwork { address: None, net: None, ipc: ipc?, uts: None, device: None })
    }

    fn return_home(&self) {
        for (file, kind) in [
            (&self.host_net, CloneFlags::CLONE_NEWNET),
            (&self.host_ipc, CloneFlags::CLONE_NEWIPC),
            (&self.host_uts, CloneFlags::CLONE_NEWUTS),
        ] {
            setns(file, kind).expect("a thread may return to the namespaces it came from");
        }
    }

    fn socket(&self, net: &File, family: AddressFamily) -> io::Result<TcpSocket> {
        setns(net, CloneFlags::CLONE_NEWNET)?;
        let socket = tcp_socket(family);
        self.return_home();
        socket
    }

    fn release(&mut self, device: Option<&str>, address: Option<Ipv4Addr>) {
        if let Some(device) = device {
            let _ = self.host.delete(device);
        }
        if let Some(address) = address {
            self.ipam.free(address);
        }
    }
}

fn set(sysctls: &[Sysctl]) -> Result<(), NetworkError> {
    sysctls.iter().try_for_each(|sysctl| {
        sysctl.set().map_err(kernel(format!("cannot set the pod's sysctl {}", sysctl.name())))
    })
}

fn make_bridge(host: &mut Netlink, config: &NetworkConfig) -> Result<u32, NetworkError> {
    let name = &config.bridge;
    host.create_bridge(name)
        .map_err(kernel(format!("cannot make the bridge {name} (CAP_NET_ADMIN is needed)")))?;
    let links = host.links().map_err(kernel("cannot list network devices"))?;
    let index = links
        .iter()
        .find(|link| &link.name == name)
        .map(|link| link.index)
        .ok_or_else(|| kernel("the new bridge is gone")(io::ErrorKind::NotFound.into()))?;
    host.add_address(index, config.node_ip, config.pod_cidr.prefix_len())
        .and_then(|()| host.up(index))
        .map_err(kernel(format!("cannot give {name} the address {}", config.node_ip)))?;
    Ok(index)
}
