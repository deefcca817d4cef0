//! Conditions over the fields of a message: a rule's `early`.
//!
//! A condition has three values, as in SQL: true, false and unknown. Unknown is a field that is missing or `null`, and a
//! comparison of different kinds (a number with a text), also behind `not`; `and` and `or` follow their other side where
//! that decides, and a condition that stays unknown is not met. In a template engine's order over all kinds of values
//! `"n/a" > 80` and `missing < 2` would be true.

mod lexer;
mod parse;
mod value;

use parse::{Node, parse};
pub(super) use value::Operand;

/// A parsed condition.
#[derive(Debug)]
pub(super) struct Condition(Node);

impl Condition {
    /// Parses a condition over these fields.
    ///
    /// # Errors
    /// The condition is wrong; one line.
    pub(super) fn parse(text: &str, fields: &[super::Field]) -> Result<Self, String> {
        parse(text, fields).map(Self)
    }

    /// Whether a message with these fields, by their index, meets it.
    pub(super) fn is_met<'a>(&'a self, field: impl Fn(usize) -> Option<Operand<'a>>) -> bool {
        value::eval(&self.0, &field).and_then(Operand::truth) == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Field;

    fn parsed(text: &str) -> Result<Condition, String> {
        let field = |name: &str| Field {
            name: name.to_owned(),
            pointer: format!("/{name}"),
        };
        Condition::parse(text, &["t", "state", "alarm"].map(field))
    }

    /// Whether `{"t": …, "state": …, "alarm": …}` meets the condition.
    fn met(text: &str, message: &serde_json::Value) -> bool {
        let condition = parsed(text).unwrap();
        condition.is_met(|index| Operand::of(message.get(["t", "state", "alarm"][index])?))
    }

    #[test]
    fn what_is_compared_is_of_one_kind() {
        for t in [
            json!(null),
            json!("n/a"),
            json!(true),
            json!({"v": 1}),
            json!([99]),
        ] {
            for condition in [
                "t < 2",
                "t <= 2",
                "t > 80",
                "t >= 80",
                "t == 80",
                "t != 80",
                "not t > 80",
                "not t < 80",
                "t + 1 > 0",
                "-t < 0",
                "t in [80, 81]",
                "t not in [80, 81]",
                "t > 80 and alarm",
                "t > 80 or not alarm",
            ] {
                let message = json!({"t": t, "alarm": true});
                assert!(!met(condition, &message), "{condition} of {t}");
            }
        }
        assert!(!met("t < 2", &json!({})));
        assert!(!met("t < 2", &json!({"t": "1"})), "a text with digits is a text");
    }

    #[test]
    fn numbers_texts_and_truths_are_themselves() {
        let message = json!({"t": 80.5, "state": "on", "alarm": false});
        for (condition, holds) in [
            ("t > 80", true),
            ("t > 80.5", false),
            ("80 < t and t <= 8.05e1", true),
            ("state == \"on\"", true),
            ("state == 'off'", false),
            ("state != \"off\"", true),
            ("state < \"p\"", true),
            ("\"o\" in state", true),
            ("\"x\" not in state", true),
            ("state in ['off', 'on']", true),
            ("alarm", false),
            ("not alarm", true),
            ("alarm == false", true),
            ("alarm == true", false),
            ("alarm != True", true),
            ("alarm == \"false\"", false),
            ("state", false),
            ("t", true),
            ("t - 80.5", false),
            ("(t - 32) * 5 / 9 > 26.9 and t % 2 == 0.5", true),
            ("t / 0 > 1", false),
            ("t > 90 or state == 'on' and not alarm", true),
            ("not (t > 90 or state == 'on')", false),
            ("true", true),
        ] {
            assert_eq!(met(condition, &message), holds, "{condition}");
        }
    }

    #[test]
    fn what_is_missing_leaves_the_rest_to_decide() {
        let message = json!({"state": "on", "alarm": null});
        for (condition, holds) in [
            ("t > 80 or state == 'on'", true),
            ("state == 'on' or t > 80", true),
            ("t > 80 and state == 'on'", false),
            ("not (t > 80 and state == 'off')", true),
            ("t is defined", false),
            ("t is not defined", true),
            ("alarm is defined", false),
            ("state is defined and state is string", true),
            ("state is number or state is boolean", false),
            ("t is not number and state == 'on'", true),
        ] {
            assert_eq!(met(condition, &message), holds, "{condition}");
        }
    }

    #[test]
    fn faults_are_told() {
        for (condition, says) in [
            ("", "it ends"),
            ("t >", "it ends"),
            ("(t > 1", "`)`"),
            ("t > 1 2", "`2`"),
            ("t = 1", "`==`"),
            ("speed > 1", "speed"),
            ("t is nice", "nice"),
            ("1 < t < 3", "`and`"),
            ("state == \"on", "quotes"),
            ("t > 1..2", "1..2"),
            ("t & 1", "`&`"),
            ("t|abs > 1", "`|`"),
            ("t in 3, 4", "`,`"),
        ] {
            let fault = parsed(condition).unwrap_err();
            assert!(fault.contains(says), "{condition}: {fault}");
        }
        let deep = format!("{}t{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(parsed(&deep).unwrap_err().contains("long"));
    }
}
