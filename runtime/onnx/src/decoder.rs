//! The engine's decoder over an exported graph: past and present bound to the same memory, so that a step
//! copies nothing but its few integers.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use phi_edge_engine::{
    Caps, DecodeError, Decoder, Hook, Input, Interrupt, Logits, Regime, Row, RowId, Step, TokenId, Wanted,
};
use phi_edge_models::{GenaiConfig, ModelDir};

use crate::error::{OnnxError, one_line};
use crate::feeds::{Factors, Feeds, RopeForm};
use crate::kv::{KvShape, KvSlab, Side};
use crate::library::Library;
use crate::open::{self, Opened};
use crate::prepare::{LENGTHS, LOGITS_ROWS, Level, POSITIONS, Prepare, Tables};
use crate::provider::Provider;
use crate::raw::{self, Element, View};
use crate::session::OpenGraph;

/// How a decoder is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Where the graph runs.
    pub provider: Provider,
    /// Threads of a run; `None`: all processors this process may use.
    pub threads: Option<usize>,
    /// Rows of the KV slab for sequences that run and for pinned prefixes, at least 1.
    pub rows: usize,
    /// Rows beside them that only remember. On the host they cost address space alone; on a device, which pays for every
    /// row, there are eight at most.
    pub cache_rows: usize,
    /// Upper bound for the KV slab in bytes; shortens the context where it is less than the model's. On
    /// a device, where the slab is allocated whole, `None` means 4 GiB.
    pub kv_memory: Option<u64>,
    /// How far the graph may be edited in memory, where that makes it faster. What does not hold against the plain
    /// graph is left out.
    pub prepare: Prepare,
    /// The file that remembers which edits hold; `None`: they are tried at each load.
    pub verdicts: Option<PathBuf>,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            provider: Provider::Auto,
            threads: None,
            rows: 1,
            cache_rows: 0,
            kv_memory: None,
            prepare: Prepare::ALL,
            verdicts: None,
        }
    }
}

/// KV memory on a device where the configuration does not say.
const DEVICE_KV_BYTES: u64 = 4 << 30;
/// Rows that only remember, on a device.
const DEVICE_CACHE_ROWS: usize = 8;
/// A context that is shorter than this for want of memory is worth a warning.
const SHORT: usize = 1024;

/// A model ready to run.
pub struct OnnxDecoder {
    // Declared first, dropped first: the binding and the views point into the slab and the session.
    kv_views: Vec<View>,
    input_views: Vec<View>,
    table_views: Vec<View>,
    binding: IoBinding,
    bound_rows: Option<(usize, usize)>,
    bound_table: Option<Table>,
    slab: KvSlab,
    session: Session,
    options: Arc<RunOptions>,
    host: MemoryInfo<'static>,
    names: Names,
    feeds: Feeds,
    tables: Option<Tables>,
    /// Logits as the graph writes them: `[rows, width, vocab]`, or `[1, wanted, vocab]` of a prepared graph.
    f32_logits: Vec<f32>,
    f16_logits: Vec<half::f16>,
    /// The wanted rows, where they are not one run of `f32_logits`.
    wanted: Vec<f32>,
    logits_element: Element,
    /// The graph computes only the logits that `feeds.logits_rows` names.
    chooses_logits: bool,
    prepared: Prepare,
    rope: RopeForm,
    caps: Caps,
    provider: Provider,
}

/// Which rows of the rope tables a run is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Of(Regime),
    Joined,
}

/// The graph's names as C strings.
struct Names {
    ids: CString,
    mask: CString,
    positions: Option<CString>,
    lengths: Option<CString>,
    logits_rows: CString,
    logits: CString,
    /// `(past, present)` per layer, key then value.
    kv: Vec<(CString, CString)>,
}

impl OnnxDecoder {
    /// Loads `model`'s decoder graph and reserves its KV memory.
    pub fn load(library: &Library, model: &ModelDir, config: &DecoderConfig) -> Result<Self, OnnxError> {
        Self::load_measuring(library, model, config, || None)
    }

