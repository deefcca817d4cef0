//! The engine's decoder over an exported graph: past and present bound to the same memory, so that a step
//! copies nothing but its few integers.

use std::ffi::CString;
use std::sync::Arc;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use phi_edge_engine::{
    Caps, DecodeError, Decoder, Hook, Input, Interrupt, Logits, Regime, Row, RowId, Step, TokenId, Wanted,
};
use phi_edge_models::{GenaiConfig, ModelDir};

use crate::error::{OnnxError, one_line};
use crate::feeds::{Feeds, RopeForm};
use crate::graph;
use crate::kv::{KvShape, KvSlab, Side};
use crate::library::Library;
use crate::provider::Provider;
use crate::raw::{self, Element, View};
use crate::session::{self, OpenGraph};

/// How a decoder is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Where the graph runs.
    pub provider: Provider,
    /// Threads of a run; `None`: all processors this process may use.
    pub threads: Option<usize>,
    /// Rows of the KV slab, at least 1.
    pub rows: usize,
    /// Upper bound for the KV slab in bytes; shortens the context where it is less than the model's. On
    /// a device, where the slab is allocated whole, `None` means 4 GiB.
    pub kv_memory: Option<u64>,
    /// Edit the graph in memory where that makes it faster; the plain graph runs otherwise.
    pub prepare: bool,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            provider: Provider::Auto,
            threads: None,
            rows: 1,
            kv_memory: None,
            prepare: true,
        }
    }
}

/// KV memory on a device where the configuration does not say.
const DEVICE_KV_BYTES: u64 = 4 << 30;

/// A model ready to run.
pub struct OnnxDecoder {
    // Declared first, dropped first: the binding and the views point into the slab and the session.
    kv_views: Vec<View>,
    input_views: Vec<View>,
    binding: IoBinding,
    bound_rows: Option<(usize, usize)>,
    slab: KvSlab,
    session: Session,
    options: Arc<RunOptions>,
    host: MemoryInfo<'static>,
    names: Names,
    feeds: Feeds,
    /// Logits as the graph writes them: `[rows, width, vocab]`, or `[1, wanted, vocab]` of a prepared graph.
    f32_logits: Vec<f32>,
    f16_logits: Vec<half::f16>,
    /// The wanted rows, where they are not one run of `f32_logits`.
    wanted: Vec<f32>,
    logits_element: Element,
    /// The graph computes only the logits that `feeds.logits_rows` names.
    chooses_logits: bool,
    rope: RopeForm,
    caps: Caps,
    provider: Provider,
}

/// The graph's names as C strings.
struct Names {
    ids: CString,
    mask: CString,
    positions: Option<CString>,
    logits_rows: CString,
    logits: CString,
    /// `(past, present)` per layer, key then value.
    kv: Vec<(CString, CString)>,
}

