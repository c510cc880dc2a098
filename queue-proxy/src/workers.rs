//! How many threads the sidecar runs on.

/// As many as `asked` (`EBB_THREADS`) says; else one, or one for each core that `cpu_max` (the cgroup's file of that name: quota and period)
/// gives, where that is two and more: whoever raises the sidecar's CPU limit wants it used.
pub fn workers(asked: Option<&str>, cpu_max: &str) -> usize {
    if let Some(asked) = asked.and_then(|text| text.parse().ok()).filter(|n| (1..=64).contains(n)) {
        return asked;
    }
    let mut words = cpu_max.split_whitespace().map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(quota)), Some(Ok(period))) if period > 0 => (quota / period).clamp(1, 64) as usize,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unless_more_is_given_or_asked_for() {
        assert_eq!(workers(None, ""), 1);
        assert_eq!(workers(None, "max 100000\n"), 1);
        assert_eq!(workers(None, "25000 100000\n"), 1);
        assert_eq!(workers(None, "199999 100000\n"), 1);
        assert_eq!(workers(None, "400000 100000\n"), 4);
        assert_eq!(workers(Some("2"), "400000 100000\n"), 2);
        assert_eq!(workers(Some("0"), "max 100000\n"), 1);
        assert_eq!(workers(Some("many"), ""), 1);
    }
}
