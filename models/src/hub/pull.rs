//! Pulling a whole model: the plan, room for it, several files at once, and the switch at the end.

use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::fetch::Fetch;
use super::http::{Client, Proxies, RequestError};
use super::listing;
use super::partial_file::arrived;
use super::plan::{Plan, model_folders, wanted};
use super::retry::RetryPolicy;
use super::source::{Accelerator, DEFAULT_HUB, Source, choose_folder};
use crate::digest::ExpectedHash;
use crate::manifest::{FileRecord, MANIFEST, Manifest, Origin};
use crate::progress::{Event, Watch};
use crate::pull_error::PullError;
use crate::remote_file::RemoteFile;
use crate::store::ModelStore;

/// The bytes needed beyond the files themselves: states, the manifest, folders.
const RESERVE_BYTES: u64 = 1 << 20;

/// The options of a hub.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The mirror that replaces the hub of every source.
    pub mirror: Option<String>,
    /// The token for gated repositories; it is sent to the hub alone.
    pub token: Option<String>,
    /// The proxies of this machine.
    pub proxies: Proxies,
    /// The retry policy.
    pub retry: RetryPolicy,
    /// The number of files that are fetched at once.
    pub jobs: usize,
}

/// A hub and its options.
pub struct Hub {
    client: Client,
    options: HubOptions,
}

/// The outcome of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The same version was there, complete.
    Already(PathBuf),
    /// The version was installed.
    Installed(PathBuf),
}

impl Outcome {
    /// The model directory.
    pub fn path(&self) -> &Path {
        match self {
            Self::Already(path) | Self::Installed(path) => path,
        }
    }
}

impl Hub {
    /// The hub of `source`, or the mirror that stands in for it.
    pub fn new(source: &Source, options: HubOptions) -> Result<Self, PullError> {
        let own = match source {
            Source::Hub { hub: Some(hub), .. } => hub.as_str(),
            _ => DEFAULT_HUB,
        };
        let base = options.mirror.as_deref().unwrap_or(own);
        let client = Client::new(
            base,
            options.token.clone(),
            options.proxies.clone(),
            &options.retry,
        )?;
        Ok(Self { client, options })
    }

    /// Asks the hub for the files of `source` at `revision`, which overrides the source's own.
    pub fn plan(
        &self,
        source: &Source,
        revision: Option<&str>,
        accelerator: Accelerator,
        watch: Watch<'_>,
    ) -> Result<Plan, PullError> {
        let Source::Hub {
            repository,
            revision: named,
            folder,
            ..
        } = source
        else {
            return Err(PullError::Usage {
                given: source.name(),
                fault: "is a folder, which no hub is asked for".to_owned(),
            });
        };
        let revision = revision.or(named.as_deref()).unwrap_or("main");
        let found = self.retrying(repository, watch, || {
            listing::revision(&self.client, repository, revision)
        })?;
        let entries = listing::files(&self.client, repository, &found.commit, |what, url| {
            self.retrying(what, watch, || listing::page(&self.client, what, url))
        })?;
        let folder = match folder {
            Some(folder) => folder.trim_matches('/').to_owned(),
            None => choose_folder(repository, &model_folders(&entries), accelerator)?,
        };
        let files = wanted(&entries, &folder);
        if !files.iter().any(|file| file.path == "genai_config.json") {
            return Err(PullError::NoModel {
                repository: repository.clone(),
                fault: format!("{folder:?} holds no genai_config.json: it is no model for ONNX Runtime"),
            });
        }
        Ok(Plan {
            name: source.name(),
            origin: Origin {
                hub: self.client.name(),
                repository: repository.clone(),
                commit: found.commit,
                folder,
            },
            licence: found.licence,
            bytes: files.iter().map(|file| file.size).sum(),
            files,
        })
    }

    /// Fetches the plan's files and installs them in the store. Until every file is there and verified, nothing that
    /// is in use changes.
    pub fn fetch(&self, store: &ModelStore, plan: &Plan, watch: Watch<'_>) -> Result<Outcome, PullError> {
        let _lock = store.lock(&plan.name)?;
        let files = self.with_known_hashes(store, plan)?;
        let place = store.place(&plan.name);
        if is_there(&place, plan, &files) {
            return Ok(Outcome::Already(place));
        }
        let staging = store.staging(&plan.name, &plan.origin.commit)?;
        store.reuse(&plan.name, &staging, &files);
        make_room(store, plan, &staging, &files, watch)?;
        let seen = self.all(plan, &files, &staging, watch)?;
        let mut manifest = Manifest::read(&staging.join(MANIFEST))?;
        manifest.name = Some(plan.name.clone());
        manifest.licence.clone_from(&plan.licence);
        manifest.origin = Some(plan.origin.clone());
        manifest.files = seen;
        manifest.write(&staging.join(MANIFEST))?;
        crate::store::sweep(&staging, &manifest)?;
        Ok(Outcome::Installed(store.install(&plan.name, &staging)?))
    }

