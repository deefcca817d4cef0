//! Fair shares of the queue: admission and order of service by client.
//!
//! The queue admits every job while it has room. When it is full, a client that has less than its share of it is still
//! admitted, up to [`OVERCOMMIT_FACTOR`] times the queue, so that the flood of one client does not keep others out. Within a
//! priority the order is start-time fair queueing (Goyal, Vin and Cheng, 1996): each job has the tag at which its client's
//! last one ended, in tokens, and the smallest tag is next. An idle client earns no credit: its tag is not below that of the
//! job that was started last.

use std::collections::HashMap;

/// The most jobs that wait in all, as a multiple of `limits.queue`. It is not reached before each waiting client has its
/// share, as long as there are no more clients than places in the queue.
const OVERCOMMIT_FACTOR: usize = 2;

/// The client of a job: the `{client}` of its topic. All jobs without one belong to the same client.
pub(super) type Client = Option<String>;

/// A position in the order of service, in tokens.
pub(super) type Tag = u64;

/// The number of waiting jobs and the service received, by client.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// The number of jobs that wait or arrive, above zero.
    waiting: HashMap<Client, usize>,
    /// The tag at which each client's last job ends, above `now`.
    ends: HashMap<Client, Tag>,
    /// The tag of the job that was started last.
    now: Tag,
}

/// The reason for which a job is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueFull {
    /// The queue is full, and no other client waits, or the overcommit is used up too.
    Full { waiting: usize },
    /// The queue is full, and the client has used its share of it.
    ShareExhausted {
        own: usize,
        share: usize,
        clients: usize,
    },
}

impl Shares {
    /// Whether a client may add a job to `waiting` jobs in a queue for `queue`.
    pub(super) fn room(&self, client: &Client, waiting: usize, queue: usize) -> Result<(), QueueFull> {
        if waiting < queue {
            return Ok(());
        }
        let own = self.waiting.get(client).copied().unwrap_or(0);
        let clients = self.waiting.len() + usize::from(own == 0);
        let share = (queue / clients.max(1)).max(1);
        if clients <= 1 || waiting >= queue.saturating_mul(OVERCOMMIT_FACTOR) {
            return Err(QueueFull::Full { waiting });
        }
        if own >= share {
            return Err(QueueFull::ShareExhausted { own, share, clients });
        }
        Ok(())
    }

    /// Counts a job of this client as waiting.
    pub(super) fn enter(&mut self, client: &Client) {
        *self.waiting.entry(client.clone()).or_default() += 1;
    }

