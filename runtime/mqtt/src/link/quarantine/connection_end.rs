//! The end of a connection: which messages become suspects, and when a death counts against one.

use std::time::Duration;

use super::suspects::Suspect;
use super::{
    Accusation, ConnectionLoad, FlightRole, Phase, Publication, Quarantine, ReconnectDelay, Verdict,
};

/// The number of verified deaths with a message alone in flight after which it is given up.
const DEATHS_TO_CONVICT: u32 = 4;
/// The smallest window, to which it shrinks while connections end with several messages in flight.
const MIN_WINDOW: usize = 4;
/// The number of trials one after the other before messages that are not suspect have their turn.
const TRIALS_PER_TURN: usize = 16;
/// The most age of the connection that the verification after a suspect's first death must reach: the connection may have
/// lived for days. Later trials follow a verification at once, so that their load is reached in full.
const MAX_FIRST_AGE: Duration = Duration::from_secs(5);
/// The most packets that this verification must reach.
const MAX_FIRST_PACKETS: u32 = 64;
/// The most bytes, beside the suspect's own, that this verification must reach.
const MAX_FIRST_BYTES: usize = 64 << 10;

impl<M: Publication> Quarantine<M> {
    /// Notes that this node has closed the connection: what was in flight is published again and not suspected.
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

    /// Notes that the connection has ended by itself. All answers that came by it must be told before.
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
            // A verification that got beyond its first packet shows that the path works to some degree.
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

    /// Voids all evidence, since the path ends connections by itself.
    pub(super) fn void(&mut self) {
        self.path.fault();
        if let Some(Accusation { suspect, .. }) = self.accused.take() {
            self.put_back(suspect);
        }
        self.suspects.void();
    }

    /// Returns a suspect that is not settled to the others, unless it is a status that has been replaced.
    pub(super) fn put_back(&mut self, suspect: Suspect<M>) {
        if !suspect.is_status || self.controls.is_full(&suspect.message) {
            self.suspects.put_back(suspect);
        }
    }

    /// Counts the last death against its suspect, once the verification is complete.
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
            // The next trial follows at once, while the connection is young.
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

    /// Returns the time at which the connection reaches the age that the verification needs.
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
