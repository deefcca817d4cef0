//! Truncation: a conversation that is too long for the context is made to fit by leaving out a part of it.
//!
//! The result is a function of the conversation and of the limits alone: the same request gives the same prompt, also in
//! another process.

use std::ops::Range;

use phi_edge_engine::Symbol;

use crate::chat_template::{Message, Role};
use crate::encode_cost::EncodeError;
use crate::error::ModelError;

/// The fewest tokens that are kept of a text whose middle is left out: one at each end.
const MIN_KEPT_TOKENS: usize = 2;

/// The part of a conversation that is left out where it is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// None: a conversation that is too long is an error.
    #[default]
    Error,
    /// The oldest turns, never a system message or the last message of the user.
    OldestMessages,
    /// The middle of the longest message.
    Middle,
}

/// The maximum numbers of tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptRoom {
    /// The number that leaves room for the whole answer. A truncated prompt has at most so many, if that can be reached.
    pub preferred: usize,
    /// The number that leaves room for one new token; not less than `preferred`.
    pub most: usize,
}

impl PromptRoom {
    /// The room that a context leaves beside an answer of `new_tokens`. Of these no more count than half of the context, so
    /// that a large number leaves room for a prompt.
    pub fn beside(new_tokens: usize, context_length: usize) -> Self {
        let answer = new_tokens.min(context_length / 2).max(1);
        Self {
            preferred: context_length.saturating_sub(answer),
            most: context_length.saturating_sub(1),
        }
    }

    /// The same room, `tokens` at most.
    #[must_use]
    pub fn at_most(self, tokens: usize) -> Self {
        Self {
            preferred: self.preferred.min(tokens),
            most: self.most.min(tokens),
        }
    }
}

/// A prompt, and what of its conversation it does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncated {
    /// The ids of the prompt.
    pub ids: Vec<Symbol>,
    /// The number of tokens by which the whole conversation is longer.
    pub left_out: usize,
}

/// The parts of the ids of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationTurns {
    /// The number of ids before the first turn, which has the system message.
    pub head: usize,
    /// The turns, in order. Each ends where the next one begins.
    pub turns: Vec<ConversationTurn>,
    /// The number of ids at the beginning of a continuation that end the turn before it.
    pub close: usize,
}

/// A turn of a conversation: a message of the user and what follows it, or a system message in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationTurn {
    /// The index of its first id.
    pub start: usize,
    /// Whether it is a system message, which is never left out.
    pub system: bool,
}

/// An encoder of conversations whose prompts can be truncated.
pub trait ChatEncoder {
    /// Returns the ids of a conversation from its beginning, at most `room`.
    ///
    /// # Errors
    /// There are more, or it can't be encoded.
    fn encode_opening(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError>;

    /// Returns the ids of `messages` behind an answer of the model, at most `room`.
    ///
    /// # Errors
    /// There are more, or they can't be encoded.
    fn encode_following(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError>;

    /// Returns the turns of a conversation's ids that end with an answer; `None` where the template does not show them.
    fn turns(&self, ids: &[Symbol]) -> Option<ConversationTurns>;

    /// Returns the end of each token of a text, in bytes and on a character boundary, in rising order.
    ///
    /// # Errors
    /// The text can't be encoded.
    fn token_ends(&self, text: &str) -> Result<Vec<usize>, ModelError>;
}

/// Encodes `messages` behind the ids `said`, and leaves out what `truncation` allows so that the prompt fits `room`.
///
/// # Errors
/// The prompt does not fit even so: then the error has the number of tokens that remain. Or it can't be encoded.
pub fn encode_truncated(
    encoder: &(impl ChatEncoder + ?Sized),
    said: &[Symbol],
    messages: &[Message],
    truncation: Truncation,
    room: PromptRoom,
) -> Result<Truncated, EncodeError> {
    let conversation = Conversation {
        encoder,
        said,
        messages,
    };
    if truncation == Truncation::Error {
        let ids = conversation.encode(messages, room.most)?;
        return Ok(Truncated { ids, left_out: 0 });
    }
    let whole = conversation.encode(messages, usize::MAX)?;
    if whole.len() <= room.preferred {
        return Ok(Truncated {
            ids: whole,
            left_out: 0,
        });
    }
    let total = whole.len();
    drop(whole);
    let ids = match truncation {
        Truncation::Middle => conversation.without_middle(total, room)?,
        Truncation::OldestMessages | Truncation::Error => conversation.without_oldest(room)?,
    };
    Ok(Truncated {
        left_out: total.saturating_sub(ids.len()),
        ids,
    })
}

/// A conversation to truncate.
struct Conversation<'a, E: ?Sized> {
    encoder: &'a E,
    said: &'a [Symbol],
    messages: &'a [Message],
}

impl<E: ChatEncoder + ?Sized> Conversation<'_, E> {
    /// The ids of what was said and of `messages`, at most `limit`.
    fn encode(&self, messages: &[Message], limit: usize) -> Result<Vec<Symbol>, EncodeError> {
        if self.said.is_empty() {
            return self.encoder.encode_opening(messages, limit);
        }
        self.follow(self.said.to_vec(), 0, messages, limit)
    }

