//! create and update, and the way of every write: decode, default, admit, mutate, validate, commit.

use std::sync::Arc;

use cluster_schema::apply::{Manager, track_update};
use http::StatusCode;
use serde_json::Value;

use super::Ctx;
use crate::convert;
use crate::error::ApiError;
use crate::query::{FieldValidation, WriteOptions};
use crate::reply::{self, Reply};
use crate::store::{Commit, Conflict, Expect, Object};
use crate::webhooks::Operation;
use crate::{admit, meta, request, validate};

/// Attempts of a write that did not ask for a certain revision, when others write too.
const ATTEMPTS: usize = 8;

/// Who a write's fields belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Track {
    /// The write's manager takes over what it changed.
    Update,
    /// Server-side apply has said already.
    Applied,
}

/// What became of a write.
pub(crate) enum Outcome {
    /// It is stored.
    Stored(Arc<Object>),
    /// It would have been (dry run), in the version of the request.
    Dry(Value),
    /// Another writer was faster.
    Raced,
}

impl Outcome {
    pub(crate) async fn reply(self, ctx: &Ctx, code: StatusCode) -> Result<Reply, ApiError> {
        match self {
            Self::Stored(object) => {
                let object = ctx.shown(object).await?;
                Ok(reply::stored(code, ctx.accept, &ctx.resource, ctx.include, &object))
            }
            Self::Dry(object) => Ok(reply::object(code, ctx.accept, &ctx.resource, ctx.include, &object)),
            Self::Raced => Err(ApiError::modified(ctx.subject())),
        }
    }
}

impl Ctx {
    /// `kind` is that of the options: `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub(crate) fn write_options(&self, kind: &str) -> Result<WriteOptions, ApiError> {
        WriteOptions::from_query(&self.query, self.user_agent.as_deref(), kind)
    }

    pub(crate) fn invalid(&self, name: &str, errors: &[cluster_schema::FieldError]) -> ApiError {
        ApiError::invalid(&self.resource.group, &self.resource.kind, name, errors)
    }
}

/// POST on a collection.
pub(crate) async fn create(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let options = ctx.write_options("CreateOptions")?;
    let object = decode(ctx, body, options.field_validation)?;
    create_object(ctx, object, &options, Track::Update).await?.reply(ctx, StatusCode::CREATED).await
}

/// PUT on an object or its status.
pub(crate) async fn update(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let options = ctx.write_options("UpdateOptions")?;
    let object = decode(ctx, body, options.field_validation)?;
    if meta::name(&object) != ctx.object_name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta::name(&object),
            ctx.object_name()
        )));
    }
    if !ctx.resource.builtin && meta::text(&object, "resourceVersion").is_empty() {
        super::read::find(ctx)?;
        let detail = "must be specified for an update";
        let error = cluster_schema::FieldError::invalid("metadata.resourceVersion", &0.into(), detail);
        // As upstream, which puts the resource where other errors have the kind.
        let resource = &ctx.resource;
        return Err(ApiError::invalid(&resource.group, &resource.plural, ctx.object_name(), &[error]));
    }
    for _ in 0..ATTEMPTS {
        let old = super::read::find_shown(ctx).await?;
        match update_object(ctx, &old, object.clone(), &options, Track::Update).await? {
            Outcome::Raced => {}
            done => return done.reply(ctx, StatusCode::OK).await,
        }
    }
    Err(ApiError::modified(ctx.subject()))
}

/// PUT on a namespace's `finalize`: the namespace controller's last word.
pub(crate) async fn finalize_namespace(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let object = request::decode(ctx.content_type.as_deref(), body)?;
    for _ in 0..ATTEMPTS {
        let old = super::read::find(ctx)?;
        check_version(ctx, &old, &object)?;
        let mut new = old.value.clone();
        meta::carry("finalizers", &object["spec"], &mut new["spec"]);
        match commit_update(ctx, &old, new, false).await? {
            Outcome::Raced => {}
            done => return done.reply(ctx, StatusCode::OK).await,
        }
    }
    Err(ApiError::modified(ctx.subject()))
}

