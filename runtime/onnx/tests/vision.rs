//! A model that takes images against the reference's answers (phi35-vision-tiny), and its encoder against itself.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    missing_docs
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use phi_edge_engine::{
    DecodeError, Decoder, ImageEncoding, ImageFeatures, ImageId, ImagePixels, Input, Interrupt, Regime, Row,
    RowId, Step, Symbol, TokenId, Wanted,
};
use phi_edge_models::{ModelDir, decode, preprocess};
use phi_edge_onnx::{
    DecoderConfig, Isa, IsaChoice, KvCache, Library, OnnxDecoder, Prepare, Provider, VisionWeights,
};
use serde_json::Value;
use support::{fixture, ids, library};

/// The model's chunk of a prompt: not a divisor of anything in the prompts.
/// More than any fixture's picture has.
const MAX_PIXELS: u64 = 25_000_000;
const CHUNK: usize = 500;

struct Case {
    name: String,
    images: Vec<String>,
    /// `(id, repeat)`; negative ids are places of images.
    prompt: Vec<(i64, usize)>,
    expected: Vec<TokenId>,
    features: Value,
}

fn cases(golden: &Path) -> Vec<Case> {
    let json: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let case = |case: &Value| Case {
        name: case["name"]
            .as_str()
            .map_or_else(|| case["images"].to_string(), ToOwned::to_owned),
        images: images(case),
        prompt: case["input_ids_rle"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| (run[0].as_i64().unwrap(), run[1].as_u64().unwrap() as usize))
            .collect(),
        expected: ids(&case["greedy_ids"]),
        features: case.get("image_features").unwrap_or(&case["features"]).clone(),
    };
    let cases: Vec<Case> = json["cases"].as_array().unwrap().iter().map(case).collect();
    assert!(cases.len() > 3);
    cases
}

/// The files of a case's images in the order of its features.
fn images(case: &Value) -> Vec<String> {
    let files = case["images"].as_array().unwrap();
    let file = |index: usize| files[index].as_str().unwrap().to_owned();
    match case["order"].as_array() {
        Some(order) => order
            .iter()
            .map(|number| file(number.as_u64().unwrap() as usize - 1))
            .collect(),
        None => (0..files.len()).map(file).collect(),
    }
}

fn load(library: &Library, folder: &Path, change: impl FnOnce(&mut DecoderConfig)) -> OnnxDecoder {
    let mut config = DecoderConfig {
        provider: Provider::Cpu,
        threads: Some(2),
        rows: 4,
        kv_cache: KvCache::F32,
        vision_weights: VisionWeights::F32,
        ..DecoderConfig::default()
    };
    change(&mut config);
    OnnxDecoder::load(library, &ModelDir::open(folder).unwrap(), &config).unwrap()
}

/// The folder that `models/export/vision_tests.py` writes (`PHI_EDGE_VISION_TESTS`): the fixture's model in fp16. Where it is
/// not given, the test that needs it skips; the project's own fp16 forms are always tested.
fn vision_tests() -> Option<PathBuf> {
    let folder = std::env::var_os("PHI_EDGE_VISION_TESTS").map(PathBuf::from);
    if folder.is_none() {
        println!("SKIPPED: PHI_EDGE_VISION_TESTS is not set");
    }
    folder
}

/// The pixels of a file, `crops` parts at most. Cases name it with its folder or without.
fn pixels(images: &Path, file: &str, crops: usize) -> ImagePixels {
    let file = std::fs::read(images.join(Path::new(file).file_name().unwrap())).unwrap();
    preprocess(decode(&file, MAX_PIXELS).unwrap(), crops)
}

fn id(number: usize) -> ImageId {
    ImageId([number as u8 + 1; 16])
}

/// Encodes an image; also returns the number of steps.
fn encode(decoder: &mut OnnxDecoder, id: ImageId, pixels: &ImagePixels) -> (ImageFeatures, usize) {
    let mut encoding = ImageEncoding::default();
    for steps in 1.. {
        if let Some(features) = decoder
            .encode_image(id, pixels, &mut encoding, &Interrupt::new())
            .unwrap()
        {
            return (features, steps);
        }
    }
    unreachable!("numbers do not end")
}

