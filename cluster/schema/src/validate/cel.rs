//! CEL rules of CRDs (`x-kubernetes-validations`): compiled with the schema, evaluated on the way down the object.
//!
//! The functions are Kubernetes' own (crate kube-cel). Values are converted by the schema's types, so that a `number` is a
//! double and a `date-time` a timestamp whatever its JSON looks like.

mod check;
mod functions;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use kube_cel::KubeCelExt;
use kube_cel::cel::objects::{Key, Map as CelMap};
use kube_cel::cel::{Context, ExecutionError, Program, Value as Cel};
use serde_json::Value;

use super::{correlated, formats, within, within_field};
use crate::error::{FieldError, Reason, child, go_struct};
use crate::node::{Field, Node, Sub, Ty};
use check::{Mistake, Type};

/// Functions are registered once; each evaluation is a small scope on top.
pub(crate) static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| {
    let mut context = Context::default().with_all();
    // The interpreter has no type values; names of types serve as well for `type(self) == string`.
    context.add_function("type", |value: Cel| {
        Ok::<_, ExecutionError>(Cel::String(Arc::new(type_of(&value).to_owned())))
    });
    for name in ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type"] {
        context.add_variable_from_value(name, Cel::String(Arc::new(name.to_owned())));
    }
    context
});

fn type_of(value: &Cel) -> &'static str {
    match value {
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::Bool(_) => "bool",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Null => "null_type",
        Cel::Duration(_) => "google.protobuf.Duration",
        Cel::Timestamp(_) => "google.protobuf.Timestamp",
        Cel::Opaque(_) | Cel::Function(..) => "dyn",
    }
}

/// The rules of one node.
#[derive(Debug)]
pub(crate) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    text: String,
    program: Program,
    message: Option<String>,
    message_program: Option<Program>,
    reason: Reason,
    field_path: String,
    /// Looks at `oldSelf`: runs only where there is an old value, unless that is optional.
    transition: bool,
    optional_old_self: bool,
}

impl Rules {
    /// Compiles the rules of a schema node; those that cannot be compiled are errors of the CRD.
    pub(crate) fn parse(
        schema: &Value,
        node: &Node,
        path: &str,
        errors: &mut Vec<FieldError>,
    ) -> Option<Box<Rules>> {
        let rules = schema.get("x-kubernetes-validations")?.as_array()?;
        let path = child(path, "x-kubernetes-validations");
        let parsed: Vec<Rule> = rules
            .iter()
            .enumerate()
            .filter_map(|(i, rule)| Rule::parse(rule, node, &format!("{path}[{i}]"), errors))
            .collect();
        (!parsed.is_empty()).then(|| Box::new(Rules(parsed)))
    }
}

impl Rule {
    fn parse(rule: &Value, node: &Node, path: &str, errors: &mut Vec<FieldError>) -> Option<Rule> {
        let text = |name: &str| rule.get(name).and_then(Value::as_str);
        let Some(source) = text("rule").filter(|r| !r.trim().is_empty()) else {
            errors.push(FieldError::required(child(path, "rule"), "rule is not specified"));
            return None;
        };
        let optional_old_self = rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false);
        let refused = |field: &str, detail: String| {
            FieldError::invalid(child(path, field), rule, detail).showing(printed(rule))
        };
        let mut compile = |field: &str, source: &str, wanted: Wanted| {
            compiled(source, node, optional_old_self, wanted).map_err(|e| errors.push(refused(field, e))).ok()
        };
        let program = compile("rule", source, Wanted::Bool);
        let message_program =
            text("messageExpression").map(|source| compile("messageExpression", source, Wanted::Text));
        let (program, message_program) = (program?, message_program.map_or(Some(None), |it| it.map(Some))?);
        let reason = match text("reason") {
            None | Some("FieldValueInvalid") => Reason::Invalid,
            Some("FieldValueForbidden") => Reason::Forbidden,
            Some("FieldValueRequired") => Reason::Required,
            Some("FieldValueDuplicate") => Reason::Duplicate,
            Some(_) => {
                errors.push(FieldError::not_supported(
                    child(path, "reason"),
                    &rule["reason"],
                    &[
                        "FieldValueRequired",
                        "FieldValueInvalid",
                        "FieldValueForbidden",
                        "FieldValueDuplicate",
                    ],
                ));
                return None;
            }
        };
        let transition = program.references().has_variable("oldSelf");
        Some(Rule {
            text: source.to_owned(),
            transition,
            program,
            message: text("message").map(str::to_owned),
            message_program,
            reason,
            field_path: text("fieldPath").unwrap_or_default().to_owned(),
            optional_old_self,
        })
    }
}

