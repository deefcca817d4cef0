//! Sources of models: a short name, an address, a folder.

use std::path::{Path, PathBuf};

use url::Url;

use crate::pull_error::PullError;
use crate::redaction::without_user;

/// The hub that short names mean unless a mirror is named.
pub const DEFAULT_HUB: &str = "https://huggingface.co";

/// The source of a model. `phi-edge pull` imports a folder and asks a hub for all else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A repository of a hub.
    Hub {
        /// The hub that the address names; `None` for short names.
        hub: Option<String>,
        /// `organisation/repository`.
        repository: String,
        /// A branch, a tag or a commit; `None` for the main branch.
        revision: Option<String>,
        /// The folder in it that holds the model; `None` to look for it.
        folder: Option<String>,
        /// The model's name here unless another is given.
        name: String,
    },
    /// A folder of this machine.
    Folder(PathBuf),
}

/// The hardware that the model is to run on: published repositories have a folder for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Processors.
    Cpu,
    /// NVIDIA's cards.
    Cuda,
    /// Cards under Windows.
    DirectMl,
}

/// A model that has a short name.
struct KnownModel {
    name: &'static str,
    repository: &'static str,
    /// The folder for processors, as published.
    cpu: &'static str,
}

const KNOWN_MODELS: [KnownModel; 2] = [
    KnownModel {
        name: "phi-3.5-mini",
        repository: "microsoft/Phi-3.5-mini-instruct-onnx",
        cpu: "cpu_and_mobile/cpu-int4-awq-block-128-acc-level-4",
    },
    KnownModel {
        name: "phi-3.5-vision",
        repository: "microsoft/Phi-3.5-vision-instruct-onnx",
        cpu: "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4",
    },
];

/// A model of the family that must be converted first, as its short name would be.
const CONVERTED_MODEL: &str = "phi-3.5-moe";

/// The short names and the repositories that they stand for.
pub fn known_models() -> impl Iterator<Item = (&'static str, &'static str)> {
    KNOWN_MODELS.iter().map(|known| (known.name, known.repository))
}

impl Source {
    /// Reads `text`: a short name, `https://host/organisation/repository[/tree/revision[/folder]]`, or a folder.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        let usage = |fault: String| PullError::Usage {
            given: without_user(text),
            fault,
        };
        if let Some(known) = KNOWN_MODELS.iter().find(|known| known.name == text) {
            return Ok(Self::Hub {
                hub: None,
                repository: known.repository.to_owned(),
                revision: None,
                folder: None,
                name: known.name.to_owned(),
            });
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return address(text).map_err(usage);
        }
        if Path::new(text).is_dir() {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        if text == CONVERTED_MODEL {
            return Err(usage(
                "has no short name: no published folder of it is known to run on processors. Convert the published checkpoint by \
                 models/export/moe_convert.py and give the folder that it wrote, or give the address of a converted one \
                 (docs/models.md)"
                    .to_owned(),
            ));
        }
        let names: Vec<&str> = KNOWN_MODELS.iter().map(|known| known.name).collect();
        Err(usage(format!(
            "is neither a short name ({}), nor an address (https://…), nor a folder that exists",
            names.join(", ")
        )))
    }

    /// The model's name here unless another is given.
    pub fn name(&self) -> String {
        match self {
            Self::Hub { name, .. } => name.clone(),
            Self::Folder(path) => {
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                full.file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default()
            }
        }
    }
}

/// `https://host/organisation/repository[/tree/revision[/folder]]`.
fn address(text: &str) -> Result<Source, String> {
    let url = Url::parse(text).map_err(|error| format!("is no address: {error}"))?;
    let decode = |part: &str| {
        percent_encoding::percent_decode_str(part)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| "is no address: it is not UTF-8".to_owned())
    };
    let parts = url
        .path_segments()
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .map(decode)
        .collect::<Result<Vec<String>, String>>()?;
    let [organisation, repository, rest @ ..] = parts.as_slice() else {
        return Err("must be https://host/organisation/repository".to_owned());
    };
    let (revision, folder) = match rest {
        [] => (None, None),
        [tree, revision] if tree == "tree" => (Some(revision.clone()), None),
        [tree, revision, folder @ ..] if tree == "tree" => (Some(revision.clone()), Some(folder.join("/"))),
        _ => {
            return Err(
                "must be https://host/organisation/repository, or go on with /tree/revision/folder"
                    .to_owned(),
            );
        }
    };
    let hub = url.origin().ascii_serialization();
    Ok(Source::Hub {
        hub: Some(hub),
        repository: format!("{organisation}/{repository}"),
        revision,
        folder,
        name: repository.clone(),
    })
}

