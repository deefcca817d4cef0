//! The edit that names the weights' real files where the model's folder holds links to them.
//!
//! ONNX Runtime (from 1.32) opens a graph in memory only if its weights lie in the folder that it is given, links
//! resolved. In a cache of Hugging Face every file of a model is a link to `../../blobs/HASH`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use prost::bytes::Bytes;

use crate::onnx_proto::{attribute_field, entry_field, graph_field, model_field, node_field, tensor_field};
use crate::prepare::graph_editor::FieldEdit;
use crate::prepare::protobuf::{fields, name_of, put};

/// The key of the entry of a tensor's external data that names the file (ONNX IR specification, "External Tensor
/// Data").
const LOCATION_KEY: &str = "location";

/// A graph in memory, and the folder that the locations of its weights count from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocatedGraph {
    pub(crate) graph: Bytes,
    pub(crate) weights_folder: PathBuf,
}

/// Returns `model` with the locations of its weights in `folder` resolved to real files, if any of these lies outside
/// of the folder; else as it is.
///
/// Only links within the folder are resolved. A location that leads out of it by itself (`..`, an absolute path) stays:
/// it comes from the graph's author, who must not choose files of this machine, and the library refuses it.
pub(crate) fn resolve_links(model: Bytes, folder: &Path) -> LocatedGraph {
    match resolved(&model, folder) {
        Some(located) => located,
        None => LocatedGraph {
            graph: model,
            weights_folder: folder.to_path_buf(),
        },
    }
}

/// The graph with resolved locations; `None` where nothing needs to be resolved, or something can't be.
fn resolved(model: &Bytes, folder: &Path) -> Option<LocatedGraph> {
    let mut locations: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut unresolvable = false;
    edited(model, Message::Model, &mut |location| {
        if !locations.contains_key(location) {
            match real_file(folder, location) {
                Some(file) => {
                    locations.insert(location.to_owned(), file);
                }
                None => unresolvable = true,
            }
        }
        None
    })?;
    let real_folder = folder.canonicalize().ok()?;
    if unresolvable || locations.values().all(|file| file.starts_with(&real_folder)) {
        return None;
    }
    let weights_folder = common_folder(locations.values())?;
    let names: BTreeMap<&str, String> = locations
        .iter()
        .map(|(location, file)| {
            let parts = file.strip_prefix(&weights_folder).ok()?.components();
            let parts: Option<Vec<&str>> = parts.map(|part| part.as_os_str().to_str()).collect();
            Some((location.as_str(), parts?.join("/")))
        })
        .collect::<Option<_>>()?;
    let mut real_name = |location: &str| names.get(location).cloned();
    match edited(model, Message::Model, &mut real_name)? {
        FieldEdit::Put(graph) => Some(LocatedGraph {
            graph: graph.into(),
            weights_folder,
        }),
        FieldEdit::Keep | FieldEdit::Drop => None,
    }
}

/// The real file of a location that stays within `folder` as far as its text goes.
fn real_file(folder: &Path, location: &str) -> Option<PathBuf> {
    stays_within(location)
        .then(|| folder.join(location).canonicalize().ok())
        .flatten()
}

/// Whether a location leads out of its folder by links at most.
fn stays_within(location: &str) -> bool {
    Path::new(location)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// A file of weights that is not there, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MissingWeights {
    pub(crate) path: PathBuf,
    pub(crate) fault: String,
}

/// The first file of weights in `folder` that `model` names and that is not there, or is a link to nothing.
pub(crate) fn missing_weights(model: &[u8], folder: &Path) -> Option<MissingWeights> {
    let mut missing = None;
    edited(model, Message::Model, &mut |location| {
        let path = folder.join(location);
        if missing.is_none()
            && stays_within(location)
            && path
                .metadata()
                .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            let fault = match path.read_link() {
                Ok(target) => format!(
                    "the file with the graph's weights is missing: the link points to {}, which does not exist. Fetch or \
                     copy the model again",
                    target.display()
                ),
                Err(_) => {
                    "the file with the graph's weights is missing. Copy or export the model again".to_owned()
                }
            };
            missing = Some(MissingWeights { path, fault });
        }
        None
    })?;
    missing
}

/// The deepest folder that holds all of the files, themselves or in folders below it.
fn common_folder<'a>(mut files: impl Iterator<Item = &'a PathBuf>) -> Option<PathBuf> {
    let mut common = files.next()?.parent()?.to_path_buf();
    for file in files {
        while !file.starts_with(&common) {
            if !common.pop() {
                return None;
            }
        }
    }
    Some(common)
}

