//! Text to token ids and back, by the model's own tokenizer and chat template.

mod images;
mod rendered;
mod turns;

use std::path::Path;
use std::sync::Arc;

use phi_edge_engine::{Detokenizer, Symbol, TokenId};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::chat_template::{ChatTemplate, Message, Role};
use crate::detokenizer::StreamDetokenizer;
use crate::encode_cost::{EncodeCost, EncodeError, TEXT_COPIES};
use crate::error::{ModelError, read};
use crate::genai_config::GenaiConfig;
use crate::pieces::{MEMORY_PER_BYTE, PieceEncoder, TooMany};
use crate::special_tokens::SpecialTokens;
use rendered::{Part, Rendered};

/// Tokens that end a turn of Phi-3's, whatever the configuration lists: an incomplete list of a published
/// configuration lets answers run on into an invented next turn.
const TURN_ENDS: [&str; 3] = ["<|endoftext|>", "<|end|>", "<|assistant|>"];

/// Texts to encode others behind, one of which will form no token with what follows.
const ANCHORS: [&str; 3] = ["\n", ".", "a"];
/// The most tokens of an answer of one letter, with what the template puts around it.
const ANSWER_TOKENS: usize = 8;

/// A model's tokenizer and chat template. Clones share them.
#[derive(Debug, Clone)]
pub struct TextModel {
    inner: Arc<Inner>,
    /// The parts that an image is cut into at most; `None`: the model takes text alone.
    num_crops: Option<usize>,
}

#[derive(Debug)]
struct Inner {
    /// As the model ships it: spellings of added tokens become tokens. Also decodes.
    shipped: Arc<Tokenizer>,
    /// For text of users: no spelling becomes a token.
    plain: PieceEncoder,
    special: SpecialTokens,
    template: ChatTemplate,
    stop_ids: Vec<TokenId>,
}