fn encode_all(
    decoder: &mut OnnxDecoder,
    images: &Path,
    crops: usize,
    case: &Case,
) -> Vec<Arc<ImageFeatures>> {
    let files = case.images.iter().enumerate();
    files
        .map(|(number, file)| Arc::new(encode(decoder, id(number), &pixels(images, file, crops)).0))
        .collect()
}

/// The prompt with features at the places of images in the order of positions, whatever image a place names: so does
/// the reference.
fn symbols(case: &Case, features: &[Arc<ImageFeatures>]) -> Vec<Symbol> {
    let mut places = features
        .iter()
        .flat_map(|of| Symbol::of_image(of.id, (of.data.len() / of.width) as u32));
    let mut symbols = Vec::new();
    for (id, repeat) in &case.prompt {
        for _ in 0..*repeat {
            symbols.push(match u32::try_from(*id) {
                Ok(id) => Symbol::Token(TokenId(id)),
                Err(_) => places.next().unwrap(),
            });
        }
    }
    assert!(places.next().is_none());
    symbols
}

fn row<'a>(row: u32, past: usize, symbols: &'a [Symbol], features: &'a [Arc<ImageFeatures>]) -> Row<'a> {
    Row {
        row: RowId(row),
        past,
        shared: &[],
        input: Input { symbols, features },
        logits: Wanted::Last,
        regime: Regime::Short,
    }
}

fn argmax(logits: &[f32]) -> TokenId {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    TokenId(best.unwrap().0 as u32)
}

/// The greedy answer of each sequence, all in the same runs.
fn answers(
    decoder: &mut OnnxDecoder,
    prompts: &[(Vec<Symbol>, Vec<Arc<ImageFeatures>>)],
    count: usize,
) -> Vec<Vec<TokenId>> {
    let mut past = vec![0; prompts.len()];
    let mut sequences: Vec<Vec<Symbol>> = prompts.iter().map(|(symbols, _)| symbols.clone()).collect();
    let mut answers = vec![Vec::new(); prompts.len()];
    let boundary = decoder.caps().rope_boundary.unwrap_or(usize::MAX);
    while answers.iter().any(|answer| answer.len() < count) {
        let mut rows = Vec::new();
        for (number, (_, features)) in prompts.iter().enumerate() {
            let sequence = &sequences[number];
            let end = sequence.len().min(past[number] + CHUNK);
            let input = &sequence[past[number]..end];
            rows.push(Row {
                regime: if prompts[number].0.len() > boundary {
                    Regime::Long
                } else {
                    Regime::Short
                },
                ..row(number as u32, past[number], input, features)
            });
            past[number] = end;
        }
        let next: Vec<TokenId> = {
            let logits = decoder.run(&Step { rows: &rows }, &Interrupt::new()).unwrap();
            (0..logits.rows())
                .map(|row| argmax(logits.row(row).unwrap()))
                .collect()
        };
        for (number, token) in next.into_iter().enumerate() {
            if past[number] == sequences[number].len() {
                answers[number].push(token);
                sequences[number].push(Symbol::Token(token));
            }
        }
    }
    for answer in &mut answers {
        answer.truncate(count);
    }
    answers
}

