//! The jobs that wait for a slot, and the order in which they start.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

use super::shares::{Client, QueueFull, Shares};
use phi_edge_api::{JobKey, Priority};

/// The waiting time that counts as much as one step of priority.
const AGEING_INTERVAL: Duration = Duration::from_secs(30);

/// A place in the queue: first come, first served within a priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    priority: Reverse<Priority>,
    number: u64,
}

/// A job in the queue.
#[derive(Debug)]
pub(super) struct QueuedJob {
    pub(super) key: JobKey,
    pub(super) accepted: Instant,
    pub(super) expires: Instant,
    /// Whether it ran when the process crashed.
    pub(super) suspect: bool,
}

/// The queue: jobs that wait for a slot, and reserved places of jobs that are being encoded and stored.
#[derive(Debug, Default)]
pub(super) struct JobQueue {
    jobs: BTreeMap<Place, QueuedJob>,
    /// The number of reserved places.
    arriving: usize,
    /// The number of crash suspects among `jobs`.
    suspects: usize,
    /// The share of each client in `jobs` and in the reserved places.
    shares: Shares,
    /// The number of the next place.
    next_number: u64,
}

impl JobQueue {
    /// The number of jobs that wait for a slot.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The number of jobs that wait for a slot or have reserved a place.
    pub(super) fn len_with_arriving(&self) -> usize {
        self.jobs.len() + self.arriving
    }

    /// Whether a client may have one more job in a queue of `max_jobs` places.
    pub(super) fn check_room(&self, client: &Client, max_jobs: usize) -> Result<(), QueueFull> {
        self.shares.room(client, self.len_with_arriving(), max_jobs)
    }

    /// Reserves the last place of its priority for a job that is being encoded.
    pub(super) fn reserve(&mut self, client: &Client, priority: Priority) -> Place {
        let place = Place::new(priority, self.next_number);
        self.next_number += 1;
        self.arriving += 1;
        self.shares.enter(client);
        place
    }

    /// Gives back a reserved place.
    pub(super) fn abandon(&mut self, client: &Client) {
        self.arriving -= 1;
        self.shares.leave(client);
    }

    /// Puts a job on the place that it has reserved.
    pub(super) fn arrive(&mut self, place: Place, job: QueuedJob) {
        self.arriving -= 1;
        self.put(place, job);
    }

    /// Puts a job on a place that it had before: in an earlier process, or before it ran.
    pub(super) fn insert(&mut self, place: Place, job: QueuedJob) {
        self.shares.enter(&job.key.client);
        self.put(place, job);
    }

    /// Removes the job of a place, if there is one.
    pub(super) fn remove(&mut self, place: Place) -> Option<QueuedJob> {
        let job = self.jobs.remove(&place)?;
        self.suspects -= usize::from(job.suspect);
        self.shares.leave(&job.key.client);
        Some(job)
    }

    /// Removes a job that starts, and counts its `tokens` as service to its client.
    pub(super) fn start(&mut self, place: Place, tokens: usize) {
        if let Some(job) = self.remove(place) {
            self.shares.started(&job.key.client, tokens);
        }
    }

    /// The job that starts next: a crash suspect, if there is one, so that another crash shows whether it is the cause;
    /// otherwise the one of the highest rank.
    pub(super) fn peek(&self, now: Instant) -> Option<(Place, &QueuedJob)> {
        let place = self.first_suspect().or_else(|| self.highest_rank(now))?;
        Some((place, self.jobs.get(&place)?))
    }

    /// The keys of all queued jobs, in the order of their places.
    pub(super) fn keys(&self) -> Vec<JobKey> {
        self.jobs.values().map(|job| job.key.clone()).collect()
    }

    /// The keys of the queued jobs whose deadline has passed, in the order of their places.
    pub(super) fn expired(&self, now: Instant) -> Vec<JobKey> {
        let expired = self.jobs.values().filter(|job| job.expires <= now);
        expired.map(|job| job.key.clone()).collect()
    }

