//! The list of accepted differences, each with its reason.
//!
//! An entry starts with `=== file: title` and `reason: why`; its further lines are the difference itself, as the comparison finds it.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::diff;
use crate::run::Outcome;

/// One accepted difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) file: String,
    pub(crate) title: String,
    pub(crate) reason: String,
    pub(crate) lines: Vec<String>,
}

/// Reads the list. Each entry must say why.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("=== ") {
            let (file, title) =
                head.split_once(": ").with_context(|| format!("{head:?} is not `file: title`"))?;
            entries.push(Entry {
                file: file.into(),
                title: title.into(),
                reason: String::new(),
                lines: Vec::new(),
            });
        } else if let Some(entry) = entries.last_mut() {
            if let Some(reason) = line.strip_prefix("reason: ") {
                entry.reason = reason.trim().to_owned();
            } else if line.starts_with(['+', '-']) {
                entry.lines.push(line.trim_end().to_owned());
            } else if !line.trim().is_empty() {
                bail!("{line:?} is neither a reason nor a line of a difference (`- ` real, `+ ` embedded)");
            }
        }
    }
    if let Some(entry) = entries.iter().find(|entry| entry.reason.is_empty()) {
        bail!("{}: {} has no reason", entry.file, entry.title);
    }
    Ok(entries)
}

/// Writes the list anew with the differences seen now. An entry without a known reason is left out: a person writes it.
pub(crate) fn write(path: &Path, known: &[Entry], results: &[Outcome]) -> Result<()> {
    let old = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text: String =
        old.lines().take_while(|line| !line.starts_with("=== ")).map(|line| format!("{line}\n")).collect();
    for entry in known {
        let seen = results.iter().find(|result| result.file == entry.file && result.title == entry.title);
        let lines =
            seen.map_or_else(|| entry.lines.clone(), |result| diff::lines(&result.real, &result.embedded));
        if !lines.is_empty() {
            text.push_str(&format!(
                "=== {}: {}\nreason: {}\n{}\n\n",
                entry.file,
                entry.title,
                entry.reason,
                lines.join("\n")
            ));
        }
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_needs_its_reason() {
        let entries = parse("about\n\n=== a: b: c\nreason: because\n- x\n+ y\n").unwrap();
        assert_eq!((entries[0].file.as_str(), entries[0].title.as_str()), ("a", "b: c"));
        assert_eq!(entries[0].lines, ["- x", "+ y"]);
        assert!(parse("=== a: b\n- x\n").is_err());
    }
}
