//! Sessions: conversations that go on, as the symbols of their prompts and answers, and the files of the images in them.
//!
//! Kept as ids and not as text, because encoding an answer's text again need not give the ids that were generated: only
//! what is the same to the last id is found in the engine's memory. Sessions are lost on a restart: a conversation then
//! starts over.

use std::collections::HashMap;
use std::mem::size_of;
use std::time::Duration;

use phi_edge_engine::{Symbol, TokenId};
use tokio::time::Instant;

use super::known_images::KnownImage;
use phi_edge_api::JobKey;

/// The key of a session, whose name is unique per client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    client: Option<String>,
    name: String,
}

/// The error of a request whose session has another request that is not answered yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Occupied {
    pub(crate) by: String,
}

/// The sessions of all clients.
#[derive(Debug)]
pub(crate) struct Sessions {
    keep_for: Duration,
    /// The maximum size of the symbols and the images' files of unused sessions, in bytes.
    memory: usize,
    all: HashMap<SessionKey, Session>,
}

/// A conversation as far as it has gone; empty at its beginning.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SessionSoFar {
    pub(crate) symbols: Vec<Symbol>,
    /// The images that the symbols name.
    pub(crate) images: Vec<KnownImage>,
}

#[derive(Debug)]
struct Session {
    said: SessionSoFar,
    /// The request that has reserved the session.
    asked: Option<Asked>,
    last_used: Instant,
}

#[derive(Debug)]
struct Asked {
    id: String,
    prompt: Vec<Symbol>,
}

impl Sessions {
    /// Replaces the bounds; what exceeds them is removed with the next change.
    pub(crate) fn set_bounds(&mut self, keep_for: Duration, memory: usize) {
        (self.keep_for, self.memory) = (keep_for, memory);
    }

    pub(crate) fn new(keep_for: Duration, memory: usize) -> Self {
        Self {
            keep_for,
            memory,
            all: HashMap::new(),
        }
    }

    /// Reserves a session for a request; returns the conversation so far, empty in a new one.
    pub(crate) fn begin(
        &mut self,
        job: &JobKey,
        session: &str,
        now: Instant,
    ) -> Result<SessionSoFar, Occupied> {
        self.expire(now);
        let session = self.all.entry(key(job, session)).or_insert_with(|| Session {
            said: SessionSoFar::default(),
            asked: None,
            last_used: now,
        });
        match &session.asked {
            Some(asked) if asked.id != job.id => Err(Occupied { by: asked.id.clone() }),
            _ => {
                session.asked.get_or_insert_with(|| Asked {
                    id: job.id.clone(),
                    prompt: Vec::new(),
                });
                Ok(session.said.clone())
            }
        }
    }

    /// Records the prompt of the accepted request that has reserved the session.
    pub(crate) fn asked(&mut self, job: &JobKey, session: &str, prompt: &[Symbol]) {
        if let Some(asked) = self.of(job, session).and_then(|session| session.asked.as_mut()) {
            asked.prompt = prompt.to_vec();
        }
    }

    /// Ends the request that has reserved the session, and adds its prompt and answer to it, with the images that the prompt
    /// names. `None`: there was no answer, and the session is as it was before.
    pub(crate) fn answered(
        &mut self,
        job: &JobKey,
        session: &str,
        answer: Option<(&[TokenId], Vec<KnownImage>)>,
        now: Instant,
    ) {
        let Some(found) = self.of(job, session) else {
            return;
        };
        if let (Some(asked), Some((answer, images))) = (found.asked.take(), answer) {
            let mut symbols = asked.prompt;
            symbols.extend(answer.iter().copied().map(Symbol::Token));
            found.said = SessionSoFar { symbols, images };
        }
        found.last_used = now;
        if found.said.symbols.is_empty() {
            self.all.remove(&key(job, session));
        }
        self.fit();
    }

    /// Forgets the sessions that were unused for the time that they are kept.
    pub(crate) fn expire(&mut self, now: Instant) {
        let keep_for = self.keep_for;
        self.all
            .retain(|_, session| session.asked.is_some() || session.last_used + keep_for > now);
    }

