//! What can be said of a rule before any object is there: that its variables exist, and the fields that it selects.
//!
//! This is no type checker: where a type is not evident from the schema (results of functions, untyped fields) it says nothing,
//! and evaluation will.

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{EntryExpr, Expr};

use super::escape;
use crate::node::{Node, Sub, Ty};

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
const FUNCTIONS: [&str; 8] =
    ["math", "sets", "strings", "base64", "format", "optional", "jsonpatch", "google"];

/// A variable and what is known of its type.
type Scope<'a> = Vec<(String, Option<&'a Node>)>;

/// Checks a rule on `node`.
///
/// # Errors
/// The first thing that cannot be, in the words of CEL's checker.
pub(super) fn rule(expr: &IdedExpr, node: &Node) -> Result<(), String> {
    // `oldSelf` may be an optional, whose type is not the node's.
    let mut scope: Scope<'_> = vec![("self".into(), Some(node)), ("oldSelf".into(), None)];
    walk(expr, &mut scope).map(drop)
}

fn walk<'a>(expr: &IdedExpr, scope: &mut Scope<'a>) -> Result<Option<&'a Node>, String> {
    match &expr.expr {
        Expr::Ident(name) => {
            if let Some((_, node)) = scope.iter().rev().find(|(n, _)| n == name) {
                return Ok(*node);
            }
            if TYPES.contains(&name.as_str()) || FUNCTIONS.contains(&name.as_str()) || name.starts_with('@') {
                return Ok(None);
            }
            Err(format!("undeclared reference to '{name}' (in container '')"))
        }
        Expr::Select(select) => {
            let Some(node) = walk(&select.operand, scope)? else { return Ok(None) };
            field(node, &select.field)
        }
        Expr::Call(call) => {
            let target = match &call.target {
                Some(target) => walk(target, scope)?,
                None => None,
            };
            let mut first = None;
            for (i, arg) in call.args.iter().enumerate() {
                let node = walk(arg, scope)?;
                if i == 0 {
                    first = node;
                }
            }
            let _ = target;
            // Indexing gives what the list or map holds.
            Ok(match (call.func_name.as_str(), first) {
                ("_[_]", Some(node)) => element(node),
                _ => None,
            })
        }
        Expr::List(list) => {
            for element in &list.elements {
                walk(element, scope)?;
            }
            Ok(None)
        }
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    walk(&entry.key, scope)?;
                    walk(&entry.value, scope)?;
                }
            }
            Ok(None)
        }
        Expr::Comprehension(loop_) => {
            let range = walk(&loop_.iter_range, scope)?;
            walk(&loop_.accu_init, scope)?;
            let depth = scope.len();
            let (first, second) = match range {
                // Over a list the variable is the item, over a map the key; with two variables the second is the value.
                Some(node) if loop_.iter_var2.is_none() && node.ty == Ty::Array => (element(node), None),
                Some(node) => (None, element(node)),
                None => (None, None),
            };
            scope.push((loop_.accu_var.clone(), None));
            scope.push((loop_.iter_var.clone(), first));
            if let Some(name) = &loop_.iter_var2 {
                scope.push((name.clone(), second));
            }
            let inner = [&loop_.loop_cond, &loop_.loop_step, &loop_.result]
                .into_iter()
                .try_for_each(|e| walk(e, scope).map(drop));
            scope.truncate(depth);
            inner.map(|()| None)
        }
        _ => Ok(None),
    }
}

fn element(node: &Node) -> Option<&Node> {
    let sub: &Sub = if node.ty == Ty::Array { node.items.as_deref()? } else { node.additional.as_deref()? };
    Some(sub)
}

fn field<'a>(node: &'a Node, name: &str) -> Result<Option<&'a Node>, String> {
    if node.ty != Ty::Object || node.properties.is_empty() {
        return Ok(element(node).filter(|_| node.ty == Ty::Object));
    }
    if let Some((_, sub)) = node.properties.iter().find(|(key, _)| escape(key) == name) {
        return Ok(Some(sub));
    }
    // Every object, root or embedded, has these, declared or not.
    if matches!(name, "metadata" | "apiVersion" | "kind") {
        return Ok(None);
    }
    Err(format!("undefined field '{name}'"))
}