impl OnnxDecoder {
    /// Loads `model`'s decoder graph and reserves its KV memory.
    pub fn load(library: &Library, model: &ModelDir, config: &DecoderConfig) -> Result<Self, OnnxError> {
        let path = model.decoder_path();
        let facts = graph::read(&path)?;
        let threads = config.threads.unwrap_or_else(available_threads);
        let graph = session::open(library, model, config.provider, threads, config.prepare)?;
        let genai = model.config();
        let slab = reserve(&graph, genai, config)?;
        let OpenGraph {
            session,
            provider,
            kv_element,
            logits_element,
            vocab_size,
            chooses_logits,
            position_ids,
        } = graph;
        let names = Names::of(genai, position_ids.as_deref()).ok_or_else(|| OnnxError::Model {
            path: path.clone(),
            fault: "takes embeddings instead of token ids: this form of model is not supported yet".into(),
        })?;
        let context = slab.context(genai.context_length);
        let caps = Caps {
            kv_type: slab.shape().kv_type(),
            ragged_chunks: false,
            idle_rows: false,
            mixed_regimes: false,
            shared_kv: true,
            contiguous_rows: true,
            kv_bytes_per_token: slab.shape().bytes_per_token() as u64,
            context_length: context,
            rope_boundary: facts.rope_boundary.filter(|boundary| *boundary < context),
            vocab_size,
            rows: slab.shape().rows,
        };
        tracing::info!(
            provider = provider.as_str(),
            prepared = chooses_logits,
            threads,
            context,
            rope_boundary = facts.rope_boundary,
            kv = ?kv_element,
            library = %library.path().display(),
            "The model is loaded."
        );
        Ok(Self {
            kv_views: Vec::new(),
            input_views: Vec::new(),
            binding: session.create_binding()?,
            bound_rows: None,
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
            f32_logits: Vec::new(),
            f16_logits: Vec::new(),
            wanted: Vec::new(),
            logits_element,
            chooses_logits,
            rope: RopeForm {
                boundary: facts.rope_boundary,
                by_position: position_ids.is_some(),
            },
            caps,
            provider,
            session,
        })
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
            if row.input.is_empty() {
                return unsupported("a row without input");
            }
            if step.rows.len() > 1 && row.input.len() != 1 {
                return unsupported("several rows of several tokens");
            }
            if row.regime != first.regime {
                return unsupported("rows of both rope regimes");
            }
            if row.past + row.input.len() > self.caps.context_length {
                return unsupported("more tokens than the context holds");
            }
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

    fn bind_feeds(&mut self, rows: usize) -> Result<(), String> {
        let dims = |columns: usize| [rows, columns].map(|d| i64::try_from(d).unwrap_or(i64::MAX));
        let (narrow, wide) = (dims(self.feeds.width), dims(self.feeds.mask_width));
        let mut inputs = vec![
            (&self.names.ids, &mut self.feeds.ids, narrow),
            (&self.names.mask, &mut self.feeds.mask, wide),
        ];
        if let Some(name) = &self.names.positions {
            inputs.push((name, &mut self.feeds.positions, narrow));
        }
        let chosen = self.feeds.logits_rows.len();
        let vector = [i64::try_from(chosen).unwrap_or(i64::MAX), 0];
        if self.chooses_logits {
            inputs.push((&self.names.logits_rows, &mut self.feeds.logits_rows, vector));
        }
        self.input_views.clear();
        for (name, buffer, shape) in inputs {
            let shape = if *name == self.names.logits_rows {
                &shape[..1]
            } else {
                &shape[..]
            };
            // SAFETY: the buffer has `shape`'s elements (`Feeds::fill`) and is neither moved nor written
            // before the next `bind_feeds`, which comes before the next run.
            let view = unsafe { View::new(&self.host, buffer.as_mut_ptr().cast(), shape, Element::I64)? };
            raw::bind_input(&mut self.binding, name, &view)?;
            self.input_views.push(view);
        }
        let vocab = i64::try_from(self.caps.vocab_size).unwrap_or(i64::MAX);
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
        self.bind_rows(first, step.rows.len())
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
    fn of(config: &GenaiConfig, position_ids: Option<&str>) -> Option<Self> {
        let c = |name: &str| CString::new(name).ok();
        let mut kv = Vec::with_capacity(2 * config.num_layers);
        for layer in 0..config.num_layers {
            kv.push((c(&config.past_key(layer))?, c(&config.present_key(layer))?));
            kv.push((c(&config.past_value(layer))?, c(&config.present_value(layer))?));
        }
        Some(Self {
            ids: c(config.inputs.input_ids.as_deref()?)?,
            mask: c(&config.inputs.attention_mask)?,
            positions: match position_ids {
                Some(name) => Some(c(name)?),
                None => None,
            },
            logits_rows: c(crate::prepare::LOGITS_ROWS)?,
            logits: c(&config.outputs.logits)?,
            kv,
        })
    }
}

fn reserve(graph: &OpenGraph, genai: &GenaiConfig, config: &DecoderConfig) -> Result<KvSlab, OnnxError> {
    let mut shape = KvShape {
        layers: genai.num_layers,
        rows: config.rows.max(1),
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

/// Processors this process may use (affinity and cgroup limits counted).
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
