//! The quarantine over a path and a broker of which the test decides what they end connections at.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::{Publication, Quarantine, ReconnectDelay, Verdict};

const QUICK_DELAY: Duration = Duration::from_millis(50);
const BACKOFF: Duration = Duration::from_millis(250);
/// Longer than anything that is waited for.
const TIME_LIMIT: Duration = Duration::from_hours(100);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Letter {
    id: u32,
    destination: u64,
    bytes: usize,
    qos0: bool,
}

const STATUS: u32 = u32::MAX;

impl Publication for Letter {
    fn destination(&self) -> u64 {
        self.destination
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_qos0(&self) -> bool {
        self.qos0
    }

    fn is_latest_only(&self) -> bool {
        false
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

fn status(bytes: usize) -> Letter {
    Letter {
        id: STATUS,
        destination: u64::MAX,
        bytes,
        qos0: false,
    }
}

/// Splitmix: the same numbers for the same seed.
#[derive(Debug, Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}

/// The causes that end a connection beside poison.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Never,
    /// Each round trip with this probability, whenever something is under way or not.
    Random(f64),
    /// After so many packets from the node.
    Packets(u32),
    /// The same, another number for each connection.
    RandomPackets(u32, u32),
    /// After so many milliseconds of its life.
    Age(u64),
    RandomAge(u64, u64),
    /// After so many bytes from the node.
    Bytes(usize),
}

struct World {
    quarantine: Quarantine<Letter>,
    chance: Chance,
    now: Duration,
    round_trip: Duration,
    cut: Cut,
    poison: BTreeSet<u32>,
    /// The status is one too.
    status_is_poison: bool,
    waiting: VecDeque<Letter>,
    /// The most of them that are taken at once.
    room: usize,
    answered: BTreeMap<u32, u32>,
    convicted: BTreeMap<u32, u32>,
    deaths: u32,
}

impl World {
    fn new(seed: u64, round_trip: Duration, cut: Cut) -> Self {
        Self {
            quarantine: Quarantine::new(status(400), status(200)),
            chance: Chance(seed),
            now: Duration::ZERO,
            round_trip,
            cut,
            poison: BTreeSet::new(),
            status_is_poison: false,
            waiting: VecDeque::new(),
            room: [256, 1, 8][usize::try_from(seed % 3).unwrap_or(0)],
            answered: BTreeMap::new(),
            convicted: BTreeMap::new(),
            deaths: 0,
        }
    }

    fn verdicts(&mut self) {
        while let Some(verdict) = self.quarantine.next_verdict() {
            match verdict {
                Verdict::Confirmed(letter) => *self.answered.entry(letter.id).or_default() += 1,
                Verdict::Convicted(letter, deaths) => {
                    assert_eq!(self.convicted.insert(letter.id, deaths), None, "convicted twice");
                }
            }
        }
    }

    fn is_poison(&self, letter: &Letter) -> bool {
        self.poison.contains(&letter.id)
            || (letter.id == STATUS && self.status_is_poison && letter.bytes == 400)
    }

    /// When the path ends the connection at the latest, by age.
    fn end_by_age(&mut self) -> Duration {
        let age = match self.cut {
            Cut::Age(ms) => Duration::from_millis(ms),
            Cut::RandomAge(least, most) => Duration::from_millis(least + self.chance.below(most - least + 1)),
            Cut::Random(p) => {
                // Geometric in round trips, at a random moment of the last one.
                let mut trips = 0_u32;
                while self.chance.unit() >= p && trips < 10_000 {
                    trips += 1;
                }
                self.round_trip.mul_f64(f64::from(trips) + self.chance.unit())
            }
            _ => TIME_LIMIT,
        };
        self.now + age
    }

    /// One connection, from its begin to its end, or until nothing is left to do.
    fn connection(&mut self) -> bool {
        let mut end = self.end_by_age();
        let packets = match self.cut {
            Cut::Packets(packets) => packets,
            Cut::RandomPackets(least, most) => {
                least + u32::try_from(self.chance.below(u64::from(most - least + 1))).unwrap_or(0)
            }
            _ => u32::MAX,
        };
        let (mut sent, mut bytes) = (0, 0);
        let mut answers: VecDeque<(Duration, u64)> = VecDeque::new();
        self.quarantine.up(self.now);
        loop {
            while self.quarantine.len() < self.room
                && let Some(letter) = self.waiting.pop_front()
            {
                self.quarantine.push(letter);
            }
            while let Some(shipment) = self.quarantine.next(self.now, 1000) {
                sent += 1;
                bytes += shipment.message.bytes + shipment.padding;
                let is_cut = sent >= packets || matches!(self.cut, Cut::Bytes(most) if bytes > most);
                let answer = self.now + self.round_trip;
                if is_cut || self.is_poison(&shipment.message) {
                    // What was answered before still comes.
                    end = end.min(answer);
                } else if !shipment.message.qos0 && answer < end {
                    answers.push_back((answer, shipment.number));
                }
            }
            self.verdicts();
            if !self.waiting.is_empty() && self.quarantine.len() < self.room {
                continue;
            }
            let wake = self.quarantine.wake().unwrap_or(TIME_LIMIT).max(self.now);
            let answer = answers.front().map_or(TIME_LIMIT, |(at, _)| *at);
            let next = answer.min(wake);
            if next >= TIME_LIMIT && end >= TIME_LIMIT {
                assert!(
                    self.quarantine.is_idle(),
                    "nothing happens any more: {:?}",
                    self.quarantine
                );
                return false;
            }
            if self.waiting.is_empty() && self.quarantine.is_idle() {
                return false;
            }
            if end <= next {
                self.now = end.max(self.now);
                self.deaths += 1;
                let wait = self.quarantine.died(self.now);
                self.verdicts();
                self.now += if wait == ReconnectDelay::Short {
                    QUICK_DELAY
                } else {
                    BACKOFF
                };
                return true;
            }
            self.now = next;
            if answer <= self.now
                && let Some((_, number)) = answers.pop_front()
                && let Some(letter) = self.quarantine.answered(number, self.now)
            {
                *self.answered.entry(letter.id).or_default() += 1;
            }
            self.verdicts();
        }
    }
}

fn letters(chance: &mut Chance, number: u32) -> VecDeque<Letter> {
    let mut letter = |id| {
        let most = if chance.below(20) == 0 { 100_000 } else { 1000 };
        Letter {
            id,
            // Some destinations are shared.
            destination: if chance.below(4) == 0 {
                chance.below(50)
            } else {
                1000 + u64::from(id)
            },
            bytes: 100 + usize::try_from(chance.below(most)).unwrap_or(0),
            qos0: chance.below(10) == 0,
        }
    };
    (0..number).map(&mut letter).collect()
}

#[test]
fn a_path_that_ends_connections_convicts_no_message() {
    let ms = Duration::from_millis;
    let cuts = |chance: &mut Chance| {
        let number = u32::try_from(2 + chance.below(60)).unwrap_or(2);
        [
            (ms(1), Cut::Random(0.02)),
            (ms(1), Cut::Random(1.0 / 17.0)),
            (ms(300), Cut::Random(0.5)),
            (ms(5), Cut::Random(0.2)),
            (ms(1), Cut::Packets(number)),
            (ms(1), Cut::RandomPackets(1, number)),
            (ms(1), Cut::RandomPackets(number, number + 5)),
            (ms(1), Cut::Age(chance.below(120))),
            (ms(1), Cut::RandomAge(0, 60)),
            (ms(20), Cut::RandomAge(300, 400)),
            (ms(100), Cut::RandomAge(10, 3000)),
            (
                ms(1),
                Cut::Bytes(2_000 + usize::try_from(chance.below(120_000)).unwrap_or(0)),
            ),
        ]
    };
    for seed in 0..3 {
        let mut chance = Chance(seed);
        for (round_trip, cut) in cuts(&mut chance) {
            let mut world = World::new(seed, round_trip, cut);
            // More than passes in a thousand deaths.
            world.waiting = letters(&mut chance, 200_000);
            while world.deaths < 1000 && world.connection() {}
            assert_eq!(world.convicted, BTreeMap::new(), "seed {seed}, {cut:?}");
        }
    }
}

/// Random poisons among many: each is convicted once, all else arrives, and few connections end.
fn check_poisons(seed: u64, number: u32, poisons: u32, cut: Cut) {
    let mut world = World::new(seed, Duration::from_millis(1), cut);
    let mut chance = Chance(seed);
    world.waiting = letters(&mut chance, number);
    while world.poison.len() < poisons as usize {
        let id = u32::try_from(chance.below(u64::from(number))).unwrap_or(0);
        world.poison.insert(id);
    }
    while world.connection() {}
    let convicted: BTreeSet<u32> = world.convicted.keys().copied().collect();
    let wrong: Vec<&u32> = convicted.symmetric_difference(&world.poison).collect();
    assert!(wrong.is_empty(), "seed {seed}: {wrong:?}, {:?}", world.quarantine);
    for id in (0..number).filter(|id| !world.poison.contains(id)) {
        assert!(world.answered.contains_key(&id), "{id} is lost; seed {seed}");
    }
    if matches!(cut, Cut::Never) {
        assert!(
            world.deaths <= 5 * poisons,
            "{} deaths; seed {seed}",
            world.deaths
        );
        assert!(world.convicted.values().all(|deaths| *deaths <= 5), "seed {seed}");
    }
}

#[test]
fn of_4000_messages_exactly_the_200_poisons_are_convicted() {
    for seed in 0..3 {
        check_poisons(seed, 4000, 200, Cut::Never);
    }
}

#[test]
fn poisons_are_found_on_a_path_that_ends_connections_now_and_then() {
    for seed in 0..5 {
        check_poisons(seed, 1000, 20, Cut::RandomAge(500, 5000));
    }
}

#[test]
fn a_status_that_ends_connections_is_replaced_by_its_minimal_form() {
    let mut world = World::new(1, Duration::from_millis(1), Cut::Never);
    world.status_is_poison = true;
    world.waiting = letters(&mut Chance(1), 100);
    while world.connection() {}
    assert_eq!(world.convicted.keys().copied().collect::<Vec<_>>(), [STATUS]);
    assert_eq!(world.answered.len(), 100);
    assert!(world.deaths <= 5, "{}", world.deaths);
}

#[test]
fn a_chunk_that_ends_connections_mutes_its_destination() {
    let now = Duration::ZERO;
    let mut quarantine = Quarantine::new(status(400), status(200));
    quarantine.up(now);
    assert!(!quarantine.may_stream(7, 100), "nothing before the control");
    let control = quarantine.next(now, 10).expect("a control");
    quarantine.answered(control.number, now);
    assert!(quarantine.may_stream(7, 100));
    assert_eq!(quarantine.died(now), ReconnectDelay::Short);
    quarantine.up(now);
    let control = quarantine.next(now, 10).expect("a control");
    quarantine.answered(control.number, now);
    assert!(!quarantine.may_stream(7, 100));
    assert!(quarantine.may_stream(8, 100));
    // Its final reply is tried alone: what streams elsewhere is confirmed first.
    let last = Letter {
        id: 1,
        destination: 7,
        bytes: 100,
        qos0: false,
    };
    quarantine.push(last.clone());
    let barrier = quarantine.next(now, 10).expect("a control");
    assert_eq!(barrier.message.id, STATUS);
    assert!(quarantine.next(now, 10).is_none());
    quarantine.answered(barrier.number, now);
    let shipment = quarantine.next(now, 10).expect("the trial");
    assert_eq!(shipment.message, last);
    assert!(!quarantine.may_stream(8, 100), "nothing beside a trial");
    assert_eq!(quarantine.answered(shipment.number, now), Some(last));
    assert!(quarantine.may_stream(7, 100));
}

#[test]
fn what_was_under_way_when_the_node_closed_the_connection_is_not_suspect() {
    let now = Duration::ZERO;
    let mut quarantine = Quarantine::new(status(400), status(200));
    for letter in letters(&mut Chance(3), 20) {
        quarantine.push(letter);
    }
    for _ in 0..2 {
        quarantine.up(now);
        let control = quarantine.next(now, 100).expect("a control");
        quarantine.answered(control.number, now);
        let sent: Vec<u32> = std::iter::from_fn(|| quarantine.next(now, 100))
            .map(|shipment| shipment.message.id)
            .collect();
        assert_eq!(sent, (0..20).collect::<Vec<_>>());
        quarantine.closed();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_poisons_are_convicted_once(seed: u64, number in 1..300_u32, share in 0..100_u32) {
        check_poisons(seed, number, number * share / 100, Cut::Never);
    }

    /// A destination's messages arrive in their order, whatever the path does.
    #[test]
    fn messages_to_one_destination_keep_their_order(seed: u64, p in 0.01..0.3_f64) {
        let mut world = World::new(seed, Duration::from_millis(2), Cut::Random(p));
        let same = |id| Letter { id, destination: u64::from(id % 5), bytes: 100, qos0: false };
        world.waiting = (0..60).map(same).collect();
        let mut last = BTreeMap::new();
        let mut rounds = 0;
        loop {
            let before = world.answered.clone();
            let goes_on = world.connection();
            let new = world.answered.keys().filter(|id| !before.contains_key(*id));
            for id in new {
                let earlier = last.insert(id % 5, *id);
                prop_assert!(earlier.is_none_or(|earlier| earlier < *id));
            }
            rounds += 1;
            if !goes_on || rounds > 3000 {
                break;
            }
        }
        prop_assert_eq!(world.answered.len(), 60);
    }
}