    /// The ids `before` and those of `messages` without the first `skip`, at most `limit`.
    fn follow(
        &self,
        mut before: Vec<Symbol>,
        skip: usize,
        messages: &[Message],
        limit: usize,
    ) -> Result<Vec<Symbol>, EncodeError> {
        let room = limit.saturating_sub(before.len()).saturating_add(skip);
        let following = self.encoder.encode_following(messages, room).map_err(|error| {
            let others = before.len().saturating_sub(skip);
            match error {
                EncodeError::TooLong { tokens, exact } => EncodeError::TooLong {
                    tokens: tokens + others,
                    exact,
                },
                other @ EncodeError::Model(_) => other,
            }
        })?;
        before.extend(following.into_iter().skip(skip));
        if before.len() > limit {
            return Err(EncodeError::TooLong {
                tokens: before.len(),
                exact: true,
            });
        }
        Ok(before)
    }

    /// Leaves out the fewest of the oldest turns with which the rest has [`PromptRoom::preferred`] tokens at most, or all
    /// that may be left out where it has not.
    fn without_oldest(&self, room: PromptRoom) -> Result<Vec<Symbol>, EncodeError> {
        let history = History::of(self.encoder, self.said);
        let starts = turn_starts(self.messages);
        let of_history = history.turns_to_leave_out();
        let all = of_history + starts.len().saturating_sub(1);
        let without = |count: usize, limit: usize| {
            let messages = self.messages_without(&starts, count.saturating_sub(of_history));
            if self.said.is_empty() {
                return self.encoder.encode_opening(&messages, limit);
            }
            let (before, skip) = history.without(count.min(of_history));
            self.follow(before, skip, &messages, limit)
        };
        let mut best = match without(all, room.preferred) {
            Err(EncodeError::TooLong { .. }) => return without(all, room.most),
            shortest => shortest?,
        };
        // All of it is known to be too long.
        let (mut too_few, mut enough) = (0, all);
        while enough.saturating_sub(too_few) > 1 {
            let between = too_few.midpoint(enough);
            match without(between, room.preferred) {
                Err(EncodeError::TooLong { .. }) => too_few = between,
                shortened => (best, enough) = (shortened?, between),
            }
        }
        Ok(best)
    }

    /// The messages without the first `count` turns; `starts` as [`turn_starts`] has them.
    fn messages_without(&self, starts: &[usize], count: usize) -> Vec<Message> {
        let from = starts.get(count).copied().unwrap_or_default();
        let kept = self
            .messages
            .iter()
            .enumerate()
            .filter(|(n, message)| *n >= from || message.role == Role::System || count == 0);
        kept.map(|(_, message)| message.clone()).collect()
    }

    /// Leaves out tokens in the middle of the longest text without an image inside; `total` is the number of all tokens.
    fn without_middle(&self, total: usize, room: PromptRoom) -> Result<Vec<Symbol>, EncodeError> {
        let stretches = self.messages.iter().enumerate().flat_map(|(at, message)| {
            let stretches = stretches_between_images(message).into_iter();
            stretches.map(move |stretch| (at, stretch))
        });
        let stretches: Vec<_> = stretches.collect();
        // Of texts of the same length the first.
        let longest = stretches
            .into_iter()
            .rev()
            .max_by_key(|(_, stretch)| stretch.len());
        let Some((at, stretch, text)) = longest.and_then(|(at, stretch)| {
            let text = self.messages.get(at)?.content.get(stretch.clone())?;
            Some((at, stretch, text))
        }) else {
            return self.encode(self.messages, room.most);
        };
        let ends = self.encoder.token_ends(text)?;
        for limit in [room.preferred, room.most] {
            if total <= limit {
                return self.encode(self.messages, limit);
            }
            let mut kept = (ends.len() + limit).saturating_sub(total);
            let mut step = 1;
            while kept >= MIN_KEPT_TOKENS {
                let mut messages = self.messages.to_vec();
                if let Some(message) = messages.get_mut(at) {
                    replace_stretch(message, &stretch, &ends_of(text, &ends, kept));
                }
                match self.encode(&messages, limit) {
                    // Where the ends meet there may be more tokens than before.
                    Err(EncodeError::TooLong { tokens, .. }) => {
                        kept = kept.saturating_sub(tokens.saturating_sub(limit).max(step));
                        step *= 2;
                    }
                    shortened => return shortened,
                }
            }
        }
        let others = total.saturating_sub(ends.len());
        Err(EncodeError::TooLong {
            tokens: (others + MIN_KEPT_TOKENS.min(ends.len())).max(room.most + 1),
            exact: false,
        })
    }
}

