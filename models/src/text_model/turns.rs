//! The turns of a conversation's ids, found by the control tokens that the chat template puts between them.

use phi_edge_engine::Symbol;

use super::TextModel;
use crate::chat_template::{Message, Role};
use crate::encode_cost::EncodeError;
use crate::error::ModelError;
use crate::truncation::{ChatEncoder, ConversationTurn, ConversationTurns};

impl ChatEncoder for TextModel {
    fn encode_opening(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        self.encode_chat_within(messages, room)
    }

    fn encode_following(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        self.encode_continuation_within(messages, room)
    }

    fn turns(&self, ids: &[Symbol]) -> Option<ConversationTurns> {
        let (close, opening) = self.turn_border(Role::User)?;
        if !self.system_message_is_a_head(&opening) {
            return None;
        }
        let head = position(ids, &opening)?;
        let system = self.turn_border(Role::System).map(|(_, opening)| opening);
        let mut turns = vec![ConversationTurn {
            start: head,
            system: false,
        }];
        let mut at = head + opening.len();
        while let Some(rest) = ids.get(at..).filter(|rest| !rest.is_empty()) {
            let behind = rest.strip_prefix(close.as_slice());
            let begins = |opening: &[Symbol]| behind.is_some_and(|behind| behind.starts_with(opening));
            let is_system = system.as_deref().is_some_and(begins);
            if is_system || begins(&opening) {
                turns.push(ConversationTurn {
                    start: at + close.len(),
                    system: is_system,
                });
                at += close.len();
            }
            at += 1;
        }
        Some(ConversationTurns {
            head,
            turns,
            close: close.len(),
        })
    }

    fn token_ends(&self, text: &str) -> Result<Vec<usize>, ModelError> {
        self.inner.plain.token_ends(text)
    }
}

impl TextModel {
    /// The ids that end an answer, and those that begin a message of `role` behind it; `None` where the template has no
    /// control token for one of them.
    fn turn_border(&self, role: Role) -> Option<(Vec<Symbol>, Vec<Symbol>)> {
        let with = |content: &str| {
            let mut messages = vec![message(role, content)];
            if role == Role::System {
                messages.push(message(Role::User, "x"));
            }
            self.encode_continuation(&messages).ok()
        };
        // Two that differ in the first character of the content.
        let (one, other) = (with("a")?, with("\n1")?);
        let shared = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        let border = one.get(..shared)?;
        let control = |symbol: &Symbol| symbol.token().is_some_and(|id| self.inner.special.is_one(id));
        let opening = 1 + border.get(1..)?.iter().position(control)?;
        let (close, opening) = border.split_at(opening);
        Some((close.to_vec(), opening.to_vec()))
    }

    /// Whether a system message stands before the first message of the user and changes nothing of that: some templates
    /// make it a part of the user's.
    fn system_message_is_a_head(&self, opening: &[Symbol]) -> bool {
        let user = message(Role::User, "x");
        let turns = [message(Role::System, "x"), user];
        let (Ok(with), Ok(without)) = (
            self.encode_turns(&turns, true),
            self.encode_turns(&turns[1..], true),
        ) else {
            // A template that refuses system messages has none.
            return true;
        };
        let from = |ids: &[Symbol]| position(ids, opening).map(|at| ids[at..].to_vec());
        from(&without).is_some() && from(&with) == from(&without)
    }
}

/// The index at which `part` first occurs in `ids`.
fn position(ids: &[Symbol], part: &[Symbol]) -> Option<usize> {
    ids.windows(part.len().max(1)).position(|window| window == part)
}

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content.to_owned())
}