    /// The same; where `config` does not bound the KV memory of the host, `free` does, asked once the weights are in memory.
    pub fn load_measuring(
        library: &Library,
        model: &ModelDir,
        config: &DecoderConfig,
        free: impl FnOnce() -> Option<u64>,
    ) -> Result<Self, OnnxError> {
        let threads = config.threads.unwrap_or_else(available_threads);
        let opened = open::open(library, model, config, threads)?;
        let mut config = config.clone();
        if config.kv_memory.is_none() && opened.graph.provider == Provider::Cpu {
            config.kv_memory = free();
        }
        let config = &config;
        let decoder = Self::over(opened, &model.decoder_path(), model.config(), config)?;
        tracing::info!(
            provider = decoder.provider.as_str(),
            prepared = decoder.prepared.as_str(),
            threads,
            context = decoder.caps.context_length,
            rope_boundary = decoder.rope.boundary,
            kv = ?decoder.caps.kv_type,
            library = %library.path().display(),
            "The model is loaded."
        );
        Ok(decoder)
    }

    /// Reserves KV memory for an open graph, whose file is `path`.
    pub(crate) fn over(
        opened: Opened,
        path: &Path,
        genai: &GenaiConfig,
        config: &DecoderConfig,
    ) -> Result<Self, OnnxError> {
        let Opened {
            graph,
            facts,
            mut tables,
            prepared,
        } = opened;
        let slab = reserve(&graph, genai, config)?;
        let OpenGraph {
            session,
            provider,
            kv_element: _,
            logits_element,
            vocab_size,
            chooses_logits,
            position_ids,
        } = graph;
        let ragged = prepared.level == Level::Ragged;
        let positions = position_ids.as_deref().or(ragged.then_some(POSITIONS));
        let names = Names::of(genai, positions, ragged).ok_or_else(|| OnnxError::Model {
            path: path.to_path_buf(),
            fault: "takes embeddings instead of token ids: this form of model is not supported yet".into(),
        })?;
        let context = slab.context(genai.context_length);
        if context < SHORT.min(genai.context_length) {
            tracing::warn!(
                context,
                kv_bytes = config.kv_memory,
                "There is little memory for keys and values: longer prompts are refused (runtime.kv_memory, MemoryMax= of the unit)."
            );
        }
        let caps = Caps {
            kv_type: slab.shape().kv_type(),
            ragged_chunks: ragged,
            idle_rows: ragged,
            mixed_regimes: ragged,
            shared_kv: true,
            contiguous_rows: true,
            kv_bytes_per_token: slab.shape().bytes_per_token() as u64,
            context_length: context,
            rope_boundary: facts.rope_boundary.filter(|boundary| *boundary < context),
            vocab_size,
            rows: slab.shape().rows,
        };
        let factors = match &mut tables {
            Some(tables) => {
                tables.limit(slab.shape().capacity);
                if ragged {
                    Factors::Offset(tables.short)
                } else {
                    Factors::Table
                }
            }
            None if ragged => Factors::Offset(0),
            None if position_ids.is_some() => Factors::OwnPositions,
            None => Factors::MaskWidth,
        };
        Ok(Self {
            kv_views: Vec::new(),
            input_views: Vec::new(),
            table_views: Vec::new(),
            binding: session.create_binding()?,
            bound_rows: None,
            bound_table: None,
            slab,
            options: Arc::new(RunOptions::new()?),
            host: MemoryInfo::new(
                AllocationDevice::CPU,
                0,
                AllocatorType::Device,
                MemoryType::Default,
            )?,
            names,
            feeds: Feeds::default(),
            tables,
            f32_logits: Vec::new(),
            f16_logits: Vec::new(),
            wanted: Vec::new(),
            logits_element,
            chooses_logits,
            prepared,
            rope: RopeForm {
                boundary: facts.rope_boundary,
                factors,
            },
            caps,
            provider,
            session,
        })
    }

    /// How far the graph is edited.
    pub fn prepared(&self) -> Prepare {
        self.prepared
    }

