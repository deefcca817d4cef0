//! Graph edits, made in memory before a graph is opened. The files are never touched.
//!
//! A graph of another form than an edit expects is left as it is; an edited graph is verified against the plain one
//! before it is used ([`crate::verify_edits`]).

mod cut_encoder;
mod cut_layers;
mod exact_matmuls;
mod external_data;
mod graph_editor;
mod logits;
mod merge_embedding;
mod page_attention;
#[cfg(test)]
mod paged_schema_tests;
mod protobuf;
mod quantise_matmuls;
mod ragged;
mod replace_attention;
mod replace_experts;
mod replace_matmuls;
#[cfg(test)]
mod replaced_matmul_tests;
mod rope;
mod tail;
#[cfg(test)]
pub(crate) mod test_graphs;

pub(crate) use cut_encoder::{CutEncoder, EncoderNames, cut_encoder};
pub(crate) use cut_layers::cut;
pub(crate) use exact_matmuls::{exact_experts, exact_matmuls};
pub(crate) use external_data::{LocatedGraph, MissingWeights, missing_weights, resolve_links};
pub(crate) use logits::LOGITS_ROWS;
pub(crate) use merge_embedding::{MergeNames, merge_embedding};
pub(crate) use page_attention::{BLOCK_TABLE, LENGTH_BOUNDS, PAST_LENGTHS, ROW_STARTS};
pub(crate) use quantise_matmuls::quantise_matmuls;
pub(crate) use ragged::{LENGTHS, POSITIONS};
pub(crate) use replace_attention::{KV_BLOCKS, KV_TABLE};
pub(crate) use replace_experts::{SingleExperts, replace_experts, single_experts};
pub use replace_matmuls::ProductShape;
pub(crate) use replace_matmuls::{SingleMatmul, replace_matmuls, single_matmuls};
pub(crate) use rope::RopeTables;

use prost::bytes::Bytes;

/// The level of a graph's form. Each includes those before it, as far as they apply, but for [`Level::Paged`], which no other one
/// includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The form of the file.
    Plain,
    /// Logits are computed for chosen tokens only.
    Logits,
    /// LongRoPE's tables are inputs.
    Rope,
    /// Attention is computed by ONNX Runtime's `PagedAttention`, over keys and values in blocks: rows of a run may differ in their
    /// number of tokens. On CUDA only.
    Paged,
    /// Rows of a run may differ in their number of tokens, have none, and be of either rope regime.
    Ragged,
}

/// The edits of a graph.
///
/// `possible` in `open.rs` decides on which providers and processors an edit is tried. The edit cache keeps the outcome, so
/// that a change of what an edit does needs a new `TRIAL_REVISION` (`edit_cache.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prepare {
    /// The level of its form.
    pub level: Level,
    /// Matmuls with weights of four bits are computed by the custom operator, where it has kernels for the processor
    /// ([`Isa`](crate::Isa)).
    pub matmul: bool,
    /// Attention is computed by the custom operator, in graphs that take rows of any length, where it has kernels for the
    /// processor.
    pub attention: bool,
    /// Experts with weights of four bits are computed by the custom operator, where it has kernels for the processor.
    pub experts: bool,
}

impl Prepare {
    /// No edits: the graph runs as it is in its file.
    pub const PLAIN: Self = Self::form(Level::Plain);
    /// All edits of a graph without experts.
    pub const ALL: Self = Self {
        level: Level::Ragged,
        matmul: true,
        attention: true,
        experts: false,
    };
    /// All edits.
    pub const ALL_WITH_EXPERTS: Self = Self {
        experts: true,
        ..Self::ALL
    };

    /// The edits that are tried, the most first. The form comes before the operators, for it decides what a run may
    /// mix.
    pub(crate) const ATTEMPTS: [Self; 13] = [
        Self::ALL_WITH_EXPERTS,
        Self {
            matmul: false,
            ..Self::ALL_WITH_EXPERTS
        },
        Self::ALL,
        Self {
            matmul: false,
            ..Self::ALL
        },
        Self {
            attention: false,
            ..Self::ALL_WITH_EXPERTS
        },
        Self::with_matmul(Level::Ragged),
        Self::form(Level::Ragged),
        Self::form(Level::Paged),
        Self::with_matmul(Level::Rope),
        Self::form(Level::Rope),
        Self::with_matmul(Level::Logits),
        Self::form(Level::Logits),
        Self::with_matmul(Level::Plain),
    ];

    /// A form without custom operators.
    pub const fn form(level: Level) -> Self {
        Self {
            level,
            matmul: false,
            attention: false,
            experts: false,
        }
    }

    const fn with_matmul(level: Level) -> Self {
        Self {
            level,
            matmul: true,
            attention: false,
            experts: false,
        }
    }

    /// Whether all of these edits are part of `most`.
    pub(crate) fn within(self, most: Self) -> bool {
        self.level <= most.level
            && (most.matmul || !self.matmul)
            && (most.attention || !self.attention)
            && (most.experts || !self.experts)
    }

