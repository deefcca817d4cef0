//! Archives: a model in one file, for a machine without a network. A plain tar, the manifest first.
//!
//! The manifest lists what must follow, so that an archive is refused as soon as it differs, and nothing is written
//! that the manifest does not name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Archive, Builder, Entry, EntryType, Header};

use super::ModelStore;
use super::import_folder::contents;
use super::staging::write_hashed;
use crate::digest::FileHasher;
use crate::error::ModelError;
use crate::manifest::{FileRecord, MANIFEST, Manifest};
use crate::progress::{Event, Watch};
use crate::pull_error::PullError;

/// The most bytes of an archive's manifest.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

impl ModelStore {
    /// Writes the model in `directory` to `file`. Its files are compared with its manifest meanwhile; if that has no
    /// hashes, they are computed first.
    pub fn export(directory: &Path, file: &Path, watch: Watch<'_>) -> Result<(), PullError> {
        if !directory.is_dir() {
            return Err(ModelError::NoDirectory(directory.to_path_buf()).into());
        }
        let mut manifest = Manifest::read(&directory.join(MANIFEST))?;
        if manifest.files.is_empty() {
            for path in contents(directory)? {
                let full = directory.join(&path);
                let seen = FileHasher::of_file(&full).map_err(PullError::io(&full, "read"))?;
                manifest.files.insert(path, FileRecord::from(seen));
            }
        }
        if manifest.name.is_none() {
            let full = directory
                .canonicalize()
                .map_err(PullError::io(directory, "read"))?;
            manifest.name = full.file_name().map(|name| name.to_string_lossy().into_owned());
        }
        let mut fresh = file.file_name().unwrap_or_default().to_os_string();
        fresh.push(".part");
        let fresh = file.with_file_name(fresh);
        let written = write_archive(directory, &manifest, &fresh, watch)
            .and_then(|()| std::fs::rename(&fresh, file).map_err(PullError::io(file, "written")));
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written
    }

    /// Imports the model in the archive `file`, as `name` or under the name that it has, once all of it is verified.
    pub fn import_archive(
        &self,
        file: &Path,
        name: Option<&str>,
        watch: Watch<'_>,
    ) -> Result<PathBuf, PullError> {
        let fault = |fault: String| PullError::Archive {
            path: file.to_path_buf(),
            fault,
        };
        let broken = |error: std::io::Error| fault(format!("is no complete archive: {error}"));
        let open = File::open(file).map_err(PullError::io(file, "read"))?;
        let mut archive = Archive::new(BufReader::with_capacity(1 << 20, open));
        let mut entries = archive.entries().map_err(broken)?;
        let manifest = match entries.next() {
            Some(first) => read_manifest(first.map_err(broken)?).map_err(fault)?,
            None => return Err(fault("is empty".to_owned())),
        };
        let name = name
            .map(ToOwned::to_owned)
            .or_else(|| manifest.name.clone())
            .ok_or_else(|| fault("says no name; give one with --name".to_owned()))?;
        let _lock = self.lock(&name)?;
        self.make_room(&name, manifest.bytes(), watch)?;
        let staging = self.fresh_staging(&name, "import")?;
        let taken = (|| {
            let mut missing: BTreeMap<&str, &FileRecord> = manifest
                .files
                .iter()
                .map(|(path, record)| (path.as_str(), record))
                .collect();
            for entry in entries {
                take(entry.map_err(broken)?, &mut missing, &staging, watch).map_err(|error| match error {
                    EntryError::Invalid(text) => fault(text),
                    EntryError::Pull(error) => error,
                })?;
            }
            match missing.keys().next() {
                Some(path) => Err(fault(format!("ends without {path}"))),
                None => Ok(()),
            }
        })();
        if let Err(error) = taken {
            self.discard(&name, &staging)?;
            return Err(error);
        }
        let mut manifest = manifest;
        manifest.name = Some(name.clone());
        manifest.write(&staging.join(MANIFEST))?;
        self.install(&name, &staging)
    }
}

