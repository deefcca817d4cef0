//! Inbox and outbox over a service whose engine does nothing and a broker that answers nothing.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_service::{
    DeadLetter, Detokenizer, EngineCommand, EngineHandle, EngineInfo, Message, Prompts, Reply, ReplyBody,
    ReplyTarget, Service, ServiceConfig, Symbol, TokenId,
};
use phi_edge_wire::{State, Status};
use rumqttc::{AsyncClient, EventLoop, MqttOptions, Publish, PublishProperties, QoS};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::counters::Counters;
use super::epoch_gate::EpochGate;
use super::inbox::{Inbox, RuleInputs};
use super::outbox::{Outbox, OutboxInputs};
use super::poller::IncomingPublish;
use super::routing::Routing;
use super::{BrokerLimits, ConnectionEvent, Link, LinkConfig, LinkInputs, RequestLimits};
use crate::client::{Client, ClientOptions};
use crate::embedded::{EmbeddedBroker, EmbeddedBrokerConfig};
use crate::rule_topics::RuleTopics;
use crate::topics::Topics;

/// Longer than any wait on purpose; time is paused.
const TEST_TIMEOUT: Duration = Duration::from_mins(1);
const BASE_TOPIC: &str = "phi-edge/v1/box";
const POOL_BASE_TOPIC: &str = "phi-edge/v1/pool";

struct ByteTokens;

impl Prompts for ByteTokens {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        let text = messages.iter().flat_map(|message| message.content.bytes());
        Ok(Symbol::of_tokens(text.map(|byte| TokenId(byte.into()))))
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        self.encode(messages)
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        Box::new(Self)
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        Vec::new()
    }
}

impl Detokenizer for ByteTokens {
    fn push(&mut self, _: TokenId) -> String {
        String::new()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

/// Inbox and outbox with the other ends of their channels.
struct Harness {
    received: mpsc::UnboundedSender<IncomingPublish>,
    /// The service's replies, before they go to `outgoing`.
    replies: mpsc::Receiver<Reply>,
    outgoing: mpsc::Sender<Reply>,
    connection_events: mpsc::UnboundedSender<ConnectionEvent>,
    gate: Arc<EpochGate>,
    /// The other ends, which are kept open.
    _open: (EventLoop, Box<dyn std::any::Any>),
}

/// Returns the service, the other end of its engine, and its replies.
fn service() -> (Service, mpsc::Receiver<EngineCommand>, mpsc::Receiver<Reply>) {
    let (commands, engine) = mpsc::channel(16);
    let (replies_tx, replies) = mpsc::channel(64);
    let info = EngineInfo {
        memory: None,
        context_length: 1000,
        slots: 1,
    };
    #[expect(
        clippy::default_trait_access,
        reason = "the engine's types are not for this crate to name"
    )]
    let engine_handle = EngineHandle::from_parts(commands, Default::default(), info);
    let service = Service::start(
        ServiceConfig::default(),
        engine_handle,
        Arc::new(ByteTokens),
        replies_tx,
    );
    (service, engine, replies)
}

pub(super) fn config(port: u16) -> LinkConfig {
    LinkConfig {
        host: "127.0.0.1".into(),
        port,
        client_id: "box".into(),
        credentials: None,
        tls: None,
        keep_alive: Duration::from_secs(30),
        session_expiry: Duration::from_mins(1),
        max_packet: 1 << 20,
        topics: Topics::new(BASE_TOPIC, vec![format!("{BASE_TOPIC}/response/#")])
            .in_pool(POOL_BASE_TOPIC, "plant"),
        node: "box".into(),
    }
}

const LIMITS: RequestLimits = RequestLimits {
    max_payload: 1 << 20,
    max_tokens: 64,
    images: 2,
};

