//! Keys that stand twice in one object of a JSON text: decoded, only the last of them is left.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// The paths of all keys that stand twice, as in `spec.ports[0].name`.
pub(crate) fn find(json: &[u8]) -> Vec<String> {
    let (mut path, mut found) = (String::new(), Vec::new());
    let mut text = serde_json::Deserializer::from_slice(json);
    // What is no JSON has been refused already.
    let _ = Walk { path: &mut path, found: &mut found }.deserialize(&mut text);
    found
}

struct Walk<'a> {
    path: &'a mut String,
    found: &'a mut Vec<String>,
}

impl Walk<'_> {
    /// The same a step further down.
    fn below<R>(&mut self, step: &str, then: impl FnOnce(Walk<'_>) -> R) -> R {
        let length = self.path.len();
        if length > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = then(Walk { path: self.path, found: self.found });
        self.path.truncate(length);
        result
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.below(&key, |walk| {
                if seen.contains(&key) && !walk.found.contains(walk.path) {
                    walk.found.push(walk.path.clone());
                }
                map.next_value_seed(walk)
            })?;
            seen.insert(key);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        for index in 0_usize.. {
            if self.below(&format!("[{index}]"), |walk| items.next_element_seed(walk))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once_with_its_path() {
        assert!(find(br#"{"a": 1, "b": {"a": [1.5, null, {"a": "x"}]}, "c": {"a": true}}"#).is_empty());
        let text = br#"{"a": {"b": 1, "b": 2, "b": 3}, "l": [0, {"x": -1, "x": 1}], "a": {}}"#;
        assert_eq!(find(text), ["a.b", "l[1].x", "a"]);
    }
}
