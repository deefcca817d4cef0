//! `genai_config.json`, as far as running the decoder needs it. Keys that are not named here are ignored:
//! each version of the exporter writes others.

use std::path::Path;

use phi_edge_engine::TokenId;
use serde_json::Value;

use crate::config_section::Section;
use crate::error::{ModelError, read_json};

/// The most layers of a decoder: far more than any model has.
const MAX_LAYERS: usize = 1024;

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
    /// The graphs of a model that takes images.
    pub vision: Option<VisionConfig>,
}

/// The graphs of a model that takes images, beside its decoder: the embedding and the encoder of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionConfig {
    /// The embedding graph's file name. It takes the decoder's `input_ids` and `image_features`.
    pub embedding_file: String,
    /// The name of its output, the embeddings `[batch, sequence, hidden]`.
    pub embeddings: String,
    /// The encoder graph's file name.
    pub encoder_file: String,
    /// Its input of pixels `[images, crops, 3, height, width]`.
    pub pixel_values: String,
    /// Its input of padded sizes in pixels `[images, 2]`, height first.
    pub image_sizes: String,
    /// Its output, the features `[tokens, hidden]`.
    pub image_features: String,
}

/// Names of the decoder graph's inputs, where the model has one the embedding graph's among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderInputs {
    /// Token ids `[batch, sequence]`; `None` for graphs that take embeddings and have no embedding graph beside them.
    pub input_ids: Option<String>,
    /// Features of images `[places, hidden]`, for the places of negative ids.
    pub image_features: Option<String>,
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
        let file = Section::whole(json);
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
        let num_layers = decoder.count("num_hidden_layers")?;
        if num_layers > MAX_LAYERS {
            return Err(format!(
                "model.decoder.num_hidden_layers is {num_layers}, and no model has more than {MAX_LAYERS} layers"
            ));
        }
        let (inputs, outputs) = (inputs(&model, &decoder)?, outputs(&decoder)?);
        for (keys, values, section) in [
            (
                &inputs.past_key_template,
                &inputs.past_value_template,
                "inputs.past_value_names",
            ),
            (
                &outputs.present_key_template,
                &outputs.present_value_template,
                "outputs.present_value_names",
            ),
        ] {
            if keys == values {
                return Err(format!(
                    "model.decoder.{section} names the keys ({keys}), not the values"
                ));
            }
        }
        Ok(Self {
            model_type: model.optional_text("type")?.unwrap_or_else(|| "phi3".to_owned()),
            context_length: model.count("context_length")?,
            vocab_size: model.count("vocab_size")?,
            head_size,
            num_layers,
            num_kv_heads: decoder
                .optional_count("num_key_value_heads")?
                .unwrap_or(num_heads),
            num_heads,
            hidden_size: hidden_size.unwrap_or(head_size * num_heads),
            eos: model.token_ids("eos_token_id")?,
            decoder_file: decoder.file_name("filename")?,
            inputs,
            outputs,
            vision: vision(&model)?,
        })
    }
}

fn layer_name(template: &str, layer: usize) -> String {
    template.replacen("%d", &layer.to_string(), 1)
}

fn inputs(model: &Section<'_>, decoder: &Section<'_>) -> Result<DecoderInputs, String> {
    let section = decoder.optional_section("inputs")?;
    let inputs_embeds = section.optional_text("inputs_embeds")?;
    let mut input_ids = section.optional_text("input_ids")?;
    let mut image_features = None;
    if takes_images(model)? {
        let embedding = model.section("embedding")?.optional_section("inputs")?;
        let name =
            |key: &str| Ok::<_, String>(embedding.optional_text(key)?.unwrap_or_else(|| key.to_owned()));
        input_ids = Some(name("input_ids")?);
        image_features = Some(name("image_features")?);
    }
    let name = |key: &str, default: &str| {
        Ok::<_, String>(section.optional_text(key)?.unwrap_or_else(|| default.into()))
    };
    Ok(DecoderInputs {
        // A graph that takes embeddings names no ids; one that names neither follows the exporter's custom.
        input_ids: input_ids.or_else(|| inputs_embeds.is_none().then(|| "input_ids".to_owned())),
        image_features,
        inputs_embeds,
        attention_mask: name("attention_mask", "attention_mask")?,
        position_ids: section.optional_text("position_ids")?,
        past_key_template: section.layer_template("past_key_names", "past_key_values.%d.key")?,
        past_value_template: section.layer_template("past_value_names", "past_key_values.%d.value")?,
    })
}

/// Whether the model has graphs for images.
fn takes_images(model: &Section<'_>) -> Result<bool, String> {
    let graphs = [
        model.optional_section("embedding")?,
        model.optional_section("vision")?,
    ];
    Ok(graphs.iter().all(Section::is_there))
}

fn vision(model: &Section<'_>) -> Result<Option<VisionConfig>, String> {
    if !takes_images(model)? {
        return Ok(None);
    }
    let (embedding, encoder) = (model.section("embedding")?, model.section("vision")?);
    let name = |graph: &Section<'_>, kind: &str, key: &str| {
        let names = graph.optional_section(kind)?;
        Ok::<_, String>(names.optional_text(key)?.unwrap_or_else(|| key.to_owned()))
    };
    Ok(Some(VisionConfig {
        embedding_file: embedding.file_name("filename")?,
        embeddings: name(&embedding, "outputs", "inputs_embeds")?,
        encoder_file: encoder.file_name("filename")?,
        pixel_values: name(&encoder, "inputs", "pixel_values")?,
        image_sizes: name(&encoder, "inputs", "image_sizes")?,
        image_features: name(&encoder, "outputs", "image_features")?,
    }))
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
    fn the_graphs_for_images_are_read_where_both_are_there() {
        let mut json = file();
        json["model"]["decoder"]["inputs"]["inputs_embeds"] = json!("inputs_embeds");
        json["model"]["embedding"] = json!({"filename": "e.onnx", "inputs": {"image_features": "features"}});
        assert_eq!(GenaiConfig::parse(&json).unwrap().inputs.input_ids, None);
        json["model"]["vision"] = json!({"filename": "v.onnx", "outputs": {"image_features": "out"}});
        let config = GenaiConfig::parse(&json).unwrap();
        assert_eq!(config.inputs.input_ids.as_deref(), Some("input_ids"));
        assert_eq!(config.inputs.image_features.as_deref(), Some("features"));
        let vision = config.vision.unwrap();
        assert_eq!(
            (vision.embedding_file.as_str(), vision.encoder_file.as_str()),
            ("e.onnx", "v.onnx")
        );
        assert_eq!(
            (vision.pixel_values.as_str(), vision.image_features.as_str()),
            ("pixel_values", "out")
        );
        json["model"]["vision"]["filename"] = json!("../v.onnx");
        assert!(
            GenaiConfig::parse(&json)
                .unwrap_err()
                .contains("model.vision.filename")
        );
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
            |json| json["model"]["decoder"]["num_hidden_layers"] = json!(100_000_000),
            "num_hidden_layers is 100000000",
        );
        check(
            |json| json["model"]["decoder"]["inputs"]["past_value_names"] = json!("past.%d.k"),
            "inputs.past_value_names",
        );
        check(
            |json| json["model"]["decoder"]["outputs"]["present_key_names"] = json!("present.%d.value"),
            "outputs.present_value_names",
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