    /// Returns the time at which [`Sessions::expire`] next forgets a session.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let idle = self.all.values().filter(|session| session.asked.is_none());
        idle.map(|session| session.last_used + self.keep_for).min()
    }

    /// Returns the session if `job` has reserved it.
    fn of(&mut self, job: &JobKey, session: &str) -> Option<&mut Session> {
        let session = self.all.get_mut(&key(job, session))?;
        let mine = session.asked.as_ref().is_some_and(|asked| asked.id == job.id);
        mine.then_some(session)
    }

    fn fit(&mut self) {
        let bytes = |session: &Session| session.said.bytes().max(MIN_SESSION_BYTES);
        let mut held: usize = self.all.values().map(bytes).sum();
        while held > self.memory {
            let idle = self.all.iter().filter(|(_, session)| session.asked.is_none());
            let Some(oldest) = idle
                .min_by_key(|(_, session)| session.last_used)
                .map(|(key, _)| key.clone())
            else {
                return;
            };
            if let Some(gone) = self.all.remove(&oldest) {
                held -= bytes(&gone);
                tracing::info!(
                    session = oldest.name,
                    client = oldest.client,
                    "session forgotten for its memory"
                );
            }
        }
    }
}

impl SessionSoFar {
    /// The memory of the symbols and of the images' files, in bytes.
    fn bytes(&self) -> usize {
        let files: usize = self.images.iter().map(|image| image.file.file.len()).sum();
        self.symbols.len() * size_of::<Symbol>() + files
    }
}

/// The minimum memory that a session counts for, in bytes: its key and its entry.
const MIN_SESSION_BYTES: usize = 256;

fn key(job: &JobKey, session: &str) -> SessionKey {
    SessionKey {
        client: job.client.clone(),
        name: session.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn job(id: &str) -> JobKey {
        JobKey {
            client: None,
            id: id.to_owned(),
        }
    }

    fn ids(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    fn say(sessions: &mut Sessions, id: &str, session: &str, now: Instant) {
        let mut prompt = sessions.begin(&job(id), session, now).unwrap().symbols;
        prompt.extend(ids(0..100).into_iter().map(Symbol::Token));
        sessions.asked(&job(id), session, &prompt);
        sessions.answered(&job(id), session, Some((&ids(0..10), Vec::new())), now);
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_grows_and_is_used_by_one_at_a_time() {
        let now = Instant::now();
        let mut sessions = Sessions::new(Duration::from_mins(1), 1 << 20);
        say(&mut sessions, "1", "s", now);
        assert_eq!(sessions.begin(&job("2"), "s", now).unwrap().symbols.len(), 110);
        assert_eq!(
            sessions.begin(&job("3"), "s", now),
            Err(Occupied { by: "2".into() })
        );
        // Without an answer it is as before.
        sessions.answered(&job("3"), "s", Some((&[], Vec::new())), now);
        sessions.answered(&job("2"), "s", None, now);
        assert_eq!(sessions.begin(&job("3"), "s", now).unwrap().symbols.len(), 110);
        let other = JobKey {
            client: Some("other".into()),
            id: "3".into(),
        };
        assert!(sessions.begin(&other, "s", now).unwrap().symbols.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_end_by_age_and_by_memory() {
        let start = Instant::now();
        let mut sessions = Sessions::new(Duration::from_mins(1), 6000);
        say(&mut sessions, "1", "old", start);
        let later = start + Duration::from_secs(30);
        say(&mut sessions, "2", "new", later);
        say(&mut sessions, "3", "newest", later);
        assert!(
            sessions
                .begin(&job("4"), "old", later)
                .unwrap()
                .symbols
                .is_empty(),
            "no memory for three"
        );
        sessions.answered(&job("4"), "old", None, later);
        assert_eq!(sessions.next_expiry(), Some(later + Duration::from_mins(1)));
        sessions.expire(later + Duration::from_mins(1));
        assert_eq!(sessions.next_expiry(), None);
    }
}
