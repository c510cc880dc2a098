//! Refuses HTTP/1.1 requests that two parties could read in two ways, before hyper reads them.
//!
//! hyper takes `Content-Length` beside `Transfer-Encoding`, lines that end with a bare line feed, blanks after a chunk's size,
//! several `Host` fields, and targets without a slash. Each is known from request smuggling: a proxy in front frames the bytes
//! in one way, we in another, and what is a body there is a request here. RFC 9112 lets a server refuse them all, and no client
//! that means well sends them.
//!
//! [`Scanner`] is told every byte that hyper is to read, and follows the framing: heads, sized and chunked bodies, trailers.
//! It is pure, keeps nothing but a line that is not complete yet, and skips bodies without looking at them.
//! After a request that asks for another protocol the bytes mean nothing to it; the server closes such a connection if the
//! protocol stays.

/// Longest line of a chunk's size, extensions included. Nobody uses those.
const CHUNK_LINE: usize = 256;
/// Longest trailer section.
const TRAILERS: usize = 16 << 10;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A line ends without a carriage return.
    BareLineFeed,
    /// A control character, NUL among them.
    Control,
    /// A header line that begins with a blank: it continues the line before.
    ObsFold,
    /// A header line without a colon, or with a name that is none (a blank before the colon, for example).
    HeaderName,
    /// Not `METHOD target HTTP/1.x`.
    RequestLine,
    /// A target that is neither a path, nor an `http` URI, nor `*` or an authority where those are allowed.
    Target,
    /// None, several, or one that is no host.
    Host,
    /// Not a number, or more than one.
    ContentLength,
    /// Anything but `chunked`, or in HTTP/1.0.
    TransferEncoding,
    /// Both of them.
    BothLengths,
    /// A chunk's size that is no hexadecimal number, or the end of a chunk that is none.
    Chunk,
    /// A trailer that would change the framing or the host.
    Trailer,
    /// A line or a trailer section without an end.
    TooLong,
}

impl Violation {
    /// A word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Violation::BareLineFeed => "bare_line_feed",
            Violation::Control => "control_character",
            Violation::ObsFold => "folded_line",
            Violation::HeaderName => "header_name",
            Violation::RequestLine => "request_line",
            Violation::Target => "target",
            Violation::Host => "host",
            Violation::ContentLength => "content_length",
            Violation::TransferEncoding => "transfer_encoding",
            Violation::BothLengths => "content_length_and_transfer_encoding",
            Violation::Chunk => "chunk",
            Violation::Trailer => "trailer",
            Violation::TooLong => "too_long",
        }
    }
}

/// A violation, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Bytes of this call before it: they may be read.
    pub at: usize,
    /// What it is.
    pub why: Violation,
    /// Whether it is in a head, so that an answer can be given; else in a body.
    pub in_head: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    head: Head,
    /// The longest head, as hyper has it; longer ones are refused by it.
    limit: usize,
    /// Bytes of the head or the trailers so far.
    read: usize,
    requests: u64,
    body_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Empty lines before a request.
    Start,
    Head,
    Sized(u64),
    Size,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Opaque,
}

/// What of a head decides on what follows.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    http11: bool,
    connect: bool,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

