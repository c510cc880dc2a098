//! What a request's URL asks for. Repository names have slashes, so paths are read from their end.

use http::Uri;
use percent_encoding::percent_decode_str;

use super::failure::{Code, Failure};
use crate::{
    Digest,
    reference::{is_repository, is_tag, local_repository},
};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Tag(String),
    Digest(Digest),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Base,
    Catalog,
    Tags,
    Referrers(Digest),
    Blob(Digest),
    Uploads,
    Upload(String),
    Manifest(Name),
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) target: Target,
    /// As in the URL, for links in answers.
    pub(super) written: String,
    /// The local repository that it means.
    pub(super) repository: String,
    query: Vec<(String, String)>,
}

impl Call {
    pub(super) fn parse(uri: &Uri) -> Result<Self, Failure> {
        let query: Vec<_> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (decode(key), decode(value)))
            .collect();
        let path = decode_path(uri.path());
        let rest = path.strip_prefix("/v2").unwrap_or_default().trim_start_matches('/');
        let call = |target, written: &str| {
            if !is_repository(written) {
                let why = "a repository is lower case letters and digits, joined by '.', '_', '-' and '/', at most 255";
                return Err(Failure::new(
                    Code::NameInvalid,
                    format!("{written:?} is not a repository: {why}"),
                ));
            }
            let namespace = query.iter().find(|(k, _)| k == "ns").map_or("docker.io", |(_, v)| v.as_str());
            Ok(Self {
                target,
                written: written.to_owned(),
                repository: local_repository(namespace, written),
                query: query.clone(),
            })
        };
        match rest {
            "" => {
                return Ok(Self {
                    target: Target::Base,
                    written: String::new(),
                    repository: String::new(),
                    query,
                });
            }
            "_catalog" => {
                return Ok(Self {
                    target: Target::Catalog,
                    written: String::new(),
                    repository: String::new(),
                    query,
                });
            }
            _ => {}
        }
        let unknown =
            || Failure::new(Code::NameUnknown, format!("/v2/{rest} is no path of the distribution API"));
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return call(Target::Tags, name);
        }
        if let Some(name) =
            rest.strip_suffix("/blobs/uploads").or_else(|| rest.strip_suffix("/blobs/uploads/"))
        {
            return call(Target::Uploads, name);
        }
        let (front, last) = rest.rsplit_once('/').ok_or_else(unknown)?;
        let digest = || last.parse::<Digest>().map_err(|why| Failure::new(Code::DigestInvalid, why));
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            call(Target::Upload(last.to_owned()), name)
        } else if let Some(name) = front.strip_suffix("/blobs") {
            call(Target::Blob(digest()?), name)
        } else if let Some(name) = front.strip_suffix("/referrers") {
            call(Target::Referrers(digest()?), name)
        } else if let Some(name) = front.strip_suffix("/manifests") {
            let manifest = if last.contains(':') {
                Name::Digest(digest()?)
            } else if is_tag(last) {
                Name::Tag(last.to_owned())
            } else {
                return Err(Failure::new(
                    Code::ManifestInvalid,
                    format!("{last:?} is neither a tag nor a digest"),
                ));
            };
            call(Target::Manifest(manifest), name)
        } else {
            Err(unknown())
        }
    }

    pub(super) fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn decode_path(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = Digest::of(b"");
        let parse = |path: String| Call::parse(&path.parse().unwrap());
        for (path, repository, target) in [
            ("/v2/a/tags/list".into(), "a", Target::Tags),
            ("/v2/library/a/manifests/v1?ns=docker.io".into(), "a", Target::Manifest(Name::Tag("v1".into()))),
            ("/v2/x/y/manifests/v1?ns=gcr.io".into(), "gcr.io/x/y", Target::Manifest(Name::Tag("v1".into()))),
            (
                format!("/v2/a/b/c/manifests/{digest}"),
                "a/b/c",
                Target::Manifest(Name::Digest(digest.clone())),
            ),
            (format!("/v2/a/blobs/sha256%3A{}", digest.hex()), "a", Target::Blob(digest.clone())),
            ("/v2/blobs/blobs/uploads/".into(), "blobs", Target::Uploads),
            ("/v2/a/blobs/uploads/1-2".into(), "a", Target::Upload("1-2".into())),
            (format!("/v2/a/referrers/{digest}"), "a", Target::Referrers(digest.clone())),
            ("/v2/_catalog".into(), "", Target::Catalog),
        ] {
            let call = parse(path.clone()).unwrap();
            assert_eq!((call.target, call.repository.as_str()), (target, repository), "{path}");
        }
        for bad in [
            "/v2/A/tags/list",
            "/v2/../../x/tags/list",
            "/v2/a/manifests/.x",
            "/v2/a/blobs/sha256:..%2f",
            "/v2/a",
            "/v2/a%2f..%2fb/tags/list",
        ] {
            assert!(parse(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
