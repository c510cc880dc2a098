//! What form of answer a client accepts.

use http::HeaderMap;
use http::header::ACCEPT;

use crate::error::ApiError;

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The object or list itself.
    Plain,
    /// A `Table` of `meta.k8s.io`.
    Table,
    /// `PartialObjectMetadata` or its list.
    Partial,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    /// The shape.
    pub shape: Shape,
    /// YAML instead of JSON.
    pub yaml: bool,
    /// Version of `meta.k8s.io` for the shapes.
    pub beta: bool,
    /// Without `managedFields`, where the answer is a stored object: clients in this process do not read them.
    pub lean: bool,
}

/// The parameters of one media type.
fn parameter<'a>(media: &'a str, name: &str) -> Option<&'a str> {
    media.split(';').skip(1).find_map(|part| {
        let (key, value) = part.trim().split_once('=')?;
        (key == name).then_some(value.trim())
    })
}

/// The media types accepted, in the client's order of preference.
pub(crate) fn media_types(headers: &HeaderMap) -> Vec<&str> {
    let mut types: Vec<(&str, u32)> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|media| !media.is_empty())
        .map(|media| {
            let quality: f32 = parameter(media, "q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
            (media, (quality * 1000.0) as u32)
        })
        .collect();
    types.sort_by_key(|(_, quality)| std::cmp::Reverse(*quality));
    types.into_iter().map(|(media, _)| media).collect()
}

impl Accept {
    /// Plain JSON.
    pub(crate) const JSON: Accept = Accept { shape: Shape::Plain, yaml: false, beta: false, lean: false };

    /// The first of the accepted forms that this server can produce.
    ///
    /// # Errors
    /// 406 if there is none.
    pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Self, ApiError> {
        let types = media_types(headers);
        if types.is_empty() {
            return Ok(Self::JSON);
        }
        for media in types {
            let base = media.split(';').next().unwrap_or_default().trim();
            let yaml = match base {
                "application/json" | "*/*" | "application/*" => false,
                "application/yaml" | "application/x-yaml" | "text/yaml" => true,
                _ => continue,
            };
            let beta = match parameter(media, "v") {
                None | Some("v1") => false,
                Some("v1beta1") => true,
                Some(_) => continue,
            };
            let shape = match (parameter(media, "as"), parameter(media, "g")) {
                (None, _) => Shape::Plain,
                (Some("Table"), Some("meta.k8s.io")) => Shape::Table,
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io")) => {
                    Shape::Partial
                }
                _ => continue,
            };
            return Ok(Self { shape, yaml, beta, lean: false });
        }
        Err(ApiError::not_acceptable())
    }

    /// Plain JSON, lean or not?
    pub(crate) fn is_json(self) -> bool {
        Accept { lean: false, ..self } == Self::JSON
    }

    /// The apiVersion of a `Table` or of partial metadata.
    pub(crate) fn meta_version(self) -> &'static str {
        if self.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &'static str) -> Result<Accept, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        Accept::negotiate(&headers)
    }

    #[test]
    fn kubectl_gets_its_table() {
        let accept = negotiate(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        );
        assert_eq!(accept.unwrap().shape, Shape::Table);
    }

    #[test]
    fn protobuf_falls_through_to_json_or_is_refused() {
        assert_eq!(negotiate("application/vnd.kubernetes.protobuf,application/json").unwrap(), Accept::JSON);
        assert!(negotiate("application/vnd.kubernetes.protobuf").is_err());
        assert!(negotiate("application/yaml").unwrap().yaml);
    }
}
