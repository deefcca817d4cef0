//! Cases of models that take images, and their answers.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

use std::path::Path;
use std::sync::Arc;

use phi_edge_engine::{
    Decoder, ImageEncoding, ImageFeatures, ImageId, ImagePixels, Input, Interrupt, Regime, Row, RowId, Step,
    Symbol, TokenId, Wanted,
};
use phi_edge_models::{decode, preprocess};
use phi_edge_onnx::OnnxDecoder;
use serde_json::Value;

use super::ids;

/// More than any fixture's picture has.
const MAX_PIXELS: u64 = 25_000_000;
/// The model's chunk of a prompt: not a divisor of anything in the prompts.
const CHUNK: usize = 500;

pub struct Case {
    pub name: String,
    pub images: Vec<String>,
    /// `(id, repeat)`; negative ids are places of images.
    pub prompt: Vec<(i64, usize)>,
    pub expected: Vec<TokenId>,
    pub features: Value,
    /// The rows of the features.
    pub feature_rows: Option<u64>,
}

pub fn cases(golden: &Path) -> Vec<Case> {
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
        features: features(case).clone(),
        feature_rows: feature_rows(case),
    };
    let cases: Vec<Case> = json["cases"].as_array().unwrap().iter().map(case).collect();
    assert!(cases.len() > 3);
    cases
}

fn features(case: &Value) -> &Value {
    case.get("image_features").unwrap_or(&case["features"])
}

/// Goldens name the shape of the features, or the places of each picture.
fn feature_rows(case: &Value) -> Option<u64> {
    let places = || {
        Some(
            case["num_image_tokens"]
                .as_array()?
                .iter()
                .filter_map(Value::as_u64)
                .sum(),
        )
    };
    features(case)["shape"][0].as_u64().or_else(places)
}

/// The files of a case's images in the order of its features.
pub fn images(case: &Value) -> Vec<String> {
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

/// The pixels of a file, `crops` parts at most. Cases name it with its folder or without.
pub fn pixels(images: &Path, file: &str, crops: usize) -> ImagePixels {
    let file = std::fs::read(images.join(Path::new(file).file_name().unwrap())).unwrap();
    preprocess(decode(&file, MAX_PIXELS).unwrap(), crops)
}

pub fn id(number: usize) -> ImageId {
    ImageId([number as u8 + 1; 16])
}

/// Encodes an image; also returns the number of steps.
pub fn encode(decoder: &mut OnnxDecoder, id: ImageId, pixels: &ImagePixels) -> (ImageFeatures, usize) {
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

pub fn encode_all(
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
pub fn symbols(case: &Case, features: &[Arc<ImageFeatures>]) -> Vec<Symbol> {
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

pub fn row<'a>(row: u32, past: usize, symbols: &'a [Symbol], features: &'a [Arc<ImageFeatures>]) -> Row<'a> {
    Row {
        row: RowId(row),
        past,
        shared: &[],
        input: Input { symbols, features },
        logits: Wanted::Last,
        regime: Regime::Short,
    }
}

pub fn argmax(logits: &[f32]) -> TokenId {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    TokenId(best.unwrap().0 as u32)
}

/// The greedy answer of each sequence, all in the same runs.
pub fn answers(
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

pub fn check_features(case: &Case, features: &[Arc<ImageFeatures>], tolerance: f64) {
    let rows: usize = features.iter().map(|of| of.data.len() / of.width).sum();
    assert_eq!(Some(rows as u64), case.feature_rows, "{}", case.name);
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
