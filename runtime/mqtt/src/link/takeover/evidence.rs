//! The evidence of a takeover: a state machine to which time is an argument.
//!
//! The broker gives a session to one connection at a time. So another node of the same client id publishes its status just
//! after this node has lost its connection, and never while this node is connected. Both are used: a status counts for the
//! death of the connection that it followed, and a node that publishes while this one is connected is forgotten.

use std::time::Duration;

use tokio::time::Instant;

/// The number of deaths of the connection, each followed by a status of the same other node, that confirm a takeover.
const REQUIRED_CONFIRMATIONS: u32 = 2;
/// The same for an established node: of two nodes the younger one is to end.
const REQUIRED_CONFIRMATIONS_ESTABLISHED: u32 = 4;
/// The age of a connection that makes the node an established one.
const ESTABLISHED_AGE: Duration = Duration::from_mins(1);
/// The time after a connection is made within which a status may have been published before.
const SETTLING_TIME: Duration = Duration::from_secs(1);
/// The time before a death is noticed within which a status may have been published after the death.
const DETECTION_DELAY: Duration = Duration::from_millis(500);
/// The most other nodes that are remembered; beyond them the one seen least recently is forgotten.
const MAX_CONTENDERS: usize = 8;

/// The evidence of a series of deaths of the connection.
#[derive(Debug)]
pub(super) struct Evidence {
    own_boot_id: String,
    link: ConnectionState,
    /// The number of deaths so far.
    deaths: u64,
    established: bool,
    contenders: Vec<Contender>,
}

/// The state of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    Up {
        since: Instant,
    },
    /// `watched`: the probe listened before the connection died.
    Down {
        watched: bool,
    },
}

/// Another node that publishes on this node's status topic.
#[derive(Debug)]
struct Contender {
    boot_id: String,
    /// The number of deaths that a status of this node followed.
    deaths: u32,
    last_death: u64,
    /// The time of its first status while the connection is up, which clears it unless the connection dies at once.
    while_up: Option<Instant>,
}

impl Evidence {
    pub(super) fn new(own_boot_id: &str) -> Self {
        Self {
            own_boot_id: own_boot_id.to_owned(),
            link: ConnectionState::Down { watched: false },
            deaths: 0,
            established: false,
            contenders: Vec::new(),
        }
    }

    /// Notes that this node has its session.
    pub(super) fn connected(&mut self, now: Instant) {
        self.link = ConnectionState::Up { since: now };
    }

    /// Notes that the connection is gone, for whatever reason.
    pub(super) fn lost(&mut self) {
        self.link = ConnectionState::Down { watched: false };
    }

    /// Notes that the other side closed the connection, after `lived`, without a reason. `watched`: the probe listened before,
    /// so that a status that comes now is fresh.
    pub(super) fn died(&mut self, now: Instant, lived: Duration, watched: bool) {
        self.established |= lived >= ESTABLISHED_AGE;
        self.link = ConnectionState::Down { watched };
        self.deaths += 1;
        let death = self.deaths;
        self.contenders
            .retain_mut(|contender| match contender.while_up.take() {
                None => true,
                Some(seen) if now.saturating_duration_since(seen) <= DETECTION_DELAY => {
                    if watched {
                        contender.follows(death);
                    }
                    true
                }
                // It published while this node had the session, so it does not take the session over.
                Some(_) => false,
            });
    }

    /// Notes a fresh status, not retained, of a node that is not offline.
    pub(super) fn seen(&mut self, boot_id: &str, now: Instant) {
        if boot_id == self.own_boot_id {
            return;
        }
        match self.link {
            ConnectionState::Down { watched: false } => {}
            ConnectionState::Up { since } if now.saturating_duration_since(since) < SETTLING_TIME => {}
            ConnectionState::Down { watched: true } => {
                let death = self.deaths;
                self.contender(boot_id).follows(death);
            }
            ConnectionState::Up { .. } => {
                self.contender(boot_id).while_up.get_or_insert(now);
            }
        }
    }