    /// What runs: never `auto`.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    fn check(&self, step: &Step<'_>) -> Result<(), DecodeError> {
        let unsupported = |what: &str| Err(DecodeError::Unsupported(what.to_owned()));
        let Some(first) = step.rows.first() else {
            return unsupported("a step without rows");
        };
        for (index, row) in step.rows.iter().enumerate() {
            if row.row.0 as usize != first.row.0 as usize + index {
                return unsupported("rows that are no neighbours in ascending order");
            }
            if row.input.is_empty() && (!self.caps.idle_rows || row.logits == Wanted::Last) {
                return unsupported("a row without input");
            }
            if step.rows.len() > 1 && row.input.len() > 1 && !self.caps.ragged_chunks {
                return unsupported("several rows of several tokens");
            }
            if row.regime != first.regime && !self.caps.mixed_regimes {
                return unsupported("rows of both rope regimes");
            }
            if row.past + row.input.len() > self.caps.context_length {
                return unsupported("more tokens than the context holds");
            }
        }
        if step.rows.iter().all(|row| row.input.is_empty()) {
            return unsupported("a step without input");
        }
        if first.row.0 as usize + step.rows.len() > self.caps.rows {
            return unsupported("rows outside the slab");
        }
        Ok(())
    }

    /// Binds past and present of the rows to the same views. Kept until another set of rows runs.
    fn bind_rows(&mut self, first: usize, count: usize) -> Result<(), String> {
        if self.bound_rows == Some((first, count)) {
            return Ok(());
        }
        self.bound_rows = None;
        self.kv_views.clear();
        for (index, (past, present)) in self.names.kv.iter().enumerate() {
            let side = if index % 2 == 0 { Side::Key } else { Side::Value };
            let view = self.slab.view(index / 2, side, first, count)?;
            raw::bind_input(&mut self.binding, past, &view)?;
            raw::bind_output(&mut self.binding, present, &view)?;
            self.kv_views.push(view);
        }
        self.bound_rows = Some((first, count));
        Ok(())
    }

    /// Binds the rope tables, where they are inputs: both, or the one of the run's regime.
    fn bind_tables(&mut self, regime: Regime) -> Result<(), String> {
        let Some(tables) = &mut self.tables else {
            return Ok(());
        };
        let (table, from, rows) = match (self.rope.factors, regime) {
            (Factors::Offset(_), _) => (Table::Joined, 0, tables.short + tables.long),
            (_, Regime::Short) => (Table::Of(regime), 0, tables.short),
            (_, Regime::Long) => (Table::Of(regime), tables.short, tables.long),
        };
        if self.bound_table == Some(table) {
            return Ok(());
        }
        self.bound_table = None;
        self.table_views.clear();
        let shape = [rows, tables.width].map(to_i64);
        let start = from * tables.width * tables.element.bytes();
        for (name, data) in tables.names.iter().zip(&mut tables.data) {
            let name = CString::new(name.as_str()).map_err(|error| error.to_string())?;
            let rows = data.get_mut(start..).ok_or("the rope tables are too short")?;
            // SAFETY: the tables hold `short + long` rows of `width` elements (`Tables::limit` keeps it so), which
            // nothing moves or writes while the decoder lives.
            let view = unsafe { View::new(&self.host, rows.as_mut_ptr().cast(), &shape, tables.element)? };
            raw::bind_input(&mut self.binding, &name, &view)?;
            self.table_views.push(view);
        }
        self.bound_table = Some(table);
        Ok(())
    }

    fn bind_feeds(&mut self, rows: usize) -> Result<(), String> {
        let narrow = [rows, self.feeds.width].map(to_i64);
        let wide = [rows, self.feeds.mask_width].map(to_i64);
        let chosen = self.feeds.logits_rows.len();
        let feeds = &mut self.feeds;
        let mut inputs = vec![
            (
                &self.names.ids,
                feeds.ids.as_mut_ptr().cast(),
                &narrow[..],
                Element::I64,
            ),
            (
                &self.names.mask,
                feeds.mask.as_mut_ptr().cast(),
                &wide,
                Element::I64,
            ),
        ];
        if let Some(name) = &self.names.positions {
            inputs.push((name, feeds.positions.as_mut_ptr().cast(), &narrow, Element::I64));
        }
        if let Some(name) = &self.names.lengths {
            inputs.push((
                name,
                feeds.lengths.as_mut_ptr().cast(),
                &narrow[..1],
                Element::I32,
            ));
        }
        let vector = [to_i64(chosen)];
        if self.chooses_logits {
            let rows = feeds.logits_rows.as_mut_ptr().cast();
            inputs.push((&self.names.logits_rows, rows, &vector, Element::I64));
        }
        self.input_views.clear();
        for (name, data, shape, element) in inputs {
            // SAFETY: the buffer has `shape`'s elements (`Feeds::fill`) and is neither moved nor written
            // before the next `bind_feeds`, which comes before the next run.
            let view = unsafe { View::new(&self.host, data, shape, element)? };
            raw::bind_input(&mut self.binding, name, &view)?;
            self.input_views.push(view);
        }
        let vocab = to_i64(self.caps.vocab_size);
        let (shape, tokens) = if self.chooses_logits {
            ([1, vector[0], vocab], chosen)
        } else {
            ([narrow[0], narrow[1], vocab], rows * self.feeds.width)
        };
        let elements = tokens * self.caps.vocab_size;
        let data = if self.logits_element == Element::F16 {
            self.f16_logits.resize(elements, half::f16::ZERO);
            self.f16_logits.as_mut_ptr().cast()
        } else {
            self.f32_logits.resize(elements, 0.0);
            self.f32_logits.as_mut_ptr().cast()
        };
        // SAFETY: the buffer has just been made large enough, and only this run writes it.
        let view = unsafe { View::new(&self.host, data, &shape, self.logits_element)? };
        raw::bind_output(&mut self.binding, &self.names.logits, &view)?;
        self.input_views.push(view);
        Ok(())
    }

    /// One run of one row without the checks and the choice of logits: for [`crate::bare`].
    pub(crate) fn run_plain(
        &mut self,
        ids: &[TokenId],
        past: usize,
        interrupt: &Interrupt,
    ) -> Result<(), DecodeError> {
        let regime = match self.rope.boundary {
            Some(boundary) if past + ids.len() > boundary => Regime::Long,
            _ => Regime::Short,
        };
        let row = Row {
            row: RowId(0),
            past,
            input: Input::Tokens(ids),
            logits: Wanted::Last,
            regime,
        };
        self.feeds.fill(&[row], self.rope)?;
        self.bind_rows(0, 1)
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_feeds(1))
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)
    }

    fn run_bound(&mut self, interrupt: &Interrupt) -> Result<(), DecodeError> {
        let options = Arc::clone(&self.options);
        let hook: Hook = Arc::new(move || {
            if let Err(error) = options.terminate() {
                tracing::warn!(%error, "A run could not be interrupted.");
            }
        });
        let guard = interrupt.during(&hook);
        let outcome = raw::run(&mut self.session, &self.options, &self.binding);
        drop(guard);
        if interrupt.is_raised() {
            // The flag stays set in the options until it is taken back.
            self.options
                .unterminate()
                .map_err(|error| DecodeError::Failed(one_line(error)))?;
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(_) if interrupt.is_raised() => Err(DecodeError::Interrupted),
            Err(fault) if fault.contains("Failed to allocate") || fault.contains("bad_alloc") => {
                Err(DecodeError::OutOfMemory(fault))
            }
            Err(fault) => Err(DecodeError::Failed(fault)),
        }
    }

    /// The wanted logits as one run of floats.
    fn collect(&mut self, step: &Step<'_>) -> &[f32] {
        let (vocab, width) = (self.caps.vocab_size, self.feeds.width);
        if self.chooses_logits {
            let wanted = step.rows.iter().map(Row::logits_count).sum::<usize>() * vocab;
            if self.logits_element != Element::F16 {
                return &self.f32_logits[..wanted];
            }
            self.wanted.clear();
            self.wanted
                .extend(self.f16_logits[..wanted].iter().map(|value| value.to_f32()));
            return &self.wanted;
        }
        let mut ranges = Vec::with_capacity(step.rows.len());
        for (index, row) in step.rows.iter().enumerate() {
            let start = index * width;
            let end = start + row.input.len();
            match row.logits {
                Wanted::None => {}
                Wanted::Last => ranges.push((end - 1) * vocab..end * vocab),
                Wanted::All => ranges.push(start * vocab..end * vocab),
            }
        }
        if self.logits_element != Element::F16
            && let [range] = ranges.as_slice()
        {
            return &self.f32_logits[range.clone()];
        }
        self.wanted.clear();
        for range in ranges {
            match self.logits_element {
                Element::F16 => self
                    .wanted
                    .extend(self.f16_logits[range].iter().map(|value| value.to_f32())),
                _ => self.wanted.extend_from_slice(&self.f32_logits[range]),
            }
        }
        &self.wanted
    }
}