/// Reads the body and checks that it is what the path says; unknown fields as `validation` has it.
pub(crate) fn decode(ctx: &Ctx, body: &[u8], validation: FieldValidation) -> Result<Value, ApiError> {
    let mut object = request::decode(ctx.content_type.as_deref(), body)?;
    if !object.is_object() && serde_json::from_slice::<serde_json::Value>(body).is_ok() {
        return Err(ApiError::bad_request(request::no_object(&ctx.resource.kind, &object, body)));
    }
    check_kind(ctx, &mut object)?;
    if let Some(mismatch) = ctx.resource.schema().mismatch(&object) {
        let (kind, version) = (&ctx.resource.kind, &ctx.resource.version);
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {mismatch}"
        )));
    }
    // Clients in this process write what they serialised, in which no key stands twice.
    let twice = match validation {
        FieldValidation::Ignore => Vec::new(),
        _ if ctx.accept.lean => Vec::new(),
        _ => request::duplicates::find(body),
    };
    judge_fields(ctx, &mut object, validation, &twice)?;
    Ok(object)
}

/// Checks apiVersion, kind and namespace.
pub(crate) fn check_kind(ctx: &Ctx, object: &mut Value) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the body of the request is not an object"));
    }
    let resource = &ctx.resource;
    let api_version = resource.api_version();
    let given = (object["apiVersion"].as_str(), object["kind"].as_str());
    match given {
        (None | Some(""), None | Some("")) => {
            object["apiVersion"] = api_version.into();
            object["kind"] = resource.kind.clone().into();
        }
        (version, kind) => {
            if version != Some(&api_version) || kind != Some(&resource.kind) {
                return Err(ApiError::bad_request(wrong_kind(ctx, version, kind)));
            }
        }
    }
    meta::metadata(object);
    if resource.namespaced {
        let namespace = meta::namespace(object);
        if namespace.is_empty() {
            if ctx.namespace.is_empty() {
                return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
            }
            meta::set(object, "namespace", ctx.namespace.clone());
        } else if namespace != ctx.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    } else {
        meta::unset(object, "namespace");
    }
    Ok(())
}

/// What is said of an object of another kind than the path's: for two kinds of Kubernetes' own, what Kubernetes says.
fn wrong_kind(ctx: &Ctx, version: Option<&str>, kind: Option<&str>) -> String {
    let resource = &ctx.resource;
    let snapshot = ctx.server.registry.snapshot();
    let given = version.zip(kind).and_then(|(version, kind)| snapshot.find_kind(version, kind));
    match given {
        Some(given) if given.builtin && resource.builtin => {
            let (own, internal) = (&resource.kind, resource.group.split('.').next().unwrap_or_default());
            let internal = if internal.is_empty() { "core" } else { internal };
            format!(
                "{} in version \"{}\" cannot be handled as a {own}: converting ({}.{}) to ({internal}.{own}): unknown conversion",
                given.kind, given.version, given.version, given.kind
            )
        }
        _ => format!(
            "the object provided ({}, {}) is not of the kind that the path expects ({}, {})",
            version.unwrap_or("no apiVersion"),
            kind.unwrap_or("no kind"),
            resource.api_version(),
            resource.kind
        ),
    }
}

/// Refuses, warns of or drops unknown fields; drops nulls and what the schema does not know.
pub(crate) fn check_fields(
    ctx: &Ctx,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<(), ApiError> {
    judge_fields(ctx, object, validation, &[])
}

/// The same, with the fields that the body held twice.
fn judge_fields(
    ctx: &Ctx,
    object: &mut Value,
    validation: FieldValidation,
    twice: &[String],
) -> Result<(), ApiError> {
    let schema = ctx.resource.schema();
    if ctx.resource.builtin {
        meta::drop_nulls(object);
    }
    if validation != FieldValidation::Ignore {
        let unknown = schema.unknown_fields(object);
        let what: Vec<String> = twice
            .iter()
            .map(|path| format!("duplicate field \"{path}\""))
            .chain(unknown.iter().map(|path| format!("unknown field \"{path}\"")))
            .collect();
        if !what.is_empty() {
            if validation == FieldValidation::Strict {
                let (kind, version) = (&ctx.resource.kind, &ctx.resource.version);
                let prefix = format!("{kind} in version \"{version}\" cannot be handled as a {kind}: ");
                return Err(ApiError::bad_request(format!(
                    "{prefix}strict decoding error: {}",
                    what.join(", ")
                )));
            }
            what.into_iter().for_each(|warning| ctx.warn(warning));
        }
    }
    schema.prune(object);
    Ok(())
}

fn manager<'a>(ctx: &'a Ctx, options: &'a WriteOptions, api_version: &'a str) -> Manager<'a> {
    Manager { name: &options.field_manager, operation: "Update", subresource: &ctx.sub, api_version }
}

