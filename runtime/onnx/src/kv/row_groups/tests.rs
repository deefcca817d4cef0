//! Random schedules against plain rows: whatever is run, copied, cut or lost, a row holds what was written to it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, ProptestConfig, Strategy, proptest};
use proptest::{collection, prop_oneof};

use super::super::row_schedule::{RowChange, row_change};
use super::*;

const ROWS: usize = 6;

/// A step of a schedule. Rows are taken modulo their number.
#[derive(Debug, Clone)]
enum Op {
    /// Appends `tokens` to one row.
    Prefill {
        row: usize,
        tokens: usize,
    },
    /// Appends a token to several rows.
    Decode {
        rows: Vec<usize>,
    },
    Change(RowChange),
    /// The next change of the groups fails midway.
    Fail,
}

fn op() -> impl Strategy<Value = Op> {
    let row = 0..ROWS;
    prop_oneof![
        4 => (row.clone(), 1_usize..90).prop_map(|(row, tokens)| Op::Prefill { row, tokens }),
        6 => collection::btree_set(row, 1..ROWS).prop_map(|rows: BTreeSet<usize>| Op::Decode {
            rows: rows.into_iter().collect()
        }),
        5 => row_change(ROWS, 0..90).prop_map(Op::Change),
        1 => Just(Op::Fail),
    ]
}

/// Groups with contents: what [`super::super::device_rows`] does with tensors, on vectors.
struct Store {
    groups: RowGroups,
    contents: BTreeMap<GroupId, Vec<Vec<u32>>>,
    limits: Limits,
    fails: bool,
}

impl Store {
    fn new(limits: Limits) -> Self {
        Self {
            groups: RowGroups::new(ROWS, limits),
            contents: BTreeMap::new(),
            limits,
            fails: false,
        }
    }

    fn carry_out(&mut self, plan: Option<Regroup>) -> bool {
        let Some(plan) = plan else { return true };
        let mut added = BTreeMap::new();
        for new in &plan.added {
            let rows = new.members.iter().map(|member| {
                let mut row = vec![0; new.capacity];
                if let Some(source) = member.source {
                    let from = &self.contents[&source.place.group][source.place.index];
                    row[..source.tokens].copy_from_slice(&from[..source.tokens]);
                }
                row
            });
            assert!(added.insert(new.id, rows.collect::<Vec<_>>()).is_none());
        }
        for id in &plan.removed {
            assert!(self.contents.remove(id).is_some(), "a group is removed twice");
        }
        if std::mem::take(&mut self.fails) {
            self.groups.lose(&plan);
            return false;
        }
        self.groups.carry_out(&plan);
        for (id, rows) in added {
            assert!(
                self.contents.insert(id, rows).is_none(),
                "a group's number is used twice"
            );
        }
        true
    }

    fn ensure(&mut self, row: usize, tokens: usize) -> bool {
        let Ok(plan) = self.groups.plan_room(row, tokens) else {
            return false;
        };
        let done = self.carry_out(plan);
        if done {
            self.groups.hold(row, tokens);
        }
        done
    }

    fn together(&mut self, rows: &[usize], tokens: usize) -> Result<bool, NoMemory> {
        let plan = self.groups.plan_run(rows, tokens)?;
        Ok(self.carry_out(plan))
    }

    fn write(&mut self, row: usize, at: usize, tokens: &[u32]) {
        let place = self.groups.place(row).unwrap();
        self.contents.get_mut(&place.group).unwrap()[place.index][at..at + tokens.len()]
            .copy_from_slice(tokens);
    }

    fn drop_group(&mut self, emptied: Option<GroupId>) {
        if let Some(id) = emptied {
            assert!(self.contents.remove(&id).is_some());
        }
    }

