#![allow(clippy::unwrap_used)]

use super::*;
use crate::decoder::{Caps, Regime};
use crate::ids::TokenId;
use crate::symbol::Symbol;

const WHOLE: Reservation = Reservation {
    tokens: 90,
    may_cross: false,
};

fn rows(total: usize, slots: usize) -> KvRows {
    let mut caps = Caps::plain(total, 32);
    caps.contiguous_rows = false;
    caps.share_granularity = Some(8);
    KvRows::new(&caps, slots)
}

fn symbol(id: u32) -> Symbol {
    Symbol::from(TokenId(id))
}

fn tokens(len: u32, last: u32) -> Vec<Symbol> {
    (0..len).chain([last]).map(symbol).collect()
}

/// Seats a sequence that begins with the best idle prefix, and returns its plan.
fn start(rows: &mut KvRows, id: u64, prompt: &[Symbol], reservation: Reservation) -> RowPlan {
    let found = rows
        .idle_matches(prompt, prompt.len() - 1, Regime::Short)
        .max_by_key(|found| rows.preference(*found, reservation));
    let plan = rows.plan(reservation, found, None).unwrap();
    rows.seat(RequestId(id), &plan);
    rows.end_copies(plan.row);
    plan
}

fn span(row: RowId, end: usize) -> SharedSpan {
    SharedSpan { row, end }
}

#[test]
fn a_prefix_is_read_in_whole_blocks_and_the_rest_copied() {
    let mut rows = rows(6, 2);
    let first = start(&mut rows, 1, &tokens(40, 77), WHOLE).row;
    rows.leave(first, tokens(80, 77), Regime::Short);
    let second = start(&mut rows, 2, &tokens(45, 78), WHOLE);
    assert_eq!(second.spans, [span(first, 40)]);
    assert_eq!((second.copies, second.len), (vec![span(first, 45)], 45));
    assert_ne!(second.row, first);
    // What is read stays, the rest may go.
    assert_eq!(
        rows.evict_oldest(None).map(|evicted| (evicted.row, evicted.len)),
        Some((first, 40))
    );
    assert_eq!(rows.evict_oldest(None), None);
    rows.leave(second.row, tokens(60, 78), Regime::Short);
    assert_eq!(
        rows.evict_oldest(None).map(|evicted| evicted.row),
        Some(second.row)
    );
    assert_eq!(
        rows.evict_oldest(None).map(|evicted| (evicted.row, evicted.len)),
        Some((first, 0))
    );
}

#[test]
fn a_row_goes_on_in_place_unless_others_read_what_it_would_overwrite() {
    let mut rows = rows(6, 2);
    let first = start(&mut rows, 1, &tokens(40, 77), WHOLE).row;
    rows.leave(first, tokens(40, 77), Regime::Short);
    let second = start(&mut rows, 2, &tokens(45, 78), WHOLE);
    assert!(second.in_place && second.row == first);
    rows.leave(first, tokens(80, 77), Regime::Short);
    let reader = start(&mut rows, 3, &tokens(80, 79), WHOLE);
    assert!(reader.in_place);
    rows.leave(first, tokens(80, 79), Regime::Short);
    // A short prompt would lose much of the row.
    let reader = start(&mut rows, 4, &tokens(33, 79), WHOLE);
    assert_eq!(reader.spans, [span(first, 32)]);
    let found = PrefixMatch { row: first, len: 20 };
    assert!(!rows.can_continue(found, WHOLE));
    let found = PrefixMatch { row: first, len: 40 };
    assert!(rows.can_continue(found, WHOLE));
    let may_cross = Reservation {
        may_cross: true,
        ..WHOLE
    };
    assert!(
        !rows.can_continue(found, may_cross),
        "what is read would not last"
    );
}

