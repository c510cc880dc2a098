//! Words of tables: ages, counts, lists.

use jiff::Timestamp;
use serde_json::Value;

/// How long ago: `5s`, `3m20s`, `2d4h`, as upstream shortens it.
pub(crate) fn age(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => duration(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// The age of a field's time, or `<unknown>`.
pub(crate) fn age_of(value: &Value, now: Timestamp) -> Value {
    value.as_str().map_or_else(|| "<unknown>".to_owned(), |time| age(time, now)).into()
}

/// Seconds as people read them.
pub(crate) fn duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let both = |whole: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{whole}{unit}") } else { format!("{whole}{unit}{rest}{small}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        both(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        both(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        both(days, "d", hours % 24, "h")
    } else if days < 730 {
        format!("{days}d")
    } else if days < 365 * 8 {
        both(days / 365, "y", days % 365, "d")
    } else {
        format!("{}y", days / 365)
    }
}

/// The text, or `<none>`.
pub(crate) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// A map as `a=b,c=d`, or `<none>`.
pub(crate) fn pairs(map: &Value) -> String {
    let list: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if list.is_empty() { "<none>".to_owned() } else { list.join(",") }
}

/// A field of each item, joined with commas.
pub(crate) fn each(list: &Value, field: &str) -> String {
    let items: Vec<&str> =
        list.as_array().into_iter().flatten().filter_map(|item| item[field].as_str()).collect();
    items.join(",")
}

/// The number of items of a list or a map.
pub(crate) fn count(value: &Value) -> usize {
    value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3600, "60m"),
            (4 * 3600 + 60, "4h1m"),
            (9 * 3600, "9h"),
            (50 * 3600, "2d2h"),
            (30 * 86_400, "30d"),
            (800 * 86_400, "2y70d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