    /// The plan's files with the hashes that an earlier pull of the same commit kept. A hub that now names others is
    /// refused.
    fn with_known_hashes(&self, store: &ModelStore, plan: &Plan) -> Result<Vec<RemoteFile>, PullError> {
        let mut files = plan.files.clone();
        for place in [store.place(&plan.name), store.previous(&plan.name)] {
            let known = Manifest::read(&place.join(MANIFEST)).unwrap_or_default();
            let same = known.origin.as_ref().is_some_and(|origin| {
                (&origin.repository, &origin.commit, &origin.folder)
                    == (&plan.origin.repository, &plan.origin.commit, &plan.origin.folder)
            });
            if !same {
                continue;
            }
            for file in &mut files {
                let Some(record) = known.files.get(&file.path) else {
                    continue;
                };
                let kept = ExpectedHash::Sha256(record.sha256.clone());
                for named in &file.expected {
                    if matches!(named, ExpectedHash::Sha256(_)) && *named != kept {
                        return Err(PullError::WrongContent {
                            file: file.path.clone(),
                            expected: format!("{kept} (of the manifest, for the same commit)"),
                            found: format!("{named} (as {} lists it)", self.client.name()),
                        });
                    }
                }
                if !file.expected.contains(&kept) {
                    file.expected.push(kept);
                }
            }
        }
        Ok(files)
    }

    /// Fetches all files, the largest first, a few at once.
    fn all(
        &self,
        plan: &Plan,
        files: &[RemoteFile],
        staging: &Path,
        watch: Watch<'_>,
    ) -> Result<BTreeMap<String, FileRecord>, PullError> {
        let mut order: Vec<&RemoteFile> = files.iter().collect();
        order.sort_by_key(|file| std::cmp::Reverse(file.size));
        let queue = Mutex::new(VecDeque::from(order));
        let seen = Mutex::new(BTreeMap::new());
        let failure = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let fetch = Fetch {
            client: &self.client,
            policy: &self.options.retry,
            watch,
            stop: &stop,
        };
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(file) = queue.lock().pop_front() else {
                    return;
                };
                let origin = &plan.origin;
                let outcome =
                    listing::file_address(&self.client, &origin.repository, &origin.commit, &file.remote)
                        .map_err(RequestError::from)
                        .and_then(|address| fetch.file(file, &address, &staging.join(&file.path)));
                match outcome {
                    Ok(found) => {
                        seen.lock().insert(file.path.clone(), FileRecord::from(found));
                    }
                    Err(RequestError::Final(error)) => {
                        failure.lock().get_or_insert(error);
                        stop.store(true, Ordering::Relaxed);
                    }
                    Err(_) => return,
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.jobs.clamp(1, 32).min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failure.lock().take() {
            return Err(error);
        }
        let mut seen = std::mem::take(&mut *seen.lock());
        // The repository's own manifest is merged into ours, which can't hold its own hash.
        seen.remove(MANIFEST);
        Ok(seen)
    }

    /// Repeats a request until it succeeds, fails for good, or has failed too often.
    fn retrying<T>(
        &self,
        what: &str,
        watch: Watch<'_>,
        request: impl Fn() -> Result<T, RequestError>,
    ) -> Result<T, PullError> {
        let retry = &self.options.retry;
        let mut failures = 0;
        loop {
            let (why, wait) = match request() {
                Ok(response) => return Ok(response),
                Err(RequestError::Final(error)) => return Err(error),
                Err(RequestError::Retry { why, wait }) => (why, wait),
                Err(RequestError::Stopped) => ("stopped".to_owned(), None),
            };
            failures += 1;
            if failures >= retry.max_attempts {
                return Err(PullError::GivenUp {
                    what: what.to_owned(),
                    tries: failures,
                    why,
                });
            }
            let wait = retry.backoff(failures, wait);
            watch(&Event::Retry {
                file: what,
                why: &why,
                wait,
            });
            std::thread::sleep(wait);
        }
    }
}

/// Whether the very version is in its place, every file with the right content.
fn is_there(place: &Path, plan: &Plan, files: &[RemoteFile]) -> bool {
    let Ok(manifest) = Manifest::read(&place.join(MANIFEST)) else {
        return false;
    };
    let same = manifest.origin.as_ref().is_some_and(|origin| {
        origin.commit == plan.origin.commit
            && origin.folder == plan.origin.folder
            && origin.repository == plan.origin.repository
    });
    let listed = |file: &RemoteFile| file.path == MANIFEST || manifest.files.contains_key(&file.path);
    same && files.iter().all(listed)
        && crate::store::compare(place, &manifest)
            .is_ok_and(|faults| faults.iter().all(|fault| !fault.spoils()))
}

/// Makes room for the bytes that are still to come.
fn make_room(
    store: &ModelStore,
    plan: &Plan,
    staging: &Path,
    files: &[RemoteFile],
    watch: Watch<'_>,
) -> Result<(), PullError> {
    let missing: u64 = files
        .iter()
        .map(|file| file.size.saturating_sub(arrived(&staging.join(&file.path))))
        .sum();
    let needed = if missing == 0 { 0 } else { missing + RESERVE_BYTES };
    store.make_room(&plan.name, needed, watch)
}
