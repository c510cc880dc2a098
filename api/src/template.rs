//! The part of Go's templates that host names are made with: `{{.Name}}.{{.Namespace}}.{{.Domain}}`.
//!
//! A pipeline is a field (`.Name`), a key of a map (`.Labels.app`, `index .Annotations "sub"`); nothing else is understood, and
//! what is not understood is an error when the template is read, not when it is used.

use std::collections::BTreeMap;

/// A template, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(String),
    Key(String, String),
}

/// What a template is filled in with.
#[derive(Clone, Debug, Default)]
pub struct Values<'a> {
    /// Plain fields by name.
    pub fields: BTreeMap<&'static str, &'a str>,
    /// Labels of the object.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// Annotations of the object.
    pub annotations: Option<&'a BTreeMap<String, String>>,
}

impl Template {
    /// Reads a template that may use the plain fields `allowed`.
    ///
    /// # Errors
    /// A text that says what is not understood.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find("{{") {
            parts.push(Part::Text(rest[..open].to_owned()));
            let inner = &rest[open + 2..];
            let close = inner.find("}}").ok_or_else(|| format!("template {text:?}: {{{{ without }}}}"))?;
            let action = inner[..close].trim().trim_matches('-').trim();
            parts.push(Self::action(action, allowed).ok_or_else(|| {
                format!("template {text:?}: {action:?} is not understood; use a field ({}) or a key of .Labels or .Annotations", allowed.join(", "))
            })?);
            rest = &inner[close + 2..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    fn action(action: &str, allowed: &[&str]) -> Option<Part> {
        let map = |name: &str| matches!(name, ".Labels" | ".Annotations");
        if let Some(args) = action.strip_prefix("index ") {
            let (from, key) = args.trim().split_once(' ')?;
            let key = key.trim().strip_prefix('"')?.strip_suffix('"')?;
            return map(from).then(|| Part::Key(from.to_owned(), key.to_owned()));
        }
        if allowed.iter().any(|a| action.strip_prefix('.') == Some(a)) {
            return Some(Part::Field(action[1..].to_owned()));
        }
        let (from, key) = action.rsplit_once('.')?;
        (map(from) && !key.is_empty()).then(|| Part::Key(from.to_owned(), key.to_owned()))
    }

    /// Fills the template in. What is not there is empty.
    #[must_use]
    pub fn render(&self, values: &Values<'_>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field(name) => out.push_str(values.fields.get(name.as_str()).unwrap_or(&"")),
                Part::Key(map, key) => {
                    let map = if map == ".Labels" { values.labels } else { values.annotations };
                    out.push_str(map.and_then(|m| m.get(key)).map_or("", String::as_str));
                }
            }
        }
        out
    }

    /// The keys of labels and annotations that the template uses.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Key(_, key) => Some(key.as_str()),
            _ => None,
        })
    }

    /// Whether the template has a field of this name.
    #[must_use]
    pub fn uses(&self, field: &str) -> bool {
        self.0.iter().any(|p| matches!(p, Part::Field(name) if name == field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_keys() {
        let labels = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
        let values = Values {
            fields: BTreeMap::from([("Name", "hello"), ("Domain", "example.com")]),
            labels: Some(&labels),
            annotations: None,
        };
        for (text, want) in [
            ("{{.Name}}.{{ .Domain }}", "hello.example.com"),
            ("{{.Labels.app}}-{{.Name}}", "x-hello"),
            (r#"{{index .Labels "app"}}.{{index .Annotations "none"}}"#, "x."),
        ] {
            let template = Template::parse(text, &["Name", "Domain"]).expect("it is understood");
            assert_eq!(template.render(&values), want);
        }
        for text in ["{{.Name", "{{.Other}}", "{{if .Name}}", "{{}}"] {
            assert!(Template::parse(text, &["Name"]).is_err(), "{text}");
        }
    }
}
