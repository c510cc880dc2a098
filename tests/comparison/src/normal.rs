//! Takes out of an output what must differ between two servers: times, uids, versions, random names, addresses.
//!
//! Each thing becomes a word in angle brackets. Uids keep their identity: the first of an output is `<uid 1>`, and so on, so that
//! an owner reference to the wrong object still shows. Causes that kubectl prints one below the other are sorted: a real server finds
//! many of them by walking over a map of Go, in another order each time.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// The letters of generated names and hashes: no vowels, and no digits that look like them.
const LETTERS: &str = "[bcdfghjklmnpqrstvwxz2456789]";

struct Rule {
    pattern: Regex,
    with: &'static str,
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let rule = |pattern: &str, with: &'static str| Rule {
        pattern: Regex::new(pattern).expect("the pattern is a literal of this file"),
        with,
    };
    vec![
        // The head of kubectl's own log lines.
        rule(r"(?m)^[EWI]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] ", ""),
        rule(
            r"(-----BEGIN CERTIFICATE-----[\sA-Za-z0-9+/=\\]+-----END CERTIFICATE-----(\\n|\s)*)+",
            "<certificate>",
        ),
        rule(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "<time>"),
        rule(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} [\d:]{8} [+-]\d{4}", "<time>"),
        rule(r"https?://127\.0\.0\.1:\d+", "<server>"),
        rule(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+", "<token>"),
        rule(r#"(?i)("?continue"?: ?)"?[\w+/-]{16,}=*"?"#, "$1<continue>"),
        rule(r#"(?i)(resource ?Version[\\": =]{1,9})\d+"#, "${1}<version>"),
        rule(r#"("observedGeneration":|observedGeneration:) ?(\d+)"#, "$1 $2"),
        // Deployments' pods and replica sets, then names from generateName.
        rule(&format!(r"-{LETTERS}{{6,10}}-{LETTERS}{{5}}\b"), "-<hash>-<random>"),
        rule(&format!(r#"(pod-template-hash["]?[:=] ?"?){LETTERS}{{6,10}}\b"#), "$1<hash>"),
        rule(&format!(r"-{LETTERS}{{8,10}}\b"), "-<hash>"),
        rule(&format!(r"([a-z0-9]-){LETTERS}{{5}}\b"), "$1<random>"),
        rule(r"\.[0-9a-f]{15,16}\b", ".<stamp>"),
        rule(r"\b10\.96\.\d+\.\d+\b", "<cluster-ip>"),
        rule(r"\b10\.244\.0\.\d+\b", "<pod-ip>"),
        rule(r"\b3[0-2]\d{3}\b", "<node-port>"),
        rule(r"\b\d{1,2}m\d{1,2}s\b|\b\d{1,3}s\b|\b\d{1,3}ms\b|\b\d+\.\d+s\b", "<age>"),
        rule(r"(?m)(\s)[2-9]m(\s|$)", "$1<age>$2"),
        rule(
            r#""(buildDate|compiler|gitCommit|goVersion|platform|gitTreeState)": ?"[^"]*""#,
            r#""$1": "<build>""#,
        ),
    ]
});

static UID: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
        .expect("the pattern is a literal of this file")
});
/// Columns are as wide as their widest cell, which may be an age.
static COLUMNS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)(\S) {2,}|[ \t]+$").expect("the pattern is a literal of this file"));

/// The output as it should be on any server.
pub(crate) fn normal(text: &str) -> String {
    let mut uids: HashMap<String, usize> = HashMap::new();
    let mut text = UID
        .replace_all(text, |found: &Captures<'_>| {
            let next = uids.len() + 1;
            format!("<uid {}>", uids.entry(found[0].to_owned()).or_insert(next))
        })
        .into_owned();
    for rule in RULES.iter() {
        text = rule.pattern.replace_all(&text, rule.with).into_owned();
    }
    let text = COLUMNS.replace_all(&text, |found: &Captures<'_>| {
        found.get(1).map_or_else(String::new, |last| format!("{}  ", last.as_str()))
    });
    causes_sorted(&text)
}

/// Each run of causes in order: lines that start with `* `, with those that belong to them.
fn causes_sorted(text: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n') {
        match parts.last_mut() {
            // A line of a CEL rule, and the mark below it.
            Some(cause) if cause.starts_with("* ") && line.starts_with(" | ") => cause.push_str(line),
            _ => parts.push(line.to_owned()),
        }
    }
    for run in parts.chunk_by_mut(|a, b| a.starts_with("* ") && b.starts_with("* ")) {
        run.sort_unstable();
    }
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_differ_is_taken_out() {
        for (text, expected) in [
            ("creationTimestamp: \"2026-11-22T22:00:00Z\"", "creationTimestamp: \"<time>\""),
            ("resourceVersion: \"123\"", "resourceVersion: \"<version>\""),
            ("\"resourceVersion\":\"123\"", "\"resourceVersion\":\"<version>\""),
            ("pod/web-7c5ddbdf54-x7k2m created", "pod/web-<hash>-<random> created"),
            ("rs/web-7c5ddbdf54  1", "rs/web-<hash>  1"),
            ("NAME     AGE\nweb      12s\n", "NAME  AGE\nweb  <age>\n"),
            ("  indented: x", "  indented: x"),
            ("10.96.7.1:8080 <none> 31234/TCP", "<cluster-ip>:8080 <none> <node-port>/TCP"),
        ] {
            assert_eq!(normal(text), expected);
        }
    }

    #[test]
    fn causes_come_in_one_order() {
        let text = "is invalid:\n* b: x\n | x\n | ^\n* a: y\n[exit 1]\n* d\n* c\n";
        assert_eq!(normal(text), "is invalid:\n* a: y\n* b: x\n | x\n | ^\n[exit 1]\n* c\n* d\n");
    }

    #[test]
    fn uids_keep_their_identity() {
        let (a, b) = ("11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-666666666666");
        assert_eq!(normal(&format!("{a} {b} {a}")), "<uid 1> <uid 2> <uid 1>");
    }

    #[test]
    fn what_says_something_stays() {
        for text in ["replicas: 3", "cpu: 250m", "image: nginx:1.25", "generation: 2", "name: my-configmap"] {
            assert_eq!(normal(text), text);
        }
    }
}
