//! A conversation as the text of its template, with marks where content and images are.

use std::borrow::Cow;

use phi_edge_engine::TokenId;

use crate::chat_template::{ChatTemplate, Message};
use crate::error::ModelError;
use crate::image::ImageInfo;
use crate::special_tokens::{SpecialTokens, TextPart, unused_mark};

/// The whole text of a conversation.
pub(super) struct Rendered {
    text: String,
    /// Breaks spellings of tokens that are content.
    mark: char,
    /// Stands before and behind the number of an image.
    image_mark: char,
    images: Vec<ImageInfo>,
}

/// A part of the text that is encoded by itself.
pub(super) enum Part<'a> {
    Token(TokenId),
    Text(Cow<'a, str>),
    Image(ImageInfo),
}

impl Rendered {
    /// Renders a conversation. The template may trim or cut what it is given, so content and template can't be told apart
    /// afterwards by position: content's spellings are broken before, and mended in the text between tokens.
    pub(super) fn of(
        messages: &[Message],
        generation_prompt: bool,
        special: &SpecialTokens,
        template: &ChatTemplate,
    ) -> Result<Self, ModelError> {
        let contents = messages.iter().map(|message| message.content.as_str());
        let no_mark =
            || ModelError::Encode("it uses every private-use character from U+F8A0 to U+F8FF".into());
        let mark = unused_mark(&contents).ok_or_else(no_mark)?;
        let mut buffer = [0; 4];
        let taken: &str = mark.encode_utf8(&mut buffer);
        let image_mark = unused_mark(&contents.chain([taken])).ok_or_else(no_mark)?;
        let mut rendered = Self {
            text: String::new(),
            mark,
            image_mark,
            images: Vec::new(),
        };
        let mut turns = Vec::with_capacity(messages.len());
        for message in messages {
            turns.push((message.role.as_str(), rendered.disarmed(message, special)?));
        }
        rendered.text = template.render(&turns, generation_prompt)?;
        Ok(rendered)
    }

    /// The bytes of the text.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// The text, cut at tokens and at images.
    ///
    /// # Errors
    /// The template left out an image, or gave it twice.
    pub(super) fn parts(&self, special: &SpecialTokens) -> Result<Vec<Part<'_>>, ModelError> {
        let mut parts = Vec::new();
        let mut images = 0;
        for part in special.split(&self.text) {
            let text = match part {
                TextPart::Token(id) => {
                    parts.push(Part::Token(id));
                    continue;
                }
                TextPart::Text(text) => text,
            };
            // Every second piece is the number of an image.
            for (n, piece) in text.split(self.image_mark).enumerate() {
                if n % 2 == 0 {
                    if !piece.is_empty() {
                        parts.push(Part::Text(self.unmarked(piece)));
                    }
                    continue;
                }
                let image = piece.parse().ok().and_then(|at: usize| self.images.get(at));
                let image = image.filter(|_| piece == images.to_string());
                parts.push(Part::Image(*image.ok_or_else(misplaced)?));
                images += 1;
            }
        }
        if images != self.images.len() {
            return Err(misplaced());
        }
        Ok(parts)
    }

    /// The content of a message, with its spellings of tokens broken and its images marked.
    fn disarmed(&mut self, message: &Message, special: &SpecialTokens) -> Result<String, ModelError> {
        let mut content = String::with_capacity(message.content.len());
        let mut from = 0;
        for placed in &message.images {
            let (Some(text), Some(info)) = (message.content.get(from..placed.at), placed.info) else {
                return Err(ModelError::Encode(format!(
                    "image {} of a message has no place in its text, or is not read",
                    placed.image
                )));
            };
            content.push_str(&special.disarm(text, self.mark));
            let number = self.images.len();
            content.extend([self.image_mark]);
            content.push_str(&number.to_string());
            content.extend([self.image_mark]);
            self.images.push(info);
            from = placed.at;
        }
        let rest = message.content.get(from..).unwrap_or_default();
        content.push_str(&special.disarm(rest, self.mark));
        Ok(content)
    }

    fn unmarked<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if text.contains(self.mark) {
            Cow::Owned(text.replace(self.mark, ""))
        } else {
            Cow::Borrowed(text)
        }
    }
}

fn misplaced() -> ModelError {
    ModelError::Template("it does not give every image once, in order".into())
}