    /// No place has two rows, no row two places, no memory is leaked nor overdrawn.
    fn check(&self) {
        assert!(
            self.groups.taken() <= self.limits.memory,
            "more memory than there is"
        );
        let known: Vec<_> = self.groups.groups.keys().collect();
        assert_eq!(known, self.contents.keys().collect::<Vec<_>>(), "a leak");
        let mut seen = BTreeSet::new();
        for (id, group) in &self.groups.groups {
            assert!(group.members.iter().any(Option::is_some), "an empty group");
            assert!(group.capacity <= self.limits.row);
            for (index, member) in group.members.iter().enumerate() {
                let Some(row) = *member else { continue };
                assert!(seen.insert(row), "row {row} has two places");
                assert_eq!(self.groups.place(row), Some(Place { group: *id, index }));
            }
        }
        let placed = (0..ROWS).filter(|&row| self.groups.place(row).is_some());
        assert_eq!(placed.collect::<BTreeSet<_>>(), seen, "a place without a row");
    }

    fn held(&self, row: usize, tokens: usize) -> &[u32] {
        let place = self.groups.place(row).unwrap();
        &self.contents[&place.group][place.index][..tokens]
    }
}

/// Runs a schedule; returns how many changes were refused for lack of memory.
fn run(ops: &[Op], limits: Limits) -> usize {
    let mut store = Store::new(limits);
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); ROWS];
    let (mut next, mut refused) = (1, 0);
    for op in ops {
        match op {
            Op::Prefill { row, tokens } => {
                let end = (rows[*row].len() + tokens).min(limits.row);
                let fresh: Vec<u32> = (next..).take(end - rows[*row].len()).collect();
                if store.groups.is_lost(*row) || !store.ensure(*row, end.max(1)) {
                    refused += 1;
                } else if !fresh.is_empty() && store.together(&[*row], end) == Ok(true) {
                    next += u32::try_from(fresh.len()).unwrap();
                    store.write(*row, rows[*row].len(), &fresh);
                    rows[*row].extend(fresh);
                }
            }
            Op::Decode { rows: named } => {
                let mut ready = named.clone();
                ready.retain(|&row| {
                    let end = rows[row].len() + 1;
                    end <= limits.row && !store.groups.is_lost(row) && store.ensure(row, end)
                });
                refused += named.len() - ready.len();
                // A change for a later row may have lost an earlier one.
                ready.retain(|&row| !store.groups.is_lost(row) && store.groups.place(row).is_some());
                let ends: Vec<usize> = ready.iter().map(|&row| rows[row].len() + 1).collect();
                for part in store.groups.partition(&ends) {
                    let part: Vec<usize> = part.into_iter().map(|index| ready[index]).collect();
                    let end = part.iter().map(|&row| rows[row].len() + 1).max().unwrap();
                    let together = store.together(&part, end);
                    if together == Ok(true) {
                        let group = store.groups.place(part[0]).unwrap().group;
                        let members = &store.groups.group(group).unwrap().members;
                        let members: BTreeSet<usize> = members.iter().flatten().copied().collect();
                        assert_eq!(
                            members,
                            part.iter().copied().collect(),
                            "a run has other rows than its own"
                        );
                    }
                    for row in part {
                        let alone = |store: &mut Store| store.together(&[row], rows[row].len() + 1);
                        let runs =
                            together == Ok(true) || (together.is_err() && alone(&mut store) == Ok(true));
                        if runs {
                            store.write(row, rows[row].len(), &[next]);
                            rows[row].push(next);
                            next += 1;
                        }
                    }
                }
            }
            Op::Change(RowChange::Copy { from, to, tokens }) => {
                let tokens = *tokens.min(&rows[*from].len());
                let is_held = tokens > 0 && from != to && !store.groups.is_lost(*from);
                if is_held && store.together(&[*to], tokens) == Ok(true) && !store.groups.is_lost(*from) {
                    let copied = store.held(*from, tokens).to_vec();
                    store.write(*to, 0, &copied);
                    store.groups.replace(*to, tokens);
                    rows[*to] = rows[*from][..tokens].to_vec();
                }
            }
            Op::Change(RowChange::Truncate { row, tokens }) => {
                let emptied = store.groups.truncate(*row, *tokens);
                store.drop_group(emptied);
                rows[*row].truncate(*tokens);
            }
            Op::Change(RowChange::Release { row }) => {
                let emptied = store.groups.truncate(*row, 0);
                store.drop_group(emptied);
                rows[*row].clear();
            }
            Op::Fail => store.fails = true,
        }
        store.check();
        for (row, written) in rows.iter_mut().enumerate() {
            if store.groups.is_lost(row) {
                written.clear();
            } else if !written.is_empty() {
                assert_eq!(
                    store.held(row, written.len()),
                    written.as_slice(),
                    "row {row} after {op:?}"
                );
            }
        }
    }
    for row in 0..ROWS {
        let emptied = store.groups.truncate(row, 0);
        store.drop_group(emptied);
    }
    assert!(store.contents.is_empty(), "a leak");
    assert_eq!(store.groups.taken(), 0);
    refused
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn rows_hold_what_was_written(
        ops in collection::vec(op(), 1..40), memory in 100_usize..3000, row in 40_usize..400,
    ) {
        run(&ops, Limits { memory, row: row.min(memory / 2) });
    }
}

