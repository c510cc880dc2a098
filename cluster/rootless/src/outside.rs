//! The door, seen from outside: what it opens and carries.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::OriginalDst};
use tokio::net::{TcpListener as Listener, TcpStream, UdpSocket as Udp};
use tokio::sync::Semaphore;

use crate::packet::{self, Answer, Request};

/// How many connections to the world there may be at a time: each takes two descriptors of this process.
const CONNECTIONS: usize = 400;
/// How many DNS questions may wait for an answer.
const QUESTIONS: usize = 100;
/// How long a port may still be held by what is ending.
const ENDING: Duration = Duration::from_secs(1);
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// Longest datagram of DNS (RFC 6891).
const DATAGRAM: usize = 65_535;

/// Serves until inside is gone. Blocks.
pub(crate) fn serve(door: &OwnedFd) {
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
    else {
        eprintln!("error: cannot serve the namespaces: no runtime");
        return;
    };
    while let Ok(Some((request, beside))) = packet::receive::<Request>(door) {
        let mut opened: Option<TcpListener> = None;
        let done = match request {
            Request::Listen(address) => listen(address).map(|listener| opened = Some(listener)),
            Request::Carry => {
                let _entered = runtime.enter();
                carry(beside)
            }
        };
        let answer = match done {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed(error.raw_os_error(), error.to_string()),
        };
        let beside: Vec<_> = opened.iter().map(AsRawFd::as_raw_fd).collect();
        if packet::send(door, &answer, &beside).is_err() {
            break;
        }
    }
    runtime.shutdown_background();
}

/// A program that was killed a moment ago ends a moment after its process outside, and with it what it listens on.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let begin = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < ENDING => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Takes over the sockets that inside made: redirected connections, DNS by UDP and by TCP.
fn carry(sockets: Vec<OwnedFd>) -> io::Result<()> {
    let Ok([egress, dns, dns_tcp]) = <[OwnedFd; 3]>::try_from(sockets) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "three sockets are needed"));
    };
    let listener = |fd: OwnedFd| {
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        Listener::from_std(listener)
    };
    let (egress, dns_tcp) = (listener(egress)?, listener(dns_tcp)?);
    let dns = UdpSocket::from(dns);
    dns.set_nonblocking(true)?;
    let dns = Udp::from_std(dns)?;
    let servers = nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    tokio::spawn(connections(egress, |stream| {
        let found = getsockopt(stream, OriginalDst)?;
        Ok((Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr)), u16::from_be(found.sin_port)).into())
    }));
    let server = servers.first().copied();
    tokio::spawn(connections(dns_tcp, move |_| server.ok_or_else(no_server)));
    tokio::spawn(questions(dns, servers));
    Ok(())
}

fn no_server() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "this machine has no DNS server in /etc/resolv.conf")
}

/// Joins each connection with one to where it is meant to go.
async fn connections(
    listener: Listener,
    target: impl Fn(&TcpStream) -> io::Result<SocketAddr> + Copy + Send + Sync + 'static,
) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let Ok((mut near, _)) = listener.accept().await else {
            // Out of descriptors: others must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let joined = async {
                let mut far = TcpStream::connect(target(&near)?).await?;
                near.set_nodelay(true)?;
                far.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            };
            // Nobody outside listens there: a reset says so, where a close would look like an answer.
            if joined.await.is_err() {
                let _ = near.set_zero_linger();
            }
        });
    }
}

/// Asks the machine's DNS servers what inside asks, one after the other until one answers.
async fn questions(inside: Udp, servers: Vec<SocketAddr>) {
    let inside = Arc::new(inside);
    let free = Arc::new(Semaphore::new(QUESTIONS));
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, from)) = inside.recv_from(&mut buffer).await else { continue };
        // Too many at once: a resolver asks again.
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else { continue };
        let (question, servers, inside) = (buffer[..length].to_vec(), servers.clone(), Arc::clone(&inside));
        tokio::spawn(async move {
            let _permit = permit;
            for server in servers {
                let answer = tokio::time::timeout(DNS_PATIENCE, ask(server, &question)).await;
                if let Ok(Ok(answer)) = answer {
                    let _ = inside.send_to(&answer, from).await;
                    return;
                }
            }
        });
    }
}

async fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = Udp::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; DATAGRAM];
    let length = socket.recv(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The servers of a resolv.conf(5).
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    };
    text.lines().filter_map(parse).map(|server| (server, 53).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Door;
    use std::io::{Read, Write};

    #[test]
    fn nameservers_are_read_and_the_rest_is_not() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver ::1\n";
        let found = nameservers(text);
        assert_eq!(found, ["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse::<SocketAddr>().unwrap()]);
    }

    #[test]
    fn a_listener_comes_through_the_door_and_a_taken_port_is_said() {
        let (near, far) = packet::pair().unwrap();
        let server = std::thread::spawn(move || serve(&far));
        let door = Door::new(near, 1, 2);
        let listener = door.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let taken = door.listen(address).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(door);
        server.join().unwrap();
    }
}
