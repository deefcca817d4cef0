//! A picture: the time to the first token against genai, and the gaps of text streams meanwhile.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::many::{of, ratios, version};
use super::peer::{Peer, in_turns, one_by_one};
use super::table::{processor, spread};
use super::{BenchArgs, Setup};
use crate::process::{root, run, target};
use crate::{model, python};

/// The most parts of a picture, with the bound of the ratio of first tokens.
const CROPS: [(&str, f64); 2] = [("16", 0.45), ("4", 0.2)];

/// Processes with both numbers of parts and one of genai, all loaded, in turns; then the gaps.
pub(crate) fn measure(setup: &Setup, args: &BenchArgs) -> Result<String> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => full_shape()?,
    };
    let picture = picture()?;
    let ours = |scenario: &str, crops: &str, weights: &str| {
        let mut command = setup.ours_on(&model, &["--turns", "--scenario", scenario, "--num-crops", crops]);
        command
            .args(["--vision-weights", weights])
            .arg("--image")
            .arg(&picture);
        command
    };
    let mut commands: Vec<Command> = CROPS.map(|(crops, _)| ours("image", crops, "auto")).into();
    let mut genai = setup.genai_on(&model, "image", &[]);
    genai.arg(&picture);
    commands.push(genai);
    let peers = in_turns(commands, args.turns())?;
    let mut text = first_tokens(setup, args, &peers)?;
    drop(peers);
    let mut gaps = ours("image-gaps", "4", "auto");
    // The stream goes on until the picture's first token.
    gaps.args(["--new-tokens", "400"]);
    let others = one_by_one(vec![ours("image", "4", "f32"), gaps])?;
    let (f32, gaps) = (&others[0], &others[1]);
    let column = |key| spread(of(gaps, key), 0);
    writeln!(
        text,
        "\nThe encoder with f32 weights: a crop {} ms at most (bound: ≤ 2500). A text stream while 4 crops are looked at: {} ms \
         between two tokens before, {} meanwhile, {} at most; the longest crop took {}, the longest run of the decoder {} (bound: \
         the longest gap ≤ one of each).",
        spread(of(f32, "longest_crop_ms"), 0),
        column("median_gap_ms"),
        column("median_gap_while_entering_ms"),
        column("longest_gap_while_entering_ms"),
        column("longest_crop_ms"),
        column("longest_run_ms"),
    )?;
    Ok(text)
}

fn first_tokens(setup: &Setup, args: &BenchArgs, peers: &[Peer]) -> Result<String> {
    let genai = &peers[CROPS.len()];
    let mut text = format!(
        "A PNG of 1300 x 876 pixels, {} measurements in turns of processes that are all loaded, {} threads, {}. In ms: medians, with \
         the least and the greatest. genai {} has 16 crops and the global view always. Bounds of a crop with weights quantised at \
         load: ≤ 1000; of reading: ≤ genai's.\n\n\
         | | first token | over genai's | bound | read and cut | the longest crop | image tokens |\n|---|---|---|---|---|---|---|\n",
        args.turns(),
        setup.threads,
        processor(),
        version(genai)
    );
    for ((crops, bound), peer) in CROPS.iter().zip(peers) {
        writeln!(
            text,
            "| phi-edge, {crops} crops at most | {} | {} | ≤ {bound} | {} | {} | {} |",
            spread(of(peer, "first_token_ms"), 0),
            spread(ratios(peer, genai, "first_token_ms"), 3),
            spread(of(peer, "read_ms"), 0),
            spread(of(peer, "longest_crop_ms"), 0),
            spread(of(peer, "image_tokens"), 0),
        )?;
    }
    writeln!(
        text,
        "| genai | {} | | | {} | | |",
        spread(of(genai, "first_token_ms"), 0),
        spread(of(genai, "read_ms"), 0),
    )?;
    Ok(text)
}

/// The random model of Phi-3.5-vision's shape, written where it is absent.
fn full_shape() -> Result<PathBuf> {
    let folder = target().join("bench-vision-model");
    if !folder.join("manifest.json").exists() {
        model::write_vision(&folder, 32, 24)?;
    }
    Ok(folder)
}

/// The picture that all of them are asked about.
fn picture() -> Result<PathBuf> {
    let file = target().join("bench-picture.png");
    if !Path::exists(&file) {
        run(Command::new(python::environment("bench-tools")?)
            .arg(root().join("xtask/bench_picture.py"))
            .arg(&file))?;
    }
    Ok(file)
}
