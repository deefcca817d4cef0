//! `genai_config.json`, as far as running the decoder needs it. Keys that are not named here are ignored:
//! each version of the exporter writes others.

use std::path::Path;

use phi_edge_engine::TokenId;
use serde_json::Value;

use crate::error::{ModelError, read_json};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenaiConfig {
    /// `phi3`, `phimoe`, `phi3v`, …
    pub model_type: String,
    /// The most tokens of a sequence.
    pub context_length: usize,
    /// Entries of the vocabulary, padding included.
    pub vocab_size: usize,
    /// Elements of a key or value per head.
    pub head_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Heads of keys and values.
    pub num_kv_heads: usize,
    /// Heads of queries.
    pub num_heads: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Tokens that end an answer; the file has a number or a list.
    pub eos: Vec<TokenId>,
    /// The graph's file name within the directory.
    pub decoder_file: String,
    /// Names of the graph's inputs.
    pub inputs: DecoderInputs,
    /// Names of the graph's outputs.
    pub outputs: DecoderOutputs,
}

/// Names of the decoder graph's inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderInputs {
    /// Token ids `[batch, sequence]`; `None` for graphs that take embeddings.
    pub input_ids: Option<String>,
    /// Embeddings `[batch, sequence, hidden]`, where the graph takes them.
    pub inputs_embeds: Option<String>,
    /// The mask `[batch, total]`.
    pub attention_mask: String,
    /// Positions `[batch, sequence]`; not all graphs have them.
    pub position_ids: Option<String>,
    /// Past keys, `%d` standing for the layer.
    pub past_key_template: String,
    /// Past values, `%d` standing for the layer.
    pub past_value_template: String,
}

/// Names of the decoder graph's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderOutputs {
    /// Logits `[batch, sequence, vocabulary]`.
    pub logits: String,
    /// Present keys, `%d` standing for the layer.
    pub present_key_template: String,
    /// Present values, `%d` standing for the layer.
    pub present_value_template: String,
}

impl GenaiConfig {
    /// The name of a layer's past keys.
    pub fn past_key(&self, layer: usize) -> String {
        layer_name(&self.inputs.past_key_template, layer)
    }

    /// The name of a layer's past values.
    pub fn past_value(&self, layer: usize) -> String {
        layer_name(&self.inputs.past_value_template, layer)
    }

    /// The name of a layer's present keys.
    pub fn present_key(&self, layer: usize) -> String {
        layer_name(&self.outputs.present_key_template, layer)
    }

    /// The name of a layer's present values.
    pub fn present_value(&self, layer: usize) -> String {
        layer_name(&self.outputs.present_value_template, layer)
    }

    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        let json = read_json(path, "it names the graph and its dimensions")?;
        Self::parse(&json).map_err(|fault| {
            ModelError::invalid(
                path,
                format!("{fault}; export the model again or correct the file"),
            )
        })
    }

    fn parse(json: &Value) -> Result<Self, String> {
        let file = Section {
            value: json,
            path: String::new(),
        };
        let model = file.section("model")?;
        let decoder = model.section("decoder")?;
        let hidden_size = decoder.optional_count("hidden_size")?;
        let num_heads = decoder.count("num_attention_heads")?;
        let head_size = match decoder.optional_count("head_size")? {
            Some(size) => size,
            // Older files leave it out where it follows from the rest.
            None => hidden_size
                .map(|hidden| hidden / num_heads)
                .ok_or("model.decoder has neither head_size nor hidden_size")?,
        };
        Ok(Self {
            model_type: model.optional_text("type")?.unwrap_or_else(|| "phi3".to_owned()),
            context_length: model.count("context_length")?,
            vocab_size: model.count("vocab_size")?,
            head_size,
            num_layers: decoder.count("num_hidden_layers")?,
            num_kv_heads: decoder
                .optional_count("num_key_value_heads")?
                .unwrap_or(num_heads),
            num_heads,
            hidden_size: hidden_size.unwrap_or(head_size * num_heads),
            eos: model.token_ids("eos_token_id")?,
            decoder_file: decoder.file_name("filename")?,
            inputs: inputs(&decoder)?,
            outputs: outputs(&decoder)?,
        })
    }
}

fn layer_name(template: &str, layer: usize) -> String {
    template.replacen("%d", &layer.to_string(), 1)
}

fn inputs(decoder: &Section<'_>) -> Result<DecoderInputs, String> {
    let section = decoder.optional_section("inputs")?;
    let inputs_embeds = section.optional_text("inputs_embeds")?;
    let input_ids = section.optional_text("input_ids")?;
    let name = |key: &str, default: &str| {
        Ok::<_, String>(section.optional_text(key)?.unwrap_or_else(|| default.into()))
    };
    Ok(DecoderInputs {
        // A graph that takes embeddings names no ids; one that names neither follows the exporter's custom.
        input_ids: input_ids.or_else(|| inputs_embeds.is_none().then(|| "input_ids".to_owned())),
        inputs_embeds,
        attention_mask: name("attention_mask", "attention_mask")?,
        position_ids: section.optional_text("position_ids")?,
        past_key_template: section.layer_template("past_key_names", "past_key_values.%d.key")?,
        past_value_template: section.layer_template("past_value_names", "past_key_values.%d.value")?,
    })
}

