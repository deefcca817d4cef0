//! A budget of memory that waits are paid from, in order of arrival.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What shares are counted in, in bytes: as much as a thread's stack and the allocator's own store beside the work.
const UNIT: usize = 1 << 20;

/// The part of the budget that small shares are taken from.
const SMALL_PART: usize = 8;

/// Which part of the budget a share is taken from: small ones do not wait behind large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Small,
    Large,
}

/// Memory in two lanes, each first come, first served.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Units of each.
    small_units: u32,
    large_units: u32,
}

/// Memory that is given back when this is dropped.
#[derive(Debug)]
#[must_use = "the share lasts as long as this"]
pub(super) struct Share {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl MemoryBudget {
    pub(super) fn new(bytes: usize) -> Self {
        let units = units(bytes);
        let small_units = units.div_ceil(u32::try_from(SMALL_PART).unwrap_or(1));
        let large_units = units.saturating_sub(small_units).max(1);
        Self {
            small: Arc::new(Semaphore::new(small_units as usize)),
            large: Arc::new(Semaphore::new(large_units as usize)),
            small_units,
            large_units,
        }
    }

    /// Waits for so many bytes of a lane; what asks for more than the lane has gets all of it, and is alone there.
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

    /// Waits until nothing else has a share, and keeps all others out.
    pub(super) async fn all(&self) -> Share {
        // In this order everywhere: two that want everything can't each hold a part.
        let large = permits(&self.large, self.large_units).await;
        let small = permits(&self.small, self.small_units).await;
        Share {
            _permits: large.into_iter().chain(small).collect(),
        }
    }
}

/// `None` if the semaphore is closed, which none here ever is.
async fn permits(semaphore: &Arc<Semaphore>, units: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(units).await.ok()
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn shares_wait_for_each_other_and_small_ones_for_no_large_one() {
        let budget = MemoryBudget::new(16 * UNIT);
        let first = budget.take(Lane::Large, 10 * UNIT).await;
        assert!(timeout(LONG, budget.take(Lane::Large, 5 * UNIT)).await.is_err());
        let fits = budget.take(Lane::Large, 4 * UNIT).await;
        let small = timeout(LONG, budget.take(Lane::Small, 1))
            .await
            .expect("its own lane");
        drop((first, fits));
        // More than there is: all of it.
        let huge = timeout(LONG, budget.take(Lane::Large, usize::MAX)).await;
        let huge = huge.expect("nothing else is there");
        assert!(timeout(LONG, budget.take(Lane::Large, 1)).await.is_err());
        drop(huge);
        assert!(timeout(LONG, budget.all()).await.is_err(), "a small one is there");
        drop(small);
        let all = timeout(LONG, budget.all()).await.expect("nothing is there");
        assert!(timeout(LONG, budget.take(Lane::Small, 1)).await.is_err());
        drop(all);
        let _small = timeout(LONG, budget.take(Lane::Small, 1)).await.expect("room");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_is_next() {
        let budget = Arc::new(MemoryBudget::new(16 * UNIT));
        let held = budget.take(Lane::Large, 13 * UNIT).await;
        let large = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.take(Lane::Large, 14 * UNIT).await }
        });
        tokio::task::yield_now().await;
        // It would fit, and must not overtake.
        assert!(timeout(LONG, budget.take(Lane::Large, 1)).await.is_err());
        drop(held);
        assert!(timeout(LONG, large).await.is_ok());
    }
}
