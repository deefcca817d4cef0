//! The decoder interface under the engine: one forward run over rows of KV memory.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::{RequestId, RowId};
use crate::image::{ImageEncoding, ImageFeatures, ImagePixels};
use crate::symbol::{ImageId, Symbol};

/// A decoder-only transformer with its KV memory.
///
/// Rows are numbered `0..caps().rows`. A row holds the keys and values of the first `past` tokens of a
/// sequence; only the engine knows what they are. All calls come from one thread.
pub trait Decoder {
    /// The decoder's capabilities; constant for its life.
    fn caps(&self) -> &Caps;

    /// Runs the graph once over `step` and returns the wanted logits, in the order of `step.rows`.
    ///
    /// Each row's input is appended at `past`; keys and values at and after `past` are overwritten.
    /// After an error the rows of the step may hold partly written tokens at and after their `past`:
    /// the engine rewinds to `past` or drops the row.
    fn run(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<Logits<'_>, DecodeError>;

    /// Makes room for the tokens of `row` up to `len`, of which it may take the first from other rows ([`Row::shared`]).
    fn ensure(&mut self, row: RowId, len: usize) -> Result<(), DecodeError>;

    /// Copies the keys and values of `tokens` from one row, which holds them itself, to the same places of another. The range
    /// begins at 0 or at a multiple of [`Caps::share_granularity`]: where the other row's shared tokens end, or its own.
    fn copy(&mut self, from: RowId, to: RowId, tokens: Range<usize>) -> Result<(), DecodeError>;

    /// Discards what `row` holds after its first `len` tokens; their memory may be given back.
    fn truncate(&mut self, row: RowId, len: usize);

    /// Discards the whole row and gives its memory back.
    fn release(&mut self, row: RowId);

    /// Returns the first `len` tokens' keys and values of `row` as bytes, for [`Decoder::load`] of the same model.
    fn save(&mut self, row: RowId, len: usize) -> Result<Vec<u8>, DecodeError>;

    /// Fills `row` with what [`Decoder::save`] returned; returns the number of tokens.
    fn load(&mut self, row: RowId, saved: &[u8]) -> Result<usize, DecodeError>;

    /// Runs the vision encoder on the next crop of an image, or on all of them where its graph takes them together. `Some`
    /// when all of them are encoded and joined; `encoding` is then of no use any more.
    fn encode_image(
        &mut self,
        _image: ImageId,
        _pixels: &ImagePixels,
        _encoding: &mut ImageEncoding,
        _interrupt: &Interrupt,
    ) -> Result<Option<ImageFeatures>, DecodeError> {
        Err(DecodeError::Unsupported("the model takes text alone".into()))
    }
}

/// A decoder's capabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Caps {
    /// The element type of the KV memory.
    pub kv_type: KvType,
    /// One run may hold several rows of several tokens each, with past.
    pub ragged_chunks: bool,
    /// A run may hold rows without input.
    pub idle_rows: bool,
    /// One run may mix rows of both rope regimes.
    pub mixed_regimes: bool,
    /// One run may hold several rows of [`Regime::Long`] though none of them reaches beyond the boundary.
    pub batches_below_boundary: bool,
    /// Past and present share memory: nothing is copied per step.
    pub shared_kv: bool,
    /// Rows of one run must be neighbours in the slab, in ascending order.
    pub contiguous_rows: bool,
    /// A row may take tokens from other rows ([`Row::shared`]): spans end at multiples of this many tokens. `None`: each row
    /// holds all of its tokens itself.
    pub share_granularity: Option<usize>,
    /// Bytes of KV memory one token takes, over all layers, keys and values.
    pub kv_bytes_per_token: u64,
    /// The number of tokens by which a row's memory grows.
    pub kv_block: usize,
    /// The most bytes that a row with tokens takes beyond its blocks: what is lost to whole pages.
    pub kv_row_overhead: u64,
    /// The most tokens a row can hold.
    pub context_length: usize,
    /// LongRoPE: a sequence of more tokens than this is computed under the long factors, from its first
    /// token on. `None`: the model has one regime, [`Regime::Short`].
    pub rope_boundary: Option<usize>,
    /// Width of a row of logits.
    pub vocab_size: usize,
    /// How many rows the slab has.
    pub rows: usize,
    /// The width of an image's features; `None`: the model takes text alone.
    pub image_width: Option<usize>,
}