impl Harness {
    fn new() -> Self {
        let (service, engine, replies) = service();
        let (client, events) = AsyncClient::builder(MqttOptions::new("box", "localhost"))
            .unbounded()
            .build();
        let gate = Arc::new(EpochGate::new(client.clone()));
        let config = config(1883);
        let (service_tx, service) = watch::channel(Some(service));
        let (status_tx, status) = watch::channel(Status::new(State::Ready, "boot"));
        let (stats_tx, stats) = watch::channel(Value::Null);
        let (open_tx, open) = watch::channel(false);
        let (rules_tx, rules) = watch::channel(RuleTopics::default());
        let (limits_tx, limits) = watch::channel(LIMITS);
        let (closing_tx, closing) = mpsc::channel(1);
        let counters = Arc::new(Counters::default());
        let routing = Arc::new(Routing::new());
        let inbox = Inbox::new(
            &config,
            service.clone(),
            RuleInputs {
                topics: rules.clone(),
                routing: Arc::clone(&routing),
            },
            limits,
            Arc::clone(&gate),
            Arc::clone(&counters),
            "boot",
        );
        let watched = OutboxInputs {
            service,
            status,
            stats,
            open,
            rules,
            routing,
        };
        let outbox = Outbox::new(client, Arc::clone(&gate), config, watched, counters);
        let (received, taken) = mpsc::unbounded_channel();
        let (connection_events, connection_event_rx) = mpsc::unbounded_channel();
        let (outgoing, sent) = mpsc::channel(64);
        tokio::spawn(inbox.run(taken));
        tokio::spawn(outbox.run(sent, connection_event_rx, closing));
        let senders = (
            engine, service_tx, status_tx, stats_tx, open_tx, rules_tx, limits_tx, closing_tx,
        );
        Self {
            received,
            replies,
            outgoing,
            connection_events,
            gate,
            _open: (events, Box::new(senders)),
        }
    }

    /// A message arrives.
    fn arrives(&self, topic: &str, response_topic: Option<&str>, payload: impl Into<Vec<u8>>) {
        let properties = PublishProperties {
            response_topic: response_topic.map(str::to_owned),
            ..PublishProperties::default()
        };
        let publish = Publish::new(topic, QoS::AtLeastOnce, payload.into(), Some(properties));
        let epoch = self.gate.epoch();
        let arrived = Instant::now();
        let received = IncomingPublish {
            epoch,
            publish,
            arrived,
        };
        self.received.send(received).expect("an inbox");
    }

    /// The broker is there, with these bounds.
    fn connected(&self, max_packet: usize, retain: bool) {
        let limits = BrokerLimits {
            max_packet,
            receive_maximum: 64,
            subscription_ids: true,
            retain,
            session_present: false,
        };
        let note = ConnectionEvent::Up(limits, self.gate.epoch());
        self.connection_events.send(note).expect("an outbox");
    }

    /// Returns the service's next reply.
    async fn reply(&mut self) -> Reply {
        let reply = timeout(TEST_TIMEOUT, self.replies.recv()).await;
        reply.expect("in time").expect("a reply")
    }

