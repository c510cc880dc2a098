//! The kinds between the components, which a user or another gateway may write by hand.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{annotations, metadata, only};
use crate::autoscaling::{Metric, MetricSpec, PodAutoscaler, PodAutoscalerSpec};
use crate::caching::Image;
use crate::config::Configs;
use crate::field_error::{CURRENT, FieldErrors};
use crate::names;
use crate::networking::{
    Certificate, HttpIngressPath, Ingress, IngressBackendSplit, IngressRule, IngressSpec, IngressTls,
    ServerlessService, ServerlessServiceSpec,
};

/// Checks an Ingress.
#[must_use]
pub fn ingress(object: &Ingress) -> FieldErrors {
    let spec = &object.spec;
    if *spec == IngressSpec::default() {
        return FieldErrors::missing("spec");
    }
    let mut errors = FieldErrors::none();
    if spec.rules.is_empty() {
        errors.add(FieldErrors::missing("rules"));
    }
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    for (at, found) in spec.rules.iter().enumerate() {
        errors.add(rule(found, namespace).via_field_index("rules", at));
    }
    for (at, found) in spec.tls.iter().enumerate() {
        errors.add(tls(found).via_field_index("tls", at));
    }
    errors.via_field("spec")
}

fn rule(rule: &IngressRule, namespace: &str) -> FieldErrors {
    if *rule == IngressRule::default() {
        return FieldErrors::missing(CURRENT);
    }
    let Some(http) = &rule.http else { return FieldErrors::missing("http") };
    if http.paths.is_empty() {
        return FieldErrors::missing("paths").via_field("http");
    }
    let mut errors = FieldErrors::none();
    for (at, found) in http.paths.iter().enumerate() {
        errors.add(path(found, namespace).via_field_index("paths", at));
    }
    errors.via_field("http")
}

fn path(path: &HttpIngressPath, namespace: &str) -> FieldErrors {
    if *path == HttpIngressPath::default() {
        return FieldErrors::missing(CURRENT);
    }
    if path.splits.is_empty() {
        return FieldErrors::missing("splits");
    }
    let mut total: i64 = 0;
    for (at, found) in path.splits.iter().enumerate() {
        let errors = split(found, namespace);
        if !errors.is_ok() {
            return errors.via_field_index("splits", at);
        }
        total += i64::from(found.percent);
    }
    // A single split without a percentage takes all.
    if total == 100 || (path.splits.len() == 1 && total == 0) {
        return FieldErrors::none();
    }
    FieldErrors::new(format!("traffic split percentage must total to 100, but was {total}"), &["splits"])
}

fn split(split: &IngressBackendSplit, namespace: &str) -> FieldErrors {
    let mut errors = FieldErrors::none();
    if !(0..=100).contains(&split.percent) {
        errors.add(FieldErrors::invalid(split.percent, "percent"));
    }
    if split.service_namespace.is_empty() {
        errors.add(FieldErrors::missing("serviceNamespace"));
    } else if split.service_namespace != namespace {
        errors.add(FieldErrors::new("service namespace must match ingress namespace", &["serviceNamespace"]));
    }
    if split.service_name.is_empty() {
        errors.add(FieldErrors::missing("serviceName"));
    }
    if split.service_port == IntOrString::Int(0) {
        errors.add(FieldErrors::missing("servicePort"));
    }
    errors
}

fn tls(tls: &IngressTls) -> FieldErrors {
    if *tls == IngressTls::default() {
        return FieldErrors::missing(CURRENT);
    }
    let mut errors = FieldErrors::none();
    if tls.secret_name.is_empty() {
        errors.add(FieldErrors::missing("secretName"));
    }
    if tls.secret_namespace.as_ref().is_none_or(String::is_empty) {
        errors.add(FieldErrors::missing("secretNamespace"));
    }
    errors
}