    /// Their name on the command line and in the edit cache's file.
    pub fn as_str(self) -> &'static str {
        match (self.level, self.matmul, self.attention) {
            (Level::Ragged, true, true) if self.experts => "ragged+matmul+attention+experts",
            (Level::Ragged, true, false) if self.experts => "ragged+matmul+experts",
            (Level::Ragged, false, true) if self.experts => "ragged+attention+experts",
            (Level::Plain, false, _) => "plain",
            (Level::Logits, false, _) => "logits",
            (Level::Rope, false, _) => "rope",
            (Level::Paged, false, _) => "paged",
            (Level::Ragged, false, false) => "ragged",
            (Level::Ragged, false, true) => "ragged+attention",
            (Level::Plain, true, _) => "matmul",
            (Level::Logits, true, _) => "logits+matmul",
            (Level::Rope, true, _) => "rope+matmul",
            (Level::Paged, true, _) => "paged+matmul",
            (Level::Ragged, true, false) => "ragged+matmul",
            (Level::Ragged, true, true) => "ragged+matmul+attention",
        }
    }
}

impl std::fmt::Display for Prepare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Prepare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ATTEMPTS
            .into_iter()
            .chain([Self::PLAIN])
            .find(|prepare| prepare.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "unknown \"{text}\": use plain, logits, rope, paged or ragged, any but plain and paged with +matmul behind it, \
                     ragged also with +attention behind that and one of these with +experts at the end, or matmul"
                )
            })
    }
}

/// The reason why the edit of attention does not apply to `model`; `None` where it does.
pub(crate) fn attention_obstacle(model: &Bytes) -> Option<String> {
    let graph = rope::take_tables(model).map(|(edited, _)| edited);
    let graph = graph.as_ref().unwrap_or(model);
    // A graph whose lengths can't be wired has another form, which is found in its nodes as they are.
    let wired = ragged::wire_lengths(graph);
    replace_attention::attention_obstacle(wired.as_ref().unwrap_or(graph))
}

/// An edited graph.
pub(crate) struct EditedGraph {
    pub(crate) graph: Bytes,
    /// The contents of its inputs for rope tables, if it has such.
    pub(crate) tables: Option<RopeTables>,
}

/// Edits `model`, whose logits have this name; `paged_domain` has `PagedAttention`. `None` where the level's own edit or the
/// replacement of matmuls does not apply.
pub(crate) fn prepare(
    model: &Bytes,
    logits: &str,
    prepare: Prepare,
    paged_domain: &str,
) -> Option<EditedGraph> {
    prepare_leaving(model, logits, prepare, paged_domain, &[])
}

/// The same, with the matmuls of the shapes `left_out` as they are.
pub(crate) fn prepare_leaving(
    model: &Bytes,
    logits: &str,
    prepare: Prepare,
    paged_domain: &str,
    left_out: &[ProductShape],
) -> Option<EditedGraph> {
    let Prepare {
        level,
        matmul,
        attention,
        experts,
    } = prepare;
    let (mut graph, mut tables) = (None, None);
    if level >= Level::Rope {
        match rope::take_tables(model) {
            Some((edited, taken)) => (graph, tables) = (Some(edited), Some(taken)),
            None if level == Level::Rope => return None,
            None => {}
        }
    }
    if level == Level::Ragged {
        graph = Some(ragged::wire_lengths(graph.as_ref().unwrap_or(model))?);
    }
    if level >= Level::Logits {
        match logits::choose_logits(graph.as_ref().unwrap_or(model), logits) {
            Some(edited) => graph = Some(edited),
            // Logits of packed rows are always chosen.
            None if [Level::Logits, Level::Paged].contains(&level) => return None,
            None => {}
        }
    }
    // Last: the other edits know `GroupQueryAttention` and `MatMulNBits`.
    if level == Level::Paged {
        graph = Some(page_attention::page_attention(graph.as_ref()?, paged_domain)?);
    }
    if attention {
        graph = Some(replace_attention::replace_attention(graph.as_ref()?)?);
    }
    if experts {
        graph = Some(replace_experts(graph.as_ref().unwrap_or(model))?);
    }
    if matmul {
        graph = Some(replace_matmuls::replace_matmuls(
            graph.as_ref().unwrap_or(model),
            left_out,
        )?);
    }
    Some(EditedGraph {
        graph: graph?,
        tables,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for prepare in Prepare::ATTEMPTS.into_iter().chain([Prepare::PLAIN]) {
            assert_eq!(prepare.to_string().parse(), Ok(prepare));
        }
        let error = "rugged".parse::<Prepare>().unwrap_err();
        assert!(error.contains("rugged") && error.contains("+matmul"), "{error}");
    }

    #[test]
    fn what_is_tried_gets_less_and_less() {
        let within = |most: Prepare| {
            Prepare::ATTEMPTS
                .into_iter()
                .filter(|less| less.within(most))
                .count()
        };
        assert_eq!(within(Prepare::ALL_WITH_EXPERTS), 13);
        assert_eq!(within(Prepare::ALL), 10);
        assert_eq!(within(Prepare::form(Level::Ragged)), 4);
        assert_eq!(within(Prepare::form(Level::Paged)), 3);
        assert_eq!(within("rope+matmul".parse().unwrap()), 5);
        assert_eq!(within("matmul".parse().unwrap()), 1);
        assert_eq!(within(Prepare::PLAIN), 0);
    }
}
