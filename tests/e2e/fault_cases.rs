//! What breaks the platform itself; each case has one of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Case;
use crate::harness::Platform;
use testkit::http;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("fault::kill_nine_of_ebb_up_keeps_everything", kill_nine),
    ("fault::clean_stop_leaves_nothing", clean_stop),
    ("fault::what_is_interrupted_leaves_nothing", interrupted),
    ("rootless::ebb_up_as_another_user", rootless),
    ("rootless::a_killed_platform_takes_everything_with_it", rootless_killed),
];

fn kill_nine(_: &Platform) -> Result<()> {
    let p = Platform::start()?;
    let ns = "default";
    let service = crate::harness::service_manifest("survivor", p.image(), &[], &[("NAME", "still here")]);
    p.apply(ns, &service.to_string())?;
    p.kubectl(&["wait", "ksvc/survivor", "--for=condition=Ready", "--timeout=90s"])?;
    p.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?;
    let uid = p.get(ns, "ksvc/survivor")?["metadata"]["uid"].clone();
    // Acknowledged writes up to the very last moment.
    for i in 0..20 {
        p.kubectl(&["create", "configmap", &format!("last-{i}")])?;
    }
    let p = p.kill_and_restart()?;
    ensure!(p.get(ns, "ksvc/survivor")?["metadata"]["uid"] == uid, "another Service came back");
    ensure!(p.get(ns, "configmap/kept")?["data"]["a"] == "b", "the ConfigMap lost its data");
    let left = p.kubectl(&["get", "configmaps", "-o", "name"])?;
    ensure!(
        left.lines().filter(|l| l.contains("/last-")).count() == 20,
        "acknowledged writes are lost: {left}"
    );
    let url = p.get(ns, "ksvc/survivor")?["status"]["url"].as_str().context("no URL")?.to_string();
    let host = crate::harness::host_of(&url)?;
    let answer = http::get(p.gateway(), &host, "/")?;
    ensure!(answer.status == 200 && answer.body == "still here\n", "{answer:?}");
    p.stop()
}

fn clean_stop(_: &Platform) -> Result<()> {
    let p = Platform::start()?;
    let service = crate::harness::service_manifest(
        "running",
        p.image(),
        &[("autoscaling.knative.dev/min-scale", "1")],
        &[("NAME", "again")],
    );
    p.apply("default", &service.to_string())?;
    p.kubectl(&["wait", "ksvc/running", "--for=condition=Ready", "--timeout=90s"])?;
    let p = p.restart()?;
    let url = p.get("default", "ksvc/running")?["status"]["url"].as_str().context("no URL")?.to_string();
    let answer = http::get(p.gateway(), &crate::harness::host_of(&url)?, "/")?;
    ensure!(answer.status == 200 && answer.body == "again\n", "{answer:?}");
    let ip = p.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].status.podIP}"])?;
    let network = ip.split('.').nth(1).context("the pod has no address")?;
    let bridge = Path::new("/sys/class/net").join(format!("ebb{network}"));
    ensure!(bridge.exists(), "there is no {}", bridge.display());
    let processes = below(p.own()?.pid())?;
    ensure!(processes.iter().any(|p| p.line.contains("testapp")), "the app is no process: {processes:?}");
    p.stop()?;
    all_end(&processes)?;
    ensure!(!bridge.exists(), "{} is left behind", bridge.display());
    Ok(())
}

/// A process, as long as it is the same one: numbers are given away again.
#[derive(Debug)]
struct Seen {
    pid: u32,
    started: String,
    line: String,
}

impl Seen {
    /// Itself and its parent.
    fn of(pid: u32) -> Option<(Self, u32)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may have any character in it.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        Some((Self { pid, started: (*fields.get(19)?).to_owned(), line }, fields.get(1)?.parse().ok()?))
    }

    fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|(now, _)| now.started == self.started)
    }
}

/// A process and everything that it and its children have started.
fn below(root: u32) -> Result<Vec<Seen>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let all: BTreeMap<u32, (Seen, u32)> = pids.filter_map(|pid| Some((pid, Seen::of(pid)?))).collect();
    let parent = |pid: &u32| all.get(pid).map(|(_, parent)| *parent);
    let wanted: BTreeSet<u32> = all
        .keys()
        .filter(|pid| std::iter::successors(Some(**pid), |pid| parent(pid)).any(|pid| pid == root))
        .copied()
        .collect();
    Ok(all.into_iter().filter(|(pid, _)| wanted.contains(pid)).map(|(_, (seen, _))| seen).collect())
}

