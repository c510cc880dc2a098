//! Which requests a rule is for.

use std::cmp::Reverse;

use http::{HeaderName, HeaderValue, Method};

use super::RequestParts;

/// Which paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// All that start with these letters, as KIngress has it.
    Letters(String),
    /// All that start with these segments, as Gateway API has it: `/a` is not for `/ab`. Kept without a slash at its end.
    Segments(String),
    /// This one.
    Exact(String),
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            PathMatch::Letters(prefix) => path.starts_with(prefix.as_str()),
            PathMatch::Segments(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathMatch::Exact(whole) => path == whole,
        }
    }

    /// How many bytes of a path that matches are its prefix.
    pub fn len(&self) -> usize {
        match self {
            PathMatch::Letters(path) | PathMatch::Segments(path) | PathMatch::Exact(path) => path.len(),
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for PathMatch {
    fn default() -> Self {
        PathMatch::Letters(String::new())
    }
}

/// Which requests. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// By path.
    pub path: PathMatch,
    /// By method.
    pub method: Option<Method>,
    /// By headers that must be there with this value.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// By parameters of the query; the first of a name counts.
    pub query: Vec<(String, String)>,
    /// Only over TLS, or only without.
    pub secure: Option<bool>,
}

impl Match {
    /// Whether a request is meant.
    pub fn matches(&self, request: &RequestParts<'_>) -> bool {
        self.path.matches(request.path)
            && self.secure.is_none_or(|secure| secure == request.secure)
            && self.method.as_ref().is_none_or(|method| method == request.method)
            && self
                .headers
                .iter()
                .all(|(name, value)| request.headers.get_all(name).iter().any(|got| got == value))
            && self.query.iter().all(|(name, value)| parameter(request.query, name) == Some(value))
    }

    /// What comes first where several match: an exact path, the longest prefix, a method, most headers, most parameters.
    pub fn precedence(&self) -> impl Ord + use<> {
        let exact = matches!(self.path, PathMatch::Exact(_));
        Reverse((exact, self.path.len(), self.method.is_some(), self.headers.len(), self.query.len()))
    }
}

/// The first value of a parameter, as it is written in the query.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|pair| pair.0 == name)
        .map(|pair| pair.1)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::table::Side;

    #[test]
    fn segments_letters_and_whole_paths() {
        let segments = PathMatch::Segments("/a/b".to_owned());
        for (path, expected) in
            [("/a/b", true), ("/a/b/", true), ("/a/b/c", true), ("/a/bc", false), ("/a", false)]
        {
            assert_eq!(segments.matches(path), expected, "{path}");
        }
        assert!(PathMatch::Segments(String::new()).matches("/anything"));
        assert!(PathMatch::Letters("/a".to_owned()).matches("/ab"));
        assert!(!PathMatch::Exact("/a".to_owned()).matches("/a/"));
    }

    #[test]
    fn every_condition_counts() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("1"));
        let request = RequestParts {
            side: Side::External,
            host: "h",
            path: "/p",
            query: Some("b=2&a=1&b=3&flag"),
            method: &Method::POST,
            headers: &headers,
            secure: false,
        };
        let query = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let all = Match {
            path: PathMatch::Exact("/p".to_owned()),
            method: Some(Method::POST),
            headers: vec![(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))],
            query: query("b", "2"),
            secure: Some(false),
        };
        assert!(all.matches(&request));
        assert!(Match::default().matches(&request));
        for other in [
            Match { path: PathMatch::Exact("/q".to_owned()), ..all.clone() },
            Match { method: Some(Method::GET), ..all.clone() },
            Match {
                headers: vec![(HeaderName::from_static("x-a"), HeaderValue::from_static("2"))],
                ..all.clone()
            },
            Match { query: query("b", "3"), ..all.clone() },
            Match { secure: Some(true), ..all.clone() },
        ] {
            assert!(!other.matches(&request), "{other:?}");
        }
        assert!(Match { query: query("flag", ""), ..Match::default() }.matches(&request));
    }
}
