//! The evaluation of a condition over a message.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::parse::{Arithmetic, Node, Relation, ValueKind};

/// The value of a field or of a part of a condition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Operand<'a> {
    Number(f64),
    Text(&'a str),
    Truth(bool),
    /// An object or a list: defined, and comparable with nothing.
    Other,
}

impl<'a> Operand<'a> {
    /// The operand of a field; `None` for `null`.
    pub(crate) fn of(json: &'a Json) -> Option<Self> {
        Some(match json {
            Json::Null => return None,
            Json::Bool(truth) => Self::Truth(*truth),
            Json::Number(number) => Self::Number(number.as_f64().filter(|number| number.is_finite())?),
            Json::String(text) => Self::Text(text),
            Json::Array(_) | Json::Object(_) => Self::Other,
        })
    }

    /// The truth of a value: a number is true if it is not 0, as controllers mean it; a text is neither.
    pub(super) fn truth(self) -> Option<bool> {
        match self {
            Self::Truth(truth) => Some(truth),
            Self::Number(number) => Some(number != 0.0),
            Self::Text(_) | Self::Other => None,
        }
    }

    fn number(self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The order of two values; `None` for different kinds.
    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.partial_cmp(&b),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Truth(a), Self::Truth(b)) => Some(a.cmp(&b)),
            _ => None,
        }
    }

    fn is(self, kind: ValueKind) -> bool {
        match kind {
            ValueKind::Defined => true,
            ValueKind::Number => matches!(self, Self::Number(_)),
            ValueKind::Text => matches!(self, Self::Text(_)),
            ValueKind::Truth => matches!(self, Self::Truth(_)),
        }
    }
}

/// The value of a part of a condition; `None` if it is unknown.
pub(super) fn eval<'a>(node: &'a Node, field: &dyn Fn(usize) -> Option<Operand<'a>>) -> Option<Operand<'a>> {
    let truth = |node: &'a Node| eval(node, field).and_then(Operand::truth);
    let truth = match node {
        Node::Number(number) => return Some(Operand::Number(*number)),
        Node::Text(text) => return Some(Operand::Text(text)),
        Node::Truth(truth) => return Some(Operand::Truth(*truth)),
        Node::Field(index) => return field(*index),
        Node::Arithmetic(operator, a, b) => {
            let (a, b) = (eval(a, field)?.number()?, eval(b, field)?.number()?);
            let number = match operator {
                Arithmetic::Plus => a + b,
                Arithmetic::Minus => a - b,
                Arithmetic::Times => a * b,
                Arithmetic::Over => a / b,
                Arithmetic::Rest => a % b,
            };
            return number.is_finite().then_some(Operand::Number(number));
        }
        Node::Not(inner) => !truth(inner)?,
        Node::And(a, b) => both(truth(a), || truth(b))?,
        Node::Or(a, b) => either(truth(a), || truth(b))?,
        Node::Compare(relation, a, b) => holds(*relation, eval(a, field)?.compare(eval(b, field)?)?),
        Node::OneOf(value, members) => {
            let value = eval(value, field)?;
            let mut found = Some(false);
            for member in members {
                found = either(found, || Some(value.compare(eval(member, field)?)?.is_eq()));
            }
            found?
        }
        Node::Within(part, whole) => eval(whole, field)?.text()?.contains(eval(part, field)?.text()?),
        Node::Is(value, kind) => eval(value, field).is_some_and(|value| value.is(*kind)),
    };
    Some(Operand::Truth(truth))
}

fn holds(relation: Relation, order: Ordering) -> bool {
    match relation {
        Relation::Equal => order.is_eq(),
        Relation::Unequal => order.is_ne(),
        Relation::Less => order.is_lt(),
        Relation::AtMost => order.is_le(),
        Relation::Greater => order.is_gt(),
        Relation::AtLeast => order.is_ge(),
    }
}

/// The three-valued `and`.
fn both(a: Option<bool>, b: impl FnOnce() -> Option<bool>) -> Option<bool> {
    if a == Some(false) {
        return a;
    }
    match (a, b()) {
        (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn either(a: Option<bool>, b: impl FnOnce() -> Option<bool>) -> Option<bool> {
    both(a.map(|a| !a), || b().map(|b| !b)).map(|neither| !neither)
}
