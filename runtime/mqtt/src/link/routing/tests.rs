//! A node and a broker that lose connections, processes and sessions while the topics of rules change.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use proptest::prelude::*;
use rumqttc::{Publish, PublishProperties, QoS};

use super::order::{Action, Order};
use super::{FENCE_PROPERTY, Routing};
use crate::rule_topics::RuleTopics;
use crate::topics::filter_matches;

/// The filters that a rule may have: all match `TOPIC`.
const COMMON_FILTERS: [&[&str]; 6] = [
    &["a/b"],
    &["a/+"],
    &["#"],
    &["a/b", "a/+"],
    &["+/b", "#"],
    &["a/#", "+/b", "a/b"],
];
/// The filters that another rule may have beside it.
const OTHER_FILTERS: [&[&str]; 4] = [&[], &["a/b"], &["a/+", "c"], &["c", "+/+"]];
const TOPIC: &str = "a/b";

#[derive(Debug, Clone)]
enum Step {
    Publish,
    /// The rules have other topics.
    Reload(usize, usize),
    /// The broker looks at so many packets.
    Broker(usize),
    /// The node looks at so many packets.
    Node(usize),
    /// The node's decisions are on the disk.
    Flush,
    /// Acknowledgements go out.
    Acknowledge,
    /// The connection dies; the broker has looked at so many more packets.
    Disconnect(usize),
    /// The process dies, with what it had not flushed.
    Crash(usize),
    /// The broker loses the session with the connection.
    Forget,
    /// The broker refuses a filter from now on, or no more.
    Deny(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let few = 1..4_usize;
    let step = prop_oneof![
        12 => Just(Step::Publish),
        3 => (0..COMMON_FILTERS.len(), 0..OTHER_FILTERS.len()).prop_map(|(a, b)| Step::Reload(a, b)),
        8 => few.clone().prop_map(Step::Broker),
        12 => few.clone().prop_map(Step::Node),
        4 => Just(Step::Flush),
        4 => Just(Step::Acknowledge),
        1 => few.clone().prop_map(Step::Disconnect),
        1 => few.prop_map(Step::Crash),
        1 => any::<bool>().prop_map(Step::Deny),
    ];
    let forget = prop_oneof![60 => step, 1 => Just(Step::Forget)];
    proptest::collection::vec(forget, 1..200)
}

#[derive(Debug, Clone)]
enum ToBroker {
    Subscribe(String, usize),
    Unsubscribe(String),
    Fence(u64),
    Acknowledge(u64),
}

#[derive(Debug, Clone)]
enum ToNode {
    Subscribed(String, bool),
    Unsubscribed(String),
    Delivery(Delivery, bool),
}

#[derive(Debug, Clone)]
struct Delivery {
    /// In place of packet id and digest.
    number: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Copy(u64, Vec<usize>),
    Fence(u64),
}

/// The stored decisions of a process, in their order.
#[derive(Debug, Clone)]
enum Entry {
    Receipt(u64, Option<u64>),
    Note(String),
}

#[derive(Default)]
struct World {
    /// The broker sends a copy for each subscription, or one that names all.
    copies: bool,
    subscriptions: BTreeMap<String, usize>,
    denied: bool,
    unacknowledged: Vec<Delivery>,
    deliveries: u64,
    to_broker: VecDeque<ToBroker>,
    to_node: VecDeque<ToNode>,

    order: Order,
    topics: RuleTopics,
    kept: String,
    log: Vec<Entry>,
    durable: usize,
    /// Deliveries that may be acknowledged once so much of the log is durable.
    done: VecDeque<(u64, usize)>,
    /// The list is to be on the disk before what is former is left.
    noting: Option<usize>,
    file: BTreeSet<String>,

    messages: u64,
    /// Messages that may have been missed, since the session was lost.
    unsure: HashSet<u64>,
    unsettled: bool,
    forgotten: bool,
}

fn topics(always: usize, beside: usize) -> RuleTopics {
    let owned = |topics: &[&str]| topics.iter().map(|&topic| topic.to_owned()).collect::<Vec<_>>();
    let (always, beside) = (owned(COMMON_FILTERS[always]), owned(OTHER_FILTERS[beside]));
    RuleTopics::new([("r", &always[..]), ("s", &beside[..])])
}

impl World {
    fn new(copies: bool) -> Self {
        let mut world = Self {
            copies,
            unsettled: true,
            ..Self::default()
        };
        world.topics = topics(0, 0);
        world.begin();
        world.connect(false);
        world
    }

    /// A process begins.
    fn begin(&mut self) {
        self.order = Order::default();
        let wanted: BTreeSet<String> = self.topics.filters().map(str::to_owned).collect();
        let former: Vec<String> = self.file.difference(&wanted).cloned().collect();
        self.order.remember(former);
        self.file.extend(wanted);
        self.order.want(&self.topics);
    }

