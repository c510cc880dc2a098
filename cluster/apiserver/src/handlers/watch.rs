//! watch: a stream of events as JSON lines.
//!
//! An event's bytes are made once and shared by all watchers of the stored version; only those with a selector that the
//! object enters or leaves, or who want tables, get bytes of their own. The stream follows the store's change log, so a
//! slow client holds nothing but its place in it; one that falls out of the log is told so (410) and lists again.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_stream::stream;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderValue, Response};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::{Ctx, read};
use crate::accept::{Accept, Shape};
use crate::error::ApiError;
use crate::query::ListOptions;
use crate::registry::Resource;
use crate::reply::{Include, Reply, partial};
use crate::server::Server;
use crate::store::{self, Change, Event, Object};
use crate::{convert, lean, table};

/// Time between bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// A watch that lives no longer than this ends without a bookmark.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// How long a watch lives if the client does not say: as upstream, half an hour or more.
const LIFETIME: Duration = Duration::from_secs(2400);
/// Longer than anybody waits; the end of a longer one could not be reckoned.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

struct Encoder {
    resource: Arc<Resource>,
    accept: Accept,
    include: Include,
    /// The definition of a table's columns is sent with the first event only.
    header_sent: bool,
}

impl Encoder {
    /// The bytes of an event that is to this client what it is to all.
    fn same(&mut self, event: &Event) -> Bytes {
        match self.shared(event.object.value.api_version()) {
            Some(Shape::Plain) if self.accept.lean => event.lean(),
            Some(Shape::Partial) => event.partial(),
            Some(_) => event.frame(),
            None => self.event(event.change, &event.value()),
        }
    }

    fn event(&mut self, change: Change, object: &Value) -> Bytes {
        match self.shared(object["apiVersion"].as_str().unwrap_or_default()) {
            Some(Shape::Plain) if self.accept.lean => return store::frame(change, &lean::object(object)),
            Some(Shape::Partial) => return store::frame(change, &lean::partial(object)),
            _ => {}
        }
        let body = self.body(object);
        store::frame(change, body.to_string().as_bytes())
    }

    fn body<'a>(&mut self, object: &'a Value) -> Cow<'a, Value> {
        let object = convert::from_storage(&self.resource, object);
        match self.accept.shape {
            Shape::Plain => object,
            Shape::Partial => Cow::Owned(partial(self.accept, &object)),
            Shape::Table => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let header = !std::mem::replace(&mut self.header_sent, true);
                Cow::Owned(table::table(
                    self.accept,
                    &self.resource,
                    self.include,
                    &[object],
                    metadata,
                    header,
                ))
            }
        }
    }

    /// The shape of the bytes of an object with this `apiVersion` that all such clients share, if it is one of those that are kept.
    fn shared(&self, api_version: &str) -> Option<Shape> {
        let Accept { shape, yaml, beta, lean } = self.accept;
        let kept = match shape {
            Shape::Plain => self.accept.is_json(),
            Shape::Partial => lean && !yaml && !beta,
            Shape::Table => false,
        };
        (kept && !convert::is_needed_of(&self.resource, api_version)).then_some(shape)
    }

    /// An object that was there before.
    fn added(&mut self, object: &Object) -> Bytes {
        if self.shared(object.value.api_version()) == Some(Shape::Plain) && !self.accept.lean {
            return store::frame(Change::Added, &object.json);
        }
        self.event(Change::Added, &object.value)
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.accept.shape {
            Shape::Plain => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata})
            }
            Shape::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": self.accept.meta_version(), "metadata": metadata})
            }
            Shape::Table => {
                let bare = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata});
                self.header_sent = true;
                let metadata = json!({"resourceVersion": revision.to_string()});
                table::bookmark(self.accept, &self.resource, &bare, metadata)
            }
        };
        line("BOOKMARK", &object)
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

fn expired(wanted: u64, oldest: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {wanted} ({oldest})"))
}

/// What this event is to a client with a selector, if anything.
fn seen(options: &ListOptions, resource: &Resource, event: &Event) -> Option<Change> {
    if options.labels.is_empty() && options.fields.is_empty() {
        return Some(event.change);
    }
    let selects = |object: &Value| read::selects(resource, options, object);
    let now = selects(&event.object.value);
    let before = event.previous.as_ref().is_some_and(|object| selects(&object.value));
    match (event.change, before, now) {
        (Change::Deleted, true, _) => Some(Change::Deleted),
        (Change::Deleted, false, _) | (_, false, false) => None,
        (_, false, true) => Some(Change::Added),
        (_, true, true) => Some(Change::Modified),
        (_, true, false) => Some(Change::Deleted),
    }
}