    /// The earliest deadline of a queued job.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.jobs.values().map(|job| job.expires).min()
    }

    /// Raises the numbers of all places, those to come among them, by `by`.
    pub(super) fn shift_places(&mut self, by: u64) {
        self.next_number = self.next_number.saturating_add(by);
        let jobs = std::mem::take(&mut self.jobs);
        self.jobs = jobs
            .into_iter()
            .map(|(place, job)| (place.shifted(by), job))
            .collect();
    }

    fn put(&mut self, place: Place, job: QueuedJob) {
        self.suspects += usize::from(job.suspect);
        self.jobs.insert(place, job);
    }

    fn first_suspect(&self) -> Option<Place> {
        if self.suspects == 0 {
            return None;
        }
        let suspect = self.jobs.iter().find(|(_, job)| job.suspect);
        suspect.map(|(place, _)| *place)
    }

    /// The place of the highest rank. The rank of a priority is its step and the waiting time of its first job, where
    /// [`AGEING_INTERVAL`] counts as one step, so that no priority starves. Within the priority, the client that was served
    /// least comes first.
    fn highest_rank(&self, now: Instant) -> Option<Place> {
        let heads = [Priority::Interactive, Priority::Normal, Priority::Background].map(|priority| {
            let (place, job) = self.jobs.range(places_of(priority)).next()?;
            let waited = now.saturating_duration_since(job.accepted);
            let rank = u128::from(priority as u8) * AGEING_INTERVAL.as_millis() + waited.as_millis();
            Some((rank, Reverse(place.number), priority))
        });
        let (.., priority) = heads.into_iter().flatten().max()?;
        // Of equal tags `min_by_key` takes the first, which has waited longest.
        let jobs = self.jobs.range(places_of(priority));
        let fairest = jobs.min_by_key(|(_, job)| self.shares.tag(&job.key.client));
        fairest.map(|(place, _)| *place)
    }
}

impl Place {
    pub(super) fn new(priority: Priority, number: u64) -> Self {
        Self {
            priority: Reverse(priority),
            number,
        }
    }

    /// The position among all places of its priority.
    pub(super) fn number(self) -> u64 {
        self.number
    }

    /// The place whose number is higher by `by`.
    pub(super) fn shifted(self, by: u64) -> Self {
        Self {
            number: self.number.saturating_add(by),
            ..self
        }
    }
}

/// All places of a priority.
fn places_of(priority: Priority) -> RangeInclusive<Place> {
    Place::new(priority, 0)..=Place::new(priority, u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_JOBS: usize = 2;

    fn queued(name: &str, now: Instant, suspect: bool) -> QueuedJob {
        QueuedJob {
            key: JobKey {
                client: Some(name.to_owned()),
                id: name.to_owned(),
            },
            accepted: now,
            expires: now + Duration::from_mins(1),
            suspect,
        }
    }

    fn peek(queue: &JobQueue, now: Instant) -> Option<(&str, Place)> {
        queue.peek(now).map(|(place, job)| (job.key.id.as_str(), place))
    }

    #[test]
    fn reserved_places_count_until_they_are_abandoned() {
        let now = Instant::now();
        let (mut queue, client) = (JobQueue::default(), Some("a".to_owned()));
        let place = queue.reserve(&client, Priority::Normal);
        queue.reserve(&client, Priority::Normal);
        assert_eq!((queue.len(), queue.len_with_arriving()), (0, 2));
        assert!(queue.check_room(&client, MAX_JOBS).is_err());
        queue.arrive(place, queued("a", now, false));
        assert_eq!((queue.len(), queue.len_with_arriving()), (1, 2));
        queue.abandon(&client);
        assert_eq!(queue.check_room(&client, MAX_JOBS), Ok(()));
        queue.start(place, 10);
        assert_eq!((queue.len_with_arriving(), queue.peek(now).is_none()), (0, true));
    }

    #[test]
    fn suspects_start_first_and_places_of_an_earlier_process_before_those_of_this_one() {
        let now = Instant::now();
        let mut queue = JobQueue::default();
        let own = queue.reserve(&Some("own".to_owned()), Priority::Normal);
        queue.arrive(own, queued("own", now, false));
        queue.shift_places(8);
        let own = own.shifted(8);
        let (former, suspect) = (
            Place::new(Priority::Normal, 3),
            Place::new(Priority::Background, 7),
        );
        queue.insert(former, queued("former", now, false));
        queue.insert(suspect, queued("suspect", now, true));
        assert_eq!(peek(&queue, now), Some(("suspect", suspect)));
        assert!(queue.remove(suspect).is_some() && queue.remove(suspect).is_none());
        assert_eq!(peek(&queue, now), Some(("former", former)));
        queue.start(former, 1);
        assert_eq!(peek(&queue, now), Some(("own", own)));
        assert_eq!(queue.reserve(&None, Priority::Normal).number(), 9);
    }
}