    /// Counts a job of this client as waiting no longer.
    pub(super) fn leave(&mut self, client: &Client) {
        if let Some(waiting) = self.waiting.get_mut(client) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(client);
            }
        }
    }

    /// The tag of a client's next job. The smallest of all clients is served next.
    pub(super) fn tag(&self, client: &Client) -> Tag {
        self.ends.get(client).copied().unwrap_or(0).max(self.now)
    }

    /// Counts the start of a job of `tokens` as service to its client.
    pub(super) fn started(&mut self, client: &Client, tokens: usize) {
        self.now = self.tag(client);
        let end = self.now.saturating_add(u64::try_from(tokens).unwrap_or(u64::MAX));
        let now = self.now;
        self.ends.retain(|_, end| *end > now);
        self.ends.insert(client.clone(), end);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn client(n: usize) -> Client {
        (n > 0).then(|| n.to_string())
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask { client: usize, tokens: usize },
        Serve,
    }

    fn step() -> impl Strategy<Value = Step> {
        // The first client floods.
        let who = prop_oneof![4 => Just(0usize), 1 => 0usize..6];
        prop_oneof![
            3 => (who, 1usize..100).prop_map(|(client, tokens)| Step::Ask { client, tokens }),
            2 => Just(Step::Serve),
        ]
    }

    /// Serves the client of the smallest tag, the longest waiting of equal ones.
    fn serve(shares: &mut Shares, queue: &mut VecDeque<(usize, usize)>) -> Option<(usize, usize)> {
        let next = (0..queue.len()).min_by_key(|n| (shares.tag(&client(queue[*n].0)), *n))?;
        let (who, tokens) = queue.remove(next)?;
        shares.leave(&client(who));
        shares.started(&client(who), tokens);
        Some((who, tokens))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bounds_and_shares_hold_whatever_comes(
            limit in 1usize..24,
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let mut shares = Shares::default();
            let mut queue: VecDeque<(usize, usize)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Serve => { serve(&mut shares, &mut queue); }
                    Step::Ask { client: who, tokens } => {
                        let own = queue.iter().filter(|(client, _)| *client == who).count();
                        let others: std::collections::HashSet<usize> =
                            queue.iter().map(|(client, _)| *client).filter(|client| *client != who).collect();
                        let share = (limit / (others.len() + 1)).max(1);
                        let room = shares.room(&client(who), queue.len(), limit);
                        if queue.len() < limit || others.is_empty() {
                            // No other client waits, or there is room: as without shares.
                            prop_assert_eq!(room.is_ok(), queue.len() < limit);
                        } else if queue.len() < OVERCOMMIT_FACTOR * limit {
                            prop_assert_eq!(room.is_ok(), own < share);
                        } else {
                            prop_assert!(room.is_err());
                        }
                        if room.is_ok() {
                            shares.enter(&client(who));
                            queue.push_back((who, tokens));
                        }
                        prop_assert!(queue.len() <= OVERCOMMIT_FACTOR * limit);
                    }
                }
                let waiting: std::collections::HashSet<usize> = queue.iter().map(|(client, _)| *client).collect();
                prop_assert_eq!(shares.waiting.len(), waiting.len());
                prop_assert!(shares.ends.len() <= 6);
            }
        }

        /// Clients that always wait are served alike, to within a job of each.
        #[test]
        fn service_is_fair_in_tokens(sizes in prop::collection::vec(1usize..200, 2..6)) {
            let mut shares = Shares::default();
            let mut queue = VecDeque::new();
            let mut served = vec![0usize; sizes.len()];
            for _ in 0..500 {
                for (who, tokens) in sizes.iter().enumerate() {
                    if queue.iter().all(|(client, _)| *client != who) {
                        shares.enter(&client(who));
                        queue.push_back((who, *tokens));
                    }
                }
                let (who, tokens) = serve(&mut shares, &mut queue).expect("all wait");
                served[who] += tokens;
            }
            let most = sizes.iter().max().expect("some");
            let (least, top) = (served.iter().min().expect("some"), served.iter().max().expect("some"));
            prop_assert!(top - least <= 2 * most, "{served:?} of {sizes:?}");
        }
    }

    #[test]
    fn one_request_waits_behind_no_flood() {
        let (mut shares, mut queue) = (Shares::default(), VecDeque::new());
        for _ in 0..64 {
            shares.enter(&client(0));
            queue.push_back((0, 50));
        }
        for _ in 0..10 {
            serve(&mut shares, &mut queue);
        }
        assert_eq!(
            shares.room(&client(0), 64, 64),
            Err(QueueFull::Full { waiting: 64 })
        );
        assert_eq!(shares.room(&client(1), 64, 64), Ok(()));
        shares.enter(&client(1));
        queue.push_back((1, 500));
        let used = QueueFull::ShareExhausted {
            own: 54,
            share: 32,
            clients: 2,
        };
        assert_eq!(shares.room(&client(0), 65, 64), Err(used));
        assert_eq!(serve(&mut shares, &mut queue), Some((1, 500)));
        // It waits until the other client has received as much service.
        shares.enter(&client(1));
        queue.push_back((1, 1));
        assert!((0..9).all(|_| serve(&mut shares, &mut queue) == Some((0, 50))));
    }
}
