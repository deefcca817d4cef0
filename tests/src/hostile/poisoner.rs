//! Sends what poisons: requests whose replies, and messages whose events, end the connection that they are published by.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::payloads::non_character;
use super::raw::RawClient;
use super::wire::{Connect, Property, Publish};
use crate::chance::Chance;
use crate::daemon::BASE;

/// How much of each.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) messages: u64,
    pub(super) poisons: u64,
}

/// What a run has sent.
#[derive(Default)]
pub(super) struct Sent {
    /// Ids of poisoned requests that the broker has taken.
    pub(super) requests: BTreeSet<String>,
    /// Numbers of good messages.
    pub(super) good: BTreeSet<u64>,
    /// Numbers of poisoned ones.
    pub(super) poisoned: BTreeSet<u64>,
}

/// Mallory, and the devices.
pub(super) struct Poisoner {
    pub(super) port: u16,
    pub(super) marker: String,
    pub(super) chance: Chance,
    pub(super) counts: Counts,
}

impl Poisoner {
    /// Sends all messages of devices, good ones and poisons, and the poisoned requests between them.
    pub(super) async fn run(mut self, deadline: Instant) -> Result<Sent> {
        let mut mallory = self.log_in("mallory").await?;
        let mut plant = self.log_in("plant").await?;
        let mut sent = Sent::default();
        // Half of the poisons are requests, half are messages.
        let (messages, requests) = (self.places(), self.places());
        for number in 0..self.counts.messages {
            if Instant::now() > deadline {
                break;
            }
            let poisons = messages.contains(&number);
            let publish = self.message(number, poisons);
            if plant.publish(&publish).await.is_ok() {
                let numbers = if poisons {
                    &mut sent.poisoned
                } else {
                    &mut sent.good
                };
                numbers.insert(number);
            } else {
                plant = self.log_in("plant").await?;
            }
            if requests.contains(&number) {
                let (id, publish) = self.request(number);
                if mallory.publish(&publish).await.is_ok() {
                    sent.requests.insert(id);
                } else {
                    // mosquitto does not take it either: it never reaches the node.
                    mallory = self.log_in("mallory").await?;
                }
            }
            let pause = self.chance.time(Duration::ZERO..Duration::from_millis(20));
            tokio::time::sleep(pause).await;
        }
        Ok(sent)
    }

    /// Behind which messages half of the poisons stand.
    fn places(&mut self) -> BTreeSet<u64> {
        let mut places = BTreeSet::new();
        while (places.len() as u64) < (self.counts.poisons / 2).min(self.counts.messages) {
            places.insert(self.chance.below(self.counts.messages));
        }
        places
    }

    async fn log_in(&mut self, user: &str) -> Result<RawClient> {
        let connect = Connect {
            client_id: format!("{user}-{}", self.chance.number()),
            credentials: Some((user.to_owned(), user.to_owned())),
            clean: true,
            ..Connect::default()
        };
        RawClient::connect(self.port, &connect).await
    }

    fn message(&mut self, number: u64, poisons: bool) -> Publish {
        let mut topic = format!("plant/line-{}/reading", number % 7);
        let mut text = format!("reading {number}");
        let mut dev = format!("device-{}", number % 20);
        if poisons {
            match self.chance.below(7) {
                0 | 1 => dev = format!("dev{}{}", non_character(&mut self.chance), self.chance.below(9)),
                2 => dev = "x".repeat(self.chance.size(65_000..70_000)),
                3 => {
                    topic = format!("plant/line-{}/shadow", number % 7);
                    let name = self
                        .chance
                        .pick(&["status", "stats", "dead-letter", "request", "cancel"]);
                    name.clone_into(&mut dev);
                }
                4 => dev = format!("{}-{number}", self.marker),
                5 => text = format!("text {} {number}", self.marker),
                _ => dev = format!("{}{}", "ü".repeat(self.chance.size(32_000..34_000)), number),
            }
        }
        Publish {
            topic,
            payload: json!({"dev": dev, "n": number, "text": text})
                .to_string()
                .into_bytes(),
            qos: 1,
            ..Publish::default()
        }
    }

    /// A request whose reply is a poison, and its id.
    fn request(&mut self, number: u64) -> (String, Publish) {
        let own = format!("{BASE}/response/mallory/");
        let chance = &mut self.chance;
        let mut id = format!("p{number}");
        let mut properties = Vec::new();
        match chance.below(7) {
            0 => properties.push(Property::ResponseTopic(own + &"a/".repeat(chance.size(200..400)))),
            1 => properties.push(Property::ResponseTopic(
                own + &"/".repeat(chance.size(250..60_000)),
            )),
            2 => properties.push(Property::ResponseTopic(
                own + &"deep/".repeat(chance.size(190..205)) + &"x".repeat(chance.size(1..60_000)),
            )),
            3 => properties.push(Property::ResponseTopic(format!("{own}{}/x", self.marker))),
            4 => properties.push(Property::Correlation(format!("a{}b", self.marker).into_bytes())),
            5 => {
                let size = chance.size(1..65_000);
                let mut data = chance.bytes(size);
                data.extend(self.marker.as_bytes());
                properties.push(Property::Correlation(data));
            }
            _ => id = format!("p{number}-{}", self.marker),
        }
        let body = json!({
            "id": id,
            "prompt": "Summarise: door 2 open.",
            "max_tokens": 2,
            "stream": chance.once_in(2),
        });
        let publish = Publish {
            topic: format!("{BASE}/request/mallory"),
            payload: body.to_string().into_bytes(),
            qos: 1,
            properties,
            ..Publish::default()
        };
        (id, publish)
    }
}
