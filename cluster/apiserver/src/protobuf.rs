//! Protobuf bodies of built-in types, decoded into JSON.
//!
//! Go's typed clients, kubectl's `create` among them, send protobuf whatever the server says it prefers (and take JSON for
//! an answer). The field numbers are in a table; the rules for what counts as unset are those of the Go types: a field that
//! is not a pointer and holds its zero is left out.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What every body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages: more is not meant.
const MAX_DEPTH: usize = 100;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(include_str!("protobuf/types.txt")));

struct Table {
    /// apiVersion and kind to message.
    kinds: HashMap<(&'static str, &'static str), &'static str>,
    messages: HashMap<&'static str, HashMap<u32, Field>>,
}

#[derive(Clone, Copy)]
struct Field {
    json: &'static str,
    optional: bool,
    shape: Shape,
    of: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
}

impl Table {
    fn parse(text: &'static str) -> Self {
        let mut table = Self { kinds: HashMap::new(), messages: HashMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(kind) = line.strip_prefix("kind ") {
                let mut parts = kind.split(' ');
                if let (Some(version), Some(kind), Some(message)) = (parts.next(), parts.next(), parts.next())
                {
                    table.kinds.insert((version, kind), message);
                }
                continue;
            }
            let mut parts = line.split(' ');
            let name = parts.next().unwrap_or_default();
            table.messages.insert(name, parts.filter_map(field).collect());
        }
        table
    }
}

fn field(text: &'static str) -> Option<(u32, Field)> {
    let (number, rest) = text.split_once('=')?;
    let (json, of) = rest.split_once(':')?;
    let (optional, of) = of.strip_prefix('?').map_or((false, of), |of| (true, of));
    let (shape, of) = if let Some(of) = of.strip_prefix('*') {
        (Shape::List, of)
    } else if let Some(of) = of.strip_prefix('%') {
        (Shape::Map, of)
    } else {
        (Shape::One, of)
    };
    Some((number.parse().ok()?, Field { json, optional, shape, of }))
}

/// One field on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("it ends within a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        if length > self.0.len() {
            return Err("it ends within a field".to_owned());
        }
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(bytes)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "a field number is too large")?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(
                self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| "a double is too short")?,
            ),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(
                self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| "a float is too short")?,
            ),
            other => return Err(format!("wire type {other} is not known")),
        };
        Ok(Some((number, wire)))
    }
}

/// Decodes a body into an object with its apiVersion and kind.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn decode(body: &[u8]) -> Result<Value, String> {
    let mut envelope = Reader(body.strip_prefix(MAGIC).ok_or("it does not start with k8s")?);
    let (mut version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    while let Some((number, wire)) = envelope.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err("its content is encoded".to_owned());
            }
            _ => {}
        }
    }
    let known: &HashMap<(&str, &str), &'static str> = &TABLE.kinds;
    // Options are the same in every group.
    let found = known.get(&(version.as_str(), kind.as_str())).or_else(|| known.get(&("", kind.as_str())));
    let message = found.ok_or_else(|| format!("{version} {kind} is not known in protobuf: send JSON"))?;
    let mut object = Map::new();
    self::message(message, raw, &mut object, 0)?;
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".to_owned())
}

