//! Recorded messages, run through a rule without broker, store and clock: `phi-edge rules test`.

use std::sync::Arc;

use super::changes::{PendingEvent, ShownMessage};
use super::engine::{PendingSummary, QueueCapacity, RuleEngine, RuleMessage};
use super::summary::{self, PromptBudget, PromptMessage, PromptPlan, SummaryError, Template, WindowFacts};
use super::{CloseReason, Event, Rule, Time};

/// One rule, and time as it is told.
pub struct Replay {
    engine: RuleEngine,
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
        let mut engine = RuleEngine::new(0, u64::MAX, QueueCapacity::UNBOUNDED);
        engine.set_rules(vec![rule.clone()], Time(i64::MIN / 2))?;
        Ok(Self {
            engine,
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
        self.engine.ingest(&message, at);
        self.ended()
    }

    /// Ends what is due at `at`.
    pub fn tick(&mut self, at: Time) -> Vec<ReplayedWindow> {
        self.engine.tick(at);
        self.ended()
    }

    /// When [`Replay::tick`] has something to do next.
    pub fn due(&self) -> Option<Time> {
        self.engine.due()
    }

    /// Ends all windows.
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
    /// The facts.
    pub fn event(&self) -> &Event {
        &self.pending.event
    }

    /// The same, to be given its words: as if it had ended just now.
    pub fn pending_summary(&self) -> PendingSummary {
        PendingSummary {
            pending: self.pending.clone(),
            rule: Some(Arc::clone(&self.rule)),
            left: self.rule.summary.deadline,
        }
    }

    /// Where the event goes.
    pub fn topic(&self) -> &str {
        &self.pending.output.topic
    }

    /// What the model is told before the prompt.
    pub fn system(&self) -> Option<&str> {
        self.rule.summary.system.as_deref()
    }

    /// The prompts, none for a rule without words.
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
        let scene = WindowFacts::new(&self.rule, &self.pending.event);
        summary::plan_prompts(&template, &scene, &records, budget).map(Some)
    }
}
