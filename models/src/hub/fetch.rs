//! Fetching one file, piece by piece, with retries.

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use url::Url;

use super::http::{Client, HubResponse, RequestError};
use super::partial_file::PartialFile;
use super::retry::RetryPolicy;
use crate::digest::{FileHasher, FileHashes};
use crate::progress::{Event, Watch};
use crate::pull_error::PullError;
use crate::remote_file::RemoteFile;

/// The bytes that are read, hashed and written at a time.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// The parts that fetching any file needs.
pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) watch: Watch<'a>,
    /// Set when another file has failed for good.
    pub(crate) stop: &'a AtomicBool,
}

impl Fetch<'_> {
    /// Fetches `wanted` from `address` to `target`, unless it is there already, and returns its hashes.
    ///
    /// Content with the wrong hash is discarded and fetched once more; a second time is an error.
    pub(crate) fn file(
        &self,
        wanted: &RemoteFile,
        address: &Url,
        target: &Path,
    ) -> Result<FileHashes, RequestError> {
        if let Some(seen) = self.existing(wanted, target)? {
            return Ok(seen);
        }
        let mut partial = PartialFile::open(target, wanted)?;
        (self.watch)(&Event::Begun {
            file: &wanted.path,
            size: wanted.size,
            have: partial.length(),
        });
        // The address that the hub redirected to. The hub is asked again only when that fails.
        let mut located: Option<Url> = None;
        let (mut failures, mut reached, mut wrong, mut restarts) = (0, partial.length(), 0, 0);
        loop {
            let outcome = if partial.length() == wanted.size {
                let seen = partial.seen();
                match seen.check(wanted.size, &wanted.expected) {
                    Ok(()) => {
                        partial.finish()?;
                        (self.watch)(&Event::Done { file: &wanted.path });
                        return Ok(seen);
                    }
                    Err(mismatch) => Err(PieceError::Wrong(mismatch)),
                }
            } else {
                let url = located.clone().unwrap_or_else(|| address.clone());
                self.piece(wanted, &url, &mut partial, &mut located)
            };
            if partial.discards() > restarts {
                restarts = partial.discards();
                reached = 0;
            }
            if partial.length() > reached {
                reached = partial.length();
                failures = 0;
            }
            let Err(error) = outcome else { continue };
            located = None;
            let (why, wait) = match error {
                PieceError::Request(RequestError::Retry { why, wait }) => (why, wait),
                PieceError::Request(fault) => return Err(fault),
                PieceError::Wrong((expected, found)) => {
                    partial.reset()?;
                    wrong += 1;
                    if wrong > 1 {
                        let file = wanted.path.clone();
                        return Err(PullError::WrongContent {
                            file,
                            expected,
                            found,
                        }
                        .into());
                    }
                    (format!("wrong content: expected {expected}, found {found}"), None)
                }
            };
            failures += 1;
            // A server without ranges that breaks off each time makes progress without ever completing.
            if failures.max(restarts) >= self.policy.max_attempts {
                return Err(PullError::GivenUp {
                    what: wanted.path.clone(),
                    tries: failures.max(restarts),
                    why,
                }
                .into());
            }
            let wait = self.policy.backoff(failures, wait);
            (self.watch)(&Event::Retry {
                file: &wanted.path,
                why: &why,
                wait,
            });
            if self.stop.load(Ordering::Relaxed) {
                return Err(RequestError::Stopped);
            }
            std::thread::sleep(wait);
        }
    }

    /// The hashes of a file that an earlier process completed. One that is wrong is removed.
    fn existing(&self, wanted: &RemoteFile, target: &Path) -> Result<Option<FileHashes>, PullError> {
        if !target.exists() {
            return Ok(None);
        }
        let seen = FileHasher::of_file(target).map_err(PullError::io(target, "read"))?;
        if seen.check(wanted.size, &wanted.expected).is_ok() {
            (self.watch)(&Event::Kept {
                file: &wanted.path,
                size: wanted.size,
            });
            return Ok(Some(seen));
        }
        std::fs::remove_file(target).map_err(PullError::io(target, "removed"))?;
        Ok(None)
    }

    /// Requests the next piece and appends it.
    fn piece(
        &self,
        wanted: &RemoteFile,
        url: &Url,
        partial: &mut PartialFile,
        located: &mut Option<Url>,
    ) -> Result<(), PieceError> {
        let from = partial.length();
        let last = wanted.size.min(from + self.policy.chunk_bytes.max(1)) - 1;
        let mut headers = vec![("range", format!("bytes={from}-{last}"))];
        // A weak tag does not guarantee the same bytes, so it can't be used.
        if let Some(tag) = partial.etag().filter(|tag| from > 0 && !tag.starts_with("W/")) {
            headers.push(("if-range", tag.to_owned()));
        }
        let response = self.client.get(&wanted.path, url, &headers)?;
        let etag = response.header("etag").map(ToOwned::to_owned);
        let wants = match response.status() {
            206 => {
                if from > 0 && partial.etag().is_some() && etag.is_some() && partial.etag() != etag.as_deref()
                {
                    partial.reset()?;
                    return Err(RequestError::retry(
                        "the file changed at the server; its download starts again",
                    )
                    .into());
                }
                check_range(&response, from, wanted.size)?;
                last + 1 - from
            }
            // The server has no ranges, or another file than the tag says: the whole file comes.
            200 => {
                partial.reset()?;
                wanted.size
            }
            _ => {
                partial.reset()?;
                return Err(RequestError::retry(
                    "the server does not have the range; its download starts again",
                )
                .into());
            }
        };
        partial.set_etag(etag.as_deref())?;
        if response.url != *url || located.is_some() {
            *located = Some(response.url.clone());
        }
        let whole = response.status() == 200;
        self.read(wanted, response, wants, whole, partial)?;
        if partial.length() <= from {
            return Err(RequestError::retry(
                "the server gives the file from its start again, and not all of it",
            )
            .into());
        }
        Ok(())
    }

    /// Appends up to `wants` bytes of the body as they arrive.
    fn read(
        &self,
        wanted: &RemoteFile,
        response: HubResponse,
        wants: u64,
        whole: bool,
        partial: &mut PartialFile,
    ) -> Result<(), PieceError> {
        let mut body = response.inner.into_body().into_reader();
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut left = wants;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(RequestError::Stopped.into());
            }
            // One byte more than is wanted tells whether the body is longer, and lets the connection be used again.
            let room = usize::try_from(left)
                .unwrap_or(READ_BUFFER_BYTES)
                .saturating_add(1)
                .min(READ_BUFFER_BYTES);
            let read = body
                .read(&mut buffer[..room])
                .map_err(|error| RequestError::retry(format!("the connection broke: {error}")))?;
            if read == 0 {
                break;
            }
            if read as u64 > left {
                if whole {
                    return Err(PieceError::Wrong((
                        format!("{} bytes", wanted.size),
                        "more".to_owned(),
                    )));
                }
                return Err(RequestError::retry("the server sends more than it was asked for").into());
            }
            partial.append(&buffer[..read])?;
            left -= read as u64;
            (self.watch)(&Event::At {
                file: &wanted.path,
                bytes: partial.length(),
            });
        }
        if left == wants {
            return Err(RequestError::retry("the server's answer is empty").into());
        }
        Ok(())
    }
}

