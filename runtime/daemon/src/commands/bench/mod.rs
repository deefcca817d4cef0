//! `phi-edge bench`: measures the speed of this model on this machine, or what 8-bit keys and values cost in accuracy.

mod bench_args;
mod experts;
mod kv_loss;
mod picture;
mod products;
mod report;
mod scenarios;
mod scripted_decoder;
mod summary;

use std::collections::HashSet;
use std::time::Duration;

use phi_edge_engine::{Detokenizer, Event, Interrupt, RequestId, Summary, Symbol, TokenId};
use phi_edge_onnx::{Isa, baseline};
use serde_json::{Value, json};

use crate::commands::local_model::LocalModel;
use crate::exit::{Exit, Fault};
use crate::machine::process;
use crate::setup::model::ModelSetup;
use bench_args::Scenario;
use scripted_decoder::ScriptedDecoder;

pub(crate) use bench_args::BenchArgs;

/// A loaded model whose tokens can be prescribed.
type Bench = LocalModel<ScriptedDecoder>;

/// Measures and prints.
pub(crate) fn bench(args: &BenchArgs) -> Result<(), Fault> {
    if args.kv_loss {
        return kv_loss::kv_loss(args);
    }
    if args.products {
        return products::products(args);
    }
    if args.experts {
        return experts::experts(args);
    }
    if let Some(file) = &args.report {
        return report::report(args, file);
    }
    let setup = ModelSetup::from_args(&args.model, args.slots(), false)?;
    let (mut local, loaded) = load(setup)?;
    if args.turns {
        return turns(&mut local, args, &loaded);
    }
    let mut report = if args.bare > 0 {
        beside_bare(&mut local, args)?
    } else {
        once(&mut local, args)?
    };
    if let (Some(report), Value::Object(loaded)) = (report.as_object_mut(), loaded) {
        report.extend(loaded);
    }
    print(&report, args.json);
    Ok(())
}

/// Loads the model and runs it once. The object describes what was loaded.
fn load(mut setup: ModelSetup) -> Result<(Bench, Value), Fault> {
    // Guesses would depend on the text, and random weights give none.
    setup.engine.speculation = false;
    setup.engine.kv_budget = Some(u64::MAX);
    let mut local = Bench::load_over(&setup, ScriptedDecoder::new)?;
    // The first run pays for memory and kernels that all later ones have.
    measure(&mut local, 1, 8, 2)?;
    let decoder = local.engine.decoder().inner();
    let loaded = json!({
        "load_ms": local.load.as_millis(),
        "provider": decoder.provider().as_str(),
        "isa": decoder.isa().map_or("none", Isa::as_str),
        "threads": setup.cores.threads,
        "kv_cache": local.engine.caps().kv_type.as_str(),
        "prepared": decoder.prepared().as_str(),
    });
    Ok((local, loaded))
}

/// One measurement of the scenario.
fn once(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let mut report = match args.scenario {
        Scenario::Streams => streams(local, args)?,
        Scenario::Burst => scenarios::burst(local, args)?,
        Scenario::Arrivals => scenarios::arrivals(local, args)?,
        Scenario::Cached => scenarios::cached(local, args)?,
        Scenario::Gaps => scenarios::gaps(local, args)?,
        Scenario::Summary => summary::summary(local, args)?,
        Scenario::Image => picture::first_token(local, args)?,
        Scenario::ImageGaps => picture::gaps(local, args)?,
    };
    report["streams"] = json!(args.concurrency());
    report["rss_bytes"] = json!(process::peak_memory());
    Ok(report)
}

/// Measures once for every line of standard input, after printing an object that describes the loaded model.
fn turns(local: &mut Bench, args: &BenchArgs, loaded: &Value) -> Result<(), Fault> {
    print(loaded, true);
    for line in std::io::stdin().lines() {
        line.map_err(Fault::failed)?;
        print(&once(local, args)?, true);
    }
    Ok(())
}

fn streams(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let (prompt, new) = (args.prompt_tokens(), args.new_tokens as usize);
    let context = local.engine.caps().context_length;
    if prompt.saturating_add(new) > context {
        return Err(Fault::new(
            Exit::Usage,
            format!(
                "{prompt} prompt tokens and {new} new ones do not fit the model's context of {context}: give --prompt-tokens or --new-tokens"
            ),
        ));
    }
    let speed = measure(local, args.concurrency(), prompt, new)?;
    Ok(json!({
        "prefill_tokens_per_s": speed.prefill,
        "decode_tokens_per_s": speed.decode,
        "first_token_ms": speed.first_token * 1000.0,
        "total_s": speed.total,
        "prompt_tokens": prompt,
        "new_tokens": new,
    }))
}

