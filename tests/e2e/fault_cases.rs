//! What breaks the platform itself; each case has one of its own.

use anyhow::{Context, Result, ensure};

use crate::Case;
use crate::harness::Platform;
use testkit::http;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("fault::kill_nine_of_ebb_up_keeps_everything", kill_nine),
    ("fault::clean_stop_leaves_nothing", clean_stop),
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
    let (dir, pid) = (p.own()?.data_dir(), p.own()?.pid());
    p.stop()?;
    let orphans = processes_with(&dir.display().to_string(), pid)?;
    ensure!(orphans.is_empty(), "processes left behind: {orphans:?}");
    Ok(())
}

/// Command lines of processes that mention the folder.
fn processes_with(dir: &str, not: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid == not || pid == std::process::id() {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir) {
            found.push(line);
        }
    }
    Ok(found)
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
    let (dir, pid) = (p.own()?.data_dir(), p.own()?.pid());
    p.stop()?;
    let orphans = processes_with(&dir.display().to_string(), pid)?;
    ensure!(orphans.is_empty(), "processes left behind: {orphans:?}");
    Ok(())
}

fn rootless_killed(_: &Platform) -> Result<()> {
    let p = Platform::start_as(USER)?;
    let kept = [("autoscaling.knative.dev/min-scale", "1")];
    let service = crate::harness::service_manifest("survivor", p.image(), &kept, &[("NAME", "still here")]);
    p.apply("default", &service.to_string())?;
    p.kubectl(&["wait", "ksvc/survivor", "--for=condition=Ready", "--timeout=90s"])?;
    let url = p.get("default", "ksvc/survivor")?["status"]["url"].as_str().context("no URL")?.to_string();
    // The next start meets nothing of the last one: neither the lock of the folder nor ports are still held.
    let p = p.kill_and_restart()?;
    let answer = http::get(p.gateway(), &crate::harness::host_of(&url)?, "/")?;
    ensure!(answer.status == 200 && answer.body == "still here\n", "{answer:?}");
    let owners = owned_by(USER)?;
    let own = owners.iter().filter(|line| line.contains("ebb up") || line.contains("/ebb ")).count();
    ensure!(own > 0, "nothing runs as the user: {owners:?}");
    p.stop()
}

/// Command lines of all processes of a user.
fn owned_by(user: u32) -> Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        if entry.metadata().is_ok_and(|metadata| metadata.uid() == user) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    Ok(found)
}
