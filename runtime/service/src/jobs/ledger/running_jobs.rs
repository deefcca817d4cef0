//! The slots and the token memory that running jobs take.

/// The resources of the engine that running jobs have reserved.
#[derive(Debug, Default)]
pub(super) struct RunningJobs {
    count: usize,
    /// The sum of the reservations, in tokens.
    tokens: usize,
    /// Whether the running job is a crash suspect. It runs alone, so that another crash shows whether it is the cause.
    suspect_running: bool,
}

/// The resources of one running job: a slot, and the most tokens that it holds. Ends with [`RunningJobs::release`].
#[derive(Debug)]
pub(super) struct Reservation {
    tokens: usize,
    suspect: bool,
}

impl RunningJobs {
    /// The number of running jobs.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether none of `slots` is available.
    pub(super) fn is_full(&self, slots: usize) -> bool {
        self.count >= slots || self.suspect_running
    }

    /// Reserves a slot of `slots` and `tokens` of a memory for `max_tokens`; `None` if they are not available. The first job
    /// gets them whatever it needs, and a crash suspect only where nothing else runs.
    pub(super) fn reserve(
        &mut self,
        slots: usize,
        max_tokens: usize,
        tokens: usize,
        suspect: bool,
    ) -> Option<Reservation> {
        let is_alone = self.count == 0;
        let fits = is_alone || (!suspect && self.tokens.saturating_add(tokens) <= max_tokens);
        if self.is_full(slots) || !fits {
            return None;
        }
        self.count += 1;
        self.tokens += tokens;
        self.suspect_running = suspect;
        Some(Reservation { tokens, suspect })
    }

    /// Gives back the resources of a job that runs no longer.
    #[expect(clippy::needless_pass_by_value, reason = "a reservation is released once")]
    pub(super) fn release(&mut self, reservation: Reservation) {
        self.count -= 1;
        self.tokens -= reservation.tokens;
        if reservation.suspect {
            self.suspect_running = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_needs_a_slot_and_memory() {
        let mut running = RunningJobs::default();
        let large = running
            .reserve(3, 100, 200, false)
            .expect("the first job always fits");
        assert!(running.reserve(3, 100, 1, false).is_none());
        running.release(large);
        let small = [40, 60].map(|tokens| running.reserve(2, 100, tokens, false));
        assert!(small.iter().all(Option::is_some) && running.is_full(2));
        assert!(running.reserve(2, 1000, 1, false).is_none());
        assert_eq!((running.len(), running.tokens), (2, 100));
    }

    #[test]
    fn a_crash_suspect_runs_alone() {
        let mut running = RunningJobs::default();
        let other = running.reserve(4, 100, 10, false).expect("nothing runs");
        assert!(running.reserve(4, 100, 10, true).is_none());
        running.release(other);
        let suspect = running.reserve(4, 100, 10, true).expect("nothing runs");
        assert!(running.is_full(4) && running.reserve(4, 100, 10, false).is_none());
        running.release(suspect);
        assert!(running.reserve(4, 100, 10, false).is_some());
    }
}
