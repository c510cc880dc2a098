//! Making the namespaces: which process does what, in order.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitCode};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Gid, Pid, Uid, User, fork, setpgid};

use crate::door::Door;
use crate::mapping::{self, Range};
use crate::need::{Settings, lacks_privilege};
use crate::packet::{self, Answer, Request};
use crate::{Error, init, outside};

/// Which of the processes the caller is now.
#[derive(Debug)]
pub enum Entered {
    /// The one it was: it is privileged already, nothing was done.
    Unneeded,
    /// The program, in its namespaces.
    Inside(Door),
    /// The one that stayed outside. The program inside has ended with this code, and so should this process.
    Ended(ExitCode),
}

/// Goes on in namespaces of its own where the process lacks what pods need.
///
/// Must be called while the process has one thread: it forks.
///
/// # Errors
/// [`Error`], before anything was changed that outlives the process.
pub fn enter() -> Result<Entered, Error> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|e| Error::step("reading /proc/self/status", e))?;
    if !lacks_privilege(&status) {
        return Ok(Entered::Unneeded);
    }
    if let Some(obstacle) = Settings::read().obstacle() {
        return Err(Error::NotAllowed(obstacle));
    }
    let step = |what: &'static str| move |cause: io::Error| Error::step(what, cause);
    let (outer, inner) = packet::pair().map_err(step("making the door"))?;
    // Each side says one thing to the other while the users are mapped: "made" or an error, then "mapped".
    let (mut said, saying) = io::pipe().map_err(step("making a pipe"))?;
    let (mapped, mapping) = io::pipe().map_err(step("making a pipe"))?;
    let (own, group) = (Uid::current(), Gid::current());
    let users = Users::of(own, group);
    let pid = std::process::id();
    let before = init::keep().map_err(|e| Error::step("blocking signals", e))?;
    match forked()? {
        ForkResult::Parent { child } => {
            drop((inner, saying, mapped));
            let made = introduce(child, &users, &mut said, mapping);
            if let Err(error) = made {
                let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(child, None);
                let _ = init::release(&before);
                return Err(error);
            }
            std::thread::spawn(move || outside::serve(&outer));
            let code = init::mind(child);
            // The last word from inside, if it never came to run.
            let mut last = String::new();
            if said.read_to_string(&mut last).is_ok() && !last.is_empty() {
                let _ = init::release(&before);
                return Err(Error::Inside(last));
            }
            Ok(Entered::Ended(ExitCode::from(u8::try_from(code).unwrap_or(1))))
        }
        ForkResult::Child => {
            drop((outer, said, mapping));
            // Ctrl-C at the terminal goes to the group of outside alone, which passes it on once.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            inside(Inner { door: inner, saying, mapped, users, before, outside: pid })
        }
    }
}

/// What the child begins with.
struct Inner {
    door: OwnedFd,
    saying: io::PipeWriter,
    mapped: io::PipeReader,
    users: Users,
    before: SigSet,
    outside: u32,
}

/// Who there is inside.
struct Users {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl Users {
    fn of(own: Uid, group: Gid) -> Self {
        let name = User::from_uid(own).ok().flatten().map(|user| user.name).unwrap_or_default();
        let read =
            |path: &str| mapping::given(&fs::read_to_string(path).unwrap_or_default(), &name, own.as_raw());
        let (mut uids, mut gids) = (read("/etc/subuid"), read("/etc/subgid"));
        let tools = ["newuidmap", "newgidmap"].iter().all(|tool| in_path(tool));
        if !tools || uids.is_empty() || gids.is_empty() {
            // One without the other would leave users without a group of their number.
            uids.clear();
            gids.clear();
        }
        Self { uids: mapping::ranges(own.as_raw(), &uids), gids: mapping::ranges(group.as_raw(), &gids) }
    }

    fn many(&self) -> bool {
        self.uids.len() > 1
    }
}

fn in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}

fn forked() -> Result<ForkResult, Error> {
    // SAFETY: the process has a single thread (the contract of `enter`), so the child may do what the parent may.
    #[allow(unsafe_code)]
    unsafe { fork() }.map_err(|e| Error::step("forking", e))
}

/// Outside: waits for the child's user namespace, gives it its users, and lets it go on.
fn introduce(
    child: Pid,
    users: &Users,
    said: &mut io::PipeReader,
    mut mapping: io::PipeWriter,
) -> Result<(), Error> {
    let mut first = [0; 512];
    let length = said.read(&mut first).map_err(|e| Error::step("waiting for the namespaces", e))?;
    if length != 1 {
        let cause = String::from_utf8_lossy(&first[..length]);
        return Err(Error::NotAllowed(format!("the kernel refused them ({cause}); run as root")));
    }
    if users.many() {
        for (tool, ranges) in [("newuidmap", &users.uids), ("newgidmap", &users.gids)] {
            let output = Command::new(tool).arg(child.to_string()).args(mapping::arguments(ranges)).output();
            let output = output.map_err(|e| Error::step(format!("running {tool}"), e))?;
            if !output.status.success() {
                let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Error::step(format!("mapping users with {tool}"), cause));
            }
        }
    }
    mapping.write_all(b"m").map_err(|e| Error::step("letting the namespaces begin", e))
}

