//! The scenarios of concurrent requests.

use std::collections::HashMap;
use std::time::Duration;

use phi_edge_engine::{Event, GenerateRequest, Interrupt, RequestId, Sampling, Stop, Summary, Symbol};
use serde_json::{Value, json};

use super::bench_args::BenchArgs;
use super::{Bench, MarkPerToken, median, prompt_of, salt};
use crate::exit::Fault;

/// Requests that arrive together and share the beginning of their prompts.
pub(crate) fn burst(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let (own, new) = (args.prompt_tokens(), args.new_tokens as usize);
    let salt = salt(local);
    let shared = prompt_of(local, salt, args.shared_tokens as usize);
    let started = local.now();
    for n in 0..args.requests() {
        let mut prompt = shared.clone();
        prompt.extend(prompt_of(local, salt + 1000 + n, own));
        submit(local, RequestId(n as u64), prompt, new)?;
    }
    let summaries = finish_all(local)?;
    let took = local.now().saturating_sub(started).as_secs_f64();
    let of = |pick: fn(&Summary) -> usize| summaries.iter().map(pick).sum::<usize>();
    Ok(json!({
        "total_s": took,
        "requests": args.requests(),
        "cached_tokens": of(|s| s.cached_tokens),
        "prompt_tokens": of(|s| s.prompt_tokens),
        "new_tokens": of(|s| s.tokens.len()),
        "first_token_ms": median(summaries.iter().map(|s| (s.queued + s.prefill).as_secs_f64() * 1000.0).collect()),
    }))
}

/// Time to the first token of a prompt whose prefix is cached, and of one whose prefix is not.
pub(crate) fn cached(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let salt = salt(local);
    let mut first_token = |shared: usize, own: usize| -> Result<(f64, usize), Fault> {
        let mut prompt = prompt_of(local, shared, args.shared_tokens as usize);
        prompt.extend(prompt_of(local, own, args.prompt_tokens()));
        submit(local, RequestId(0), prompt, 1)?;
        let summaries = finish_all(local)?;
        let summary = &summaries[0];
        Ok((
            (summary.queued + summary.prefill).as_secs_f64() * 1000.0,
            summary.cached_tokens,
        ))
    };
    let (uncached, _) = first_token(salt, salt + 2)?;
    let (remembered, tokens) = first_token(salt, salt + 3)?;
    Ok(json!({
        "uncached_first_token_ms": uncached,
        "cached_first_token_ms": remembered,
        "cached_tokens": tokens,
        "cached_over_uncached": remembered / uncached,
    }))
}

/// The gaps between a stream's tokens during the prefill of a long prompt.
pub(crate) fn gaps(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    gaps_beside(local, args, |local, id| {
        let prompt = prompt_of(local, salt(local), args.prompt_tokens());
        submit(local, id, prompt, 2)
    })
}

/// The gaps between a stream's tokens from the moment when `submit_other` submits another request, of the id that it is given,
/// to that request's first token.
pub(super) fn gaps_beside(
    local: &mut Bench,
    args: &BenchArgs,
    submit_other: impl FnOnce(&mut Bench, RequestId) -> Result<(), Fault>,
) -> Result<Value, Fault> {
    const OTHER_ID: RequestId = RequestId(1 << 32);
    let mut submit_other = Some(submit_other);
    let streams = args.concurrency() as u64;
    let salt = salt(local);
    let clock = local.clock();
    for n in 0..streams {
        let prompt = prompt_of(local, salt + usize::try_from(n).unwrap_or(0), 16);
        submit(local, RequestId(n), prompt, args.new_tokens as usize)?;
    }
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let mut last: HashMap<u64, Duration> = HashMap::new();
    let (mut before, mut during) = (Vec::new(), Vec::new());
    let mut entered: Option<(Duration, Duration)> = None;
    let mut longest_step = Duration::ZERO;
    while !local.engine.is_idle() {
        let began = clock();
        local.engine.step(&clock, &interrupt, &mut events);
        let now = clock();
        if let Some((since, Duration::ZERO)) = entered {
            longest_step = longest_step.max(now.saturating_sub(began.max(since)));
        }
        for event in events.drain(..) {
            match event {
                Event::Text { id, .. } if id.0 < streams => {
                    if let Some(last) = last.insert(id.0, now) {
                        let gap = now.saturating_sub(last).as_secs_f64() * 1000.0;
                        match entered {
                            None => before.push(gap),
                            Some((_, Duration::ZERO)) => during.push(gap),
                            Some(_) => {}
                        }
                    }
                }
                Event::Text { .. } => {
                    if let Some((_, end @ Duration::ZERO)) = &mut entered {
                        *end = now;
                    }
                }
                Event::Failed { reason, .. } => return Err(Fault::failed(reason)),
                Event::Started { .. } | Event::Progress { .. } | Event::Finished { .. } => {}
            }
        }
        if before.len() > 8 * args.concurrency()
            && let Some(submit_other) = submit_other.take()
        {
            submit_other(local, OTHER_ID)?;
            entered = Some((clock(), Duration::ZERO));
        }
    }
    let longest = during.iter().copied().fold(0.0, f64::max);
    let took = entered.map_or(0.0, |(since, end)| end.saturating_sub(since).as_secs_f64());
    Ok(json!({
        "median_gap_ms": median(before),
        "median_gap_while_entering_ms": median(during.clone()),
        "longest_gap_while_entering_ms": longest,
        "longest_step_ms": longest_step.as_secs_f64() * 1000.0,
        "tokens_while_entering": during.len(),
        "other_first_token_s": took,
    }))
}

