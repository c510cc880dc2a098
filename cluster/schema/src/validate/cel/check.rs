//! What can be said of a rule before any object is there: that its variables, fields and functions exist, and that its operators get what
//! they can work with.
//!
//! Types come from the schema and spread through the expression. Where one is not evident (what most functions give, values of any type)
//! it is [`Type::Dyn`], about which nothing is said: evaluation will.

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue};

use super::escape;
use super::functions::KNOWN;
use crate::node::{Node, Ty};
use crate::validate::formats::Format;

/// Names of types, which are identifiers in CEL.
const TYPES: [&str; 12] = [
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "duration",
    "timestamp",
];
/// Namespaces of functions.
const NAMESPACES: [&str; 10] =
    ["math", "sets", "strings", "base64", "format", "optional", "jsonpatch", "google", "lists", "ip"];

/// What cannot be, in the words of CEL's checker, and how the part of the expression that it is about is written.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) near: String,
    pub(super) text: String,
}

/// What is known of a value's type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Type<'a> {
    #[default]
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Type<'a>>),
    Map(Box<Type<'a>>),
    /// An object with declared fields.
    Object(Fields<'a>),
    /// `metadata` of a whole object, of which rules see the names; and what the schema says of it.
    Metadata(Option<Fields<'a>>),
}

/// A node by its identity: its fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(&'a Node);

impl PartialEq for Fields<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl<'a> Type<'a> {
    /// The type of a schema's node; none if rules cannot see such values at all.
    pub(super) fn of(node: &'a Node) -> Option<Self> {
        Some(match node.ty {
            Ty::Any => return None,
            Ty::IntOrString | Ty::Quantity => Self::Dyn,
            Ty::Boolean => Self::Bool,
            Ty::Integer => Self::Int,
            Ty::Number => Self::Double,
            Ty::String => match node.checks.as_ref().and_then(|checks| checks.format()) {
                Some(Format::DateTime) => Self::Timestamp,
                // Evaluated as the text that it is.
                Some(Format::Date) => Self::Dyn,
                Some(Format::Duration) => Self::Duration,
                Some(Format::Byte) => Self::Bytes,
                _ => Self::String,
            },
            Ty::Array => Self::List(Box::new(Self::of(node.items.as_deref()?)?)),
            Ty::Object => match &node.additional {
                Some(entry) => Self::Map(Box::new(Self::of(entry)?)),
                None => Self::Object(Fields(node)),
            },
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Dyn => "dyn".into(),
            Self::Null => "null".into(),
            Self::Bool => "bool".into(),
            Self::Int => "int".into(),
            Self::Uint => "uint".into(),
            Self::Double => "double".into(),
            Self::String => "string".into(),
            Self::Bytes => "bytes".into(),
            Self::Timestamp => "timestamp".into(),
            Self::Duration => "duration".into(),
            Self::List(item) => format!("list({})", item.name()),
            Self::Map(value) => format!("map(string, {})", value.name()),
            Self::Object(_) | Self::Metadata(_) => "object".into(),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Could it be a value of the other type? Numbers compare with each other, and what may be null with null.
    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn | Self::Null, _) | (_, Self::Dyn | Self::Null) => true,
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) => a.agrees(b),
            // A literal map may stand for an object.
            (
                Self::Object(_) | Self::Metadata(_) | Self::Map(_),
                Self::Object(_) | Self::Metadata(_) | Self::Map(_),
            ) => true,
            (a, b) => {
                a.is_number() && b.is_number() || std::mem::discriminant(a) == std::mem::discriminant(b)
            }
        }
    }
}

type Scope<'a> = Vec<(String, Type<'a>)>;
type Checked<'a> = Result<Type<'a>, Mistake>;

/// Checks an expression on `node`; gives the type of its result.
///
/// # Errors
/// The first thing that cannot be.
pub(super) fn expression<'a>(expr: &IdedExpr, node: &'a Node, optional_old_self: bool) -> Checked<'a> {
    let this = Type::of(node).unwrap_or_default();
    let before = if optional_old_self { Type::Dyn } else { this.clone() };
    walk(expr, &mut vec![("self".into(), this), ("oldSelf".into(), before)])
}

/// How a call is written.
fn written(call: &CallExpr) -> String {
    match call.func_name.as_str() {
        "@in" => " in ".to_owned(),
        "_[_]" => "[".to_owned(),
        "_?_:_" => "?".to_owned(),
        name if name.starts_with('_') || name.ends_with('_') => name.trim_matches('_').to_owned(),
        name => format!("{name}("),
    }
}