fn check_features(case: &Case, features: &[Arc<ImageFeatures>], tolerance: f64) {
    let rows: usize = features.iter().map(|of| of.data.len() / of.width).sum();
    assert_eq!(
        Some(rows as u64),
        case.features["shape"][0].as_u64(),
        "{}",
        case.name
    );
    let all: Vec<f64> = features
        .iter()
        .flat_map(|of| &of.data)
        .map(|value| f64::from(*value))
        .collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let deviation = (all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
    let near = |got: f64, expected: &Value| (got - expected.as_f64().unwrap()).abs() <= tolerance;
    assert!(
        near(mean, &case.features["mean"]) && near(deviation, &case.features["std"]),
        "{}",
        case.name
    );
    let width = features[0].width;
    for (row, start) in [("first_row", 0), ("last_row", all.len() - width)] {
        let expected = case.features[row].as_array().unwrap();
        assert!(expected.len() > 4);
        for (got, expected) in all[start..].iter().zip(expected) {
            assert!(
                near(*got, expected),
                "{} {row}: {got} is not {expected}",
                case.name
            );
        }
    }
}

#[test]
fn every_case_gives_the_references_features_and_answer() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    let mut decoder = load(&library, &folder, |_| ());
    assert!(decoder.encoder().unwrap().is_cut());
    let mut plain = load(&library, &folder, |config| config.prepare = Prepare::PLAIN);
    for case in cases(&folder.join("golden.json")) {
        let features = encode_all(&mut decoder, &folder.join("images"), 16, &case);
        // JPEG decoders differ where the chroma is subsampled.
        let tolerance = if case.name == "photo" { 0.6 } else { 1e-3 };
        if !features.is_empty() {
            check_features(&case, &features, tolerance);
        }
        let prompt = [(symbols(&case, &features), features)];
        let expected = std::slice::from_ref(&case.expected);
        let count = case.expected.len();
        assert_eq!(answers(&mut decoder, &prompt, count), expected, "{}", case.name);
        if case.images.len() < 2 {
            assert_eq!(
                answers(&mut plain, &prompt, count),
                expected,
                "{} plain",
                case.name
            );
        }
    }
}

#[test]
fn the_fp16_form_gives_the_references_answer_on_the_processor() {
    let (Some(folder), Some(library), Some(made)) = (fixture("phi35-vision-tiny"), library(), vision_tests())
    else {
        return;
    };
    let mut decoder = load(&library, &made.join("fp16"), |config| {
        config.vision_weights = VisionWeights::Auto;
    });
    let encoder = decoder.encoder().unwrap();
    assert_eq!(
        (encoder.is_cut(), encoder.weights(), encoder.loss()),
        (true, VisionWeights::F32, None)
    );
    for case in cases(&folder.join("golden.json")) {
        let features = encode_all(&mut decoder, &folder.join("images"), 16, &case);
        if !features.is_empty() {
            check_features(&case, &features, if case.name == "photo" { 0.6 } else { 0.1 });
        }
        let prompt = [(symbols(&case, &features), features)];
        assert_eq!(
            answers(&mut decoder, &prompt, case.expected.len()),
            [case.expected],
            "{}",
            case.name
        );
    }
}

/// The forms of tests/fixtures/vision, whose goldens are by plain ONNX Runtime.
#[test]
fn every_form_gives_the_references_answers_on_the_processor() {
    let Some(library) = library() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vision");
    // Products with int4 weights round inputs to 8 bits, differently in the custom operator.
    for (form, prepare) in [
        ("cpu", Prepare::PLAIN),
        ("cuda", Prepare::ALL),
        ("directml", Prepare::ALL),
    ] {
        let mut decoder = load(&library, &folder.join(form), |config| config.prepare = prepare);
        assert!(decoder.encoder().unwrap().is_cut(), "{form}");
        for case in cases(&folder.join(format!("golden-{form}.json"))) {
            let features = encode_all(&mut decoder, &folder.join("images"), 4, &case);
            let prompt = [(symbols(&case, &features), features)];
            let got = answers(&mut decoder, &prompt, case.expected.len());
            assert_eq!(got, [case.expected], "{form} {}", case.name);
        }
    }
}

/// A drawn image whose parts differ: `crops` of them with the global view.
fn drawn(crops: usize, grid: (usize, usize)) -> ImagePixels {
    let each = 3 * 336 * 336;
    let value = |at: usize| ((at * 7_919 + at / each * 31) % 4_001) as f32 / 1_000.0 - 2.0;
    ImagePixels {
        data: (0..crops * each).map(value).collect(),
        crops,
        side: 336,
        grid,
    }
}