fn track(ctx: &Ctx, old: Option<&Value>, new: &mut Value, options: &WriteOptions) {
    // Written by the thousand and never by two managers: not worth the bytes.
    if matches!(ctx.resource.kind.as_str(), "Event" | "Lease") {
        return;
    }
    let api_version = ctx.resource.api_version();
    // What a new object says of its state is not its author's word.
    let status = if old.is_none() && ctx.resource.status && ctx.resource.builtin {
        new.as_object_mut().and_then(|map| map.remove("status"))
    } else {
        None
    };
    track_update(ctx.resource.schema(), old, new, &manager(ctx, options, &api_version), &meta::now());
    if let Some(status) = status {
        new["status"] = status;
    }
}

/// What is asked belongs to who asks: upstream says so even of reviews, which are never stored.
pub(crate) fn track_review(ctx: &Ctx, review: &mut Value) -> Result<(), ApiError> {
    let options = ctx.write_options("CreateOptions")?;
    track(ctx, None, review, &options);
    Ok(())
}

/// The same of a token that is asked for.
pub(crate) fn track_token(ctx: &Ctx, request: &mut Value) -> Result<(), ApiError> {
    const API: &str = "authentication.k8s.io/v1";
    let options = ctx.write_options("CreateOptions")?;
    if let Some(schema) = cluster_schema::Schema::builtin("authentication.k8s.io", "v1", "TokenRequest") {
        track_update(&schema, None, request, &manager(ctx, &options, API), &meta::now());
    }
    Ok(())
}

/// Kinds whose spec changes are counted in `metadata.generation`.
fn has_generation(ctx: &Ctx) -> bool {
    !ctx.resource.builtin
        || matches!(
            ctx.resource.kind.as_str(),
            "Pod"
                | "Deployment"
                | "ReplicaSet"
                | "StatefulSet"
                | "DaemonSet"
                | "ReplicationController"
                | "Job"
                | "CronJob"
                | "PodDisruptionBudget"
                | "PodTemplate"
                | "Ingress"
                | "IngressClass"
                | "NetworkPolicy"
                | "EndpointSlice"
                | "PriorityClass"
                | "CustomResourceDefinition"
                | "MutatingWebhookConfiguration"
                | "ValidatingWebhookConfiguration"
        )
}

