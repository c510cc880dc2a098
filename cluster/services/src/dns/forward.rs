//! Queries for names that are not the cluster's, asked of the host's servers byte for byte.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

/// How long one server is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The servers in the order in which they are asked.
pub(super) struct Upstreams(Vec<SocketAddr>);

/// The name servers of /etc/resolv.conf, without this server's own address.
pub(crate) fn host_upstreams(own: IpAddr) -> Vec<SocketAddr> {
    // systemd-resolved's stub on 127.0.0.53 answers processes of the host, and this is one.
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    name_servers(&text).into_iter().filter(|server| !super::is_self(server.ip(), own)).collect()
}

fn name_servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(str::split_whitespace);
    lines
        .filter_map(|mut words| (words.next() == Some("nameserver")).then(|| words.next()).flatten())
        // An IPv6 address may have a zone, which std does not parse.
        .filter_map(|address| address.split('%').next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

impl Upstreams {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self(servers)
    }

    /// The first server's answer.
    pub(super) async fn ask(&self, query: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
        let mut last = io::Error::other("no name server is configured in /etc/resolv.conf");
        for server in &self.0 {
            let asked =
                async { if tcp { ask_tcp(*server, query).await } else { ask_udp(*server, query).await } };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")),
            }
        }
        Err(last)
    }
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    // A socket of its own for each query: the random source port makes answers hard to forge.
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if buffer.get(..2) == query.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = u16::try_from(query.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    framed.extend(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text =
            "# made by hand\nnameserver 192.0.2.1\nsearch lan\nnameserver  fe80::1%eth0 \nnameserver bad\n";
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()];
        assert_eq!(name_servers(text), expected);
    }
}