    async fn letter(&mut self) -> DeadLetter {
        match self.reply().await.body {
            ReplyBody::DeadLetter(letter) => letter,
            other => panic!("no dead letter: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_level_that_names_no_client_is_refused() {
    let mut harness = Harness::new();
    for client in [String::new(), "c".repeat(65_000)] {
        let topic = format!("{BASE_TOPIC}/request/{client}");
        harness.arrives(&topic, None, r#"{"id":"a","prompt":"x"}"#);
        let letter = harness.letter().await;
        assert_eq!(letter.reason, "bad_request");
        assert_eq!(letter.topic, topic);
        // A request with a response topic gets an answer.
        let answer = format!("{BASE_TOPIC}/response/{client}/a");
        harness.arrives(&topic, Some(&answer), r#"{"id":"a","prompt":"x"}"#);
        let reply = harness.reply().await;
        assert_eq!(reply.address.topic(), Some(answer.as_str()));
        assert!(matches!(reply.body, ReplyBody::Error(_)), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_can_not_be_published_on_is_a_dead_letter() {
    let mut harness = Harness::new();
    harness.connected(usize::MAX, true);
    harness.arrives(&format!("{BASE_TOPIC}/request"), None, r#"{"id":"a"}"#);
    let mut reply = harness.reply().await;
    assert!(matches!(reply.body, ReplyBody::Error(_)), "{reply:?}");
    reply.address.target = ReplyTarget::Topic("t".repeat(70_000));
    harness.outgoing.send(reply.clone()).await.expect("an outbox");
    let letter = harness.letter().await;
    assert_eq!(letter.reason, "undeliverable");
    // Facts only: what can't be published is in no letter either.
    assert_eq!((letter.topic.as_str(), letter.payload.len()), ("", 0));
    assert!(letter.message.contains("70000 bytes"), "{}", letter.message);
}

#[tokio::test(start_paused = true)]
async fn a_response_topic_that_no_broker_takes_is_refused_at_the_door() {
    let mut harness = Harness::new();
    let below = format!("{BASE_TOPIC}/response/c");
    for bad in [
        format!("{below}/{}", "a/".repeat(300)),
        format!("{below}/\u{ffff}"),
        format!("{below}/\u{fdd0}"),
        format!("{below}/\u{1}"),
        format!("{below}/\u{85}"),
    ] {
        let topic = format!("{BASE_TOPIC}/request/c");
        harness.arrives(&topic, Some(&bad), r#"{"id":"a","prompt":"x"}"#);
        // The operator is told of a sender that waits in vain.
        let letter = harness.letter().await;
        assert_eq!(letter.reason, "bad_request");
        assert!(
            letter.message.chars().all(|c| c.is_ascii_graphic() || c == ' '),
            "{}",
            letter.message
        );
        let reply = harness.reply().await;
        assert_eq!(reply.address.topic(), Some(format!("{below}/a").as_str()));
        let ReplyBody::Error(refusal) = reply.body else {
            panic!("no refusal");
        };
        assert!(
            refusal.message.contains("can't be published on"),
            "{}",
            refusal.message
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_for_the_broker_is_a_dead_letter() {
    let mut harness = Harness::new();
    // Nor would the error that says so fit.
    harness.connected(60, true);
    harness.arrives(&format!("{BASE_TOPIC}/request"), None, r#"{"id":"a"}"#);
    let reply = harness.reply().await;
    assert!(matches!(reply.body, ReplyBody::Error(_)), "{reply:?}");
    harness.outgoing.send(reply.clone()).await.expect("an outbox");
    let letter = harness.letter().await;
    assert_eq!(Some(letter.topic.as_str()), reply.address.topic());
    assert!(
        letter.message.contains("the broker takes 60"),
        "{}",
        letter.message
    );
}

/// The next error of `replies`: the id of the request that it is about.
async fn refused(replies: &mut mpsc::Receiver<Reply>, limit: Duration) -> Option<String> {
    timeout(limit, replies.recv())
        .await
        .ok()?
        .map(|reply| reply.key.id)
}

/// An embedded broker on a free port, that lets all clients in.
pub(super) async fn embedded_broker() -> EmbeddedBroker {
    EmbeddedBroker::start(EmbeddedBrokerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        password_file: None,
        acl_file: None,
        storage: None,
        max_packet: 1 << 20,
    })
    .await
    .expect("a broker")
}

#[tokio::test]
async fn what_left_its_pool_is_given_nothing_more_of_it() {
    let broker = embedded_broker().await;
    let port = broker.address().port();
    let (service, _engine, mut replies) = service();
    let (_service, service) = watch::channel(Some(service));
    let (_status, status) = watch::channel(Status::new(State::Ready, "boot"));
    let (_stats, stats) = watch::channel(Value::Null);
    let (open_tx, open) = watch::channel(true);
    let (_rules, rules) = watch::channel(RuleTopics::default());
    let (_limits, limits) = watch::channel(LIMITS);
    let (_outgoing, outgoing) = mpsc::channel(64);
    let inputs = LinkInputs {
        service,
        replies: outgoing,
        status,
        stats,
        open,
        rules,
        limits,
    };
    let link = Link::start(config(port), inputs).expect("a link");
    let mut client = Client::connect(ClientOptions {
        host: "127.0.0.1".into(),
        port,
        client_id: "client".into(),
        credentials: None,
        tls: None,
        session: None,
    })
    .await
    .expect("a client");
    let pool = format!("{POOL_BASE_TOPIC}/plant/request");
    // Until the node is a member.
    let mut asked = 0;
    loop {
        let body = format!(r#"{{"id":"member-{asked}"}}"#);
        client.publish(&pool, body, None).await.expect("a broker");
        asked += 1;
        if refused(&mut replies, Duration::from_millis(200)).await.is_some() {
            break;
        }
    }
    open_tx.send_replace(false);
    link.left_pool(TEST_TIMEOUT).await;
    for (topic, id) in [(&pool, "late"), (&format!("{BASE_TOPIC}/request"), "own")] {
        let body = format!(r#"{{"id":"{id}"}}"#);
        client
            .publish(topic.as_str(), body, None)
            .await
            .expect("a broker");
    }
    loop {
        match refused(&mut replies, TEST_TIMEOUT).await.as_deref() {
            Some("own") => break,
            Some(id) => assert!(id.starts_with("member-"), "{id}"),
            None => panic!("nothing comes any more"),
        }
    }
}