    /// Whether another node has published its status since the last death of the connection.
    pub(super) fn is_current(&self) -> bool {
        self.current().next().is_some()
    }

    /// Whether a takeover is confirmed.
    pub(super) fn is_conclusive(&self) -> bool {
        let needed = if self.established {
            REQUIRED_CONFIRMATIONS_ESTABLISHED
        } else {
            REQUIRED_CONFIRMATIONS
        };
        self.current().any(|contender| contender.deaths >= needed)
    }

    /// Forgets the other nodes, at the end of a series of deaths.
    pub(super) fn clear(&mut self) {
        self.contenders.clear();
    }

    fn current(&self) -> impl Iterator<Item = &Contender> {
        let death = self.deaths;
        let down = matches!(self.link, ConnectionState::Down { .. });
        self.contenders
            .iter()
            .filter(move |contender| down && death > 0 && contender.last_death == death)
    }

    /// Returns the node of this boot id, moved to the end of the list.
    fn contender(&mut self, boot_id: &str) -> &mut Contender {
        let known = self.contenders.iter().position(|known| known.boot_id == boot_id);
        let contender = match known {
            Some(known) => self.contenders.remove(known),
            None => Contender {
                boot_id: boot_id.to_owned(),
                deaths: 0,
                last_death: 0,
                while_up: None,
            },
        };
        if self.contenders.len() >= MAX_CONTENDERS {
            self.contenders.remove(0);
        }
        self.contenders.push(contender);
        let last = self.contenders.len() - 1;
        &mut self.contenders[last]
    }
}

