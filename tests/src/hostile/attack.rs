//! Hostile MQTT clients: whatever a client may send that the broker lets in, at random, by seed.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::payloads;
use super::raw::RawClient;
use super::wire::{Connect, Property, Publish, Will, packet};
use crate::chance::Chance;
use crate::daemon::BASE;

/// An id that is asked again and again with other prompts. Once its outcome is forgotten it is a new request.
pub(super) const REUSED: &str = "same";
/// The rule whose messages are counted, and what counts them.
pub(super) const COUNTED: &str = "counted";
/// How long a client that does not read stays.
const DEAF_TIME: Range<Duration> = Duration::from_millis(200)..Duration::from_secs(4);

/// How strong an attack is.
#[derive(Debug, Clone)]
pub struct Force {
    /// Clients at once.
    pub clients: u32,
    /// Between two actions of a client.
    pub pause: Range<Duration>,
    /// About the largest payload, in bytes.
    pub largest: usize,
}

/// An attack that runs. It ends with this value.
pub struct Attack {
    tasks: JoinSet<()>,
    toll: Arc<Toll>,
}

/// What an attack has done.
#[derive(Debug, Default)]
pub(super) struct Toll {
    pub(super) actions: AtomicU64,
    /// Messages for the rule that counts, which the broker has taken.
    pub(super) counted: AtomicU64,
    /// Messages for it of which the broker's answer was not heard: they may count.
    pub(super) uncertain: AtomicU64,
    /// Requests that must have an outcome, by client and id.
    expected: Mutex<Vec<String>>,
}

impl Attack {
    /// Begins it at the broker on `port`; it ends by itself after `time`.
    pub fn start(port: u16, force: &Force, seed: u64, time: Duration) -> Self {
        let mut chance = Chance::seeded(seed);
        let toll = Arc::new(Toll::default());
        let deadline = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for number in 0..force.clients {
            let hostile = Hostile {
                port,
                name: format!("h{number}"),
                force: force.clone(),
                chance: chance.branch(),
                toll: Arc::clone(&toll),
                asked: 0,
                line: None,
            };
            tasks.spawn(hostile.run(deadline));
        }
        Self { tasks, toll }
    }

