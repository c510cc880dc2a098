//! Resource quantities: `500m`, `1.5Gi`, `2e3`.
//! Grammar: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.

/// The quantity in thousandths, rounded up; None when it is no quantity.
#[must_use]
pub fn milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    // In thousandths already.
    let (multiplier, shift): (i128, i32) = match suffix {
        "" => (1000, 0),
        "n" => (1, -6),
        "u" => (1, -3),
        "m" => (1, 0),
        "k" => (1000, 3),
        "M" => (1000, 6),
        "G" => (1000, 9),
        "T" => (1000, 12),
        "P" => (1000, 15),
        "E" => (1000, 18),
        "Ki" => (1000 << 10, 0),
        "Mi" => (1000 << 20, 0),
        "Gi" => (1000 << 30, 0),
        "Ti" => (1000 << 40, 0),
        "Pi" => (1000 << 50, 0),
        "Ei" => (1000 << 60, 0),
        exponent => {
            (1000, exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| (-18..=18).contains(e))?)
        }
    };
    let negative = number.starts_with('-');
    let unsigned = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(9)];
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let down = i32::try_from(fraction.len()).ok()? - shift;
    let scaled = mantissa.checked_mul(multiplier)?;
    let value = if down >= 0 {
        let divisor = 10_i128.pow(down.unsigned_abs());
        (scaled + divisor - 1) / divisor
    } else {
        scaled.checked_mul(10_i128.pow(down.unsigned_abs()))?
    };
    Some(if negative { -value } else { value })
}

/// The quantity in whole units, rounded up: bytes, counts.
#[must_use]
pub fn units(text: &str) -> Option<i64> {
    milli(text).and_then(|milli| i64::try_from((milli + 999).div_euclid(1000)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(milli("500m"), Some(500));
        assert_eq!(milli("0.1"), Some(100));
        assert_eq!(milli("2"), Some(2000));
        assert_eq!(units("1.5Gi"), Some(3 << 29));
        assert_eq!(units("128Mi"), Some(128 << 20));
        assert_eq!(units("2e3"), Some(2000));
        assert_eq!(units("1k"), Some(1000));
        assert_eq!(milli("1n"), Some(1), "rounded up");
        assert_eq!(milli("Mi"), None);
        assert_eq!(milli("1x"), None);
    }
}