fn write_archive(
    directory: &Path,
    manifest: &Manifest,
    to: &Path,
    watch: Watch<'_>,
) -> Result<(), PullError> {
    let unwritable = || PullError::io(to, "written");
    let file = File::create(to).map_err(unwritable())?;
    let mut archive = Builder::new(BufWriter::with_capacity(1 << 20, file));
    let text = manifest.text();
    archive
        .append_data(&mut header(text.len() as u64), MANIFEST, text.as_bytes())
        .map_err(unwritable())?;
    for (path, record) in &manifest.files {
        let full = directory.join(path);
        watch(&Event::Begun {
            file: path,
            size: record.size,
            have: 0,
        });
        let source = File::open(&full).map_err(PullError::io(&full, "read"))?;
        let length = source.metadata().map_err(PullError::io(&full, "read"))?.len();
        let mut reader = Hashed {
            inner: source.take(record.size),
            hasher: FileHasher::new(record.size),
            at: |bytes| watch(&Event::At { file: path, bytes }),
        };
        let short = length != record.size;
        if !short {
            archive
                .append_data(&mut header(record.size), path, &mut reader)
                .map_err(unwritable())?;
        }
        let found = reader.hasher.seen();
        if short || found.sha256 != record.sha256 {
            let expected = format!("sha256 {} of {} bytes", record.sha256, record.size);
            let found = if short {
                format!("{length} bytes")
            } else {
                format!("sha256 {}", found.sha256)
            };
            return Err(PullError::Damaged {
                model: directory.display().to_string(),
                faults: vec![format!("{path}: expected {expected}, found {found}")],
            });
        }
        watch(&Event::Done { file: path });
    }
    let mut writer = archive.into_inner().map_err(unwritable())?;
    writer.flush().map_err(unwritable())?;
    writer.get_ref().sync_all().map_err(unwritable())
}

/// The same archive for the same model: no times, no owners.
fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A reader that hashes what is read and reports how far it is.
struct Hashed<R, A> {
    inner: R,
    hasher: FileHasher,
    at: A,
}

impl<R: Read, A: Fn(u64)> Read for Hashed<R, A> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        (self.at)(self.hasher.size());
        Ok(read)
    }
}

fn read_manifest(entry: Entry<'_, impl Read>) -> Result<Manifest, String> {
    let is_manifest = entry.path_bytes().as_ref() == MANIFEST.as_bytes();
    if !is_manifest || entry.header().entry_type() != EntryType::Regular || entry.size() > MAX_MANIFEST_BYTES
    {
        return Err("does not begin with a model's manifest; make it with phi-edge models export".to_owned());
    }
    let mut text = Vec::new();
    let mut entry = entry.take(MAX_MANIFEST_BYTES);
    entry
        .read_to_end(&mut text)
        .map_err(|error| format!("is no complete archive: {error}"))?;
    let manifest = Manifest::parse(&text).map_err(|fault| format!("{MANIFEST} {fault}"))?;
    if manifest.files.is_empty() {
        return Err("has a manifest that names no files".to_owned());
    }
    Ok(manifest)
}

/// The error of an entry.
enum EntryError {
    Invalid(String),
    Pull(PullError),
}

/// Writes one entry, if the manifest names it.
fn take(
    mut entry: Entry<'_, impl Read>,
    missing: &mut BTreeMap<&str, &FileRecord>,
    staging: &Path,
    watch: Watch<'_>,
) -> Result<(), EntryError> {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    if entry.header().entry_type() != EntryType::Regular {
        return Err(EntryError::Invalid(format!(
            "holds {path:?}, which is no plain file"
        )));
    }
    // Paths of the manifest are safe, so whatever is taken out of it is too.
    let Some(record) = missing.remove(path.as_str()) else {
        return Err(EntryError::Invalid(format!(
            "holds {path:?}, which its manifest does not name, or twice"
        )));
    };
    if entry.size() != record.size {
        return Err(EntryError::Invalid(format!(
            "{path}: expected {} bytes, found {}",
            record.size,
            entry.size()
        )));
    }
    watch(&Event::Begun {
        file: &path,
        size: record.size,
        have: 0,
    });
    let seen = write_hashed(&mut entry, &staging.join(&path), record.size, |bytes| {
        watch(&Event::At { file: &path, bytes });
    })
    .map_err(EntryError::Pull)?;
    if seen.size < record.size {
        return Err(EntryError::Invalid(format!("ends within {path}")));
    }
    if FileRecord::from(seen.clone()) != *record {
        return Err(EntryError::Invalid(format!(
            "{path}: expected sha256 {}, found {}",
            record.sha256, seen.sha256
        )));
    }
    watch(&Event::Done { file: &path });
    Ok(())
}
