//! The engine's decoder over an exported graph: past and present bound to the same memory, so that a step
//! copies nothing but its few integers.

mod bind;
mod capabilities;
mod config;
mod device_share;
mod grouped_run;
mod names;
mod packed_run;
mod reserve;
mod run_limits;
mod step_check;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ort::memory::MemoryInfo;
use ort::session::{IoBinding, RunOptions, Session};
use phi_edge_engine::{
    Caps, DecodeError, Decoder, ImageEncoding, ImageFeatures, ImageId, ImagePixels, Interrupt, KvType,
    Logits, Regime, Row, RowId, Step,
};
use phi_edge_models::GenaiConfig;

use crate::error::OnnxError;
use crate::isa::Isa;
use crate::kv::{GroupId, KvError, KvFootprint, KvMemory};
use crate::kv_cache::{KvCache, KvSupport};
use crate::library::Library;
use crate::packed_inputs::PackedInputs;
use crate::prepare::{Level, POSITIONS, Prepare, RopeTables};
use crate::processor::processor_name;
use crate::provider::{Provider, ProviderReport};
use crate::raw::{self, Element, View};
use crate::run_inputs::{RopeFactors, RopeForm, RunInputs};
use crate::session::{GraphKv, OpenGraph, OpenModel};
use crate::vision::VisionEncoder;
use capabilities::{capabilities, warn_of_short_context};
use names::Names;
use reserve::reserve;
use run_limits::RunLimits;

pub use config::DecoderConfig;

/// A model ready to run.
pub struct OnnxDecoder {
    // Declared first, dropped first: the binding and the views point into the KV memory and the session.
    kv_views: Vec<View>,
    input_views: Vec<View>,
    table_views: Vec<View>,
    binding: IoBinding,
    bound_rows: Option<BoundRows>,
    bound_table: Option<BoundTable>,
    kv: KvMemory,
    session: Session,
    options: Arc<RunOptions>,
    host: MemoryInfo<'static>,
    names: Names,
    run_inputs: RunInputs,
    packed_inputs: PackedInputs,
    tables: Option<RopeTables>,
    /// Logits as the graph writes them: `[rows, width, vocab]`, or `[1, wanted, vocab]` of a prepared graph.
    f32_logits: Vec<f32>,
    f16_logits: Vec<half::f16>,
    /// The wanted logits of a step that ran in groups.
    step_logits: Vec<f32>,
    /// The wanted rows, where they are not one run of `f32_logits`.
    wanted: Vec<f32>,
    logits_element: Element,
    /// The element type of the features of images; `None`: the graph takes none.
    image_features: Option<Element>,
    /// The run's features, where the graph takes 16-bit floats.
    f16_features: Vec<half::f16>,
    /// The graph computes only the logits that `run_inputs.logits_rows` names.
    chooses_logits: bool,
    prepared: Prepare,
    rope: RopeForm,
    run_limits: RunLimits,
    kv_support: KvSupport,
    caps: Caps,
    provider_report: ProviderReport,
    encoder: Option<VisionEncoder>,
}

/// The rows of the rope tables that are bound for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BoundTable {
    Of(Regime),
    Joined,
}

/// The KV memory that is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BoundRows {
    /// `count` neighbours of the slab.
    Slab { first: usize, count: usize },
    /// A group on a device.
    Group(GroupId),
    /// All blocks: a table names the rows of each run.
    Blocks,
    /// The pool: a table names the blocks of each row.
    Pool,
}

impl OnnxDecoder {
    /// A decoder over an open model, whose file is `path`; reserves its KV memory.
    pub(crate) fn new(
        opened: OpenModel,
        path: &Path,
        genai: &GenaiConfig,
        config: &DecoderConfig,
    ) -> Result<Self, OnnxError> {
        let mut decoder = Self::without_trial(opened, path, genai, config)?;
        let found = decoder.find_run_limits();
        found.map_err(|error| OnnxError::Runtime(error.to_string()))?;
        Ok(decoder)
    }

