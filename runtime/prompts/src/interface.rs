//! The interface to the text side of a model.

use phi_edge_engine::{Detokenizer, ImagePixels, Symbol, TokenId};
use phi_edge_models::{
    Detail, EncodeCost, EncodeError, ImageInfo, Message, PromptRoom, TextModel, Truncated, Truncation,
    encode_truncated, probe,
};

/// The error of a text side that takes no images.
const NO_IMAGES: &str = "this model takes text alone";

/// The reason why a conversation has no prompt within a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptError {
    /// It has more tokens than the limit.
    TooLong {
        /// The number of its tokens, or a lower bound of it.
        tokens: usize,
        /// Whether `tokens` is the exact number.
        exact: bool,
    },
    /// It can't be encoded; one line for the client.
    Refused(String),
}

/// The text side of a model, which turns conversations into token ids and ids into text.
pub trait Prompts: Send + Sync {
    /// Returns the prompt's ids, up to and with the start of the model's turn. The error is one line for the client.
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String>;

    /// Returns the ids that follow those of an answer when the conversation goes on: the end of its turn, `messages`, the
    /// start of the next answer.
    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String>;

    /// Returns the ids that add exactly `text` to an answer that begins with `before`; `None` where there are none, or
    /// where they are unknown.
    fn encode_behind(&self, _before: &[TokenId], _text: &str) -> Option<Vec<TokenId>> {
        None
    }

    /// As [`Prompts::encode`], with at most `room` ids. It stops as soon as it is certain that there are more.
    fn encode_within(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, PromptError> {
        within(self.encode(messages), room)
    }

    /// As [`Prompts::encode_continuation`], within a limit as [`Prompts::encode_within`].
    fn encode_continuation_within(
        &self,
        messages: &[Message],
        room: usize,
    ) -> Result<Vec<Symbol>, PromptError> {
        within(self.encode_continuation(messages), room)
    }

    /// As [`Prompts::encode_within`] behind the ids `said`, or at a conversation's beginning without any; leaves out what
    /// `truncation` allows so that all of it fits `room`. An error counts the ids that remain, with those of `said`.
    fn encode_truncated(
        &self,
        _said: &[Symbol],
        _messages: &[Message],
        _truncation: Truncation,
        _room: PromptRoom,
    ) -> Result<Truncated, PromptError> {
        let message = "truncation is not supported with this model's text side";
        Err(PromptError::Refused(message.to_owned()))
    }

    /// Returns the cost of encoding, measured without encoding. The error is one line for the client.
    fn cost(&self, messages: &[Message]) -> Result<EncodeCost, String> {
        let text = messages.iter().map(|message| message.content.len()).sum();
        Ok(EncodeCost {
            at_least: 0,
            memory: EncodeCost::memory_for(text),
        })
    }

    /// Whether conversations may have images.
    fn takes_images(&self) -> bool {
        false
    }

    /// Returns the width and height of an image in pixels, by its file's header alone. The error is one line for the client.
    fn image_size(&self, _file: &[u8]) -> Result<(u32, u32), String> {
        Err(NO_IMAGES.to_owned())
    }

    /// Decodes an image, and returns what a prompt needs to know of it. The error is one line for the client.
    fn read_image(&self, _file: &[u8], _detail: Detail) -> Result<ImageInfo, String> {
        Err(NO_IMAGES.to_owned())
    }

    /// Returns the number of places that an image takes in a prompt. The error is one line for the client.
    fn image_tokens(&self, file: &[u8], detail: Detail) -> Result<usize, String> {
        self.read_image(file, detail).map(|info| info.tokens)
    }

    /// Decodes an image, and returns its pixels as the model's vision encoder takes them. The error is one line for the
    /// client.
    fn image_pixels(&self, _file: &[u8], _detail: Detail) -> Result<ImagePixels, String> {
        Err(NO_IMAGES.to_owned())
    }

    /// Returns a new detokenizer, for one answer.
    fn detokenizer(&self) -> Box<dyn Detokenizer>;

    /// Returns the ids that end an answer.
    fn stop_ids(&self) -> Vec<TokenId>;
}

fn within(ids: Result<Vec<Symbol>, String>, room: usize) -> Result<Vec<Symbol>, PromptError> {
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
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        self.encode_chat(messages).map_err(|error| error.to_string())
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        TextModel::encode_continuation(self, messages).map_err(|error| error.to_string())
    }

    fn encode_behind(&self, before: &[TokenId], text: &str) -> Option<Vec<TokenId>> {
        TextModel::encode_behind(self, before, text)
    }

    fn encode_within(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, PromptError> {
        Ok(self.encode_chat_within(messages, room)?)
    }

    fn encode_continuation_within(
        &self,
        messages: &[Message],
        room: usize,
    ) -> Result<Vec<Symbol>, PromptError> {
        Ok(TextModel::encode_continuation_within(self, messages, room)?)
    }

    fn encode_truncated(
        &self,
        said: &[Symbol],
        messages: &[Message],
        truncation: Truncation,
        room: PromptRoom,
    ) -> Result<Truncated, PromptError> {
        Ok(encode_truncated(self, said, messages, truncation, room)?)
    }

    fn cost(&self, messages: &[Message]) -> Result<EncodeCost, String> {
        self.encode_cost(messages).map_err(|error| error.to_string())
    }

    fn takes_images(&self) -> bool {
        TextModel::takes_images(self)
    }

    fn image_size(&self, file: &[u8]) -> Result<(u32, u32), String> {
        let header = probe(file, u64::MAX).map_err(|error| error.to_string())?;
        Ok((header.width, header.height))
    }

    fn read_image(&self, file: &[u8], detail: Detail) -> Result<ImageInfo, String> {
        TextModel::read_image(self, file, detail).map_err(|error| error.to_string())
    }

    fn image_tokens(&self, file: &[u8], detail: Detail) -> Result<usize, String> {
        TextModel::image_tokens(self, file, detail).map_err(|error| error.to_string())
    }

    fn image_pixels(&self, file: &[u8], detail: Detail) -> Result<ImagePixels, String> {
        TextModel::image_pixels(self, file, detail).map_err(|error| error.to_string())
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        TextModel::detokenizer(self)
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        TextModel::stop_ids(self)
    }
}