impl Decoder for OnnxDecoder {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn run(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<Logits<'_>, DecodeError> {
        self.check(step)?;
        self.feeds.fill(step.rows, self.rope)?;
        let first = step.rows.first().map_or(0, |row| row.row.0 as usize);
        let regime = step.rows.first().map_or(Regime::Short, |row| row.regime);
        self.bind_rows(first, step.rows.len())
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_feeds(step.rows.len()))
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)?;
        let vocab = self.caps.vocab_size;
        Ok(Logits::new(self.collect(step), vocab))
    }

    fn ensure(&mut self, _row: RowId, len: usize) -> Result<(), DecodeError> {
        // Rows are reserved whole; the system pays for a page when it is written.
        if len > self.caps.context_length {
            return Err(DecodeError::OutOfMemory(format!(
                "{len} tokens in a row of {}",
                self.caps.context_length
            )));
        }
        Ok(())
    }

    fn copy(&mut self, from: RowId, to: RowId, len: usize) -> Result<(), DecodeError> {
        self.ensure(to, len)?;
        self.known(from)?;
        self.known(to)?;
        self.slab
            .copy(from.0 as usize, to.0 as usize, len)
            .map_err(DecodeError::Unsupported)
    }

    fn truncate(&mut self, row: RowId, len: usize) {
        if self.known(row).is_ok() && len < self.slab.shape().capacity {
            self.slab.shrink(row.0 as usize, len);
        }
    }

    fn release(&mut self, row: RowId) {
        self.truncate(row, 0);
    }

    fn save(&mut self, row: RowId, len: usize) -> Result<Vec<u8>, DecodeError> {
        self.ensure(row, len)?;
        self.known(row)?;
        let mut saved = Vec::with_capacity(8 + len * self.slab.shape().bytes_per_token());
        saved.extend_from_slice(&(len as u64).to_le_bytes());
        self.slab
            .read(row.0 as usize, len, &mut saved)
            .map_err(DecodeError::Unsupported)?;
        Ok(saved)
    }

    fn load(&mut self, row: RowId, saved: &[u8]) -> Result<usize, DecodeError> {
        self.known(row)?;
        let (len, bytes) = saved
            .split_first_chunk::<8>()
            .and_then(|(len, bytes)| Some((usize::try_from(u64::from_le_bytes(*len)).ok()?, bytes)))
            .ok_or_else(|| DecodeError::Failed("the saved keys and values are truncated".into()))?;
        self.ensure(row, len)?;
        self.slab
            .write(row.0 as usize, len, bytes)
            .map_err(DecodeError::Failed)?;
        Ok(len)
    }
}

