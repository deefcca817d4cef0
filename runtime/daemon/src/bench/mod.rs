//! `phi-edge bench`: how fast this machine runs this model.

mod scenarios;

use std::time::Duration;

use phi_edge_engine::{
    Detokenizer, Event, GenerateRequest, Interrupt, RequestId, Sampling, Stop, Summary, TokenId,
};
use phi_edge_onnx::bare;
use serde_json::json;

use crate::cli::{BenchArgs, Scenario};
use crate::exit::Fault;
use crate::local::{Choice, Local};

/// Measures and prints.
pub(crate) fn bench(args: &BenchArgs) -> Result<(), Fault> {
    let streams = args.concurrency as usize;
    let mut choice = Choice::of_flags(&args.model, streams, false)?;
    // Guesses would depend on the text, and random weights give none.
    choice.engine.speculation = false;
    choice.engine.kv_budget = Some(u64::MAX);
    let mut local = Local::load(&choice)?;
    // The first run pays for memory and kernels that all later ones have.
    measure(&mut local, 1, 8, 2)?;
    let of_many = match args.scenario {
        Scenario::Streams => None,
        Scenario::Burst => Some(scenarios::burst(&mut local, args)?),
        Scenario::Cached => Some(scenarios::cached(&mut local, args)?),
        Scenario::Gaps => Some(scenarios::gaps(&mut local, args)?),
    };
    if let Some(mut report) = of_many {
        report["load_ms"] = json!(local.load.as_millis());
        report["rss_bytes"] = json!(peak_memory());
        report["streams"] = json!(streams);
        print(&report, args.json);
        return Ok(());
    }
    let (prompt, new) = (args.prompt_tokens as usize, args.new_tokens as usize);
    if args.turns {
        return turns(&mut local, args);
    }
    let mut ours = Vec::new();
    let mut plain = Vec::new();
    for pair in 0..args.bare.max(1) {
        // In turns, and each first in half of the pairs: the machine's pace drifts.
        if args.bare > 0 && pair % 2 == 0 {
            plain.push(measure_bare(&mut local, prompt, new)?);
        }
        ours.push(measure(&mut local, streams, prompt, new)?);
        if args.bare > 0 && pair % 2 == 1 {
            plain.push(measure_bare(&mut local, prompt, new)?);
        }
    }
    let median = |pick: fn(&Speed) -> f64, of: &[Speed]| median(of.iter().map(pick).collect());
    let mut report = json!({
        "load_ms": local.load.as_millis(),
        "rss_bytes": peak_memory(),
        "prefill_tokens_per_s": median(|s| s.prefill, &ours),
        "decode_tokens_per_s": median(|s| s.decode, &ours),
        "first_token_ms": median(|s| s.first_token * 1000.0, &ours),
        "streams": streams, "prompt_tokens": prompt, "new_tokens": new,
        "provider": local.engine.decoder().provider().as_str(),
    });
    if args.bare > 0 {
        report["bare_prefill_tokens_per_s"] = json!(median(|s| s.prefill, &plain));
        report["bare_decode_tokens_per_s"] = json!(median(|s| s.decode, &plain));
        let ratios =
            |pick: fn(&Speed) -> f64| ours.iter().zip(&plain).map(|(a, b)| pick(a) / pick(b)).collect();
        report["prefill_over_bare"] = json!(self::median(ratios(|s| s.prefill)));
        report["decode_over_bare"] = json!(self::median(ratios(|s| s.decode)));
        report["pairs"] = json!(args.bare);
    }
    print(&report, args.json);
    Ok(())
}

/// One measurement for every line that comes, after one object that says that the model is loaded.
fn turns(local: &mut Local, args: &BenchArgs) -> Result<(), Fault> {
    print(&json!({ "load_ms": local.load.as_millis() }), true);
    for line in std::io::stdin().lines() {
        line.map_err(Fault::failed)?;
        let speed = measure(
            local,
            args.concurrency as usize,
            args.prompt_tokens as usize,
            args.new_tokens as usize,
        )?;
        let report = json!({
            "rss_bytes": peak_memory(),
            "prefill_tokens_per_s": speed.prefill,
            "decode_tokens_per_s": speed.decode,
            "first_token_ms": speed.first_token * 1000.0,
        });
        print(&report, true);
    }
    Ok(())
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

/// One measurement, per second, and the time to the first token in seconds.
struct Speed {
    prefill: f64,
    decode: f64,
    first_token: f64,
}

fn measure(local: &mut Local, streams: usize, prompt: usize, new: usize) -> Result<Speed, Fault> {
    // Another prompt each time: every measurement pays for all of its tokens.
    let rounds = usize::try_from(local.now().as_micros()).unwrap_or(0);
    let clock = local.clock();
    let started = clock();
    for stream in 0..streams {
        let request = GenerateRequest {
            id: RequestId(stream as u64),
            prompt: prompt_of(local, rounds + stream, prompt),
            max_tokens: new,
            sampling: Sampling::default(),
            // Nothing ends a stream early: all do the same work.
            stop: Stop::default(),
            detokenizer: Box::new(Silent { text: "" }),
            deadline: None,
        };
        local.engine.submit(request, started).map_err(Fault::failed)?;
    }
    let interrupt = Interrupt::new();
    let mut events = Vec::new();
    while !local.engine.is_idle() {
        local.engine.step(&clock, &interrupt, &mut events);
    }
    let wall = clock().saturating_sub(started);
    let mut summaries: Vec<Summary> = Vec::new();
    for event in events {
        match event {
            Event::Finished { summary, .. } => summaries.push(summary),
            Event::Failed { reason, .. } => return Err(Fault::failed(reason)),
            Event::Started { .. } | Event::Text { .. } => {}
        }
    }
    let first: Vec<f64> = summaries
        .iter()
        .map(|s| (s.queued + s.prefill).as_secs_f64())
        .collect();
    let first_token = median(first);
    let slowest = summaries
        .iter()
        .map(|s| s.queued + s.prefill)
        .max()
        .unwrap_or_default();
    let decoding = if streams == 1 {
        wall.saturating_sub(slowest)
    } else {
        wall
    };
    Ok(Speed {
        prefill: per_second(prompt * streams, slowest),
        decode: per_second(new.saturating_sub(1) * streams, decoding),
        first_token,
    })
}

fn measure_bare(local: &mut Local, prompt: usize, new: usize) -> Result<Speed, Fault> {
    let ids = prompt_of(local, 0, prompt);
    let times = bare::run(local.engine.decoder_mut(), &ids, new - 1).map_err(Fault::failed)?;
    Ok(Speed {
        prefill: per_second(prompt, times.prefill),
        decode: per_second(new - 1, times.decode),
        first_token: times.prefill.as_secs_f64(),
    })
}

/// Ids spread over the vocabulary, another sequence for each stream.
fn prompt_of(local: &Local, stream: usize, tokens: usize) -> Vec<TokenId> {
    let vocabulary = local.engine.caps().vocab_size;
    (0..tokens)
        .map(|n| {
            TokenId(
                u32::try_from((n * 7919 + stream.wrapping_mul(104_729) % vocabulary + 17) % vocabulary)
                    .unwrap_or(0),
            )
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

/// The most resident memory this process has had, in bytes; 0 where the system does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Gives every token the same text.
struct Silent {
    text: &'static str,
}

impl Detokenizer for Silent {
    fn push(&mut self, _: TokenId) -> String {
        self.text.to_owned()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}
