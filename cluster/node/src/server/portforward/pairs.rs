//! Which stream belongs to which forwarded connection: a client opens two for each, `error` and `data`, tied by a request number.

use std::collections::HashMap;

use super::super::spdy::Headers;

/// Two streams that are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) port: u16,
    pub(super) error: u32,
    pub(super) data: u32,
}

#[derive(Debug, Default)]
pub(super) struct Pairs {
    waiting: HashMap<String, Half>,
}

#[derive(Debug)]
struct Half {
    stream: u32,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

/// Halves that wait for their other halves; a client opens both at once.
const MOST_WAITING: usize = 10_000;

impl Pairs {
    /// Takes a new stream in; `Some` when it completes a pair.
    pub(super) fn add(&mut self, stream: u32, headers: &Headers) -> Result<Option<Pair>, &'static str> {
        let header = |name: &str| headers.get(name).map(String::as_str);
        let kind = match header("streamtype") {
            Some("error") => Kind::Error,
            Some("data") => Kind::Data,
            _ => return Err("the header streamType is neither error nor data"),
        };
        let port = header("port").and_then(|text| text.parse::<u16>().ok()).filter(|port| *port > 0);
        let port = port.ok_or("the header port is not a port")?;
        // Clients from before there were request numbers open the data stream right after the error stream.
        let request = header("requestid").map_or_else(
            || match kind {
                Kind::Error => stream.to_string(),
                Kind::Data => stream.wrapping_sub(2).to_string(),
            },
            str::to_owned,
        );
        match self.waiting.remove(&request) {
            Some(half) if half.kind == kind => Err("the request has this stream already"),
            Some(half) => {
                let (error, data) =
                    if kind == Kind::Data { (half.stream, stream) } else { (stream, half.stream) };
                Ok(Some(Pair { port, error, data }))
            }
            None if self.waiting.len() >= MOST_WAITING => Err("too many streams without their other half"),
            None => {
                self.waiting.insert(request, Half { stream, kind });
                Ok(None)
            }
        }
    }

    /// A stream that was given up before its other half came.
    pub(super) fn remove(&mut self, stream: u32) {
        self.waiting.retain(|_, half| half.stream != stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(kind: &str, port: &str, request: Option<&str>) -> Headers {
        let pairs = [("streamtype", Some(kind)), ("port", Some(port)), ("requestid", request)];
        let given = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn halves_find_each_other_by_request() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.add(1, &headers("error", "80", Some("0"))), Ok(None));
        assert_eq!(pairs.add(3, &headers("error", "81", Some("1"))), Ok(None));
        let second = pairs.add(5, &headers("data", "81", Some("1")));
        assert_eq!(second, Ok(Some(Pair { port: 81, error: 3, data: 5 })));
        let first = pairs.add(7, &headers("data", "80", Some("0")));
        assert_eq!(first, Ok(Some(Pair { port: 80, error: 1, data: 7 })));
    }

    #[test]
    fn without_request_numbers_neighbours_belong_together() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.add(1, &headers("error", "80", None)), Ok(None));
        let pair = pairs.add(3, &headers("data", "80", None));
        assert_eq!(pair, Ok(Some(Pair { port: 80, error: 1, data: 3 })));
    }

    #[test]
    fn strange_streams_are_refused() {
        let mut pairs = Pairs::default();
        assert!(pairs.add(1, &headers("stdin", "80", None)).is_err());
        assert!(pairs.add(1, &headers("data", "0", None)).is_err());
        assert_eq!(pairs.add(1, &headers("error", "80", Some("0"))), Ok(None));
        assert!(pairs.add(3, &headers("error", "80", Some("0"))).is_err());
        assert_eq!(pairs.add(5, &headers("error", "80", Some("1"))), Ok(None));
        pairs.remove(5);
        assert_eq!(pairs.add(7, &headers("data", "80", Some("1"))), Ok(None));
    }
}
