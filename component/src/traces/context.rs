//! W3C trace context: the header `traceparent`. Pure.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A span's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
    /// The span that it is a part of.
    pub parent: Option<[u8; 8]>,
    /// Whether the trace is kept.
    pub sampled: bool,
}

impl Context {
    /// A span of a request with these headers. `rate` is the share of new traces that are sampled.
    pub fn of(headers: &HeaderMap, rate: f64, random: &mut impl FnMut() -> u64) -> Self {
        let span = id(random);
        match headers.get(&TRACEPARENT).and_then(|value| parse(value.as_bytes())) {
            Some(client) => Self { span, parent: Some(client.span), ..client },
            None => {
                let mut trace = [0; 16];
                trace[..8].copy_from_slice(&id(random));
                trace[8..].copy_from_slice(&id(random));
                // 53 bits are what a double holds exactly.
                let drawn = (random() >> 11) as f64 / (1u64 << 53) as f64;
                Self { trace, span, parent: None, sampled: drawn < rate }
            }
        }
    }

    /// A part of this span.
    pub fn child(&self, random: &mut impl FnMut() -> u64) -> Self {
        Self { span: id(random), parent: Some(self.span), ..*self }
    }

    /// The header for whoever is asked next.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut text = String::with_capacity(55);
        text.push_str("00-");
        hex(&mut text, &self.trace);
        text.push('-');
        hex(&mut text, &self.span);
        text.push_str(if self.sampled { "-01" } else { "-00" });
        HeaderValue::try_from(text).ok()
    }
}

/// An id; never all zero, which means none.
fn id(random: &mut impl FnMut() -> u64) -> [u8; 8] {
    random().max(1).to_be_bytes()
}

fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

/// What a `traceparent` says; none where it is not valid. Later versions may have more behind a further dash.
pub fn parse(value: &[u8]) -> Option<Context> {
    let (head, rest) = value.split_at_checked(55)?;
    let version: [u8; 1] = bytes(&head[..2])?;
    if version[0] == 0xff || (version[0] == 0 && !rest.is_empty()) || !(rest.is_empty() || rest[0] == b'-') {
        return None;
    }
    if [head[2], head[35], head[52]] != [b'-'; 3] {
        return None;
    }
    let (trace, span, flags): ([u8; 16], [u8; 8], [u8; 1]) =
        (bytes(&head[3..35])?, bytes(&head[36..52])?, bytes(&head[53..])?);
    let some = trace != [0; 16] && span != [0; 8];
    some.then_some(Context { trace, span, parent: None, sampled: flags[0] & 1 == 1 })
}

fn bytes<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut all = [0; N];
    for (byte, pair) in all.iter_mut().zip(hex.chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn counting() -> impl FnMut() -> u64 {
        let mut last = 0;
        move || {
            last += 1;
            last
        }
    }

    #[test]
    fn strict_about_what_it_reads() {
        let context = parse(GOOD.as_bytes()).expect("valid");
        assert!(context.sampled && context.trace[0] == 0x0a && context.span[7] == 0x31);
        assert!(!parse(GOOD.replace("-01", "-00").as_bytes()).expect("valid").sampled);
        assert!(parse(format!("cc{}-more", &GOOD[2..]).as_bytes()).is_some(), "a later version may say more");
        for bad in [
            "".to_owned(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-more"),
            format!("cc{}more", &GOOD[2..]),
            format!("ff{}", &GOOD[2..]),
            GOOD.to_uppercase(),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("-b7", "_b7"),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_clients_trace_goes_on_and_a_new_one_is_sampled_by_the_rate() {
        let mut headers = HeaderMap::new();
        let made = Context::of(&headers, 1.0, &mut counting());
        assert!(made.sampled && made.parent.is_none());
        assert!(!Context::of(&headers, 0.0, &mut counting()).sampled);
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        let context = Context::of(&headers, 0.0, &mut counting());
        assert!(context.sampled, "the client's word counts");
        let said = context.header().expect("a header");
        let read = parse(said.as_bytes()).expect("valid");
        assert_eq!((read.trace, read.span), (context.trace, context.span));
        assert_eq!(context.parent, parse(GOOD.as_bytes()).map(|client| client.span));
        let child = context.child(&mut counting());
        assert_eq!((child.trace, child.parent), (context.trace, Some(context.span)));
    }
}
