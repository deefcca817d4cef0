//! Recorded messages, run through a rule without broker, store and clock: `phi-edge rules test`.

use std::sync::Arc;

use super::changes::{PendingEvent, ShownMessage};
use super::engine::{Book, Room, RuleMessage, Unworded};
use super::summary::{self, Budget, Plan, Record, Template, WordsError};
use super::{CloseReason, Event, Rule, Time};

/// One rule, and time as it is told.
pub struct Replay {
    book: Book,
    name: Arc<str>,
    rule: Arc<Rule>,
}

/// A window that has ended.
#[derive(Debug, Clone)]
pub struct ReplayedWindow {
    pub(crate) pending: PendingEvent,
    pub(crate) rule: Arc<Rule>,
}

impl Replay {
    /// Without messages yet.
    ///
    /// # Errors
    /// The rule can't be used; one line.
    pub fn new(rule: Rule) -> Result<Self, String> {
        let name = rule.name.as_str().into();
        let mut book = Book::new(0, u64::MAX, Room::ENDLESS);
        book.set_rules(vec![rule.clone()], Time(i64::MIN / 2))?;
        Ok(Self {
            book,
            name,
            rule: Arc::new(rule),
        })
    }

    /// Counts a message that arrived at `at`, after what was due until then.
    pub fn ingest(&mut self, topic: &str, payload: &[u8], at: Time) -> Vec<ReplayedWindow> {
        let message = RuleMessage {
            topic: topic.to_owned(),
            payload: payload.to_vec(),
            rules: vec![Arc::clone(&self.name)],
            receipt: None,
            redelivered: false,
        };
        self.book.ingest(&message, at);
        self.ended()
    }

    /// Ends what is due at `at`.
    pub fn tick(&mut self, at: Time) -> Vec<ReplayedWindow> {
        self.book.tick(at);
        self.ended()
    }

    /// When [`Replay::tick`] has something to do next.
    pub fn due(&self) -> Option<Time> {
        self.book.due()
    }

    /// Ends all windows.
    pub fn end(&mut self, at: Time) -> Vec<ReplayedWindow> {
        self.book.end_rules(at, CloseReason::Reload);
        self.ended()
    }

    fn ended(&mut self) -> Vec<ReplayedWindow> {
        let mut ended = Vec::new();
        while let Some(pending) = self.next_ended() {
            self.book.posted(&pending.event);
            ended.push(ReplayedWindow {
                pending,
                rule: Arc::clone(&self.rule),
            });
        }
        ended
    }

    fn next_ended(&mut self) -> Option<PendingEvent> {
        let facts = self.book.take_facts();
        facts.or_else(|| self.book.take_waiting().map(|unworded| unworded.pending))
    }
}

impl ReplayedWindow {
    /// The facts.
    pub fn event(&self) -> &Event {
        &self.pending.event
    }

    /// The same, to be given its words: as if it had ended just now.
    pub fn unworded(&self) -> Unworded {
        Unworded {
            pending: self.pending.clone(),
            rule: Some(Arc::clone(&self.rule)),
            left: self.rule.words.deadline,
        }
    }

    /// Where the event goes.
    pub fn topic(&self) -> &str {
        &self.pending.output.topic
    }

    /// What the model is told before the prompt.
    pub fn system(&self) -> Option<&str> {
        self.rule.words.system.as_deref()
    }

    /// The prompts, none for a rule without words.
    ///
    /// # Errors
    /// The template can't be rendered, or a prompt does not fit.
    pub fn prompts(&self, budget: &Budget<'_>) -> Result<Option<Plan>, WordsError> {
        let Some(template) = Template::compile(&self.rule.words.prompt, &self.rule.fields)? else {
            return Ok(None);
        };
        let records: Vec<Record> = self.pending.messages.iter().map(ShownMessage::record).collect();
        let scene = self.rule.scene(&self.pending.event);
        summary::plan(&template, &scene, &records, budget).map(Some)
    }
}
