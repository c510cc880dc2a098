//! Field errors, in the words that `kubectl` users know from Kubernetes.

use std::fmt;

use serde_json::Value;

/// Why a field was refused; the wire names are those of Kubernetes' `StatusCause.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A value that must be there is not.
    Required,
    /// The value breaks a rule of its field.
    Invalid,
    /// The value is not one of a closed list.
    NotSupported,
    /// The value must be unique and is not.
    Duplicate,
    /// The value may not be set, or not changed.
    Forbidden,
    /// The value is longer than allowed.
    TooLong,
    /// The list has more items than allowed.
    TooMany,
    /// The value has the wrong JSON type.
    TypeInvalid,
    /// What the field refers to does not exist.
    NotFound,
    /// The check itself failed.
    Internal,
}

impl Reason {
    /// The reason as it stands in `Status.details.causes[].reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
            Reason::NotFound => "FieldValueNotFound",
            Reason::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Reason::Required => "Required value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Duplicate => "Duplicate value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
            Reason::NotFound => "Not found",
            Reason::Internal => "Internal error",
        }
    }
}

/// One problem with one field. `Display` prints `spec.x: Invalid value: "y": detail`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path of the field, as in `spec.ports[0].name`; empty for the object itself.
    pub field: String,
    /// Why it was refused.
    pub reason: Reason,
    /// The value as it was sent, where printing it helps.
    pub bad_value: Option<Value>,
    /// What is printed in the value's place, where Kubernetes prints a structure of its own (see [`go_struct`]).
    pub shown: Option<String>,
    /// The rule, in a sentence; may be empty.
    pub detail: String,
}

impl FieldError {
    /// A missing value.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> FieldError {
        FieldError {
            field: field.into(),
            reason: Reason::Required,
            bad_value: None,
            shown: None,
            detail: detail.into(),
        }
    }

    /// A value that breaks a rule.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl Into<String>) -> FieldError {
        FieldError {
            field: field.into(),
            reason: Reason::Invalid,
            bad_value: Some(value.clone()),
            shown: None,
            detail: detail.into(),
        }
    }

    /// A value that may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> FieldError {
        FieldError {
            field: field.into(),
            reason: Reason::Forbidden,
            bad_value: None,
            shown: None,
            detail: detail.into(),
        }
    }

    /// A value that occurs twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> FieldError {
        FieldError {
            field: field.into(),
            reason: Reason::Duplicate,
            bad_value: Some(value.clone()),
            shown: None,
            detail: String::new(),
        }
    }

    /// A value outside of a closed list.
    pub fn not_supported<S: AsRef<str>>(
        field: impl Into<String>,
        value: &Value,
        supported: &[S],
    ) -> FieldError {
        let list: Vec<String> = supported.iter().map(|s| format!("{:?}", s.as_ref())).collect();
        FieldError {
            field: field.into(),
            reason: Reason::NotSupported,
            bad_value: Some(value.clone()),
            shown: None,
            detail: format!("supported values: {}", list.join(", ")),
        }
    }

    /// The same, printed with this in the value's place.
    #[must_use]
    pub fn showing(self, shown: String) -> FieldError {
        FieldError { shown: Some(shown), ..self }
    }

    /// The text without the field, as it stands in `StatusCause.message`.
    pub fn body(&self) -> String {
        let mut s = self.reason.words().to_owned();
        let hide =
            matches!(self.reason, Reason::Required | Reason::Forbidden | Reason::TooLong | Reason::Internal);
        if !hide && let Some(value) = &self.bad_value {
            s.push_str(": ");
            match &self.shown {
                Some(shown) => s.push_str(shown),
                None => s.push_str(&value.to_string()),
            }
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "<nil>" } else { &self.field };
        write!(f, "{field}: {}", self.body())
    }
}

impl std::error::Error for FieldError {}

/// A structure as Go prints it in an error: the fields in its own order, and without the letters that matter to HTML.
pub fn go_struct(fields: &[(&str, Value)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    let text = format!("{{{}}}", fields.join(","));
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Path of a field under `base`: `base.name`, or `base[name]` where the name is a map's key.
pub(crate) fn child(base: &str, name: &str) -> String {
    if base.is_empty() { name.to_owned() } else { format!("{base}.{name}") }
}
