//! The replay of recorded messages through one rule, without broker, store and clock: `phi-edge rules test`.

use std::sync::Arc;

use super::changes::{PendingEvent, ShownMessage};
use super::engine::{PendingSummary, QueueCapacity, RuleEngine, RuleMessage};
use super::summary::{self, PromptBudget, PromptMessage, PromptPlan, SummaryError, Template, WindowFacts};
use super::{CloseReason, Event, Rule, Time};

/// The replay of one rule.
pub struct Replay {
    engine: RuleEngine,
    name: Arc<str>,
    rule: Arc<Rule>,
}

/// A window that has closed in a replay.
#[derive(Debug, Clone)]
pub struct ReplayedWindow {
    pub(crate) pending: PendingEvent,
    pub(crate) rule: Arc<Rule>,
}

impl Replay {
    /// A replay without messages.
    ///
    /// # Errors
    /// The rule can't be used; one line.
    pub fn new(rule: Rule) -> Result<Self, String> {
        let name = rule.name.as_str().into();
        let mut engine = RuleEngine::new(0, u64::MAX, QueueCapacity::UNBOUNDED);
        engine.set_rules(vec![rule.clone()], Time(i64::MIN / 2))?;
        Ok(Self {
            engine,
            name,
            rule: Arc::new(rule),
        })
    }

    /// Counts a message that arrived at `at`, after closing the windows that are due.
    pub fn ingest(&mut self, topic: &str, payload: &[u8], at: Time) -> Vec<ReplayedWindow> {
        let message = RuleMessage {
            topic: topic.to_owned(),
            payload: payload.to_vec(),
            rules: vec![Arc::clone(&self.name)],
            receipt: None,
            redelivered: false,
        };
        self.engine.ingest(&message, at);
        self.ended()
    }

    /// Closes the windows that are due at `at`.
    pub fn tick(&mut self, at: Time) -> Vec<ReplayedWindow> {
        self.engine.tick(at);
        self.ended()
    }

    /// When [`Replay::tick`] has something to do next.
    pub fn due(&self) -> Option<Time> {
        self.engine.due()
    }

    /// Closes all windows.
    pub fn end(&mut self, at: Time) -> Vec<ReplayedWindow> {
        self.engine.close_windows(at, CloseReason::Reload);
        self.ended()
    }

    fn ended(&mut self) -> Vec<ReplayedWindow> {
        let mut ended = Vec::new();
        while let Some(pending) = self.next_ended() {
            self.engine.complete_event(&pending.event);
            ended.push(ReplayedWindow {
                pending,
                rule: Arc::clone(&self.rule),
            });
        }
        ended
    }

    fn next_ended(&mut self) -> Option<PendingEvent> {
        let facts = self.engine.take_facts_only();
        facts.or_else(|| {
            self.engine
                .take_pending_summary()
                .map(|pending_summary| pending_summary.pending)
        })
    }
}

impl ReplayedWindow {
    /// The event, with facts only.
    pub fn event(&self) -> &Event {
        &self.pending.event
    }

    /// The event with its whole deadline left for its summary.
    pub fn pending_summary(&self) -> PendingSummary {
        PendingSummary {
            pending: self.pending.clone(),
            rule: Some(Arc::clone(&self.rule)),
            left: self.rule.summary.deadline,
        }
    }

    /// The topic of the event.
    pub fn topic(&self) -> &str {
        &self.pending.output.topic
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.rule.summary.system.as_deref()
    }

    /// The prompts; `None` for a rule without summaries.
    ///
    /// # Errors
    /// The template can't be rendered, or a prompt does not fit.
    pub fn prompts(&self, budget: &PromptBudget<'_>) -> Result<Option<PromptPlan>, SummaryError> {
        let Some(template) = Template::compile(&self.rule.summary.prompt, &self.rule.fields)? else {
            return Ok(None);
        };
        let records: Vec<PromptMessage> = self
            .pending
            .messages
            .iter()
            .map(ShownMessage::prompt_message)
            .collect();
        let window_facts =
            WindowFacts::new(&self.rule, &self.pending.event).with_pictures(&self.pending.pictures);
        summary::plan_prompts(&template, &window_facts, &records, budget).map(Some)
    }
}
