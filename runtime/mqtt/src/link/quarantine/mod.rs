//! Quarantine of what ends connections: which message may be published now, what it means that a connection ends, and when a
//! message is given up.
//!
//! Brokers end the connection of a client that publishes what they don't take, and something on the way may do so too. The
//! message would be published again on the next connection, and so for ever. So whatever was under way when a connection
//! ended is suspect and is tried alone: a message that the broker acknowledges is innocent. A message is convicted when
//! four connections ended while it was alone under way, each after a control publish (the node's status) was
//! acknowledged on it, and each followed by a verification: a connection on which only controls are published, one after the
//! other, and which carries as many packets and bytes and lives as long as the one that ended. A path that ends connections by
//! itself ends verifications too, which voids all evidence.
//!
//! Nothing here knows clocks or tasks: time is an argument, counted from any moment.

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

/// Messages under way at once; fewer than the client library takes, so that controls need not wait for them.
const MAX_WINDOW: usize = 48;
/// Packets that a verification has beyond those of the connection that ended.
const EXTRA_VERIFICATION_PACKETS: u32 = 4;
/// Destinations that are remembered, of convicted messages and of chunks that were lost.
const MAX_REMEMBERED_DESTINATIONS: usize = 1024;

/// What must be known of a message.
pub(crate) trait Publication: Clone {
    /// Names its topic.
    fn destination(&self) -> u64;
    /// The size of its packet.
    fn bytes(&self) -> usize;
    /// Published with QoS 0: the broker acknowledges nothing of it.
    fn is_qos0(&self) -> bool;
    /// Of several to one destination only the latest is of use.
    fn is_latest_only(&self) -> bool;
    /// Whether both would be published alike.
    fn is_same(&self, other: &Self) -> bool;
}

/// Something to be published now.
#[derive(Debug)]
pub(crate) struct Shipment<M> {
    /// Names it when the broker answers.
    pub(crate) number: u64,
    pub(crate) message: M,
    /// Bytes that a control is to be longer by.
    pub(crate) padding: usize,
}

/// What has become of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<M> {
    /// A QoS 0 message: something that was published later is acknowledged.
    Confirmed(M),
    /// It ends connections; after so many it is given up.
    Convicted(M, u32),
}

/// How soon the next connection is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReconnectDelay {
    /// At once, but for some chance: a message is likely to blame.
    Short,
    /// As for any path that fails.
    Backoff,
}

/// What a message is under way as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlightRole {
    Fresh,
    Trial,
    Control,
}

#[derive(Debug)]
struct Flight<M> {
    message: M,
    role: FlightRole,
    since: Duration,
}

/// What the connection is used for.
#[derive(Debug)]
enum Phase {
    Down,
    /// A control must be acknowledged first.
    Proving {
        is_sent: bool,
    },
    /// Only controls, one after the other.
    Verifying {
        left: u32,
        is_sent: bool,
    },
    /// Everything, but suspects.
    Open,
    /// A suspect alone.
    Trial,
}

/// A suspect whose connection ended, until a verification tells whether that is held against it.
#[derive(Debug)]
struct Accusation<M> {
    suspect: Suspect<M>,
    /// What the connection was when it ended, and the verification's must become.
    load: ConnectionLoad,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, Default)]
struct ConnectionLoad {
    age: Duration,
    packets: u32,
    bytes: usize,
}

/// The state of the quarantine, over messages `M`. It holds every message that is to be published until it is acknowledged.
#[derive(Debug)]
pub(crate) struct Quarantine<M> {
    phase: Phase,
    /// When the connection was made.
    born: Duration,
    /// What was published on it; its age is not kept here.
    carried: ConnectionLoad,
    next_number: u64,
    queue: VecDeque<M>,
    flights: BTreeMap<u64, Flight<M>>,
    /// Destinations of chunks, and the number that the next shipment had then.
    chunks: BTreeMap<u64, u64>,
    controls: Controls<M>,
    suspects: Suspects<M>,
    on_trial: Option<Suspect<M>>,
    accused: Option<Accusation<M>>,
    /// Of convicted messages: others to them are tried alone from the start.
    convicted: RecentDestinations,
    /// Of chunks that were under way when a connection ended: they get no further ones.
    muted: RecentDestinations,
    path: PathRecord,
    window: usize,
    /// Messages that may still be published before the next trial.
    turn: usize,
    /// Trials since the last turn.
    trials: usize,
    /// What is under way must be confirmed soon.
    is_closing: bool,
    verdicts: VecDeque<Verdict<M>>,
}

impl<M: Publication> Quarantine<M> {
    /// `full` is the node's status, `minimal` a form of it that holds nothing that could be refused.
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

    /// States the node's status, which is published soon.
    pub(crate) fn set_status(&mut self, full: M, minimal: M) {
        if self.controls.set(full, minimal) {
            self.suspects.remove_status();
        }
    }

    /// Takes a message.
    pub(crate) fn push(&mut self, message: M) {
        if message.is_latest_only() {
            let destination = message.destination();
            self.queue.retain(|queued| queued.destination() != destination);
        }
        self.queue.push_back(message);
    }

    /// Takes back what waits and can't be published on this connection.
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

    /// Messages that are not acknowledged yet, controls left out.
    pub(crate) fn len(&self) -> usize {
        let flights = self
            .flights
            .values()
            .filter(|flight| flight.role == FlightRole::Fresh);
        let tried = usize::from(self.on_trial.is_some()) + usize::from(self.accused.is_some());
        self.queue.len() + flights.count() + self.suspects.len() + tried
    }

    /// Messages that are tried alone.
    pub(crate) fn suspects(&self) -> usize {
        self.suspects.len()
    }

    /// Whether nothing is left to be published.
    pub(crate) fn is_idle(&self) -> bool {
        self.len() == 0
            && self.flights.is_empty()
            && self.verdicts.is_empty()
            && (matches!(self.phase, Phase::Down) || !self.controls.is_due)
    }

    /// The link ends: nothing may wait for long.
    pub(crate) fn close(&mut self) {
        self.is_closing = true;
    }

    /// Shipments that the broker has to answer.
    pub(crate) fn unanswered(&self) -> usize {
        let flights = self.flights.values();
        flights.filter(|flight| !flight.message.is_qos0()).count()
    }

    /// A connection was made.
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

    /// The broker has answered a shipment, whatever it says; gives the message, unless it is a control or a QoS 0 one.
    pub(crate) fn answered(&mut self, number: u64, now: Duration) -> Option<M> {
        let flight = self.flights.remove(&number)?;
        if flight.message.is_qos0() {
            // It only left: what follows it must be acknowledged.
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

    /// A control is too large for the broker. The minimal status stands in for the full one from now on.
    pub(crate) fn is_too_large(&mut self, number: u64, now: Duration) {
        let Some(flight) = self.flights.get(&number) else {
            return;
        };
        if !self.controls.give_up_full(&flight.message) {
            // A broker that takes next to nothing: then there is no proof to be had of it.
            self.answered(number, now);
            return;
        }
        self.flights.remove(&number);
        if let Phase::Proving { is_sent } | Phase::Verifying { is_sent, .. } = &mut self.phase {
            *is_sent = false;
        }
    }

    /// Takes back a shipment that could not be handed to the client library.
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

    /// What has become of messages, since this was asked last.
    pub(crate) fn next_verdict(&mut self) -> Option<Verdict<M>> {
        self.verdicts.pop_front()
    }

    fn acquit(&mut self, message: &M) {
        self.convicted.forget(message.destination());
        self.muted.forget(message.destination());
    }

    /// Confirms QoS 0 messages that were published before this shipment, which is acknowledged.
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
