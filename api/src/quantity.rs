//! Kubernetes quantities: `100m`, `64Mi`, `1e3`.

const SUFFIXES: &[(&str, f64)] = &[
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

/// The amount of a quantity. `None` if it is not one.
#[must_use]
pub fn parse(text: &str) -> Option<f64> {
    let plain = |t: &str| {
        let starts = t.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
        starts.then(|| t.parse::<f64>().ok()).flatten().filter(|n| n.is_finite())
    };
    if let Some(number) = plain(text) {
        return Some(number);
    }
    let (suffix, factor) = SUFFIXES.iter().find(|(s, _)| text.ends_with(s))?;
    plain(&text[..text.len() - suffix.len()]).map(|n| n * factor)
}

/// Writes thousandths of a unit, as CPU is counted.
#[must_use]
pub fn from_milli(milli: i64) -> String {
    if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn quantities() {
        for (text, want) in [
            ("1", Some(1.0)),
            ("100m", Some(0.1)),
            ("64Mi", Some(67_108_864.0)),
            ("1e3", Some(1000.0)),
            ("1.5Gi", Some(1_610_612_736.0)),
            ("x", None),
            ("", None),
            ("Mi", None),
            ("inf", None),
        ] {
            assert_eq!(super::parse(text), want, "{text}");
        }
    }
}
