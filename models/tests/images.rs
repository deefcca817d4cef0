//! Preprocessing of pictures against goldens: those of onnxruntime-genai at 16 crops, and the project's own at 4, made by Pillow.

#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

use std::path::{Path, PathBuf};

use phi_edge_models::{ImageGrid, ReadError, decode, image_id, preprocess, probe};
use proptest::prelude::*;
use serde_json::Value;

const MAX_PIXELS: u64 = 25_000_000;
const CROP: usize = 3 * 336 * 336;

fn own_fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vision")
}

fn shared_fixture() -> Option<PathBuf> {
    let root = std::env::var_os("PHI_EDGE_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"),
        PathBuf::from,
    );
    let folder = root.join("phi35-vision-tiny");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: {} is not there", folder.display());
    None
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_f64().unwrap())
        .collect()
}

/// Compares a picture with the means of its crops and the samples of its pixels. Returns the largest difference of a sample.
fn check(file: &Path, crops: usize, means: &Value, samples: &Value, size: &Value) -> f64 {
    let picture = decode(&std::fs::read(file).unwrap(), MAX_PIXELS).unwrap();
    let pixels = preprocess(&picture, crops);
    let shown = file.display();
    let size = numbers(size);
    let (rows, columns) = pixels.grid;
    assert_eq!(vec![(rows * 336) as f64, (columns * 336) as f64], size, "{shown}");
    assert_eq!(pixels.crops, rows * columns + 1, "{shown}");
    assert_eq!(pixels.data.len(), pixels.crops * CROP, "{shown}");
    let grid = ImageGrid::of(picture.width(), picture.height(), crops);
    assert_eq!((grid.rows, grid.columns), pixels.grid, "{shown}");
    for (crop, expected) in numbers(means).into_iter().take(pixels.crops).enumerate() {
        let values = &pixels.data[crop * CROP..(crop + 1) * CROP];
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / CROP as f64;
        assert!(
            (mean - expected).abs() < 2e-2,
            "{shown}: crop {crop} has a mean of {mean}, not {expected}"
        );
    }
    let mut worst = 0.0_f64;
    for sample in samples.as_array().unwrap() {
        let at = sample[0].as_u64().unwrap() as usize;
        let expected = sample[1].as_f64().unwrap();
        // Parts that are not in use are zeros in the reference.
        let got = pixels.data.get(at).map_or(0.0, |value| f64::from(*value));
        worst = worst.max((got - expected).abs());
    }
    worst
}

/// A level of 8 bits, normalised.
const LEVEL: f64 = 1.0 / 255.0 / 0.261;

#[test]
fn pictures_at_4_crops_are_those_of_pillow() {
    let golden = json(&own_fixtures().join("golden-cpu.json"));
    let pictures = golden["pixels"].as_object().unwrap();
    assert!(pictures.len() >= 6);
    for (name, expected) in pictures {
        let file = own_fixtures().join("images").join(name);
        let worst = check(
            &file,
            4,
            &expected["crop_means"],
            &expected["samples_flat_index_value"],
            &expected["image_size"],
        );
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

#[test]
fn pictures_at_16_crops_are_those_of_genai() {
    let Some(folder) = shared_fixture() else { return };
    let golden = json(&folder.join("golden.json"));
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let names = case["images"].as_array().unwrap();
        let expected = &case["pixel_values"];
        // The samples of several pictures are of one tensor.
        if names.len() != 1 || expected.is_null() {
            continue;
        }
        let file = folder.join(names[0].as_str().unwrap());
        let worst = check(
            &file,
            16,
            &expected["crop_means"][0],
            &expected["samples_flat_index_value"],
            &case["image_sizes"][0],
        );
        let most = match file.file_name().unwrap().to_str().unwrap() {
            // Decoders differ in how they bring chroma of half the size to full size.
            "photo.jpg" => 90.0 * LEVEL,
            "photo-444.jpg" => 2.0 * LEVEL,
            _ => 1e-4,
        };
        assert!(worst < most, "{}: {worst}", file.display());
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn pictures_of_the_shared_fixture_at_4_crops_are_those_of_pillow() {
    let Some(folder) = shared_fixture() else { return };
    let golden = json(&own_fixtures().join("golden-phi35-vision-tiny.json"));
    for (name, expected) in golden["pixels"].as_object().unwrap() {
        let worst = check(
            &folder.join("images").join(name),
            4,
            &expected["crop_means"],
            &expected["samples_flat_index_value"],
            &expected["image_size"],
        );
        let most = match name.as_str() {
            "photo.jpg" => 90.0 * LEVEL,
            "photo-444.jpg" => 2.0 * LEVEL,
            _ => 1e-4,
        };
        assert!(worst < most, "{name}: {worst}");
    }
}

#[test]
fn identities_tell_pixels_and_crops_apart() {
    let read = |name: &str| {
        decode(
            &std::fs::read(own_fixtures().join("images").join(name)).unwrap(),
            MAX_PIXELS,
        )
        .unwrap()
    };
    let (gate, mast) = (read("gate.png"), read("mast.png"));
    let mut changed = gate.clone();
    changed.get_pixel_mut(0, 0).0[0] ^= 1;
    let ids = [
        image_id(&gate, 4),
        image_id(&gate, 16),
        image_id(&mast, 4),
        image_id(&changed, 4),
    ];
    for (n, id) in ids.iter().enumerate() {
        assert!(!ids[n + 1..].contains(id));
    }
    assert_eq!(ids[0], image_id(&read("gate.png"), 4));
}

#[test]
fn headers_bound_what_is_decoded() {
    let file = std::fs::read(own_fixtures().join("images/yard.png")).unwrap();
    let header = probe(&file, MAX_PIXELS).unwrap();
    let pixels = u64::from(header.width) * u64::from(header.height);
    assert!(probe(&file, pixels).is_ok());
    for refusal in [
        probe(&file, pixels - 1).unwrap_err(),
        decode(&file, pixels - 1).unwrap_err(),
    ] {
        assert!(matches!(refusal, ReadError::TooLarge { .. }), "{refusal}");
        assert!(refusal.to_string().contains("limits.image_pixels"));
    }
    for other in [&b"GIF89a"[..], b"BM", b"", b"<svg/>", b"%PDF-1.7"] {
        assert_eq!(probe(other, MAX_PIXELS), Err(ReadError::Format));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_files_are_one_line(
        name in prop::sample::select(vec!["dot.png", "gate.png", "grey.png", "mast.png", "seal.png"]),
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut file = std::fs::read(own_fixtures().join("images").join(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(cut.index(file.len() + 1));
        if let Err(error) = decode(&file, MAX_PIXELS) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