/// The error of a piece.
enum PieceError {
    Request(RequestError),
    /// What was expected and what was found.
    Wrong((String, String)),
}

impl From<RequestError> for PieceError {
    fn from(fault: RequestError) -> Self {
        Self::Request(fault)
    }
}

impl From<PullError> for PieceError {
    fn from(error: PullError) -> Self {
        Self::Request(error.into())
    }
}

/// Compares a `Content-Range: bytes from-to/total` with the request.
fn check_range(response: &HubResponse, from: u64, size: u64) -> Result<(), PieceError> {
    let text = response.header("content-range").unwrap_or_default();
    let parsed = text.strip_prefix("bytes ").and_then(|rest| rest.split_once('/'));
    let Some((range, total)) = parsed else {
        return Err(RequestError::retry("the server gives a part and does not say which").into());
    };
    let begin = range
        .split_once('-')
        .and_then(|(begin, _)| begin.parse::<u64>().ok());
    if begin != Some(from) {
        return Err(RequestError::retry(format!(
            "the server gives another part ({range}) than it was asked for"
        ))
        .into());
    }
    match total.parse::<u64>() {
        Ok(total) if total != size => Err(PieceError::Wrong((
            format!("{size} bytes"),
            format!("{total} bytes"),
        ))),
        _ => Ok(()),
    }
}
