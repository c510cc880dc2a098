//! `resource.Quantity`: the canonical text of a number with a suffix.
//!
//! Kubernetes writes back what it read in canonical form (`0.5` as `500m`, `1024Mi` as `1Gi`), and equality of objects depends
//! on it. Source: k8s.io/apimachinery `resource.Quantity`.

/// (suffix, power of ten) of the decimal forms, largest first.
const DECIMAL: [(&str, i32); 10] =
    [("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9)];
/// (suffix, power of two), largest first.
const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];

/// The canonical text of a quantity, or nothing if the text is not one.
pub fn canonical(text: &str) -> Option<String> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    if digits.len() > 30 {
        return None;
    }
    let mantissa: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = -(fraction.len() as i32);
    let sign = if negative && mantissa != 0 { "-" } else { "" };
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return binary(mantissa, scale, *bits).map(|body| format!("{sign}{body}"));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return decimal(mantissa, scale + exponent).map(|body| format!("{sign}{body}"));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    exponential(mantissa, scale + exponent).map(|body| format!("{sign}{body}"))
}

/// The sum of two quantities, in the form of the first unless that is zero; nothing if one is no quantity.
pub fn sum(a: &str, b: &str) -> Option<String> {
    let (x, y) = (exact(a)?, exact(b)?);
    let nano = x.checked_add(y)?;
    let like = if x == 0 { b } else { a };
    let sign = if nano < 0 { "-" } else { "" };
    let nano = nano.unsigned_abs();
    let binary_form = BINARY.iter().any(|(suffix, _)| like.ends_with(suffix));
    let body = match binary_form && nano.is_multiple_of(1_000_000_000) {
        // The smallest binary suffix, brought to the largest that fits.
        true => binary(nano / 1_000_000_000, 0, 0),
        false => decimal(nano, -9),
    };
    body.map(|body| format!("{sign}{body}"))
}

/// In billionths.
fn exact(text: &str) -> Option<i128> {
    let canonical = canonical(text)?;
    let end = canonical.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(canonical.len());
    let (number, suffix) = canonical.split_at(end);
    let number: i128 = number.parse().ok()?;
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return number.checked_mul(1i128 << bits)?.checked_mul(1_000_000_000);
    }
    let exponent: i32 = match DECIMAL.iter().find(|(s, _)| *s == suffix) {
        Some((_, exponent)) => *exponent,
        None => suffix.strip_prefix('e')?.parse().ok()?,
    };
    number.checked_mul(10i128.checked_pow(u32::try_from(exponent + 9).ok()?)?)
}

/// The value of a quantity, near enough to compare with; nothing if the text is not one.
pub fn to_f64(text: &str) -> Option<f64> {
    let canonical = canonical(text)?;
    let end = canonical.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(canonical.len());
    let (number, suffix) = canonical.split_at(end);
    let number: f64 = number.parse().ok()?;
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some(number * (1u64 << bits) as f64);
    }
    let exponent = match DECIMAL.iter().find(|(s, _)| *s == suffix) {
        Some((_, exponent)) => *exponent,
        None => suffix.strip_prefix('e')?.parse().ok()?,
    };
    Some(number * 10f64.powi(exponent))
}

/// Rounds up what is finer than nano.
fn reduce(mut mantissa: u128, mut exponent: i32) -> Option<(u128, i32)> {
    if mantissa == 0 {
        return Some((0, 0));
    }
    if exponent < -9 {
        let step = 10u128.checked_pow((-9 - exponent).unsigned_abs())?;
        mantissa = mantissa.div_ceil(step);
        exponent = -9;
    }
    while mantissa.is_multiple_of(10) {
        mantissa /= 10;
        exponent += 1;
    }
    Some((mantissa, exponent))
}

fn decimal(mantissa: u128, exponent: i32) -> Option<String> {
    let (mut mantissa, mut exponent) = reduce(mantissa, exponent)?;
    if mantissa == 0 {
        return Some("0".into());
    }
    while exponent.rem_euclid(3) != 0 {
        mantissa = mantissa.checked_mul(10)?;
        exponent -= 1;
    }
    while exponent > 18 {
        mantissa = mantissa.checked_mul(1000)?;
        exponent -= 3;
    }
    let (suffix, _) = DECIMAL.iter().find(|(_, e)| *e == exponent)?;
    Some(format!("{mantissa}{suffix}"))
}

fn exponential(mantissa: u128, exponent: i32) -> Option<String> {
    let (mut mantissa, mut exponent) = reduce(mantissa, exponent)?;
    while exponent.rem_euclid(3) != 0 {
        mantissa = mantissa.checked_mul(10)?;
        exponent -= 1;
    }
    Some(if exponent == 0 { mantissa.to_string() } else { format!("{mantissa}e{exponent}") })
}

fn binary(mantissa: u128, scale: i32, bits: u32) -> Option<String> {
    let scaled = mantissa.checked_mul(1u128 << bits)?;
    let step = 10u128.checked_pow(scale.unsigned_abs())?;
    if !scaled.is_multiple_of(step) || scaled < 1024 * step {
        // Not a whole number of bytes, or too few for a binary suffix: the decimal form, as upstream does.
        return decimal(scaled, scale);
    }
    let bytes = scaled / step;
    for (suffix, bits) in BINARY {
        if bytes.is_multiple_of(1u128 << bits) {
            return Some(format!("{}{suffix}", bytes >> bits));
        }
    }
    Some(bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("1", "1"),
            ("0", "0"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("128Mi", "128Mi"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("-1", "-1"),
            ("+2", "2"),
            ("500k", "500k"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("3.", "3"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(super::to_f64("1500m"), Some(1.5));
        assert_eq!(super::to_f64("2Gi"), Some(2147483648.0));
        assert_eq!(super::to_f64("-1e3"), Some(-1000.0));
        for bad in ["", "x", "1x", "1.2.3", "Mi", "1 Gi", "--1", "1ee3"] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }
}
