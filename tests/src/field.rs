//! A client that keeps accounts: what it asked, what became of each, and whether anything was said twice.
//!
//! Its session outlives its connections, so that no reply that the broker took is lost on the way to it, and what it can't
//! be sure to have sent it sends again, as the same request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use phi_edge_mqtt::{Client, ClientOptions, Received};
use serde_json::{Value, json};

use crate::daemon::{BASE, TIMEOUT};

/// How long the broker keeps the client's session.
const SESSION: Duration = Duration::from_hours(1);

/// The client and its accounts.
pub struct Field {
    port: u16,
    /// What stands before `/request`.
    base: String,
    client_id: String,
    client: Option<Client>,
    /// What was asked, by id.
    asked: BTreeMap<String, Value>,
    /// Final replies and errors, by id, in order of arrival.
    outcomes: BTreeMap<String, Vec<Vec<u8>>>,
    /// Chunks, by id.
    chunks: BTreeMap<String, usize>,
    /// The last status of the node.
    pub status: Value,
    /// The last status of each node, by its topic.
    pub statuses: BTreeMap<String, Value>,
}

/// What became of all requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests.
    pub asked: usize,
    /// Requests with an outcome.
    pub answered: usize,
    /// Of these, errors.
    pub errors: usize,
    /// Requests with outcomes that differ.
    pub differing: usize,
    /// Outcomes beyond the first.
    pub copies: usize,
}

impl Tally {
    /// The sums of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            asked: self.asked + other.asked,
            answered: self.answered + other.answered,
            errors: self.errors + other.errors,
            differing: self.differing + other.differing,
            copies: self.copies + other.copies,
        }
    }
}

impl Field {
    /// A client of the node at the broker on `port`.
    pub async fn at(port: u16) -> Self {
        Self::below(port, BASE).await
    }

    /// Returns a client of the node that answers requests below `base`.
    pub async fn below(port: u16, base: &str) -> Self {
        let mut field = Self {
            port,
            base: base.to_owned(),
            client_id: format!("field-{}-{}", std::process::id(), crate::unique()),
            client: None,
            asked: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            chunks: BTreeMap::new(),
            status: Value::Null,
            statuses: BTreeMap::new(),
        };
        field.client().await;
        field
    }

    /// Asks; the broker has the request when this returns.
    pub async fn ask(&mut self, id: &str, body: Value) {
        let mut body = body;
        body["id"] = id.into();
        self.asked.insert(id.to_owned(), body);
        self.ask_again(id).await;
    }

    /// Sends a request once more.
    pub async fn ask_again(&mut self, id: &str) {
        let payload = self.asked[id].to_string();
        let topic = format!("{}/request", self.base);
        self.publish(&topic, payload.into_bytes()).await;
    }

    /// Publishes; on a broken connection once more on the next.
    pub async fn publish(&mut self, topic: &str, payload: Vec<u8>) {
        let begun = Instant::now();
        while begun.elapsed() < TIMEOUT {
            let client = self.client().await;
            if client.publish(topic, payload.clone(), None).await.is_ok() {
                return;
            }
            self.client = None;
        }
        panic!("{topic}: the broker takes no message");
    }

    /// Counts a request that another client sends.
    pub fn expect(&mut self, id: &str) {
        self.asked.insert(id.to_owned(), Value::Null);
    }

    /// Counts a request no more.
    pub fn forget(&mut self, id: &str) {
        self.asked.remove(id);
    }