/// The event with its object in the version of the client, where a webhook makes that; what was before stays as it is stored.
async fn converted(server: &Server, resource: &Resource, event: Arc<Event>) -> Result<Arc<Event>, ApiError> {
    if !convert::is_needed_of(resource, event.object.value.api_version()) {
        return Ok(event);
    }
    let whole = Object::new(event.object.key.clone(), event.object.revision, event.value().into_owned());
    let shown = convert::webhook::shown(server, resource, vec![Arc::new(whole)]).await?;
    let object = shown.into_iter().next().unwrap_or_else(|| event.object.clone());
    Ok(Arc::new(Event::of(event.change, object, event.previous.clone())))
}

/// Streams events until the client goes, the time is up, or the server stops.
pub(crate) async fn watch(ctx: &Ctx) -> Result<Reply, ApiError> {
    let mut options = ListOptions::from_query(&ctx.query)?;
    if let Some(name) = &ctx.name {
        let selector = format!("metadata.name={name}");
        options.fields = crate::selector::FieldSelector::parse(&selector).map_err(ApiError::bad_request)?;
    }
    read::check_fields(&ctx.resource, &options)?;
    let store = ctx.server.store.clone();
    let kind = ctx.resource.storage.clone();
    let namespace = ctx.namespace.clone();
    let from = options.revision.filter(|revision| *revision > 0);
    // Without a revision, or from "any", a watch starts with what is there; asked for explicitly, so does any.
    let initial = options.send_initial_events.unwrap_or(from.is_none());
    let (start, objects) = match (initial, from) {
        (true, Some(wanted)) if wanted > store.revision() => return Err(expired(wanted, store.revision())),
        (true, _) => read::select(ctx, &options),
        (false, Some(from)) => (from, Vec::new()),
        (false, None) => (store.revision(), Vec::new()),
    };
    let objects = read::settled(ctx, &options, objects).await?;
    let by_webhook = ctx.resource.conversion.is_some()
        && (ctx.accept.shape != Shape::Partial || !options.fields.is_empty());
    let server = ctx.server.clone();
    let lifetime = options.timeout_seconds.map_or(LIFETIME, |asked| Duration::from_secs(asked).min(LONGEST));
    let mut encoder = Encoder {
        resource: ctx.resource.clone(),
        accept: ctx.accept,
        include: ctx.include,
        header_sent: false,
    };
    let watch = store.watch(&kind, start);
    let shutdown = ctx.server.shutdown.clone();
    let sent = ctx.server.figures.events(&ctx.resource.storage);
    let events = stream! {
        let mut watch = match watch {
            Ok(watch) => watch,
            Err(gone) => {
                yield line("ERROR", &expired(start, gone.oldest).status());
                return;
            }
        };
        for object in objects {
            yield encoder.added(&object);
        }
        if options.send_initial_events == Some(true) && options.bookmarks {
            yield encoder.bookmark(start, true);
        }
        let end = sleep_until(Instant::now() + lifetime);
        tokio::pin!(end);
        let mut bookmarks = interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let events = tokio::select! {
                events = watch.next() => events,
                () = &mut end => break,
                () = shutdown.cancelled() => break,
                _ = bookmarks.tick(), if options.bookmarks => {
                    if let Some(revision) = watch.progress() {
                        yield encoder.bookmark(revision, false);
                    }
                    continue;
                }
            };
            let events = match events {
                Ok(events) => events,
                Err(gone) => {
                    yield line("ERROR", &expired(start, gone.oldest).status());
                    break;
                }
            };
            for event in events {
                if !namespace.is_empty() && event.object.key.namespace != namespace {
                    continue;
                }
                let event = match by_webhook {
                    false => event,
                    true => match converted(&server, &encoder.resource, event).await {
                        Ok(event) => event,
                        Err(error) => {
                            yield line("ERROR", &error.status());
                            return;
                        }
                    },
                };
                let Some(change) = seen(&options, &encoder.resource, &event) else { continue };
                sent.fetch_add(1, Ordering::Relaxed);
                yield if change == event.change {
                    encoder.same(&event)
                } else {
                    encoder.event(change, &event.value())
                };
            }
        }
        // As upstream, which takes its last bookmark two seconds before the end.
        if options.bookmarks && lifetime > LAST_BOOKMARK && let Some(revision) = watch.progress() {
            yield encoder.bookmark(revision, false);
        }
    };
    let mut reply = Response::new(Body::from_stream(futures::StreamExt::map(events, Ok::<_, Infallible>)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers_mut().remove(TRANSFER_ENCODING);
    Ok(reply)
}
