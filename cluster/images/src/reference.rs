use std::{fmt, net::IpAddr, str::FromStr};

use crate::{Digest, ImageError};

/// An image reference, completed by Docker's rules: `foo` is `docker.io/library/foo:latest`.
///
/// Grammar: `distribution/reference` (registry with port, path components, tag, digest).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry with its port, `docker.io` if none was written.
    pub registry: String,
    /// Repository path; with `library/` for Docker Hub's own images.
    pub repository: String,
    /// Tag; `latest` if neither tag nor digest were written.
    pub tag: Option<String>,
    /// Digest, which wins over the tag.
    pub digest: Option<Digest>,
}

const HUB: &str = "docker.io";

impl Reference {
    /// Parses and completes a reference.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`] with the rule that is broken.
    pub fn parse(name: &str) -> Result<Self, ImageError> {
        parse(name).map_err(|why| ImageError::InvalidName { name: name.to_owned(), why })
    }

    /// Registry and repository: `docker.io/library/foo`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The repository of the embedded registry that this name means, whatever the port: images of Docker Hub and of
    /// registries on this machine by their bare path (`foo`, `team/foo`), all others with their registry in front
    /// (`gcr.io/team/foo`).
    pub fn local_repository(&self) -> String {
        local_repository(&self.registry, &self.repository)
    }

    /// Whether the registry is on this machine's loopback, and so spoken to without TLS, as docker and containerd do.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }

    pub(crate) fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ImageError;
    fn from_str(name: &str) -> Result<Self, ImageError> {
        Self::parse(name)
    }
}

pub(crate) fn local_repository(registry: &str, repository: &str) -> String {
    if registry == HUB
        || registry == "index.docker.io"
        || registry == "registry-1.docker.io"
        || is_loopback(registry)
    {
        repository.strip_prefix("library/").unwrap_or(repository).to_owned()
    } else {
        // A colon cannot be in a repository's path, so a port is set off by an underscore.
        format!("{}/{repository}", registry.to_ascii_lowercase().replace(':', "_").replace(['[', ']'], ""))
    }
}

pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = if let Some(v6) = registry.strip_prefix('[') {
        v6.split(']').next().unwrap_or_default()
    } else {
        registry.rsplit_once(':').map_or(registry, |(host, _)| host)
    };
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A repository's path by the distribution specification.
pub(crate) fn is_repository(path: &str) -> bool {
    !path.is_empty() && path.len() <= 255 && path.split('/').all(is_component)
}

/// Lower case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut rest = bytes;
    loop {
        let word = rest.iter().take_while(|b| alnum(b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let joint = rest.iter().take_while(|b| !alnum(b)).count();
        if !matches!(&rest[..joint], b"." | b"_" | b"__") && !rest[..joint].iter().all(|b| *b == b'-') {
            return false;
        }
        rest = &rest[joint..];
    }
}

pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_registry(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => {
            let Some((address, port)) = v6.split_once(']') else { return false };
            if !address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
                return false;
            }
            ("x", port.strip_prefix(':').or(port.is_empty().then_some("0")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        },
    };
    port.is_some_and(|p| p.parse::<u16>().is_ok())
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("the name is empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    // A colon after the last slash starts a tag; one before it belongs to the registry's port.
    let tag_at = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
    let (name, tag) = match tag_at {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(format!(
            "tag {tag:?} must be up to 128 letters, digits, '_', '.', '-', and not start with '.' or '-'"
        ));
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => (HUB, name),
    };
    if !is_registry(registry) {
        return Err(format!("registry {registry:?} is not a host name with an optional port"));
    }
    let registry = if registry == "index.docker.io" { HUB } else { registry };
    let repository =
        if registry == HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if !is_repository(&repository) {
        return Err(if path.bytes().any(|b| b.is_ascii_uppercase()) {
            "repository name must be lowercase".into()
        } else {
            format!(
                "{path:?} is not a repository: lower case letters and digits, joined by '.', '_', '-' and '/'"
            )
        });
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (name, whole) in [
            ("foo", "docker.io/library/foo:latest"),
            ("foo:v1", "docker.io/library/foo:v1"),
            ("test.com:5000", "docker.io/library/test.com:5000"),
            ("test.com/a", "test.com/a:latest"),
            ("test:5000/a:b", "test:5000/a:b"),
            ("team/foo", "docker.io/team/foo:latest"),
            ("index.docker.io/foo", "docker.io/library/foo:latest"),
            ("localhost/foo", "localhost/foo:latest"),
            ("[::1]:5000/foo", "[::1]:5000/foo:latest"),
            ("gcr.io/a/b__c/d--e:V.1-x", "gcr.io/a/b__c/d--e:V.1-x"),
            (&format!("foo@sha256:{hex}"), &format!("docker.io/library/foo@sha256:{hex}")),
            (&format!("foo:v1@sha256:{hex}"), &format!("docker.io/library/foo:v1@sha256:{hex}")),
        ] {
            assert_eq!(Reference::parse(name).unwrap().to_string(), whole);
        }
    }

    #[test]
    fn bad_names_say_which_rule_they_break() {
        for (name, why) in [
            ("", "empty"),
            ("Foo", "lowercase"),
            ("foo:", "tag"),
            ("foo:-x", "tag"),
            ("a..b", "repository"),
            ("a/", "repository"),
            ("/a", "repository"),
            ("a___b", "repository"),
            ("-a.com/b", "registry"),
            ("a.com:x/b", "registry"),
            ("../../etc/passwd", "registry"),
            ("foo@sha256:12", "64"),
            ("foo bar", "repository"),
        ] {
            let error = Reference::parse(name).unwrap_err();
            assert!(matches!(error, ImageError::InvalidName { .. }));
            assert!(error.to_string().contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn hub_and_loopback_names_mean_local_repositories() {
        for (name, local) in [
            ("foo", "foo"),
            ("docker.io/library/foo", "foo"),
            ("team/foo", "team/foo"),
            ("localhost:5000/foo", "foo"),
            ("127.0.0.1:5000/library/foo", "foo"),
            ("registry.localhost:5000/a/b", "a/b"),
            ("gcr.io/a/b", "gcr.io/a/b"),
            ("host:5000/a", "host_5000/a"),
        ] {
            let reference = Reference::parse(name).unwrap();
            assert_eq!(reference.local_repository(), local);
            assert!(is_repository(&reference.local_repository()));
        }
    }
}
