//! The kernels of each instruction set, against those of AVX-512, and those of AVX2 against llama.cpp built for no more.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::llama::{self, Processor};
use super::many::{of, ratios, version};
use super::peer::{Peer, in_turns};
use super::table::{processor, spread};
use super::{BenchArgs, Setup};

/// The instruction sets of x86-64, the first of which the others are held against.
const ISAS: [&str; 3] = ["avx512vnni", "avxvnni", "avx2"];
/// The prompt of several streams.
const SHORT_PROMPT: u32 = 64;

const PREFILL: &str = "prefill_tokens_per_s";
const DECODE: &str = "decode_tokens_per_s";

/// One stream with each, then four with AVX2: all loaded, in turns.
pub(crate) fn measure(setup: &Setup, args: &BenchArgs) -> Result<String> {
    let llama = if args.without_llama {
        None
    } else {
        Some((llama::server(Processor::Avx2)?, llama::model()?))
    };
    let ours = |isa: &str, prompt: u32, streams: u32| {
        let mut command = setup.ours(&["--turns", "--isa", isa]);
        command.args(["--concurrency", &streams.to_string()]);
        command.args(["--prompt-tokens", &prompt.to_string()]);
        command.args(["--new-tokens", &args.new_tokens().to_string()]);
        command
    };
    let theirs = |prompt: u32, streams: u32| -> Option<Command> {
        let (server, model): &(PathBuf, PathBuf) = llama.as_ref()?;
        let settings = [
            ("prompt", prompt),
            ("new", args.new_tokens()),
            ("concurrency", streams),
        ];
        Some(setup.llama_of(server, model, "streams", &settings))
    };
    let prompt = args.prompt_tokens();
    let mut commands: Vec<Command> = ISAS.iter().map(|isa| ours(isa, prompt, 1)).collect();
    commands.extend(theirs(prompt, 1));
    let one = in_turns(commands, args.turns())?;
    let mut text = format!(
        "One stream, a prompt of {prompt} tokens, {} new ones, {} measurements in turns of processes that are all loaded, {}. \
         Bounds of the ratios: 256-bit VNNI ≥ 0.9 and 0.95, AVX2 ≥ 0.6 and 0.9.\n\n\
         | `--isa` | prefill, tokens/s | of {first} | decode, tokens/s | of {first} |\n|---|---|---|---|---|\n",
        args.new_tokens(),
        args.turns(),
        processor(),
        first = ISAS[0],
    );
    for (isa, peer) in ISAS.iter().zip(&one) {
        let cell = |key: &str| {
            format!(
                "{} | {}",
                spread(of(peer, key), 1),
                spread(ratios(peer, &one[0], key), 2)
            )
        };
        writeln!(text, "| {isa} | {} | {} |", cell(PREFILL), cell(DECODE))?;
    }
    if let (Some(peer), Some(avx2)) = (one.get(ISAS.len()), one.get(ISAS.len() - 1)) {
        let mut commands = vec![ours("avx2", SHORT_PROMPT, 4)];
        commands.extend(theirs(SHORT_PROMPT, 4));
        let four = in_turns(commands, args.turns())?;
        against_llama(&mut text, avx2, peer, &four)?;
    }
    Ok(text)
}

fn against_llama(text: &mut String, avx2: &Peer, llama: &Peer, four: &[Peer]) -> Result<()> {
    writeln!(
        text,
        "\n`--isa avx2` against llama.cpp {} built with AVX2, FMA and F16C only, tokens/s in turns:\n\n\
         | | phi-edge | llama.cpp | ratio | bound |\n|---|---|---|---|---|",
        version(llama)
    )?;
    let mut row = |name: &str, ours: &Peer, theirs: &Peer, key: &str, bound: f64| {
        writeln!(
            text,
            "| {name} | {} | {} | {} | ≥ {bound} |",
            spread(of(ours, key), 1),
            spread(of(theirs, key), 1),
            spread(ratios(ours, theirs, key), 2)
        )
    };
    row("prefill", avx2, llama, PREFILL, 2.0)?;
    row("decode", avx2, llama, DECODE, 1.2)?;
    if let [ours, theirs] = four {
        row("decode, 4 streams", ours, theirs, DECODE, 1.8)?;
    }
    Ok(())
}
