//! A model directory as exported: configuration, graph, tokenizer.

use std::path::{Path, PathBuf};

use crate::error::ModelError;
use crate::fingerprint;
use crate::genai_config::GenaiConfig;
use crate::manifest::Manifest;
use crate::text_model::TextModel;

/// A model directory whose configuration was read and whose graph file exists.
#[derive(Debug, Clone)]
pub struct ModelDir {
    path: PathBuf,
    config: GenaiConfig,
    manifest: Manifest,
}

impl ModelDir {
    /// Reads and checks `path`. The tokenizer is read by [`ModelDir::text`] only: token ids can be run without.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Err(ModelError::NoDirectory(path.to_path_buf()));
        }
        let config = GenaiConfig::read(&path.join("genai_config.json"))?;
        let manifest = Manifest::read(&path.join("manifest.json"))?;
        let model = Self {
            path: path.to_path_buf(),
            config,
            manifest,
        };
        let graph = model.decoder_path();
        match std::fs::metadata(&graph) {
            Ok(metadata) if metadata.len() == 0 => {
                Err(ModelError::invalid(&graph, "is empty; copy or export it again"))
            }
            Ok(_) => Ok(model),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Err(ModelError::Missing {
                path: graph,
                needed_for: "it is the graph that genai_config.json names",
            }),
            Err(source) => Err(ModelError::Unreadable { path: graph, source }),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its configuration.
    pub fn config(&self) -> &GenaiConfig {
        &self.config
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The decoder's graph.
    pub fn decoder_path(&self) -> PathBuf {
        self.path.join(&self.config.decoder_file)
    }

    /// The embedding's graph of a model that takes images.
    pub fn embedding_path(&self) -> Option<PathBuf> {
        let vision = self.config.vision.as_ref()?;
        Some(self.path.join(&vision.embedding_file))
    }

    /// The image encoder's graph of a model that takes images.
    pub fn encoder_path(&self) -> Option<PathBuf> {
        let vision = self.config.vision.as_ref()?;
        Some(self.path.join(&vision.encoder_file))
    }

    /// The manifest's name, else the directory's.
    pub fn name(&self) -> String {
        let directory = || {
            self.path
                .canonicalize()
                .ok()?
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        self.manifest
            .name
            .clone()
            .or_else(directory)
            .unwrap_or_else(|| "model".to_owned())
    }

    /// The digest over all of its files, in hex: it identifies the model. `remembered` is a file that keeps the
    /// digests of single files by their inode, size and time, so that weights are read once and not at every start.
    pub fn fingerprint(&self, remembered: Option<&Path>) -> Result<String, ModelError> {
        fingerprint::of_folder(&self.path, remembered)
    }

    /// Loads tokenizer and chat template.
    pub fn text(&self) -> Result<TextModel, ModelError> {
        TextModel::load(&self.path, &self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let check = |expected: &[&str]| {
            let error = ModelDir::open(folder.path()).unwrap_err().to_string();
            assert!(
                !error.contains('\n') && expected.iter().all(|part| error.contains(part)),
                "{error}"
            );
        };
        check(&["genai_config.json", "missing"]);
        std::fs::write(folder.path().join("genai_config.json"), "{").unwrap();
        check(&["genai_config.json", "no JSON"]);
        let config = r#"{"model":{"context_length":8,"vocab_size":8,"decoder":{"filename":"m.onnx","head_size":8,
            "num_attention_heads":1,"num_hidden_layers":1}}}"#;
        std::fs::write(folder.path().join("genai_config.json"), config).unwrap();
        check(&["m.onnx", "missing"]);
        std::fs::write(folder.path().join("m.onnx"), "").unwrap();
        check(&["m.onnx", "empty"]);
        std::fs::write(folder.path().join("m.onnx"), "x").unwrap();
        let model = ModelDir::open(folder.path()).unwrap();
        let error = model.text().unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json") && error.contains("missing"),
            "{error}"
        );
        let error = ModelDir::open(&folder.path().join("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nowhere") && error.contains("no such model directory"),
            "{error}"
        );
    }
}
