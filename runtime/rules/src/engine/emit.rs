//! The events of closed windows.

use std::sync::Arc;
use std::time::Duration;

use super::rule_state::RuleState;
use super::{RuleEngine, pending};
use crate::changes::{KeptMessage, PendingEvent, RuleChange, ShownMessage, WindowClose};
use crate::extraction::ParsedPayload;
use crate::picture;
use crate::window::ClosedWindow;
use crate::{
    CloseReason, Event, EventWindow, Output, PayloadFormat, Rule, Selector, ShownPicture, Time, summary,
};

/// A window that closes this long after it was due is reported as `closed_late`.
const LATE_CLOSE_THRESHOLD: Duration = Duration::from_secs(5);

/// The ids of events, unique among all processes of a node.
pub(super) struct EventIds {
    boot: u64,
    issued: u64,
}

/// The messages and pictures of a window that the model is shown, oldest first, and the topic of the window's newest.
#[derive(Default)]
struct Excerpt {
    messages: Vec<ShownMessage>,
    pictures: Vec<ShownPicture>,
    last_topic: Option<String>,
}

impl RuleEngine {
    /// Closes the windows of a rule that are due.
    pub(super) fn close_due(&mut self, name: &str, now: Time, changes: &mut Vec<RuleChange>) {
        if let Some(state) = self.rules.get_mut(name) {
            let closed = state.windows.tick(now);
            self.emit(name, closed, now, changes);
        }
    }

    pub(super) fn close_rule_windows(
        &mut self,
        name: &str,
        now: Time,
        reason: CloseReason,
        changes: &mut Vec<RuleChange>,
    ) {
        if let Some(state) = self.rules.get_mut(name) {
            let closed = state.windows.close_all(now, reason);
            self.emit(name, closed, now, changes);
        }
    }

    /// Closes a rule's windows and removes its state.
    pub(super) fn remove_rule(&mut self, name: String, now: Time, changes: &mut Vec<RuleChange>) {
        self.close_rule_windows(&name, now, CloseReason::Reload, changes);
        self.rules.remove(&name);
        changes.push(RuleChange::RemoveRule { rule: name });
    }

    /// Makes an event of each closed window, and forgets the messages that no open window needs.
    pub(super) fn emit(
        &mut self,
        name: &str,
        closed: Vec<ClosedWindow>,
        now: Time,
        changes: &mut Vec<RuleChange>,
    ) {
        // Of many windows that close at once, each may show the model as much as all pending events may.
        let mut shown_bytes = 0;
        for closed in closed {
            let Some(state) = self.rules.get_mut(name) else {
                return;
            };
            let crowded = shown_bytes > self.pending.capacity_bytes();
            let needs_summary = state.rule.needs_summary() && !crowded;
            let excerpt = excerpt(&closed, state, needs_summary);
            shown_bytes += excerpt.cost();
            let mut pending = pending_event(&closed, state, excerpt, self.event_ids.next(), now);
            if crowded && state.rule.needs_summary() {
                pending.event.error = Some(pending::queue_full());
            }
            let removed = state.messages.remove(&closed);
            self.counters.windows += 1;
            tracing::info!(
                rule = name,
                group = closed.group,
                reason = closed.reason.as_str(),
                messages = closed.messages,
                late = closed.late,
                event.id = pending.event.event_id,
                "a window has ended"
            );
            self.pending.push(pending.clone(), needs_summary);
            changes.push(RuleChange::CloseWindow(Box::new(WindowClose {
                rule: name.to_owned(),
                group: closed.group,
                checkpoint: closed.checkpoint,
                forget: removed.iter().map(|message| message.seq).collect(),
                pending: Some(pending),
            })));
        }
    }
}

impl Excerpt {
    fn cost(&self) -> u64 {
        let messages = self.messages.iter().map(ShownMessage::cost);
        messages.chain(self.pictures.iter().map(ShownPicture::cost)).sum()
    }
}

impl EventIds {
    pub(super) fn new(boot: u64) -> Self {
        Self { boot, issued: 0 }
    }

    fn next(&mut self) -> String {
        self.issued += 1;
        format!("{:016x}-e{}", self.boot, self.issued)
    }
}

