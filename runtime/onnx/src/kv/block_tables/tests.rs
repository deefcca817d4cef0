//! Random schedules against plain rows: whatever is written, copied, cut, saved or loaded, a row holds what was written to it.

use proptest::prelude::{ProptestConfig, Strategy, prop_assert, proptest};
use proptest::{collection, prop_oneof};

use super::super::row_schedule::{RowChange, row_change};
use super::*;

const ROWS: usize = 6;
const BLOCK: usize = 4;

/// A step of a schedule. Tokens are taken modulo what a row holds, where it must hold them.
#[derive(Debug, Clone)]
enum TableOp {
    /// Writes `tokens` behind the first `keep` ones.
    Write {
        row: usize,
        keep: usize,
        tokens: usize,
    },
    /// Writes `tokens` behind all that a row holds.
    Append {
        row: usize,
        tokens: usize,
    },
    Reserve {
        row: usize,
        tokens: usize,
    },
    Change(RowChange),
    /// Saves the first tokens of a row.
    Save {
        row: usize,
        tokens: usize,
    },
    /// Loads what was saved last.
    Load {
        row: usize,
    },
}

fn op() -> impl Strategy<Value = TableOp> {
    let row = 0..ROWS;
    let tokens = 1_usize..30;
    prop_oneof![
        2 => (row.clone(), 0_usize..60, tokens.clone()).prop_map(|(row, keep, tokens)| TableOp::Write { row, keep, tokens }),
        5 => (row.clone(), tokens).prop_map(|(row, tokens)| TableOp::Append { row, tokens }),
        3 => row.clone().prop_map(|row| TableOp::Append { row, tokens: 1 }),
        2 => (row.clone(), 0_usize..60).prop_map(|(row, tokens)| TableOp::Reserve { row, tokens }),
        8 => row_change(ROWS, 0..60).prop_map(TableOp::Change),
        1 => (row.clone(), 0_usize..60).prop_map(|(row, tokens)| TableOp::Save { row, tokens }),
        1 => row.prop_map(|row| TableOp::Load { row }),
    ]
}

/// Tables with contents: what [`super::super::paged_rows`] does with tensors, on vectors.
struct BlockStore {
    tables: BlockTables,
    pool: Vec<[u32; BLOCK]>,
}

impl BlockStore {
    fn new(blocks: BlockId) -> Self {
        Self {
            tables: BlockTables::new(ROWS, blocks, BLOCK),
            pool: vec![[0; BLOCK]; blocks as usize],
        }
    }

    /// Writes tokens behind the first `start` ones of a row. `false`: there is no room, and nothing has changed.
    fn write(&mut self, row: usize, start: usize, tokens: &[u32]) -> bool {
        let before = (self.tables.blocks(row).to_vec(), self.tables.tokens(row));
        let Ok(copy) = self.tables.write(row, start, start + tokens.len()) else {
            let after = (self.tables.blocks(row).to_vec(), self.tables.tokens(row));
            assert_eq!(after, before, "a refused change has changed the row");
            return false;
        };
        if let Some(copy) = copy {
            let from = self.pool[copy.from as usize];
            self.pool[copy.to as usize][..copy.tokens].copy_from_slice(&from[..copy.tokens]);
        }
        for (token, at) in tokens.iter().zip(start..) {
            let block = self.tables.blocks(row)[at / BLOCK];
            assert_eq!(self.users_of(block), 1, "a block with two writers");
            self.pool[block as usize][at % BLOCK] = *token;
        }
        true
    }

    fn read(&self, row: usize, tokens: usize) -> Vec<u32> {
        let block = |at: usize| self.pool[self.tables.blocks(row)[at / BLOCK] as usize];
        (0..tokens).map(|at| block(at)[at % BLOCK]).collect()
    }

    fn users_of(&self, block: BlockId) -> usize {
        let of_row = |row| self.tables.blocks(row).iter().filter(|id| **id == block).count();
        (0..ROWS).map(of_row).sum()
    }

    /// No block is leaked, lost, or counted wrongly; none is twice in a row.
    fn check(&self) {
        for row in 0..ROWS {
            let blocks = self.tables.blocks(row);
            assert!(blocks.len() * BLOCK >= self.tables.tokens(row));
            for (at, block) in blocks.iter().enumerate() {
                assert!(!blocks[..at].contains(block), "a block twice in row {row}");
            }
        }
        for block in (0..).take(self.pool.len()) {
            let free = self.tables.free.iter().filter(|id| **id == block).count();
            let users = self.users_of(block);
            assert_eq!(self.tables.users[block as usize] as usize, users, "block {block}");
            assert_eq!(free, usize::from(users == 0), "block {block} of {users} rows");
        }
    }
}

