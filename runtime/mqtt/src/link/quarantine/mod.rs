//! The quarantine of messages that end connections: decides which message may be published now, which are suspected when a
//! connection ends, and when a message is given up.
//!
//! Brokers end the connection of a client that publishes what they do not accept, and something on the way may do so too.
//! Such a message would be published again on each connection. So each message in flight when a connection ends is suspect
//! and is tried alone: a message that the broker acknowledges is innocent. A message is convicted when four connections ended
//! while it was alone in flight, each after a control publish (the node's status) was acknowledged on it, and each followed by
//! a verification: a connection on which only controls are published, one after the other, and which carries as many packets
//! and bytes and lives as long as the one that ended. A path that ends connections by itself ends verifications too, which
//! voids all evidence.
//!
//! The state machine knows no clocks and no tasks: time is an argument, counted from any moment.

mod connection_end;
mod controls;
mod path_record;
mod recent;
mod scheduling;
mod suspects;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use controls::Controls;
use path_record::PathRecord;
use recent::RecentDestinations;
use suspects::{Suspect, Suspects};

/// The most messages in flight: fewer than the client library takes, so that controls need not wait for them.
const MAX_WINDOW: usize = 48;
/// The packets that a verification has beside those of the connection that ended.
const EXTRA_VERIFICATION_PACKETS: u32 = 4;
/// The most destinations that are remembered, of convicted messages and of lost chunks each.
const MAX_REMEMBERED_DESTINATIONS: usize = 1024;

/// A message to publish, as far as the quarantine must know it.
pub(crate) trait Publication: Clone {
    /// Returns the hash of its topic.
    fn destination(&self) -> u64;
    /// Returns the size of its packet.
    fn bytes(&self) -> usize;
    /// Whether it is published with QoS 0, which the broker does not acknowledge.
    fn is_qos0(&self) -> bool;
    /// Whether of several messages to its destination only the latest is of use.
    fn is_latest_only(&self) -> bool;
    /// Whether both messages would be published alike.
    fn is_same(&self, other: &Self) -> bool;
}

/// A message to publish now.
#[derive(Debug)]
pub(crate) struct Shipment<M> {
    /// The number by which the broker's answer is told.
    pub(crate) number: u64,
    pub(crate) message: M,
    /// The bytes by which a control is to be longer.
    pub(crate) padding: usize,
}

/// The decision about a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<M> {
    /// A QoS 0 message is confirmed, since something published later is acknowledged.
    Confirmed(M),
    /// The message is given up, since it ended so many connections.
    Convicted(M, u32),
}

/// The delay before the next connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReconnectDelay {
    /// Nearly none: a message is likely to blame.
    Short,
    /// The backoff of a path that fails.
    Backoff,
}

/// The role of a message in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlightRole {
    Fresh,
    Trial,
    Control,
}

/// A message in flight.
#[derive(Debug)]
struct Flight<M> {
    message: M,
    role: FlightRole,
    since: Duration,
}

/// The use of the connection.
#[derive(Debug)]
enum Phase {
    Down,
    /// A control must be acknowledged before anything else is published.
    Proving {
        is_sent: bool,
    },
    /// Only controls are published, one after the other.
    Verifying {
        left: u32,
        is_sent: bool,
    },
    /// Everything but suspects is published.
    Open,
    /// A suspect is tried alone.
    Trial,
}

/// A suspect whose connection ended, until a verification tells whether that counts against it.
#[derive(Debug)]
struct Accusation<M> {
    suspect: Suspect<M>,
    /// The load of the connection when it ended, which the verification must reach.
    load: ConnectionLoad,
}

/// The load that a connection has carried.
#[derive(Debug, Clone, Copy, Default)]
struct ConnectionLoad {
    age: Duration,
    packets: u32,
    bytes: usize,
}