/// The newest messages of a window within the rule's bounds; none where no summary is needed.
fn excerpt(closed: &ClosedWindow, state: &RuleState, needs_summary: bool) -> Excerpt {
    let Some(messages) = state.messages.of_group(&closed.group) else {
        return Excerpt::default();
    };
    let newest_first = closed.seqs.iter().rev().filter_map(|seq| messages.get(seq));
    let mut excerpt = Excerpt {
        messages: Vec::new(),
        pictures: Vec::new(),
        last_topic: newest_first.clone().next().map(|message| message.topic.clone()),
    };
    if !needs_summary {
        return excerpt;
    }
    let mut bytes = 0;
    for message in newest_first {
        let payload = if state.rule.payload == PayloadFormat::Image {
            picture::description(&message.payload)
        } else {
            summary::bounded_text(&message.payload, summary::MAX_PROMPT_TEXT_BYTES)
        };
        bytes += payload.len();
        // The newest is shown in any case: it is cut already.
        if bytes > state.rule.limits.keep_bytes && !excerpt.messages.is_empty() {
            break;
        }
        let extracted = state.extractor.extract(&ParsedPayload::of_kept(message));
        excerpt.messages.push(ShownMessage {
            time: state.windows.timestamp_of(extracted.event_time, message.arrived),
            topic: message.topic.clone(),
            payload,
            fields: state.extractor.named(extracted.values),
        });
    }
    excerpt.messages.reverse();
    let pictures = state.shown_pictures(&closed.group, closed.seqs.iter().copied());
    let pictures = pictures.iter().filter_map(|seq| messages.get(seq));
    excerpt.pictures = pictures.map(|message| shown_picture(message, state)).collect();
    excerpt
}

fn shown_picture(message: &KeptMessage, state: &RuleState) -> ShownPicture {
    let extracted = state.extractor.extract(&ParsedPayload::of_kept(message));
    ShownPicture {
        time: state.windows.timestamp_of(extracted.event_time, message.arrived),
        topic: message.topic.clone(),
        file: message.payload.as_slice().into(),
    }
}

/// The event of a closed window with its facts.
fn pending_event(
    closed: &ClosedWindow,
    state: &mut RuleState,
    excerpt: Excerpt,
    event_id: String,
    now: Time,
) -> PendingEvent {
    let dropped = state.take_dropped();
    let rule = &state.rule;
    // Where no model is asked, no message is left out.
    let shown = if rule.needs_summary() {
        excerpt.messages.len() as u64
    } else {
        closed.messages
    };
    let names = rule.fields.iter().map(|field| field.name.clone());
    let event = Event {
        event_id,
        rule: rule.name.clone(),
        group: closed.group.clone(),
        window: EventWindow {
            start: closed.start,
            end: closed.end,
            reason: closed.reason,
            messages: closed.messages,
            late: closed.late,
            left_out: closed.messages.saturating_sub(shown),
            dropped,
            closed_late: now.since(closed.at) > LATE_CLOSE_THRESHOLD,
        },
        stats: names.zip(closed.facts.iter().cloned()).collect(),
        text: None,
        unsupported_numbers: None,
        data: None,
        error: None,
        finish_reason: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        model: Arc::from(""),
    };
    PendingEvent {
        output: Output {
            topic: output_topic(rule, &closed.group, excerpt.last_topic.as_deref()),
            ..rule.output.clone()
        },
        event,
        messages: excerpt.messages,
        pictures: excerpt.pictures,
        since: now,
    }
}

/// The topic of an event. A text of a message replaces a placeholder of the rule's topic and never becomes more than a part
/// of a level.
fn output_topic(rule: &Rule, group: &str, last_topic: Option<&str>) -> String {
    let level = |text: &str| -> String {
        let clean: String = text
            .chars()
            .map(|c| {
                if c.is_control() || matches!(c, '/' | '+' | '#') {
                    '_'
                } else {
                    c
                }
            })
            .collect();
        if clean.is_empty() { "-".to_owned() } else { clean }
    };
    let mut out = String::new();
    let mut rest = rule.output.topic.as_str();
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let Some(close) = rest[open..].find('}') else {
            break;
        };
        let name = &rest[open + 1..open + close];
        if name == "group" {
            out.push_str(&level(group));
        } else if let Some(number) = name.strip_prefix("topic:").and_then(|n| n.parse::<usize>().ok()) {
            // Without a message, the group has the level where groups are made of it.
            let of_message = last_topic.and_then(|topic| topic.split('/').nth(number));
            let of_group = (rule.group_by == Some(Selector::Topic(number))).then_some(group);
            out.push_str(&level(of_message.or(of_group).unwrap_or_default()));
        } else {
            out.push_str(&rest[open..=open + close]);
        }
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out
}
