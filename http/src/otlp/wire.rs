//! Protobuf's wire format, as far as OTLP and Prometheus need it, and what all messages of OTLP begin with. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Source;

/// An export request: `ExportTraceServiceRequest` and `ExportMetricsServiceRequest` of opentelemetry-proto 1 differ only in what is in the scope, whose
/// parts are all at field 2.
pub fn request<'a>(source: &Source, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let resource = message(|out| {
        for (name, value) in source.attributes() {
            attribute(out, 1, name, &message(|out| text(out, 1, value)));
        }
    });
    let scoped = message(|out| {
        bytes(out, 1, &message(|scope| text(scope, 1, "ebb")));
        for part in parts {
            bytes(out, 2, part);
        }
    });
    let all = message(|all| {
        bytes(all, 1, &resource);
        bytes(all, 2, &scoped);
    });
    message(|out| bytes(out, 1, &all))
}

/// A `KeyValue`; the value is an `AnyValue`.
pub fn attribute(out: &mut Vec<u8>, field: u64, name: &str, value: &[u8]) {
    let pair = message(|out| {
        text(out, 1, name);
        bytes(out, 2, value);
    });
    bytes(out, field, &pair);
}

/// Nanoseconds since 1970.
pub fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A message of what is put in.
pub fn message(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    fill(&mut out);
    out
}

/// A number as so many bytes as it needs.
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of a number.
pub fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

/// A field of eight bytes.
pub fn fixed(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3 | 1);
    out.extend(value.to_le_bytes());
}

/// A field of bytes, or of a message.
pub fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// A field of text.
pub fn text(out: &mut Vec<u8>, field: u64, value: &str) {
    bytes(out, field, value.as_bytes());
}

/// A field of a float.
pub fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    fixed(out, field, value.to_bits());
}

/// A packed list of 8 bytes each.
pub fn packed(out: &mut Vec<u8>, field: u64, values: impl IntoIterator<Item = u64>) {
    let all: Vec<u8> = values.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes(out, field, &all);
}

/// The shorter form of what may be below zero: 0, -1, 1, -2 and so on by number.
fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

/// A field of what may be below zero.
pub fn signed(out: &mut Vec<u8>, field: u64, value: i64) {
    number(out, field, zigzag(value));
}

/// A packed list of such.
pub fn packed_signed(out: &mut Vec<u8>, field: u64, values: impl IntoIterator<Item = i64>) {
    let all = message(|out| values.into_iter().for_each(|value| varint(out, zigzag(value))));
    bytes(out, field, &all);
}
