//! The model's chat template: Jinja, as Hugging Face's `apply_chat_template` runs it.

use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;

use crate::error::{ModelError, read, read_json};
use crate::image::ImageInfo;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The role of a message's author.
    pub role: Role,
    /// The text.
    pub content: String,
    /// The images in it, by ascending places.
    pub images: Vec<PlacedImage>,
}

/// An image in a message's text. A turn of an image alone has an empty text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedImage {
    /// The byte of the text that it stands before; the text's length at its end.
    pub at: usize,
    /// The image's index in the request's list.
    pub image: usize,
    /// What a prompt needs to know of it, once it is read.
    pub info: Option<ImageInfo>,
}

impl PlacedImage {
    /// An image that is not read yet.
    pub fn unread(at: usize, image: usize) -> Self {
        Self {
            at,
            image,
            info: None,
        }
    }
}

impl Message {
    /// A message of text alone.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            images: Vec::new(),
        }
    }
}

/// The role of a message's author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The operator's instructions.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The spelling in templates and requests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A compiled template with the tokens it refers to.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

const TEMPLATE_NAME: &str = "chat";

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or the template within `tokenizer_config.json`.
    pub(crate) fn load(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("tokenizer_config.json");
        let config = if config_path.exists() {
            read_json(&config_path, "it belongs to the tokenizer")?
        } else {
            Value::Null
        };
        let file = folder.join("chat_template.jinja");
        let (source, path) = if file.exists() {
            let bytes = read(&file, "it shapes the prompt")?;
            let source = String::from_utf8(bytes).map_err(|_| ModelError::invalid(&file, "is not UTF-8"))?;
            (source, file)
        } else if let Some(source) = template_of(&config) {
            (source, config_path)
        } else {
            return Err(ModelError::Missing {
                path: file,
                needed_for: "it shapes the prompt, and tokenizer_config.json has no chat_template either",
            });
        };
        Self::compile(source, &config).map_err(|error| {
            ModelError::invalid(
                &path,
                format!(
                    "the chat template is no Jinja that can be run: {}",
                    one_line(&error)
                ),
            )
        })
    }

    fn compile(source: String, config: &Value) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // As Hugging Face sets Jinja up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(TEMPLATE_NAME, source)?;
        Ok(Self {
            environment,
            bos_token: spelling(&config["bos_token"]),
            eos_token: spelling(&config["eos_token"]),
        })
    }

    /// Renders a conversation given as `(role, content)`.
    pub(crate) fn render(
        &self,
        messages: &[(&str, String)],
        generation_prompt: bool,
    ) -> Result<String, ModelError> {
        let messages: Vec<_> = messages
            .iter()
            .map(|(role, content)| context! { role => role, content => content })
            .collect();
        self.environment
            .get_template(TEMPLATE_NAME)
            .and_then(|template| {
                template.render(context! {
                    messages,
                    add_generation_prompt => generation_prompt,
                    bos_token => self.bos_token,
                    eos_token => self.eos_token,
                })
            })
            .map_err(|error| ModelError::Template(one_line(&error)))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

/// The template of a `tokenizer_config.json`: a text, or a list of named ones of which `default` counts.
fn template_of(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .or_else(|| named.first())
            .and_then(|entry| entry["template"].as_str())
            .map(ToOwned::to_owned),
        _ => None,
    }
}

/// A token's spelling: a text, or an object with `content`.
fn spelling(token: &Value) -> String {
    token
        .as_str()
        .or_else(|| token["content"].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn one_line(error: &Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
