//! `config-logging`: how much the components tell.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::{ConfigError, Data};

/// Levels, by the names that zap and tracing have for them; what is worse than an error is an error here.
const LEVELS: &[(&str, &str)] = &[
    ("debug", "debug"),
    ("info", "info"),
    ("warn", "warn"),
    ("warning", "warn"),
    ("error", "error"),
    ("dpanic", "error"),
    ("panic", "error"),
    ("fatal", "error"),
    ("trace", "trace"),
];
/// Whose levels are read: four processes and the sidecar.
pub const LOGGED: [&str; 5] = ["controller", "autoscaler", "activator", "gateway", "queueproxy"];
const PREFIX: &str = "loglevel.";
const ZAP: &str = "zap-logger-config";

/// How much is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// The level of all that have none of their own; none leaves it to their settings.
    pub level: Option<&'static str>,
    /// Levels by component, those of [`LOGGED`] and others.
    pub levels: BTreeMap<String, &'static str>,
}

/// What is understood of zap's configuration.
#[derive(Deserialize)]
struct Zap {
    level: Option<String>,
}

impl Logging {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut errors = Vec::new();
        #[cfg(test)]
        super::READ.with(|keys| {
            let levels = LOGGED.iter().map(|name| format!("{PREFIX}{name}"));
            keys.borrow_mut().extend(levels.chain([ZAP.to_owned()]));
        });
        let mut fail = |key: &str, message: String| errors.push(ConfigError { key: key.to_owned(), message });
        if let Some(text) = data.get(ZAP).filter(|text| !text.trim().is_empty()) {
            match serde_json::from_str::<Zap>(text) {
                Err(error) => fail(ZAP, format!("is not JSON with a level: {error}")),
                Ok(Zap { level: None }) => {}
                Ok(Zap { level: Some(name) }) => match known(&name) {
                    Some(level) => c.level = Some(level),
                    None => fail(ZAP, bad(&name)),
                },
            }
        }
        for (key, name) in data {
            let Some(component) = key.strip_prefix(PREFIX) else { continue };
            match known(name) {
                Some(level) => {
                    c.levels.insert(component.to_owned(), level);
                }
                None => fail(key, bad(name)),
            }
        }
        if errors.is_empty() { Ok(c) } else { Err(errors) }
    }

    /// The level of a component, if the ConfigMap says one. The webhook is a part of the controller.
    #[must_use]
    pub fn of(&self, component: &str) -> Option<&'static str> {
        self.levels.get(component).copied().or(self.level)
    }
}

fn known(name: &str) -> Option<&'static str> {
    let name = name.trim().to_ascii_lowercase();
    LEVELS.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
}

fn bad(name: &str) -> String {
    format!("{name:?} is not one of debug, info, warn, error")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Logging, Vec<ConfigError>> {
        Logging::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_component_has_its_own_level_or_that_of_all() {
        let config = parse(&[
            ("zap-logger-config", r#"{"level": "warn", "encoding": "json"}"#),
            ("loglevel.controller", "DEBUG"),
            ("loglevel.net-istio-controller", "fatal"),
        ])
        .expect("good");
        assert_eq!((config.of("controller"), config.of("gateway")), (Some("debug"), Some("warn")));
        assert_eq!(parse(&[]).expect("good").of("gateway"), None);
    }

    #[test]
    fn bad_levels_name_their_key() {
        for (key, value) in
            [("loglevel.gateway", "loud"), (ZAP, "level: info"), (ZAP, r#"{"level": "loud"}"#)]
        {
            assert_eq!(parse(&[(key, value)]).expect_err("bad")[0].key, key);
        }
    }
}