/// Sends a new object, decoded and checked, through admission into the store.
pub(crate) async fn create_object(
    ctx: &Ctx,
    mut object: Value,
    options: &WriteOptions,
    tracking: Track,
) -> Result<Outcome, ApiError> {
    let resource = &ctx.resource;
    if !meta::text(&object, "resourceVersion").is_empty() {
        return Err(ApiError::failure("resourceVersion should not be set on objects to be created"));
    }
    if meta::name(&object).is_empty() {
        let prefix = meta::text(&object, "generateName");
        if prefix.is_empty() {
            let error =
                cluster_schema::FieldError::required("metadata.name", "name or generateName is required");
            return Err(ctx.invalid("", &[error]));
        }
        let name = admit::generate_name(prefix);
        meta::set(&mut object, "name", name);
    }
    let name = meta::name(&object).to_owned();
    admit::namespace_accepts(ctx, &name)?;
    if !resource.builtin {
        admit::crds::accepts(ctx, &name)?;
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta::unset(&mut object, field);
    }
    meta::set(&mut object, "uid", uuid::Uuid::new_v4().to_string());
    meta::set(&mut object, "creationTimestamp", meta::now());
    if has_generation(ctx) {
        meta::set(&mut object, "generation", 1);
    } else {
        meta::unset(&mut object, "generation");
    }
    if resource.status
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
    admit::prepare(resource, &mut object, None);
    resource.schema().default(&mut object);
    resource.schema().drop_empty(&mut object);
    // As upstream, before admission: what the server and webhooks fill in is nobody's.
    if tracking == Track::Update {
        meta::unset(&mut object, "managedFields");
        track(ctx, None, &mut object, options);
    }
    if resource.builtin && resource.kind == "Pod" {
        admit::serviceaccount::expect(ctx, &object).await;
    }
    let reserved = admit::create(ctx, &mut object, options.dry_run)?;
    if ctx.server.hooks.mutate(ctx, Operation::Create, None, &mut object, options.dry_run).await? {
        resource.schema().prune(&mut object);
        admit::prepare(resource, &mut object, None);
        resource.schema().default(&mut object);
    }
    let mut errors = validate::metadata(resource, &object);
    errors.extend(validate::schema(resource, &object, None));
    errors.extend(validate::object(ctx, &object, None));
    if !errors.is_empty() {
        return Err(ctx.invalid(&name, &errors));
    }
    ctx.server.hooks.validate(ctx, Operation::Create, None, Some(&object), options.dry_run).await?;
    let key = ctx.key(&name);
    if options.dry_run {
        admit::quota::admit(ctx, &object)?;
        if ctx.server.store.get(&key.kind, &key.namespace, &key.name).is_some() {
            return Err(ApiError::already_exists(resource.subject(&name)));
        }
        return Ok(Outcome::Dry(object));
    }
    let stored = ctx.stored(object).await?;
    let gate = admit::quota::admit(ctx, &stored)?;
    let put = ctx.server.store.put(&key, Expect::Absent, stored);
    drop(gate);
    let Ok(commit) = put else {
        return Err(ApiError::already_exists(resource.subject(&name)));
    };
    reserved.keep();
    Ok(Outcome::Stored(settle(ctx, commit).await?))
}

/// 409 if the writer saw another object or another state of it.
fn check_version(ctx: &Ctx, old: &Object, new: &Value) -> Result<(), ApiError> {
    let uid = meta::uid(new);
    if !uid.is_empty() && uid != meta::uid(&old.value) {
        return Err(ApiError::conflict(
            ctx.subject(),
            format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                old.key.kind.trim_start_matches('/'),
                if old.key.namespace.is_empty() {
                    old.key.name.clone()
                } else {
                    format!("{}/{}", old.key.namespace, old.key.name)
                },
                meta::uid(&old.value)
            ),
        ));
    }
    let seen = meta::text(new, "resourceVersion");
    if !seen.is_empty() && seen != "0" && seen != meta::text(&old.value, "resourceVersion") {
        return Err(ApiError::modified(ctx.subject()));
    }
    Ok(())
}

/// Sends a new state of an object, decoded and checked, through admission into the store.
pub(crate) async fn update_object(
    ctx: &Ctx,
    old: &Arc<Object>,
    mut new: Value,
    options: &WriteOptions,
    tracking: Track,
) -> Result<Outcome, ApiError> {
    let resource = &ctx.resource;
    check_version(ctx, old, &new)?;
    let before = convert::from_storage(resource, &old.value);
    let before = before.as_ref();
    // The server's own fields are not the client's to change.
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "name",
        "namespace",
    ] {
        meta::carry(field, &before["metadata"], &mut new["metadata"]);
    }
    if ctx.sub == "status" {
        new = with_status_of(ctx, before, new);
    } else if ctx.sub == "ephemeralcontainers" {
        new = super::ephemeral::only(before, &new);
    } else if resource.status {
        meta::carry("status", before, &mut new);
    }
    admit::prepare(resource, &mut new, Some(before));
    resource.schema().default(&mut new);
    let reset = new["metadata"]["managedFields"].is_array();
    resource.schema().drop_empty(&mut new);
    if tracking == Track::Update {
        // A client that sends an empty list gives up all tracking; one that sends none keeps it.
        if !reset {
            meta::carry("managedFields", &before["metadata"], &mut new["metadata"]);
        }
        track(ctx, Some(before), &mut new, options);
    }
    admit::update(ctx, &mut new, before)?;
    if ctx.server.hooks.mutate(ctx, Operation::Update, Some(before), &mut new, options.dry_run).await? {
        resource.schema().prune(&mut new);
        resource.schema().default(&mut new);
        if ctx.sub == "status" {
            new = with_status_of(ctx, before, new);
        } else if resource.status {
            meta::carry("status", before, &mut new);
        }
    }
    if matches!(ctx.sub.as_str(), "" | "ephemeralcontainers")
        && has_generation(ctx)
        && spec_changed(ctx, before, &new)
    {
        let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta::set(&mut new, "generation", generation);
    }
    let mut errors = validate::metadata(resource, &new);
    errors.extend(validate::metadata_update(resource, &new, before));
    errors.extend(validate::schema(resource, &new, Some(before)));
    if ctx.sub == "status" && !resource.builtin {
        // As upstream, which judges a status by itself and knows it by no prefix within the sentence.
        for error in &mut errors {
            if let Some(own) = error.field.strip_prefix("status.") {
                error.detail =
                    error.detail.replace(&format!("{} in body", error.field), &format!("{own} in body"));
            }
        }
    }
    errors.extend(validate::object(ctx, &new, Some(before)));
    if !errors.is_empty() {
        return Err(ctx.invalid(&old.key.name, &errors));
    }
    ctx.server.hooks.validate(ctx, Operation::Update, Some(before), Some(&new), options.dry_run).await?;
    commit_update(ctx, old, new, options.dry_run).await
}

