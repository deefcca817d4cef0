//! Requests in: read, refused or handed to the service, then acknowledged, in order of arrival.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use phi_edge_service::{
    ErrorCode, JobKey, NewJob, Refusal, Reply, ReplyAddress, ReplyBody, Sampling, Service,
};
use rumqttc::{Publish, QoS};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::counters::{Counters, count};
use super::gate::Gate;
use super::poller::Received;
use super::{LinkConfig, RECEIVE_MAXIMUM, RequestLimits};
use crate::topics::{Inbound, Topics};
use crate::wire::{self, Parsed, Payload, parse_cancel, parse_request};

/// What the inbox itself has to say to the world.
#[derive(Debug)]
pub(crate) enum OwnMessage {
    Refusal(Reply),
    DeadLetter(Vec<u8>),
}

pub(crate) struct Inbox {
    topics: Topics,
    node: String,
    limits: RequestLimits,
    service: watch::Receiver<Option<Service>>,
    gate: Arc<Gate>,
    out: mpsc::Sender<OwnMessage>,
    counters: Arc<Counters>,
    names: Names,
}

/// A request as far as MQTT tells.
struct Request<'a> {
    client: Option<&'a str>,
    publish: &'a Publish,
    topic: &'a str,
    response_topic: Option<&'a str>,
    correlation: Option<Vec<u8>>,
}

impl Inbox {
    pub(crate) fn new(
        config: &LinkConfig,
        service: watch::Receiver<Option<Service>>,
        gate: Arc<Gate>,
        out: mpsc::Sender<OwnMessage>,
        counters: Arc<Counters>,
        boot_id: &str,
    ) -> Self {
        Self {
            topics: config.topics.clone(),
            node: config.node.clone(),
            limits: config.limits,
            service,
            gate,
            out,
            counters,
            names: Names::new(boot_id),
        }
    }

    pub(crate) async fn run(mut self, mut received: mpsc::UnboundedReceiver<Received>) {
        while let Some(Received { epoch, publish }) = received.recv().await {
            if publish.qos == QoS::AtMostOnce {
                self.counters.qos0_waiting.fetch_sub(1, Ordering::Relaxed);
            }
            // While the model loads, requests wait here and, beyond the receive maximum, in the broker.
            let service = match self.service.wait_for(Option::is_some).await {
                Ok(service) => service.clone(),
                Err(_) => return,
            };
            let Some(service) = service else { return };
            self.handle(&publish, &service).await;
            self.gate.acknowledge(epoch, &publish);
        }
    }

    async fn handle(&mut self, publish: &Publish, service: &Service) {
        let topics = self.topics.clone();
        let inbound = std::str::from_utf8(&publish.topic)
            .ok()
            .and_then(|topic| Some((topic, topics.inbound(topic)?)));
        match inbound {
            Some((topic, Inbound::Request(client))) => {
                let properties = publish.properties.as_ref();
                let request = Request {
                    client,
                    publish,
                    topic,
                    response_topic: properties.and_then(|p| p.response_topic.as_deref()),
                    correlation: properties
                        .and_then(|p| p.correlation_data.as_ref())
                        .map(|data| data.to_vec()),
                };
                self.request(&request, service).await;
            }
            Some((_, Inbound::Cancel(client))) => self.cancel(client, publish, service),
            None => tracing::debug!("a message on a topic that is not ours is ignored"),
        }
    }

    fn cancel(&self, client: Option<&str>, publish: &Publish, service: &Service) {
        if publish.retain || publish.payload.is_empty() {
            count(&self.counters.ignored);
            return;
        }
        match parse_cancel(&publish.payload) {
            Ok(id) => {
                let key = JobKey {
                    client: client.map(str::to_owned),
                    id,
                };
                service.cancel(&key);
            }
            Err(error) => {
                count(&self.counters.unanswerable);
                tracing::warn!(error, "a cancellation can't be read");
            }
        }
    }

