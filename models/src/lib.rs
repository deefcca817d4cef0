//! Interim.
#![allow(missing_docs, clippy::all, clippy::pedantic)]
use phi_edge_engine::TokenId;
use std::path::{Path, PathBuf};
pub struct DecoderInputs {
    pub input_ids: Option<String>,
    pub attention_mask: String,
    pub position_ids: Option<String>,
    pub past_key_template: String,
    pub past_value_template: String,
}
pub struct DecoderOutputs {
    pub logits: String,
    pub present_key_template: String,
    pub present_value_template: String,
}
pub struct GenaiConfig {
    pub context_length: usize,
    pub vocab_size: usize,
    pub head_size: usize,
    pub num_layers: usize,
    pub num_kv_heads: usize,
    pub eos: Vec<TokenId>,
    pub decoder_file: String,
    pub inputs: DecoderInputs,
    pub outputs: DecoderOutputs,
}
impl GenaiConfig {
    pub fn past_key(&self, l: usize) -> String {
        self.inputs.past_key_template.replace("%d", &l.to_string())
    }
    pub fn past_value(&self, l: usize) -> String {
        self.inputs.past_value_template.replace("%d", &l.to_string())
    }
    pub fn present_key(&self, l: usize) -> String {
        self.outputs.present_key_template.replace("%d", &l.to_string())
    }
    pub fn present_value(&self, l: usize) -> String {
        self.outputs.present_value_template.replace("%d", &l.to_string())
    }
}
pub struct ModelDir {
    path: PathBuf,
    config: GenaiConfig,
}
#[derive(Debug)]
pub struct ModelError;
#[derive(Debug, Clone, PartialEq)]
pub enum Role {
    System,
    User,
    Assistant,
}
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub role: Role,
    pub content: String,
}
impl ModelDir {
    pub fn open(p: &Path) -> Result<Self, ModelError> {
        let v: serde_json::Value =
            serde_json::from_slice(&std::fs::read(p.join("genai_config.json")).unwrap()).unwrap();
        let d = &v["model"]["decoder"];
        let s = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        let n = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
        Ok(Self {
            path: p.into(),
            config: GenaiConfig {
                context_length: n(&v["model"]["context_length"]),
                vocab_size: n(&v["model"]["vocab_size"]),
                head_size: n(&d["head_size"]),
                num_layers: n(&d["num_hidden_layers"]),
                num_kv_heads: n(&d["num_key_value_heads"]),
                eos: vec![],
                decoder_file: s(&d["filename"]),
                inputs: DecoderInputs {
                    input_ids: d["inputs"]["input_ids"].as_str().map(Into::into),
                    attention_mask: s(&d["inputs"]["attention_mask"]),
                    position_ids: d["inputs"]["position_ids"].as_str().map(Into::into),
                    past_key_template: s(&d["inputs"]["past_key_names"]),
                    past_value_template: s(&d["inputs"]["past_value_names"]),
                },
                outputs: DecoderOutputs {
                    logits: s(&d["outputs"]["logits"]),
                    present_key_template: s(&d["outputs"]["present_key_names"]),
                    present_value_template: s(&d["outputs"]["present_value_names"]),
                },
            },
        })
    }
    pub fn config(&self) -> &GenaiConfig {
        &self.config
    }
    pub fn decoder_path(&self) -> PathBuf {
        self.path.join(&self.config.decoder_file)
    }
}
