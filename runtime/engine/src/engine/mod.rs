//! The engine: continuous batching of sequences over a decoder.

mod admit;
mod cached_prefixes;
mod decode;
mod images;
mod placement;
mod prefill;
mod prefix;
mod regime;
mod settle;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::cost::RunCost;
use crate::decoder::{Caps, Decoder, Interrupt};
use crate::feature_cache::FeatureCache;
use crate::ids::{RequestId, RowId, TokenId};
use crate::request::{Event, Failure, Finish, GenerateRequest};
use crate::rows::KvRows;
use crate::run_times::RunTimes;
use crate::scheduler::{Scheduler, StepKind};
use crate::sequence::{Sequence, Waiting};
use crate::symbol::Symbol;

pub use cached_prefixes::CachedPrefixes;
pub use regime::RopePolicy;

/// The engine's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// The most tokens of one prefill run. A cancellation takes effect between runs at the latest.
    pub prefill_chunk: usize,
    /// The most sequences that run at once; at least 1, at most the decoder's rows.
    pub slots: usize,
    /// Whether an answer that repeats itself without end is ended.
    pub stop_repetition: bool,
    /// Whether idle rows keep their keys and values for prompts that share a prefix.
    pub prefix_cache: bool,
    /// Whether the text so far drafts how it goes on, to verify several tokens in one run.
    pub speculation: bool,
    /// The most bytes of keys and values, of running sequences and cached prefixes together; `None` is no bound.
    pub kv_budget: Option<u64>,
    /// When a sequence's rope regime is decided.
    pub rope_policy: RopePolicy,
    /// The most bytes of images' features that are kept for prompts to come. Those that running sequences need are kept
    /// whatever they take.
    pub image_memory: u64,
}

/// The default of [`EngineConfig::image_memory`].
const IMAGE_MEMORY: u64 = 256 << 20;

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            prefill_chunk: 512,
            slots: 1,
            stop_repetition: true,
            prefix_cache: true,
            speculation: true,
            kv_budget: None,
            rope_policy: RopePolicy::Switch,
            image_memory: IMAGE_MEMORY,
        }
    }
}

/// Memory of keys and values, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvUse {
    /// Bytes of running sequences, beside what they read from idle rows.
    pub running: u64,
    /// Bytes of idle rows that are kept as cached prefixes.
    pub remembered: u64,
    /// The upper bound of both together ([`EngineConfig::kv_budget`]).
    pub budget: Option<u64>,
}

/// Runs sequences over a [`Decoder`].
pub struct Engine<D> {
    decoder: D,
    config: EngineConfig,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    rows: KvRows,
    scheduler: Scheduler,
    run_times: RunTimes,
    cost: RunCost,
    features: FeatureCache,
    crops_encoded: u64,
    /// The last step did nothing, since all that could be done needs pixels.
    waits_for_pixels: bool,
    /// Decode steps of single sequences so far; orders sequences by when they were last served.
    steps: u64,
    /// Idle rows that took part in a run as padding, and hold a token behind their own since.
    padding_rows: BTreeSet<RowId>,
    /// Never raised: for runs of several rows, which must not end for the sake of one of them.
    no_interrupt: Interrupt,
    /// The input of padding rows.
    padding_input: [Symbol; 1],
}

impl<D: Decoder> Engine<D> {
    /// An engine without requests.
    pub fn new(decoder: D, mut config: EngineConfig) -> Self {
        config.slots = config.slots.clamp(1, decoder.caps().rows.max(1));
        config.prefill_chunk = config.prefill_chunk.max(1);
        Self {
            rows: KvRows::new(decoder.caps(), config.slots),
            features: FeatureCache::new(config.image_memory),
            crops_encoded: 0,
            waits_for_pixels: false,
            decoder,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            scheduler: Scheduler::default(),
            run_times: RunTimes::default(),
            cost: RunCost::default(),
            steps: 0,
            padding_rows: BTreeSet::new(),
            no_interrupt: Interrupt::new(),
            padding_input: [Symbol::Token(TokenId(0))],
        }
    }

    /// The decoder's capabilities.
    pub fn caps(&self) -> &Caps {
        self.decoder.caps()
    }

    /// The most tokens of one sequence: the model's context, or the memory beside pinned prefixes where that is less.
    pub fn context(&self) -> usize {
        let context = self.decoder.caps().context_length;
        self.memory().map_or(context, |memory| context.min(memory))
    }

    /// The most tokens of all sequences together, beside pinned prefixes; `None` without a bound. Several sequences hold
    /// less by what is lost to whole blocks and pages in each row, and more by what they share.
    pub fn memory(&self) -> Option<usize> {
        let budget = self.config.kv_budget?.saturating_sub(self.rows.pinned_bytes());
        Some(self.rows.bytes().tokens_in(budget))
    }

    /// The decoder.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }

    /// The decoder, for measurements while the engine is idle. Cached prefixes are evicted.
    pub fn decoder_mut(&mut self) -> &mut D {
        self.forget();
        &mut self.decoder
    }

    /// Turns speculation on or off ([`EngineConfig::speculation`]).
    pub fn set_speculation(&mut self, on: bool) {
        self.config.speculation = on;
    }

    /// The most sequences that run at once.
    pub fn slots(&self) -> usize {
        self.config.slots
    }

    /// Whether nothing runs and nothing waits: a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Queues a request. On `Err` there will be no event for it.
    pub fn submit(&mut self, request: GenerateRequest, now: Duration) -> Result<(), Failure> {
        self.validate(&request)?;
        self.waits_for_pixels = false;
        self.waiting.push_back(Waiting {
            request,
            submitted: now,
            ended: None,
        });
        Ok(())
    }

    /// Ends a request before its next token, with what it has by then. Unknown ids are ignored: the
    /// request may have ended by itself.
    pub fn cancel(&mut self, id: RequestId) {
        self.waits_for_pixels = false;
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id() == id) {
            sequence.ended = Some(Finish::Cancelled);
        } else if let Some(waiting) = self.waiting.iter_mut().find(|w| w.request.id == id) {
            waiting.ended = Some(Finish::Cancelled);
        }
    }

    /// Makes one step: at most one run of the graph, or one of the image encoder. `now` returns the time since the engine's epoch, and is called
    /// again after the run.
    pub fn step(&mut self, now: &dyn Fn() -> Duration, interrupt: &Interrupt, events: &mut Vec<Event>) {
        self.end_expired(now(), events);
        self.start_waiting(now(), events);
        self.update_regimes();
        let failed = self.update_readiness(events);
        let mixed = self.decoder.caps().mixed_regimes;
        let next = self
            .scheduler
            .next(&self.running, self.config.prefix_cache, mixed);
        match next {
            Some(StepKind::Prefill(index)) => self.prefill(index, now, interrupt, events),
            Some(StepKind::Encode(index, image)) => self.encode(index, image, interrupt, events),
            Some(StepKind::Decode(regime)) => self.decode(regime, now, interrupt, events),
            None => {}
        }
        self.evict_features();
        // The place of one that failed may be taken in the next step.
        self.waits_for_pixels = next.is_none() && !failed && !self.running.is_empty();
    }

    /// The memory that keys and values take at present.
    pub fn kv_use(&self) -> KvUse {
        let running = self.running.iter();
        let running = running.map(|sequence| self.rows.running_bytes(sequence.row, sequence.computed));
        KvUse {
            running: running.sum(),
            remembered: self.rows.idle_bytes(),
            budget: self.config.kv_budget,
        }
    }
}
