//! Webhooks: which configurations there are, and what a request tells them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cluster_admission::{Attributes, Denied, Gv, Resolver, UserInfo, Webhooks};
use futures::future::BoxFuture;
use serde_json::{Value, json};

pub(crate) use cluster_admission::Operation;

use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::store::{Object, Store};
use crate::{convert, meta};

const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
const VALIDATING: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";
const SLICES: &str = "discovery.k8s.io/endpointslices";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Finds a Service's address among its ready endpoints: no proxy is needed between this server and a webhook.
struct Endpoints {
    store: Arc<Store>,
}

impl Endpoints {
    fn find(&self, namespace: &str, name: &str, port: u16) -> Result<SocketAddr, String> {
        let service = self
            .store
            .get("/services", namespace, name)
            .ok_or_else(|| format!("service \"{name}\" not found in namespace \"{namespace}\""))?;
        let ports = service.value["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = ports
            .iter()
            .find(|own| own["port"].as_u64() == Some(u64::from(port)))
            .ok_or_else(|| format!("service \"{name}\" has no port {port}"))?;
        let port_name = wanted["name"].as_str().unwrap_or_default();
        for slice in self.store.list(SLICES, Some(namespace)).1 {
            if slice.value["metadata"]["labels"][SERVICE_NAME] != name {
                continue;
            }
            let ports = slice.value["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
            let number = ports
                .iter()
                .find(|own| own["name"].as_str().unwrap_or_default() == port_name)
                .and_then(|own| u16::try_from(own["port"].as_u64()?).ok());
            let endpoints = slice.value["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
            let address = endpoints
                .iter()
                .filter(|endpoint| endpoint["conditions"]["ready"] != false)
                .find_map(|endpoint| endpoint["addresses"][0].as_str()?.parse::<IpAddr>().ok());
            if let (Some(address), Some(number)) = (address, number) {
                return Ok(SocketAddr::new(address, number));
            }
        }
        Err(format!("no endpoints available for service \"{name}\""))
    }
}

impl Resolver for Endpoints {
    fn resolve<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<SocketAddr, String>> {
        Box::pin(std::future::ready(self.find(namespace, name, port)))
    }
}

/// Calls the webhooks that are configured.
pub(crate) struct Hooks {
    webhooks: Webhooks,
    store: Arc<Store>,
}

impl Hooks {
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        Self { webhooks: Webhooks::new(Arc::new(Endpoints { store: store.clone() })), store: store.clone() }
    }

    /// The configurations of a kind, if one of them names what the request does to what: for most writes, none does.
    fn concerned(&self, kind: &str, ctx: &Ctx, operation: Operation) -> Option<Vec<Arc<Object>>> {
        let configurations = self.store.list(kind, None).1;
        let resource = &ctx.resource;
        let named = |object: &Arc<Object>| {
            cluster_admission::names(
                &object.value,
                operation,
                (&resource.group, &resource.version, &resource.plural),
                &ctx.sub,
            )
        };
        configurations.iter().any(named).then_some(configurations)
    }

    /// Lets mutating webhooks change the object; was any asked?
    pub(crate) async fn mutate(
        &self,
        ctx: &Ctx,
        operation: Operation,
        old: Option<&Value>,
        object: &mut Value,
        dry_run: bool,
    ) -> Result<bool, ApiError> {
        let Some(configurations) = self.concerned(MUTATING, ctx, operation) else { return Ok(false) };
        let configurations: Vec<&Value> = configurations.iter().map(|object| &*object.value).collect();
        let attributes = self.attributes(ctx, operation, old, Some(object), dry_run);
        let warnings = self.webhooks.mutate(&configurations, &attributes, object).await.map_err(denied)?;
        warnings.into_iter().for_each(|warning| ctx.warn(warning));
        Ok(true)
    }

    /// Asks validating webhooks.
    pub(crate) async fn validate(
        &self,
        ctx: &Ctx,
        operation: Operation,
        old: Option<&Value>,
        object: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        let Some(configurations) = self.concerned(VALIDATING, ctx, operation) else { return Ok(()) };
        let configurations: Vec<&Value> = configurations.iter().map(|object| &*object.value).collect();
        let attributes = self.attributes(ctx, operation, old, object, dry_run);
        let object = object.unwrap_or(&Value::Null);
        let warnings = self.webhooks.validate(&configurations, &attributes, object).await.map_err(denied)?;
        warnings.into_iter().for_each(|warning| ctx.warn(warning));
        Ok(())
    }

    /// Asks validating webhooks about a deletion.
    pub(crate) async fn validate_deletion(
        &self,
        ctx: &Ctx,
        old: &Arc<Object>,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        if self.concerned(VALIDATING, ctx, Operation::Delete).is_none() {
            return Ok(());
        }
        let old = ctx.shown(old.clone()).await?;
        let old = convert::from_storage(&ctx.resource, &old.value);
        self.validate(ctx, Operation::Delete, Some(&old), None, dry_run).await
    }

    /// Converts objects of one kind to `wanted`, by `spec.conversion` of their definition.
    pub(crate) async fn convert(
        &self,
        conversion: &Value,
        wanted: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        self.webhooks.convert(conversion, wanted, objects).await.map_err(ApiError::failure)
    }

    fn attributes(
        &self,
        ctx: &Ctx,
        operation: Operation,
        old: Option<&Value>,
        object: Option<&Value>,
        dry_run: bool,
    ) -> Attributes {
        let resource = &ctx.resource;
        let gv = |name: &str| Gv {
            group: resource.group.clone(),
            version: resource.version.clone(),
            name: name.to_owned(),
        };
        let labels = |object: &Value| -> Vec<(String, String)> {
            let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
            labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
        };
        let current = object.or(old).unwrap_or(&Value::Null);
        let is_namespace = resource.builtin && resource.kind == "Namespace";
        let namespace = if is_namespace {
            Some(meta::name(current).to_owned())
        } else {
            resource.namespaced.then(|| ctx.namespace.clone())
        };
        let namespace_labels = if is_namespace {
            labels(current)
        } else {
            let namespace = self.store.get("/namespaces", "", &ctx.namespace);
            namespace.map(|namespace| labels(&namespace.value)).unwrap_or_default()
        };
        let kind = match operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => "ConnectOptions",
        };
        Attributes {
            uid: uuid::Uuid::new_v4().to_string(),
            gvk: gv(&resource.kind),
            gvr: gv(&resource.plural),
            sub_resource: ctx.sub.clone(),
            name: meta::name(current).to_owned(),
            namespace,
            namespace_labels,
            operation,
            user_info: UserInfo {
                username: ctx.user.name.clone(),
                uid: ctx.user.uid.clone(),
                groups: ctx.user.groups.clone(),
                extra: if ctx.user.extra.is_empty() {
                    Value::Null
                } else {
                    Value::Object(ctx.user.extra.clone())
                },
            },
            dry_run,
            options: json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"}),
            old_object: old.cloned().unwrap_or(Value::Null),
        }
    }
}

fn denied(denied: Denied) -> ApiError {
    ApiError::denied(denied.code, &denied.reason, denied.message, denied.details)
}
