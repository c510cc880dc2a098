//! Label and field selectors, as they stand in a query string or in a `LabelSelector`.

mod parse;

use serde_json::Value;

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// What is wrong, for a 400.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        parse::labels(text).map(Self)
    }

    /// From `matchLabels` and `matchExpressions`.
    pub(crate) fn from_object(selector: &Value) -> Self {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            requirements
                .push(Requirement::In(key.clone(), vec![value.as_str().unwrap_or_default().to_owned()]));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = || {
                let values = expression["values"].as_array().into_iter().flatten();
                values.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            requirements.push(match expression["operator"].as_str() {
                Some("In") => Requirement::In(key, values()),
                Some("NotIn") => Requirement::NotIn(key, values()),
                Some("DoesNotExist") => Requirement::Absent(key),
                _ => Requirement::Exists(key),
            });
        }
        Self(requirements)
    }

    /// Does it select everything?
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does it select this object?
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.0.iter().all(|requirement| requirement.holds(|key| labels.get(key).and_then(Value::as_str)))
    }
}

impl Requirement {
    fn holds<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::In(key, values) => label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(key, values) => !label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::Greater(key, than) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *than)
            }
            Self::Less(key, than) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *than)
            }
        }
    }
}

/// Conditions on fields, by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<(String, String, bool)>);

impl FieldSelector {
    /// Parses `metadata.name=a,status.phase!=Running`.
    ///
    /// # Errors
    /// What is wrong, for a 400.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut conditions = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==") {
                (field, value, true)
            } else if let Some((field, value)) = part.split_once('=') {
                (field, value, true)
            } else {
                return Err(format!("invalid selector: '{part}'; can't understand '{part}'"));
            };
            conditions.push((field.to_owned(), value.to_owned(), equal));
        }
        Ok(Self(conditions))
    }

    /// Does it select everything?
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields it speaks of.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(field, _, _)| field.as_str())
    }

    /// The one name it selects, if it does.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _, equal)| field == "metadata.name" && *equal)
            .map(|(_, value, _)| value.as_str())
    }

    /// Does it select this object?
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(field, expected, equal)| (field_value(object, field) == *expected) == *equal)
    }
}

fn field_value(object: &Value, field: &str) -> String {
    let mut value = object;
    for part in field.split('.') {
        value = &value[part];
    }
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        // A field that defaults to false, or is not there.
        _ if field == "spec.unschedulable" => "false".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(selector: &str) -> bool {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "example.com/n": "7"}}});
        LabelSelector::parse(selector).unwrap().matches(&object)
    }

    #[test]
    fn label_selectors() {
        for yes in [
            "",
            "app=web",
            "app==web",
            "app!=api",
            "none!=x",
            "app in (web, api),tier",
            "tier notin (back)",
            "!none",
            "example.com/n>6",
            "example.com/n<8",
        ] {
            assert!(selects(yes), "{yes}");
        }
        for no in [
            "app=api",
            "app!=web",
            "app in (api)",
            "none",
            "!app",
            "app notin (web,api)",
            "app=web,tier=back",
        ] {
            assert!(!selects(no), "{no}");
        }
        for bad in ["app in web", "a b", "=x", "a=b c"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_selector_objects() {
        let selector = LabelSelector::from_object(
            &json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]}),
        );
        assert!(selector.matches(&json!({"metadata": {"labels": {"a": "b"}}})));
        assert!(!selector.matches(&json!({"metadata": {"labels": {"a": "b", "c": "d"}}})));
    }

    #[test]
    fn field_selectors() {
        let pod =
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let matches = |text| FieldSelector::parse(text).unwrap().matches(&pod);
        assert!(matches("metadata.name=a,status.phase!=Failed"));
        assert!(matches("spec.nodeName==n"));
        assert!(!matches("spec.nodeName="));
        assert!(FieldSelector::parse("nonsense").is_err());
        assert_eq!(FieldSelector::parse("metadata.name=a").unwrap().name(), Some("a"));
    }
}
