//! A note in the store's folder of what is being encoded, for the process after this one.
//!
//! What a process works on when it dies without a word (out of memory, a fault in a library) is known to the next one from
//! this file. It is not flushed to the disk: a process that dies leaves what it wrote with the system, and of a power cut
//! nothing is learnt. Each text that was being encoded is then a suspect, and is encoded alone; only when [`MAX_DEATHS`]
//! processes died while they encoded the same text alone is it given up. A kill from outside looks the same, so that one
//! death says nothing: it takes that many in the same short moments, and suspects are not tried before a process has lived
//! for a while.
//!
//! The file is a line for each text, all of the same length, so that one write changes one line.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;

/// The number of deaths of processes that encoded a text alone, after which it is given up: as many as for jobs.
const MAX_DEATHS: u32 = 3;

/// The maximum number of given-up texts that are remembered; the oldest are removed first.
const MAX_GIVEN_UP_TEXTS: usize = 64;

/// The maximum number of suspects that are remembered; no more texts are encoded at the same time.
const MAX_SUSPECTS: usize = 256;

const FILE_NAME: &str = "encoding";

/// The digest that names a text.
pub type WorkDigest = [u8; 32];

/// The standing of a text in the note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The text is not noted.
    Clear,
    /// A process died while it encoded it, perhaps with others.
    Suspect,
    /// It is given up, and not encoded again.
    GivenUp {
        /// The number of processes that died while they encoded it alone.
        deaths: u32,
        /// Whether [`EncodeNote::told`] was not called yet.
        first: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoteState {
    Free,
    /// Being encoded, others may be too.
    Together,
    /// Being encoded, and nothing else.
    Alone,
    Suspect,
    /// Given up, and not reported yet.
    GivenUp,
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    state: NoteState,
    deaths: u32,
    work: WorkDigest,
}

/// The note of the texts that are being encoded.
#[derive(Debug)]
pub struct EncodeNote {
    /// `None` without a folder, where the file can't be written, and after [`EncodeNote::close`].
    file: Option<File>,
    lines: Vec<Line>,
}

/// The entry of a text that is being encoded; it is removed when this is dropped.
pub struct NoteEntry {
    note: Arc<Mutex<EncodeNote>>,
    line: usize,
}

/// Adds the entry of a text that is encoded from now on; `alone` if nothing else is.
pub fn enter(note: &Arc<Mutex<EncodeNote>>, work: WorkDigest, alone: bool) -> NoteEntry {
    let line = note.lock().enter(work, alone);
    NoteEntry {
        note: Arc::clone(note),
        line,
    }
}

impl Drop for NoteEntry {
    fn drop(&mut self) {
        self.note.lock().leave(self.line);
    }
}

impl EncodeNote {
    /// Reads the note that an earlier process left in `folder`, and derives suspects and given-up texts from it.
    pub fn open(folder: Option<&Path>) -> Self {
        let mut note = Self {
            file: None,
            lines: Vec::new(),
        };
        let Some(path) = folder.map(|folder| folder.join(FILE_NAME)) else {
            return note;
        };
        match std::fs::read_to_string(&path) {
            Ok(left) => note.lines = concluded(&left),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the note of encoding can't be read")
            }
        }
        let suspects = note.count(NoteState::Suspect);
        if suspects > 0 {
            tracing::warn!(
                suspects,
                "the process before this one ended while it encoded prompts; each of them is encoded alone"
            );
        }
        // Beside the old one, which is complete until this one is.
        let new = path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&new).and_then(|mut file| {
            file.write_all(note.text().as_bytes())?;
            std::fs::rename(&new, &path)?;
            Ok(file)
        });
        match written {
            Ok(file) => note.file = Some(file),
            Err(error) => note.broken(&error),
        }
        note
    }

    /// Returns what the note says of a text.
    pub fn standing(&self, work: &WorkDigest) -> Standing {
        let mut known = self.lines.iter().filter(|line| line.work == *work);
        known
            .find_map(|line| match line.state {
                NoteState::Suspect | NoteState::Alone => Some(Standing::Suspect),
                NoteState::GivenUp | NoteState::Told => Some(Standing::GivenUp {
                    deaths: line.deaths,
                    first: line.state == NoteState::GivenUp,
                }),
                NoteState::Free | NoteState::Together => None,
            })
            .unwrap_or(Standing::Clear)
    }

    /// Notes that it was reported that the text is given up.
    pub fn told(&mut self, work: &WorkDigest) {
        for line in 0..self.lines.len() {
            if let Some(told) = self.lines.get_mut(line)
                && told.work == *work
                && told.state == NoteState::GivenUp
            {
                told.state = NoteState::Told;
                self.write(line);
            }
        }
    }

    /// Closes the note in good order: no entry is a trace of a crash any more.
    pub fn close(&mut self) {
        for line in 0..self.lines.len() {
            if let Some(noted) = self.lines.get_mut(line)
                && matches!(noted.state, NoteState::Together | NoteState::Alone)
            {
                noted.state = if noted.state == NoteState::Alone {
                    NoteState::Suspect
                } else {
                    NoteState::Free
                };
                self.write(line);
            }
        }
        self.file = None;
    }

    fn enter(&mut self, work: WorkDigest, alone: bool) -> usize {
        // A suspect keeps its line: what it is suspected of stands in it.
        let suspect = |line: &Line| alone && line.work == work && line.state == NoteState::Suspect;
        let place = self
            .lines
            .iter()
            .position(suspect)
            .or_else(|| self.lines.iter().position(|line| line.state == NoteState::Free));
        let place = place.unwrap_or_else(|| {
            self.lines.push(Line {
                state: NoteState::Free,
                deaths: 0,
                work,
            });
            self.lines.len() - 1
        });
        if let Some(line) = self.lines.get_mut(place) {
            line.deaths = if line.state == NoteState::Suspect {
                line.deaths
            } else {
                0
            };
            line.work = work;
            line.state = if alone {
                NoteState::Alone
            } else {
                NoteState::Together
            };
        }
        self.write(place);
        place
    }

    /// Removes an entry: its text was encoded or refused, and the process lives.
    fn leave(&mut self, line: usize) {
        if let Some(left) = self.lines.get_mut(line) {
            left.state = NoteState::Free;
        }
        self.write(line);
    }

    fn write(&mut self, line: usize) {
        let (Some(file), Some(text)) = (&mut self.file, self.lines.get(line).map(Line::text)) else {
            return;
        };
        let written = u64::try_from(line * text.len())
            .map_err(std::io::Error::other)
            .and_then(|at| file.seek(SeekFrom::Start(at)))
            .and_then(|_| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            self.broken(&error);
        }
    }

    fn text(&self) -> String {
        self.lines.iter().map(Line::text).collect()
    }

    fn count(&self, state: NoteState) -> usize {
        self.lines.iter().filter(|line| line.state == state).count()
    }

    fn broken(&mut self, error: &std::io::Error) {
        tracing::warn!(%error, "what is encoded can't be noted; a prompt that crashes the process is not recognised");
        self.file = None;
    }
}