fn outputs(decoder: &Section<'_>) -> Result<DecoderOutputs, String> {
    let section = decoder.optional_section("outputs")?;
    Ok(DecoderOutputs {
        logits: section
            .optional_text("logits")?
            .unwrap_or_else(|| "logits".to_owned()),
        present_key_template: section.layer_template("present_key_names", "present.%d.key")?,
        present_value_template: section.layer_template("present_value_names", "present.%d.value")?,
    })
}

/// An object of the file, with its path for messages.
struct Section<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Section<'a> {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn section(&self, key: &str) -> Result<Section<'a>, String> {
        let section = self.optional_section(key)?;
        if section.value.is_null() {
            Err(format!("has no section {}", section.path))
        } else {
            Ok(section)
        }
    }

    fn optional_section(&self, key: &str) -> Result<Section<'a>, String> {
        let path = self.key(key);
        match self.get(key) {
            None => Ok(Section {
                value: &Value::Null,
                path,
            }),
            Some(value) if value.is_object() => Ok(Section { value, path }),
            Some(_) => Err(format!("{path} must be an object")),
        }
    }

    fn count(&self, key: &str) -> Result<usize, String> {
        self.optional_count(key)?
            .ok_or_else(|| format!("has no {}", self.key(key)))
    }

    /// A whole number of at least one.
    fn optional_count(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!(
                "{} must be a whole number above zero, not {value}",
                self.key(key)
            )),
        }
    }

    fn optional_text(&self, key: &str) -> Result<Option<String>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && !text.contains('\0') => Ok(Some(text.clone())),
            Some(value) => Err(format!("{} must be a text, not {value}", self.key(key))),
        }
    }

    fn layer_template(&self, key: &str, default: &str) -> Result<String, String> {
        let template = self.optional_text(key)?.unwrap_or_else(|| default.to_owned());
        if template.contains("%d") {
            Ok(template)
        } else {
            Err(format!(
                "{} must hold %d in the layer's place, not \"{template}\"",
                self.key(key)
            ))
        }
    }

    /// A file within the directory: a name that leads out of it is refused.
    fn file_name(&self, key: &str) -> Result<String, String> {
        let name = self
            .optional_text(key)?
            .ok_or_else(|| format!("has no {}", self.key(key)))?;
        let inside = Path::new(&name)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if inside {
            Ok(name)
        } else {
            Err(format!(
                "{} must name a file of the model directory, not \"{name}\"",
                self.key(key)
            ))
        }
    }

    fn token_ids(&self, key: &str) -> Result<Vec<TokenId>, String> {
        let fault = || format!("{} must be a token id or a list of them", self.key(key));
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .map(TokenId)
                .ok_or_else(fault)
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file() -> Value {
        json!({"model": {
            "context_length": 131_072, "vocab_size": 32064, "eos_token_id": 32000, "type": "phi3", "new_key": [1],
            "decoder": {"filename": "phi3.onnx", "head_size": 96, "hidden_size": 3072, "num_attention_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 32,
                "inputs": {"past_key_names": "past.%d.k", "past_value_names": "past.%d.v", "position_ids": "position_ids"},
                "outputs": {}}}})
    }

    fn check(change: impl FnOnce(&mut Value), expected: &str) {
        let mut json = file();
        change(&mut json);
        let fault = GenaiConfig::parse(&json).unwrap_err();
        assert!(fault.contains(expected), "{fault:?} does not say {expected:?}");
    }

    #[test]
    fn reads_numbers_lists_and_defaults() {
        let config = GenaiConfig::parse(&file()).unwrap();
        assert_eq!(config.eos, [TokenId(32000)]);
        assert_eq!(
            (config.past_key(3).as_str(), config.present_value(11).as_str()),
            ("past.3.k", "present.11.value")
        );
        assert_eq!(config.inputs.input_ids.as_deref(), Some("input_ids"));
        let mut json = file();
        json["model"]["eos_token_id"] = json!([1, 2]);
        json["model"]["decoder"]["head_size"] = Value::Null;
        let config = GenaiConfig::parse(&json).unwrap();
        assert_eq!((config.eos.len(), config.head_size), (2, 96));
    }

    #[test]
    fn faults_name_the_key() {
        check(
            |json| json["model"]["vocab_size"] = json!("many"),
            "model.vocab_size must be a whole number",
        );
        check(
            |json| json["model"]["decoder"]["num_hidden_layers"] = json!(0),
            "model.decoder.num_hidden_layers",
        );
        check(
            |json| json["model"]["decoder"]["filename"] = json!("../other/model.onnx"),
            "model.decoder.filename",
        );
        check(
            |json| json["model"]["decoder"]["inputs"]["past_key_names"] = json!("past"),
            "must hold %d",
        );
        check(
            |json| json["model"]["eos_token_id"] = json!("x"),
            "model.eos_token_id",
        );
        check(|json| json["model"] = json!(7), "model must be an object");
        check(|json| *json = json!({}), "has no section model");
    }
}