/// The child: makes the namespaces and becomes, in turn, the one that waits, init, and the program.
fn inside(mut inner: Inner) -> Result<Entered, Error> {
    let refuse = |saying: &mut io::PipeWriter, cause: String| -> ! {
        let _ = saying.write_all(cause.as_bytes());
        std::process::exit(1)
    };
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUSER) {
        refuse(&mut inner.saying, error.desc().to_owned());
    }
    if inner.saying.write_all(b"u").is_err() || inner.mapped.read_exact(&mut [0]).is_err() {
        std::process::exit(1);
    }
    if let Err(error) = namespaces(&inner.users) {
        refuse(&mut inner.saying, error.to_string());
    }
    match forked() {
        Ok(ForkResult::Parent { child }) => {
            drop((inner.door, inner.saying, inner.mapped));
            std::process::exit(init::mind(child))
        }
        Ok(ForkResult::Child) => {}
        Err(error) => refuse(&mut inner.saying, error.to_string()),
    }
    let egress = match furnish(&inner.door) {
        Ok(egress) => egress,
        Err(error) => refuse(&mut inner.saying, error.to_string()),
    };
    match forked() {
        Ok(ForkResult::Parent { child }) => {
            drop((inner.door, inner.saying, inner.mapped));
            std::process::exit(init::mind(child))
        }
        Ok(ForkResult::Child) => {
            let _ = init::release(&inner.before);
            Ok(Entered::Inside(Door::new(inner.door, inner.outside, egress)))
        }
        Err(error) => refuse(&mut inner.saying, error.to_string()),
    }
}

/// In the new user namespace: the users, if outside did not map them, and all other namespaces.
fn namespaces(users: &Users) -> Result<(), Error> {
    // Only now: the kernel forgets the wish when a process gets new privileges.
    end_with_parent()?;
    if !users.many() {
        let write = |name: &str, text: &str| {
            fs::write(format!("/proc/self/{name}"), text)
                .map_err(|e| Error::step(format!("writing {name}"), e))
        };
        let line = |range: &Range| format!("{} {} {}\n", range.inside, range.outside, range.count);
        write("setgroups", "deny")?;
        write("uid_map", &line(&users.uids[0]))?;
        write("gid_map", &line(&users.gids[0]))?;
    }
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID;
    unshare(all).map_err(|e| Error::step("making namespaces for mounts, network and processes", e.desc()))
}

fn end_with_parent() -> Result<(), Error> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|e| Error::step("asking to end with the parent", e.desc()))
}

/// Init: what a machine has and the new namespaces lack. Gives the port for redirected connections.
fn furnish(door: &OwnedFd) -> Result<u16, Error> {
    end_with_parent()?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|e| Error::step("keeping mounts to oneself", e.desc()))?;
    let careful = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), careful, none)
        .map_err(|e| Error::step("mounting /proc (inside a container, it must not be masked)", e.desc()))?;
    loopback_up().map_err(|e| Error::step("bringing up the loopback device", e))?;
    let sockets = || -> io::Result<_> {
        let egress = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let dns = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?;
        let dns_tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 53))?;
        Ok((egress.local_addr()?.port(), egress, dns, dns_tcp))
    };
    let (port, egress, dns, dns_tcp) = sockets().map_err(|e| Error::step("listening inside", e))?;
    let beside = [egress.as_raw_fd(), dns.as_raw_fd(), dns_tcp.as_raw_fd()];
    packet::send(door, &Request::Carry, &beside).map_err(|e| Error::step("asking for a way out", e))?;
    match packet::receive::<Answer>(door).map_err(|e| Error::step("asking for a way out", e))? {
        Some((Answer::Done, _)) => {}
        Some((Answer::Failed(_, cause), _)) => return Err(Error::step("asking for a way out", cause)),
        None => return Err(Error::step("asking for a way out", "the process outside is gone")),
    }
    resolve_here()?;
    Ok(port)
}

/// Names are asked of this namespace's loopback, where outside answers: the machine's own servers are not reachable from here.
fn resolve_here() -> Result<(), Error> {
    let Ok(real) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
    let failed = |what: &str, cause: &dyn std::fmt::Display| {
        Error::step(format!("giving the namespaces a resolv.conf ({what})"), cause)
    };
    let none: Option<&str> = None;
    // The file's own file system: detached at once, it lives on in the bind mount alone.
    let folder = std::env::temp_dir();
    mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), none)
        .map_err(|e| failed("tmpfs", &e.desc()))?;
    let file = folder.join("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.1\n").map_err(|e| failed("writing", &e))?;
    let mounted = mount(Some(&file), &real, none, MsFlags::MS_BIND, none);
    umount2(&folder, MntFlags::MNT_DETACH).map_err(|e| failed("detaching", &e.desc()))?;
    mounted.map_err(|e| failed("mounting", &e.desc()))
}

/// A new network namespace has its loopback device down.
fn loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: `ifreq` is plain data, for which all zeros is a value; the kernel reads it during the call only.
    #[allow(unsafe_code)]
    let code = unsafe {
        let mut request: nix::libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = nix::libc::c_char::try_from(*from).unwrap_or_default();
        }
        let flags = nix::libc::IFF_UP | nix::libc::IFF_RUNNING;
        request.ifr_ifru.ifru_flags = nix::libc::c_short::try_from(flags).unwrap_or_default();
        nix::libc::ioctl(socket.as_raw_fd(), nix::libc::SIOCSIFFLAGS, &request)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
