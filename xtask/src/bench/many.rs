//! Many at once: against peers where they can do it, against one stream, or against the plain way.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::peer::{Peer, in_turns, one_by_one};
use super::table::{number, spread};
use super::{BenchArgs, Setup};
use crate::process::{root, target};
use crate::python;

/// Streams side by side, against one: all loaded, in turns.
pub(crate) fn streams(setup: &Setup, args: &BenchArgs) -> Result<String> {
    const PROMPT: u32 = 64;
    let prompt = PROMPT.to_string();
    let new = args.new_tokens().to_string();
    let counts = [1, 2, 4, 8];
    let mut commands: Vec<Command> = counts
        .iter()
        .map(|count| {
            let count = count.to_string();
            let sizes = ["--prompt-tokens", &prompt, "--new-tokens", &new];
            let mut command = setup.ours(&["--turns", "--concurrency", &count]);
            command.args(sizes);
            command
        })
        .collect();
    let settings = [("prompt", PROMPT), ("new", args.new_tokens()), ("concurrency", 4)];
    commands.extend(setup.llama("streams", &settings));
    let peers = in_turns(commands, args.turns())?;
    let one = &peers[0];
    let mut text = format!(
        "Prompts of {PROMPT} tokens, {new} new ones, {} measurements in turns of processes that are all loaded. \
         Tokens per second of all streams together, from the moment when the last of them has begun. Bound: 4 streams \
         ≥ 2.3 times one.\n\n| streams | tokens/s | times one |\n|---|---|---|\n",
        args.turns()
    );
    for (count, peer) in counts.iter().zip(&peers) {
        let (many, ratios) = (
            of(peer, "decode_tokens_per_s"),
            ratios(peer, one, "decode_tokens_per_s"),
        );
        writeln!(text, "| {count} | {} | {} |", spread(many, 1), spread(ratios, 2))?;
    }
    if let Some(llama) = peers.get(counts.len()) {
        let speed = spread(of(llama, "decode_tokens_per_s"), 1);
        writeln!(text, "| 4, llama.cpp {} | {speed} | |", version(llama))?;
    }
    Ok(text)
}

/// Requests that arrive over five seconds.
pub(crate) fn arrivals(setup: &Setup, args: &BenchArgs) -> Result<String> {
    const REQUESTS: u32 = 8;
    const PROMPT: u32 = 60;
    let (requests, prompt) = (REQUESTS.to_string(), PROMPT.to_string());
    let new = args.new_tokens().to_string();
    let mut ours = setup.ours(&["--turns", "--scenario", "arrivals", "--requests", &requests]);
    ours.args(["--prompt-tokens", &prompt, "--new-tokens", &new]);
    let settings = [
        ("prompt", PROMPT),
        ("new", args.new_tokens()),
        ("requests", REQUESTS),
        ("concurrency", REQUESTS),
    ];
    let peers = in_turns(vec![ours, setup.genai("arrivals", &settings)], args.turns())?;
    let mut text = format!(
        "{REQUESTS} requests of {PROMPT} tokens, {new} new ones, one every {:.0} ms. Bound: ≤ 0.5 of genai's `Engine`.\n\n\
         | | phi-edge | genai {} `Engine` | ratio |\n|---|---|---|---|\n",
        5000.0 / f64::from(REQUESTS),
        version(&peers[1])
    );
    total(&mut text, &peers)?;
    Ok(text)
}

/// A burst of requests that begin alike.
pub(crate) fn burst(setup: &Setup, args: &BenchArgs) -> Result<String> {
    const REQUESTS: u32 = 32;
    let requests = REQUESTS.to_string();
    let new = args.new_tokens().to_string();
    let mut ours = setup.ours(&["--turns", "--scenario", "burst", "--requests", &requests]);
    ours.args(["--new-tokens", &new, "--concurrency", "16"]);
    let settings = |slots| {
        [
            ("prompt", 60),
            ("shared", 600),
            ("new", args.new_tokens()),
            ("requests", REQUESTS),
            ("concurrency", slots),
        ]
    };
    let mut commands = vec![ours, setup.genai("burst", &settings(8))];
    commands.extend(setup.llama("burst", &settings(4)));
    // Minutes and most of the memory each.
    let peers = one_by_one(commands)?;
    let mut text = format!(
        "{REQUESTS} requests at once, 600 tokens in common, 60 of their own, {new} new ones. phi-edge with 16 slots, genai \
         {} by its `Engine` with a batch of 8, llama.cpp's server with its cache of prompts on and 4 slots. One after the other. Bounds: ≤ 0.15 of genai, \
         ≤ 0.19 of llama.cpp.\n\n| | phi-edge | genai | ratio |{}\n|---|---|---|---|{}\n",
        version(&peers[1]),
        peers.get(2).map_or_else(String::new, |llama| format!(
            " llama.cpp {} | ratio |",
            version(llama)
        )),
        if peers.len() > 2 { "---|---|" } else { "" }
    );
    total(&mut text, &peers)?;
    let computed =
        number(&peers[0].medians(), "prompt_tokens") - number(&peers[0].medians(), "cached_tokens");
    writeln!(
        text,
        "\nphi-edge computed {computed:.0} of {:.0} prompt tokens.",
        number(&peers[0].medians(), "prompt_tokens")
    )?;
    if let Some(llama) = peers.get(2) {
        writeln!(
            text,
            "llama.cpp computed {:.0}.",
            number(&llama.medians(), "prompt_tokens_computed")
        )?;
    }
    Ok(text)
}