/// Requests that arrive at regular times over some seconds, independently of each other's progress.
pub(crate) fn arrivals(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    const ARRIVAL_PERIOD: Duration = Duration::from_secs(5);
    let salt = salt(local);
    let clock = local.clock();
    let requests = args.requests();
    let gap = ARRIVAL_PERIOD / u32::try_from(requests).unwrap_or(u32::MAX);
    let started = clock();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let mut arrived = 0;
    while arrived < requests || !local.engine.is_idle() {
        let due = |n: usize| gap * u32::try_from(n).unwrap_or(u32::MAX);
        let elapsed = clock().saturating_sub(started);
        while arrived < requests && due(arrived) <= elapsed {
            let prompt = prompt_of(local, salt + arrived, args.prompt_tokens());
            submit(local, RequestId(arrived as u64), prompt, args.new_tokens as usize)?;
            arrived += 1;
        }
        if local.engine.is_idle() {
            std::thread::sleep(due(arrived).saturating_sub(elapsed));
        } else {
            local.engine.step(&clock, &interrupt, &mut events);
        }
    }
    let took = clock().saturating_sub(started).as_secs_f64();
    let summaries = summaries_of(events)?;
    Ok(json!({
        "total_s": took,
        "requests": requests,
        "new_tokens": summaries.iter().map(|s| s.tokens.len()).sum::<usize>(),
        "first_token_ms": median(summaries.iter().map(|s| (s.queued + s.prefill).as_secs_f64() * 1000.0).collect()),
    }))
}

fn submit(local: &mut Bench, id: RequestId, prompt: Vec<Symbol>, new: usize) -> Result<(), Fault> {
    let now = local.now();
    local
        .engine
        .submit(request_of(id, prompt, new), now)
        .map_err(Fault::failed)
}

/// A request that nothing ends early, so that all do the same work.
pub(crate) fn request_of(id: RequestId, prompt: Vec<Symbol>, new: usize) -> GenerateRequest {
    GenerateRequest {
        id,
        prompt,
        images: Vec::new(),
        max_tokens: new,
        sampling: Sampling::default(),
        stop: Stop::default(),
        // Text marks each token as it comes.
        detokenizer: Box::new(MarkPerToken),
        deadline: None,
    }
}

pub(crate) fn finish_all(local: &mut Bench) -> Result<Vec<Summary>, Fault> {
    let clock = local.clock();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    while !local.engine.is_idle() {
        local.engine.step(&clock, &interrupt, &mut events);
    }
    summaries_of(events)
}

pub(crate) fn summaries_of(events: Vec<Event>) -> Result<Vec<Summary>, Fault> {
    let mut summaries = Vec::new();
    for event in events {
        match event {
            Event::Finished { summary, .. } => summaries.push(summary),
            Event::Failed { reason, .. } => return Err(Fault::failed(reason)),
            Event::Started { .. } | Event::Progress { .. } | Event::Text { .. } => {}
        }
    }
    Ok(summaries)
}
