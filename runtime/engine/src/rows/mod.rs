//! The rows of KV memory: their owners, and the prefixes that idle ones keep.
//!
//! A row that a sequence has left keeps its keys and values until their memory or the row is needed: the least recently
//! used goes first. Where the decoder can, a row reads the beginning of its tokens from other rows (`spans`), which keep
//! those tokens for as long as they are read.

mod budget;
mod neighbours;
mod reservation;
mod spans;

use crate::decoder::{Caps, Regime, SharedSpan};
use crate::ids::{RequestId, RowId};
use crate::symbol::Symbol;

pub(crate) use budget::RowBytes;
pub(crate) use reservation::Reservation;
pub(crate) use spans::RowPlan;

/// The fewest tokens of an idle row that are worth a copy or another row: fewer are recomputed.
const MIN_KEPT_TOKENS: usize = 32;

/// The state of all rows.
#[derive(Debug)]
pub(crate) struct KvRows {
    rows: Vec<RowState>,
    /// The most sequences that run at once. Where the decoder wants neighbours, these rows, from the first on, are the
    /// running zone.
    slots: usize,
    /// [`Caps::share_granularity`].
    granularity: Option<usize>,
    /// Rows of one run must be neighbours.
    contiguous: bool,
    bytes: RowBytes,
    clock: u64,
}

#[derive(Debug, Default)]
struct RowState {
    /// The running sequence that has the row, and the most that it may come to hold.
    owner: Option<(RequestId, Reservation)>,
    /// All tokens of an idle row, those that it reads from other rows among them; empty while a sequence owns the row.
    held: Vec<Symbol>,
    /// The tokens that it reads from other rows. Changed only while the row holds none itself.
    spans: Vec<SharedSpan>,
    /// The tokens that it is about to copy from other rows, behind those of `spans`.
    copies: Vec<SharedSpan>,
    regime: Option<Regime>,
    last_used: u64,
    pinned: bool,
}

impl RowState {
    fn is_idle(&self) -> bool {
        self.owner.is_none()
    }

    /// The number of tokens at the beginning that it reads from other rows.
    fn shared_end(&self) -> usize {
        self.spans.last().map_or(0, |span| span.end)
    }

    /// The spans of other rows that must keep their tokens for it.
    fn reads(&self) -> impl Iterator<Item = &SharedSpan> {
        self.spans.iter().chain(&self.copies)
    }
}

/// A row that shares a prefix with a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PrefixMatch {
    pub(crate) row: RowId,
    /// The number of shared tokens.
    pub(crate) len: usize,
}

impl KvRows {
    /// Empty rows of a decoder for at most `slots` running sequences.
    pub(crate) fn new(caps: &Caps, slots: usize) -> Self {
        Self {
            rows: (0..caps.rows.max(slots)).map(|_| RowState::default()).collect(),
            slots,
            granularity: caps.share_granularity.filter(|tokens| *tokens > 0),
            contiguous: caps.contiguous_rows,
            bytes: RowBytes::new(caps),
            clock: 0,
        }
    }

    /// The idle rows of `regime` that have a prefix in common with `tokens`, up to `most` tokens.
    pub(crate) fn idle_matches<'a>(
        &'a self,
        tokens: &'a [Symbol],
        most: usize,
        regime: Regime,
    ) -> impl Iterator<Item = PrefixMatch> + 'a {
        let idle = self.rows.iter().enumerate();
        idle.filter(move |(_, row)| row.is_idle() && row.regime == Some(regime))
            .map(move |(index, row)| PrefixMatch {
                row: row_id(index),
                len: common_prefix(&row.held, tokens).min(most),
            })
            .filter(|found| found.len > 0)
    }

    /// The idle rows that hold tokens, each with those, their regime, and the time of its last use: the tokens of a row change
    /// only together with their number or this time.
    pub(crate) fn idle_rows(&self) -> impl Iterator<Item = (RowId, &[Symbol], Regime, u64)> {
        let rows = self.rows.iter().enumerate();
        let idle = rows.filter(|(_, row)| row.is_idle() && !row.held.is_empty());
        idle.filter_map(|(index, row)| Some((row_id(index), row.held.as_slice(), row.regime?, row.last_used)))
    }

    /// Makes a row idle and returns the number of tokens that it keeps: those of `held`, or none where it would hold none
    /// itself.
    pub(crate) fn leave(&mut self, row: RowId, held: Vec<Symbol>, regime: Regime) -> usize {
        let now = self.tick();
        let state = &mut self.rows[index(row)];
        state.owner = None;
        state.last_used = now;
        if held.len() > state.shared_end() {
            state.regime = Some(regime);
            state.held = held;
        } else {
            state.regime = None;
            state.held = Vec::new();
            state.spans = Vec::new();
        }
        state.held.len()
    }

    /// Forgets what an idle row holds.
    pub(crate) fn clear(&mut self, row: RowId) {
        let state = &mut self.rows[index(row)];
        state.held = Vec::new();
        state.spans = Vec::new();
        state.regime = None;
    }

    /// Marks a row as just used.
    pub(crate) fn touch(&mut self, row: RowId) {
        let now = self.tick();
        self.rows[index(row)].last_used = now;
    }

    /// Pins an idle row: it is never evicted.
    pub(crate) fn pin(&mut self, row: RowId) {
        self.rows[index(row)].pinned = true;
    }

    /// The row that is pinned with exactly these tokens.
    pub(crate) fn pinned(&self, tokens: &[Symbol]) -> Option<RowId> {
        let found = self
            .rows
            .iter()
            .position(|state| state.pinned && state.held == tokens)?;
        Some(row_id(found))
    }

    /// A row for a pinned prefix, such that enough rows stay for running sequences.
    pub(crate) fn row_to_pin(&self) -> Option<RowId> {
        if self.contiguous {
            return self.spare_row_to_pin();
        }
        let stays = self.source_rows(None) + self.slots < self.rows.len();
        self.least_wanted_row(&[]).filter(|_| stays)
    }

    /// The tokens that `row` holds if it is idle.
    pub(crate) fn held(&self, row: RowId) -> &[Symbol] {
        &self.rows[index(row)].held
    }

    /// Whether `row` is idle.
    pub(crate) fn is_idle(&self, row: RowId) -> bool {
        self.rows[index(row)].is_idle()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The length of the prefix that two texts share.
pub(crate) fn common_prefix(a: &[Symbol], b: &[Symbol]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn index(row: RowId) -> usize {
    row.0 as usize
}

fn row_id(index: usize) -> RowId {
    RowId(u32::try_from(index).unwrap_or(u32::MAX))
}
