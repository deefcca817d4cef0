//! What is published next.

use std::time::Duration;

use super::suspects::Suspect;
use super::{
    Accusation, Flight, FlightRole, MAX_REMEMBERED_DESTINATIONS, Phase, Publication, Quarantine, Shipment,
};

/// QoS 0 messages that may be under way: published, and nothing acknowledged since.
const MAX_UNCONFIRMED: usize = 256;
/// How long QoS 0 messages wait for another publish to be acknowledged before a control is published for it.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(3);

impl<M: Publication> Quarantine<M> {
    /// What is to be published next, if anything may be now. `most` is what the broker takes unacknowledged.
    pub(crate) fn next(&mut self, now: Duration, most: usize) -> Option<Shipment<M>> {
        match &mut self.phase {
            Phase::Down => None,
            Phase::Proving { is_sent } | Phase::Verifying { is_sent, left: 1.. } => {
                (!std::mem::replace(is_sent, true)).then(|| self.control(now))
            }
            Phase::Verifying { left: 0, .. } => {
                self.judge(now);
                match self.phase {
                    Phase::Open => self.next_of_open(now, most.max(1)),
                    _ => None,
                }
            }
            Phase::Trial => {
                // A QoS 0 message is acknowledged by what follows it.
                let alone = self.flights.len() == 1;
                let is_qos0 = self.on_trial.as_ref().is_some_and(|s| s.message.is_qos0());
                (alone && is_qos0).then(|| self.control(now))
            }
            Phase::Open => self.next_of_open(now, most.max(1)),
        }
    }

    /// When [`Quarantine::next`] may have something without anything happening before.
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

    /// Whether a chunk may be published there now. It is then under way until something later is acknowledged.
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

    pub(super) fn next_of_open(&mut self, now: Duration, most: usize) -> Option<Shipment<M>> {
        let waits_for_control = self.waits_for_control();
        if self.controls.is_due && !waits_for_control {
            return Some(self.control(now));
        }
        if !self.is_draining()
            && let Some(shipment) = self.next_fresh(now, most)
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

    pub(super) fn next_fresh(&mut self, now: Duration, most: usize) -> Option<Shipment<M>> {
        while self.unanswered() < self.window.min(most) && self.flights.len() < MAX_UNCONFIRMED {
            let Some(message) = self.queue.pop_front() else {
                // Nothing else waits: it is the suspects' turn.
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

    /// Whether a message to this destination is to be tried alone.
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

    /// Whether what is under way is waited for, so that a suspect can be tried.
    pub(super) fn is_draining(&self) -> bool {
        !self.suspects.is_empty() && self.turn == 0
    }

    /// Whether something is under way that the broker acknowledges only by acknowledging what follows.
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

    /// The control. In a verification it has its share of the bytes that the suspect has.
    pub(super) fn control(&mut self, now: Duration) -> Shipment<M> {
        self.controls.is_due = false;
        let message = self.controls.message();
        let padding = match (&self.phase, &self.accused) {
            (Phase::Verifying { left, .. }, Some(Accusation { load, .. })) => {
                // A little more than the other connection carried, shared by the controls to come.
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
