//! The scheduling of publishes: which message is next.

use std::time::Duration;

use super::suspects::Suspect;
use super::{
    Accusation, Flight, FlightRole, MAX_REMEMBERED_DESTINATIONS, Phase, Publication, Quarantine, Shipment,
};

/// The most QoS 0 messages that are published and not confirmed by a later acknowledgement.
const MAX_UNCONFIRMED: usize = 256;
/// The time for which QoS 0 messages wait for a later acknowledgement before a control is published for it.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(3);

impl<M: Publication> Quarantine<M> {
    /// Returns the next message to publish, if one may be published now. `receive_maximum` is the broker's.
    pub(crate) fn next(&mut self, now: Duration, receive_maximum: usize) -> Option<Shipment<M>> {
        match &mut self.phase {
            Phase::Down => None,
            Phase::Proving { is_sent } | Phase::Verifying { is_sent, left: 1.. } => {
                (!std::mem::replace(is_sent, true)).then(|| self.control(now))
            }
            Phase::Verifying { left: 0, .. } => {
                self.judge(now);
                match self.phase {
                    Phase::Open => self.next_of_open(now, receive_maximum.max(1)),
                    _ => None,
                }
            }
            Phase::Trial => {
                // A QoS 0 message is confirmed by the acknowledgement of a later one.
                let alone = self.flights.len() == 1;
                let is_qos0 = self.on_trial.as_ref().is_some_and(|s| s.message.is_qos0());
                (alone && is_qos0).then(|| self.control(now))
            }
            Phase::Open => self.next_of_open(now, receive_maximum.max(1)),
        }
    }

    /// Returns the time at which [`Quarantine::next`] may return a message without another event before.
    pub(crate) fn wake(&self) -> Option<Duration> {
        match self.phase {
            Phase::Verifying { left: 0, .. } => Some(self.verified_at()),
            Phase::Open if self.is_unconfirmed() && !self.waits_for_control() => {
                let mut qos0 = self.flights.values().filter(|flight| flight.message.is_qos0());
                qos0.next().map(|flight| flight.since + CONFIRMATION_TIMEOUT)
            }
            _ => None,
        }
    }

    /// Whether a chunk may be published to a destination now. It is then in flight until a later message is acknowledged.
    pub(crate) fn may_stream(&mut self, destination: u64, bytes: usize) -> bool {
        let free = matches!(self.phase, Phase::Open)
            && !self.is_draining()
            && self.chunks.len() < MAX_REMEMBERED_DESTINATIONS
            && !self.is_suspected(destination);
        if free {
            self.chunks.insert(destination, self.next_number);
            self.carry(bytes);
        }
        free
    }

    pub(super) fn next_of_open(&mut self, now: Duration, receive_maximum: usize) -> Option<Shipment<M>> {
        let waits_for_control = self.waits_for_control();
        if self.controls.is_due && !waits_for_control {
            return Some(self.control(now));
        }
        if !self.is_draining()
            && let Some(shipment) = self.next_fresh(now, receive_maximum)
        {
            return Some(shipment);
        }
        let wanted = self.is_draining() || self.is_closing || self.wake().is_some_and(|at| at <= now);
        let full = self.flights.len() >= MAX_UNCONFIRMED;
        if (wanted || full) && self.is_unconfirmed() && !waits_for_control {
            return Some(self.control(now));
        }
        if self.is_draining() && self.flights.is_empty() && self.chunks.is_empty() {
            let suspect = self.suspects.next()?;
            let message = suspect.message.clone();
            self.on_trial = Some(suspect);
            self.phase = Phase::Trial;
            return Some(self.ship(message, FlightRole::Trial, 0, now));
        }
        None
    }

    pub(super) fn next_fresh(&mut self, now: Duration, receive_maximum: usize) -> Option<Shipment<M>> {
        while self.unanswered() < self.window.min(receive_maximum) && self.flights.len() < MAX_UNCONFIRMED {
            let Some(message) = self.queue.pop_front() else {
                // Nothing else waits: the suspects have their turn.
                self.turn = 0;
                return None;
            };
            if self.is_suspected(message.destination()) {
                self.suspects.add(Suspect::new(message, 0));
                continue;
            }
            self.turn = self.turn.saturating_sub(1);
            self.trials = 0;
            return Some(self.ship(message, FlightRole::Fresh, 0, now));
        }
        None
    }

    /// Whether a message to this destination must be tried alone.
    pub(super) fn is_suspected(&self, destination: u64) -> bool {
        self.suspects.is_suspected(destination)
            || self.convicted.contains(destination)
            || self.muted.contains(destination)
    }

    pub(super) fn waits_for_control(&self) -> bool {
        self.flights
            .values()
            .any(|flight| flight.role == FlightRole::Control)
    }

    /// Whether nothing more is published until the messages in flight are answered, so that a suspect can be tried.
    pub(super) fn is_draining(&self) -> bool {
        !self.suspects.is_empty() && self.turn == 0
    }

    /// Whether a QoS 0 message or a chunk is in flight that only a later acknowledgement confirms.
    pub(super) fn is_unconfirmed(&self) -> bool {
        let mut last_first = self.flights.values().rev();
        let chunk = self.chunks.values().max();
        let acknowledged = self
            .flights
            .iter()
            .rev()
            .find(|(_, flight)| !flight.message.is_qos0());
        last_first.next().is_some_and(|flight| flight.message.is_qos0())
            || chunk.is_some_and(|before| acknowledged.is_none_or(|(number, _)| number < before))
    }

    /// Returns a control. In a verification it is padded to its share of the bytes that must be reached.
    pub(super) fn control(&mut self, now: Duration) -> Shipment<M> {
        self.controls.is_due = false;
        let message = self.controls.message();
        let padding = match (&self.phase, &self.accused) {
            (Phase::Verifying { left, .. }, Some(Accusation { load, .. })) => {
                // A little more than the other connection carried, shared by the remaining controls.
                let wanted = load.bytes.saturating_add(load.bytes / 8);
                let wanted = wanted.saturating_sub(self.carried.bytes);
                let share = wanted / (*left).max(1) as usize + 1;
                share.saturating_sub(message.bytes())
            }
            _ => 0,
        };
        self.ship(message, FlightRole::Control, padding, now)
    }

    pub(super) fn carry(&mut self, bytes: usize) {
        self.carried.packets = self.carried.packets.saturating_add(1);
        self.carried.bytes = self.carried.bytes.saturating_add(bytes);
    }

    pub(super) fn ship(
        &mut self,
        message: M,
        role: FlightRole,
        padding: usize,
        now: Duration,
    ) -> Shipment<M> {
        let number = self.next_number;
        self.next_number += 1;
        self.carry(message.bytes() + padding);
        let flight = Flight {
            message: message.clone(),
            role,
            since: now,
        };
        self.flights.insert(number, flight);
        Shipment {
            number,
            message,
            padding,
        }
    }
}