/// A prompt of some text, an image and some text.
fn drawn_prompt(decoder: &mut OnnxDecoder, number: usize) -> (Vec<Symbol>, Vec<Arc<ImageFeatures>>) {
    let (features, _) = encode(decoder, id(number), &drawn(2 + number, (1, 1 + number)));
    let text = |ids: &[u32]| {
        ids.iter()
            .map(|id| Symbol::Token(TokenId(*id)))
            .collect::<Vec<_>>()
    };
    let mut symbols = text(&[32010, 29871, 13]);
    symbols.extend(Symbol::of_image(
        features.id,
        (features.data.len() / features.width) as u32,
    ));
    symbols.extend(text(&[29871, 13, 4002, 29581, 278, 1967, 32007, 32001]));
    (symbols, vec![Arc::new(features)])
}

#[test]
fn a_crop_is_encoded_alike_whatever_is_beside_it() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    for weights in [VisionWeights::F32, VisionWeights::Auto] {
        let mut decoder = load(&library, &folder, |config| config.vision_weights = weights);
        let encoder = decoder.encoder().unwrap();
        let mut bits = |pixels: &ImagePixels| {
            let mut encoding = ImageEncoding::default();
            let mut steps = 1;
            while encoder
                .encode_next(id(0), pixels, &mut encoding, &Interrupt::new())
                .unwrap()
                .is_none()
            {
                steps += 1;
            }
            assert_eq!((steps, encoding.crops), (pixels.crops + 1, pixels.crops));
            encoding
                .data
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        };
        let (few, many) = (bits(&drawn(2, (1, 1))), bits(&drawn(5, (2, 2))));
        assert!(!few.is_empty() && few.len() * 5 == many.len() * 2);
        assert_eq!(few, many[..few.len()]);
    }
}

#[test]
fn an_interrupt_leaves_the_encoding_as_it_was() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    let mut decoder = load(&library, &folder, |_| ());
    let pixels = drawn(3, (1, 2));
    let (expected, steps) = encode(&mut decoder, id(0), &pixels);
    assert_eq!(
        (steps, expected.data.len() / expected.width),
        (4, 144 * 3 + 1 + 2 * 12)
    );
    let encoder = decoder.encoder().unwrap();
    let interrupt = Interrupt::new();
    let mut encoding = ImageEncoding::default();
    for step in 0..4 {
        let before = (encoding.crops, encoding.data.len());
        interrupt.raise();
        let outcome = encoder.encode_next(id(0), &pixels, &mut encoding, &interrupt);
        assert!(matches!(outcome, Err(DecodeError::Interrupted)), "step {step}");
        assert_eq!((encoding.crops, encoding.data.len()), before);
        interrupt.clear();
        let done = encoder
            .encode_next(id(0), &pixels, &mut encoding, &interrupt)
            .unwrap();
        assert_eq!(done.is_some(), step == 3);
        assert!(done.is_none_or(|features| features == expected));
    }
    let broken = ImagePixels { crops: 2, ..pixels };
    let outcome = encoder.encode_next(id(0), &broken, &mut ImageEncoding::default(), &interrupt);
    assert!(matches!(outcome, Err(DecodeError::Unsupported(_))));
}

#[test]
fn quantised_weights_are_near() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    if Prepare::ALL != here() {
        return;
    }
    let pixels = drawn(3, (2, 1));
    let (exact, _) = encode(&mut load(&library, &folder, |_| ()), id(0), &pixels);
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    for (weights, used, most) in [
        (VisionWeights::Auto, VisionWeights::Int8, 0.05),
        (VisionWeights::Int8, VisionWeights::Int8, 0.05),
        (VisionWeights::Int4, VisionWeights::Int4, 0.4),
    ] {
        let mut decoder = load(&library, &folder, |config| config.vision_weights = weights);
        let encoder = decoder.encoder().unwrap();
        let loss = encoder.loss().unwrap();
        assert_eq!(encoder.weights(), used);
        assert!(loss > 0.0 && loss < most, "{weights:?} {loss}");
        let (features, _) = encode(&mut decoder, id(0), &pixels);
        let mut differences = features.data.iter().zip(&exact.data).map(|(a, b)| a - b);
        let error = norm(&mut differences) / norm(&mut exact.data.iter().copied());
        assert!(error > 0.0 && f64::from(error) < most, "{weights:?} {error}");
    }
}

