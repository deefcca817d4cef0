//! The state of one request in the engine.

use std::time::Duration;

use crate::decoder::Regime;
use crate::ids::{RequestId, RowId};
use crate::repetition::RepetitionGuard;
use crate::request::{Finish, GenerateRequest, PrefillRuns, Summary};
use crate::sampler::Sampler;
use crate::speculation::NgramDrafter;
use crate::stop::StopMatcher;
use crate::symbol::{ImageId, ImageSpan, Symbol};

/// A running request with its tokens, its row, its sampler and its text.
pub(crate) struct Sequence {
    pub(crate) request: GenerateRequest,
    /// Prompt and new tokens.
    pub(crate) tokens: Vec<Symbol>,
    /// The number of `tokens` whose keys and values the row holds.
    pub(crate) computed: usize,
    pub(crate) row: RowId,
    pub(crate) regime: Regime,
    /// Set by a cancellation: ends the sequence before its next token.
    pub(crate) ended: Option<Finish>,
    pub(crate) submitted: Duration,
    /// Prompt tokens whose keys and values came from the prefix cache.
    pub(crate) cached: usize,
    /// The runs that have computed its prompt so far.
    pub(crate) prefill_runs: PrefillRuns,
    /// Prefill runs so far.
    pub(crate) chunks: u32,
    /// The most tokens of the prompt that [`crate::Event::Progress`] has reported as computed.
    pub(crate) reported: usize,
    pub(crate) drafter: NgramDrafter,
    /// The count of served sequences when it last took part in a decode step.
    pub(crate) served: u64,
    /// The places of images among its tokens.
    pub(crate) images: Vec<ImageSpan>,
    /// What a step can do for it while its prompt is computed; valid within a step.
    pub(crate) readiness: Readiness,
    /// The last token and its draft: the input of a verification.
    pub(crate) draft_input: Vec<Symbol>,
    started: Duration,
    first_token: Option<Duration>,
    sampler: Sampler,
    stop: StopMatcher,
    repetition: Option<RepetitionGuard>,
}

/// What a step can do for a sequence whose prompt is not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Compute what stands before the first image without features.
    Prefill,
    /// Encode a crop of the image that is next.
    Encode(ImageId),
    /// Nothing: the pixels of the image that is next are being made.
    AwaitsPixels,
}

/// The outcome of a sampled token.
pub(crate) struct SampledToken {
    /// Text that is certain by now.
    pub(crate) text: String,
    /// How the answer ended, if it did.
    pub(crate) finish: Option<Finish>,
}

impl Sequence {
    pub(crate) fn new(waiting: Waiting, row: RowId, now: Duration, guard: bool) -> Self {
        let Waiting {
            request, submitted, ..
        } = waiting;
        let mut sampler = Sampler::new(request.sampling.clone());
        for id in request.prompt.iter().filter_map(|symbol| symbol.token()) {
            sampler.observe(id);
        }
        Self {
            images: ImageSpan::of(&request.prompt),
            readiness: Readiness::Prefill,
            tokens: request.prompt.clone(),
            computed: 0,
            row,
            regime: Regime::Short,
            ended: None,
            submitted,
            cached: 0,
            prefill_runs: PrefillRuns::default(),
            chunks: 0,
            reported: 0,
            drafter: NgramDrafter::default(),
            served: 0,
            draft_input: Vec::new(),
            started: now,
            first_token: None,
            sampler,
            stop: StopMatcher::new(&request.stop.strings),
            repetition: guard.then(RepetitionGuard::default),
            request,
        }
    }

    pub(crate) fn id(&self) -> RequestId {
        self.request.id
    }

    /// Whether only the last token is to be computed: the next run gives a new one. A last place of an image is computed as
    /// a part of a prompt: runs of several sequences take tokens alone.
    pub(crate) fn decodes(&self) -> bool {
        self.computed + 1 == self.tokens.len()
            && self.tokens.last().is_some_and(|last| last.token().is_some())
    }