impl Contender {
    /// Counts a death once, however many statuses follow it.
    fn follows(&mut self, death: u64) {
        if self.last_death != death {
            self.last_death = death;
            self.deaths += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A node whose connections live five seconds each, and the time.
    struct Node {
        evidence: Evidence,
        now: Instant,
    }

    impl Node {
        fn new() -> Self {
            let now = Instant::now();
            let mut evidence = Evidence::new("own");
            evidence.connected(now);
            Self { evidence, now }
        }

        fn dies_after(&mut self, lived: Duration) -> &mut Self {
            self.now += lived;
            self.evidence.lost();
            self.evidence.died(self.now, lived, true);
            self
        }

        fn dies(&mut self) -> &mut Self {
            self.dies_after(5 * SECOND)
        }

        fn sees(&mut self, boot_id: &str) -> &mut Self {
            self.now += SECOND / 10;
            self.evidence.seen(boot_id, self.now);
            self
        }

        fn connects(&mut self) -> &mut Self {
            self.now += SECOND / 10;
            self.evidence.connected(self.now);
            self
        }

        fn is_taken_over(&self) -> bool {
            self.evidence.is_conclusive()
        }
    }

    #[test]
    fn two_deaths_that_a_status_of_one_other_node_follows_are_a_takeover() {
        let mut node = Node::new();
        assert!(!node.dies().sees("b").is_taken_over());
        assert!(!node.connects().is_taken_over());
        assert!(!node.dies().is_taken_over(), "nothing followed yet");
        assert!(node.sees("b").is_taken_over());
    }

    #[test]
    fn a_death_without_a_status_between_two_changes_nothing() {
        let mut node = Node::new();
        node.dies().sees("b").connects();
        node.dies().connects();
        assert!(node.dies().sees("b").is_taken_over());
    }

    #[test]
    fn what_follows_one_death_counts_once() {
        let mut node = Node::new();
        node.dies().sees("b").sees("b").sees("b");
        assert!(!node.is_taken_over());
        assert!(!node.connects().dies().is_taken_over());
    }

    #[test]
    fn two_other_nodes_do_not_add_up_and_this_one_does_not_count() {
        let mut node = Node::new();
        node.dies().sees("b").sees("own").connects();
        assert!(!node.dies().sees("c").sees("own").is_taken_over());
        assert!(!node.connects().dies().sees("own").is_taken_over());
    }

    #[test]
    fn a_status_counts_only_where_it_is_known_to_be_fresh() {
        let mut node = Node::new();
        for _ in 0..5 {
            node.now += 5 * SECOND;
            node.evidence.died(node.now, 5 * SECOND, false);
            assert!(!node.sees("b").is_taken_over());
            node.connects();
        }
    }

    #[test]
    fn who_publishes_while_this_node_is_connected_is_innocent() {
        let mut node = Node::new();
        node.dies().sees("b").connects();
        node.now += 2 * SECOND;
        node.sees("b");
        assert!(!node.dies().sees("b").is_taken_over(), "one death counts again");
        node.connects();
        assert!(node.dies().sees("b").is_taken_over());
    }

    #[test]
    fn a_death_that_is_noticed_late_counts() {
        let mut node = Node::new();
        node.dies().sees("b").connects();
        node.now += 5 * SECOND;
        node.sees("b");
        assert!(node.dies_after(DETECTION_DELAY / 2).is_taken_over());
    }

    #[test]
    fn of_two_nodes_the_one_that_had_the_session_for_long_stays() {
        let mut node = Node::new();
        node.dies_after(ESTABLISHED_AGE).sees("b").connects();
        for _ in 0..2 {
            assert!(!node.dies().sees("b").is_taken_over());
            node.connects();
        }
        assert!(node.dies().sees("b").is_taken_over());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Connect,
        Die,
        /// A status of one of ten other nodes.
        See(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
        let step = prop_oneof![
            Just(Step::Connect),
            Just(Step::Die),
            (0..10_u8).prop_map(Step::See)
        ];
        prop::collection::vec((step, 0..3_000_u64), 0..200)
    }

    proptest! {
        /// Whatever comes: no verdict without two deaths that a status of the same node came with, none while connected, and
        /// never more nodes than are remembered.
        #[test]
        fn nothing_less_than_two_deaths_is_conclusive(steps in steps()) {
            let mut now = Instant::now();
            let mut evidence = Evidence::new("own");
            let mut death = 0_u32;
            let mut up = false;
            let mut fresh: Vec<(u8, u32, Instant)> = Vec::new();
            for (step, ms) in steps {
                now += Duration::from_millis(ms);
                match step {
                    Step::Connect => {
                        evidence.connected(now);
                        up = true;
                    }
                    Step::Die => {
                        evidence.died(now, SECOND, true);
                        death += 1;
                        up = false;
                        let late: Vec<_> = fresh
                            .iter()
                            .filter(|(_, _, at)| now.saturating_duration_since(*at) <= DETECTION_DELAY)
                            .map(|(node, _, at)| (*node, death, *at))
                            .collect();
                        fresh.extend(late);
                    }
                    Step::See(node) => {
                        evidence.seen(&node.to_string(), now);
                        fresh.push((node, death, now));
                    }
                }
                prop_assert!(evidence.contenders.len() <= MAX_CONTENDERS);
                if evidence.is_conclusive() {
                    prop_assert!(!up);
                    let two = (0..10_u8).any(|node| {
                        let mut of: Vec<u32> =
                            fresh.iter().filter(|(other, of, _)| *other == node && *of > 0).map(|(_, of, _)| *of).collect();
                        of.sort_unstable();
                        of.dedup();
                        of.len() >= 2 && of.contains(&death)
                    });
                    prop_assert!(two);
                }
            }
        }

        /// A status at any pace from a node that never stops publishing is innocent as long as connections live long enough
        /// to see it.
        #[test]
        fn a_forger_that_does_not_know_when_is_innocent(every in 100..900_u64, lives in prop::collection::vec(3_000..20_000_u64, 20)) {
            let mut now = Instant::now();
            let mut evidence = Evidence::new("own");
            for life in lives {
                evidence.connected(now);
                let end = now + Duration::from_millis(life);
                while now + Duration::from_millis(every) < end {
                    now += Duration::from_millis(every);
                    evidence.seen("forged", now);
                }
                now = end;
                evidence.died(now, SECOND, true);
                for _ in 0..5 {
                    now += Duration::from_millis(every);
                    evidence.seen("forged", now);
                }
                prop_assert!(!evidence.is_conclusive());
            }
        }
    }
}
