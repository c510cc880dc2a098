//! The query string of a request.

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

    /// A number.
    ///
    /// # Errors
    /// 400 if it is none.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        self.get(key)
            .map(|value| {
                value.parse().map_err(|_| {
                    ApiError::bad_request(format!("invalid {key}: {value:?} is not a non-negative number"))
                })
            })
            .transpose()
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
        let revision_match = match query.get("resourceVersionMatch") {
            None => None,
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            Some("Exact") => Some(Match::Exact),
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
        };
        let send_initial_events = query.get("sendInitialEvents").map(|value| value == "true" || value == "1");
        let watch = query.flag("watch");
        if send_initial_events.is_some() {
            if !watch {
                return Err(ApiError::bad_request("sendInitialEvents is forbidden for list"));
            }
            if revision_match != Some(Match::NotOlderThan) {
                return Err(ApiError::bad_request(
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
        } else if watch && revision_match.is_some() {
            return Err(ApiError::bad_request(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        Ok(Self {
            labels,
            fields,
            limit: query.number("limit")?.filter(|limit| *limit > 0).map(|limit| limit as usize),
            continue_token: query.get("continue").map(str::to_owned),
            revision: query.number("resourceVersion")?,
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
    /// From the query and, for the manager's name, the user agent.
    ///
    /// # Errors
    /// 400 with what is wrong.
    pub(crate) fn from_query(query: &Query, user_agent: Option<&str>) -> Result<Self, ApiError> {
        let mut dry_run = false;
        for value in query.all("dryRun") {
            match value {
                "All" => dry_run = true,
                "" => {}
                other => {
                    return Err(ApiError::bad_request(format!(
                        "dryRun: Unsupported value: [\"{other}\"]: supported values: \"All\""
                    )));
                }
            }
        }
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        let agent = || {
            // As upstream: the user agent up to the first slash.
            let agent = user_agent.unwrap_or("unknown").split('/').next().unwrap_or("unknown");
            agent.chars().take(128).collect()
        };
        let field_manager = query.get("fieldManager").map_or_else(agent, str::to_owned);
        Ok(Self { dry_run, field_validation, field_manager, force: query.flag("force") })
    }
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
        let parse = |text, agent| WriteOptions::from_query(&Query::parse(Some(text)), agent);
        let options = parse("dryRun=All&fieldValidation=Strict", Some("kubectl/v1.32 (linux)")).unwrap();
        assert!(options.dry_run && options.field_validation == FieldValidation::Strict);
        assert_eq!(options.field_manager, "kubectl");
        assert!(parse("dryRun=some", None).is_err());
    }
}
