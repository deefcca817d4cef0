//! What the service needs of a model's text side.

use phi_edge_engine::{Detokenizer, TokenId};
use phi_edge_models::{Message, TextModel};

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

    /// A fresh one per answer.
    fn detokenizer(&self) -> Box<dyn Detokenizer>;

    /// Ids that end an answer.
    fn stop_ids(&self) -> Vec<TokenId>;
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

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        TextModel::detokenizer(self)
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        TextModel::stop_ids(self)
    }
}