/// What an expression must give.
#[derive(Clone, Copy)]
enum Wanted {
    Bool,
    Text,
}

/// Compiles and checks an expression on `node`.
///
/// # Errors
/// What is wrong with it, as CEL's compiler and Kubernetes say it.
fn compiled(source: &str, node: &Node, optional_old_self: bool, wanted: Wanted) -> Result<Program, String> {
    let whose = if matches!(wanted, Wanted::Text) { "messageExpression " } else { "" };
    let program = Program::compile(source).map_err(|e| format!("{whose}compilation failed: {e}"))?;
    let result = check::expression(program.expression(), node, optional_old_self)
        .map_err(|mistake| format!("{whose}compilation failed: ERROR: {}", at(source, &mistake)))?;
    match (wanted, result) {
        (Wanted::Bool, Type::Bool | Type::Dyn) | (Wanted::Text, Type::String | Type::Dyn) => Ok(program),
        (Wanted::Bool, _) => Err("cel expression must evaluate to a bool".to_owned()),
        (Wanted::Text, _) => Err("messageExpression must evaluate to a string".to_owned()),
    }
}

/// A mistake with its place in the source, and that line of it with a mark; where the place is in doubt, without.
fn at(source: &str, mistake: &Mistake) -> String {
    let mut found = source.match_indices(&mistake.near).map(|(offset, _)| offset);
    let (Some(offset), None) = (found.next(), found.next()) else {
        return format!("<input>: {}", mistake.text);
    };
    // A call is where its arguments begin.
    let offset = if mistake.near.ends_with('(') { offset + mistake.near.len() - 1 } else { offset };
    let before: Vec<&str> = source[..offset].split('\n').collect();
    let column = before.last().map_or(0, |line| line.chars().count());
    let line = source.lines().nth(before.len() - 1).unwrap_or_default();
    format!(
        "<input>:{}:{}: {}\n | {line}\n | {}^",
        before.len(),
        column + 1,
        mistake.text,
        ".".repeat(column)
    )
}

/// A rule as Go prints it.
fn printed(rule: &Value) -> String {
    let text = |field: &str| Value::from(rule[field].as_str().unwrap_or_default());
    go_struct(&[
        ("Rule", text("rule")),
        ("Message", text("message")),
        ("MessageExpression", text("messageExpression")),
        ("Reason", rule["reason"].clone()),
        ("FieldPath", text("fieldPath")),
        ("OptionalOldSelf", rule["optionalOldSelf"].clone()),
    ])
}

/// Runs all rules at and below `node`.
pub(crate) fn evaluate(
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &mut String,
    errors: &mut Vec<FieldError>,
) {
    if !node.has_rules || value.is_null() {
        return;
    }
    if let Some(rules) = &node.rules {
        run(&rules.0, node, value, old, path, errors);
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let old = old.and_then(|o| o.get(key));
                match node.field(key) {
                    Field::Known(sub) if sub.has_rules => {
                        within_field(path, key, |path| evaluate(sub, value, old, path, errors));
                    }
                    Field::Entry(sub) if sub.has_rules => {
                        within(path, &format!("[{key}]"), |path| evaluate(sub, value, old, path, errors));
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(item) = node.items.as_deref().filter(|item| item.has_rules) else { return };
            for (i, value) in items.iter().enumerate() {
                let old = correlated(node, value, old);
                within(path, &format!("[{i}]"), |path| evaluate(item, value, old, path, errors));
            }
        }
        _ => {}
    }
}

fn run(
    rules: &[Rule],
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let unchanged = old == Some(value);
    let mut scope = FUNCTIONS.new_inner_scope();
    let this = convert(Some(node), value);
    scope.add_variable_from_value("self", this);
    let mut old_bound = false;
    for rule in rules {
        if rule.transition {
            if old.is_none() && !rule.optional_old_self {
                continue;
            }
            if rule.optional_old_self {
                // `oldSelf` is an optional here, so the scope is the rule's own.
                let mut scope = FUNCTIONS.new_inner_scope();
                scope.add_variable_from_value("self", convert(Some(node), value));
                scope.add_variable_from_value("oldSelf", optional(old.map(|old| convert(Some(node), old))));
                judge(rule, &scope, value, path, errors);
                continue;
            }
            if !old_bound && let Some(old) = old {
                scope.add_variable_from_value("oldSelf", convert(Some(node), old));
                old_bound = true;
            }
        } else if unchanged {
            continue;
        }
        judge(rule, &scope, value, path, errors);
    }
}

fn optional(value: Option<Cel>) -> Cel {
    use kube_cel::cel::objects::{Opaque, OptionalValue};
    let inner = match value {
        Some(value) => OptionalValue::of(value),
        None => OptionalValue::none(),
    };
    let opaque: Arc<dyn Opaque> = Arc::new(inner);
    Cel::Opaque(opaque)
}

fn judge(rule: &Rule, scope: &Context<'_>, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let field = format!(
        "{path}{}",
        if path.is_empty() { rule.field_path.trim_start_matches('.') } else { &rule.field_path }
    );
    let detail = match rule.program.execute(scope) {
        Ok(Cel::Bool(true)) => return,
        Ok(Cel::Bool(false)) => message(rule, scope),
        Ok(_) => format!("rule must evaluate to a bool: {}", rule.text),
        Err(e) => {
            let detail = format!("{e} evaluating rule: {}", rule.message.as_deref().unwrap_or(&rule.text));
            errors.push(FieldError::invalid(field, &shown(value), detail));
            return;
        }
    };
    // As upstream, the value is shown where it is short enough to help.
    let bad_value = match (rule.reason, value) {
        (Reason::Required | Reason::Forbidden, _) | (_, Value::Array(_) | Value::Object(_)) => None,
        _ => Some(value.clone()),
    };
    errors.push(FieldError { field, reason: rule.reason, bad_value, shown: None, detail });
}

