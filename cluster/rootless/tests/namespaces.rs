//! The namespaces as a program meets them: this test starts itself anew as another user, where it calls `enter`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::OnceLock;

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};
use cluster_rootless::{Door, Entered, enter};
use ipnet::Ipv4Net;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A user who owns nothing here.
const USER: u32 = 54_321;
/// This program, where the user may run it.
static COPY: OnceLock<PathBuf> = OnceLock::new();
/// On the machine's loopback, but not what an inside would call its own.
const FAR: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("program") {
        return program(&arguments.next().unwrap_or_default(), arguments.next());
    }
    // This binary is somewhere that only its builder may enter. Copied before there are threads: a file that another fork still has open for
    // writing cannot be run.
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("namespaces");
    std::fs::copy("/proc/self/exe", &copy).expect("a copy");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("a folder that others may enter");
    COPY.set(copy).expect("set once");
    let trial = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok::<(), Failed>(())
        })
    };
    let trials = vec![
        trial("the_program_is_root_in_a_network_of_its_own", privileged),
        trial("its_exit_code_is_that_of_the_command", exit_code),
        trial("a_signal_reaches_it_once", signal_once),
        trial("nothing_survives_the_kill_of_the_process_outside", killed),
        trial("a_listener_is_on_the_machines_loopback", listener),
        trial("redirected_connections_reach_the_machine", egress),
        trial("a_refused_connection_is_reset", refused),
    ];
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    drop(folder);
    conclusion.exit_code()
}

// --- the program, inside ---

fn program(what: &str, argument: Option<String>) -> ExitCode {
    let door = match enter() {
        Ok(Entered::Inside(door)) => door,
        Ok(Entered::Ended(code)) => return code,
        other => {
            eprintln!("not entered: {other:?}");
            return ExitCode::from(99);
        }
    };
    match what {
        "id" => id(&door),
        "exit" => return ExitCode::from(7),
        "signals" => signals(),
        "sleep" => sleep(),
        "listen" => listen(&door),
        "connect" => connect(&door, &argument.expect("an address")),
        other => {
            eprintln!("unknown: {other}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn id(door: &Door) {
    let devices = std::fs::read_dir("/proc/self/task").expect("proc").count();
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    println!(
        "uid {} pid {} outside {} threads {devices} resolv {}",
        nix::unistd::getuid(),
        std::process::id(),
        door.outside_pid(),
        resolv.trim()
    );
}

fn signals() {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(Signal::SIGINT);
    set.thread_block().expect("block");
    println!("waiting");
    set.wait().expect("a signal");
    println!("first");
    // Delivered twice, it would be pending by now: both ways go through the same chain of processes.
    let mut pending = std::mem::MaybeUninit::uninit();
    // SAFETY: sigpending fills the set that it is given.
    #[allow(unsafe_code)]
    let pending = unsafe {
        nix::libc::sigpending(pending.as_mut_ptr());
        pending.assume_init()
    };
    // SAFETY: reads the set that sigpending has filled.
    #[allow(unsafe_code)]
    let again = unsafe { nix::libc::sigismember(&pending, nix::libc::SIGINT) };
    println!("again {again}");
}

fn sleep() {
    println!("waiting");
    loop {
        std::thread::park();
    }
}

fn listen(door: &Door) {
    let listener = door.listen((Ipv4Addr::LOCALHOST, 0).into()).expect("a listener");
    println!("{}", listener.local_addr().expect("its address"));
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.write_all(b"from inside").expect("writing");
}

fn connect(door: &Door, address: &str) {
    let rule = Rule {
        matches: vec![
            Match::Tcp(0, u16::MAX),
            Match::DestinationOutside(Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 32)),
        ],
        verdict: Verdict::Redirect(door.egress_port()),
    };
    let chain = Chain { name: "out".into(), hook: Hook::Output, rules: vec![rule] };
    let rules = Ruleset { table: "test".into(), family: Family::Ip, chains: vec![chain] };
    let _held = cluster_firewall::hold(&rules).expect("rules");
    let mut text = String::new();
    match TcpStream::connect(address.parse::<SocketAddr>().expect("an address"))
        .expect("a connection")
        .read_to_string(&mut text)
    {
        Ok(_) => println!("read {text}"),
        Err(error) => println!("error {:?}", error.kind()),
    }
}

// --- the tests, outside ---

fn start(arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(COPY.get().expect("the copy"));
    command.arg("program").args(arguments).stdout(Stdio::piped());
    if nix::unistd::getuid().is_root() {
        command.uid(USER).gid(USER);
    }
    let mut child = command.spawn().expect("the program");
    let stdout = BufReader::new(child.stdout.take().expect("its output"));
    (child, stdout)
}

fn line(stdout: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

fn ended(mut child: Child) {
    let status = child.wait().expect("its end");
    assert!(status.success(), "{status:?}");
}

fn privileged() {
    let (child, mut stdout) = start(&["id"]);
    let outside = child.id();
    assert_eq!(
        line(&mut stdout),
        format!("uid 0 pid 2 outside {outside} threads 1 resolv nameserver 127.0.0.1")
    );
    ended(child);
}

fn exit_code() {
    let (mut child, _) = start(&["exit"]);
    assert_eq!(child.wait().expect("its end").code(), Some(7));
}

fn signal_once() {
    let (child, mut stdout) = start(&["signals"]);
    assert_eq!(line(&mut stdout), "waiting");
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("a signal");
    assert_eq!(line(&mut stdout), "first");
    assert_eq!(line(&mut stdout), "again 0");
    ended(child);
}

fn killed() {
    let (mut child, mut stdout) = start(&["sleep"]);
    assert_eq!(line(&mut stdout), "waiting");
    child.kill().expect("the kill");
    assert_eq!(child.wait().expect("its end").signal(), Some(9));
    // The pipe ends when the last process that writes to it is gone.
    assert_eq!(line(&mut stdout), "");
}

fn listener() {
    let (child, mut stdout) = start(&["listen"]);
    let address: SocketAddr = line(&mut stdout).parse().expect("an address");
    let mut text = String::new();
    TcpStream::connect(address).expect("a connection").read_to_string(&mut text).expect("text");
    assert_eq!(text, "from inside");
    ended(child);
}

fn egress() {
    let far = TcpListener::bind((FAR, 0)).expect("a listener");
    let (child, mut stdout) = start(&["connect", &far.local_addr().expect("its address").to_string()]);
    far.accept().expect("a connection").0.write_all(b"from outside").expect("writing");
    assert_eq!(line(&mut stdout), "read from outside");
    ended(child);
}

fn refused() {
    let closed = TcpListener::bind((FAR, 0)).expect("a listener").local_addr().expect("its address");
    let (child, mut stdout) = start(&["connect", &closed.to_string()]);
    assert_eq!(line(&mut stdout), "error ConnectionReset");
    ended(child);
}
