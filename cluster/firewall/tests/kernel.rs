//! The rules against the kernel, in a network namespace of the test's own. Needs root, as the platform does.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict, hold, load, remove};
use nix::sched::{CloneFlags, unshare};

/// Runs in a thread with a network namespace of its own, whose loopback is up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        loopback_up();
        test();
    });
    thread.join().expect("the test passes");
}

#[allow(unsafe_code)]
fn loopback_up() {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() }; // SAFETY: plain data, for which zero is valid.
    request.ifr_name[0] = b'l' as nix::libc::c_char;
    request.ifr_name[1] = b'o' as nix::libc::c_char;
    request.ifr_ifru.ifru_flags = (nix::libc::IFF_UP | nix::libc::IFF_RUNNING) as i16;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the request is initialised and outlives the call.
    let code = unsafe { nix::libc::ioctl(fd, nix::libc::SIOCSIFFLAGS as _, &request) };
    assert_eq!(code, 0, "loopback is up: {}", std::io::Error::last_os_error());
}

fn filter(rules: Vec<Rule>) -> Ruleset {
    Ruleset {
        table: "test".into(),
        family: Family::Inet,
        chains: vec![Chain { name: "input".into(), hook: Hook::Input, rules }],
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_millis(300))
}

fn rule(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict }
}

#[test]
fn only_named_ports_are_open_and_removal_opens_all() {
    in_namespace(|| {
        let open = TcpListener::bind("127.0.0.1:7001").unwrap();
        let shut = TcpListener::bind("127.0.0.1:7002").unwrap();
        assert!(connect(7002).is_ok(), "before any rule");
        let rules = filter(vec![
            rule(vec![Match::Established], Verdict::Accept),
            rule(vec![Match::Tcp(7000, 7001)], Verdict::Accept),
            rule(vec![Match::Tcp(0, 65535)], Verdict::Reset),
        ]);
        load(&rules).unwrap();
        assert!(connect(7001).is_ok());
        assert_eq!(connect(7002).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // Loading again replaces: the rules do not pile up, and the newer ones hold.
        load(&filter(vec![rule(vec![Match::Tcp(7001, 7001)], Verdict::Reset)])).unwrap();
        assert_eq!(connect(7001).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(connect(7002).is_ok());
        remove("test", Family::Inet).unwrap();
        assert!(connect(7001).is_ok());
        remove("test", Family::Inet).unwrap();
        drop((open, shut));
    });
}

#[test]
fn held_rules_go_with_their_holder() {
    in_namespace(|| {
        let _listener = TcpListener::bind("127.0.0.1:7005").unwrap();
        let rules = filter(vec![rule(vec![Match::Tcp(7005, 7005)], Verdict::Reset)]);
        let held = hold(&rules).unwrap();
        assert_eq!(connect(7005).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(hold(&rules).is_err(), "another holds it");
        drop(held);
        assert!(connect(7005).is_ok());
    });
}

#[test]
fn sources_are_told_apart() {
    in_namespace(|| {
        let _listener = TcpListener::bind("127.0.0.1:7003").unwrap();
        let from = |net: &str, verdict| {
            rule(vec![Match::Source(net.parse().unwrap()), Match::Tcp(7003, 7003)], verdict)
        };
        load(&filter(vec![from("10.0.0.0/8", Verdict::Reset)])).unwrap();
        assert!(connect(7003).is_ok(), "another source");
        load(&filter(vec![from("127.0.0.1/32", Verdict::Reset)])).unwrap();
        assert_eq!(connect(7003).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let outside = vec![Match::SourceOutside("127.0.0.0/8".parse().unwrap()), Match::Tcp(7003, 7003)];
        load(&filter(vec![rule(outside, Verdict::Drop)])).unwrap();
        assert!(connect(7003).is_ok());
    });
}

#[test]
fn interfaces_masquerade_and_dropped_packets() {
    in_namespace(|| {
        let _listener = TcpListener::bind("127.0.0.1:7004").unwrap();
        load(&filter(vec![
            rule(vec![Match::FromInterface("lo".into())], Verdict::Accept),
            rule(vec![Match::Tcp(7004, 7004)], Verdict::Reset),
        ]))
        .unwrap();
        assert!(connect(7004).is_ok(), "loopback is let in before the reset");
        let pods = "10.1.0.0/16".parse().unwrap();
        load(&Ruleset {
            table: "nat".into(),
            family: Family::Ip,
            chains: vec![Chain {
                name: "out".into(),
                hook: Hook::PostRouting,
                rules: vec![rule(
                    vec![Match::Source(pods), Match::DestinationOutside(pods)],
                    Verdict::Masquerade,
                )],
            }],
        })
        .unwrap();
        load(&filter(vec![
            rule(vec![Match::Tcp(7004, 7004)], Verdict::Drop),
            rule(vec![Match::Udp(53, 53)], Verdict::Drop),
        ]))
        .unwrap();
        assert_eq!(connect(7004).unwrap_err().kind(), ErrorKind::TimedOut);
    });
}
