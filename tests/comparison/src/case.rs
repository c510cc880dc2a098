//! Case files: plain text, one step after the other.
//!
//! A step starts with `=== title`; what follows is a bash script. Lines before the first step are a comment. All steps of a file
//! run in order in the namespace that is named as the file; `$ns` holds it.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) title: String,
    pub(crate) script: String,
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

/// Reads all case files in the order of their names; with a filter, the files in which a step matches it, whole: steps build on
/// what others made.
pub(crate) fn read(folder: &Path, filter: Option<&str>) -> Result<Vec<File>> {
    let list = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<_> = list.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let steps = parse(&text).with_context(|| format!("in {}", path.display()))?;
        let wanted =
            |step: &Step| filter.is_none_or(|filter| format!("{name}: {}", step.title).contains(filter));
        if steps.iter().any(wanted) {
            files.push(File { name, steps });
        }
    }
    if files.is_empty() {
        bail!("no step matches {}", filter.unwrap_or_default());
    }
    Ok(files)
}

fn parse(text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("=== ") {
            if steps.iter().any(|step| step.title == title) {
                bail!("two steps are called {title:?}: a step's title is how accepted.txt names it");
            }
            steps.push(Step { title: title.to_owned(), script: String::new() });
        } else if let Some(step) = steps.last_mut() {
            step.script.push_str(line);
            step.script.push('\n');
        }
    }
    Ok(steps)
}

/// How many commands a script runs against a server, counted by the lines on which one starts.
pub(crate) fn commands(script: &str) -> usize {
    let starts =
        |part: &str| ["kubectl ", "api "].iter().any(|command| part.trim_start().starts_with(command));
    let mut count = 0;
    for line in script.lines() {
        count += line.split(['|', ';', '(', '`']).filter(|part| starts(part)).count();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_titles_and_scripts() {
        let steps = parse("about\n=== one\nkubectl get pods\n\n=== two\napi GET /api | cat\n").unwrap();
        let titles: Vec<_> = steps.iter().map(|step| step.title.as_str()).collect();
        assert_eq!(titles, ["one", "two"]);
        assert_eq!(steps[0].script, "kubectl get pods\n\n");
        assert!(parse("=== a\n=== a\n").is_err());
    }

    #[test]
    fn commands_are_counted() {
        assert_eq!(commands("kubectl get x | grep kubectl\na=$(kubectl get y); api GET /\n"), 3);
    }
}