impl Caps {
    /// The capabilities of the plainest decoder: 32-bit keys and values of 8 bytes a token, 100 tokens a row, one regime, no
    /// ragged chunks. Tests change what they are about.
    pub fn plain(rows: usize, vocab_size: usize) -> Self {
        Self {
            kv_type: KvType::F32,
            ragged_chunks: false,
            idle_rows: false,
            mixed_regimes: false,
            batches_below_boundary: true,
            shared_kv: true,
            contiguous_rows: true,
            share_granularity: None,
            kv_bytes_per_token: 8,
            kv_block: 1,
            kv_row_overhead: 0,
            context_length: 100,
            rope_boundary: None,
            vocab_size,
            rows,
            image_width: None,
        }
    }
}

/// The element type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers with a scale for each token and head.
    I8,
}

impl KvType {
    /// The spelling in the log and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I8 => "i8",
        }
    }
}

/// The rope factors that a sequence is computed with (LongRoPE, arXiv 2402.13753). Keys of one regime are wrong in
/// the other, so a sequence that crosses the boundary is recomputed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Regime {
    /// The factors for sequences of at most [`Caps::rope_boundary`] tokens.
    Short,
    /// The factors for longer ones.
    Long,
}

/// One run of the graph.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The rows that take part. Never empty.
    pub rows: &'a [Row<'a>],
}

/// Tokens whose keys and values a row takes from another one: those from the end of the span before (or 0) to `end`, at
/// the same places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedSpan {
    /// The row that holds them itself.
    pub row: RowId,
    /// A multiple of [`Caps::share_granularity`], at most the reader's `past`.
    pub end: usize,
}

/// One row's part in a step.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The row.
    pub row: RowId,
    /// Tokens the row holds already, shared ones among them; the input follows them.
    pub past: usize,
    /// Its tokens that other rows hold, by ascending ends; it holds those behind them itself. Another than in its run
    /// before only after [`Decoder::release`].
    pub shared: &'a [SharedSpan],
    /// What to append.
    pub input: Input<'a>,
    /// Which logits are wanted.
    pub logits: Wanted,
    /// The rope factors of the whole sequence.
    pub regime: Regime,
}

impl Row<'_> {
    /// The number of rows of logits that it gives.
    pub fn logits_count(&self) -> usize {
        match self.logits {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => self.input.len(),
        }
    }
}

/// The input of a row: what it appends.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Tokens, and places in images.
    pub symbols: &'a [Symbol],
    /// The features of every image that `symbols` name.
    pub features: &'a [Arc<ImageFeatures>],
}

impl<'a> Input<'a> {
    /// An input without images.
    pub fn of(symbols: &'a [Symbol]) -> Self {
        Self {
            symbols,
            features: &[],
        }
    }
}

impl Input<'_> {
    /// The number of positions that the input takes.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether the input is empty (an idle row).
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

/// The logits that are wanted of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None (a prefill chunk before the last).
    None,
    /// Those after the row's last input token.
    Last,
    /// Those after each of its input tokens (verification of a draft).
    All,
}

/// Logits of a run: `rows() x vocab` floats, row-major, in the order of the step.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    data: &'a [f32],
    vocab: usize,
}

impl<'a> Logits<'a> {
    /// Logits over `data`, which holds whole rows of `vocab` floats.
    pub fn new(data: &'a [f32], vocab: usize) -> Self {
        debug_assert!(vocab > 0 && data.len().is_multiple_of(vocab));
        Self { data, vocab }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.vocab
    }

    /// The logits after the first `rows` rows.
    #[must_use]
    pub fn skip(&self, rows: usize) -> Self {
        Self {
            data: self.data.get(rows * self.vocab..).unwrap_or_default(),
            vocab: self.vocab,
        }
    }