/// A message on the way from a model to the locations of its weights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    /// A key and a value of a tensor's external data.
    Entry,
}

impl Message {
    /// The message in the field of this number, if locations may be in it.
    fn in_field(self, number: u32) -> Option<Self> {
        match (self, number) {
            (Self::Model, model_field::GRAPH)
            | (Self::Attribute, attribute_field::GRAPH | attribute_field::GRAPHS) => Some(Self::Graph),
            (Self::Graph, graph_field::NODE) => Some(Self::Node),
            (Self::Node, node_field::ATTRIBUTE) => Some(Self::Attribute),
            (Self::Graph, graph_field::INITIALIZER)
            | (Self::Attribute, attribute_field::TENSOR | attribute_field::TENSORS) => Some(Self::Tensor),
            (Self::Tensor, tensor_field::EXTERNAL_DATA) => Some(Self::Entry),
            _ => None,
        }
    }
}

/// The edit of `bytes`, a message of this kind: the locations in it as `rename` says, which returns `None` for those that
/// stay. `None`: the bytes are no such message.
///
/// Branches are graphs within nodes. How deep they are nested is bounded by the decoder that has read the file before
/// ([`crate::graph::read`]).
fn edited(
    bytes: &[u8],
    message: Message,
    rename: &mut dyn FnMut(&str) -> Option<String>,
) -> Option<FieldEdit> {
    let all = fields(bytes)?;
    let mut changes: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    if message == Message::Entry {
        if name_of(bytes, entry_field::KEY)? == LOCATION_KEY
            && let Some(new) = rename(name_of(bytes, entry_field::VALUE)?)
            && let Some(at) = all.iter().position(|field| field.number == entry_field::VALUE)
        {
            changes.insert(at, new.into_bytes());
        }
    } else {
        for (at, field) in all.iter().enumerate() {
            if let Some(inner) = message.in_field(field.number)
                && let FieldEdit::Put(new) = edited(bytes.get(field.payload.clone())?, inner, rename)?
            {
                changes.insert(at, new);
            }
        }
    }
    if changes.is_empty() {
        return Some(FieldEdit::Keep);
    }
    let mut out = Vec::with_capacity(bytes.len() + 128);
    for (at, field) in all.iter().enumerate() {
        match changes.get(&at) {
            Some(content) => put(&mut out, field.number, content),
            None => out.extend_from_slice(bytes.get(field.whole.clone())?),
        }
    }
    Some(FieldEdit::Put(out))
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use prost::Message as _;

    use super::*;
    use crate::onnx_proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

    /// A message with one more field: most of those here are not fields of the structs.
    fn with(message: &impl prost::Message, number: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = message.encode_to_vec();
        put(&mut bytes, number, content);
        bytes
    }

    /// A tensor whose data lie in the file `location`.
    fn external(location: &str) -> Vec<u8> {
        let mut bytes = TensorProto {
            name: "weights".to_owned(),
            ..TensorProto::default()
        }
        .encode_to_vec();
        for (key, value) in [("location", location), ("offset", "4096"), ("length", "16")] {
            let mut entry = Vec::new();
            put(&mut entry, entry_field::KEY, key.as_bytes());
            put(&mut entry, entry_field::VALUE, value.as_bytes());
            put(&mut bytes, tensor_field::EXTERNAL_DATA, &entry);
        }
        bytes
    }

    /// A model of a node with a constant, a node with a branch, and an initializer: each has a tensor in the file of
    /// this location.
    fn model([constant, branch, initializer]: [&str; 3]) -> Bytes {
        let attribute = |number: u32, content: &[u8]| with(&AttributeProto::int("axis", 1), number, content);
        let node = |op_type: &str, attribute: &[u8]| {
            with(
                &NodeProto::new(op_type, &["x"], "y"),
                node_field::ATTRIBUTE,
                attribute,
            )
        };
        let constant = attribute(attribute_field::TENSOR, &external(constant));
        let branch = with(
            &GraphProto::default(),
            graph_field::INITIALIZER,
            &external(branch),
        );
        let branch = attribute(attribute_field::GRAPH, &branch);
        let mut graph = with(
            &GraphProto::default(),
            graph_field::NODE,
            &node("Constant", &constant),
        );
        put(&mut graph, graph_field::NODE, &node("If", &branch));
        put(&mut graph, graph_field::INITIALIZER, &external(initializer));
        let empty = ModelProto {
            producer_name: "test".to_owned(),
            ..ModelProto::default()
        };
        with(&empty, model_field::GRAPH, &graph).into()
    }

    fn locations(model: &Bytes) -> Vec<String> {
        let mut found = Vec::new();
        let changed = edited(model, Message::Model, &mut |location| {
            found.push(location.to_owned());
            None
        });
        assert!(matches!(changed, Some(FieldEdit::Keep)));
        found
    }

    /// A folder as in a cache of Hugging Face: `snapshot/NAME` is a link to `../blobs/HASH`.
    fn cache(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("snapshot/below")).unwrap();
        std::fs::create_dir_all(root.path().join("blobs/deep")).unwrap();
        for (name, blob) in files {
            std::fs::write(root.path().join("blobs").join(blob), "weights").unwrap();
            let up = if name.contains('/') {
                "../../blobs"
            } else {
                "../blobs"
            };
            symlink(Path::new(up).join(blob), root.path().join("snapshot").join(name)).unwrap();
        }
        root
    }

    #[test]
    fn links_are_resolved_wherever_a_tensor_is() {
        let files = [("a.data", "1f"), ("below/b.data", "deep/2f"), ("c.data", "3f")];
        let root = cache(&files);
        let before = model(["a.data", "below/b.data", "c.data"]);
        let located = resolve_links(before.clone(), &root.path().join("snapshot"));
        assert_eq!(
            located.weights_folder,
            root.path().join("blobs").canonicalize().unwrap()
        );
        assert_eq!(locations(&before), ["a.data", "below/b.data", "c.data"]);
        assert_eq!(locations(&located.graph), ["1f", "deep/2f", "3f"]);
        // Nothing else is changed.
        let names = BTreeMap::from([("1f", "a.data"), ("deep/2f", "below/b.data"), ("3f", "c.data")]);
        let back = edited(&located.graph, Message::Model, &mut |location| {
            names.get(location).map(ToString::to_string)
        });
        assert!(matches!(back, Some(FieldEdit::Put(model)) if model == before));
    }

    #[test]
    fn what_lies_in_the_folder_or_leads_out_of_it_by_itself_stays() {
        let root = cache(&[("linked.data", "1f")]);
        let folder = root.path().join("snapshot");
        std::fs::write(folder.join("plain.data"), "weights").unwrap();
        symlink("plain.data", folder.join("within.data")).unwrap();
        let blob = root.path().join("blobs/1f");
        for other in [
            ["plain.data", "within.data", "plain.data"],
            ["linked.data", "../blobs/1f", "plain.data"],
            ["linked.data", blob.to_str().unwrap(), "plain.data"],
            ["linked.data", "missing.data", "plain.data"],
        ] {
            let model = model(other);
            let located = resolve_links(model.clone(), &folder);
            assert_eq!(located.graph, model, "{other:?}");
            assert_eq!(located.weights_folder, folder, "{other:?}");
        }
        // Of files in the folder and outside of it, the folder above both is taken.
        let located = resolve_links(model(["linked.data", "within.data", "plain.data"]), &folder);
        assert_eq!(located.weights_folder, root.path().canonicalize().unwrap());
        assert_eq!(
            locations(&located.graph),
            ["blobs/1f", "snapshot/plain.data", "snapshot/plain.data"]
        );
    }

    #[test]
    fn a_missing_file_is_named_with_the_link_to_it() {
        let root = cache(&[("a.data", "1f"), ("below/b.data", "2f")]);
        let folder = root.path().join("snapshot");
        let graph = model(["a.data", "below/b.data", "a.data"]);
        assert_eq!(missing_weights(&graph, &folder), None);
        std::fs::remove_file(root.path().join("blobs/2f")).unwrap();
        let missing = missing_weights(&graph, &folder).unwrap();
        assert_eq!(missing.path, folder.join("below/b.data"));
        assert!(
            missing
                .fault
                .contains("the link points to ../../blobs/2f, which does not exist."),
            "{missing:?}"
        );
        let missing = missing_weights(&model(["a.data", "c.data", "a.data"]), &folder).unwrap();
        assert_eq!(missing.path, folder.join("c.data"));
        assert!(!missing.fault.contains("link"), "{missing:?}");
    }

    #[test]
    fn bytes_that_are_no_model_stay() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Bytes::from_static(b"no protobuf at all");
        assert_eq!(resolve_links(bytes.clone(), folder.path()).graph, bytes);
    }
}
