//! The plan of a pull: the files of a repository that make up the model.

use super::listing::RepositoryFile;
use crate::manifest::Origin;
use crate::remote_file::RemoteFile;

/// The plan of a pull.
#[derive(Debug)]
pub struct Plan {
    /// The model's name here.
    pub name: String,
    /// Its origin.
    pub origin: Origin,
    /// The licence that the repository states.
    pub licence: Option<String>,
    /// The bytes of all files.
    pub bytes: u64,
    pub(super) files: Vec<RemoteFile>,
}

impl Plan {
    /// The number of the model's files.
    pub fn files(&self) -> usize {
        self.files.len()
    }
}

/// The folders that hold a model: those with a `genai_config.json`.
pub(super) fn model_folders(entries: &[RepositoryFile]) -> Vec<String> {
    let mut folders: Vec<String> = entries
        .iter()
        .filter_map(|entry| match entry.path.rsplit_once('/') {
            Some((folder, "genai_config.json")) => Some(folder.to_owned()),
            None if entry.path == "genai_config.json" => Some(String::new()),
            _ => None,
        })
        .collect();
    folders.sort();
    folders
}

/// The files of `folder`, without those of models in folders below it and without git's own; and the repository's
/// licence, where the folder has none.
pub(super) fn wanted(entries: &[RepositoryFile], folder: &str) -> Vec<RemoteFile> {
    let below = |path: &str, folder: &str| -> Option<String> {
        if folder.is_empty() {
            return Some(path.to_owned());
        }
        Some(path.strip_prefix(folder)?.strip_prefix('/')?.to_owned())
    };
    let others: Vec<String> = model_folders(entries)
        .into_iter()
        .filter(|other| other != folder && below(other, folder).is_some())
        .collect();
    let want = |entry: &RepositoryFile, path: String| RemoteFile {
        remote: entry.path.clone(),
        path,
        size: entry.size,
        expected: vec![entry.expected.clone()],
    };
    let mut files: Vec<RemoteFile> = entries
        .iter()
        .filter(|entry| others.iter().all(|other| below(&entry.path, other).is_none()))
        .filter_map(|entry| Some(want(entry, below(&entry.path, folder)?)))
        .filter(|file| !file.path.split('/').any(|part| part.starts_with('.')))
        .collect();
    if !files
        .iter()
        .any(|file| file.path.to_uppercase().starts_with("LICEN"))
    {
        let licence = entries
            .iter()
            .find(|entry| !entry.path.contains('/') && entry.path.to_uppercase().starts_with("LICEN"));
        files.extend(licence.map(|entry| want(entry, entry.path.clone())));
    }
    files
}
