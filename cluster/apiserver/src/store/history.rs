//! The last changes of one kind, bounded in number and bytes.
//!
//! A change is told to watchers the moment it happens; of older ones only the JSON is kept, and as much of the tree as selectors look
//! at. An object's tree takes several times the room of its JSON, and a watcher that lags so far behind is rare.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Event, Expired, Object, Tree};

/// Changes kept for each kind, whatever their size.
const MAX_EVENTS: usize = 4096;
/// Bytes of JSON kept for each kind, once more than [`MIN_EVENTS`] are held.
const MAX_BYTES: usize = 2 << 20;
/// Changes kept even if they are large.
const MIN_EVENTS: usize = 128;
/// The latest changes, which watchers are about to read: kept whole.
const WHOLE: usize = 32;
/// The longest text that a selector could ask for, with room to spare.
const SELECTABLE: usize = 256;

/// A ring of changes.
pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Every change after this revision is here.
    oldest: u64,
}

impl History {
    pub(super) fn new(oldest: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, oldest }
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.object.json.len();
        self.events.push_back(event);
        if let Some(at) = self.events.len().checked_sub(WHOLE + 1) {
            let slim = Arc::new(slim(&self.events[at]));
            self.events[at] = slim;
        }
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > MIN_EVENTS) {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= dropped.object.json.len();
            self.oldest = dropped.object.revision;
        }
    }

    pub(super) fn after(&self, revision: u64) -> Result<Vec<Arc<Event>>, Expired> {
        if revision < self.oldest {
            return Err(Expired { oldest: self.oldest });
        }
        let from = self.events.partition_point(|event| event.object.revision <= revision);
        Ok(self.events.range(from..).cloned().collect())
    }
}

fn slim(event: &Event) -> Event {
    let object = |object: &Object, json| {
        let value = selectable(&object.value);
        let value = Tree::of(value, bytes::Bytes::new());
        Arc::new(Object { key: object.key.clone(), revision: object.revision, value, json, folded: false })
    };
    let current = object(&event.object, event.object.json.clone());
    // What was there before is only asked whether it was selected.
    let previous = event.previous.as_ref().map(|previous| object(previous, bytes::Bytes::new()));
    Event { slim: true, ..Event::of(event.change, current, previous) }
}

/// What label and field selectors may look at: names, labels, and single values at any depth of objects, not of lists.
fn selectable(value: &Value) -> Value {
    let Value::Object(map) = value else { return Value::Null };
    let mut out = fields(map);
    if let Some(Value::Object(metadata)) = map.get("metadata") {
        let kept = ["name", "namespace", "labels"];
        let kept =
            kept.into_iter().filter_map(|field| Some((field.to_owned(), metadata.get(field)?.clone())));
        out.insert("metadata".to_owned(), Value::Object(kept.collect()));
    }
    Value::Object(out)
}

fn fields(map: &Map<String, Value>) -> Map<String, Value> {
    let kept = map.iter().filter(|(field, _)| *field != "metadata").filter_map(|(field, value)| {
        let value = match value {
            Value::Array(_) => return None,
            Value::String(text) if text.len() > SELECTABLE => return None,
            Value::Object(map) => Value::Object(fields(map)),
            single => single.clone(),
        };
        Some((field.clone(), value))
    });
    kept.collect()
}