/// Checks a Certificate.
#[must_use]
pub fn certificate(object: &Certificate) -> FieldErrors {
    let spec = &object.spec;
    let mut errors = FieldErrors::none();
    if spec.dns_names.is_empty() {
        errors.add(FieldErrors::missing("dnsNames"));
    }
    for (at, _) in spec.dns_names.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        errors.add(FieldErrors::invalid("", CURRENT).via_field_index("dnsNames", at));
    }
    if spec.secret_name.is_empty() {
        errors.add(FieldErrors::missing("secretName"));
    }
    let domain = spec.domain.as_deref().unwrap_or_default();
    let covers = |name: &String| name == domain || name.ends_with(&format!(".{domain}"));
    if !domain.is_empty() && !spec.dns_names.is_empty() && !spec.dns_names.iter().any(covers) {
        let rule = "must be one of dnsNames, or what one of them ends with after a dot";
        errors.add(FieldErrors::invalid(domain, "domain").with_details(rule));
    }
    errors.via_field("spec")
}

/// Checks a ServerlessService.
#[must_use]
pub fn serverless_service(object: &ServerlessService) -> FieldErrors {
    let spec = &object.spec;
    let found = annotations::networking(object.metadata.annotations.as_ref()).via_field("annotations");
    let mut errors = found.via_field("metadata");
    if *spec == ServerlessServiceSpec::default() {
        return errors.also(FieldErrors::missing("spec"));
    }
    let mut of_spec = reference(&spec.object_ref).via_field("objectRef");
    if spec.num_activators < 0 {
        of_spec.add(FieldErrors::invalid(spec.num_activators, "numActivators"));
    }
    errors.add(of_spec.via_field("spec"));
    errors
}

/// Checks a PodAutoscaler.
#[must_use]
pub fn pod_autoscaler(object: &PodAutoscaler, configs: &Configs) -> FieldErrors {
    let spec = &object.spec;
    let mut errors = scaled(&object.metadata, configs);
    if *spec == PodAutoscalerSpec::default() {
        return errors.also(FieldErrors::missing("spec"));
    }
    let mut of_spec = reference(&spec.scale_target_ref).via_field("scaleTargetRef");
    of_spec.add(super::concurrency(spec.container_concurrency, configs));
    errors.add(of_spec.via_field("spec"));
    errors
}

/// Checks a Metric.
#[must_use]
pub fn metric(object: &Metric, configs: &Configs) -> FieldErrors {
    let mut errors = scaled(&object.metadata, configs);
    if object.spec == MetricSpec::default() {
        errors.add(FieldErrors::missing("spec"));
    }
    errors
}

fn scaled(found: &ObjectMeta, configs: &Configs) -> FieldErrors {
    let of_annotations = annotations::autoscaling(found.annotations.as_ref(), configs);
    metadata(found).also(of_annotations.via_field("annotations")).via_field("metadata")
}

/// Checks an Image.
#[must_use]
pub fn image(object: &Image) -> FieldErrors {
    if object.spec.image.is_empty() {
        return FieldErrors::missing("image").via_field("spec");
    }
    let mut errors = FieldErrors::none();
    for (at, _) in object.spec.image_pull_secrets.iter().enumerate().filter(|(_, s)| s.name.is_empty()) {
        errors.add(FieldErrors::missing("name").via_field_index("imagePullSecrets", at));
    }
    errors.via_field("spec")
}

/// Checks a reference to an object of the same namespace.
fn reference(to: &ObjectReference) -> FieldErrors {
    let mut errors = only(to, &["apiVersion", "kind", "name"]);
    let identifier = |text: &str| {
        let good = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if good && first { Vec::new() } else { vec![NOT_AN_IDENTIFIER.to_owned()] }
    };
    for (field, value, check) in [
        ("apiVersion", &to.api_version, &names::qualified_name as &dyn Fn(&str) -> Vec<String>),
        ("kind", &to.kind, &identifier),
        ("name", &to.name, &names::dns1123_label),
    ] {
        let value = value.as_deref().unwrap_or_default();
        let problems = check(value);
        if value.is_empty() {
            errors.add(FieldErrors::missing(field));
        } else if !problems.is_empty() {
            errors.add(FieldErrors::invalid(problems.join(", "), field));
        }
    }
    errors
}

const NOT_AN_IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
