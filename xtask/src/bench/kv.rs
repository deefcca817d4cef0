//! Keys and values of 8 bits, against those of 32 bits.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::Value;

use super::peer::{one_by_one, pair};
use super::table::{number, processor, spread};
use super::{BenchArgs, Setup};

/// Prompt lengths, in tokens, with the bound of the ratio of decoding where there is one.
const LENGTHS: [(u32, Option<f64>); 7] = [
    (16, Some(0.98)),
    (200, Some(0.98)),
    (1_000, None),
    (2_000, Some(1.25)),
    (4_000, None),
    (8_000, Some(1.7)),
    (16_000, Some(2.0)),
];
/// Prompts above this are measured by one process after the other: two would need too much memory at once.
const BOTH_LOADED_TOKENS: u32 = 8_000;

/// Pairs of processes for each length, both loaded where memory allows it, in turns.
pub(crate) fn measure(setup: &Setup, args: &BenchArgs) -> Result<String> {
    let pairs = args.pairs.unwrap_or(3);
    let lengths = LENGTHS.into_iter();
    let lengths = lengths.filter(|(tokens, _)| args.prompt_tokens.is_none_or(|only| only == *tokens));
    let mut text = format!(
        "{pairs} pairs of processes for each length, in turns, {} threads, {} new tokens, {}. Medians, with the least and the greatest.\n\n\
         | prompt | decode f32 | decode i8 | ratio | bound | prefill f32 | prefill i8 | ratio | peak f32, MB | peak i8, MB |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
        setup.threads,
        args.new_tokens(),
        processor()
    );
    for (tokens, bound) in lengths {
        let measured = (0..pairs)
            .map(|n| one_pair(setup, args, tokens, n % 2 == 0))
            .collect::<Result<Vec<_>>>()?;
        text.push_str(&row(tokens, bound, &measured)?);
        eprint!("{}", row(tokens, bound, &measured)?);
    }
    Ok(text)
}

/// The figures of 32 and of 8 bits.
fn one_pair(setup: &Setup, args: &BenchArgs, tokens: u32, f32_first: bool) -> Result<(Value, Value)> {
    let command = |kv: &str| {
        let (prompt, new) = (tokens.to_string(), args.new_tokens().to_string());
        setup.ours(&[
            "--turns",
            "--kv-cache",
            kv,
            "--prompt-tokens",
            &prompt,
            "--new-tokens",
            &new,
        ])
    };
    if tokens <= BOTH_LOADED_TOKENS {
        return pair(command("f32"), command("i8"), args.turns.unwrap_or(1), f32_first);
    }
    let order = if f32_first { ["f32", "i8"] } else { ["i8", "f32"] };
    let peers = one_by_one(order.map(command).into())?;
    let (first, second) = (peers[0].medians(), peers[1].medians());
    Ok(if f32_first {
        (first, second)
    } else {
        (second, first)
    })
}

fn row(tokens: u32, bound: Option<f64>, pairs: &[(Value, Value)]) -> Result<String> {
    let of = |pick: fn(&(Value, Value)) -> &Value, key: &str| -> Vec<f64> {
        pairs.iter().map(|pair| number(pick(pair), key)).collect()
    };
    let megabytes = |pick| of(pick, "rss_bytes").iter().map(|bytes| bytes / 1e6).collect();
    let ratios = |key: &str| -> Vec<f64> {
        let ratio = |pair: &(Value, Value)| number(&pair.1, key) / number(&pair.0, key);
        pairs.iter().map(ratio).collect()
    };
    let (decode, prefill) = ("decode_tokens_per_s", "prefill_tokens_per_s");
    let mut text = String::new();
    writeln!(
        text,
        "| {tokens} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        spread(of(|pair| &pair.0, decode), 1),
        spread(of(|pair| &pair.1, decode), 1),
        spread(ratios(decode), 2),
        bound.map_or_else(|| "–".to_owned(), |bound| format!("≥ {bound}")),
        spread(of(|pair| &pair.0, prefill), 0),
        spread(of(|pair| &pair.1, prefill), 0),
        spread(ratios(prefill), 2),
        spread(megabytes(|pair: &(Value, Value)| &pair.0), 0),
        spread(megabytes(|pair: &(Value, Value)| &pair.1), 0),
    )?;
    Ok(text)
}
