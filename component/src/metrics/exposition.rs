//! A page of metrics as `io.prometheus.client.MetricFamily` messages, each after its length: the form that carries native histograms. Pure.
//!
//! <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>

use ebb_http::otlp::metrics::text::{Family, Kind, Point};
use ebb_http::otlp::wire::{bytes, double, message, number, packed_signed, signed, text, varint};

use super::native::{SCHEMA, Snapshot};

/// What it is called.
pub(crate) const MEDIA: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Whether whoever asks would rather have this form than text (RFC 9110 12.5.1).
pub(crate) fn is_preferred(accept: &str) -> bool {
    let quality = |wanted: &dyn Fn(&str) -> bool| {
        let offers = accept.split(',').filter(|offer| wanted(&offer.to_ascii_lowercase().replace(' ', "")));
        let weights = offers.map(|offer| {
            let weight = offer.split(';').find_map(|part| part.trim().strip_prefix("q="));
            weight.and_then(|weight| weight.trim().parse::<f64>().ok()).unwrap_or(1.0)
        });
        weights.fold(0.0, f64::max)
    };
    let protobuf = quality(&|offer| {
        offer.starts_with("application/vnd.google.protobuf")
            && offer.contains("proto=io.prometheus.client.metricfamily")
            && offer.contains("encoding=delimited")
    });
    let plain = quality(&|offer| {
        ["text/plain", "application/openmetrics-text"].iter().any(|name| offer.starts_with(name))
    });
    protobuf > 0.0 && protobuf >= plain
}

/// The page; `native` knows the native form of a histogram.
pub(super) fn page(families: &[Family], native: impl Fn(&Family, &Point) -> Option<Snapshot>) -> Vec<u8> {
    let mut out = Vec::new();
    for family in families {
        let message = metric_family(family, &native);
        varint(&mut out, message.len() as u64);
        out.extend(message);
    }
    out
}

fn metric_family(family: &Family, native: impl Fn(&Family, &Point) -> Option<Snapshot>) -> Vec<u8> {
    let kind = match family.kind {
        Kind::Counter => 0,
        Kind::Gauge => 1,
        Kind::Histogram => 4,
    };
    message(|out| {
        text(out, 1, &family.name);
        if !family.help.is_empty() {
            text(out, 2, &family.help);
        }
        number(out, 3, kind);
        for point in &family.points {
            let metric = message(|out| {
                for (name, value) in &point.labels {
                    let pair = message(|out| {
                        text(out, 1, name);
                        text(out, 2, value);
                    });
                    bytes(out, 1, &pair);
                }
                let value = message(|out| double(out, 1, point.value));
                match family.kind {
                    Kind::Gauge => bytes(out, 2, &value),
                    Kind::Counter => bytes(out, 3, &value),
                    Kind::Histogram => bytes(out, 7, &histogram(point, native(family, point).as_ref())),
                }
            });
            bytes(out, 4, &metric);
        }
    })
}

fn histogram(point: &Point, native: Option<&Snapshot>) -> Vec<u8> {
    message(|out| {
        // Its count must be that of its native buckets; the text was made a moment before.
        let (count, sum) = native.map_or((point.count, point.value), |native| (native.count(), native.sum));
        number(out, 1, count);
        double(out, 2, sum);
        for (bound, upto) in &point.buckets {
            let bucket = message(|out| {
                number(out, 1, *upto);
                double(out, 2, *bound);
            });
            bytes(out, 3, &bucket);
        }
        if let Some(native) = native {
            signed(out, 5, i64::from(SCHEMA));
            double(out, 6, Snapshot::zero_threshold());
            number(out, 7, native.zero);
            let (spans, deltas) = spans(&native.buckets);
            for (offset, length) in &spans {
                let span = message(|out| {
                    signed(out, 1, i64::from(*offset));
                    number(out, 2, u64::from(*length));
                });
                bytes(out, 12, &span);
            }
            // Without any, an empty span tells that it is native all the same.
            if spans.is_empty() {
                bytes(out, 12, &message(|out| signed(out, 1, 0)));
            }
            packed_signed(out, 13, deltas);
        }
    })
}

/// Runs of buckets, each with its distance from the end of the one before (the first: from 0) and its length; and each count's difference
/// from the count before.
fn spans(buckets: &[(i32, u64)]) -> (Vec<(i32, u32)>, Vec<i64>) {
    let (mut spans, mut deltas): (Vec<(i32, u32)>, Vec<i64>) = (Vec::new(), Vec::new());
    let (mut next, mut before) = (0, 0);
    for (index, count) in buckets {
        match spans.last_mut() {
            Some((_, length)) if *index == next => *length += 1,
            _ => spans.push((index - next, 1)),
        }
        next = index + 1;
        let count = count.cast_signed();
        deltas.push(count - before);
        before = count;
    }
    (spans, deltas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_http::otlp::metrics::text::parse;

    #[test]
    fn text_unless_this_is_wanted_at_least_as_much() {
        let prometheus = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
             application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        assert!(is_preferred(prometheus));
        assert!(!is_preferred("text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
        let less = "text/plain;q=0.6, application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; q=0.5";
        assert!(!is_preferred(less));
        assert!(!is_preferred("application/vnd.google.protobuf"));
        assert!(!is_preferred(""));
    }

    #[test]
    fn runs_of_buckets() {
        assert_eq!(spans(&[]), (vec![], vec![]));
        let buckets = [(-8, 2), (-7, 3), (1, 1), (2, 7)];
        // -8 and -7; then from -6 seven further to 1.
        assert_eq!(spans(&buckets), (vec![(-8, 2), (7, 2)], vec![2, 1, -2, 6]));
    }

    #[test]
    fn byte_for_byte() {
        // Checked against the definition of the messages.
        let families = parse("# TYPE a counter\na{x=\"y\"} 2\n");
        let mut expected = b"\x1c\x0a\x01a\x18\x00\x22\x15\x0a\x06\x0a\x01x\x12\x01y\x1a\x09\x09".to_vec();
        expected.extend(2.0_f64.to_le_bytes());
        expected[0] = u8::try_from(expected.len() - 1).unwrap();
        expected[7] = u8::try_from(expected.len() - 8).unwrap();
        assert_eq!(page(&families, |_, _| None), expected);
        let families = parse("# TYPE c histogram\nc_bucket{le=\"+Inf\"} 6\nc_sum 7.5\nc_count 6\n");
        let native = Snapshot { zero: 1, buckets: vec![(-1, 2), (0, 3)], sum: 7.0 };
        let mut expected = vec![0x08, 6, 0x11];
        expected.extend(7.0_f64.to_le_bytes());
        expected.extend([0x1a, 11, 0x08, 6, 0x11]);
        expected.extend(f64::INFINITY.to_le_bytes());
        expected.extend([0x28, 6, 0x31]);
        expected.extend(0.000_015_258_789_062_5_f64.to_le_bytes());
        // Zigzag: -1 is 1, 2 is 4.
        expected.extend([0x38, 1, 0x62, 4, 0x08, 1, 0x10, 2, 0x6a, 2, 4, 2]);
        assert_eq!(histogram(&families[0].points[0], Some(&native)), expected);
    }
}
