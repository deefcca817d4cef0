//! What it means that a connection ends, and when that is held against a message.

use std::time::Duration;

use super::suspects::Suspect;
use super::{
    Accusation, ConnectionLoad, FlightRole, Phase, Publication, Quarantine, ReconnectDelay, Verdict,
};

/// Connections that must end with a message alone under way before it is given up.
const DEATHS_TO_CONVICT: u32 = 4;
/// The least that the window shrinks to while connections end with several messages under way.
const MIN_WINDOW: usize = 4;
/// Trials one after the other before messages that are not suspect have their turn again.
const TRIALS_PER_TURN: usize = 16;
/// The most of a connection's age, packets and bytes that the verification after a suspect's first death must reach: the
/// connection may have lived for days. Later trials follow a verification at once, so that theirs are reached in full.
const MAX_FIRST_AGE: Duration = Duration::from_secs(5);
const MAX_FIRST_PACKETS: u32 = 64;
const MAX_FIRST_BYTES: usize = 64 << 10;

impl<M: Publication> Quarantine<M> {
    /// The connection has ended by our own will: what was under way is published again and not suspected.
    pub(crate) fn closed(&mut self) {
        for (_, flight) in std::mem::take(&mut self.flights).into_iter().rev() {
            if flight.role == FlightRole::Fresh {
                self.queue.push_front(flight.message);
            }
        }
        if let Some(suspect) = self.on_trial.take() {
            self.put_back(suspect);
        }
        self.controls.is_due = true;
        self.chunks.clear();
        self.phase = Phase::Down;
    }

    /// The connection has ended. All answers that came by it are told before.
    pub(crate) fn died(&mut self, now: Duration) -> ReconnectDelay {
        let lived = now.saturating_sub(self.born);
        let phase = std::mem::replace(&mut self.phase, Phase::Down);
        let flights = std::mem::take(&mut self.flights);
        let chunks = std::mem::take(&mut self.chunks);
        if matches!(phase, Phase::Down) {
            return ReconnectDelay::Backoff;
        }
        self.path.lived(lived);
        for flight in flights
            .values()
            .filter(|flight| flight.role == FlightRole::Control)
        {
            if let Some(full) = self.controls.died(&flight.message) {
                self.suspects.add(Suspect {
                    is_status: true,
                    ..Suspect::new(full, 1)
                });
            }
        }
        if let Some(mut suspect) = self.on_trial.take() {
            suspect.deaths += 1;
            let mut load = ConnectionLoad {
                age: lived,
                ..self.carried
            };
            if suspect.alone == 0 {
                load.age = lived.min(MAX_FIRST_AGE);
                load.packets = load.packets.min(MAX_FIRST_PACKETS);
                load.bytes = load.bytes.min(suspect.message.bytes() + MAX_FIRST_BYTES);
            }
            self.accused = Some(Accusation { suspect, load });
            return self.path.wait();
        }
        let fresh: Vec<M> = flights
            .into_values()
            .filter(|flight| flight.role == FlightRole::Fresh)
            .map(|flight| flight.message)
            .collect();
        if !matches!(phase, Phase::Open) || (fresh.is_empty() && chunks.is_empty()) {
            self.void();
            // In the midst of a verification the path was good enough for something.
            return match phase {
                Phase::Verifying { .. } if self.carried.packets > 1 => self.path.wait(),
                _ => ReconnectDelay::Backoff,
            };
        }
        self.window = (self.window / 2).max(MIN_WINDOW);
        for destination in chunks.into_keys() {
            self.muted.note(destination);
        }
        for message in fresh {
            self.suspects.add(Suspect::new(message, 1));
        }
        self.path.wait()
    }

    /// All evidence is void: the path ends connections by itself.
    pub(super) fn void(&mut self) {
        self.path.fault();
        if let Some(Accusation { suspect, .. }) = self.accused.take() {
            self.put_back(suspect);
        }
        self.suspects.void();
    }

    /// A suspect that is not settled is one again, unless it is a status that has been replaced.
    pub(super) fn put_back(&mut self, suspect: Suspect<M>) {
        if !suspect.is_status || self.controls.is_full(&suspect.message) {
            self.suspects.put_back(suspect);
        }
    }

    /// Holds the last death against its suspect, once the verification is complete.
    pub(super) fn judge(&mut self, now: Duration) {
        if now < self.verified_at() {
            return;
        }
        self.phase = Phase::Open;
        let Some(Accusation { mut suspect, .. }) = self.accused.take() else {
            return;
        };
        self.path.cleared();
        suspect.alone += 1;
        if suspect.alone < DEATHS_TO_CONVICT {
            // Tried again at once, while the connection is as young as it can be.
            self.turn = 0;
            return self.put_back(suspect);
        }
        self.turn = self.window;
        self.path.cleared();
        self.convicted.note(suspect.message.destination());
        if suspect.is_status {
            self.controls.convicted(&suspect.message);
        }
        self.verdicts
            .push_back(Verdict::Convicted(suspect.message, suspect.deaths));
    }

    pub(super) fn verified_at(&self) -> Duration {
        self.born
            + self
                .accused
                .as_ref()
                .map_or(Duration::ZERO, |accused| accused.load.age)
    }

    pub(super) fn end_trial(&mut self) {
        self.on_trial = None;
        self.phase = Phase::Open;
        self.trials += 1;
        if self.trials >= TRIALS_PER_TURN {
            self.turn = self.window;
        }
    }
}
