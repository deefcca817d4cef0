//! The end of windows: an event each, with what the model is to be shown.

use std::sync::Arc;
use std::time::Duration;

use super::rule_state::wordless;
use super::{RuleEngine, RuleState, pending};
use crate::changes::{KeptMessage, PendingEvent, RuleChange, ShownMessage, WindowClose};
use crate::extraction::{ParsedPayload, RawMessage};
use crate::window::ClosedWindow;
use crate::{CloseReason, Event, EventWindow, Output, Rule, Selector, Time, summary};

/// A window that is closed so long after it was to end is published late.
const LATE_CLOSE_THRESHOLD: Duration = Duration::from_secs(5);

impl RuleEngine {
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

    /// Ends a rule's windows and forgets it: another of its name begins anew.
    pub(super) fn remove_rule(&mut self, name: String, now: Time, changes: &mut Vec<RuleChange>) {
        self.close_rule_windows(&name, now, CloseReason::Reload, changes);
        self.rules.remove(&name);
        changes.push(RuleChange::RemoveRule { rule: name });
    }

    pub(super) fn emit(
        &mut self,
        name: &str,
        closed: Vec<ClosedWindow>,
        now: Time,
        changes: &mut Vec<RuleChange>,
    ) {
        // Of many windows that end at once, each may show the model as much as all that may wait.
        let mut shown_bytes = 0;
        for closed in closed {
            let Some(state) = self.rules.get_mut(name) else {
                return;
            };
            let mut last_topic = None;
            let crowded = shown_bytes > self.pending.capacity_bytes();
            let shown = shown(&closed, state, crowded, &mut last_topic);
            shown_bytes += shown.iter().map(ShownMessage::cost).sum::<u64>();
            self.events += 1;
            // Where no model is asked, nothing is kept from it.
            let of_model = if wordless(&state.rule) {
                closed.messages
            } else {
                shown.len() as u64
            };
            let mut event = event(
                &closed,
                state,
                of_model,
                format!("{:016x}-e{}", self.boot, self.events),
                now,
            );
            state.dropped = 0;
            let needs_summary = !wordless(&state.rule) && !crowded;
            if crowded && !wordless(&state.rule) {
                event.error = Some(pending::queue_full());
            }
            let pending = PendingEvent {
                output: Output {
                    topic: fill(&state.rule, &closed.group, last_topic.as_deref()),
                    ..state.rule.output.clone()
                },
                event,
                messages: shown,
                since: now,
            };
            let forgotten = state.forget(&closed);
            self.held -= forgotten.len();
            let cost: u64 = forgotten.iter().map(KeptMessage::cost).sum();
            self.bytes -= cost;
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
                forget: forgotten.iter().map(|message| message.seq).collect(),
                pending: Some(pending),
            })));
        }
    }
}

/// What the model is shown: the newest messages within the rule's bounds, oldest first.
fn shown(
    closed: &ClosedWindow,
    state: &RuleState,
    crowded: bool,
    last_topic: &mut Option<String>,
) -> Vec<ShownMessage> {
    let Some(messages) = state.messages.get(&closed.group) else {
        return Vec::new();
    };
    if crowded || wordless(&state.rule) {
        let newest = closed.seqs.iter().rev().find_map(|seq| messages.get(seq));
        *last_topic = newest.map(|message| message.topic.clone());
        return Vec::new();
    }
    let mut bytes = 0;
    let mut shown: Vec<ShownMessage> = Vec::new();
    for seq in closed.seqs.iter().rev() {
        let Some(message) = messages.get(seq) else {
            continue;
        };
        last_topic.get_or_insert_with(|| message.topic.clone());
        let payload = summary::bounded_text(&message.payload, summary::MAX_PROMPT_TEXT_BYTES);
        bytes += payload.len();
        // The newest is shown in any case: it is cut already.
        if bytes > state.rule.limits.keep_bytes && !shown.is_empty() {
            break;
        }
        let extracted = state.extractor.extract(&ParsedPayload::new(RawMessage {
            topic: &message.topic,
            payload: &message.payload,
        }));
        shown.push(ShownMessage {
            time: state.windows.timestamp_of(extracted.event_time, message.arrived),
            topic: message.topic.clone(),
            payload,
            fields: state.extractor.named(extracted.values),
        });
    }
    shown.reverse();
    shown
}

fn event(closed: &ClosedWindow, state: &RuleState, shown: u64, event_id: String, now: Time) -> Event {
    let rule = &state.rule;
    Event {
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
            dropped: state.dropped,
            closed_late: now.since(closed.at) > LATE_CLOSE_THRESHOLD,
        },
        stats: rule
            .fields
            .iter()
            .map(|field| field.name.clone())
            .zip(closed.facts.iter().cloned())
            .collect(),
        text: None,
        unsupported_numbers: None,
        data: None,
        error: None,
        finish_reason: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        model: Arc::from(""),
    }
}

/// The topic of an event: what a message says may stand in it only where the rule says so, and never as more than a
/// part of a level.
fn fill(rule: &Rule, group: &str, last_topic: Option<&str>) -> String {
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
            // Without a message, the group tells the level where it is made of it.
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