impl Scanner {
    /// For a connection whose heads may have `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            state: State::Start,
            partial: Vec::new(),
            head: Head::default(),
            limit,
            read: 0,
            requests: 0,
            body_bytes: 0,
        }
    }

    /// Whether the bytes that come are of another protocol.
    pub fn is_opaque(&self) -> bool {
        self.state == State::Opaque
    }

    /// Heads that were whole and good.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Bytes of bodies, without their framing.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether all that was read are whole requests.
    pub fn between_requests(&self) -> bool {
        self.state == State::Start && self.partial.is_empty()
    }

    /// Looks at the next bytes.
    ///
    /// # Errors
    /// Where the first violation is. Nothing may be read after it.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.state {
                State::Opaque => return Ok(()),
                State::Sized(left) | State::Chunk(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - n as u64;
                    self.body_bytes += n as u64;
                    self.state = match self.state {
                        State::Sized(_) if left == 0 => State::Start,
                        State::Sized(_) => State::Sized(left),
                        _ if left == 0 => State::ChunkEnd,
                        _ => State::Chunk(left),
                    };
                    at += n;
                }
                _ => {
                    let n = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                    let in_head = matches!(self.state, State::Start | State::Head);
                    self.take_line(&rest[..n]).map_err(|why| Refused { at: at + n - 1, why, in_head })?;
                    at += n;
                }
            }
        }
        Ok(())
    }

    /// A line, or a part of it when it does not end with a line feed.
    fn take_line(&mut self, piece: &[u8]) -> Result<(), Violation> {
        self.read += piece.len();
        let longest = match self.state {
            State::Size | State::ChunkEnd => CHUNK_LINE,
            State::Trailers => TRAILERS,
            // One more than hyper takes: then it is hyper that says 431.
            _ => self.limit.saturating_add(1),
        };
        if self.read > longest && matches!(self.state, State::Trailers | State::Size | State::ChunkEnd) {
            return Err(Violation::TooLong);
        }
        let complete = piece.last() == Some(&b'\n');
        if !complete {
            if self.partial.len() + piece.len() > longest {
                return Err(Violation::TooLong);
            }
            self.partial.extend_from_slice(piece);
            return Ok(());
        }
        if self.partial.is_empty() {
            return self.line(piece);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(piece);
        let done = self.line(&whole);
        // Kept for the next one, unless it grew beyond use.
        if whole.capacity() <= 1024 {
            whole.clear();
            self.partial = whole;
        }
        done
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Violation::BareLineFeed) };
        // Without a way out early the compiler looks at many bytes at a time.
        if line.iter().fold(false, |bad, &b| bad | (b < 0x20 && b != b'\t') | (b == 0x7f)) {
            return Err(Violation::Control);
        }
        match self.state {
            // RFC 9112 2.2: an empty line before a request is ignored.
            State::Start if line.is_empty() => {
                self.read = 0;
                Ok(())
            }
            State::Start => {
                self.head = Head::default();
                self.request_line(line)?;
                self.state = State::Head;
                Ok(())
            }
            State::Head if line.is_empty() => {
                self.read = 0;
                self.end_of_head()
            }
            State::Head => self.field(line),
            State::Size => {
                self.read = 0;
                let size = chunk_size(line)?;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                Ok(())
            }
            State::ChunkEnd if line.is_empty() => {
                self.read = 0;
                self.state = State::Size;
                Ok(())
            }
            State::ChunkEnd => Err(Violation::Chunk),
            State::Trailers if line.is_empty() => {
                self.read = 0;
                self.state = State::Start;
                Ok(())
            }
            State::Trailers => trailer(line),
            State::Sized(_) | State::Chunk(_) | State::Opaque => Ok(()),
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let mut words = line.split(|&b| b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Violation::RequestLine);
        };
        if !is_token(method) {
            return Err(Violation::RequestLine);
        }
        self.head.http11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(Violation::RequestLine),
        };
        self.head.connect = method == b"CONNECT";
        let whole = |scheme: &[u8]| {
            target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
        };
        let known = target.first() == Some(&b'/')
            || (target == b"*" && method == b"OPTIONS")
            || whole(b"http://")
            || whole(b"https://")
            || (self.head.connect && is_host(target));
        if known && !target.contains(&b'#') { Ok(()) } else { Err(Violation::Target) }
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (name, value) = split(line)?;
        let head = &mut self.head;
        // Lengths first: nearly no field of nearly no request is compared.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                head.hosts = head.hosts.saturating_add(1);
                if head.hosts > 1 || !is_host(value) {
                    return Err(Violation::Host);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                head.upgrade = !value.eq_ignore_ascii_case(b"h2c");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let mut tokens = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
                head.connection_upgrade |= tokens.any(|token| token.eq_ignore_ascii_case(b"upgrade"));
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if head.length.is_some() {
                    return Err(Violation::ContentLength);
                }
                head.length = Some(decimal(value).ok_or(Violation::ContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if head.chunked || !head.http11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::TransferEncoding);
                }
                head.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Violation> {
        let head = self.head;
        if head.chunked && head.length.is_some() {
            return Err(Violation::BothLengths);
        }
        if head.hosts == 0 && head.http11 {
            return Err(Violation::Host);
        }
        self.requests += 1;
        self.state = if head.chunked {
            State::Size
        } else if let Some(length) = head.length.filter(|length| *length > 0) {
            State::Sized(length)
        } else if head.connect || (head.http11 && head.upgrade && head.connection_upgrade) {
            State::Opaque
        } else {
            State::Start
        };
        Ok(())
    }
}

/// Letters, digits and `others`, as a table: every byte of every field's name is looked up.
const fn bytes(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 128 {
        table[b] = (b as u8).is_ascii_alphanumeric();
        b += 1;
    }
    let mut n = 0;
    while n < others.len() {
        table[others[n] as usize] = true;
        n += 1;
    }
    table
}

static TOKEN: [bool; 256] = bytes(b"!#$%&'*+-.^_`|~");
static HOST: [bool; 256] = bytes(b"-._~%!$&'()*+;=:[]");

fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|&b| TOKEN[b as usize])
}

/// A host with or without a port; an empty one is allowed (RFC 9110 7.2).
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|&b| HOST[b as usize])
}

/// Name and trimmed value of a header line.
fn split(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::ObsFold);
    }
    let colon = memchr::memchr(b':', line).ok_or(Violation::HeaderName)?;
    let name = &line[..colon];
    if !is_token(name) {
        return Err(Violation::HeaderName);
    }
    Ok((name, line[colon + 1..].trim_ascii()))
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Hexadecimal digits, and extensions that mean nothing.
fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let end = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    if digits.is_empty() || digits.len() > 15 || !(extension.is_empty() || extension[0] == b';') {
        return Err(Violation::Chunk);
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(Violation::Chunk)
}

fn trailer(line: &[u8]) -> Result<(), Violation> {
    let (name, _) = split(line)?;
    let framing: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"host"];
    if framing.iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
        return Err(Violation::Trailer);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
