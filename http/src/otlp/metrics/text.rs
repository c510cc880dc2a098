//! Prometheus' text form, as this process writes it, read back: families of samples. Pure.

use std::collections::BTreeMap;

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// By buckets.
    Histogram,
}

/// A metric with all its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub help: String,
    /// What it is.
    pub kind: Kind,
    /// One for each set of labels.
    pub points: Vec<Point>,
}

/// Names and values.
pub type Labels = Vec<(String, String)>;

/// The samples of one set of labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Point {
    /// Its labels.
    pub labels: Labels,
    /// Of a counter or a gauge; of a histogram the sum.
    pub value: f64,
    /// Of a histogram: upper bounds, and how many were not above each. The last has no bound.
    pub buckets: Vec<(f64, u64)>,
    /// Of a histogram: how many in all.
    pub count: u64,
}

/// Reads a page. A line that is none is passed over, as are kinds that this process does not write.
pub fn parse(page: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let mut helps: BTreeMap<&str, &str> = BTreeMap::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap_or((help, ""));
            helps.insert(name, text);
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let kind = match kind {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                _ => continue,
            };
            let help = helps.get(name).copied().unwrap_or_default().to_owned();
            families.push(Family { name: name.to_owned(), help, kind, points: Vec::new() });
            continue;
        }
        if let (Some(family), Some((name, labels, value))) = (families.last_mut(), sample(line)) {
            family.take(name, labels, value);
        }
    }
    families.retain(|family| !family.points.is_empty());
    families
}

impl Family {
    fn take(&mut self, name: &str, mut labels: Labels, value: f64) {
        let Some(part) = name.strip_prefix(self.name.as_str()) else { return };
        let bound = match labels.iter().position(|(name, _)| name == "le") {
            Some(at) if part == "_bucket" => Some(labels.remove(at).1),
            _ => None,
        };
        // The lines of one point follow each other.
        if self.points.last().is_none_or(|point| point.labels != labels) {
            self.points.push(Point { labels, ..Point::default() });
        }
        let Some(point) = self.points.last_mut() else { return };
        match (self.kind, part, bound) {
            (Kind::Histogram, "_bucket", Some(bound)) => {
                point.buckets.push((bound.parse().unwrap_or(f64::INFINITY), value as u64));
            }
            (Kind::Histogram, "_count", _) => point.count = value as u64,
            (Kind::Histogram, "_sum", _) | (Kind::Counter | Kind::Gauge, "", _) => point.value = value,
            _ => {}
        }
    }
}

/// `name{label="value",...} number`.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Vec::new(), rest),
    };
    Some((name, labels, rest.split_whitespace().next()?.parse().ok()?))
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut text: &str) -> Option<(Labels, &str)> {
    let mut all = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((all, rest));
        }
        let (name, quoted) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = quoted.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, letter) => value.push(letter),
            }
        };
        all.push((name.trim().to_owned(), value));
        text = &quoted[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let page = "# HELP a_total Things, all of them.\n# TYPE a_total counter\na_total{x=\"1, \\\"}\\\\\",y=\"\"} 3\na_total{x=\"2\"} 4.5\n\n\
                    # TYPE b gauge\nb -1\n\
                    # TYPE c histogram\nc_bucket{k=\"v\",le=\"0.5\"} 1\nc_bucket{k=\"v\",le=\"+Inf\"} 3\nc_sum{k=\"v\"} 7.25\nc_count{k=\"v\"} 3\n\
                    # TYPE d summary\n# TYPE e gauge\nnonsense\n";
        let read = parse(page);
        let names: Vec<_> = read.iter().map(|family| (family.name.as_str(), family.kind)).collect();
        assert_eq!(names, [("a_total", Kind::Counter), ("b", Kind::Gauge), ("c", Kind::Histogram)]);
        assert_eq!(read[0].help, "Things, all of them.");
        let own = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(read[0].points[0].labels, own(&[("x", "1, \"}\\"), ("y", "")]));
        assert_eq!((read[0].points[1].value, read[1].points[0].value), (4.5, -1.0));
        assert_eq!(
            read[2].points,
            [Point {
                labels: own(&[("k", "v")]),
                value: 7.25,
                buckets: vec![(0.5, 1), (f64::INFINITY, 3)],
                count: 3
            }]
        );
    }
}