/// Kubernetes prints the type, not the value, of what is no scalar.
fn shown(value: &Value) -> Value {
    match value {
        Value::Object(_) => Value::String("object".into()),
        Value::Array(_) => Value::String("array".into()),
        other => other.clone(),
    }
}

fn message(rule: &Rule, scope: &Context<'_>) -> String {
    if let Some(program) = &rule.message_program
        && let Ok(Cel::String(text)) = program.execute(scope)
        && !text.trim().is_empty()
        && !text.contains('\n')
    {
        return text.trim().to_owned();
    }
    match &rule.message {
        Some(message) if !message.is_empty() => message.clone(),
        _ => format!("failed rule: {}", rule.text),
    }
}

/// A JSON value as a CEL value, by its schema where there is one.
pub(crate) fn convert(node: Option<&Node>, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) => match (n.as_i64(), node.map(|n| n.ty)) {
            (Some(i), Some(Ty::Number)) => Cel::Float(i as f64),
            (Some(i), _) => Cel::Int(i),
            (None, _) => Cel::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(text) => string(node, text),
        Value::Array(items) => {
            let item = node.and_then(|n| n.items.as_deref()).map(|sub: &Sub| -> &Node { sub });
            Cel::List(Arc::new(items.iter().map(|v| convert(item, v)).collect()))
        }
        Value::Object(map) => {
            let mut out: HashMap<Key, Cel> = HashMap::with_capacity(map.len());
            for (key, value) in map {
                let field = node.map(|n| n.field(key));
                let sub = field.as_ref().and_then(Field::sub).map(|sub: &Sub| -> &Node { sub });
                let name = match field {
                    Some(Field::Known(_)) => escape(key),
                    // What is not declared is not visible to rules, except in maps.
                    Some(Field::Untyped | Field::Unknown)
                        if node.is_some_and(|n| !n.properties.is_empty()) =>
                    {
                        continue;
                    }
                    _ => key.clone(),
                };
                out.insert(Key::String(Arc::new(name)), convert(sub, value));
            }
            Cel::Map(CelMap { map: Arc::new(out) })
        }
    }
}

fn string(node: Option<&Node>, text: &str) -> Cel {
    use formats::Format;
    let format = node.and_then(|n| n.checks.as_ref()).and_then(|c| c.format());
    let plain = || Cel::String(Arc::new(text.to_owned()));
    match format {
        Some(Format::DateTime) => {
            kube_cel::cel::Value::Timestamp(match chrono::DateTime::parse_from_rfc3339(text) {
                Ok(time) => time,
                Err(_) => return plain(),
            })
        }
        Some(Format::Duration) => match formats::duration(text) {
            Some(nanos) => Cel::Duration(chrono::Duration::nanoseconds(nanos)),
            None => plain(),
        },
        Some(Format::Byte) => match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(bytes) => Cel::Bytes(Arc::new(bytes)),
            Err(_) => plain(),
        },
        _ => plain(),
    }
}

/// CEL's reserved words: as field names they are written `__word__`.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The name under which a field is reachable in a rule.
fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains("__") && !name.contains(['.', '-', '/']) {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}