/// A remembered beginning.
pub(crate) fn cached(setup: &Setup, args: &BenchArgs) -> Result<String> {
    let peers = in_turns(
        vec![setup.ours(&["--turns", "--scenario", "cached"])],
        args.turns(),
    )?;
    Ok(format!(
        "Time to the first token, 600 tokens remembered and 60 of its own, in ms. Bound: ≤ 0.2.\n\n\
         | none remembered | 600 remembered | ratio |\n|---|---|---|\n| {} | {} | {} |\n",
        spread(of(&peers[0], "uncached_first_token_ms"), 0),
        spread(of(&peers[0], "cached_first_token_ms"), 0),
        spread(of(&peers[0], "cached_over_uncached"), 3)
    ))
}

/// A long prompt that enters beside running streams.
pub(crate) fn gaps(setup: &Setup, args: &BenchArgs) -> Result<String> {
    let command = setup.ours(&["--turns", "--scenario", "gaps", "--new-tokens", "256"]);
    let peers = in_turns(vec![command], args.turns())?;
    let column = |key| spread(of(&peers[0], key), 0);
    Ok(format!(
        "4 streams while a prompt of 2,000 tokens enters: time between two tokens of a stream, in ms. Bound: the longest \
         ≤ three times the median before, and one run with a chunk.\n\n\
         | median before | median meanwhile | longest meanwhile | first token of the prompt, s |\n\
         |---|---|---|---|\n| {} | {} | {} | {} |\n",
        column("median_gap_ms"),
        column("median_gap_while_entering_ms"),
        column("longest_gap_while_entering_ms"),
        column("other_first_token_s"),
    ))
}

/// Guessing, in the same process.
pub(crate) fn summary(setup: &Setup, _: &BenchArgs) -> Result<String> {
    let mut forced = Peer::start(setup.ours(&["--turns", "--scenario", "summary"]))?;
    forced.measure()?;
    let forced_report = forced.measured()[0].clone();
    drop(forced);
    // The demonstration model's own summaries.
    let prompts = target().join("held-out.jsonl");
    let written = Command::new(python::environment("bench-tools")?)
        .arg(root().join("models/export/prompts.py"))
        .arg("50")
        .output()?;
    std::fs::write(&prompts, written.stdout)?;
    let demo = root().join("models/demo");
    let mut flags = setup.ours_on(&demo, &["--turns", "--scenario", "summary", "--prompts"]);
    flags.arg(&prompts).args(["--new-tokens", "200"]);
    let mut own = Peer::start(flags)?;
    own.measure()?;
    let own = own.measured()[0].clone();
    let mut text = String::from(
        "Tokens per second after a prompt of 1,500 tokens of log lines. Bounds: ≥ 1.5 where the text quotes, ≥ 0.97 where it does not repeat.\n\n\
         | text | without | with | ratio | guessed | right | of tokens |\n|---|---|---|---|---|---|---|\n",
    );
    for (name, report) in [
        ("prescribed, quotes its prompt", &forced_report["quoting"]),
        ("prescribed prose", &forced_report["prose"]),
        (
            "the demonstration model's own summaries of 50 held-out bursts",
            &own,
        ),
    ] {
        writeln!(
            text,
            "| {name} | {:.1} | {:.1} | {:.2} | {:.0} | {:.0} | {:.0} |",
            number(report, "plain_tokens_per_s"),
            number(report, "guessing_tokens_per_s"),
            number(report, "guessing_over_plain"),
            number(report, "guessed"),
            number(report, "guessed_right"),
            number(report, "written"),
        )?;
    }
    Ok(text)
}

/// The row of total times, with our ratio to each of the others.
fn total(text: &mut String, peers: &[Peer]) -> Result<()> {
    let (ours, others) = peers.split_first().context("we are measured ourselves")?;
    write!(text, "| all answered, s | {} |", spread(of(ours, "total_s"), 1))?;
    for other in others {
        write!(
            text,
            " {} | {} |",
            spread(of(other, "total_s"), 1),
            spread(ratios(ours, other, "total_s"), 3)
        )?;
    }
    writeln!(text)?;
    Ok(())
}

pub(super) fn of(peer: &Peer, key: &str) -> Vec<f64> {
    peer.measured().iter().map(|report| number(report, key)).collect()
}

pub(super) fn ratios(ours: &Peer, theirs: &Peer, key: &str) -> Vec<f64> {
    let (ours, theirs) = (of(ours, key), of(theirs, key));
    ours.iter().zip(&theirs).map(|(a, b)| a / b).collect()
}

pub(super) fn version(peer: &Peer) -> String {
    let version: &Value = &peer.loaded()["version"];
    version.as_str().unwrap_or("?").to_owned()
}
