//! The computation of a layer's experts.

use crate::experts::packed_experts::PackedExperts;
use crate::experts::routing::{ExpertGroup, Routing};
use crate::experts::swiglu::SwiGlu;
use crate::matmul::{PackedWeights, RowPlaces, RowScratch, columns, panel_height};
use crate::workers::{SharedPointer, Workers};

/// Values of a token that are summed up by one piece of work, where there are many tokens.
const SUMMED_TOKENS: usize = 16;

/// Buffers, kept from one layer to the next.
#[derive(Default)]
pub(crate) struct ExpertScratch {
    rows: RowScratch,
    /// `[pairs, 2 inner]`: gates and values.
    gated: Vec<f32>,
    /// `[pairs, hidden]`: results.
    results: Vec<f32>,
}

/// Computes `out[tokens, hidden]`: zeros for tokens without experts.
pub(crate) fn apply(
    experts: &PackedExperts,
    (tokens, routing): (&[f32], &Routing),
    swiglu: SwiGlu,
    out: &mut [f32],
    scratch: &mut ExpertScratch,
    workers: &impl Workers,
) -> Result<(), String> {
    let (hidden, wide) = (experts.shape.hidden, 2 * experts.shape.inner);
    if tokens.len() != out.len() || !tokens.len().is_multiple_of(hidden) {
        return Err(format!(
            "{} values in and {} out are not tokens of {hidden}",
            tokens.len(),
            out.len()
        ));
    }
    let pairs = routing.tokens.len();
    let ExpertScratch { rows, gated, results } = scratch;
    gated.resize(gated.len().max(pairs * wide), 0.0);
    results.resize(results.len().max(pairs * hidden), 0.0);
    let gated = SharedPointer(gated.as_mut_ptr());
    let input = |pair: usize| {
        let token = routing.tokens[pair];
        &tokens[token * hidden..][..hidden]
    };
    let stage = Stage {
        experts,
        routing,
        which: 0,
    };
    // SAFETY: the scratch has room for all pairs.
    unsafe { stage.run(rows, input, gated, workers) }?;
    let activated = |pair: usize| {
        // SAFETY: each pair's row is used by one piece of work, and there are as many rows as pairs.
        let row = unsafe { std::slice::from_raw_parts_mut(gated.at(pair * wide), wide) };
        swiglu.apply(row);
        &row[..wide / 2]
    };
    let stage = Stage { which: 1, ..stage };
    // SAFETY: as above.
    unsafe { stage.run(rows, activated, SharedPointer(results.as_mut_ptr()), workers) }?;
    sum(routing, results, hidden, out, workers)
}

/// A matmul of all pairs, each with its expert's matrix.
#[derive(Clone, Copy)]
struct Stage<'a> {
    experts: &'a PackedExperts,
    routing: &'a Routing,
    /// The first matrix or the second.
    which: usize,
}

impl Stage<'_> {
    fn matrix(&self, group: ExpertGroup) -> &PackedWeights {
        &self.experts.matrices[group.expert][self.which]
    }

    /// Multiplies the row that `input` gives for each pair, called once for each.
    ///
    /// # Safety
    /// `out` has room for a row of results for each pair.
    unsafe fn run<'v>(
        self,
        scratch: &mut RowScratch,
        input: impl Fn(usize) -> &'v [f32] + Sync + Send,
        out: SharedPointer<f32>,
        workers: &impl Workers,
    ) -> Result<(), String> {
        let groups = &self.routing.groups;
        let Some(any) = groups.first() else {
            return Ok(());
        };
        let shape = self.matrix(*any).shape;
        let places = scratch.places(self.routing.tokens.len(), shape);
        let panels = self.panels();
        let quantise = |at: usize| self.quantise(panels[at], places, &input);
        // A few rows are quantised sooner than another thread wakes up.
        if panels.len() <= 2 && self.which == 0 {
            (0..panels.len()).for_each(quantise);
        } else {
            workers.each(panels.len(), quantise)?;
        }
        let tiles = shape.tiles();
        workers.each(groups.len() * tiles, |piece| {
            let group = groups[piece / tiles];
            let (places, out) = (places.from(group.first), out.at(group.first * shape.n));
            // SAFETY: the group's rows are quantised, in panels that begin at its first; each tile of its results is written
            // by one piece of work.
            unsafe { columns(self.matrix(group), places, group.count, piece % tiles, out) };
        })
    }

    /// The panels of all groups.
    fn panels(&self) -> Vec<ExpertGroup> {
        let of_group = |group: &ExpertGroup| {
            let group = *group;
            let height = panel_height(self.matrix(group).kernels, group.count);
            (0..group.count).step_by(height).map(move |from| ExpertGroup {
                first: group.first + from,
                count: height.min(group.count - from),
                ..group
            })
        };
        self.routing.groups.iter().flat_map(of_group).collect()
    }

    fn quantise<'v>(&self, panel: ExpertGroup, places: RowPlaces, input: &impl Fn(usize) -> &'v [f32]) {
        let weights = self.matrix(panel);
        for row in 0..panel.count {
            let place = places.from(panel.first).panel_row(row, panel.count);
            let values = input(panel.first + row);
            // SAFETY: weights are packed only where the processor has what this needs. Each panel is written by one piece of
            // work, and the scratch has room for all.
            unsafe { (weights.kernels.quantise)(values, weights.shape.block, &place) };
        }
    }
}

/// Sums up each token's results in the order of its experts' scores.
fn sum(
    routing: &Routing,
    results: &[f32],
    hidden: usize,
    out: &mut [f32],
    workers: &impl Workers,
) -> Result<(), String> {
    let count = out.len() / hidden;
    let chosen = routing.parts.len().checked_div(count).unwrap_or(0);
    let out = SharedPointer(out.as_mut_ptr());
    let token = |token: usize| {
        // SAFETY: each token is written by one piece of work.
        let out = unsafe { std::slice::from_raw_parts_mut(out.at(token * hidden), hidden) };
        out.fill(0.0);
        for part in routing.parts[token * chosen..][..chosen].iter().flatten() {
            for (out, result) in out.iter_mut().zip(&results[part.pair * hidden..]) {
                *out += part.weight * result;
            }
        }
    };
    if count <= SUMMED_TOKENS {
        (0..count).for_each(token);
        return Ok(());
    }
    workers.each(count.div_ceil(SUMMED_TOKENS), |piece| {
        (piece * SUMMED_TOKENS..count.min((piece + 1) * SUMMED_TOKENS)).for_each(token);
    })
}
