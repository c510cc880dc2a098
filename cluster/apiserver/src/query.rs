//! The query string of a request.

use cluster_schema::FieldError;

use crate::error::ApiError;
use crate::selector::{FieldSelector, LabelSelector};

/// Parameters of a request, decoded; of repeated ones the first counts (see [`Query::all`]).
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Parses a raw query string.
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        Self { pairs }
    }

    /// Puts a parameter in place of what the client sent under that name.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.pairs.retain(|(name, _)| name != key);
        self.pairs.push((key.to_owned(), value.to_owned()));
    }

    /// The first value, if it is not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let found = self.pairs.iter().find(|(name, _)| name == key)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// All values.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Is it `true` or `1`? (`?watch` alone counts too.)
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.pairs
            .iter()
            .find(|(name, _)| name == key)
            .is_some_and(|(_, value)| matches!(value.as_str(), "true" | "1" | "True" | ""))
    }

    /// A number; one below zero counts as absent.
    ///
    /// # Errors
    /// 400 if it is none.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number: i64 = value.parse().map_err(|_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax"))
        })?;
        Ok(u64::try_from(number).ok())
    }

    /// `resourceVersion`, if it is there.
    ///
    /// # Errors
    /// As upstream: 400 of a list, 500 of a watch.
    pub(crate) fn revision(&self, watch: bool) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get("resourceVersion") else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            let message = format!(
                "resourceVersion: Invalid value: {value:?}: strconv.ParseUint: parsing {value:?}: invalid syntax"
            );
            if watch { ApiError::failure(message) } else { ApiError::bad_request(format!("invalid resource version: {message}")) }
        })
    }
}

/// How a list may relate to `resourceVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// Anything at least as new.
    NotOlderThan,
    /// Exactly that revision.
    Exact,
}

/// What a list or watch asks for.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    /// `labelSelector`.
    pub labels: LabelSelector,
    /// `fieldSelector`.
    pub fields: FieldSelector,
    /// `limit`, if not zero.
    pub limit: Option<usize>,
    /// `continue`.
    pub continue_token: Option<String>,
    /// `resourceVersion`: none if absent; `0` means any.
    pub revision: Option<u64>,
    /// `resourceVersionMatch`.
    pub revision_match: Option<Match>,
    /// `allowWatchBookmarks`.
    pub bookmarks: bool,
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<u64>,
    /// `sendInitialEvents`.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// From the query.
    ///
    /// # Errors
    /// 400 or 422 with what is wrong.
    pub(crate) fn from_query(query: &Query) -> Result<Self, ApiError> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(ApiError::bad_request)?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
            .map_err(ApiError::bad_request)?;
        let send_initial_events = query.get("sendInitialEvents").map(|value| value == "true" || value == "1");
        let watch = query.flag("watch");
        let errors = option_errors(query, watch, send_initial_events.is_some());
        if !errors.is_empty() {
            return Err(ApiError::options("ListOptions", &errors));
        }
        let revision_match = match query.get("resourceVersionMatch") {
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            Some("Exact") => Some(Match::Exact),
            _ => None,
        };
        Ok(Self {
            labels,
            fields,
            limit: query.number("limit")?.filter(|limit| *limit > 0).map(|limit| limit as usize),
            continue_token: query.get("continue").map(str::to_owned),
            revision: query.revision(watch)?,
            revision_match,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds: query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0),
            send_initial_events,
        })
    }

    /// Is this object asked for?
    pub(crate) fn selects(&self, object: &serde_json::Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}

/// What `ListOptions` may not say together.
fn option_errors(query: &Query, watch: bool, initial_events: bool) -> Vec<FieldError> {
    const MATCH: &str = "resourceVersionMatch";
    let mut errors = Vec::new();
    let wanted = query.get(MATCH);
    let revision = query.get("resourceVersion");
    if watch || initial_events {
        if wanted.is_some() && !initial_events {
            let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(MATCH, detail));
        }
        if initial_events {
            if !watch {
                errors.push(FieldError::forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for list",
                ));
            } else if wanted != Some("NotOlderThan") {
                let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                errors.push(FieldError::forbidden(MATCH, detail));
            }
        }
        return errors;
    }
    let Some(wanted) = wanted else { return errors };
    if revision.is_none() {
        errors.push(FieldError::forbidden(
            MATCH,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if query.get("continue").is_some() {
        errors.push(FieldError::forbidden(
            MATCH,
            "resourceVersionMatch is forbidden when continue is provided",
        ));
    }
    if !matches!(wanted, "Exact" | "NotOlderThan") {
        errors.push(FieldError::not_supported(MATCH, &wanted.into(), &["Exact", "NotOlderThan", ""]));
    }
    if wanted == "Exact" && revision == Some("0") {
        let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
        errors.push(FieldError::forbidden(MATCH, detail));
    }
    errors
}

/// `fieldValidation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Unknown fields are an error.
    Strict,
    /// Unknown fields are warned of.
    Warn,
    /// Unknown fields are dropped in silence.
    Ignore,
}

/// What a write asks for.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    /// `dryRun=All`.
    pub dry_run: bool,
    /// `fieldValidation`.
    pub field_validation: FieldValidation,
    /// `fieldManager`.
    pub field_manager: String,
    /// `force` of an apply.
    pub force: bool,
}

impl WriteOptions {
    /// From the query and, for the manager's name, the user agent. `kind` is that of the options as a whole: `CreateOptions`,
    /// `UpdateOptions` or `PatchOptions`.
    ///
    /// # Errors
    /// 422 with what is wrong.
    pub(crate) fn from_query(query: &Query, user_agent: Option<&str>, kind: &str) -> Result<Self, ApiError> {
        let dry: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
        let mut errors: Vec<FieldError> = dry_run_error(&dry).into_iter().collect();
        let dry_run = !dry.is_empty();
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported("fieldValidation", &other.into(), &supported));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::options(kind, &errors));
        }
        let agent = || {
            // As upstream: the user agent up to the first slash.
            let agent = user_agent.unwrap_or("unknown").split('/').next().unwrap_or("unknown");
            agent.chars().take(128).collect()
        };
        let field_manager = query.get("fieldManager").map_or_else(agent, str::to_owned);
        Ok(Self { dry_run, field_validation, field_manager, force: query.flag("force") })
    }
}

/// What is wrong with the values of `dryRun`.
pub(crate) fn dry_run_error(values: &[&str]) -> Option<FieldError> {
    let all = values.iter().all(|value| *value == "All");
    (!all).then(|| FieldError::not_supported("dryRun", &values.into(), &["All"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_options() {
        let parse = |text| ListOptions::from_query(&Query::parse(Some(text)));
        let options = parse("limit=500&labelSelector=a%3Db&resourceVersion=0&watch=1").unwrap();
        assert_eq!((options.limit, options.revision), (Some(500), Some(0)));
        assert!(parse("limit=x").is_err());
        assert!(parse("sendInitialEvents=true&watch=1").is_err());
        assert!(parse("sendInitialEvents=true&watch=1&resourceVersionMatch=NotOlderThan").is_ok());
    }

    #[test]
    fn write_options() {
        let parse = |text, agent| WriteOptions::from_query(&Query::parse(Some(text)), agent, "CreateOptions");
        let options = parse("dryRun=All&fieldValidation=Strict", Some("kubectl/v1.32 (linux)")).unwrap();
        assert!(options.dry_run && options.field_validation == FieldValidation::Strict);
        assert_eq!(options.field_manager, "kubectl");
        assert!(parse("dryRun=some", None).is_err());
    }
}