    /// Row `index`, or `None` past the end.
    pub fn row(&self, index: usize) -> Option<&'a [f32]> {
        self.data.get(index * self.vocab..(index + 1) * self.vocab)
    }
}

/// The error of a run.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// [`Interrupt::raise`] ended the run.
    #[error("the run was interrupted")]
    Interrupted,
    /// No memory for the row or the run.
    #[error("not enough memory: {0}")]
    OutOfMemory(String),
    /// The step asks for what [`Caps`] excludes. A fault of the scheduler.
    #[error("the decoder cannot run this step: {0}")]
    Unsupported(String),
    /// The graph itself failed.
    #[error("the model failed: {0}")]
    Failed(String),
}

/// A function that ends the run under way; callable from any thread.
pub type Hook = Arc<dyn Fn() + Send + Sync>;

/// A handle that ends a run from another thread. Clones share one state.
///
/// A run that serves one request alone can be ended for it ([`Interrupt::raise_for`]); one that serves several can't,
/// except for all of them ([`Interrupt::raise`]).
///
/// The decoder registers a hook for the time of a run ([`Interrupt::during`]); the caller that wants the run ended
/// calls [`Interrupt::raise`]. A raise before the run is kept and ends it at its start.
#[derive(Clone, Default)]
pub struct Interrupt {
    state: Arc<Mutex<InterruptState>>,
}

#[derive(Default)]
struct InterruptState {
    raised: bool,
    /// The request that the run under way serves alone.
    sole_request: Option<RequestId>,
    /// No run is under way, and a raise for any request counts.
    any_request: bool,
    hook: Option<Hook>,
}

impl InterruptState {
    /// The hook is called under the lock: called later, it could end a run that begins meanwhile.
    fn raise(&mut self) {
        self.raised = true;
        if let Some(hook) = &self.hook {
            hook();
        }
    }
}

impl Interrupt {
    /// An interrupt that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the run under way, or the next one.
    pub fn raise(&self) {
        self.lock().raise();
    }

    /// Ends the run under way if it serves `id` alone. Otherwise nothing happens: between two runs the engine looks
    /// at cancellations anyway.
    pub fn raise_for(&self, id: RequestId) {
        let mut state = self.lock();
        if state.sole_request == Some(id) || state.any_request {
            state.raise();
        }
    }

    /// Lets every [`Interrupt::raise_for`] raise until [`Interrupt::clear_sole_request`]. No run is under way
    /// meanwhile: this wakes a caller that rests between two runs.
    pub fn accept_any_request(&self) {
        self.lock().any_request = true;
    }

    /// Declares that the next run serves `id` alone.
    pub fn set_sole_request(&self, id: RequestId) {
        self.lock().sole_request = Some(id);
    }

    /// Declares that the next run serves several requests, or that there is none.
    pub fn clear_sole_request(&self) {
        let mut state = self.lock();
        state.sole_request = None;
        state.any_request = false;
    }

    /// Clears a raise.
    pub fn clear(&self) {
        self.lock().raised = false;
    }

    /// Whether it was raised and not cleared since.
    pub fn is_raised(&self) -> bool {
        self.lock().raised
    }

    /// Calls `hook` on a raise for as long as the guard lives; at once if it is raised already. The hook is not
    /// called after the guard is dropped. It must not wait, nor touch this interrupt.
    pub fn during(&self, hook: &Hook) -> InterruptGuard<'_> {
        let mut state = self.lock();
        state.hook = Some(Arc::clone(hook));
        if state.raised {
            hook();
        }
        drop(state);
        InterruptGuard { interrupt: self }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, InterruptState> {
        // The state is two plain values: a panic elsewhere can't have left it half written.
        self.state.lock()
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt")
            .field("raised", &self.is_raised())
            .finish_non_exhaustive()
    }
}

/// Unregisters the hook of [`Interrupt::during`].
pub struct InterruptGuard<'a> {
    interrupt: &'a Interrupt,
}

impl Drop for InterruptGuard<'_> {
    fn drop(&mut self) {
        self.interrupt.lock().hook = None;
    }
}