    fn without_trial(
        opened: OpenModel,
        path: &Path,
        genai: &GenaiConfig,
        config: &DecoderConfig,
    ) -> Result<Self, OnnxError> {
        let OpenModel {
            graph,
            facts,
            mut tables,
            prepared,
            attention_fault,
            i8_fault,
            products: _,
        } = opened;
        let element = match graph.kv {
            GraphKv::Tensors(element) | GraphKv::Paged(element) => element,
            GraphKv::Blocks => Element::F32,
        };
        let kv_support = KvSupport {
            attention: attention_fault,
            trial: i8_fault,
            ..KvSupport::here(graph.provider, prepared, element, graph.isa)
        };
        let kv_type = kv_support.choose(config.kv_cache)?;
        if config.kv_cache == KvCache::Auto && kv_type != KvType::I8 {
            kv_support.log_fallback(kv_type, config.prepare);
        }
        let kv = reserve(&graph, kv_type, genai, config)?;
        let OpenGraph {
            session,
            library: _,
            provider,
            isa: _,
            logits_element,
            vocab_size,
            chooses_logits,
            position_ids,
            image_features,
            ..
        } = graph;
        let ragged = prepared.level == Level::Ragged;
        let positions = position_ids.as_deref().or(ragged.then_some(POSITIONS));
        let names = Names::of(genai, positions, ragged).ok_or_else(|| OnnxError::Model {
            path: path.to_path_buf(),
            fault: "takes embeddings instead of token ids: this form of model is not supported yet".into(),
        })?;
        let image_width = image_features.map(|_| genai.hidden_size);
        let mut caps = capabilities(
            &kv,
            kv_type,
            genai,
            facts.rope_boundary,
            vocab_size,
            prepared.level,
            image_width,
        );
        warn_of_short_context(&caps, genai, config.kv_memory);
        if let Some(tables) = &mut tables {
            tables.limit(kv.capacity());
        }
        let factors = rope_factors(tables.as_ref(), ragged, position_ids.is_some());
        // A graph that looks at positions needs a pad token behind a short row of the long regime (`RunInputs::fill`),
        // and takes several tokens of one row only.
        caps.batches_below_boundary = factors != RopeFactors::OwnPositions;
        Ok(Self {
            kv_views: Vec::new(),
            input_views: Vec::new(),
            table_views: Vec::new(),
            binding: session.create_binding()?,
            bound_rows: None,
            bound_table: None,
            kv,
            options: Arc::new(RunOptions::new()?),
            host: raw::host_memory()?,
            names,
            run_inputs: RunInputs::new(image_width),
            packed_inputs: PackedInputs::default(),
            image_features,
            f16_features: Vec::new(),
            tables,
            f32_logits: Vec::new(),
            f16_logits: Vec::new(),
            step_logits: Vec::new(),
            wanted: Vec::new(),
            logits_element,
            chooses_logits,
            prepared,
            rope: RopeForm {
                boundary: facts.rope_boundary,
                factors,
            },
            run_limits: RunLimits::NONE,
            kv_support,
            caps,
            provider_report: ProviderReport::of(provider),
            encoder: None,
            session,
        })
    }

    /// The image encoder, if the model has one.
    pub fn encoder(&mut self) -> Option<&mut VisionEncoder> {
        self.encoder.as_mut()
    }

    pub(crate) fn set_encoder(&mut self, encoder: Option<VisionEncoder>) {
        self.encoder = encoder;
    }

    /// How the provider was chosen, and which nodes it runs.
    pub fn provider_report(&self) -> &ProviderReport {
        &self.provider_report
    }

    pub(crate) fn set_provider_report(&mut self, report: ProviderReport) {
        self.provider_report = report;
    }

    /// The edits of the graph.
    pub fn prepared(&self) -> Prepare {
        self.prepared
    }

    /// The reason why keys and values of this model can't have 8 bits here; `None` where they can.
    pub fn i8_obstacle(&self) -> Option<String> {
        self.kv_support.obstacle()
    }

    /// The memory that rows take under each type of keys and values: the graph's own, and 8 bits, possible here or not.
    pub fn kv_footprints(&self) -> [(KvType, KvFootprint); 2] {
        let [float, i8] = self.kv.footprints();
        [(self.kv_support.float_type(), float), (KvType::I8, i8)]
    }

    /// Everything beside model and tokens that keys and values depend on: the library, the provider, the edits of the
    /// graph, the custom operators' revisions and the kind of processor. Where any of it differs, so may the numbers.
    pub fn computed_by(&self, library: &Library) -> Vec<String> {
        let parts = [
            library.description(),
            self.provider_report.identity.as_str(),
            self.prepared.as_str(),
            crate::matmul::REVISION,
            crate::attention::REVISION,
            self.kv_support.isa.map_or("none", Isa::as_str),
        ];
        let mut parts: Vec<String> = parts.map(str::to_owned).into();
        parts.push(processor_name());
        // Keys and values at places of images depend on features.
        parts.extend(
            self.encoder
                .as_ref()
                .map(|encoder| format!("encoder {}", encoder.weights().as_str())),
        );
        parts
    }

    /// The bytes that keys and values may take on a device, all rows together; `None`: they are on the host.
    pub fn device_budget(&self) -> Option<u64> {
        match &self.kv {
            KvMemory::Device(device) => Some(device.bytes()),
            KvMemory::Paged(paged) => Some(paged.bytes()),
            KvMemory::Slab(_) | KvMemory::Blocks(_) => None,
        }
    }

