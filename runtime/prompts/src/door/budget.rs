//! The budget of memory for encoding, whose shares are given in order of arrival.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit of shares, in bytes: as much as a thread's stack and the allocator's own store beside the work.
const UNIT_BYTES: usize = 1 << 20;

/// The divisor of the budget that gives the size of the small lane.
const SMALL_LANE_DIVISOR: usize = 8;

/// The part of the budget that a share is taken from: small shares do not wait behind large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Small,
    Large,
}

/// A budget of memory in two lanes, each first come, first served. Clones are the same budget.
#[derive(Debug, Clone)]
pub(super) struct MemoryBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// The numbers of units of the lanes.
    small_units: u32,
    large_units: u32,
}

/// A share of the budget, given back when it is dropped.
#[derive(Debug)]
#[must_use = "the share lasts as long as this"]
pub(super) struct Share {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl MemoryBudget {
    pub(super) fn new(bytes: usize) -> Self {
        let units = units(bytes);
        let small_units = units.div_ceil(u32::try_from(SMALL_LANE_DIVISOR).unwrap_or(1));
        let large_units = units.saturating_sub(small_units).max(1);
        Self {
            small: Arc::new(Semaphore::new(small_units as usize)),
            large: Arc::new(Semaphore::new(large_units as usize)),
            small_units,
            large_units,
        }
    }

    /// Waits for `bytes` of a lane. A text that needs more than the lane has gets all of it, and is alone there.
    pub(super) async fn take(&self, lane: Lane, bytes: usize) -> Share {
        let (semaphore, most) = match lane {
            Lane::Small => (&self.small, self.small_units),
            Lane::Large => (&self.large, self.large_units),
        };
        Share {
            _permits: permits(semaphore, units(bytes).min(most))
                .await
                .into_iter()
                .collect(),
        }
    }

    /// Waits until no other share is held, and takes the whole budget.
    pub(super) async fn all(&self) -> Share {
        // Always in this order, so that no two callers each hold a part of the whole.
        let large = permits(&self.large, self.large_units).await;
        let small = permits(&self.small, self.small_units).await;
        Share {
            _permits: large.into_iter().chain(small).collect(),
        }
    }
}

/// Waits for permits. Returns `None` if the semaphore is closed, which never happens here.
async fn permits(semaphore: &Arc<Semaphore>, units: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(units).await.ok()
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES))
        .unwrap_or(u32::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn shares_wait_for_each_other_and_small_ones_for_no_large_one() {
        let budget = MemoryBudget::new(16 * UNIT_BYTES);
        let first = budget.take(Lane::Large, 10 * UNIT_BYTES).await;
        assert!(
            timeout(TIMEOUT, budget.take(Lane::Large, 5 * UNIT_BYTES))
                .await
                .is_err()
        );
        let fits = budget.take(Lane::Large, 4 * UNIT_BYTES).await;
        let small = timeout(TIMEOUT, budget.take(Lane::Small, 1))
            .await
            .expect("its own lane");
        drop((first, fits));
        // More than there is: all of it.
        let huge = timeout(TIMEOUT, budget.take(Lane::Large, usize::MAX)).await;
        let huge = huge.expect("nothing else is there");
        assert!(timeout(TIMEOUT, budget.take(Lane::Large, 1)).await.is_err());
        drop(huge);
        assert!(
            timeout(TIMEOUT, budget.all()).await.is_err(),
            "a small one is there"
        );
        drop(small);
        let all = timeout(TIMEOUT, budget.all()).await.expect("nothing is there");
        assert!(timeout(TIMEOUT, budget.take(Lane::Small, 1)).await.is_err());
        drop(all);
        let _small = timeout(TIMEOUT, budget.take(Lane::Small, 1)).await.expect("room");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_is_next() {
        let budget = Arc::new(MemoryBudget::new(16 * UNIT_BYTES));
        let held = budget.take(Lane::Large, 13 * UNIT_BYTES).await;
        let large = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.take(Lane::Large, 14 * UNIT_BYTES).await }
        });
        tokio::task::yield_now().await;
        // It would fit, and must not overtake.
        assert!(timeout(TIMEOUT, budget.take(Lane::Large, 1)).await.is_err());
        drop(held);
        assert!(timeout(TIMEOUT, large).await.is_ok());
    }
}