fn walk<'a>(expr: &IdedExpr, scope: &mut Scope<'a>) -> Checked<'a> {
    match &expr.expr {
        Expr::Ident(name) => {
            if let Some((_, ty)) = scope.iter().rev().find(|(known, _)| known == name) {
                return Ok(ty.clone());
            }
            let known = [TYPES.as_slice(), NAMESPACES.as_slice()].concat().contains(&name.as_str());
            if known || name.starts_with('@') {
                return Ok(Type::Dyn);
            }
            Err(Mistake { near: name.clone(), text: undeclared(name) })
        }
        Expr::Select(select) => {
            let of = walk(&select.operand, scope)?;
            let ty = field(&of, &select.field)
                .map_err(|text| Mistake { near: format!(".{}", select.field), text })?;
            Ok(if select.test { Type::Bool } else { ty })
        }
        Expr::Call(call) => {
            let target = call.target.as_deref().map(|target| walk(target, scope)).transpose()?;
            let arguments: Vec<Type<'a>> =
                call.args.iter().map(|argument| walk(argument, scope)).collect::<Result<_, _>>()?;
            result(call, target, &arguments).map_err(|text| Mistake { near: written(call), text })
        }
        Expr::List(list) => {
            let items: Vec<Type<'a>> =
                list.elements.iter().map(|element| walk(element, scope)).collect::<Result<_, _>>()?;
            let first = items.first().cloned().unwrap_or_default();
            let all = items.iter().all(|item| *item == first);
            Ok(Type::List(Box::new(if all { first } else { Type::Dyn })))
        }
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    walk(&entry.key, scope)?;
                    walk(&entry.value, scope)?;
                }
            }
            Ok(Type::Dyn)
        }
        Expr::Comprehension(comprehension) => each(comprehension, scope),
        Expr::Literal(literal) => Ok(match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Bytes(_) => Type::Bytes,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Null => Type::Null,
            LiteralValue::String(_) => Type::String,
            LiteralValue::UInt(_) => Type::Uint,
        }),
        Expr::Struct(_) | Expr::Unspecified => Ok(Type::Dyn),
    }
}

/// `all`, `exists`, `map` and their like, as the parser writes them out.
fn each<'a>(comprehension: &ComprehensionExpr, scope: &mut Scope<'a>) -> Checked<'a> {
    let range = walk(&comprehension.iter_range, scope)?;
    let gathered = walk(&comprehension.accu_init, scope)?;
    // What is gathered in a list is of the type of what is put into it, whatever that is.
    let gathered = if matches!(gathered, Type::List(_)) { Type::Dyn } else { gathered };
    let (first, second) = match (&range, &comprehension.iter_var2) {
        (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
        (Type::List(item), None) => ((**item).clone(), Type::Dyn),
        (Type::List(item), Some(_)) => (Type::Int, (**item).clone()),
        (Type::Map(value), _) => (Type::String, (**value).clone()),
        _ => {
            let text = format!(
                "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                range.name()
            );
            return Err(Mistake { near: String::new(), text });
        }
    };
    let depth = scope.len();
    scope.push((comprehension.accu_var.clone(), gathered));
    scope.push((comprehension.iter_var.clone(), first));
    if let Some(name) = &comprehension.iter_var2 {
        scope.push((name.clone(), second));
    }
    let inner = walk(&comprehension.loop_cond, scope)
        .and_then(|_| walk(&comprehension.loop_step, scope))
        .and_then(|_| walk(&comprehension.result, scope));
    scope.truncate(depth);
    inner
}

fn field<'a>(of: &Type<'a>, name: &str) -> Result<Type<'a>, String> {
    let undefined = || format!("undefined field '{name}'");
    let declared = |node: &'a Node| {
        let (_, sub) = node.properties.iter().find(|(key, _)| escape(key) == name)?;
        Type::of(sub)
    };
    match of {
        Type::Dyn => Ok(Type::Dyn),
        Type::Map(value) => Ok((**value).clone()),
        // Every whole object has these, declared or not.
        Type::Object(_) if matches!(name, "apiVersion" | "kind") => Ok(Type::String),
        Type::Object(Fields(node)) if name == "metadata" => {
            Ok(Type::Metadata(node.properties.get(name).map(|sub| Fields(sub))))
        }
        Type::Object(Fields(node)) => declared(node).ok_or_else(undefined),
        Type::Metadata(_) if matches!(name, "name" | "generateName") => Ok(Type::String),
        Type::Metadata(Some(Fields(node))) => declared(node).ok_or_else(undefined),
        Type::Metadata(None) => Err(undefined()),
        other => Err(format!("type '{}' does not support field selection", other.name())),
    }
}

