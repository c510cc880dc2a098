//! Spans in OTLP's protobuf. Pure.

use super::{Span, Value};
use ebb_http::otlp::wire::{attribute, bytes, fixed, message, nanos, number, text};

const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const ERROR: u64 = 2;

/// One message with these spans of a component.
pub(super) fn request(component: &str, spans: &[Span]) -> Vec<u8> {
    let spans: Vec<_> = spans.iter().map(span).collect();
    ebb_http::otlp::wire::request(&crate::source(component), spans.iter().map(Vec::as_slice))
}

fn span(span: &Span) -> Vec<u8> {
    message(|out| {
        bytes(out, 1, &span.context.trace);
        bytes(out, 2, &span.context.span);
        if let Some(parent) = &span.context.parent {
            bytes(out, 4, parent);
        }
        text(out, 5, span.name);
        number(out, 6, if span.server { SERVER } else { INTERNAL });
        fixed(out, 7, nanos(span.start));
        fixed(out, 8, nanos(span.start + span.took));
        for (name, value) in &span.attributes {
            attribute(out, 9, name, &any(value));
        }
        if span.failed {
            bytes(out, 15, &message(|status| number(status, 3, ERROR)));
        }
    })
}

fn any(value: &Value) -> Vec<u8> {
    message(|out| match value {
        Value::Text(value) => text(out, 1, value),
        Value::Flag(value) => number(out, 2, u64::from(*value)),
        Value::Number(value) => number(out, 3, value.cast_unsigned()),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::traces::Context;

    pub(in crate::traces) fn example() -> Span {
        Span {
            context: Context { trace: [7; 16], span: [8; 8], parent: Some([9; 8]), sampled: true },
            name: "request",
            server: true,
            start: UNIX_EPOCH + Duration::from_secs(1),
            took: Duration::from_millis(1),
            attributes: vec![("http.response.status_code", Value::Number(300))],
            failed: true,
        }
    }

    #[test]
    fn byte_for_byte() {
        // Checked by hand against the definition of the messages.
        let mut expected = vec![];
        expected.extend([0x0a, 16]);
        expected.extend([7; 16]);
        expected.extend([0x12, 8]);
        expected.extend([8; 8]);
        expected.extend([0x22, 8]);
        expected.extend([9; 8]);
        expected.extend(b"\x2a\x07request");
        expected.extend([0x30, 2]);
        expected.push(0x39);
        expected.extend(1_000_000_000u64.to_le_bytes());
        expected.push(0x41);
        expected.extend(1_001_000_000u64.to_le_bytes());
        expected.extend(b"\x4a\x20\x0a\x19http.response.status_code\x12\x03\x18\xac\x02");
        expected.extend([0x7a, 2, 0x18, 2]);
        assert_eq!(span(&example()), expected);
        let whole = request("gateway", &[example()]);
        assert_eq!(whole[0], 0x0a);
        assert!(whole.windows(expected.len()).any(|part| part == expected));
        assert!(whole.windows(11).any(|part| part == b"ebb-gateway"));
    }
}