    /// The provider that runs the graph: never `auto`.
    pub fn provider(&self) -> Provider {
        self.provider_report.provider
    }

    /// The instruction set of the custom operators; `None` where the graph has none of them.
    pub fn isa(&self) -> Option<Isa> {
        let operators = self.prepared.matmul || self.prepared.attention;
        self.kv_support.isa.filter(|_| operators)
    }
}

impl OnnxDecoder {
    /// Whether the tokens that `row` takes from others can be there.
    fn shares(&self, row: &Row<'_>) -> bool {
        let Some(granularity) = self.caps.share_granularity else {
            return row.shared.is_empty();
        };
        let mut start = 0;
        row.shared.iter().all(|span| {
            let fits = span.end > start && span.end <= row.past && span.end.is_multiple_of(granularity);
            start = span.end;
            fits && (span.row.0 as usize) < self.caps.rows
        })
    }
}

impl Decoder for OnnxDecoder {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn run(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<Logits<'_>, DecodeError> {
        self.check(step)?;
        if let KvMemory::Device(_) = self.kv {
            self.step_logits = self.run_in_groups(step, interrupt)?;
            return Ok(Logits::new(&self.step_logits, self.caps.vocab_size));
        }
        if let KvMemory::Paged(_) = self.kv {
            self.run_packed(step, interrupt)?;
            let vocab = self.caps.vocab_size;
            return Ok(Logits::new(self.collect(step), vocab));
        }
        self.run_inputs.fill(step.rows, self.rope)?;
        let regime = step.rows.first().map_or(Regime::Short, |row| row.regime);
        self.bind_rows(step.rows)
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_run_inputs(step.rows.len()))
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)?;
        let vocab = self.caps.vocab_size;
        Ok(Logits::new(self.collect(step), vocab))
    }

    fn encode_image(
        &mut self,
        image: ImageId,
        pixels: &ImagePixels,
        encoding: &mut ImageEncoding,
        interrupt: &Interrupt,
    ) -> Result<Option<ImageFeatures>, DecodeError> {
        match &mut self.encoder {
            Some(encoder) => encoder.encode_next(image, pixels, encoding, interrupt),
            None => Err(DecodeError::Unsupported("this model takes no images".into())),
        }
    }

    fn ensure(&mut self, row: RowId, len: usize) -> Result<(), DecodeError> {
        self.fits(len)?;
        self.known(row)?;
        self.kv.ensure(row.0 as usize, len).map_err(KvError::into)
    }

    fn copy(&mut self, from: RowId, to: RowId, tokens: Range<usize>) -> Result<(), DecodeError> {
        self.fits(tokens.end)?;
        self.known(from)?;
        self.known(to)?;
        self.kv
            .copy(from.0 as usize, to.0 as usize, &tokens)
            .map_err(KvError::into)
    }

    fn truncate(&mut self, row: RowId, len: usize) {
        if self.known(row).is_ok() && len < self.kv.capacity() {
            self.kv.shrink(row.0 as usize, len);
        }
    }

    fn release(&mut self, row: RowId) {
        self.truncate(row, 0);
    }

    fn save(&mut self, row: RowId, len: usize) -> Result<Vec<u8>, DecodeError> {
        self.fits(len)?;
        self.known(row)?;
        let mut saved = Vec::with_capacity(8 + len * self.kv.bytes_per_token());
        saved.extend_from_slice(&(len as u64).to_le_bytes());
        self.kv
            .read(row.0 as usize, len, &mut saved)
            .map_err(DecodeError::from)?;
        Ok(saved)
    }

    fn load(&mut self, row: RowId, saved: &[u8]) -> Result<usize, DecodeError> {
        self.known(row)?;
        let (len, bytes) = saved
            .split_first_chunk::<8>()
            .and_then(|(len, bytes)| Some((usize::try_from(u64::from_le_bytes(*len)).ok()?, bytes)))
            .ok_or_else(|| DecodeError::Failed("the saved keys and values are truncated".into()))?;
        self.fits(len)?;
        self.kv
            .write(row.0 as usize, len, bytes)
            .map_err(DecodeError::from)?;
        Ok(len)
    }
}

/// The input that selects the rope factors of a run.
fn rope_factors(tables: Option<&RopeTables>, ragged: bool, own_positions: bool) -> RopeFactors {
    match tables {
        Some(tables) if ragged => RopeFactors::Offset(tables.short),
        Some(_) => RopeFactors::Table,
        None if ragged => RopeFactors::Offset(0),
        None if own_positions => RopeFactors::OwnPositions,
        None => RopeFactors::MaskWidth,
    }
}

fn to_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
