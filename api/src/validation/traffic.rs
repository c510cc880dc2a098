//! Shares of traffic.

use std::collections::BTreeMap;

use crate::field_error::{CURRENT, FieldErrors};
use crate::names;
use crate::serving::TrafficTarget;

/// Checks the targets of a spec; `of_service` where the configuration is implied.
pub(super) fn list(traffic: &[TrafficTarget], of_service: bool) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sum = 0_i64;
    for (at, target) in traffic.iter().enumerate() {
        errors.add(one(target, of_service).via_index(at));
        sum = sum.saturating_add(target.percent.unwrap_or_default());
        let Some(tag) = target.tag.as_deref().filter(|t| !t.is_empty()) else { continue };
        let problems = names::dns1035_label(tag);
        if !problems.is_empty() {
            let value = format!("not a DNS 1035 label: [{}]", problems.join(" "));
            errors.add(FieldErrors::invalid(value, &format!("tag[{at}]")));
        }
        match tags.get(tag) {
            Some(first) => {
                let paths = [format!("[{at}].tag"), format!("[{first}].tag")];
                errors.add(FieldErrors::new(
                    format!("Multiple definitions for {tag:?}"),
                    &[&paths[0], &paths[1]],
                ));
            }
            None => {
                tags.insert(tag, at);
            }
        }
    }
    if sum != 100 {
        errors.add(FieldErrors::new(format!("Traffic targets sum to {sum}, want 100"), &[CURRENT]));
    }
    errors
}

fn one(target: &TrafficTarget, of_service: bool) -> FieldErrors {
    let set = |s: &Option<String>| s.as_deref().filter(|s| !s.is_empty()).map(str::to_owned);
    let (revision, configuration) = (set(&target.revision_name), set(&target.configuration_name));
    let mut errors = FieldErrors::none();
    if let Some(latest) = target.latest_revision.filter(|latest| *latest == revision.is_some()) {
        let name = revision.as_deref().unwrap_or_default();
        let message = format!("may not set revisionName {name:?} when latestRevision is {latest}");
        errors.add(FieldErrors::new(message, &["latestRevision"]));
    }
    let bad_name = |name: &str, field: &str| match names::qualified_name(name) {
        problems if problems.is_empty() => FieldErrors::none(),
        problems => FieldErrors::invalid_key(name, field, &problems.join(", ")),
    };
    errors.add(match (revision, configuration) {
        (_, Some(_)) if of_service => FieldErrors::disallowed("configurationName"),
        (Some(_), Some(_)) => FieldErrors::multiple_one_of(&["revisionName", "configurationName"]),
        (Some(name), None) => bad_name(&name, "revisionName"),
        (None, Some(name)) => bad_name(&name, "configurationName"),
        (None, None) if of_service => FieldErrors::none(),
        (None, None) => FieldErrors::missing_one_of(&["revisionName", "configurationName"]),
    });
    if let Some(percent) = target.percent.filter(|p| !(0..=100).contains(p)) {
        errors.add(FieldErrors::out_of_bounds(percent, 0, 100, "percent"));
    }
    if set(&target.url).is_some() {
        errors.add(FieldErrors::disallowed("url"));
    }
    errors
}