fn message(name: &str, bytes: &[u8], into: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("it is nested too deeply".to_owned());
    }
    let fields = TABLE.messages.get(name).ok_or_else(|| format!("message {name} is not known"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = fields.get(&number) else { continue };
        if field.json == "-" {
            if let Wire::Bytes(bytes) = wire {
                message(field.of, bytes, into, depth + 1)?;
            }
            continue;
        }
        match field.shape {
            Shape::One => {
                let value = value(field.of, &wire, depth)?;
                if field.optional || !is_zero(&value) {
                    into.insert(field.json.to_owned(), value);
                }
            }
            Shape::List => {
                let value = value(field.of, &wire, depth)?;
                let list = into.entry(field.json).or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.push(value);
                }
            }
            Shape::Map => {
                let Wire::Bytes(bytes) = wire else { return Err(format!("{} is not a map", field.json)) };
                let (mut key, mut entry, mut found) = (String::new(), Reader(bytes), None);
                while let Some((number, wire)) = entry.next()? {
                    match (number, &wire) {
                        (1, Wire::Bytes(text)) => key = utf8(text)?,
                        (2, _) => found = Some(value(field.of, &wire, depth)?),
                        _ => {}
                    }
                }
                let found = match found {
                    Some(found) => found,
                    None => value(field.of, &Wire::Bytes(&[]), depth)?,
                };
                into.entry(field.json).or_insert_with(|| json!({}))[key] = found;
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn value(of: &str, wire: &Wire<'_>, depth: usize) -> Result<Value, String> {
    Ok(match (of, wire) {
        ("i", Wire::Varint(number)) => (*number as i64).into(),
        ("b", Wire::Varint(number)) => (*number != 0).into(),
        ("d", Wire::Fixed64(bits)) => f64::from_bits(*bits).into(),
        ("d", Wire::Fixed32(bits)) => f64::from(f32::from_bits(*bits)).into(),
        ("s", Wire::Bytes(text)) => utf8(text)?.into(),
        ("y", Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        ("T" | "U", Wire::Bytes(bytes)) => time(of == "U", bytes)?,
        ("Q", Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(text)) => utf8(text)?.into(),
            _ => Value::Null,
        },
        ("I", Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Varint(1)) => match first(bytes, 3)? {
                Some(Wire::Bytes(text)) => utf8(text)?.into(),
                _ => "".into(),
            },
            _ => match first(bytes, 2)? {
                Some(Wire::Varint(number)) => (number as i64).into(),
                _ => 0.into(),
            },
        },
        ("R", Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(Wire::Bytes(raw)) if !raw.is_empty() => {
                serde_json::from_slice(raw).map_err(|error| format!("embedded JSON: {error}"))?
            }
            _ => Value::Null,
        },
        ("A", Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(schema) => value(SCHEMA, &schema, depth + 1)?,
            None => all(bytes, 2, SCHEMA, depth)?,
        },
        ("B", Wire::Bytes(bytes)) => match first(bytes, 2)? {
            Some(schema) => value(SCHEMA, &schema, depth + 1)?,
            None => matches!(first(bytes, 1)?, Some(Wire::Varint(1))).into(),
        },
        ("C", Wire::Bytes(bytes)) => match first(bytes, 1)? {
            Some(schema) => value(SCHEMA, &schema, depth + 1)?,
            None => all(bytes, 2, "s", depth)?,
        },
        ("x", Wire::Bytes(bytes)) => all(bytes, 1, "s", depth)?,
        (name, Wire::Bytes(bytes)) if name.len() > 1 => {
            let mut object = Map::new();
            message(name, bytes, &mut object, depth + 1)?;
            object.into()
        }
        _ => return Err(format!("a field of type {of} has another wire type")),
    })
}

const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";

/// The last occurrence of a field.
fn first(bytes: &[u8], wanted: u32) -> Result<Option<Wire<'_>>, String> {
    let (mut reader, mut found) = (Reader(bytes), None);
    while let Some((number, wire)) = reader.next()? {
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn all(bytes: &[u8], wanted: u32, of: &str, depth: usize) -> Result<Value, String> {
    let (mut reader, mut list) = (Reader(bytes), Vec::new());
    while let Some((number, wire)) = reader.next()? {
        if number == wanted {
            list.push(value(of, &wire, depth + 1)?);
        }
    }
    Ok(list.into())
}

fn time(micro: bool, bytes: &[u8]) -> Result<Value, String> {
    let number = |wanted| -> Result<i64, String> {
        Ok(match first(bytes, wanted)? {
            Some(Wire::Varint(number)) => number as i64,
            _ => 0,
        })
    };
    let (seconds, nanos) = (number(1)?, number(2)?);
    if bytes.is_empty() || (seconds == 0 && nanos == 0) {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| "a time has too many nanoseconds")?;
    let time = Timestamp::new(seconds, nanos).map_err(|error| error.to_string())?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, content.len() as u8];
        out.extend_from_slice(content);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
    }

    #[test]
    fn a_config_map() {
        let metadata = [bytes(1, b"foo"), bytes(2, b""), bytes(8, b"")].concat();
        let entry = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let body = envelope("v1", "ConfigMap", &[bytes(1, &metadata), bytes(2, &entry)].concat());
        assert_eq!(
            decode(&body).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foo"}, "data": {"k": "v"}})
        );
    }

    #[test]
    fn pointers_keep_their_zero_and_inlined_messages_vanish() {
        // spec.replicas (a pointer) is 0; a volume's source is inlined; an empty emptyDir is still one.
        let volume = [bytes(1, b"tmp"), bytes(2, &bytes(2, b""))].concat();
        let template = bytes(2, &bytes(1, &volume));
        let spec = [vec![1 << 3, 0], bytes(3, &template)].concat();
        let object = decode(&envelope("apps/v1", "Deployment", &bytes(2, &spec))).unwrap();
        assert_eq!(object["spec"]["replicas"], 0);
        assert_eq!(object["spec"]["template"]["spec"]["volumes"], json!([{"name": "tmp", "emptyDir": {}}]));
    }

    #[test]
    fn damage_is_an_error() {
        let body = envelope("v1", "ConfigMap", &[0x0a, 0x7f, 1]);
        assert!(decode(&body).is_err());
        assert!(decode(b"nonsense").is_err());
        assert!(decode(&envelope("v9", "Nothing", b"")).is_err());
    }

    #[test]
    fn every_message_the_table_names_is_in_it() {
        for fields in TABLE.messages.values() {
            for field in fields.values().filter(|field| field.of.len() > 1) {
                assert!(TABLE.messages.contains_key(field.of), "{}", field.of);
            }
        }
        assert!(TABLE.kinds.values().all(|message| TABLE.messages.contains_key(message)));
    }
}
