//! What a rule's events come to: whether each message was counted, and once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use phi_edge_mqtt::{Client, Received};
use serde_json::Value;

use crate::{BASE, json};

/// A sum of messages that carry numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Messages.
    pub messages: u64,
    /// The sum of their numbers: one that was lost and one that was doubled do not outweigh each other.
    pub numbers: u64,
}

/// The events of rules with a field `n`, each once.
#[derive(Debug, Default)]
pub struct CountedEvents {
    seen: BTreeMap<String, Value>,
}

impl Counted {
    /// One message.
    pub fn of(number: u64) -> Self {
        Self {
            messages: 1,
            numbers: number,
        }
    }

    /// What a window's event says of its messages.
    pub fn of_event(event: &Value) -> Self {
        let messages = event["window"]["messages"].as_u64().unwrap_or(0);
        Self {
            messages,
            numbers: numbers(event, messages),
        }
    }

    /// Counts one more.
    pub fn add(&mut self, number: u64) {
        *self = self.and(Self::of(number));
    }

    /// The sum of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            numbers: self.numbers + other.numbers,
        }
    }
}

impl CountedEvents {
    /// Takes the events that come until then.
    ///
    /// # Errors
    /// The broker is gone, or two events of one name differ.
    pub async fn listen(&mut self, client: &mut Client, until: Instant) -> Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match client.receive(left).await? {
                Some(message) => self.take(&message)?,
                None => return Ok(()),
            }
        }
    }

    /// Takes events until what they come to holds; false if it does not in time.
    ///
    /// # Errors
    /// As [`CountedEvents::listen`].
    pub async fn listen_until(
        &mut self,
        client: &mut Client,
        limit: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + limit;
        while !holds(self) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            if let Some(message) = client.receive(Duration::from_millis(100)).await? {
                self.take(&message)?;
            }
        }
        Ok(true)
    }

    /// What the events of a rule come to.
    pub fn of(&self, rule: &str) -> Counted {
        let events = self.seen.values().filter(|event| event["rule"] == rule);
        events.fold(Counted::default(), |sum, event| sum.and(Counted::of_event(event)))
    }

    fn take(&mut self, message: &Received) -> Result<()> {
        if !message.topic.starts_with(&format!("{BASE}/event/")) {
            return Ok(());
        }
        let event = json(message);
        let id = event["event_id"].as_str().unwrap_or_default().to_owned();
        let first = self.seen.entry(id).or_insert_with(|| event.clone());
        ensure!(
            *first == event,
            "two events of one name differ: {first} and {event}"
        );
        ensure!(event["window"]["dropped"] == 0, "messages were dropped: {event}");
        Ok(())
    }
}

/// Whole numbers below 2^53 have an exact mean only nearly: their sum is the nearest whole number.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "sums of small whole numbers"
)]
fn numbers(event: &Value, messages: u64) -> u64 {
    let mean = event["stats"]["n"]["mean"].as_f64().unwrap_or(0.0);
    (mean * messages as f64).round() as u64
}
