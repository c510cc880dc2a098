//! Another container runtime, the library libcontainer, as the measure of ours: what does a program see, and how soon?
//!
//! It forks, so it lives in a process of its own without threads: this test program with the argument `oracle`. That reads
//! a line for each thing to do from its standard input and answers each with a line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use cluster_node::runtime::Overlay;
use cluster_node::spec::{self, Bind, Container};
use libcontainer::container::Container as Made;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The argument that makes this program the oracle.
pub(crate) const ARGUMENT: &str = "oracle";

#[derive(Serialize, Deserialize)]
enum Order {
    Start { id: String, bundle: PathBuf, spec: Value, overlay: Overlay, output: PathBuf },
    Remove { id: String, rootfs: PathBuf },
}

/// The oracle's main function.
pub(crate) fn main() {
    let root = PathBuf::from(std::env::args_os().nth(2).unwrap());
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).unwrap();
    for line in std::io::stdin().lines() {
        match serde_json::from_str(&line.unwrap()).unwrap() {
            Order::Start { id, bundle, spec, overlay, output } => {
                start(&root, &id, &bundle, &spec, &overlay, &output);
            }
            Order::Remove { id, rootfs } => {
                Made::load(root.join(id)).unwrap().delete(true).unwrap();
                umount2(&rootfs, MntFlags::MNT_DETACH).unwrap();
            }
        }
        println!("done");
    }
}

fn start(root: &Path, id: &str, bundle: &Path, spec: &Value, overlay: &Overlay, output: &Path) {
    let rootfs = bundle.join("rootfs");
    for folder in [&overlay.upper, &overlay.work, &rootfs] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(bundle.join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
    let lower: Vec<String> = overlay.lower.iter().map(|layer| layer.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        overlay.upper.display(),
        overlay.work.display()
    );
    mount(Some("overlay"), &rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let output = std::fs::File::create(output).unwrap();
    let mut container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(root)
        .unwrap()
        .with_stdout(output.try_clone().unwrap())
        .with_stderr(output)
        .with_stdin(std::fs::File::open("/dev/null").unwrap())
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .unwrap();
    container.start().unwrap();
}

/// A running oracle.
pub(crate) struct Oracle {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
    prefix: String,
    count: u32,
}

impl Oracle {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("/proc/self/exe")
            .arg(ARGUMENT)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let prefix = format!("/cluster-node-oracle-{}", child.id());
        Self { child, orders, answers, dir, prefix, count: 0 }
    }

    fn order(&mut self, order: &Order) {
        let mut line = serde_json::to_vec(order).unwrap();
        line.push(b'\n');
        self.orders.as_mut().unwrap().write_all(&line).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "the oracle has ended");
    }

    /// Starts a container; its id and the file of its output.
    pub(crate) fn start(&mut self, container: &Container, layer: &Path) -> (String, PathBuf) {
        self.count += 1;
        let id = format!("o{}", self.count);
        let bundle = self.dir.path().join("bundles").join(&id);
        let output = self.dir.path().join(format!("{id}.out"));
        let overlay =
            Overlay { lower: vec![layer.to_owned()], upper: bundle.join("upper"), work: bundle.join("work") };
        let spec = config(container, &bundle.join("rootfs"), &format!("{}/{id}", self.prefix));
        self.order(&Order::Start { id: id.clone(), bundle, spec, overlay, output: output.clone() });
        (id, output)
    }

    /// Kills and removes a container.
    pub(crate) fn remove(&mut self, id: &str) {
        let rootfs = self.dir.path().join("bundles").join(id).join("rootfs");
        self.order(&Order::Remove { id: id.to_owned(), rootfs });
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.orders.take();
        let _ = self.child.wait();
        cluster_node::cgroup::Hierarchies::detect().unwrap().kill_and_remove(&self.prefix);
    }
}

/// The OCI runtime specification of a container.
fn config(container: &Container, rootfs: &Path, cgroup: &str) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if container.processes == spec::Processes::Own {
        namespaces.push(json!({ "type": "pid" }));
    }
    for (kind, path) in [("network", &container.net), ("ipc", &container.ipc), ("uts", &container.uts)] {
        if let Some(path) = path {
            namespaces.push(json!({ "type": kind, "path": path }));
        }
    }
    let mut linux = json!({
        "cgroupsPath": cgroup,
        "namespaces": namespaces,
        "resources": resources(container),
        "rootfsPropagation": "private",
    });
    if !container.privileged && !container.unmasked_proc {
        linux["maskedPaths"] = json!(spec::MASKED);
        linux["readonlyPaths"] = json!(spec::READ_ONLY);
    }
    json!({
        "ociVersion": "1.0.2",
        "process": process(&container.process),
        "root": { "path": rootfs, "readonly": container.read_only_root },
        "mounts": mounts(container),
        "linux": linux,
    })
}

fn process(process: &spec::Process) -> Value {
    let capabilities = &process.capabilities;
    let mut value = json!({
        "terminal": process.terminal,
        "user": { "uid": process.user.uid, "gid": process.user.gid, "additionalGids": process.user.groups },
        "args": process.args,
        "env": process.environment(),
        "cwd": if process.cwd.is_empty() { "/" } else { process.cwd.as_str() },
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "noNewPrivileges": process.no_new_privileges,
    });
    if process.user.groups.is_empty()
        && let Some(user) = value.get_mut("user").and_then(Value::as_object_mut)
    {
        user.remove("additionalGids");
    }
    value
}

fn mounts(container: &Container) -> Vec<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let sys_mode = if container.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ];
    if container.net.is_some() {
        mounts.push(mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]));
    } else {
        mounts.push(mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", sys_mode]));
    }
    let mut binds: Vec<&Bind> = container.ordered_binds();
    for bind in binds.drain(..) {
        let mode = if bind.read_only { "ro" } else { "rw" };
        let propagation = if bind.propagate { "rslave" } else { "rprivate" };
        mounts.push(json!({
            "destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", propagation, mode],
        }));
    }
    mounts
}

fn resources(container: &Container) -> Value {
    let limits = &container.limits;
    let mut resources = json!({});
    if let Some(shares) = limits.cpu_shares {
        resources["cpu"] = json!({ "shares": shares });
    }
    if let Some(memory) = limits.memory {
        resources["memory"] = json!({ "limit": memory });
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        if let Some(major) = major {
            rule["major"] = json!(major);
        }
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    resources["devices"] = if container.privileged {
        json!([{ "allow": true, "access": "rwm" }])
    } else {
        let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
        rules.push(rule("c", None, None, "m"));
        rules.push(rule("b", None, None, "m"));
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            rules.push(rule("c", Some(major), Some(minor), "rwm"));
        }
        rules.push(rule("c", Some(136), None, "rwm"));
        Value::Array(rules)
    };
    resources
}