/// Returns the lines of suspects and given-up texts that follow from those that a process left.
fn concluded(left: &str) -> Vec<Line> {
    // By text: two that are the same may have been encoded at once.
    let mut found: HashMap<WorkDigest, Line> = HashMap::new();
    let mut order = Vec::new();
    for mut line in left.lines().filter_map(Line::read) {
        match line.state {
            NoteState::Free => continue,
            NoteState::Together | NoteState::Suspect => line.state = NoteState::Suspect,
            NoteState::Alone => {
                line.deaths += 1;
                line.state = if line.deaths >= MAX_DEATHS {
                    NoteState::GivenUp
                } else {
                    NoteState::Suspect
                };
            }
            NoteState::GivenUp | NoteState::Told => {}
        }
        let known = found.entry(line.work).or_insert_with(|| {
            order.push(line.work);
            line
        });
        if line.deaths > known.deaths {
            *known = line;
        }
    }
    let lines: Vec<Line> = order.iter().filter_map(|work| found.remove(work)).collect();
    let (given_up, suspects): (Vec<Line>, Vec<Line>) = lines
        .into_iter()
        .partition(|line| matches!(line.state, NoteState::GivenUp | NoteState::Told));
    let oldest = given_up.len().saturating_sub(MAX_GIVEN_UP_TEXTS);
    given_up
        .into_iter()
        .skip(oldest)
        .chain(suspects.into_iter().take(MAX_SUSPECTS))
        .collect()
}

impl Line {
    fn text(&self) -> String {
        let mut text = format!("{} {} ", self.state.letter(), self.deaths.min(9));
        for byte in self.work {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        text
    }

    /// Returns `None` if `text` is no line, or only a part of one.
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (state, deaths, hex) = (parts.next()?, parts.next()?, parts.next()?);
        let mut work = WorkDigest::default();
        if hex.len() != 2 * work.len() {
            return None;
        }
        for (n, byte) in work.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok()?;
        }
        Some(Self {
            state: NoteState::of(state)?,
            deaths: deaths.parse().ok()?,
            work,
        })
    }
}

impl NoteState {
    const ALL: [Self; 6] = [
        Self::Free,
        Self::Together,
        Self::Alone,
        Self::Suspect,
        Self::GivenUp,
        Self::Told,
    ];

    fn letter(self) -> &'static str {
        match self {
            Self::Free => "-",
            Self::Together => "t",
            Self::Alone => "a",
            Self::Suspect => "s",
            Self::GivenUp => "g",
            Self::Told => "k",
        }
    }

    fn of(letter: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.letter() == letter)
    }
}

#[cfg(test)]
mod tests;