#[test]
fn chains_grow_to_a_bound() {
    let mut rows = rows(12, 1);
    let mut last = 0;
    for id in 0..6u32 {
        // Each prompt is 16 tokens longer than the prefix of the one before, and its answer is much longer.
        let mut prompt: Vec<Symbol> = (0..16 * id + 16).map(symbol).collect();
        prompt.push(symbol(1000 + id));
        let plan = start(&mut rows, u64::from(id), &prompt, WHOLE);
        last = plan.spans.len();
        assert_eq!(plan.shared_end(), 16 * (id.min(4) as usize), "{plan:?}");
        let held = (0..16 * id + 16)
            .map(symbol)
            .chain((0..40).map(|n| symbol(2000 + 100 * id + n)));
        rows.leave(plan.row, held.collect(), Regime::Short);
    }
    assert_eq!(last, MAX_SPANS);
}

#[test]
fn a_sequence_that_may_cross_the_boundary_is_no_source_and_reserves_all() {
    let mut rows = rows(6, 3);
    let may_cross = Reservation {
        tokens: 60,
        may_cross: true,
    };
    let first = start(&mut rows, 1, &tokens(40, 77), may_cross);
    let found = PrefixMatch {
        row: first.row,
        len: 40,
    };
    let plan = rows.plan(WHOLE, Some(found), None).unwrap();
    assert_eq!((plan.spans, plan.copies), (vec![], vec![span(first.row, 40)]));
    rows.leave(first.row, tokens(80, 77), Regime::Short);
    let second = start(&mut rows, 2, &tokens(40, 78), may_cross);
    assert_eq!(second.spans, [span(first.row, 40)]);
    // 8 bytes a token.
    assert_eq!(rows.committed_bytes(None), 8 * (40 + 60));
    rows.cross(second.row);
    assert_eq!(rows.committed_bytes(None), 8 * 60);
}

#[test]
fn memory_is_counted_once_and_a_tight_budget_goes_without_sharing() {
    let mut rows = rows(6, 3);
    let first = start(&mut rows, 1, &tokens(40, 77), WHOLE).row;
    rows.leave(first, tokens(85, 77), Regime::Short);
    let found = PrefixMatch { row: first, len: 40 };
    let plan = |budget: usize| rows.plan(WHOLE, Some(found), Some(8 * budget as u64));
    // 40 shared tokens and 50 others; with 85 kept that is less than all.
    assert_eq!(
        plan(90).map(|plan| (plan.spans.len(), plan.in_place)),
        Some((1, false))
    );
    assert_eq!(plan(89), None);
    let long = PrefixMatch { row: first, len: 45 };
    let plan = |budget: usize| rows.plan(WHOLE, Some(long), Some(8 * budget as u64));
    // Five tokens are there twice while they are copied.
    assert_eq!(plan(95).map(|plan| plan.in_place), Some(false));
    assert_eq!(plan(94).map(|plan| plan.in_place), Some(true));
}

#[test]
fn each_slot_keeps_a_row() {
    let mut rows = rows(4, 3);
    for (id, last) in [(1, 77), (2, 78)] {
        let mut prompt = tokens(40, last);
        prompt[0] = symbol(last);
        let row = start(&mut rows, id, &prompt, WHOLE).row;
        let mut held = prompt.clone();
        held.extend(tokens(40, 0));
        rows.leave(row, held, Regime::Short);
    }
    let mut plans = Vec::new();
    for (id, last) in [(3, 77), (4, 78)] {
        let mut prompt = tokens(40, 79);
        prompt[0] = symbol(last);
        plans.push(start(&mut rows, id, &prompt, WHOLE));
    }
    // One row beside the slots: the second prefix is copied.
    assert_eq!(
        plans.iter().map(|plan| plan.spans.len()).collect::<Vec<_>>(),
        [1, 0]
    );
    assert!(plans[1].len == 40 && !plans[1].copies.is_empty(), "{plans:?}");
    assert!(rows.plan(WHOLE, None, None).is_some());
}