/// The ranges of a message's text, in bytes, before, between and behind its images.
fn stretches_between_images(message: &Message) -> Vec<Range<usize>> {
    let mut places: Vec<usize> = message.images.iter().map(|image| image.at).collect();
    places.push(message.content.len());
    places.sort_unstable();
    let mut start = 0;
    let ranges = places
        .into_iter()
        .map(|end| std::mem::replace(&mut start, end)..end);
    ranges.collect()
}

/// Puts a shorter text in place of a stretch of a message; the images behind it move with their text.
fn replace_stretch(message: &mut Message, stretch: &Range<usize>, shorter: &str) {
    let left_out = stretch.len().saturating_sub(shorter.len());
    message.content.replace_range(stretch.clone(), shorter);
    // An image at the start of the stretch stands before it.
    for image in &mut message.images {
        if image.at >= stretch.end && image.at > stretch.start {
            image.at = image.at.saturating_sub(left_out);
        }
    }
}

/// The first and the last tokens of a text, `kept` together, without those between.
fn ends_of(text: &str, ends: &[usize], kept: usize) -> String {
    let last = kept / 2;
    let mut first = kept - last;
    // A character that has several tokens is kept whole or not at all.
    while first > 0 && ends.get(first - 1) == ends.get(first) {
        first -= 1;
    }
    let end = |tokens: usize| match tokens.checked_sub(1) {
        Some(index) => ends.get(index).copied().unwrap_or(text.len()),
        None => 0,
    };
    let beginning = text.get(..end(first)).unwrap_or_default();
    let rest = text.get(end(ends.len().saturating_sub(last))..);
    format!("{beginning}{}", rest.unwrap_or_default())
}

/// The indices at which the turns of `messages` begin that may be left out, and behind them that of the last message of the
/// user. A turn is a message of the user with its answer, or a further message of the assistant by itself.
fn turn_starts(messages: &[Message]) -> Vec<usize> {
    let of_user = |message: &Message| message.role == Role::User;
    let last = messages.iter().rposition(of_user);
    let last = last.unwrap_or(messages.len().saturating_sub(1));
    let mut starts = Vec::new();
    let mut after_question = false;
    for (n, message) in messages.iter().enumerate().take(last) {
        // A system message stays in any case, also between a question and its answer.
        if message.role == Role::System {
            continue;
        }
        // An answer is left out with its question.
        if message.role == Role::User || !after_question {
            starts.push(n);
        }
        after_question = message.role == Role::User;
    }
    starts.push(last);
    starts
}

/// The ids of what was said before, by turns.
struct History<'a> {
    said: &'a [Symbol],
    turns: Option<ConversationTurns>,
}

impl<'a> History<'a> {
    fn of(encoder: &(impl ChatEncoder + ?Sized), said: &'a [Symbol]) -> Self {
        let turns = (!said.is_empty()).then(|| encoder.turns(said)).flatten();
        Self { said, turns }
    }

    /// The number of turns that may be left out.
    fn turns_to_leave_out(&self) -> usize {
        let turns = self.turns.iter().flat_map(|parts| &parts.turns);
        turns.filter(|turn| !turn.system).count()
    }

    /// The ids without the first `count` turns, and the number of ids of a continuation that then end no turn.
    fn without(&self, count: usize) -> (Vec<Symbol>, usize) {
        let Some(parts) = &self.turns else {
            return (self.said.to_vec(), 0);
        };
        let part = |from: usize, to: usize| self.said.get(from..to).unwrap_or_default();
        let mut ids = part(0, parts.head).to_vec();
        let (mut left, mut is_open) = (count, true);
        for (n, turn) in parts.turns.iter().enumerate() {
            let end = parts.turns.get(n + 1).map_or(self.said.len(), |next| next.start);
            is_open = turn.system || left == 0;
            if is_open {
                ids.extend_from_slice(part(turn.start, end));
            } else {
                left -= 1;
            }
        }
        (ids, if is_open { 0 } else { parts.close })
    }
}

#[cfg(test)]
mod tests;
