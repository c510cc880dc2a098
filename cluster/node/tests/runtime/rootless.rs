//! The runtime in a user namespace with one user and no cgroups, as `ebb up` of an ordinary user has it.

use std::io::Read;

use cluster_node::runtime::{Overlay, Privilege, Runtime, RuntimeConfig, StartContainer, Streams};
use cluster_node::spec::{Container, Process, Processes, User};
use nix::sched::{CloneFlags, unshare};

/// The argument that makes this program go on in a user namespace.
pub(crate) const ARGUMENT: &str = "without-root";

const NOBODY: u32 = 65534;

/// Runs this program again as another user and in a user namespace.
pub(crate) fn run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(super::payload(), folder.path().join("payload")).unwrap();
    for path in [folder.path().to_owned(), folder.path().join("payload")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let exe = folder.path().join("exe");
    std::fs::copy("/proc/self/exe", &exe).unwrap();
    let output = std::process::Command::new(&exe).arg(ARGUMENT).arg(folder.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    for wanted in ["Uid:\t0\t0\t0\t0", "cgroup None", "mount /dev/null devtmpfs", "exec'd"] {
        assert!(out.contains(wanted), "{wanted} in {out}\n{err}");
    }
}

/// Without threads: a user namespace can only be entered so.
pub(crate) fn main() {
    let folder = std::path::PathBuf::from(std::env::args().nth(2).unwrap());
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setresgid(NOBODY.into(), NOBODY.into(), NOBODY.into()).unwrap();
    nix::unistd::setresuid(NOBODY.into(), NOBODY.into(), NOBODY.into()).unwrap();
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).unwrap();
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .unwrap();
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {NOBODY} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {NOBODY} 1")).unwrap();
    assert_eq!(Privilege::detect(), Privilege::UserNamespace { single: true });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(inside(&folder));
}

async fn inside(folder: &std::path::Path) {
    let config = RuntimeConfig {
        helper_exe: "/proc/self/exe".into(),
        state_dir: folder.join("run"),
        helpers: 1,
        parked: 0,
        cgroup_parent: None,
        hierarchies: None,
    };
    let (runtime, mut exits) = Runtime::start(config).await.unwrap();
    let layer = folder.join("layer");
    std::fs::create_dir_all(layer.join("tmp")).unwrap();
    std::fs::rename(folder.join("payload"), layer.join("payload")).unwrap();
    let container = |args: &[&str]| Container {
        process: Process {
            args: std::iter::once("/payload").chain(args.iter().copied()).map(str::to_owned).collect(),
            ..Process::default()
        },
        net: Some("/proc/self/ns/net".into()),
        ipc: Some("/proc/self/ns/ipc".into()),
        uts: Some("/proc/self/ns/uts".into()),
        ..Container::default()
    };
    let start = |id: &str, container: Container| {
        let (reader, writer) = std::io::pipe().unwrap();
        let stderr = writer.try_clone().unwrap();
        let streams = Streams::Pipes { stdout: writer.into(), stderr: stderr.into(), stdin: None };
        let overlay = Overlay {
            lower: vec![layer.clone()],
            upper: folder.join(id).join("upper"),
            work: folder.join(id).join("work"),
        };
        (reader, StartContainer { id: id.to_owned(), container, overlay, streams })
    };
    let (mut reader, look) = start("a", container(&["look"]));
    let started = runtime.start_container(look).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    println!("{said}\ncgroup {:?}", started.cgroup);
    assert_eq!(exits.recv().await.unwrap().exit.code, 0);
    let mut other = container(&["look"]);
    other.process.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    other.process.capabilities = vec!["CAP_KILL".to_owned()];
    let (mut reader, other) = start("b", other);
    runtime.start_container(other).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    // The only user there is, but without what root may do.
    assert!(said.contains("Uid:\t0\t0\t0\t0") && said.contains("CapBnd:\t0000000000000000"), "{said}");
    // Several that see each other, which takes a process that holds the namespace.
    runtime.hold_processes("h").await.unwrap();
    let mut among = container(&["cat", "/proc/1/comm"]);
    among.processes = Processes::Of("h".to_owned());
    let (mut reader, among) = start("f", among);
    runtime.start_container(among).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "pause\n");
    runtime.remove("h").await.unwrap();
    let (_reader, sleep) = start("c", container(&["sleep"]));
    runtime.start_container(sleep).await.unwrap();
    let (mut reader, echo) = start("d", container(&["echo", "exec'd"]));
    runtime.exec("c", "e", &echo.container.process, echo.streams).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    println!("{said}");
}