/// The old object with the new status (and, for built-in types, the new labels and annotations).
fn with_status_of(ctx: &Ctx, old: &Value, mut new: Value) -> Value {
    let builtin = ctx.resource.builtin;
    meta::restore(old, &mut new, |field| matches!(field, "status" | "metadata"));
    meta::restore(&old["metadata"], &mut new["metadata"], |field| match field {
        "managedFields" => true,
        "annotations" | "labels" => builtin,
        _ => false,
    });
    new
}

fn spec_changed(ctx: &Ctx, old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return true };
    let counts = |field: &str| match field {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => !ctx.resource.status,
        _ => true,
    };
    old.iter().any(|(field, value)| counts(field) && new.get(field) != Some(value))
        || new.keys().any(|field| counts(field) && !old.contains_key(field))
}

/// Stores a new state, unless nothing changed; removes the object if its deletion waited only for this.
pub(crate) async fn commit_update(
    ctx: &Ctx,
    old: &Arc<Object>,
    new: Value,
    dry_run: bool,
) -> Result<Outcome, ApiError> {
    if dry_run {
        let mut new = new;
        meta::carry("resourceVersion", &old.value["metadata"], &mut new["metadata"]);
        return Ok(Outcome::Dry(new));
    }
    let new = ctx.stored(new).await?;
    let Some(before) = ctx.behind(old) else { return Ok(Outcome::Raced) };
    let store = &ctx.server.store;
    if super::delete::is_finished(&ctx.resource, &new) {
        // Watchers see the state that let it go, too.
        let written = match store.put(&old.key, Expect::Revision(old.revision), new) {
            Ok(commit) => commit.object,
            Err(conflict) => return raced(ctx, &conflict),
        };
        return match store.remove(&old.key, written.revision) {
            Ok(commit) => Ok(Outcome::Stored(settle(ctx, commit).await?)),
            Err(conflict) => raced(ctx, &conflict),
        };
    }
    if meta::same(&before.value, &new) {
        return Ok(Outcome::Stored(old.clone()));
    }
    match store.put(&old.key, Expect::Revision(old.revision), new) {
        Ok(commit) => Ok(Outcome::Stored(settle(ctx, commit).await?)),
        Err(conflict) => raced(ctx, &conflict),
    }
}

fn raced(ctx: &Ctx, conflict: &Conflict) -> Result<Outcome, ApiError> {
    match conflict {
        Conflict::Missing => Err(ApiError::not_found(ctx.subject())),
        Conflict::Exists | Conflict::Changed => Ok(Outcome::Raced),
    }
}

/// Does what follows a write in this process at once, then waits for the disk.
pub(crate) async fn settle(ctx: &Ctx, commit: Commit) -> Result<Arc<Object>, ApiError> {
    admit::committed(&ctx.server, &commit.object);
    Ok(commit.durable().await?)
}