    async fn request(&mut self, request: &Request<'_>, service: &Service) {
        let publish = request.publish;
        if publish.payload.is_empty() {
            // Also how retained messages are cleared.
            count(&self.counters.ignored);
            tracing::debug!("an empty request is ignored");
            return;
        }
        if publish.payload.len() > self.limits.max_payload {
            let message = format!(
                "the request has {} bytes, limits.max_payload is {}",
                publish.payload.len(),
                self.limits.max_payload
            );
            return self.refuse(request, None, ErrorCode::TooLarge, message).await;
        }
        let payload = Payload {
            bytes: &publish.payload,
            content_type: publish
                .properties
                .as_ref()
                .and_then(|p| p.content_type.as_deref()),
        };
        let parsed = match parse_request(payload, self.limits.max_tokens) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return,
            Err(rejected) => {
                return self
                    .refuse(request, rejected.id, rejected.code, rejected.message)
                    .await;
            }
        };
        if publish.retain {
            let message = "retained requests are refused: they would be asked again at every start";
            return self
                .refuse(request, parsed.id, ErrorCode::BadRequest, message.into())
                .await;
        }
        if let Some(topic) = request.response_topic
            && let Err(error) = self.topics.check_response(topic, request.client)
        {
            return self
                .refuse(request, parsed.id, ErrorCode::BadRequest, error.to_string())
                .await;
        }
        let digest: [u8; 32] = Sha256::digest(&publish.payload).into();
        let id = match parsed.id.clone() {
            Some(id) => id,
            None => self.names.of(publish, digest),
        };
        let job = self.job(request, parsed, id, digest);
        let (key, reply) = (job.key.clone(), job.reply.clone());
        let taken = if publish.dup {
            service.submit_redelivered(job).await
        } else {
            service.submit(job).await
        };
        if let Err(refusal) = taken {
            count(&self.counters.refused);
            self.send(OwnMessage::Refusal(Reply {
                key,
                address: reply,
                body: ReplyBody::Error(refusal),
            }))
            .await;
        }
    }

    fn job(&mut self, request: &Request<'_>, parsed: Parsed, id: String, body_digest: [u8; 32]) -> NewJob {
        let expiry = request
            .publish
            .properties
            .as_ref()
            .and_then(|p| p.message_expiry_interval);
        let expiry = expiry.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let deadline = match (parsed.deadline, expiry) {
            (Some(asked), Some(expiry)) => Some(asked.min(expiry)),
            (asked, expiry) => asked.or(expiry),
        };
        let seed = if parsed.seeded {
            parsed.sampling.seed
        } else {
            self.names.seed()
        };
        NewJob {
            reply: self.address(request, &id),
            key: JobKey {
                client: request.client.map(str::to_owned),
                id,
            },
            body_digest,
            messages: parsed.messages,
            max_tokens: parsed.max_tokens,
            sampling: Sampling {
                seed,
                ..parsed.sampling
            },
            stop: parsed.stop,
            stream: parsed.stream,
            priority: parsed.priority,
            deadline,
            session: parsed.session,
        }
    }

    /// The response topic of the request where it may be used, else our own.
    fn address(&self, request: &Request<'_>, id: &str) -> ReplyAddress {
        let topic = request
            .response_topic
            .filter(|topic| self.topics.check_response(topic, request.client).is_ok())
            .map_or_else(|| self.topics.response(request.client, id), str::to_owned);
        ReplyAddress {
            topic,
            correlation: request.correlation.clone(),
        }
    }

    /// Tells the sender if there is a way to, and the dead-letter topic if there is none.
    async fn refuse(&mut self, request: &Request<'_>, id: Option<String>, code: ErrorCode, message: String) {
        count(&self.counters.refused);
        let usable = request
            .response_topic
            .is_some_and(|topic| self.topics.check_response(topic, request.client).is_ok());
        tracing::info!(
            topic = request.topic,
            job.id = id,
            code = code.as_str(),
            error = message,
            "request refused"
        );
        // A sender that named a topic which it may not use waits there: somebody should know.
        let misdirected = request.response_topic.is_some() && !usable;
        if misdirected || (id.is_none() && !usable) {
            let letter = wire::dead_letter(
                code.as_str(),
                &message,
                request.topic,
                id.as_deref(),
                &self.node,
                &request.publish.payload,
            );
            self.send(OwnMessage::DeadLetter(letter)).await;
        }
        if id.is_none() && !usable {
            count(&self.counters.unanswerable);
            return;
        }
        let id = id.unwrap_or_else(|| self.names.next());
        let refusal = Refusal {
            reply_id: self.names.next(),
            code,
            message,
            retry_after: None,
        };
        self.send(OwnMessage::Refusal(Reply {
            address: self.address(request, &id),
            key: JobKey {
                client: request.client.map(str::to_owned),
                id,
            },
            body: ReplyBody::Error(refusal),
        }))
        .await;
    }

    async fn send(&self, message: OwnMessage) {
        // An error: the link closes.
        let _ = self.out.send(message).await;
    }
}

/// Names for what came without one, and seeds.
struct Names {
    boot: String,
    next: u64,
    /// Names given to messages that the broker might deliver again.
    given: VecDeque<(u16, [u8; 32], String)>,
}

impl Names {
    fn new(boot_id: &str) -> Self {
        Self {
            boot: boot_id.to_owned(),
            next: 0,
            given: VecDeque::new(),
        }
    }

    fn next(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.boot, self.next)
    }

    /// The name of a request without an id: the same again if the broker delivers it again.
    fn of(&mut self, publish: &Publish, digest: [u8; 32]) -> String {
        if publish.dup
            && let Some((_, _, name)) = self
                .given
                .iter()
                .find(|(p, d, _)| *p == publish.pkid && *d == digest)
        {
            return name.clone();
        }
        let name = self.next();
        if publish.qos != QoS::AtMostOnce {
            if self.given.len() >= usize::from(RECEIVE_MAXIMUM) {
                self.given.pop_front();
            }
            // The newest first to be found: packet ids come round again.
            self.given.retain(|(pkid, _, _)| *pkid != publish.pkid);
            self.given.push_back((publish.pkid, digest, name.clone()));
        }
        name
    }

    /// A seed for who gave none: sampling twice should give two texts.
    fn seed(&mut self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(self.next)
    }
}
