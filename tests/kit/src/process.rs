//! `ebb up` as a child process on free ports, with a folder of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{PATIENCE, run, tail};

/// A platform that this process started, and stops when it is dropped.
#[derive(Debug)]
pub struct Process {
    binary: PathBuf,
    child: Option<Child>,
    dir: tempfile::TempDir,
    ports: [u16; 3],
    bare: bool,
    user: Option<u32>,
    ready_after: Duration,
}

impl Process {
    /// Starts `BINARY up` in a new folder and waits for its line `ready`.
    pub fn start(binary: &Path) -> Result<Self> {
        Self::new(binary, false, None)
    }

    /// The same with the embedded Kubernetes only, for the platform to be installed on.
    pub fn start_bare(binary: &Path) -> Result<Self> {
        Self::new(binary, true, None)
    }

    /// The same as another user, whose the folder is; only root can.
    pub fn start_as(binary: &Path, user: u32) -> Result<Self> {
        Self::new(binary, false, Some(user))
    }

    fn new(binary: &Path, bare: bool, user: Option<u32>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ebb-test-").tempdir()?;
        let (ports, ready_after) = ([0; 3], Duration::ZERO);
        let mut binary = binary.to_path_buf();
        if user.is_some() {
            std::os::unix::fs::chown(dir.path(), user, user)?;
            // Where the user may go.
            let copy = dir.path().join("ebb");
            std::fs::copy(&binary, &copy)?;
            binary = copy;
        }
        Self { binary, child: None, dir, ports, bare, user, ready_after }.launch()
    }

    fn launch(mut self) -> Result<Self> {
        let started = Instant::now();
        let [api, gateway, registry] = self.ports;
        let mut command = Command::new(&self.binary);
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("HOME", self.dir.path()).env("TMPDIR", self.dir.path());
        }
        let mut child = command
            .args(["up", "--data-dir"])
            .arg(self.data_dir())
            .args(["--api-port", &api.to_string(), "--gateway-port", &gateway.to_string()])
            .args(["--registry-port", &registry.to_string()])
            .args(self.bare.then_some("--bare"))
            .env("EBB_LOG", std::env::var("EBB_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(self.log())?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let out = child.stdout.take().context("ebb up has no standard output")?;
        self.child = Some(child);
        let (ready, is_ready) = mpsc::channel();
        // To its end: whatever it prints later must not fill the pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.starts_with("ready") {
                    let _ = ready.send(Instant::now());
                }
            }
        });
        match is_ready.recv_timeout(PATIENCE) {
            Ok(at) => self.ready_after = at - started,
            Err(RecvTimeoutError::Disconnected) => {
                bail!("ebb up ended before it was ready:\n{}", self.log_tail(40))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("ebb up is not ready after {} s:\n{}", PATIENCE.as_secs(), self.log_tail(40))
            }
        }
        let running: Value = serde_json::from_slice(&std::fs::read(self.data_dir().join("platform.json"))?)?;
        let port =
            |name: &str| running[name].as_u64().and_then(|p| u16::try_from(p).ok()).context(name.to_string());
        self.ports = [port("api_port")?, port("gateway_port")?, port("registry_port")?];
        Ok(self)
    }

    /// Ends the process as a crash would, and starts it again on the same folder and ports.
    pub fn kill_and_restart(mut self) -> Result<Self> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        self.launch()
    }

    /// Ctrl-C, and a start on the same folder and ports.
    pub fn restart(mut self) -> Result<Self> {
        self.interrupt()?;
        self.launch()
    }

    /// Ctrl-C; it is an error when the process fails or leaves mounts behind.
    pub fn stop(mut self) -> Result<()> {
        self.interrupt()?;
        let data = self.data_dir().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let left: Vec<&str> = mounts.lines().filter(|m| m.contains(&data)).collect();
        ensure!(left.is_empty(), "mounts left behind:\n{}", left.join("\n"));
        Ok(())
    }

    fn interrupt(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "ebb up ended with {status}:\n{}", self.log_tail(40));
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("ebb up did not end within {} s of Ctrl-C:\n{}", PATIENCE.as_secs(), self.log_tail(40));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `ebb ARGS` for this platform.
    pub fn ebb(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(args).env("EBB_DATA_DIR", self.data_dir());
        run(command, None)
    }

    /// Its folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The kubeconfig it wrote.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// Where its gateway listens.
    pub fn gateway(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[1]))
    }

    /// Process id of `ebb up`; 0 when it was stopped.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// From the start of the process to its line `ready`.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The end of what it logged.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log(), lines)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("ebb.log")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.interrupt();
    }
}
