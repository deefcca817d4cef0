//! The topics of a rule: its filters, and the topic of its events. They are checked against the node's topics once
//! all layers are merged.

use super::Rule;
use super::parse::topic_level;
use crate::shape::only_placeholders;
use crate::{Config, ConfigError, topic};

/// The placeholders in a rule's filters.
const BASE_PLACEHOLDER: &str = "{base}";
const NODE_PLACEHOLDER: &str = "{node}";

/// The node's topics below its base, to which no event may be published.
const NODE_TOPICS: [&str; 6] = ["request", "cancel", "status", "stats", "dead-letter", "response"];

/// The stand-in for a piece that depends on a message; it occurs in no topic.
const MESSAGE_DEPENDENT: &str = "\0";

/// Whether the filter is valid for a rule.
pub(super) fn is_taken(text: &str) -> bool {
    topic::is_filter(text) && only_placeholders(text, &[BASE_PLACEHOLDER, NODE_PLACEHOLDER])
}

/// The reason why a filter is not valid for a rule, if there is more to say than what is expected.
pub(super) fn about_filter(text: &str) -> Option<String> {
    if text.starts_with("$share/") {
        let reason =
            "a shared subscription would spread a window's messages over nodes; name the filter behind it";
        return Some(reason.to_owned());
    }
    if text.starts_with('$') {
        return Some("topics with a leading $ are the broker's own".to_owned());
    }
    (!only_placeholders(text, &[BASE_PLACEHOLDER, NODE_PLACEHOLDER]))
        .then(|| "only {base} and {node} are filled in".to_owned())
}

/// Whether events can be published to this topic.
pub(super) fn is_output(text: &str) -> bool {
    topic::is_topic(text) && pieces(text).is_ok()
}

/// The unknown placeholder in an output topic, as a message.
pub(super) fn about_output(text: &str) -> Option<String> {
    let wrong = pieces(text).err()?;
    Some(format!(
        "{wrong} is no placeholder; there are {{base}}, {{node}}, {{rule}}, {{group}} and {{topic:N}}"
    ))
}

/// A piece of an output topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Base,
    Node,
    Rule,
    Group,
    Level,
}

/// Parses an output topic into its pieces; the error is the text from the first unknown placeholder on.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, &str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(start);
        if !before.is_empty() {
            found.push(Piece::Text(before));
        }
        let (placeholder, after) = match from.find('}') {
            Some(end) if from.starts_with('{') => from.split_at(end + 1),
            _ => return Err(from),
        };
        let name = placeholder
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap_or_default();
        found.push(match name {
            "base" => Piece::Base,
            "node" => Piece::Node,
            "rule" => Piece::Rule,
            "group" => Piece::Group,
            _ if name.strip_prefix("topic:").and_then(topic_level).is_some() => Piece::Level,
            _ => return Err(placeholder),
        });
        rest = after;
    }
    if !rest.is_empty() {
        found.push(Piece::Text(rest));
    }
    Ok(found)
}

/// Whether an output topic uses the group.
pub(super) fn names_group(text: &str) -> bool {
    pieces(text).is_ok_and(|pieces| pieces.contains(&Piece::Group))
}

/// Fills in the placeholders of the rules' filters, and checks all topics of rules against those of the node.
pub(crate) fn settle(config: &mut Config) -> Result<(), ConfigError> {
    let (base, node) = (config.node.base.as_str(), config.node.name.as_str());
    let pool = config.mqtt.pool.as_ref();
    let pool = pool.map(|pool| format!("{}/{pool}", config.mqtt.pool_base));
    let bases: Vec<&str> = [base].into_iter().chain(pool.as_deref()).collect();
    for rule in &mut config.rules {
        let fault = |problem: String| ConfigError::Rule {
            rule: format!("\"{}\"", rule.name),
            origin: rule.origin.clone(),
            problem,
        };
        let mut filled: Vec<String> = Vec::with_capacity(rule.topics.len());
        for written in &rule.topics {
            let filter = written
                .replace(BASE_PLACEHOLDER, base)
                .replace(NODE_PLACEHOLDER, node);
            if !topic::is_filter(&filter) {
                return Err(fault(format!(
                    "`topics`: {written:?} becomes {filter:?}, which is no topic filter; shorten it or write it out"
                )));
            }
            if is_below(&filter, base) {
                return Err(fault(format!(
                    "`topics`: {written:?} lies below the node's own base {base:?}, and a node never takes its own \
                     messages, so that no rule feeds itself; remove it"
                )));
            }
            if filled.contains(&filter) {
                return Err(fault(format!("`topics`: {written:?} stands twice; remove one")));
            }
            filled.push(filter);
        }
        if let Some(own) = rule
            .output
            .topic
            .as_deref()
            .and_then(|text| own_topic(text, rule, &bases, node))
        {
            return Err(fault(format!(
                "`output.topic` is {own:?} or below it, which is the node's own; choose another, such as \
                 \"{{base}}/event/{{rule}}\""
            )));
        }
        rule.topics = filled;
    }
    Ok(())
}

/// The topic of the node that an output topic equals or lies below, independently of the message.
fn own_topic(text: &str, rule: &Rule, bases: &[&str], node: &str) -> Option<String> {
    let base = bases.first()?;
    let filled: String = pieces(text)
        .ok()?
        .into_iter()
        .map(|piece| match piece {
            Piece::Text(text) => text,
            Piece::Base => base,
            Piece::Node => node,
            Piece::Rule => &rule.name,
            Piece::Group | Piece::Level => MESSAGE_DEPENDENT,
        })
        .collect();
    bases
        .iter()
        .flat_map(|base| NODE_TOPICS.iter().map(move |own| format!("{base}/{own}")))
        .find(|own| filled == *own || is_below(&filled, own))
}

fn is_below(topic: &str, base: &str) -> bool {
    topic.strip_prefix(base).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found() {
        let check =
            |text: &str, expected: &[Piece<'_>]| assert_eq!(pieces(text).as_deref(), Ok(expected), "{text}");
        check("a/b", &[Piece::Text("a/b")]);
        check(
            "{base}/x{topic:1}/{group}",
            &[
                Piece::Base,
                Piece::Text("/x"),
                Piece::Level,
                Piece::Text("/"),
                Piece::Group,
            ],
        );
        check("{node}{rule}", &[Piece::Node, Piece::Rule]);
    }

    #[test]
    fn other_braces_are_named() {
        let check = |text: &str, expected: &str| assert_eq!(pieces(text), Err(expected), "{text}");
        check("a/{bse}/b", "{bse}");
        check("a/{topic}", "{topic}");
        check("a/{topic:x}", "{topic:x}");
        check("a/{{base}}", "{{base}");
        check("a}/b", "}/b");
        check("a/{base", "{base");
        check("{}", "{}");
    }
}
