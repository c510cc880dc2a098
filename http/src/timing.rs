//! `Server-Timing` (W3C): each hop adds its share, when the request asks with the `ebb-timing` header.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::headers::{SERVER_TIMING, TIMING_REQUEST};

/// Whether the request asks for a breakdown.
pub fn wanted(request: &HeaderMap) -> bool {
    request.contains_key(&TIMING_REQUEST)
}

/// Adds entries of the form `name;dur=1.234` (milliseconds) to a response.
pub fn add(response: &mut HeaderMap, entries: &[(&str, Duration)]) {
    let mut text = String::with_capacity(entries.len() * 24);
    for (name, duration) in entries {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{name};dur={:.3}", duration.as_secs_f64() * 1e3);
    }
    if let Ok(value) = HeaderValue::from_str(&text)
        && !text.is_empty()
    {
        response.append(SERVER_TIMING, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hop_appends() {
        let mut h = HeaderMap::new();
        add(&mut h, &[("app", Duration::from_micros(1500))]);
        add(&mut h, &[("queue", Duration::ZERO), ("proxy", Duration::from_micros(20))]);
        add(&mut h, &[]);
        let all: Vec<_> = h.get_all(&SERVER_TIMING).iter().collect();
        assert_eq!(all, ["app;dur=1.500", "queue;dur=0.000, proxy;dur=0.020"]);
    }
}