/// All of them are gone; those that end because another did are allowed a moment.
fn all_end(processes: &[Seen]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let left: Vec<&Seen> = processes.iter().filter(|p| p.is_alive()).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(5), "processes left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A user who owns nothing but the platform's folder.
const USER: u32 = 54_321;

fn rootless(_: &Platform) -> Result<()> {
    let p = Platform::start_as(USER)?;
    let service = crate::harness::service_manifest("own", p.image(), &[], &[("NAME", "as a user")]);
    p.apply("default", &service.to_string())?;
    p.kubectl(&["wait", "ksvc/own", "--for=condition=Ready", "--timeout=90s"])?;
    let url = p.get("default", "ksvc/own")?["status"]["url"].as_str().context("no URL")?.to_string();
    let host = crate::harness::host_of(&url)?;
    let answer = http::get(p.gateway(), &host, "/")?;
    ensure!(answer.status == 200 && answer.body == "as a user\n", "{answer:?}");
    // The folder is the user's, and nothing of it is anybody else's.
    let kubeconfig = std::fs::metadata(p.own()?.kubeconfig())?;
    ensure!(std::os::unix::fs::MetadataExt::uid(&kubeconfig) == USER, "the kubeconfig is not the user's");
    let p = p.restart()?;
    let answer = http::get(p.gateway(), &host, "/")?;
    ensure!(answer.status == 200 && answer.body == "as a user\n", "after a restart: {answer:?}");
    let processes = below(p.own()?.pid())?;
    ensure!(processes.iter().any(|p| p.line.contains("testapp")), "the app is no process: {processes:?}");
    p.stop()?;
    all_end(&processes)
}

fn rootless_killed(_: &Platform) -> Result<()> {
    let p = Platform::start_as(USER)?;
    let kept = [("autoscaling.knative.dev/min-scale", "1")];
    let service = crate::harness::service_manifest("survivor", p.image(), &kept, &[("NAME", "still here")]);
    p.apply("default", &service.to_string())?;
    p.kubectl(&["wait", "ksvc/survivor", "--for=condition=Ready", "--timeout=90s"])?;
    let url = p.get("default", "ksvc/survivor")?["status"]["url"].as_str().context("no URL")?.to_string();
    // The next start meets nothing of the last one: neither the lock of the folder nor ports are still held.
    let processes = below(p.own()?.pid())?;
    ensure!(processes.iter().any(|p| p.line.contains("testapp")), "the app is no process: {processes:?}");
    let owner = std::fs::metadata(format!("/proc/{}", p.own()?.pid()))?;
    ensure!(std::os::unix::fs::MetadataExt::uid(&owner) == USER, "it does not run as the user");
    let p = p.kill_and_restart()?;
    all_end(&processes)?;
    let answer = http::get(p.gateway(), &crate::harness::host_of(&url)?, "/")?;
    ensure!(answer.status == 200 && answer.body == "still here\n", "{answer:?}");
    p.stop()
}

/// A command in a folder of its own that is asked to end as soon as it has begun to make something.
struct Early {
    dir: tempfile::TempDir,
    child: Child,
}

impl Early {
    /// `setup` is given the folder, which is the command's home and place for temporary files.
    fn begin(setup: impl FnOnce(&Path, &mut Command) -> Result<()>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ebb"));
        command.env("HOME", dir.path()).env("TMPDIR", dir.path()).stdout(Stdio::null());
        setup(dir.path(), &mut command)?;
        Ok(Self { child: command.spawn()?, dir })
    }

    /// Waits for a file below the folder, and gives what it says.
    fn made(&self, file: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            for folder in std::fs::read_dir(self.dir.path())?.flatten() {
                if let Ok(text) = std::fs::read_to_string(folder.path().join(file))
                    && !text.is_empty()
                {
                    return Ok(text);
                }
            }
            ensure!(begun.elapsed() < testkit::PATIENCE, "{file} was not made");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends the signal, and sees that everything that runs now ends. What is left in the folder.
    fn end(mut self, signal: &str, code: i32) -> Result<Vec<String>> {
        let processes = below(self.child.id())?;
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "kill {signal}: {sent}");
        let status = self.child.wait()?;
        ensure!(status.code() == Some(code), "it ended with {status} and not with {code}");
        all_end(&processes)?;
        let left = std::fs::read_dir(self.dir.path())?.flatten();
        Ok(left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }
}

/// The bridge of the platform whose network this is.
fn bridge(network: &str) -> Result<PathBuf> {
    let network: serde_json::Value = serde_json::from_str(network)?;
    Ok(Path::new("/sys/class/net").join(format!("ebb{}", network["number"])))
}

fn interrupted(_: &Platform) -> Result<()> {
    let up = Early::begin(|dir, command| {
        command.args(["up", "--api-port=0", "--gateway-port=0", "--registry-port=0", "--data-dir"]);
        command.arg(dir.join("data"));
        Ok(())
    })?;
    let device = bridge(&up.made("network.json")?)?;
    ensure!(device.exists(), "there is no {}", device.display());
    up.end("-INT", 130)?;
    ensure!(!device.exists(), "ebb up left {} behind", device.display());

    let demo = Early::begin(|_, command| {
        command.arg("demo");
        Ok(())
    })?;
    let device = bridge(&demo.made("data/network.json")?)?;
    let left = demo.end("-TERM", 143)?;
    ensure!(left.is_empty() && !device.exists(), "ebb demo left {left:?}, or {}", device.display());

    // A compiler that never ends.
    let build = Early::begin(|dir, command| {
        let (tools, project) = (dir.join("tools"), dir.join("project"));
        std::fs::create_dir(&tools)?;
        std::fs::create_dir(&project)?;
        std::fs::write(project.join("Cargo.toml"), "")?;
        let rustc = tools.join("rustc");
        std::fs::write(&rustc, "#!/bin/sh\necho $$ >$0.pid\nexec sleep 600\n")?;
        std::fs::set_permissions(&rustc, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let path = format!("{}:{}", tools.display(), std::env::var("PATH")?);
        command.arg("build").arg(project).args(["-t", "a:b", "-o"]).arg(dir.join("a.tar")).env("PATH", path);
        Ok(())
    })?;
    build.made("rustc.pid")?;
    let mut left = build.end("-INT", 130)?;
    left.sort();
    ensure!(left == ["project", "tools"], "ebb build left {left:?}");
    Ok(())
}
