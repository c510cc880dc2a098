//! The part of JSONPath that printer columns use: fields, indices, `[*]` and filters on equality.

use serde_json::Value;

/// All values that a path selects; none if it selects nothing or cannot be read.
pub(crate) fn select<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![value];
    let mut rest = path.trim().trim_start_matches('$');
    while !rest.is_empty() {
        let Some((step, next)) = step(rest) else { return Vec::new() };
        found = found.into_iter().flat_map(|value| step.take(value)).collect();
        rest = next;
    }
    found
}

enum Step {
    Field(String),
    Index(i64),
    All,
    Equal(String, Value, bool),
    Exists(String),
}

impl Step {
    fn take<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(index) => {
                let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let at = if *index < 0 { index + list.len() as i64 } else { *index };
                usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect()
            }
            Self::All => match value {
                Value::Array(list) => list.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Self::Equal(path, wanted, equal) => {
                let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
                list.iter().filter(|item| select(item, path).contains(&wanted) == *equal).collect()
            }
            Self::Exists(path) => {
                let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
                list.iter().filter(|item| !select(item, path).is_empty()).collect()
            }
        }
    }
}

/// The first step of a path, and what follows it.
fn step(path: &str) -> Option<(Step, &str)> {
    if let Some(rest) = path.strip_prefix('[') {
        let end = closing(rest)?;
        return Some((bracket(rest[..end].trim())?, &rest[end + 1..]));
    }
    let rest = path.strip_prefix('.').unwrap_or(path);
    if rest.starts_with('[') {
        return step(rest);
    }
    // A dot in a name is written `\.`.
    let mut name = String::new();
    let mut characters = rest.char_indices();
    let mut end = rest.len();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
            '.' | '[' => {
                end = at;
                break;
            }
            _ => name.push(character),
        }
    }
    if name.is_empty() {
        return None;
    }
    Some((if name == "*" { Step::All } else { Step::Field(name) }, &rest[end..]))
}

/// Where the bracket that is open ends.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    let quoted = |quote| text.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    quoted('\'').or_else(|| quoted('"'))
}

/// Kubernetes wants dots escaped inside quotes as well.
fn unescape(name: &str) -> String {
    let mut characters = name.chars();
    std::iter::from_fn(|| characters.next().and_then(|c| if c == '\\' { characters.next() } else { Some(c) }))
        .collect()
}

fn bracket(text: &str) -> Option<Step> {
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquote(text) {
        return Some(Step::Field(unescape(name)));
    }
    if let Some(condition) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let path = |side: &str| side.trim().trim_start_matches('@').to_owned();
        for (operator, equal) in [("==", true), ("!=", false)] {
            if let Some((left, right)) = condition.split_once(operator) {
                let right = right.trim();
                let value = match unquote(right) {
                    Some(text) => Value::String(text.to_owned()),
                    None => serde_json::from_str(right).ok()?,
                };
                return Some(Step::Equal(path(left), value, equal));
            }
        }
        return Some(Step::Exists(path(condition)));
    }
    text.parse().ok().map(Step::Index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"metadata": {"annotations": {"a.b/c": "x"}}, "status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False", "reason": "R"}], "url": "u"}});
        let one = |path: &str| select(&object, path).first().map(|v| v.as_str().unwrap().to_owned());
        assert_eq!(one(".status.url").as_deref(), Some("u"));
        assert_eq!(one(".status.conditions[?(@.type=='Ready')].status").as_deref(), Some("True"));
        assert_eq!(one(".status.conditions[?(@.type==\"Other\")].reason").as_deref(), Some("R"));
        assert_eq!(one(".status.conditions[0].type").as_deref(), Some("Ready"));
        assert_eq!(one(".status.conditions[-1].type").as_deref(), Some("Other"));
        assert_eq!(one(".metadata.annotations.a\\.b/c").as_deref(), Some("x"));
        assert_eq!(one(".metadata.annotations['a.b/c']").as_deref(), Some("x"));
        assert_eq!(one(".metadata.annotations['a\\.b/c']").as_deref(), Some("x"));
        assert_eq!(select(&object, ".status.conditions[*].type").len(), 2);
        assert_eq!(one(".status.nothing.at.all"), None);
        assert_eq!(one(".status["), None);
    }
}