/// The state machine of the quarantine. It holds every message until it is acknowledged or given up.
#[derive(Debug)]
pub(crate) struct Quarantine<M> {
    phase: Phase,
    /// The time at which the connection was made.
    born: Duration,
    /// The packets and bytes published on the connection; the age is left out.
    carried: ConnectionLoad,
    next_number: u64,
    queue: VecDeque<M>,
    flights: BTreeMap<u64, Flight<M>>,
    /// The destinations of chunks in flight, each with the number that the next shipment had then.
    chunks: BTreeMap<u64, u64>,
    controls: Controls<M>,
    suspects: Suspects<M>,
    on_trial: Option<Suspect<M>>,
    accused: Option<Accusation<M>>,
    /// The destinations of convicted messages: others to them are tried alone from the start.
    convicted: RecentDestinations,
    /// The destinations of chunks that were in flight when a connection ended: they get no further chunks.
    muted: RecentDestinations,
    path: PathRecord,
    window: usize,
    /// The number of messages that may still be published before the next trial.
    turn: usize,
    /// The number of trials since other messages had their turn.
    trials: usize,
    /// The link ends: messages in flight must be confirmed soon.
    is_closing: bool,
    verdicts: VecDeque<Verdict<M>>,
}

impl<M: Publication> Quarantine<M> {
    /// Creates a quarantine whose control is the node's status: `full`, or `minimal`, which no broker has reason to refuse.
    pub(crate) fn new(full: M, minimal: M) -> Self {
        Self {
            phase: Phase::Down,
            born: Duration::ZERO,
            carried: ConnectionLoad::default(),
            next_number: 0,
            queue: VecDeque::new(),
            flights: BTreeMap::new(),
            chunks: BTreeMap::new(),
            controls: Controls::new(full, minimal),
            suspects: Suspects::new(),
            on_trial: None,
            accused: None,
            convicted: RecentDestinations::new(MAX_REMEMBERED_DESTINATIONS),
            muted: RecentDestinations::new(MAX_REMEMBERED_DESTINATIONS),
            path: PathRecord::new(),
            window: MAX_WINDOW,
            turn: MAX_WINDOW,
            trials: 0,
            is_closing: false,
            verdicts: VecDeque::new(),
        }
    }

    /// Sets the node's status, which is published soon.
    pub(crate) fn set_status(&mut self, full: M, minimal: M) {
        if self.controls.set(full, minimal) {
            self.suspects.remove_status();
        }
    }

    /// Adds a message.
    pub(crate) fn push(&mut self, message: M) {
        if message.is_latest_only() {
            let destination = message.destination();
            self.queue.retain(|queued| queued.destination() != destination);
        }
        self.queue.push_back(message);
    }

    /// Removes and returns the waiting messages that can't be published on this connection.
    pub(crate) fn sift(&mut self, can_be: impl Fn(&M) -> bool) -> Vec<M> {
        let mut out = self.suspects.sift(&can_be);
        for message in std::mem::take(&mut self.queue) {
            if can_be(&message) {
                self.queue.push_back(message);
            } else {
                out.push(message);
            }
        }
        out
    }

    /// Returns the number of messages that are not acknowledged, controls left out.
    pub(crate) fn len(&self) -> usize {
        let flights = self
            .flights
            .values()
            .filter(|flight| flight.role == FlightRole::Fresh);
        let tried = usize::from(self.on_trial.is_some()) + usize::from(self.accused.is_some());
        self.queue.len() + flights.count() + self.suspects.len() + tried
    }

    /// Returns the number of messages that wait for a trial.
    pub(crate) fn suspects(&self) -> usize {
        self.suspects.len()
    }

    /// Whether nothing is left to publish.
    pub(crate) fn is_idle(&self) -> bool {
        self.len() == 0
            && self.flights.is_empty()
            && self.verdicts.is_empty()
            && (matches!(self.phase, Phase::Down) || !self.controls.is_due)
    }

    /// Notes that the link ends, so that nothing waits for long.
    pub(crate) fn close(&mut self) {
        self.is_closing = true;
    }

    /// Returns the number of shipments that the broker has to answer.
    pub(crate) fn unanswered(&self) -> usize {
        let flights = self.flights.values();
        flights.filter(|flight| !flight.message.is_qos0()).count()
    }