    fn connect(&mut self, session_present: bool) {
        self.to_broker.clear();
        self.to_node.clear();
        self.order.connected(session_present);
        // The broker is asked before the store can be read.
        self.advance();
        let again = self.unacknowledged.iter().cloned();
        self.to_node = again.map(|delivery| ToNode::Delivery(delivery, true)).collect();
    }

    fn restore(&mut self) {
        let note = self.log.iter().rev().find_map(|entry| match entry {
            Entry::Note(note) => Some(note.clone()),
            Entry::Receipt(..) => None,
        });
        self.order.restore(note.as_deref());
        self.kept = note.unwrap_or_default();
        self.keep();
        self.advance();
    }

    fn keep(&mut self) {
        let note = self.order.note();
        if note != self.kept {
            self.kept.clone_from(&note);
            self.log.push(Entry::Note(note));
        }
    }

    fn advance(&mut self) {
        for action in self.order.advance() {
            self.to_broker.push_back(match action {
                Action::Subscribe { filter, id } => ToBroker::Subscribe(filter, id),
                Action::Unsubscribe { filter } => ToBroker::Unsubscribe(filter),
                Action::Fence(number) => ToBroker::Fence(number),
            });
        }
    }

    fn deliver(&mut self, what: What) {
        self.deliveries += 1;
        let delivery = Delivery {
            number: self.deliveries,
            what,
        };
        self.unacknowledged.push(delivery.clone());
        self.to_node.push_back(ToNode::Delivery(delivery, false));
    }

    fn publish(&mut self) {
        self.messages += 1;
        if self.unsettled {
            self.unsure.insert(self.messages);
        }
        let matching = self.subscriptions.iter();
        let ids: Vec<usize> = matching
            .filter(|(filter, _)| filter_matches(filter, TOPIC))
            .map(|(_, id)| *id)
            .collect();
        if self.copies {
            for id in ids {
                self.deliver(What::Copy(self.messages, vec![id]));
            }
        } else if !ids.is_empty() {
            self.deliver(What::Copy(self.messages, ids));
        }
    }

    fn broker(&mut self) {
        match self.to_broker.pop_front() {
            Some(ToBroker::Subscribe(filter, id)) => {
                let known = self.subscriptions.contains_key(&filter);
                let granted = known || !(self.denied && filter.starts_with('+'));
                if granted {
                    self.subscriptions.insert(filter.clone(), id);
                }
                self.to_node.push_back(ToNode::Subscribed(filter, granted));
                let mut wanted = self.topics.filters();
                let pending = |packet: &ToBroker| matches!(packet, ToBroker::Subscribe(..));
                self.unsettled &= self.to_broker.iter().any(pending)
                    || !wanted.all(|filter| self.subscriptions.contains_key(filter));
            }
            Some(ToBroker::Unsubscribe(filter)) => {
                self.subscriptions.remove(&filter);
                self.to_node.push_back(ToNode::Unsubscribed(filter));
            }
            Some(ToBroker::Fence(number)) => self.deliver(What::Fence(number)),
            Some(ToBroker::Acknowledge(number)) => {
                self.unacknowledged.retain(|delivery| delivery.number != number);
            }
            None => {}
        }
    }

    fn node(&mut self) {
        match self.to_node.pop_front() {
            Some(ToNode::Subscribed(filter, granted)) => self.order.answered(&filter, granted),
            Some(ToNode::Unsubscribed(filter)) => {
                self.order.left(&filter);
                self.keep();
            }
            Some(ToNode::Delivery(delivery, again)) => self.take(&delivery, again),
            None => {}
        }
        self.advance();
    }

    fn take(&mut self, delivery: &Delivery, again: bool) {
        // An acknowledgement waits for what was decided before; that of a copy that does not count for no more.
        let mut durable = self.done.back().map_or(0, |(_, durable)| *durable);
        match &delivery.what {
            What::Fence(number) => {
                if self.order.pass(*number) {
                    self.keep();
                    self.noting = Some(self.log.len());
                }
            }
            What::Copy(message, ids) => {
                let known = self
                    .log
                    .iter()
                    .any(|entry| matches!(entry, Entry::Receipt(number, _) if *number == delivery.number));
                if !(again && known) {
                    let counts = self.order.counts(TOPIC, ids) && !self.topics.takers(TOPIC).is_empty();
                    self.log
                        .push(Entry::Receipt(delivery.number, counts.then_some(*message)));
                    if counts {
                        durable = self.log.len();
                    }
                }
            }
        }
        self.done.push_back((delivery.number, durable));
    }

