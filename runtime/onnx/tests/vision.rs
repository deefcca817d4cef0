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
    DecodeError, Decoder, ImageEncoding, ImageFeatures, ImagePixels, Interrupt, RowId, Step, Symbol, TokenId,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{
    DecoderConfig, Isa, IsaChoice, KvCache, Library, OnnxDecoder, Prepare, Provider, VisionWeights,
};
use support::vision::{answers, cases, check_features, encode, encode_all, id, row, symbols};
use support::{fixture, library};

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
