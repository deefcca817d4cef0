//! What the service needs of a model's text side.

use phi_edge_engine::{Detokenizer, TokenId};
use phi_edge_models::{EncodeCost, EncodeError, Message, TextModel};

/// Why a conversation has no prompt within a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptError {
    /// It has more tokens than there is room for.
    TooLong {
        /// So many at least.
        tokens: usize,
        /// No more than those.
        exact: bool,
    },
    /// It can't be made; one line for the client.
    Refused(String),
}

/// Turns conversations into token ids and ids into text.
pub trait Prompts: Send + Sync {
    /// The prompt's ids, up to and with the start of the model's turn. The error is one line for the client.
    fn encode(&self, messages: &[Message]) -> Result<Vec<TokenId>, String>;

    /// What follows the ids of an answer when the conversation goes on: the end of its turn, `messages`, the start of
    /// the next answer.
    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<TokenId>, String>;

    /// The ids that add exactly `text` to an answer that begins with `before`; `None` where there are none, or where that
    /// can't be told.
    fn encode_behind(&self, _before: &[TokenId], _text: &str) -> Option<Vec<TokenId>> {
        None
    }

    /// As [`Prompts::encode`], as far as there are not more than `room` ids: no more work is done than it takes to find out
    /// that there are.
    fn encode_within(&self, messages: &[Message], room: usize) -> Result<Vec<TokenId>, PromptError> {
        within(self.encode(messages), room)
    }

    /// As [`Prompts::encode_continuation`], within a limit as [`Prompts::encode_within`].
    fn encode_continuation_within(
        &self,
        messages: &[Message],
        room: usize,
    ) -> Result<Vec<TokenId>, PromptError> {
        within(self.encode_continuation(messages), room)
    }

    /// What encoding takes, found out without doing it. The error is one line for the client.
    fn cost(&self, messages: &[Message]) -> Result<EncodeCost, String> {
        let text = messages.iter().map(|message| message.content.len()).sum();
        Ok(EncodeCost {
            at_least: 0,
            memory: EncodeCost::memory_for(text),
        })
    }

    /// A fresh one per answer.
    fn detokenizer(&self) -> Box<dyn Detokenizer>;

    /// Ids that end an answer.
    fn stop_ids(&self) -> Vec<TokenId>;
}

fn within(ids: Result<Vec<TokenId>, String>, room: usize) -> Result<Vec<TokenId>, PromptError> {
    let ids = ids.map_err(PromptError::Refused)?;
    if ids.len() > room {
        return Err(PromptError::TooLong {
            tokens: ids.len(),
            exact: true,
        });
    }
    Ok(ids)
}

impl From<EncodeError> for PromptError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLong { tokens, exact } => Self::TooLong { tokens, exact },
            EncodeError::Model(error) => Self::Refused(error.to_string()),
        }
    }
}

impl Prompts for TextModel {
    fn encode(&self, messages: &[Message]) -> Result<Vec<TokenId>, String> {
        self.encode_chat(messages).map_err(|error| error.to_string())
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<TokenId>, String> {
        TextModel::encode_continuation(self, messages).map_err(|error| error.to_string())
    }

    fn encode_behind(&self, before: &[TokenId], text: &str) -> Option<Vec<TokenId>> {
        TextModel::encode_behind(self, before, text)
    }

    fn encode_within(&self, messages: &[Message], room: usize) -> Result<Vec<TokenId>, PromptError> {
        Ok(self.encode_chat_within(messages, room)?)
    }

    fn encode_continuation_within(
        &self,
        messages: &[Message],
        room: usize,
    ) -> Result<Vec<TokenId>, PromptError> {
        Ok(TextModel::encode_continuation_within(self, messages, room)?)
    }

    fn cost(&self, messages: &[Message]) -> Result<EncodeCost, String> {
        self.encode_cost(messages).map_err(|error| error.to_string())
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        TextModel::detokenizer(self)
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        TextModel::stop_ids(self)
    }
}