    /// Waits for its end.
    pub async fn end(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    pub(super) fn toll(&self) -> Arc<Toll> {
        Arc::clone(&self.toll)
    }
}

impl Toll {
    /// Requests that must have an outcome, so far.
    pub(super) fn expected(&self) -> Vec<String> {
        self.expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

struct Hostile {
    port: u16,
    name: String,
    force: Force,
    chance: Chance,
    toll: Arc<Toll>,
    asked: u64,
    line: Option<RawClient>,
}

impl Hostile {
    async fn run(mut self, deadline: Instant) {
        while Instant::now() < deadline {
            // An error is the broker's answer, and the next connection is another one.
            if self.act().await.is_err() || self.chance.once_in(25) {
                self.line = None;
            }
            self.toll.actions.fetch_add(1, Ordering::Relaxed);
            let pause = self.chance.time(self.force.pause.clone());
            tokio::time::sleep(pause).await;
        }
    }

    async fn act(&mut self) -> Result<()> {
        match self.chance.below(32) {
            0..=11 => self.ask().await,
            12..=20 => self.say().await,
            21..=23 => self.ask_oddly().await,
            24 => self.flood().await,
            25 => self.cancel().await,
            26 => self.listen_slowly().await,
            27 => self.storm().await,
            28 => self.leave_a_will().await,
            29 => self.ask_the_same_differently().await,
            30 => self.shout().await,
            _ => self.break_the_protocol().await,
        }
    }

    /// A request, good or bad, as the payloads have it.
    async fn ask(&mut self) -> Result<()> {
        let id = self.id();
        let body = payloads::request(&mut self.chance, &id, self.force.largest);
        let publish = self.request(body.bytes);
        self.publish(&publish).await?;
        if body.is_answered {
            let key = format!("{}/{id}", self.name);
            self.toll
                .expected
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(key);
        }
        Ok(())
    }

    /// A message of a device, for the rules.
    async fn say(&mut self) -> Result<()> {
        let publish = Publish {
            topic: format!("plant/line-{}/reading", self.chance.below(10)),
            payload: payloads::of_device(&mut self.chance, self.force.largest),
            qos: 1,
            ..Publish::default()
        };
        self.line().await?;
        match self.publish(&publish).await {
            Ok(()) => self.toll.counted.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                self.toll.uncertain.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        };
        Ok(())
    }

    /// A request whose properties are the attack: retained, expiring, with huge correlation data, aimed elsewhere.
    async fn ask_oddly(&mut self) -> Result<()> {
        let chance = &mut self.chance;
        let mut properties = Vec::new();
        for _ in 0..=chance.below(4) {
            let size = chance.size(0..60_000);
            properties.push(match chance.below(7) {
                0 => Property::Expiry(u32::try_from(chance.below(3)).unwrap_or(0)),
                1 => Property::Correlation(chance.bytes(size)),
                2 => Property::ContentType(payloads::text(chance, 10)),
                3 => Property::User("traceparent".into(), "00-".repeat(chance.size(0..300))),
                4 => Property::User(payloads::text(chance, 200), "x".repeat(size)),
                5 => Property::PayloadFormat(1),
                _ => {
                    let aim = chance.pick(&[
                        "status",
                        "stats",
                        "dead-letter",
                        "request",
                        "response/honest/q0",
                        "event/x",
                    ]);
                    Property::ResponseTopic(format!("{BASE}/{aim}"))
                }
            });
        }
        // Of each of these there may be one.
        let mut kinds = std::collections::HashSet::new();
        properties.retain(|property| {
            matches!(property, Property::User(..)) || kinds.insert(std::mem::discriminant(property))
        });
        let retain = chance.once_in(3);
        let qos = u8::from(!chance.once_in(3));
        // Also one of the last few again, with another body. An old one would be a new request: its outcome is forgotten.
        self.asked += 1;
        let id = format!("odd{}", self.asked.saturating_sub(chance.below(4)));
        let body = payloads::request(chance, &id, self.force.largest.min(4096));
        let publish = Publish {
            qos,
            retain,
            properties,
            ..self.request(body.bytes)
        };
        self.publish(&publish).await
    }

    /// Many small requests that are refused, without waiting.
    async fn flood(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        for n in 0..self.chance.size(20..200) {
            let body = self
                .chance
                .pick(&["{", "{\"id\":\"f\"}", "\u{fffd}", "{\"prompt\":7}", ""]);
            let mut publish = self.request(body.as_bytes().to_vec());
            publish.qos = 0;
            bytes.extend(publish.packet(u16::try_from(n + 1).unwrap_or(1)));
        }
        self.line().await?.send(&bytes).await
    }

    async fn cancel(&mut self) -> Result<()> {
        let of = self.chance.pick(&["honest", "h1", "", "a/b"]);
        let id = format!("x{}", self.chance.below(50));
        let publish = Publish {
            topic: format!("{BASE}/cancel/{of}"),
            payload: format!("{{\"id\":\"{id}\"}}").into_bytes(),
            qos: 1,
            ..Publish::default()
        };
        self.publish(&publish).await
    }

    /// Subscribes to much, and does not read.
    async fn listen_slowly(&mut self) -> Result<()> {
        let mut deaf = RawClient::connect(self.port, &self.introduction()).await?;
        let filter = self
            .chance
            .pick(&["flood/#", "$share/thieves/plant/#", "phi-edge/v1/+/response/#"]);
        deaf.subscribe(filter).await?;
        let time = self.chance.time(DEAF_TIME);
        tokio::time::sleep(time).await;
        Ok(())
    }

    /// Connections that are made and dropped, some of the same name.
    async fn storm(&mut self) -> Result<()> {
        let mut lines = Vec::new();
        for _ in 0..self.chance.size(2..12) {
            lines.push(RawClient::connect(self.port, &self.introduction()).await?);
        }
        Ok(())
    }

    /// A connection that ends without a word, so that the broker publishes a request in its name.
    async fn leave_a_will(&mut self) -> Result<()> {
        // An id of its own: once the outcome of a reused one is forgotten, it is a new request with another outcome.
        let id = format!("will-{}", self.id());
        let mut introduction = self.introduction();
        introduction.will = Some(Will {
            topic: format!("{BASE}/request/{}", self.name),
            payload: payloads::request(&mut self.chance, &id, 2048).bytes,
        });
        RawClient::connect(self.port, &introduction).await?;
        Ok(())
    }

    async fn ask_the_same_differently(&mut self) -> Result<()> {
        let body = format!(
            "{{\"id\":\"{REUSED}\",\"prompt\":\"{}\",\"max_tokens\":2}}",
            self.chance.below(5)
        );
        let publish = self.request(body.into_bytes());
        self.publish(&publish).await
    }

    /// Large messages that no rule takes.
    async fn shout(&mut self) -> Result<()> {
        let publish = Publish {
            topic: format!("flood/{}", self.chance.below(5)),
            payload: vec![b'x'; self.chance.size(1..self.force.largest)],
            ..Publish::default()
        };
        self.publish(&publish).await
    }

    /// Bytes that are no MQTT; few of them, since they only reach the broker.
    async fn break_the_protocol(&mut self) -> Result<()> {
        let size = self.chance.size(1..64);
        let mut bytes = self.chance.bytes(size);
        if self.chance.once_in(2) {
            bytes = packet(0x30 | bytes[0] & 0x0f, &bytes);
        }
        let mut line = RawClient::connect(self.port, &self.introduction()).await?;
        line.send(&bytes).await
    }

    fn id(&mut self) -> String {
        self.asked += 1;
        format!("a{}", self.asked)
    }

    fn request(&self, payload: Vec<u8>) -> Publish {
        Publish {
            topic: format!("{BASE}/request/{}", self.name),
            payload,
            qos: 1,
            ..Publish::default()
        }
    }

    fn introduction(&mut self) -> Connect {
        let chance = &mut self.chance;
        Connect {
            client_id: format!("{}-{}", self.name, chance.below(40)),
            clean: !chance.once_in(4),
            // Sessions that stay are few seconds old, or the broker would drown in them.
            session_expiry: u32::try_from(chance.below(5)).unwrap_or(0),
            receive_maximum: chance.once_in(3).then_some(1),
            ..Connect::default()
        }
    }

    async fn publish(&mut self, publish: &Publish) -> Result<()> {
        self.line().await?.publish(publish).await
    }

    /// The connection that is used again.
    async fn line(&mut self) -> Result<&mut RawClient> {
        if self.line.is_none() {
            let mut introduction = self.introduction();
            introduction.client_id = format!("{}-line", self.name);
            self.line = Some(RawClient::connect(self.port, &introduction).await?);
        }
        self.line
            .as_mut()
            .ok_or_else(|| anyhow::anyhow!("there is a connection"))
    }
}

/// The rules of a node under attack: one whose messages are counted, and some that do much with what devices say.
pub fn rules() -> Vec<(&'static str, String)> {
    let wild = "fields = { v = \"/v\", note = \"/note\" }\nfacts_only = true\n";
    vec![
        (
            COUNTED,
            "topics = [\"plant/+/reading\"]\ngroup_by = \"topic:1\"\nfields = { v = \"/v\" }\nfacts_only = true\n\
             window = { kind = \"tumbling\", every = \"2s\" }\n"
                .to_owned(),
        ),
        (
            "groups",
            format!(
                "topics = [\"plant/#\"]\ngroup_by = \"field:/dev\"\ndedupe = \"field:/k\"\n{wild}\
                 output = {{ topic = \"out/{{group}}\", expiry = \"2s\" }}\n\
                 window = {{ kind = \"count\", messages = 20, max_age = \"3s\", max_groups = 100 }}\n"
            ),
        ),
        (
            "hops",
            format!(
                "topics = [\"plant/line-1/+\"]\n{wild}window = {{ kind = \"hopping\", every = \"1s\", length = \"20s\" }}\n"
            ),
        ),
        (
            "words",
            "topics = [\"plant/line-2/+\"]\nfields = { v = \"/v\" }\nmax_tokens = 4\nmax_parts = 1\n\
             prompt = \"Summarise: {% for m in messages %}{{ m.payload }}{% endfor %}\"\n\
             window = { kind = \"tumbling\", every = \"5s\" }\n"
                .to_owned(),
        ),
    ]
}