    /// Takes in what comes for so long.
    pub async fn listen(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.receive(left).await;
        }
    }

    /// Takes in what comes until `done`.
    pub async fn listen_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < TIMEOUT,
                "waited in vain for {what}; {:?}; missing: {:?}; status {}",
                self.tally(),
                self.missing(),
                self.status
            );
            self.receive(Duration::from_millis(200)).await;
        }
    }

    /// Waits until every request has an outcome, then a little longer for what should not come.
    pub async fn settle(&mut self) -> Tally {
        self.listen_until("all outcomes", |field| field.missing().is_empty())
            .await;
        self.listen(Duration::from_millis(300)).await;
        self.tally()
    }

    /// Leaves without a word; the broker keeps what comes.
    pub fn leave(&mut self) {
        self.client = None;
    }

    /// Whether this request has an outcome.
    pub fn has(&self, id: &str) -> bool {
        self.outcomes.contains_key(id)
    }

    /// The outcome of a request.
    pub fn outcome(&self, id: &str) -> Value {
        let payload = self.outcomes.get(id).and_then(|all| all.first());
        payload
            .and_then(|payload| serde_json::from_slice(payload).ok())
            .unwrap_or_default()
    }

    /// Chunks of this request so far.
    pub fn chunks(&self, id: &str) -> usize {
        self.chunks.get(id).copied().unwrap_or(0)
    }

    /// Requests with an outcome.
    pub fn answered(&self) -> usize {
        self.asked.keys().filter(|id| self.has(id)).count()
    }

    /// The node's last status.
    pub fn status(&self) -> &Value {
        &self.status
    }

    /// The state in the node's last status.
    pub fn state(&self) -> &str {
        self.status["state"].as_str().unwrap_or_default()
    }

    /// What became of all requests so far.
    pub fn tally(&self) -> Tally {
        let of = |id: &String| self.outcomes.get(id).map_or(&[][..], Vec::as_slice);
        let mut tally = Tally {
            asked: self.asked.len(),
            ..Tally::default()
        };
        for id in self.asked.keys() {
            let outcomes = of(id);
            let Some(first) = outcomes.first() else { continue };
            tally.answered += 1;
            tally.copies += outcomes.len() - 1;
            tally.differing += usize::from(outcomes.iter().any(|other| other != first));
            let body: Value = serde_json::from_slice(first).unwrap_or_default();
            tally.errors += usize::from(!body["error"].is_null());
        }
        tally
    }

    /// Accepted requests with outcomes that differ, and these. A refusal as `busy` or `unavailable` is no outcome of one: asking
    /// again makes another request, which may be accepted.
    pub fn differing_when_accepted(&self) -> Vec<(&str, Vec<String>)> {
        let text = |outcome: &Vec<u8>| String::from_utf8_lossy(outcome).into_owned();
        let asked = self
            .outcomes
            .iter()
            .filter(|(id, _)| self.asked.contains_key(*id));
        let accepted = asked.map(|(id, outcomes)| {
            let accepted = outcomes.iter().filter(|outcome| !is_refusal(outcome));
            (id.as_str(), accepted.map(text).collect::<Vec<String>>())
        });
        accepted
            .filter(|(_, outcomes)| outcomes.iter().any(|other| *other != outcomes[0]))
            .collect()
    }

    /// Requests without an outcome.
    pub fn missing(&self) -> Vec<&str> {
        self.asked
            .keys()
            .filter(|id| !self.has(id))
            .map(String::as_str)
            .collect()
    }

    async fn receive(&mut self, time: Duration) {
        match self.client().await.receive(time).await {
            Ok(Some(message)) => self.note(&message),
            Ok(None) => {}
            Err(_) => self.client = None,
        }
    }

    fn note(&mut self, message: &Received) {
        if message.topic.ends_with("/status") {
            let status = crate::json(message);
            if message.topic == format!("{BASE}/status") {
                self.status = status.clone();
            }
            self.statuses.insert(message.topic.clone(), status);
            return;
        }
        let id = crate::json(message)["id"].as_str().unwrap_or_default().to_owned();
        match message.property("kind") {
            Some("final" | "error") => {
                self.outcomes
                    .entry(id)
                    .or_default()
                    .push(message.payload.to_vec());
            }
            Some("chunk") => *self.chunks.entry(id).or_default() += 1,
            _ => {}
        }
    }

    /// Returns the connection, which is made again where it was lost.
    async fn client(&mut self) -> &mut Client {
        let begun = Instant::now();
        while self.client.is_none() {
            assert!(begun.elapsed() < TIMEOUT, "no connection to the broker");
            let options = ClientOptions {
                host: "127.0.0.1".into(),
                port: self.port,
                client_id: self.client_id.clone(),
                session: Some(SESSION),
                ..ClientOptions::default()
            };
            if let Ok(mut client) = Client::connect(options).await {
                // Its own alone: those of clients with topics of their own, hostile ones among them, may be a flood.
                let replies = client.subscribe(&format!("{}/response/+", self.base)).await;
                let status = client.subscribe("phi-edge/v1/+/status").await;
                if replies.is_ok() && status.is_ok() {
                    self.client = Some(client);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.client.as_mut().expect("connected")
    }
}

/// A request for the demonstration model that comes to so many tokens: so hot that it hardly ever finds its end.
pub fn question(tokens: usize) -> Value {
    json!({
        "prompt": "Summarise: press 3 stopped at 10:04, press 3 started at 10:09, oven 1 at 212 degrees, oven 1 at 231 \
                   degrees, door 2 open.",
        "max_tokens": tokens,
        "temperature": 10.0,
    })
}

fn is_refusal(outcome: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(outcome).unwrap_or_default();
    matches!(body["error"]["code"].as_str(), Some("busy" | "unavailable"))
}