/// Runs a schedule; returns how many changes were refused for lack of blocks.
fn run(ops: &[TableOp], blocks: BlockId) -> usize {
    let mut store = BlockStore::new(blocks);
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); ROWS];
    let mut saved: Vec<u32> = Vec::new();
    let (mut next, mut refused) = (1, 0);
    let mut write =
        |store: &mut BlockStore, rows: &mut [Vec<u32>], row: usize, keep: usize, tokens: usize| {
            let fresh: Vec<u32> = (next..).take(tokens).collect();
            next += u32::try_from(tokens).unwrap();
            let done = store.write(row, keep, &fresh);
            if done {
                rows[row].truncate(keep);
                rows[row].extend(fresh);
            }
            usize::from(!done)
        };
    for op in ops {
        match *op {
            TableOp::Write { row, keep, tokens } => {
                let keep = keep % (rows[row].len() + 1);
                refused += write(&mut store, &mut rows, row, keep, tokens);
            }
            TableOp::Append { row, tokens } => {
                let keep = rows[row].len();
                refused += write(&mut store, &mut rows, row, keep, tokens);
            }
            TableOp::Reserve { row, tokens } => {
                refused += usize::from(store.tables.reserve(row, tokens).is_err());
            }
            TableOp::Change(RowChange::Copy { from, to, tokens }) => {
                store.tables.share(from, to, tokens);
                if from != to {
                    rows[to] = rows[from][..tokens.min(rows[from].len())].to_vec();
                }
            }
            TableOp::Change(RowChange::Truncate { row, tokens }) => {
                store.tables.truncate(row, tokens);
                rows[row].truncate(tokens);
            }
            TableOp::Change(RowChange::Release { row }) => {
                store.tables.truncate(row, 0);
                rows[row].clear();
                assert!(store.tables.blocks(row).is_empty());
            }
            TableOp::Save { row, tokens } => saved = store.read(row, tokens.min(rows[row].len())),
            TableOp::Load { row } => {
                store.tables.truncate(row, 0);
                rows[row].clear();
                if store.write(row, 0, &saved) {
                    rows[row].clone_from(&saved);
                } else {
                    refused += 1;
                }
            }
        }
        store.check();
        for (row, written) in rows.iter().enumerate() {
            assert_eq!(store.tables.tokens(row), written.len(), "row {row} after {op:?}");
            assert_eq!(&store.read(row, written.len()), written, "row {row} after {op:?}");
        }
    }
    for row in 0..ROWS {
        store.tables.truncate(row, 0);
    }
    assert_eq!(store.tables.taken(), 0, "a leak");
    refused
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn rows_hold_what_was_written(ops in collection::vec(op(), 1..60), blocks in 4_u32..80) {
        run(&ops, blocks);
    }

    #[test]
    fn rows_that_fit_the_pool_one_by_one_always_have_room(
        lens in collection::vec(1_usize..40, ROWS), steps in collection::vec((0..ROWS, 0..ROWS, 0_usize..40), 1..40),
    ) {
        // The engine counts each row with all of its blocks, shared or not.
        let blocks: usize = lens.iter().map(|len| len.div_ceil(BLOCK)).sum();
        let mut store = BlockStore::new(u32::try_from(blocks).unwrap());
        for (row, from, tokens) in steps {
            if tokens % 3 == 0 {
                let tokens = tokens.min(lens[row]);
                store.tables.share(from, row, tokens);
            }
            let start = store.tables.tokens(row).min(lens[row]);
            let end = (start + tokens / 4).min(lens[row]);
            prop_assert!(store.write(row, start, &vec![1; end - start]), "row {row} of {lens:?}");
            store.check();
        }
    }
}

#[test]
fn a_full_pool_refuses() {
    let all = |row| TableOp::Append { row, tokens: 10 };
    assert_eq!(run(&[all(0), all(1), all(2)], 6), 1);
    // Rows that begin alike take no memory twice, until one of them goes on in a shared block.
    let copy = |to| {
        TableOp::Change(RowChange::Copy {
            from: 0,
            to,
            tokens: 10,
        })
    };
    let one = |row| TableOp::Append { row, tokens: 1 };
    assert_eq!(run(&[all(0), copy(1), copy(2), one(1)], 4), 0);
    assert_eq!(run(&[all(0), copy(1), copy(2), one(1), one(2)], 4), 1);
}

#[test]
fn a_shared_block_is_copied_before_it_is_written() {
    let mut tables = BlockTables::new(2, 8, BLOCK);
    assert_eq!(tables.write(0, 0, 6), Ok(None));
    tables.share(0, 1, 6);
    assert_eq!(tables.blocks(0), tables.blocks(1));
    let shared = tables.blocks(0)[1];
    let copy = tables.write(1, 6, 7).unwrap().unwrap();
    assert_eq!(
        (copy.from, copy.to, copy.tokens),
        (shared, tables.blocks(1)[1], 2)
    );
    assert_ne!(copy.from, copy.to);
    assert_eq!(tables.blocks(0)[0], tables.blocks(1)[0]);
    // The other row is the only one that has it now.
    assert_eq!(tables.write(0, 6, 7), Ok(None));
}