impl OnnxDecoder {
    fn known(&self, row: RowId) -> Result<(), DecodeError> {
        if (row.0 as usize) < self.caps.rows {
            Ok(())
        } else {
            Err(DecodeError::Unsupported(format!(
                "row {} of a slab of {}",
                row.0, self.caps.rows
            )))
        }
    }
}

impl Names {
    /// `None` for graphs that take embeddings.
    fn of(config: &GenaiConfig, positions: Option<&str>, ragged: bool) -> Option<Self> {
        let c = |name: &str| CString::new(name).ok();
        let mut kv = Vec::with_capacity(2 * config.num_layers);
        for layer in 0..config.num_layers {
            kv.push((c(&config.past_key(layer))?, c(&config.present_key(layer))?));
            kv.push((c(&config.past_value(layer))?, c(&config.present_value(layer))?));
        }
        Some(Self {
            ids: c(config.inputs.input_ids.as_deref()?)?,
            mask: c(&config.inputs.attention_mask)?,
            positions: match positions {
                Some(name) => Some(c(name)?),
                None => None,
            },
            lengths: if ragged { Some(c(LENGTHS)?) } else { None },
            logits_rows: c(LOGITS_ROWS)?,
            logits: c(&config.outputs.logits)?,
            kv,
        })
    }
}

fn reserve(graph: &OpenGraph, genai: &GenaiConfig, config: &DecoderConfig) -> Result<KvSlab, OnnxError> {
    let mut shape = KvShape {
        layers: genai.num_layers,
        rows: config.rows.max(1)
            + if graph.provider == Provider::Cpu {
                config.cache_rows
            } else {
                config.cache_rows.min(DEVICE_CACHE_ROWS)
            },
        heads: genai.num_kv_heads,
        // One more than the context: a pad token may stand behind the last one.
        capacity: genai.context_length + 1,
        head_size: genai.head_size,
        element: graph.kv_element,
    };
    let on_host = graph.provider == Provider::Cpu;
    let budget = config.kv_memory.or((!on_host).then_some(DEVICE_KV_BYTES));
    if let Some(budget) = budget {
        // The host pays for what is written, and the engine keeps the sum below the budget: one row may have it all.
        // A device pays for all rows at once.
        let rows = if on_host { 1 } else { shape.rows };
        let tokens = budget / (shape.bytes_per_token() * rows).max(1) as u64;
        shape.capacity = shape
            .capacity
            .min(usize::try_from(tokens).unwrap_or(usize::MAX))
            .max(2);
    }
    if on_host {
        return KvSlab::on_host(shape);
    }
    let device = if graph.provider == Provider::Cuda {
        AllocationDevice::CUDA
    } else {
        AllocationDevice::DIRECTML
    };
    KvSlab::on_device(shape, &graph.session, device)
}

fn to_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Processors this process may use (affinity and cgroup limits counted).
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