/// The folder of `repository` to take for `accelerator`, out of those that hold a `genai_config.json`.
///
/// The published folder of a known model is taken where it is listed. Else the names decide: words for other hardware
/// rule a folder out, int4 comes before other precisions. Two that are equal are a question for the user.
pub(crate) fn choose_folder(
    repository: &str,
    folders: &[String],
    accelerator: Accelerator,
) -> Result<String, PullError> {
    let published = KNOWN_MODELS.iter().find(|known| known.repository == repository);
    if let Some(known) =
        published.filter(|known| accelerator == Accelerator::Cpu && folders.iter().any(|f| f == known.cpu))
    {
        return Ok(known.cpu.to_owned());
    }
    let best = folders
        .iter()
        .map(|folder| rank(folder, accelerator))
        .max()
        .unwrap_or(0);
    let candidates: Vec<&String> = folders
        .iter()
        .filter(|folder| best > 0 && rank(folder, accelerator) == best)
        .collect();
    let fault = match candidates.as_slice() {
        [one] => return Ok((*one).clone()),
        _ if folders.is_empty() => "holds no genai_config.json: it is no model for ONNX Runtime".to_owned(),
        [] => format!(
            "has no folder for this provider; there are: {}. Choose by --provider, or give the folder's address \
             (https://…/tree/main/FOLDER)",
            folders.join(", ")
        ),
        several => format!(
            "has several folders that would do: {}. Give one's address (https://…/tree/main/FOLDER)",
            several
                .iter()
                .map(|folder| folder.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    Err(PullError::NoModel {
        repository: repository.to_owned(),
        fault,
    })
}

/// The rank of a folder by its name; 0 does not fit.
fn rank(folder: &str, accelerator: Accelerator) -> u32 {
    let lower = folder.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let says = |word: &str| words.contains(&word);
    let (cpu, cuda, directml, gpu) = (
        says("cpu"),
        says("cuda"),
        says("directml") || says("dml"),
        says("gpu"),
    );
    let hardware = match accelerator {
        Accelerator::Cpu if cpu => 3,
        Accelerator::Cuda if cuda => 3,
        Accelerator::DirectMl if directml => 3,
        Accelerator::Cuda | Accelerator::DirectMl if gpu => 2,
        _ if !(cpu || cuda || directml || gpu) => 1,
        _ => return 0,
    };
    hardware * 2 + u32::from(says("int4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_repository_revision_and_folder() {
        let check = |text: &str, expected: (&str, &str, Option<&str>, Option<&str>)| {
            let Source::Hub {
                hub,
                repository,
                revision,
                folder,
                name,
            } = Source::parse(text).unwrap()
            else {
                panic!("{text} is of a hub");
            };
            assert_eq!(hub.as_deref(), Some(expected.0), "{text}");
            assert_eq!(repository, expected.1, "{text}");
            assert_eq!(revision.as_deref(), expected.2, "{text}");
            assert_eq!(folder.as_deref(), expected.3, "{text}");
            assert_eq!(Some(name.as_str()), expected.1.split('/').next_back(), "{text}");
        };
        check(
            "https://hub.local/org/repo",
            ("https://hub.local", "org/repo", None, None),
        );
        check(
            "http://hub.local:8080/org/repo/",
            ("http://hub.local:8080", "org/repo", None, None),
        );
        check(
            "https://hub.local/org/repo/tree/refs%2Fpr%2F1/a/b",
            ("https://hub.local", "org/repo", Some("refs/pr/1"), Some("a/b")),
        );
        for wrong in [
            "https://hub.local/org",
            "https://hub.local/org/repo/blob/main/x",
            "no-such-model",
            "https://",
        ] {
            assert!(
                matches!(Source::parse(wrong), Err(PullError::Usage { .. })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_model_without_a_published_folder_is_refused_with_the_way_to_one() {
        let refused = Source::parse(CONVERTED_MODEL).unwrap_err().to_string();
        assert!(refused.contains("moe_convert.py"), "{refused}");
        assert!(refused.contains("docs/models.md"), "{refused}");
    }

    #[test]
    fn the_folder_suits_the_provider() {
        let mini = "microsoft/Phi-3.5-mini-instruct-onnx";
        let folders: Vec<String> = [
            "cpu_and_mobile/cpu-int4-awq-block-128-acc-level-4",
            "cuda/cuda-fp16",
            "cuda/cuda-int4-awq-block-128",
            "gpu/gpu-int4-awq-block-128",
        ]
        .map(str::to_owned)
        .into();
        let choose =
            |accelerator| choose_folder(mini, &folders, accelerator).map_err(|error| error.to_string());
        assert_eq!(choose(Accelerator::Cpu).as_ref(), Ok(&folders[0]));
        assert_eq!(choose(Accelerator::Cuda).as_ref(), Ok(&folders[2]));
        assert_eq!(choose(Accelerator::DirectMl).as_ref(), Ok(&folders[3]));
        let root = [String::new()];
        assert_eq!(choose_folder("a/b", &root, Accelerator::Cuda).unwrap(), "");
        let two = ["cpu-a".to_owned(), "cpu-b".to_owned()];
        let said = choose_folder("a/b", &two, Accelerator::Cpu)
            .unwrap_err()
            .to_string();
        assert!(said.contains("cpu-a") && said.contains("cpu-b"), "{said}");
        let said = choose_folder("a/b", &two, Accelerator::Cuda)
            .unwrap_err()
            .to_string();
        assert!(said.contains("no folder for this provider"), "{said}");
        let said = choose_folder("a/b", &[], Accelerator::Cpu)
            .unwrap_err()
            .to_string();
        assert!(said.contains("genai_config.json"), "{said}");
    }
}