proptest! {
    #[test]
    fn rows_within_a_budget_of_four_fifths_always_have_room(
        lens in collection::vec(1_usize..300, ROWS), order in collection::vec(0..ROWS, 1..60),
    ) {
        // Each row counts for 5/4 of its whole blocks, as the engine counts.
        let blocks: usize = lens.iter().map(|len| len.next_multiple_of(BLOCK_TOKENS)).sum();
        let limits = Limits { memory: (blocks * 5).div_ceil(4), row: 300 };
        let mut store = Store::new(limits);
        let mut rows = vec![0; ROWS];
        for row in order {
            rows[row] = (rows[row] + lens[row].div_ceil(3)).min(lens[row]);
            assert!(store.ensure(row, rows[row]), "{rows:?} of {lens:?}");
            let held: Vec<usize> = (0..ROWS).filter(|&row| rows[row] > 0).collect();
            let ends: Vec<usize> = held.iter().map(|&row| rows[row]).collect();
            for part in store.groups.partition(&ends) {
                let part: Vec<usize> = part.into_iter().map(|index| held[index]).collect();
                let end = part.iter().map(|&row| rows[row]).max().unwrap();
                if store.together(&part, end).is_err() {
                    for row in part {
                        assert_eq!(store.together(&[row], rows[row]), Ok(true), "row {row} of {rows:?}");
                    }
                }
            }
            store.check();
        }
    }

    #[test]
    fn a_capacity_is_at_most_a_quarter_more_than_whole_blocks(tokens in 1_usize..200_000) {
        let capacity = class(tokens);
        assert!(capacity >= tokens && capacity.is_multiple_of(BLOCK_TOKENS));
        assert!(4 * capacity <= 5 * tokens.next_multiple_of(BLOCK_TOKENS), "{tokens}: {capacity}");
        assert_eq!(class(capacity), capacity);
    }
}

#[test]
fn rows_of_similar_length_run_together() {
    let groups = RowGroups::new(
        8,
        Limits {
            memory: 1 << 20,
            row: 1 << 16,
        },
    );
    assert_eq!(groups.partition(&[100, 90, 120, 101]), [vec![0, 1, 2, 3]]);
    assert_eq!(groups.partition(&[100, 30_000, 90, 80]), [vec![1], vec![0, 2, 3]]);
    assert_eq!(groups.partition(&[1]), [vec![0]]);
}

#[test]
fn a_decoding_group_stays_until_its_rows_change() {
    let mut store = Store::new(Limits {
        memory: 4096,
        row: 1024,
    });
    for row in 0..3 {
        assert!(store.ensure(row, 20));
    }
    assert_eq!(store.together(&[0, 1, 2], 20), Ok(true));
    let group = store.groups.place(0).unwrap().group;
    assert_eq!(store.groups.plan_run(&[2, 0, 1], 32), Ok(None));
    // A row that grows takes its group along.
    assert!(store.ensure(1, 40));
    let grown = store.groups.place(0).unwrap().group;
    assert_ne!(group, grown);
    assert_eq!(store.groups.plan_run(&[0, 1, 2], 40), Ok(None));
    // A row that leaves gets a group of its own with the memory that it needs.
    assert_eq!(store.together(&[0, 1], 40), Ok(true));
    assert_eq!(
        store
            .groups
            .group(store.groups.place(2).unwrap().group)
            .unwrap()
            .capacity,
        32
    );
    store.check();
}
