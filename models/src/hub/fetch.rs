//! One file, piece by piece, through whatever happens on the way.

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use url::Url;

use super::http::{Answer, Client, Fault};
use super::partial_file::Part;
use super::retry::Patience;
use crate::digest::{Hasher, Seen};
use crate::progress::{Event, Watch};
use crate::pull_error::PullError;
use crate::remote_file::Wanted;

/// Bytes that are read, hashed and written at a time.
const READ: usize = 64 << 10;

/// What fetching any file needs.
pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) patience: &'a Patience,
    pub(crate) watch: Watch<'a>,
    /// Set when another file has failed for good.
    pub(crate) stop: &'a AtomicBool,
}

impl Fetch<'_> {
    /// Fetches `wanted` from `address` to `target`, unless it is there already, and gives its hashes.
    ///
    /// Content with the wrong hash is thrown away and fetched once more; a second time is an error.
    pub(crate) fn file(&self, wanted: &Wanted, address: &Url, target: &Path) -> Result<Seen, Fault> {
        if let Some(seen) = self.there(wanted, target)? {
            return Ok(seen);
        }
        let mut part = Part::open(target, wanted)?;
        (self.watch)(&Event::Begun {
            file: &wanted.path,
            size: wanted.size,
            have: part.length(),
        });
        // Where the hub redirected to. It is asked again only when that no longer answers.
        let mut located: Option<Url> = None;
        let (mut failures, mut reached, mut wrong, mut begun_anew) = (0, part.length(), 0, 0);
        loop {
            let outcome = if part.length() == wanted.size {
                let seen = part.seen();
                match seen.check(wanted.size, &wanted.expected) {
                    Ok(()) => {
                        part.finish()?;
                        (self.watch)(&Event::Done { file: &wanted.path });
                        return Ok(seen);
                    }
                    Err(mismatch) => Err(Trouble::Wrong(mismatch)),
                }
            } else {
                let url = located.clone().unwrap_or_else(|| address.clone());
                self.piece(wanted, &url, &mut part, &mut located)
            };
            if part.thrown_away() > begun_anew {
                begun_anew = part.thrown_away();
                reached = 0;
            }
            if part.length() > reached {
                reached = part.length();
                failures = 0;
            }
            let Err(trouble) = outcome else { continue };
            located = None;
            let (why, wait) = match trouble {
                Trouble::Fault(Fault::Again { why, wait }) => (why, wait),
                Trouble::Fault(fault) => return Err(fault),
                Trouble::Wrong((expected, found)) => {
                    part.reset()?;
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
            // A server without ranges that breaks off each time makes progress, and never comes to an end.
            if failures.max(begun_anew) >= self.patience.tries {
                return Err(PullError::GivenUp {
                    what: wanted.path.clone(),
                    tries: failures.max(begun_anew),
                    why,
                }
                .into());
            }
            let wait = self.patience.wait(failures, wait);
            (self.watch)(&Event::Retry {
                file: &wanted.path,
                why: &why,
                wait,
            });
            if self.stop.load(Ordering::Relaxed) {
                return Err(Fault::Stopped);
            }
            std::thread::sleep(wait);
        }
    }

    /// The hashes of a file that an earlier process brought here whole. One that is wrong is removed.
    fn there(&self, wanted: &Wanted, target: &Path) -> Result<Option<Seen>, PullError> {
        if !target.exists() {
            return Ok(None);
        }
        let seen = Hasher::of_file(target).map_err(PullError::io(target, "read"))?;
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

    /// Asks for the next piece and appends what comes of it.
    fn piece(
        &self,
        wanted: &Wanted,
        url: &Url,
        part: &mut Part,
        located: &mut Option<Url>,
    ) -> Result<(), Trouble> {
        let from = part.length();
        let last = wanted.size.min(from + self.patience.chunk.max(1)) - 1;
        let mut headers = vec![("range", format!("bytes={from}-{last}"))];
        // A weak tag does not promise the same bytes, so it can't be asked for.
        if let Some(tag) = part.etag().filter(|tag| from > 0 && !tag.starts_with("W/")) {
            headers.push(("if-range", tag.to_owned()));
        }
        let answer = self.client.get(&wanted.path, url, &headers)?;
        let etag = answer.header("etag").map(ToOwned::to_owned);
        let wants = match answer.status() {
            206 => {
                if from > 0 && part.etag().is_some() && etag.is_some() && part.etag() != etag.as_deref() {
                    part.reset()?;
                    return Err(Fault::again("the file changed at the server; it is begun anew").into());
                }
                ranged(&answer, from, wanted.size)?;
                last + 1 - from
            }
            // The server has no ranges, or another file than the tag says: the whole file comes.
            200 => {
                part.reset()?;
                wanted.size
            }
            _ => {
                part.reset()?;
                return Err(
                    Fault::again("the server does not have the range; the file is begun anew").into(),
                );
            }
        };
        part.set_etag(etag.as_deref())?;
        if answer.url != *url || located.is_some() {
            *located = Some(answer.url.clone());
        }
        let whole = answer.status() == 200;
        self.read(wanted, answer, wants, whole, part)?;
        if part.length() <= from {
            return Err(
                Fault::again("the server gives the file from its start again, and not all of it").into(),
            );
        }
        Ok(())
    }

    /// Appends up to `wants` bytes of the body, each as soon as it is there.
    fn read(
        &self,
        wanted: &Wanted,
        answer: Answer,
        wants: u64,
        whole: bool,
        part: &mut Part,
    ) -> Result<(), Trouble> {
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; READ];
        let mut left = wants;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Fault::Stopped.into());
            }
            // One byte more than is wanted tells whether the body is longer, and lets the connection be used again.
            let room = usize::try_from(left).unwrap_or(READ).saturating_add(1).min(READ);
            let read = body
                .read(&mut buffer[..room])
                .map_err(|error| Fault::again(format!("the connection broke: {error}")))?;
            if read == 0 {
                break;
            }
            if read as u64 > left {
                if whole {
                    return Err(Trouble::Wrong((
                        format!("{} bytes", wanted.size),
                        "more".to_owned(),
                    )));
                }
                return Err(Fault::again("the server sends more than it was asked for").into());
            }
            part.append(&buffer[..read])?;
            left -= read as u64;
            (self.watch)(&Event::At {
                file: &wanted.path,
                bytes: part.length(),
            });
        }
        if left == wants {
            return Err(Fault::again("the server's answer is empty").into());
        }
        Ok(())
    }
}

/// Why a piece did not come.
enum Trouble {
    Fault(Fault),
    /// What was expected and what was found.
    Wrong((String, String)),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<PullError> for Trouble {
    fn from(error: PullError) -> Self {
        Self::Fault(error.into())
    }
}

/// Holds a `Content-Range: bytes from-to/total` to what was asked for.
fn ranged(answer: &Answer, from: u64, size: u64) -> Result<(), Trouble> {
    let text = answer.header("content-range").unwrap_or_default();
    let parsed = text.strip_prefix("bytes ").and_then(|rest| rest.split_once('/'));
    let Some((range, total)) = parsed else {
        return Err(Fault::again("the server gives a part and does not say which").into());
    };
    let begin = range
        .split_once('-')
        .and_then(|(begin, _)| begin.parse::<u64>().ok());
    if begin != Some(from) {
        return Err(Fault::again(format!(
            "the server gives another part ({range}) than it was asked for"
        ))
        .into());
    }
    match total.parse::<u64>() {
        Ok(total) if total != size => Err(Trouble::Wrong((
            format!("{size} bytes"),
            format!("{total} bytes"),
        ))),
        _ => Ok(()),
    }
}
