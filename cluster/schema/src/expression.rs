//! CEL expressions outside of schemas, such as the match conditions of webhooks.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use kube_cel::cel::{Program, Value as Cel};
use parking_lot::Mutex;
use serde_json::Value;

use crate::validate::cel::{FUNCTIONS, convert};

/// Compiled expressions; the few that configurations hold. Cleared when it grows beyond any sensible number of them.
static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);
const MAX_COMPILED: usize = 1024;

/// Evaluates an expression that must give a boolean, with JSON values as variables.
///
/// # Errors
/// Why it does not compile, or not evaluate, or gives something else.
pub fn evaluate_bool(expression: &str, variables: &[(&str, &Value)]) -> Result<bool, String> {
    let program = compiled(expression)?;
    let mut scope = FUNCTIONS.new_inner_scope();
    for (name, value) in variables {
        scope.add_variable_from_value(*name, convert(None, value));
    }
    match program.execute(&scope) {
        Ok(Cel::Bool(result)) => Ok(result),
        Ok(_) => Err("expression must evaluate to bool".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Whether an expression compiles.
///
/// # Errors
/// Why not.
pub fn check(expression: &str) -> Result<(), String> {
    compiled(expression).map(drop)
}

fn compiled(expression: &str) -> Result<Arc<Program>, String> {
    let mut cache = COMPILED.lock();
    if let Some(program) = cache.get(expression) {
        return Ok(program.clone());
    }
    let program = Arc::new(Program::compile(expression).map_err(|e| format!("compilation failed: {e}"))?);
    if cache.len() >= MAX_COMPILED {
        cache.clear();
    }
    cache.insert(expression.to_owned(), program.clone());
    Ok(program)
}