    fn flush(&mut self) {
        self.durable = self.log.len();
        if self.noting.take().is_some() {
            self.order.noted();
            self.advance();
        }
    }

    fn acknowledge(&mut self) {
        while let Some((number, durable)) = self.done.front()
            && *durable <= self.durable
        {
            self.to_broker.push_back(ToBroker::Acknowledge(*number));
            self.done.pop_front();
        }
    }

    fn disconnect(&mut self, more: usize) {
        for _ in 0..more {
            self.broker();
        }
        self.lose_connection();
        self.connect(true);
    }

    /// Messages that wait for the disk go on waiting and are not acknowledged.
    fn lose_connection(&mut self) {
        for (number, _) in &mut self.done {
            *number = 0;
        }
    }

    fn crash(&mut self, more: usize) {
        for _ in 0..more {
            self.broker();
        }
        self.done.clear();
        self.noting = None;
        self.log.truncate(self.durable);
        self.begin();
        self.connect(true);
        self.restore();
    }

    fn forget(&mut self) {
        self.subscriptions.clear();
        for delivery in std::mem::take(&mut self.unacknowledged) {
            if let What::Copy(message, _) = delivery.what {
                self.unsure.insert(message);
            }
        }
        self.unsettled = true;
        // Which of the subscriptions of a lost session a broker would not grant again, a crash lets the node forget.
        (self.forgotten, self.denied) = (true, false);
        self.lose_connection();
        self.connect(false);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish => self.publish(),
            Step::Reload(always, beside) => {
                self.topics = topics(always, beside);
                self.file.extend(self.topics.filters().map(str::to_owned));
                self.order.want(&self.topics);
                self.keep();
                self.advance();
            }
            Step::Broker(packets) => (0..packets).for_each(|_| self.broker()),
            Step::Node(packets) => (0..packets).for_each(|_| self.node()),
            Step::Flush => self.flush(),
            Step::Acknowledge => self.acknowledge(),
            Step::Disconnect(more) => self.disconnect(more),
            Step::Crash(more) => self.crash(more),
            Step::Forget => self.forget(),
            Step::Deny(denied) => self.denied = denied && !self.forgotten,
        }
    }

    /// Lets everything come to rest.
    fn settle(&mut self) {
        self.denied = false;
        for _ in 0..20 {
            self.order.retry();
            self.advance();
            while !self.to_broker.is_empty() || !self.to_node.is_empty() {
                self.broker();
                self.node();
            }
            self.flush();
            self.acknowledge();
        }
    }

    fn counted(&self) -> BTreeMap<u64, u32> {
        let mut counted = BTreeMap::new();
        for entry in &self.log {
            if let Entry::Receipt(_, Some(message)) = entry {
                *counted.entry(*message).or_default() += 1;
            }
        }
        counted
    }
}

/// # Errors
/// A message counts twice, or is missed, or a filter stays subscribed to.
fn check(copies: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new(copies);
    world.restore();
    world.settle();
    for step in steps {
        world.step(step);
    }
    world.settle();
    let counted = world.counted();
    for message in 1..=world.messages {
        let times = counted.get(&message).copied().unwrap_or(0);
        let unsure = world.unsure.contains(&message);
        prop_assert!(
            times == 1 || (unsure && times == 0),
            "message {} counts {} times",
            message,
            times
        );
    }
    let subscribed: Vec<&str> = world.subscriptions.keys().map(String::as_str).collect();
    let wanted: Vec<&str> = world.topics.filters().collect();
    prop_assert_eq!(
        subscribed,
        wanted,
        "what is wanted is subscribed to, and nothing else"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn with_a_copy_for_each_subscription_each_message_counts_once(steps in steps()) {
        check(true, &steps)?;
    }

    #[test]
    fn with_one_copy_that_names_all_subscriptions_each_message_counts_once(steps in steps()) {
        check(false, &steps)?;
    }
}

#[test]
fn a_broker_that_says_nothing_of_subscriptions_leaves_it_to_the_topic() {
    let mut order = Order::default();
    order.want(&topics(3, 0));
    assert!(order.counts(TOPIC, &[]));
    // Nor does one count less that was never known here.
    assert!(order.counts(TOPIC, &[7]));
}

#[test]
fn only_this_process_raises_its_fences() {
    let publish = |name: String| {
        let properties = PublishProperties {
            user_properties: vec![(FENCE_PROPERTY.into(), name)],
            ..PublishProperties::default()
        };
        Publish::new("t", QoS::AtLeastOnce, Vec::<u8>::new(), Some(properties))
    };
    let (own, other) = (Routing::new(), Routing::new());
    assert_eq!(own.fence(&publish(own.name(7))), Some(7));
    assert_eq!(own.fence(&publish(other.name(7))), None);
    assert_eq!(own.fence(&publish("7".into())), None);
}