/// All edits, where there are kernels for this processor.
fn here() -> Prepare {
    if Isa::detect().is_some() {
        Prepare::ALL
    } else {
        Prepare::PLAIN
    }
}

/// Quantised weights of each instruction set give the features of the scalar form, to the last bit.
#[test]
fn quantised_weights_of_each_instruction_set_give_the_same_features() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    let pixels = drawn(3, (2, 1));
    for weights in [VisionWeights::Int8, VisionWeights::Int4] {
        let mut scalar = None;
        for isa in Isa::ALL.into_iter().rev().filter(|isa| isa.is_supported()) {
            let mut decoder = load(&library, &folder, |config| {
                config.vision_weights = weights;
                config.isa = IsaChoice::Only(isa);
            });
            let (features, _) = encode(&mut decoder, id(0), &pixels);
            let bits: Vec<u32> = features.data.iter().map(|value| value.to_bits()).collect();
            let expected = scalar.get_or_insert_with(|| bits.clone());
            assert!(*expected == bits, "{}, {weights:?}", isa.as_str());
        }
    }
}

#[test]
fn rows_with_images_and_rows_of_text_share_runs_and_prefixes() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    for kv_cache in [KvCache::F32, KvCache::Auto] {
        let mut decoder = load(&library, &folder, |config| config.kv_cache = kv_cache);
        if !decoder.caps().ragged_chunks {
            assert_ne!(
                here(),
                Prepare::ALL,
                "the merged graph takes no rows of different lengths"
            );
            return;
        }
        let text = [32010, 29871, 13, 1293, 278, 28061, 29889, 32007, 32001];
        let text = text
            .iter()
            .map(|id| Symbol::Token(TokenId(*id)))
            .collect::<Vec<_>>();
        let prompts = [
            drawn_prompt(&mut decoder, 0),
            (text, Vec::new()),
            drawn_prompt(&mut decoder, 1),
        ];
        let alone: Vec<_> = prompts
            .iter()
            .map(|prompt| answers(&mut decoder, std::slice::from_ref(prompt), 6).remove(0))
            .collect();
        assert_ne!(alone[0], alone[2], "the images are looked at");
        assert_eq!(answers(&mut decoder, &prompts, 6), alone, "{kv_cache}");
        // A prefix that ends within the image is copied to another row.
        let (symbols, features) = &prompts[0];
        let logits = |decoder: &mut OnnxDecoder, number: u32, past: usize| {
            let row = row(number, past, &symbols[past..], features);
            let logits = decoder.run(&Step { rows: &[row] }, &Interrupt::new()).unwrap();
            logits.row(0).unwrap().to_vec()
        };
        let whole = logits(&mut decoder, 0, 0);
        decoder.copy(RowId(0), RowId(3), 0..200).unwrap();
        let continued = logits(&mut decoder, 3, 200);
        let difference = whole
            .iter()
            .zip(&continued)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(difference < 1e-2, "{kv_cache}: {difference}");
    }
}

#[test]
fn places_without_features_are_refused() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    let mut decoder = load(&library, &folder, |_| ());
    let (symbols, features) = drawn_prompt(&mut decoder, 0);
    let mut run = |symbols: &[Symbol], features: &[Arc<ImageFeatures>]| {
        let row = row(0, 0, symbols, features);
        decoder.run(&Step { rows: &[row] }, &Interrupt::new()).map(|_| ())
    };
    let refused = |outcome| matches!(outcome, Err(DecodeError::Unsupported(_)));
    assert!(refused(run(&symbols, &[])));
    let mut beyond = symbols.clone();
    beyond.push(Symbol::Image {
        image: features[0].id,
        index: 313,
    });
    assert!(refused(run(&beyond, &features)));
    run(&symbols, &features).unwrap();
}