/// What a call gives.
fn result<'a>(call: &CallExpr, target: Option<Type<'a>>, arguments: &[Type<'a>]) -> Result<Type<'a>, String> {
    let name = call.func_name.as_str();
    let all: Vec<&Type<'a>> = target.iter().chain(arguments).collect();
    let refused = || {
        let types: Vec<String> = arguments.iter().map(Type::name).collect();
        let types = types.join(", ");
        match &target {
            None => format!("found no matching overload for '{name}' applied to '({types})'"),
            Some(target) => {
                format!("found no matching overload for '{name}' applied to '{}.({types})'", target.name())
            }
        }
    };
    let given = |ok: bool, ty: Type<'a>| if ok { Ok(ty) } else { Err(refused()) };
    let is =
        |at: usize, wanted: &Type<'_>| all.get(at).is_none_or(|ty| matches!(ty, Type::Dyn) || *ty == wanted);
    match (name, all.as_slice()) {
        ("_&&_" | "_||_", [_, _]) => given(is(0, &Type::Bool) && is(1, &Type::Bool), Type::Bool),
        ("!_", [_]) => given(is(0, &Type::Bool), Type::Bool),
        ("_==_" | "_!=_", [a, b]) => given(a.agrees(b), Type::Bool),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => given(ordered(a, b), Type::Bool),
        ("_?_:_", [_, a, b]) => given(is(0, &Type::Bool), if a == b { (*a).clone() } else { Type::Dyn }),
        ("-_", [a]) => given(matches!(a, Type::Dyn | Type::Int | Type::Double), (*a).clone()),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(name, a, b).ok_or_else(refused),
        ("@in", [_, b]) => given(matches!(b, Type::Dyn | Type::List(_) | Type::Map(_)), Type::Bool),
        ("_[_]", [Type::List(item), at]) => {
            given(matches!(at, Type::Dyn | Type::Int | Type::Uint), (**item).clone())
        }
        ("_[_]", [Type::Map(value), at]) => given(matches!(at, Type::Dyn | Type::String), (**value).clone()),
        ("_[_]", [Type::Dyn | Type::Object(_) | Type::Metadata(_), _]) => Ok(Type::Dyn),
        ("_[_]", _) => Err(refused()),
        ("size", [of]) => {
            let sized = matches!(of, Type::Dyn | Type::String | Type::Bytes | Type::List(_) | Type::Map(_));
            given(sized, Type::Int)
        }
        ("startsWith" | "endsWith" | "matches", [_, _]) => {
            given(is(0, &Type::String) && is(1, &Type::String), Type::Bool)
        }
        ("contains", [Type::String, _]) => given(is(1, &Type::String), Type::Bool),
        ("int", [_]) => Ok(Type::Int),
        ("double", [_]) => Ok(Type::Double),
        ("string", [_]) => Ok(Type::String),
        ("duration", [_]) => Ok(Type::Duration),
        ("timestamp", [_]) => Ok(Type::Timestamp),
        ("lowerAscii" | "upperAscii" | "trim" | "replace" | "substring", [_, ..]) => {
            given(is(0, &Type::String), Type::String)
        }
        _ if KNOWN.contains(&name) || name.starts_with(['_', '@']) => Ok(Type::Dyn),
        _ => Err(undeclared(name)),
    }
}

fn undeclared(name: &str) -> String {
    format!("undeclared reference to '{name}' (in container '')")
}

fn ordered(a: &Type<'_>, b: &Type<'_>) -> bool {
    use Type::{Bool, Bytes, Duration, Dyn, String, Timestamp};
    match (a, b) {
        (Dyn, _) | (_, Dyn) => true,
        (Bool, Bool) | (String, String) | (Bytes, Bytes) | (Timestamp, Timestamp) | (Duration, Duration) => {
            true
        }
        _ => a.is_number() && b.is_number(),
    }
}

fn arithmetic<'a>(name: &str, a: &Type<'a>, b: &Type<'a>) -> Option<Type<'a>> {
    use Type::{Bytes, Double, Duration, Dyn, Int, List, String, Timestamp, Uint};
    Some(match (name, a, b) {
        (_, Dyn, _) | (_, _, Dyn) => Dyn,
        (_, Int, Int) => Int,
        (_, Uint, Uint) => Uint,
        ("_+_" | "_-_" | "_*_" | "_/_", Double, Double) => Double,
        ("_+_", String, String) => String,
        ("_+_", Bytes, Bytes) => Bytes,
        ("_+_", List(one), List(other)) => List(Box::new(if one == other { (**one).clone() } else { Dyn })),
        ("_+_" | "_-_", Duration, Duration) | ("_-_", Timestamp, Timestamp) => Duration,
        ("_+_", Timestamp, Duration) | ("_+_", Duration, Timestamp) | ("_-_", Timestamp, Duration) => {
            Timestamp
        }
        _ => return None,
    })
}
