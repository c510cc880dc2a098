//! Families in OTLP's protobuf, cumulative since the process began. Pure.

use std::time::SystemTime;

use super::text::{Family, Kind, Point};
use crate::otlp::Source;
use crate::otlp::wire::{attribute, bytes, double, fixed, message, nanos, number, packed, text};

const CUMULATIVE: u64 = 2;

/// One message with these families.
pub(super) fn request(source: &Source, families: &[Family], began: SystemTime, now: SystemTime) -> Vec<u8> {
    let families: Vec<_> = families.iter().map(|family| metric(family, nanos(began), nanos(now))).collect();
    crate::otlp::wire::request(source, families.iter().map(Vec::as_slice))
}

fn metric(family: &Family, began: u64, now: u64) -> Vec<u8> {
    let point = if family.kind == Kind::Histogram { histogram } else { value };
    let field = match family.kind {
        Kind::Gauge => 5,
        Kind::Counter => 7,
        Kind::Histogram => 9,
    };
    let data = message(|out| {
        for one in &family.points {
            bytes(out, 1, &point(one, began, now));
        }
        if family.kind != Kind::Gauge {
            number(out, 2, CUMULATIVE);
        }
        if family.kind == Kind::Counter {
            // It only grows.
            number(out, 3, 1);
        }
    });
    message(|out| {
        text(out, 1, &family.name);
        if !family.help.is_empty() {
            text(out, 2, &family.help);
        }
        bytes(out, field, &data);
    })
}

fn value(point: &Point, began: u64, now: u64) -> Vec<u8> {
    message(|out| {
        fixed(out, 2, began);
        fixed(out, 3, now);
        double(out, 4, point.value);
        labels(out, 7, point);
    })
}

fn histogram(point: &Point, began: u64, now: u64) -> Vec<u8> {
    let mut before = 0;
    // There each bucket holds those below it as well.
    let counts = point.buckets.iter().map(|(_, upto)| {
        let own = upto.saturating_sub(before);
        before = *upto;
        own
    });
    message(|out| {
        fixed(out, 2, began);
        fixed(out, 3, now);
        fixed(out, 4, point.count);
        double(out, 5, point.value);
        packed(out, 6, counts);
        packed(
            out,
            7,
            point.buckets.iter().map(|(bound, _)| *bound).filter(|b| b.is_finite()).map(f64::to_bits),
        );
        labels(out, 9, point);
    })
}

fn labels(out: &mut Vec<u8>, field: u64, point: &Point) {
    for (name, value) in &point.labels {
        attribute(out, field, name, &message(|out| text(out, 1, value)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::otlp::metrics::text::parse;

    #[test]
    fn byte_for_byte() {
        // Checked against the definition of the messages.
        let page = "# HELP a h\n# TYPE a counter\na{x=\"y\"} 2\n";
        let (began, now) = (UNIX_EPOCH + Duration::from_secs(1), UNIX_EPOCH + Duration::from_secs(2));
        let mut point = vec![0x11];
        point.extend(1_000_000_000_u64.to_le_bytes());
        point.push(0x19);
        point.extend(2_000_000_000_u64.to_le_bytes());
        point.push(0x21);
        point.extend(2.0_f64.to_le_bytes());
        point.extend(b"\x3a\x08\x0a\x01x\x12\x03\x0a\x01y");
        let mut sum = vec![0x0a, u8::try_from(point.len()).unwrap()];
        sum.extend(&point);
        sum.extend([0x10, 2, 0x18, 1]);
        let mut expected = b"\x0a\x01a\x12\x01h\x3a".to_vec();
        expected.push(u8::try_from(sum.len()).unwrap());
        expected.extend(&sum);
        assert_eq!(metric(&parse(page)[0], nanos(began), nanos(now)), expected);
        let whole = request(&Source::alone("ebb-gateway"), &parse(page), began, now);
        assert!(whole.windows(expected.len()).any(|part| part == expected));
        assert!(whole.windows(11).any(|part| part == b"ebb-gateway"));
    }

    #[test]
    fn buckets_hold_their_own() {
        let page = "# TYPE c histogram\nc_bucket{le=\"0.5\"} 1\nc_bucket{le=\"1\"} 4\nc_bucket{le=\"+Inf\"} 6\nc_sum 7.5\nc_count 6\n";
        let point = histogram(&parse(page)[0].points[0], 1, 2);
        let mut counts = vec![0x32, 24];
        counts.extend([1_u64, 3, 2].into_iter().flat_map(u64::to_le_bytes));
        let mut bounds = vec![0x3a, 16];
        bounds.extend([0.5_f64, 1.0].into_iter().flat_map(f64::to_le_bytes));
        assert!(point.ends_with(&[counts, bounds].concat()), "{point:?}");
    }
}
