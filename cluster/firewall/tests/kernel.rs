//! The rules against the kernel, in a network namespace of the test's own. Needs root, as the platform does.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use cluster_firewall::{
    Chain, Family, Hook, Match, Origin, Rule, Ruleset, Verdict, hold, load, make, remove,
};
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

/// From an address of the loopback network.
fn connect_from(source: [u8; 4], port: u16) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    let target = SocketAddr::from(([127, 0, 0, 1], port));
    socket.connect_timeout(&target.into(), Duration::from_millis(300))?;
    Ok(socket.into())
}

#[test]
fn only_the_opening_packet_is_judged() {
    use std::io::{Read, Write};
    in_namespace(|| {
        let listener = TcpListener::bind("127.0.0.1:7006").unwrap();
        let mut near = connect(7006).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let untracked = |name: &str, hook| Chain {
            name: name.into(),
            hook,
            rules: vec![rule(vec![Match::Protocol(6)], Verdict::NoTrack)],
        };
        let _open = TcpListener::bind("127.0.0.1:7011").unwrap();
        let input = vec![
            rule(vec![Match::TcpUnderWay], Verdict::Accept),
            rule(vec![Match::Established], Verdict::Accept),
            rule(vec![Match::Tcp(7011, 7011)], Verdict::Accept),
            rule(vec![Match::Protocol(6)], Verdict::Reset),
            rule(Vec::new(), Verdict::Drop),
        ];
        let chains = vec![
            untracked("arriving", Hook::RawArrive),
            untracked("leaving", Hook::RawLeave),
            Chain { name: "input".into(), hook: Hook::Input, rules: input },
        ];
        make(&Ruleset { table: "test".into(), family: Family::Inet, chains }).unwrap();
        near.write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x", "a connection under way goes on");
        assert_eq!(connect(7006).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(connect(7011).is_ok(), "the answer to an opening packet opens nothing");
        remove("test", Family::Inet).unwrap();
        assert!(connect(7006).is_ok());
    });
}

#[test]
fn sets_of_any_size_hold_their_addresses_and_no_others() {
    in_namespace(|| {
        let _listener = TcpListener::bind("127.0.0.1:7007").unwrap();
        // More than one message's worth, and more than a socket's buffer takes at once.
        let many: Vec<Ipv4Addr> = (0..9000u32).map(|n| Ipv4Addr::from(0x7f01_0000 + n)).collect();
        let rules = |addresses: Vec<Ipv4Addr>| {
            filter(vec![
                rule(vec![Match::TcpUnderWay], Verdict::Accept),
                rule(vec![Match::SourceAmong(addresses), Match::Tcp(7007, 7007)], Verdict::Accept),
                rule(vec![Match::SourceAmong(vec![[127, 9, 9, 9].into()])], Verdict::Accept),
                rule(vec![Match::Protocol(6)], Verdict::Reset),
            ])
        };
        load(&rules(many)).unwrap();
        for allowed in [[127, 1, 0, 0], [127, 1, 35, 39], [127, 9, 9, 9]] {
            assert!(connect_from(allowed, 7007).is_ok(), "{allowed:?}");
        }
        for refused in [[127, 1, 35, 40], [127, 0, 0, 1]] {
            assert_eq!(connect_from(refused, 7007).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn what_leaves_is_judged_by_destination() {
    in_namespace(|| {
        let _first = TcpListener::bind("127.0.0.1:7008").unwrap();
        let _second = TcpListener::bind("127.0.0.2:7008").unwrap();
        let chain = Chain {
            name: "out".into(),
            hook: Hook::Leave,
            rules: vec![
                rule(vec![Match::TcpUnderWay], Verdict::Accept),
                rule(vec![Match::DestinationAmong(vec![[127, 0, 0, 2].into()])], Verdict::Accept),
                rule(vec![Match::Destination("127.0.0.1/32".parse().unwrap())], Verdict::Reset),
            ],
        };
        load(&Ruleset { table: "test".into(), family: Family::Inet, chains: vec![chain] }).unwrap();
        assert_eq!(connect(7008).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let other = SocketAddr::from(([127, 0, 0, 2], 7008));
        assert!(TcpStream::connect_timeout(&other, Duration::from_millis(300)).is_ok());
    });
}

#[test]
fn only_marked_sockets_send_from_the_agents_address() {
    in_namespace(|| {
        let listener = TcpListener::bind("127.0.0.1:7009").unwrap();
        let origin = Origin { address: [127, 5, 5, 5].into(), pods: "127.0.0.0/8".parse().unwrap() };
        let guard = hold(&origin.guard("guard")).unwrap();
        assert_eq!(connect_from([127, 5, 5, 5], 7009).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(connect_from([127, 5, 5, 6], 7009).is_ok());
        drop(listener.accept().unwrap());
        let target = SocketAddr::from(([127, 0, 0, 1], 7009));
        let socket = origin.socket(target, socket2::Type::STREAM).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.connect(&target.into()).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), std::net::IpAddr::from([127, 5, 5, 5]));
        drop(guard);
        assert!(connect_from([127, 5, 5, 5], 7009).is_ok());
    });
}

#[test]
fn an_error_anywhere_leaves_everything_as_it_was() {
    in_namespace(|| {
        let _listener = TcpListener::bind("127.0.0.1:7010").unwrap();
        load(&filter(vec![rule(vec![Match::Tcp(7010, 7010)], Verdict::Reset)])).unwrap();
        // A chain of addresses has no business at the input hook.
        let bad = vec![rule(vec![], Verdict::Accept), rule(vec![], Verdict::Masquerade)];
        assert!(load(&filter(bad)).is_err());
        assert_eq!(connect(7010).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}
