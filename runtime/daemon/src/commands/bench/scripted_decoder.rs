//! A decoder that computes as usual and returns the tokens of a script.
//!
//! Random weights never quote, so a text that quotes is prescribed: every run costs what it costs, and the logits it
//! returns make greedy decoding choose the script's next token.

use std::time::{Duration, Instant};

use phi_edge_engine::{
    Caps, DecodeError, Decoder, ImageEncoding, ImageFeatures, ImageId, ImagePixels, Interrupt, Logits, Row,
    RowId, Step, Symbol, Wanted,
};
use phi_edge_onnx::OnnxDecoder;

/// ONNX Runtime's decoder, whose logits are replaced where there is a script.
pub(crate) struct ScriptedDecoder {
    decoder: OnnxDecoder,
    /// The prompt and its continuation. If it is empty, the model's own logits are returned.
    script: Vec<Symbol>,
    logits: Vec<f32>,
    /// The indices at which `logits` is not 0.
    chosen: Vec<usize>,
    times: Times,
}

/// What took how long.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// The decoder's runs.
    pub(crate) runs: Vec<Duration>,
    /// The vision encoder's runs, of a crop each where its graph was cut.
    pub(crate) crops: Vec<Duration>,
}

impl ScriptedDecoder {
    pub(crate) fn new(decoder: OnnxDecoder) -> Self {
        Self {
            decoder,
            script: Vec::new(),
            logits: Vec::new(),
            chosen: Vec::new(),
            times: Times::default(),
        }
    }

    /// Prescribes a prompt and its continuation, for one sequence at a time.
    pub(crate) fn prescribe(&mut self, script: Vec<Symbol>) {
        self.script = script;
    }

    pub(crate) fn inner(&self) -> &OnnxDecoder {
        &self.decoder
    }

    pub(crate) fn inner_mut(&mut self) -> &mut OnnxDecoder {
        &mut self.decoder
    }

    /// Returns the times since the last call.
    pub(crate) fn take_times(&mut self) -> Times {
        std::mem::take(&mut self.times)
    }

    fn choose(&mut self, rows: &[Row<'_>], vocab: usize) {
        for index in self.chosen.drain(..) {
            self.logits[index] = 0.0;
        }
        let count: usize = rows.iter().map(Row::logits_count).sum();
        self.logits.resize(count * vocab, 0.0);
        for row in rows {
            let first = match row.logits {
                Wanted::Last => (row.past + row.input.len()).saturating_sub(1),
                Wanted::All | Wanted::None => row.past,
            };
            for position in first..first + row.logits_count() {
                let next = self.script.get(position + 1).and_then(|symbol| symbol.token());
                let next = next.map_or(0, |token| token.0 as usize);
                let index = self.chosen.len() * vocab + next.min(vocab - 1);
                self.logits[index] = 1.0;
                self.chosen.push(index);
            }
        }
    }
}

impl Decoder for ScriptedDecoder {
    fn caps(&self) -> &Caps {
        self.decoder.caps()
    }

    fn run(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<Logits<'_>, DecodeError> {
        let started = Instant::now();
        if self.script.is_empty() {
            let logits = self.decoder.run(step, interrupt);
            self.times.runs.push(started.elapsed());
            return logits;
        }
        self.decoder.run(step, interrupt)?;
        self.times.runs.push(started.elapsed());
        let vocab = self.decoder.caps().vocab_size;
        self.choose(step.rows, vocab);
        Ok(Logits::new(&self.logits, vocab))
    }

    fn ensure(&mut self, row: RowId, len: usize) -> Result<(), DecodeError> {
        self.decoder.ensure(row, len)
    }

    fn copy(&mut self, from: RowId, to: RowId, tokens: std::ops::Range<usize>) -> Result<(), DecodeError> {
        self.decoder.copy(from, to, tokens)
    }

    fn truncate(&mut self, row: RowId, len: usize) {
        self.decoder.truncate(row, len);
    }

    fn release(&mut self, row: RowId) {
        self.decoder.release(row);
    }

    fn save(&mut self, row: RowId, len: usize) -> Result<Vec<u8>, DecodeError> {
        self.decoder.save(row, len)
    }

    fn load(&mut self, row: RowId, saved: &[u8]) -> Result<usize, DecodeError> {
        self.decoder.load(row, saved)
    }

    fn encode_image(
        &mut self,
        image: ImageId,
        pixels: &ImagePixels,
        encoding: &mut ImageEncoding,
        interrupt: &Interrupt,
    ) -> Result<Option<ImageFeatures>, DecodeError> {
        let started = Instant::now();
        let features = self.decoder.encode_image(image, pixels, encoding, interrupt)?;
        self.times.crops.push(started.elapsed());
        Ok(features)
    }
}