impl TextModel {
    pub(crate) fn load(folder: &Path, config: &GenaiConfig) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let bytes = read(
            &path,
            "prompts and answers need it (token ids can be run without)",
        )?;
        let invalid = |fault: String| {
            ModelError::invalid(
                &path,
                format!("is no tokenizer that can be used: {fault}; copy or export it again"),
            )
        };
        let mut json: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        let special = SpecialTokens::read(&json).map_err(invalid)?;
        let shipped = Tokenizer::from_bytes(&bytes).map_err(|error| invalid(error.to_string()))?;
        // An added token that is not flagged as special would still be found in text that is to stay text.
        if let Some(tokens) = json["added_tokens"].as_array_mut() {
            for token in tokens {
                token["special"] = Value::Bool(true);
            }
        }
        let patched = serde_json::to_vec(&json).map_err(|error| invalid(error.to_string()))?;
        let mut plain = Tokenizer::from_bytes(patched).map_err(|error| invalid(error.to_string()))?;
        plain.set_encode_special_tokens(true);
        let plain = PieceEncoder::new(&json, plain).map_err(invalid)?;
        let template = ChatTemplate::load(folder)?;
        let mut stop_ids = config.eos.clone();
        stop_ids.extend(TURN_ENDS.iter().filter_map(|spelling| special.id(spelling)));
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let inner = Inner {
            shipped: Arc::new(shipped),
            plain,
            special,
            template,
            stop_ids,
        };
        Ok(Self {
            inner: Arc::new(inner),
            num_crops: config.vision.is_some().then_some(images::DEFAULT_CROPS),
        })
    }

    /// The ids of a conversation, ready for the model's answer. Messages are text: no spelling in them becomes a
    /// control token. Where they hold none, the ids are those of the template's whole text.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<Symbol>, ModelError> {
        self.encode_turns(messages, true)
    }

    /// As [`TextModel::encode_chat`], with at most `room` ids. A text that is surely longer is not encoded, and
    /// encoding stops where it turns out to be.
    ///
    /// # Errors
    /// The prompt is longer, or can't be made.
    pub fn encode_chat_within(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        self.encode_within(messages, true, room)
    }

    /// As [`TextModel::encode_chat`], with a choice of whether the model's turn begins.
    pub fn encode_turns(
        &self,
        messages: &[Message],
        generation_prompt: bool,
    ) -> Result<Vec<Symbol>, ModelError> {
        match self.encode_within(messages, generation_prompt, usize::MAX) {
            Ok(ids) => Ok(ids),
            Err(EncodeError::Model(error)) => Err(error),
            Err(long @ EncodeError::TooLong { .. }) => Err(ModelError::Encode(long.to_string())),
        }
    }

    /// The cost of encoding a conversation, measured without doing it.
    ///
    /// # Errors
    /// The template refuses it.
    pub fn encode_cost(&self, messages: &[Message]) -> Result<EncodeCost, ModelError> {
        let rendered = self.rendered(messages, true)?;
        let mut cost = EncodeCost {
            at_least: 0,
            memory: rendered.len().saturating_mul(TEXT_COPIES),
        };
        let mut piece = 0;
        for part in rendered.parts(&self.inner.special)? {
            cost.at_least += self.at_least(&part);
            if let Part::Text(text) = part {
                piece = self.inner.plain.largest_piece(&text).max(piece);
            }
        }
        cost.memory = cost.memory.saturating_add(piece.saturating_mul(MEMORY_PER_BYTE));
        Ok(cost)
    }

    /// The least symbols of a part.
    fn at_least(&self, part: &Part<'_>) -> usize {
        match part {
            Part::Token(_) => 1,
            Part::Text(text) => self.inner.plain.at_least(text),
            Part::Image(image) => image.tokens,
        }
    }

    fn encode_within(
        &self,
        messages: &[Message],
        generation_prompt: bool,
        room: usize,
    ) -> Result<Vec<Symbol>, EncodeError> {
        let rendered = self.rendered(messages, generation_prompt)?;
        let parts = rendered.parts(&self.inner.special)?;
        // The least symbols of the parts from each on.
        let mut behind: Vec<usize> = parts.iter().map(|part| self.at_least(part)).collect();
        let mut sum = 0;
        for symbols in behind.iter_mut().rev() {
            sum += *symbols;
            *symbols = sum;
        }
        if sum > room {
            return Err(EncodeError::TooLong {
                tokens: sum,
                exact: false,
            });
        }
        let mut symbols: Vec<Symbol> = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let too_many = self.encode_part(part, &mut symbols, room)?.err();
            let rest = behind.get(n + 1).copied().unwrap_or(0);
            if let Some(TooMany { at_least, exact }) = too_many {
                return Err(EncodeError::TooLong {
                    tokens: at_least + rest,
                    exact: exact && rest == 0,
                });
            }
        }
        Ok(symbols)
    }

    /// Appends the symbols of a part, at most `room` in all.
    fn encode_part(
        &self,
        part: &Part<'_>,
        symbols: &mut Vec<Symbol>,
        room: usize,
    ) -> Result<Result<(), TooMany>, ModelError> {
        match part {
            Part::Token(id) => symbols.push(Symbol::Token(*id)),
            Part::Image(image) => {
                let tokens = u32::try_from(image.tokens).unwrap_or(u32::MAX);
                symbols.extend(Symbol::of_image(image.id, tokens));
            }
            Part::Text(text) => {
                let (before, mut ids) = (symbols.len(), Vec::new());
                if let Err(mut too_many) =
                    self.inner
                        .plain
                        .encode(text, &mut ids, room.saturating_sub(before))?
                {
                    too_many.at_least += before;
                    return Ok(Err(too_many));
                }
                symbols.extend(ids.into_iter().map(Symbol::Token));
            }
        }
        if symbols.len() > room {
            return Ok(Err(TooMany {
                at_least: symbols.len(),
                exact: true,
            }));
        }
        Ok(Ok(()))
    }

    fn rendered(&self, messages: &[Message], generation_prompt: bool) -> Result<Rendered, ModelError> {
        Rendered::of(
            messages,
            generation_prompt,
            &self.inner.special,
            &self.inner.template,
        )
    }

    /// The ids that follow an answer of the model when the conversation goes on: the end of its turn, then
    /// `messages`, up to and with the start of the next answer. The ids before them stay as they were computed:
    /// encoding their text again need not give the same ones.
    pub fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, ModelError> {
        match self.encode_continuation_within(messages, usize::MAX) {
            Ok(ids) => Ok(ids),
            Err(EncodeError::Model(error)) => Err(error),
            Err(long @ EncodeError::TooLong { .. }) => Err(ModelError::Encode(long.to_string())),
        }
    }

    /// As [`TextModel::encode_continuation`], within a limit as [`TextModel::encode_chat_within`].
    ///
    /// # Errors
    /// The continuation is longer, or can't be made.
    pub fn encode_continuation_within(
        &self,
        messages: &[Message],
        room: usize,
    ) -> Result<Vec<Symbol>, EncodeError> {
        let turn = |role, content: &str| Message::new(role, content.to_owned());
        let question = turn(Role::User, "x");
        let asked = self.encode_turns(std::slice::from_ref(&question), true)?;
        let mut conversation = vec![question, turn(Role::Assistant, "x")];
        conversation.extend_from_slice(messages);
        // Before the continuation are the question and an answer of one letter.
        let before = asked.len() + ANSWER_TOKENS;
        let all = self
            .encode_within(&conversation, true, room.saturating_add(before))
            .map_err(|error| match error {
                EncodeError::TooLong { tokens, .. } => EncodeError::TooLong {
                    tokens: tokens - before,
                    exact: false,
                },
                other @ EncodeError::Model(_) => other,
            })?;
        // From the control token that begins the answer: the next one ends it.
        let control = |symbol: &Symbol| symbol.token().is_some_and(|id| self.inner.special.is_one(id));
        let begins = asked.iter().rposition(control);
        let ends = begins
            .filter(|&at| all.get(..=at) == asked.get(..=at))
            .and_then(|at| Some(at + 1 + all[at + 1..].iter().position(control)?));
        match ends {
            Some(ends) if all.len() - ends > room => Err(EncodeError::TooLong {
                tokens: all.len() - ends,
                exact: true,
            }),
            Some(ends) => Ok(all[ends..].to_vec()),
            None => Err(EncodeError::Model(ModelError::Encode(
                "the model's chat template marks no end of a turn, so that no conversation can be continued"
                    .into(),
            ))),
        }
    }

    /// The ids that add exactly `text` to what the ids of `before` decode to; `None` if none were found. An answer that ended
    /// within a token goes on from there.
    pub fn encode_behind(&self, before: &[TokenId], text: &str) -> Option<Vec<TokenId>> {
        let wanted = self.decode(before) + text;
        let adds = |tail: &Vec<TokenId>| self.decode(&[before, tail].concat()) == wanted;
        let alone = || self.encode_raw(text).ok();
        // Tokenizers put a space before a text: not between what stands before it already and what follows.
        let anchored = || {
            ANCHORS
                .iter()
                .filter_map(|anchor| self.encode_anchored(anchor, text))
        };
        if before.is_empty() {
            alone().into_iter().chain(anchored()).find(adds)
        } else {
            anchored().chain(alone()).find(adds)
        }
        .or_else(|| self.byte_tokens(text).filter(adds))
    }

    /// The ids of `text` where it follows `anchor`, if no token is of both.
    fn encode_anchored(&self, anchor: &str, text: &str) -> Option<Vec<TokenId>> {
        let whole = self.encode_raw(&format!("{anchor}{text}")).ok()?;
        let begin = self.encode_raw(anchor).ok()?;
        whole.strip_prefix(begin.as_slice()).map(<[_]>::to_vec)
    }

    /// The byte fallback's token for each byte, in vocabularies that have them.
    fn byte_tokens(&self, text: &str) -> Option<Vec<TokenId>> {
        let id = |byte: u8| self.inner.shipped.token_to_id(&format!("<0x{byte:02X}>"));
        text.bytes().map(|byte| id(byte).map(TokenId)).collect()
    }

    fn decode(&self, ids: &[TokenId]) -> String {
        let mut detokenizer = self.detokenizer();
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// The ids that all prompts with this system message begin with whose user begins with `opening`, whatever follows.
    pub fn prefix(&self, system: Option<&str>, opening: &str) -> Result<Vec<Symbol>, ModelError> {
        let with = |rest: &str| {
            let turn = |role, content: String| Message::new(role, content);
            let system = system.map(|system| turn(Role::System, system.to_owned()));
            let user = turn(Role::User, format!("{opening}{rest}"));
            let turns: Vec<Message> = system.into_iter().chain([user]).collect();
            self.encode_turns(&turns, true)
        };
        // Two that differ in the first character that follows: a token across the border is in neither.
        let (one, other) = (with("a")?, with("\n1")?);
        let shared = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        Ok(one[..shared].to_vec())
    }

    /// The ids of a text that is nothing but text.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<TokenId>, ModelError> {
        let mut ids = Vec::new();
        match self.inner.plain.encode(text, &mut ids, usize::MAX)? {
            // There are no more than can be counted.
            Ok(()) | Err(_) => Ok(ids),
        }
    }

    /// The ids of a text in which spellings of added tokens are meant as tokens.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<TokenId>, ModelError> {
        encode(&self.inner.shipped, text)
    }

    /// Tokens that end an answer: the configuration's, and Phi-3's turn ends by their spelling.
    pub fn stop_ids(&self) -> Vec<TokenId> {
        self.inner.stop_ids.clone()
    }

    /// Text of one answer's ids, special tokens left out.
    pub fn detokenizer(&self) -> Box<dyn Detokenizer> {
        Box::new(StreamDetokenizer::new(Arc::clone(&self.inner.shipped), true))
    }

    /// As [`TextModel::detokenizer`], special tokens shown.
    pub fn detokenizer_with_specials(&self) -> Box<dyn Detokenizer> {
        Box::new(StreamDetokenizer::new(Arc::clone(&self.inner.shipped), false))
    }

    /// Entries of the tokenizer, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner
            .shipped
            .get_vocab_size(true)
            .max(self.inner.special.len())
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>, ModelError> {
    let encoding = tokenizer
        .encode_fast(text, false)
        .map_err(|error| ModelError::Encode(error.to_string()))?;
    Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
}
