//! An honest client: it asks in a closed loop, waits when it is told `busy`, and keeps accounts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use phi_edge_mqtt::{Client, ClientOptions, Received};
use serde_json::{Value, json};

use super::watch::SESSION;
use crate::daemon::BASE;

/// Between two attempts at a request that was refused without a word on when to come again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Between two attempts at a connection.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Asker {
    options: ClientOptions,
    name: String,
    client: Option<Client>,
    open: BTreeMap<String, Open>,
    /// Outcomes by id: the first, to the byte.
    done: BTreeMap<String, Vec<u8>>,
    /// How long the answers are that it asks for.
    tokens: u32,
    pub(super) accounts: Accounts,
}

/// A request without an outcome.
struct Open {
    asked: Instant,
    body: String,
    /// When it is asked again, after a refusal.
    again: Option<Instant>,
}

/// What became of an honest client's requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Accounts {
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// Outcomes that are errors.
    pub(super) errors: Vec<String>,
    /// Requests with outcomes that differ.
    pub(super) differing: u64,
    /// From the question to the answer.
    pub(super) latencies: Vec<Duration>,
}

impl Asker {
    /// A client of this name, which is also its user and password where the broker wants some.
    pub(super) async fn start(port: u16, name: &str, logs_in: bool) -> Result<Self> {
        let mut asker = Self {
            options: ClientOptions {
                host: "127.0.0.1".into(),
                port,
                client_id: format!("{name}-{}-{}", std::process::id(), crate::unique()),
                credentials: logs_in.then(|| (name.to_owned(), name.to_owned())),
                tls: None,
                session: Some(SESSION),
            },
            name: name.to_owned(),
            client: None,
            open: BTreeMap::new(),
            done: BTreeMap::new(),
            tokens: 2,
            accounts: Accounts::default(),
        };
        asker.connect().await?;
        Ok(asker)
    }

    /// Asks for answers of so many tokens; two unless said.
    pub(super) fn for_tokens(mut self, tokens: u32) -> Self {
        self.tokens = tokens;
        self
    }

    /// Asks `count` requests, at most `window` of them at once, until `deadline`; those that are open then stay so.
    pub(super) async fn run(&mut self, count: u64, window: usize, deadline: Instant) {
        let until = self.accounts.asked + count;
        while Instant::now() < deadline {
            while self.open.len() < window && self.accounts.asked < until {
                self.ask().await;
            }
            if self.open.is_empty() && self.accounts.asked >= until {
                return;
            }
            self.turn().await;
        }
    }

    /// Asks one after the other until `end`; the last one may be open then.
    pub(super) async fn run_until(&mut self, end: Instant, pause: Duration) {
        while Instant::now() < end {
            self.run(1, 1, end).await;
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits for what is open.
    pub(super) async fn finish(&mut self, patience: Duration) {
        self.run(0, 1, Instant::now() + patience).await;
    }

    /// Ids without an outcome.
    pub(super) fn missing(&self) -> Vec<String> {
        self.open.keys().cloned().collect()
    }

    async fn ask(&mut self) {
        let id = format!("q{}", self.accounts.asked);
        let body = json!({
            "id": id,
            "prompt": format!("Summarise: press {} stopped at 10:04.", self.accounts.asked % 7),
            "max_tokens": self.tokens,
            // So hot that the model hardly ever finds its end.
            "temperature": 10.0,
            "stream": self.accounts.asked.is_multiple_of(3),
        })
        .to_string();
        self.accounts.asked += 1;
        let open = Open {
            asked: Instant::now(),
            body,
            // Sent by the next turn, as what was refused is.
            again: Some(Instant::now()),
        };
        self.open.insert(id, open);
        self.send_due().await;
    }

    /// Sends what is due; on a broken connection once more on the next.
    async fn send_due(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .open
            .iter()
            .filter(|(_, open)| open.again.is_some_and(|again| again <= now))
            .map(|(id, _)| id.clone())
            .collect();
        let topic = format!("{BASE}/request/{}", self.name);
        for id in due {
            let Some(open) = self.open.get_mut(&id) else {
                continue;
            };
            let Some(client) = &mut self.client else { return };
            if client.publish(&topic, open.body.clone(), None).await.is_ok() {
                open.again = None;
            } else {
                self.client = None;
            }
        }
    }

    /// Takes one message, or waits a little.
    async fn turn(&mut self) {
        self.send_due().await;
        let Some(client) = &mut self.client else {
            tokio::time::sleep(CONNECT_PAUSE).await;
            let _ = self.connect().await;
            return;
        };
        match client.receive(CONNECT_PAUSE).await {
            Ok(Some(message)) => self.note(&message),
            Ok(None) => {}
            Err(_) => self.client = None,
        }
    }

    fn note(&mut self, message: &Received) {
        let kind = message.property("kind");
        if !matches!(kind, Some("final" | "error")) {
            return;
        }
        let body: Value = crate::json(message);
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        let code = body["error"]["code"].as_str();
        if let Some(first) = self.done.get(&id) {
            self.accounts.differing += u64::from(*first != message.payload);
            return;
        }
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        if matches!(code, Some("busy" | "unavailable")) {
            let wait = body["error"]["retry_after_ms"].as_u64();
            open.again = Some(Instant::now() + wait.map_or(RETRY_PAUSE, Duration::from_millis));
            return;
        }
        self.accounts.answered += 1;
        self.accounts.latencies.push(open.asked.elapsed());
        self.accounts.errors.extend(code.map(str::to_owned));
        self.open.remove(&id);
        self.done.insert(id, message.payload.to_vec());
    }

    async fn connect(&mut self) -> Result<()> {
        let mut client = Client::connect(self.options.clone()).await?;
        client
            .subscribe(&format!("{BASE}/response/{}/#", self.name))
            .await?;
        self.client = Some(client);
        Ok(())
    }
}
