//! The accounts of a run: what the node said, on every topic of its own and of its rules.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use phi_edge_mqtt::{Client, ClientOptions, Received};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::attack::REUSED;
use crate::daemon::BASE;

/// How long the broker keeps the session of a client that must miss nothing.
pub(super) const SESSION: Duration = Duration::from_hours(4);
/// Between two looks at the accounts.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What the node said.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The last status.
    pub(super) status: Value,
    /// The last statistics.
    pub(super) stats: Value,
    /// Dead letters without what they quote, each distinct one once.
    pub(super) dead: Vec<Letter>,
    dead_digests: HashSet<u64>,
    /// How often outcomes came, by client and id (`anna/q1`).
    pub(super) outcomes: BTreeMap<String, u32>,
    /// Digests of outcomes, by `reply_id`.
    replies: BTreeMap<String, u64>,
    /// The `reply_id` of the final reply, by client and id.
    finals: BTreeMap<String, String>,
    /// Outcomes and events whose copies differ.
    pub(super) differing: Vec<String>,
    /// Messages on status, stats or dead-letter that are not the node's.
    pub(super) foreign: Vec<String>,
    /// What events come to, by rule.
    pub(super) sums: BTreeMap<String, Sum>,
    /// Digests of events, by `event_id`.
    events: BTreeMap<String, u64>,
    /// The number `n` of the first message of each event of a rule.
    pub(super) firsts: BTreeMap<String, Vec<u64>>,
}

/// What a dead letter says of what it is about.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) reason: String,
    pub(super) id: String,
}

/// What the events of a rule come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) messages: u64,
    /// Of the messages' numbers `n`: tells a lost and a doubled message from two counted ones.
    pub(super) numbers: u64,
    pub(super) late: u64,
    pub(super) dropped: u64,
}

/// The client that keeps the accounts.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Subscribes to what a node says, on its own topics and on those of its rules below `out/`.
    pub(super) async fn start(port: u16, user: Option<&str>) -> Result<Self> {
        let options = ClientOptions {
            host: "127.0.0.1".into(),
            port,
            client_id: format!("watch-{}-{}", std::process::id(), crate::unique()),
            credentials: user.map(|user| (user.to_owned(), user.to_owned())),
            tls: None,
            session: Some(SESSION),
        };
        let client = subscribed(&options).await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(listen(client, options, Arc::clone(&seen)));
        Ok(Self { seen, task })
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the accounts are as wanted.
    ///
    /// # Errors
    /// They are not by then.
    pub(super) async fn until(
        &self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&Seen) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !holds(&self.seen()) {
            if Instant::now() > deadline {
                bail!("waited in vain for {what}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn subscribed(options: &ClientOptions) -> Result<Client> {
    let mut client = Client::connect(options.clone()).await?;
    // Not to requests: there is much more of them, and they are not the node's.
    for topics in ["status", "stats", "dead-letter", "event/#", "response/#"] {
        client
            .subscribe(&format!("{BASE}/{topics}"))
            .await
            .context("a subscription")?;
    }
    client.subscribe("out/#").await.context("a subscription")?;
    Ok(client)
}

async fn listen(mut client: Client, options: ClientOptions, seen: Arc<Mutex<Seen>>) {
    loop {
        match client.receive(Duration::from_secs(1)).await {
            Ok(Some(message)) => seen.lock().unwrap_or_else(PoisonError::into_inner).note(&message),
            Ok(None) => {}
            Err(_) => {
                // The broker keeps what comes meanwhile.
                tokio::time::sleep(POLL_INTERVAL).await;
                if let Ok(next) = subscribed(&options).await {
                    client = next;
                }
            }
        }
    }
}

impl Seen {
    fn note(&mut self, message: &Received) {
        let body = crate::json(message);
        let tail = message
            .topic
            .strip_prefix(BASE)
            .and_then(|rest| rest.strip_prefix('/'));
        match tail {
            Some("status") => self.own(message, &body, "state", |seen| &mut seen.status),
            Some("stats") => self.own(message, &body, "queued", |seen| &mut seen.stats),
            Some("dead-letter") if body["reason"].is_string() && body["event_id"].is_null() => {
                self.letter(message, &body);
            }
            Some("dead-letter") => self.foreign.push(message.topic.clone()),
            _ if message.property("kind") == Some("event") => self.event(message, &body),
            Some(tail) => self.outcome(tail, message, &body),
            None => {}
        }
    }

    /// A dead letter. The broker may have it twice where a connection ended; such copies are alike.
    fn letter(&mut self, message: &Received, body: &Value) {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        if self.dead_digests.insert(digest(&message.payload)) {
            self.dead.push(Letter {
                reason: text("reason"),
                id: text("id"),
            });
        }
    }

    /// Something retained of the node's own, which has a certain member and is no event.
    fn own(
        &mut self,
        message: &Received,
        body: &Value,
        member: &str,
        place: impl Fn(&mut Self) -> &mut Value,
    ) {
        if body[member].is_null() || message.property("kind").is_some() {
            self.foreign.push(message.topic.clone());
        } else {
            *place(self) = body.clone();
        }
    }

    fn outcome(&mut self, tail: &str, message: &Received, body: &Value) {
        let kind = message.property("kind");
        if !matches!(kind, Some("final" | "error")) {
            return;
        }
        let client = tail
            .strip_prefix("response/")
            .and_then(|rest| rest.split_once('/'))
            .map_or("", |(client, _)| client);
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let key = format!("{client}/{}", text("id"));
        *self.outcomes.entry(key.clone()).or_default() += 1;
        let digest = digest(&message.payload);
        let first = self.replies.entry(text("reply_id")).or_insert(digest);
        let mut differs = *first != digest;
        if kind == Some("final") && text("id") != REUSED {
            let first = self.finals.entry(key.clone()).or_insert_with(|| text("reply_id"));
            differs |= *first != text("reply_id");
        }
        if differs {
            self.differing.push(key);
        }
    }

    fn event(&mut self, message: &Received, body: &Value) {
        let id = body["event_id"].as_str().unwrap_or_default().to_owned();
        let digest = digest(&message.payload);
        if let Some(first) = self.events.get(&id) {
            if *first != digest {
                self.differing.push(id);
            }
            return;
        }
        self.events.insert(id, digest);
        let rule = body["rule"].as_str().unwrap_or_default().to_owned();
        let window = |key: &str| body["window"][key].as_u64().unwrap_or(0);
        let facts = &body["stats"]["n"];
        let sum = self.sums.entry(rule.clone()).or_default();
        sum.messages += window("messages");
        sum.late += window("late");
        sum.dropped += window("dropped");
        // Of rules under attack it means nothing, and may be beyond any number of messages.
        let numbers = whole(facts["mean"].as_f64().unwrap_or(0.0) * float(window("messages")));
        sum.numbers = sum.numbers.saturating_add(numbers);
        let firsts = self.firsts.entry(rule).or_default();
        firsts.extend(facts["first"].as_f64().map(whole));
    }

    /// What the events of a rule come to.
    pub(super) fn sum(&self, rule: &str) -> Sum {
        self.sums.get(rule).copied().unwrap_or_default()
    }

    /// The state in the last status.
    pub(super) fn state(&self) -> &str {
        self.status["state"].as_str().unwrap_or_default()
    }

    /// Dead letters with this reason.
    pub(super) fn dead_for(&self, reason: &str) -> usize {
        self.dead.iter().filter(|letter| letter.reason == reason).count()
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[expect(clippy::cast_precision_loss, reason = "numbers of messages, far below 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of messages, far below 2^52"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}