    /// Notes that a connection is made.
    pub(crate) fn up(&mut self, now: Duration) {
        self.born = now;
        self.carried = ConnectionLoad::default();
        self.controls.is_due = true;
        self.phase = match &self.accused {
            Some(Accusation { load, .. }) => Phase::Verifying {
                left: self
                    .path
                    .round_trips()
                    .max(load.packets + EXTRA_VERIFICATION_PACKETS),
                is_sent: false,
            },
            None => Phase::Proving { is_sent: false },
        };
    }

    /// Notes that the broker has answered a shipment, whatever the answer. Returns the message, unless it is a control or has
    /// QoS 0.
    pub(crate) fn answered(&mut self, number: u64, now: Duration) -> Option<M> {
        let flight = self.flights.remove(&number)?;
        if flight.message.is_qos0() {
            // It was only sent: a later message must be acknowledged.
            self.flights.insert(number, flight);
            return None;
        }
        self.chunks.retain(|_, before| *before > number);
        self.confirm_before(number);
        match flight.role {
            FlightRole::Control => {
                self.controls.acknowledged(&flight.message);
                match &mut self.phase {
                    Phase::Proving { .. } => {
                        self.phase = Phase::Open;
                        self.turn = self.window;
                    }
                    Phase::Verifying { left, is_sent } => {
                        *left = left.saturating_sub(1);
                        *is_sent = false;
                        if *left == 0 {
                            self.judge(now);
                        }
                    }
                    _ => {}
                }
                None
            }
            FlightRole::Fresh => {
                self.window = (self.window + 1).min(MAX_WINDOW);
                self.acquit(&flight.message);
                Some(flight.message)
            }
            FlightRole::Trial => {
                let is_status = self.on_trial.as_ref().is_some_and(|suspect| suspect.is_status);
                self.acquit(&flight.message);
                self.end_trial();
                if is_status {
                    self.controls.acknowledged(&flight.message);
                    if self.controls.is_full(&flight.message) {
                        self.controls.is_due = false;
                    }
                    return None;
                }
                Some(flight.message)
            }
        }
    }

    /// Notes that a control is too large for the broker. The minimal status replaces the full one from now on.
    pub(crate) fn is_too_large(&mut self, number: u64, now: Duration) {
        let Some(flight) = self.flights.get(&number) else {
            return;
        };
        if !self.controls.give_up_full(&flight.message) {
            // The broker takes next to nothing: the control counts as acknowledged, since no other proof is possible.
            self.answered(number, now);
            return;
        }
        self.flights.remove(&number);
        if let Phase::Proving { is_sent } | Phase::Verifying { is_sent, .. } = &mut self.phase {
            *is_sent = false;
        }
    }

    /// Removes and returns a shipment that could not be handed to the client library.
    pub(crate) fn withdraw(&mut self, number: u64) -> Option<M> {
        let flight = self.flights.remove(&number)?;
        match flight.role {
            FlightRole::Fresh => Some(flight.message),
            FlightRole::Trial => {
                self.end_trial();
                Some(flight.message)
            }
            FlightRole::Control => None,
        }
    }

    /// Returns the next decision about a message.
    pub(crate) fn next_verdict(&mut self) -> Option<Verdict<M>> {
        self.verdicts.pop_front()
    }

    fn acquit(&mut self, message: &M) {
        self.convicted.forget(message.destination());
        self.muted.forget(message.destination());
    }

    /// Confirms the QoS 0 messages that were published before this shipment, which is acknowledged.
    fn confirm_before(&mut self, number: u64) {
        let later = self.flights.split_off(&number);
        let earlier = std::mem::replace(&mut self.flights, later);
        for (number, flight) in earlier {
            if !flight.message.is_qos0() {
                self.flights.insert(number, flight);
                continue;
            }
            self.acquit(&flight.message);
            if flight.role == FlightRole::Trial {
                self.end_trial();
            }
            self.verdicts.push_back(Verdict::Confirmed(flight.message));
        }
    }
}
