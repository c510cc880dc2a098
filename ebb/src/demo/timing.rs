//! The platform's own account of a request, from its `Server-Timing` header.

use http::HeaderMap;

/// Name and milliseconds of each part, from the outside in: each hop adds a header after those of the hops behind it.
pub(super) fn parts(headers: &HeaderMap) -> Vec<(String, f64)> {
    let values: Vec<&str> = headers.get_all("server-timing").iter().filter_map(|v| v.to_str().ok()).collect();
    values.into_iter().rev().flat_map(|value| value.split(',')).filter_map(part).collect()
}

fn part(text: &str) -> Option<(String, f64)> {
    let mut fields = text.trim().split(';');
    let name = fields.next()?.trim().to_string();
    let ms = fields.find_map(|f| f.trim().strip_prefix("dur="))?.parse().ok()?;
    Some((name, ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_header_and_skips_what_has_no_duration() {
        let mut headers = HeaderMap::new();
        headers.append("server-timing", "queued;dur=0.5, pod;desc=\"x\";dur=3".parse().unwrap());
        headers.append("server-timing", "total;dur=12.25, note".parse().unwrap());
        let expected = [("total", 12.25), ("queued", 0.5), ("pod", 3.0)].map(|(n, d)| (n.to_string(), d));
        assert_eq!(parts(&headers), expected);
    }
}
