//! The grammar of label selectors, with Kubernetes' words for what breaks it.

use super::Requirement;
use crate::validate;

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

/// A token; what is neither a sign nor white space is a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    End,
    Open,
    Close,
    Comma,
    Not,
    /// `=`, `==`, `!=`, `<` or `>`.
    Sign(&'a str),
    Word(&'a str),
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::End => "",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Not => "!",
            Token::Sign(text) | Token::Word(text) => text,
        }
    }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let is_sign = |c: char| "=!(),<>".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let two = rest.get(..2).filter(|two| matches!(*two, "==" | "!="));
        let (token, length) = match (first, two) {
            (_, Some(two)) => (Token::Sign(two), 2),
            ('(', _) => (Token::Open, 1),
            (')', _) => (Token::Close, 1),
            (',', _) => (Token::Comma, 1),
            ('!', _) => (Token::Not, 1),
            ('=' | '<' | '>', _) => (Token::Sign(&rest[..1]), 1),
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || is_sign(c)).unwrap_or(rest.len());
                (Token::Word(&rest[..end]), end)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == Token::Not;
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key.to_owned(),
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let mut errors = Vec::new();
        validate::label_key("", &key, &mut errors);
        if let Some(error) = errors.first() {
            return Err(error.to_string());
        }
        if absent {
            return Ok(Requirement::Absent(key));
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(Requirement::Exists(key));
        }
        match self.next() {
            Token::Word("in") => self.values().map(|values| Requirement::In(key, values)),
            Token::Word("notin") => self.values().map(|values| Requirement::NotIn(key, values)),
            Token::Sign("=" | "==") => self.value().map(|value| Requirement::In(key, vec![value])),
            Token::Sign("!=") => self.value().map(|value| Requirement::NotIn(key, vec![value])),
            Token::Sign(sign) => {
                let value = self.value()?;
                let Ok(number) = value.parse() else {
                    return Err(format!(
                        "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    ));
                };
                Ok(if sign == ">" {
                    Requirement::Greater(key, number)
                } else {
                    Requirement::Less(key, number)
                })
            }
            other => Err(format!("found '{}', expected: {OPERATORS}", other.text())),
        }
    }

    /// What follows `=`: a word, or nothing.
    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => checked(value),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// What follows `in`: words in parentheses.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Open {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        if self.peek() == Token::Close {
            self.next();
            return Ok(values);
        }
        if !matches!(self.peek(), Token::Word(_) | Token::Comma) {
            return Err(format!("found '{}', expected: ',', ')' or identifier", self.peek().text()));
        }
        loop {
            match self.peek() {
                Token::Word(value) => {
                    values.push(checked(value)?);
                    self.next();
                }
                // Nothing between two signs is the empty value.
                _ => values.push(String::new()),
            }
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

fn checked(value: &str) -> Result<String, String> {
    let mut errors = Vec::new();
    validate::label_value("", value, &mut errors);
    match errors.first() {
        Some(error) => Err(error.to_string()),
        None => Ok(value.to_owned()),
    }
}

/// All requirements of a selector.
pub(super) fn labels(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    let mut requirements = Vec::new();
    match parser.peek() {
        Token::End => return Ok(requirements),
        Token::Word(_) | Token::Not => {}
        other => {
            return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
        }
    }
    loop {
        let requirement =
            parser.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?;
        requirements.push(requirement);
        match parser.next() {
            Token::End => return Ok(requirements),
            Token::Comma => match parser.peek() {
                Token::Word(_) | Token::Not => {}
                other => return Err(format!("found '{}', expected: identifier after ','", other.text())),
            },
            other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_the_grammar_is_named() {
        for (text, error) in [
            ("tier in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
            ("x=bad value", "found 'value', expected: ',' or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
        ] {
            assert_eq!(labels(text), Err(error.to_owned()));
        }
        let key = labels("a/b/c=1").unwrap_err();
        assert!(key.starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\""), "{key}");
    }

    #[test]
    fn words_that_are_operators_elsewhere_are_keys_and_values_here() {
        let owned = |text: &str| text.to_owned();
        assert_eq!(labels("in"), Ok(vec![Requirement::Exists(owned("in"))]));
        assert_eq!(labels("a=notin"), Ok(vec![Requirement::In(owned("a"), vec![owned("notin")])]));
        assert_eq!(
            labels("a in (b,,c)"),
            Ok(vec![Requirement::In(owned("a"), vec![owned("b"), String::new(), owned("c")])])
        );
    }
}
