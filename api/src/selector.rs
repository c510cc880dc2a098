//! Whether labels are such as a LabelSelector wants them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeMap;

/// What is wrong with a selector.
///
/// # Errors
/// Names the operator that is not understood, or that has values where it must not, or none where it must.
pub fn check(selector: &LabelSelector) -> Result<(), String> {
    for wanted in selector.match_expressions.iter().flatten() {
        let values = wanted.values.as_ref().is_some_and(|v| !v.is_empty());
        match (wanted.operator.as_str(), values) {
            ("In" | "NotIn", true) | ("Exists" | "DoesNotExist", false) => {}
            ("In" | "NotIn", false) => {
                return Err(format!("{} {} needs values", wanted.key, wanted.operator));
            }
            ("Exists" | "DoesNotExist", true) => {
                return Err(format!("{} {} takes no values", wanted.key, wanted.operator));
            }
            (other, _) => {
                return Err(format!("{other:?} is none of In, NotIn, Exists, DoesNotExist"));
            }
        }
    }
    Ok(())
}

/// Whether `labels` fulfil all that `selector` wants; an empty one wants nothing.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = |(key, wanted): (&String, &String)| value(key) == Some(wanted);
    let fulfils = |wanted: &LabelSelectorRequirement| {
        let found = value(&wanted.key);
        let listed = found.is_some_and(|v| wanted.values.as_ref().is_some_and(|all| all.contains(v)));
        match wanted.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            _ => false,
        }
    };
    selector.match_labels.iter().flatten().all(equal)
        && selector.match_expressions.iter().flatten().all(fulfils)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> LabelSelector {
        serde_saphyr::from_str(text).expect("YAML")
    }

    #[test]
    fn all_that_is_wanted() {
        let labels =
            BTreeMap::from([("team".to_owned(), "a".to_owned()), ("tier".to_owned(), "x".to_owned())]);
        for (selector, want) in [
            ("{}", true),
            ("{matchLabels: {team: a}}", true),
            ("{matchLabels: {team: b}}", false),
            ("{matchExpressions: [{key: team, operator: In, values: [a, b]}]}", true),
            ("{matchExpressions: [{key: team, operator: NotIn, values: [a]}]}", false),
            ("{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}", true),
            ("{matchExpressions: [{key: team, operator: Exists}, {key: zone, operator: Exists}]}", false),
            ("{matchExpressions: [{key: zone, operator: DoesNotExist}]}", true),
            ("{matchLabels: {team: a}, matchExpressions: [{key: tier, operator: DoesNotExist}]}", false),
        ] {
            assert_eq!(matches(&parse(selector), Some(&labels)), want, "{selector}");
        }
        assert!(!matches(&parse("{matchLabels: {team: a}}"), None));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for bad in [
            "{matchExpressions: [{key: a, operator: in, values: [b]}]}",
            "{matchExpressions: [{key: a, operator: In}]}",
            "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        ] {
            assert!(check(&parse(bad)).is_err(), "{bad}");
        }
        check(&parse("{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}")).expect("good");
    }
}
