//! The baseline of the benchmarks: the same session in the plainest loop, whole prompt in one run, past and present
//! in one buffer, no engine and no sampling.

use std::time::{Duration, Instant};

use phi_edge_engine::{DecodeError, Interrupt, Symbol, TokenId};

use crate::decoder::OnnxDecoder;

/// The run times of a baseline loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaselineTimes {
    /// The time of the prompt's run.
    pub prefill: Duration,
    /// The time of all runs of one token after it.
    pub decode: Duration,
}

/// Runs `prompt` and then `new_tokens` steps of one token in row 0 of `decoder`, which must be idle.
pub fn run(
    decoder: &mut OnnxDecoder,
    prompt: &[Symbol],
    new_tokens: usize,
) -> Result<BaselineTimes, DecodeError> {
    let interrupt = Interrupt::new();
    let token = prompt.last().copied().unwrap_or(Symbol::Token(TokenId(0)));
    let started = Instant::now();
    decoder.run_plain(prompt, 0, &interrupt)?;
    let prefill = started.elapsed();
    let started = Instant::now();
    for step in 0..new_tokens {
        decoder.run_plain(&[token], prompt.len() + step, &interrupt)?;
    }
    Ok(BaselineTimes {
        prefill,
        decode: started.elapsed(),
    })
}
