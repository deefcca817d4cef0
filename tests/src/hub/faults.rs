//! What goes wrong, decided by a seed: the same seed fails the same way, whichever thread asks first.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::chance::Chance;

/// What may go wrong with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after this share (of 256) of the body.
    Cut(u8),
    /// The connection ends within the head.
    CutHead,
    /// No HTTP comes.
    Garbage,
    /// An answer with this status, and with `Retry-After` seconds.
    Status(u16, Option<u32>),
    /// The hub redirects to itself.
    Loop,
    /// One byte of the content is another.
    Wrong,
    /// The whole file comes in place of a part.
    NoRange,
    /// The file has a new tag from now on.
    NewTag,
    /// As before, and a part of the new file comes although the old one was asked for.
    NewTagInPart,
    /// `Content-Length` says less than there is.
    ShortLength,
    /// `Content-Length` says more than there is.
    LongLength,
    /// The body comes in small pieces with pauses.
    Slow,
}

/// What never gets better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lasting {
    /// One byte of this file is always another.
    Wrong(String),
    /// All requests whose path ends so get this status.
    Status(String, u16),
    /// All requests whose path ends so are redirected to themselves.
    Loop(String),
}

/// When what goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Decides about faults that pass; `None` for none.
    pub seed: Option<u64>,
    /// What does not pass.
    pub lasting: Option<Lasting>,
}

impl Faults {
    /// What goes wrong with the request of this `number` for `path`.
    pub(super) fn of(&self, path: &str, number: u32) -> Option<Fault> {
        match &self.lasting {
            Some(Lasting::Wrong(end)) if path.ends_with(end) => return Some(Fault::Wrong),
            Some(Lasting::Status(end, status)) if path.ends_with(end) => {
                return Some(Fault::Status(*status, None));
            }
            Some(Lasting::Loop(end)) if path.ends_with(end) => return Some(Fault::Loop),
            _ => {}
        }
        let mut hasher = DefaultHasher::new();
        (self.seed?, path, number).hash(&mut hasher);
        let mut random = Chance::seeded(hasher.finish());
        // Every fourth request goes well, so that a client that goes on trying succeeds.
        if number % 4 == 3 || number > 40 || random.below(100) < 45 {
            return None;
        }
        // Content may be wrong once and not again: the second time is for good.
        if number == 1 && random.below(8) == 0 {
            return Some(Fault::Wrong);
        }
        let share = u8::try_from(random.below(256)).unwrap_or(0);
        Some(match random.below(13) {
            0..=2 => Fault::Cut(share),
            3 => Fault::CutHead,
            4 => Fault::Garbage,
            // Mostly at once: a second's wait is obeyed, and time.
            5 => Fault::Status(429, Some(u32::from(random.below(12) == 0))),
            6 => Fault::Status([500, 502, 503][usize::from(share % 3)], Some(0)),
            7 => Fault::Loop,
            8 => Fault::NoRange,
            9 if share % 2 == 0 => Fault::NewTag,
            9 => Fault::NewTagInPart,
            10 => Fault::ShortLength,
            11 => Fault::LongLength,
            _ => Fault::Slow,
        })
    }
}