/// Measures `streams` and a bare loop over the same session, in alternation.
fn beside_bare(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let (prompt, new) = (args.prompt_tokens(), args.new_tokens as usize);
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for pair in 0..args.bare {
        // Each first in half of the pairs: the machine's pace drifts.
        if pair % 2 == 0 {
            plain.push(measure_bare(local, prompt, new)?);
        }
        ours.push(measure(local, args.concurrency(), prompt, new)?);
        if pair % 2 == 1 {
            plain.push(measure_bare(local, prompt, new)?);
        }
    }
    let median_of = |pick: fn(&Speed) -> f64, of: &[Speed]| median(of.iter().map(pick).collect());
    let ratio =
        |pick: fn(&Speed) -> f64| median(ours.iter().zip(&plain).map(|(a, b)| pick(a) / pick(b)).collect());
    Ok(json!({
        "rss_bytes": process::peak_memory(),
        "prefill_tokens_per_s": median_of(|s| s.prefill, &ours),
        "decode_tokens_per_s": median_of(|s| s.decode, &ours),
        "first_token_ms": median_of(|s| s.first_token * 1000.0, &ours),
        "bare_prefill_tokens_per_s": median_of(|s| s.prefill, &plain),
        "bare_decode_tokens_per_s": median_of(|s| s.decode, &plain),
        "prefill_over_bare": ratio(|s| s.prefill),
        "decode_over_bare": ratio(|s| s.decode),
        "pairs": args.bare,
    }))
}

fn print(report: &serde_json::Value, json: bool) {
    if json {
        println!("{report}");
        return;
    }
    for (name, value) in report.as_object().into_iter().flatten() {
        match value.as_f64().filter(|_| value.is_f64()) {
            Some(number) => println!("{name:32} {number:.2}"),
            None => println!("{name:32} {value}"),
        }
    }
}

/// One measurement: tokens per second and seconds.
struct Speed {
    prefill: f64,
    decode: f64,
    first_token: f64,
    total: f64,
}

fn measure(local: &mut Bench, streams: usize, prompt: usize, new: usize) -> Result<Speed, Fault> {
    let salt = salt(local);
    let clock = local.clock();
    let started = clock();
    for stream in 0..streams {
        let request = scenarios::request_of(
            RequestId(stream as u64),
            prompt_of(local, salt + stream, prompt),
            new,
        );
        local.engine.submit(request, started).map_err(Fault::failed)?;
    }
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    // When the last stream had its first token, and how many events there were by then: what came before is prefill.
    let mut all_run = None;
    while !local.engine.is_idle() {
        local.engine.step(&clock, &interrupt, &mut events);
        if all_run.is_none() && speaking(&events) == streams {
            all_run = Some((clock(), events.len()));
        }
    }
    let ended = clock();
    let (all_run, before) = all_run.unwrap_or((ended, events.len()));
    let written = events[before..]
        .iter()
        .filter(|event| matches!(event, Event::Text { .. }))
        .count();
    let summaries = scenarios::summaries_of(events)?;
    let firsts = summaries
        .iter()
        .map(|s: &Summary| (s.queued + s.prefill).as_secs_f64());
    Ok(Speed {
        prefill: per_second(prompt * streams, all_run.saturating_sub(started)),
        decode: per_second(written, ended.saturating_sub(all_run)),
        first_token: median(firsts.collect()),
        total: ended.saturating_sub(started).as_secs_f64(),
    })
}

/// The number of streams that have produced text.
fn speaking(events: &[Event]) -> usize {
    let ids: HashSet<RequestId> = events
        .iter()
        .filter_map(|event| match event {
            Event::Text { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    ids.len()
}

fn measure_bare(local: &mut Bench, prompt: usize, new: usize) -> Result<Speed, Fault> {
    let ids = prompt_of(local, 0, prompt);
    let times =
        baseline::run(local.engine.decoder_mut().inner_mut(), &ids, new - 1).map_err(Fault::failed)?;
    Ok(Speed {
        prefill: per_second(prompt, times.prefill),
        decode: per_second(new - 1, times.decode),
        first_token: times.prefill.as_secs_f64(),
        total: (times.prefill + times.decode).as_secs_f64(),
    })
}

/// A number that differs each time, so that no prompt of a measurement is in the cache.
fn salt(local: &Bench) -> usize {
    usize::try_from(local.now().as_micros()).unwrap_or(0)
}

/// Token ids spread over the vocabulary, a different sequence for each stream.
fn prompt_of(local: &Bench, stream: usize, tokens: usize) -> Vec<Symbol> {
    let vocabulary = local.engine.caps().vocab_size;
    (0..tokens)
        .map(|n| {
            let id = (n * 7919 + stream.wrapping_mul(104_729) % vocabulary + 17) % vocabulary;
            Symbol::Token(TokenId(u32::try_from(id).unwrap_or(0)))
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn per_second(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// A detokenizer that gives every token the same text, so that each is counted as it arrives.
struct MarkPerToken;

impl Detokenizer for MarkPerToken {
    fn push(&mut self, _: TokenId) -> String {
        ".".to_owned()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}