    /// The places of images that are not computed; the first span may be computed in part.
    pub(crate) fn uncomputed_images(&self) -> impl Iterator<Item = &ImageSpan> {
        let computed = self.computed;
        self.images.iter().filter(move |span| span.places.end > computed)
    }

    /// Whether places of `image` are not computed.
    pub(crate) fn wants_image(&self, image: ImageId) -> bool {
        self.uncomputed_images().any(|span| span.image == image)
    }

    /// The number of tokens to compute before the next new one.
    pub(crate) fn rest(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The number of new tokens that the answer may still have.
    pub(crate) fn tokens_left(&self) -> usize {
        self.request.max_tokens.saturating_sub(self.new_tokens())
    }

    fn new_symbols(&self) -> impl Iterator<Item = Symbol> {
        self.tokens.iter().skip(self.request.prompt.len()).copied()
    }

    fn new_tokens(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Samples a token from the logits after the last one and appends it.
    pub(crate) fn sample(
        &mut self,
        logits: &[f32],
        context: usize,
        now: Duration,
    ) -> Result<SampledToken, crate::sampler::NoLogits> {
        let id = self.sampler.sample(logits)?;
        self.first_token.get_or_insert(now);
        if self.request.stop.ids.contains(&id) {
            return Ok(self.close(Finish::Stop));
        }
        self.sampler.observe(id);
        self.tokens.push(Symbol::Token(id));
        let piece = self.request.detokenizer.push(id);
        let released = self.stop.push(&piece);
        let mut text = released.text;
        if released.stopped {
            return Ok(SampledToken {
                text,
                finish: Some(Finish::Stop),
            });
        }
        let finish = if self.repetition.as_mut().is_some_and(|guard| guard.push(id)) {
            Finish::Repetition
        } else if self.new_tokens() >= self.request.max_tokens || self.tokens.len() >= context {
            Finish::Length
        } else {
            return Ok(SampledToken { text, finish: None });
        };
        let closed = self.close(finish);
        text.push_str(&closed.text);
        Ok(SampledToken {
            text,
            finish: closed.finish,
        })
    }

    /// Ends the text and releases what is held back; a stop string in it still ends the text before itself.
    pub(crate) fn close(&mut self, finish: Finish) -> SampledToken {
        let piece = self.request.detokenizer.finish();
        let released = self.stop.push(&piece);
        let mut text = released.text;
        if released.stopped {
            return SampledToken {
                text,
                finish: Some(Finish::Stop),
            };
        }
        text.push_str(&self.stop.finish());
        SampledToken {
            text,
            finish: Some(finish),
        }
    }

    pub(crate) fn summary(&self, finish: Finish, now: Duration) -> Summary {
        let first = self.first_token.unwrap_or(now);
        Summary {
            finish,
            tokens: self.new_symbols().filter_map(Symbol::token).collect(),
            prompt_tokens: self.request.prompt.len(),
            image_tokens: self.images.iter().map(|span| span.places.len()).sum(),
            cached_tokens: self.cached,
            draft_tokens: self.drafter.drafted,
            accepted_draft_tokens: self.drafter.accepted,
            queued: self.started.saturating_sub(self.submitted),
            prefill: first.saturating_sub(self.started),
            prefill_runs: self.prefill_runs,
            decode: now.saturating_sub(first),
        }
    }
}

/// A request that waits for a slot.
pub(crate) struct Waiting {
    pub(crate) request: GenerateRequest,
    pub(crate) submitted: Duration,
    pub(crate) ended: Option<Finish>,
}

impl Waiting {
    pub(crate) fn summary(&self, finish: Finish, now: Duration) -> Summary {
        Summary {
            finish,
            tokens: Vec::new(),
            prompt_tokens: self.request.prompt.len(),
            image_tokens: self
                .request
                .prompt
                .iter()
                .filter_map(|symbol| symbol.image())
                .count(),
            cached_tokens: 0,
            draft_tokens: 0,
            accepted_draft_tokens: 0,
            queued: now.saturating_sub(self.submitted),
            prefill: Duration::ZERO,
            prefill_runs: PrefillRuns::default(),
            decode: Duration::ZERO,
        }
    }
}
