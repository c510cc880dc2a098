//! The cluster's DNS server: answers for the cluster's own names and hands all others to the host's servers.
//!
//! Positive answers live 5 s and negative ones 1 s in resolvers' caches, so that a name can be used as soon as its object is there.

mod answer;
mod forward;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

pub(crate) use answer::Zone;
pub(crate) use forward::host_upstreams;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::index::Index;
use forward::Upstreams;

/// What this server takes and sends over UDP without fragments.
const PAYLOAD: u16 = 1232;
/// Bytes of questions that may wait in the kernel.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A TCP client that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(10);
/// Queries that wait for upstream servers at once, and TCP connections; more are refused.
const BUSY: usize = 1024;

/// The server's bound sockets.
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        loop {
            let udp = UdpSocket::bind(address).await?;
            // A hundred pods that start together ask all at once, and a lost question costs a resolver five seconds.
            if let Err(error) = setsockopt(&udp, RcvBufForce, &RECEIVE_BUFFER) {
                tracing::debug!(%error, "the DNS server's receive buffer stays small");
            }
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => return Ok(Self { udp, tcp }),
                // Of any port, it must be one that is free for both.
                Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
    }

    #[cfg(test)]
    fn address(&self) -> SocketAddr {
        self.udp.local_addr().unwrap()
    }
}

/// See the module's documentation.
pub(crate) struct Server {
    index: Arc<Index>,
    zone: Zone,
    upstreams: Upstreams,
    busy: Arc<Semaphore>,
}

/// What becomes of a query.
enum Reply {
    Now(Vec<u8>),
    Forward,
    /// An answer that ends in an alias for a name outside of the cluster, which is asked of others: stub resolvers do not ask again themselves.
    Alias(Box<Unfinished>),
    Drop,
}

struct Unfinished {
    answer: Message,
    /// The longest answer that the client takes.
    most: usize,
    target: Query,
}

impl Server {
    pub(crate) fn new(index: Arc<Index>, zone: Zone, upstreams: Vec<SocketAddr>) -> Self {
        Self { index, zone, upstreams: Upstreams::new(upstreams), busy: Arc::new(Semaphore::new(BUSY)) }
    }

    /// Answers until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, sockets: Sockets, shutdown: CancellationToken) {
        let Sockets { udp, tcp } = sockets;
        let work = async {
            tokio::join!(
                Arc::clone(&self).serve_udp(Arc::new(udp)),
                Arc::clone(&self).serve_tcp(tcp, &shutdown)
            );
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An earlier answer's ICMP error; the socket is as good as before.
                Err(error) => {
                    tracing::debug!(%error, "DNS receive");
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.reply(query, false) {
                Reply::Now(answer) => drop(socket.try_send_to(&answer, client)),
                Reply::Drop => {}
                slow @ (Reply::Forward | Reply::Alias(_)) => {
                    let (server, socket, query) = (Arc::clone(&self), Arc::clone(&socket), query.to_vec());
                    let Ok(permit) = Arc::clone(&self.busy).try_acquire_owned() else { continue };
                    tokio::spawn(async move {
                        let answer = match slow {
                            Reply::Alias(unfinished) => server.finish(*unfinished).await,
                            _ => Some(server.forward(&query, false).await),
                        };
                        if let Some(answer) = answer {
                            drop(socket.send_to(&answer, client).await);
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, shutdown: &CancellationToken) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "DNS accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.busy).try_acquire_owned() else { continue };
            let (server, shutdown) = (Arc::clone(&self), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    _ = server.converse(stream) => {}
                }
                drop(permit);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
            let mut query = vec![0; usize::from(length)];
            tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
            let answer = match self.reply(&query, true) {
                Reply::Now(answer) => answer,
                Reply::Forward => self.forward(&query, true).await,
                Reply::Alias(unfinished) => match self.finish(*unfinished).await {
                    Some(answer) => answer,
                    None => return Ok(()),
                },
                Reply::Drop => return Ok(()),
            };
            let mut framed = u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
            framed.extend(answer);
            tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    fn reply(&self, bytes: &[u8], tcp: bool) -> Reply {
        let query = match Message::from_vec(bytes) {
            Ok(query) if query.metadata.message_type == MessageType::Query => query,
            Ok(_) => return Reply::Drop,
            Err(_) => {
                let Some(id) = bytes.first_chunk::<2>() else { return Reply::Drop };
                let error = Message::error_msg(u16::from_be_bytes(*id), OpCode::Query, ResponseCode::FormErr);
                return error.to_vec().map_or(Reply::Drop, Reply::Now);
            }
        };
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata = Metadata::response_from_request(&query.metadata);
        answer.metadata.recursion_available = true;
        let [question] = query.queries.as_slice() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return answer.to_vec().map_or(Reply::Drop, Reply::Now);
        };
        answer.add_query(question.clone());
        if query.metadata.op_code != OpCode::Query {
            answer.metadata.response_code = ResponseCode::NotImp;
            return answer.to_vec().map_or(Reply::Drop, Reply::Now);
        }
        let Some(found) = self.zone.answer(&self.index, question) else { return Reply::Forward };
        answer.metadata.authoritative = true;
        answer.metadata.response_code = found.code;
        answer.add_answers(found.answers);
        answer.add_authorities(found.authorities);
        answer.add_additionals(found.additionals);
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            answer.set_edns(edns);
        }
        let most = if tcp { usize::from(u16::MAX) } else { usize::from(query.max_payload().min(PAYLOAD)) };
        if let Some(target) = found.external.filter(|_| question.query_type() != RecordType::CNAME) {
            let target = Query::query(target, question.query_type());
            return Reply::Alias(Box::new(Unfinished { answer, most, target }));
        }
        fitting(&answer, most).map_or(Reply::Drop, Reply::Now)
    }

    async fn finish(&self, unfinished: Unfinished) -> Option<Vec<u8>> {
        let Unfinished { mut answer, most, target } = unfinished;
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(target);
        let asked = self.upstreams.ask(&query.to_vec().ok()?, most > usize::from(PAYLOAD)).await;
        match asked
            .map_err(|error| error.to_string())
            .and_then(|bytes| Message::from_vec(&bytes).map_err(|e| e.to_string()))
        {
            Ok(found) => {
                answer.metadata.response_code = found.metadata.response_code;
                answer.metadata.truncation |= found.metadata.truncation;
                answer.add_answers(found.answers);
                answer.add_authorities(found.authorities);
            }
            Err(error) => {
                tracing::debug!(%error, "an external name is not resolved");
                answer.metadata.response_code = ResponseCode::ServFail;
            }
        }
        fitting(&answer, most)
    }

    async fn forward(&self, query: &[u8], tcp: bool) -> Vec<u8> {
        match self.upstreams.ask(query, tcp).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "DNS query not answered");
                let id = query.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id));
                let mut failed = Message::error_msg(id, OpCode::Query, ResponseCode::ServFail);
                if let Ok(query) = Message::from_vec(query) {
                    failed.add_queries(query.queries);
                }
                failed.to_vec().unwrap_or_default()
            }
        }
    }
}

/// The message's bytes, truncated if they are more than `most`.
fn fitting(answer: &Message, most: usize) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= most { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

/// Whether an address is the server's own, so that it must not ask itself.
fn is_self(candidate: IpAddr, own: IpAddr) -> bool {
    candidate == own
}

#[cfg(test)]
mod tests;
