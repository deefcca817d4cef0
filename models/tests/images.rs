//! Preprocessing of pictures against goldens: those of onnxruntime-genai at 16 crops, and the project's own at 4, made by Pillow.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "a test may end at a fault, and its numbers are small"
)]

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb, RgbImage, Rgba};

use phi_edge_engine::{ImageId, Symbol};
use phi_edge_models::{
    Detail, ImageGrid, ImageInfo, Message, ModelDir, PlacedImage, ReadError, Role, TextModel, decode,
    image_id, preprocess, probe,
};
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
    let grid = ImageGrid::of(picture.width(), picture.height(), crops);
    let pixels = preprocess(picture, crops);
    let shown = file.display();
    let size = numbers(size);
    let (rows, columns) = pixels.grid;
    assert_eq!(vec![(rows * 336) as f64, (columns * 336) as f64], size, "{shown}");
    assert_eq!(pixels.crops, rows * columns + 1, "{shown}");
    assert_eq!(pixels.data.len(), pixels.crops * CROP, "{shown}");
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

/// The user's message of a golden's prompt, whose tags are its images.
fn message(prompt: &str, infos: &[ImageInfo]) -> Message {
    let content = prompt
        .strip_prefix("<|user|>\n")
        .and_then(|rest| rest.strip_suffix("<|end|>\n<|assistant|>\n"));
    let mut message = Message::new(Role::User, "");
    let mut rest = content.unwrap();
    while let Some((before, behind)) = rest.split_once("<|image_") {
        let (number, behind) = behind.split_once("|>").unwrap();
        let image: usize = number.parse().unwrap();
        message.content.push_str(before);
        message.images.push(PlacedImage {
            at: message.content.len(),
            image: image - 1,
            info: Some(infos[image - 1]),
        });
        rest = behind;
    }
    message.content.push_str(rest);
    message
}

/// The ids of symbols; minus the number of the image at its places.
fn ids(symbols: &[Symbol], infos: &[ImageInfo]) -> Vec<i64> {
    let number = |image| infos.iter().position(|info| info.id == image).unwrap() as i64 + 1;
    let id = |symbol: &Symbol| match symbol {
        Symbol::Token(id) => i64::from(id.0),
        Symbol::Image { image, .. } => -number(*image),
    };
    symbols.iter().map(id).collect()
}

fn expanded(rle: &Value) -> Vec<i64> {
    let runs = rle.as_array().unwrap().iter();
    let run = |run: &Value| vec![run[0].as_i64().unwrap(); run[1].as_u64().unwrap() as usize];
    runs.flat_map(run).collect()
}

#[test]
fn prompts_have_the_ids_of_the_reference() {
    let Some(folder) = shared_fixture() else { return };
    let text = ModelDir::open(&folder).unwrap().text().unwrap();
    assert!(text.takes_images());
    for case in json(&folder.join("golden.json"))["cases"].as_array().unwrap() {
        let names = case["images"].as_array().unwrap();
        if names.is_empty() {
            continue;
        }
        let read = |name: &Value| {
            let file = std::fs::read(folder.join(name.as_str().unwrap())).unwrap();
            text.read_image(&file, Detail::High).unwrap()
        };
        let infos: Vec<ImageInfo> = names.iter().map(read).collect();
        let tokens: Vec<u64> = infos.iter().map(|info| info.tokens as u64).collect();
        let expected: Vec<u64> = case["num_image_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        assert_eq!(tokens, expected, "{}", case["name"]);
        let asked = message(case["prompt"].as_str().unwrap(), &infos);
        let symbols = text.encode_chat(std::slice::from_ref(&asked)).unwrap();
        assert_eq!(
            ids(&symbols, &infos),
            expanded(&case["input_ids_rle"]),
            "{}",
            case["name"]
        );
        let cost = text.encode_cost(std::slice::from_ref(&asked)).unwrap();
        assert!(cost.at_least > infos.iter().map(|info| info.tokens).sum());
        // Places of one image are in order.
        let places = symbols.iter().filter_map(|symbol| match symbol {
            Symbol::Image { image, index } if *image == infos[0].id => Some(*index as usize),
            _ => None,
        });
        assert_eq!(
            places.collect::<Vec<_>>(),
            (0..infos[0].tokens).collect::<Vec<_>>()
        );
    }
}

fn own_text() -> TextModel {
    let folder = tempfile::tempdir().unwrap();
    for from in [
        own_fixtures().join("cpu"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"),
    ] {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let wanted = name.to_str().unwrap();
            if wanted.starts_with("phi-3.5-v") || wanted.contains("token") || wanted.ends_with("jinja") {
                std::fs::copy(entry.path(), folder.path().join(&name)).unwrap();
            }
        }
    }
    std::fs::copy(
        own_fixtures().join("cpu/genai_config.json"),
        folder.path().join("genai_config.json"),
    )
    .unwrap();
    ModelDir::open(folder.path()).unwrap().text().unwrap()
}

#[test]
fn tags_in_a_text_stay_text() {
    let text = own_text();
    let info = ImageInfo {
        id: ImageId([7; 16]),
        tokens: 313,
    };
    let tagged = Message::new(Role::User, "<|image_1|> What is this? <|end|>");
    let symbols = text.encode_chat(std::slice::from_ref(&tagged)).unwrap();
    assert!(symbols.iter().all(|symbol| symbol.image().is_none()));
    let mut with_image = tagged.clone();
    with_image.images.push(PlacedImage {
        at: 0,
        image: 0,
        info: Some(info),
    });
    let both = text.encode_chat(&[with_image.clone()]).unwrap();
    assert_eq!(
        both.iter()
            .filter(|symbol| symbol.image() == Some(info.id))
            .count(),
        313
    );
    // One that is not read, or stands within a character, is an error.
    for (at, info) in [(0, None), (10_000, Some(info))] {
        with_image.images[0] = PlacedImage { at, image: 0, info };
        let error = text.encode_chat(&[with_image.clone()]).unwrap_err().to_string();
        assert!(error.contains("image 0"), "{error}");
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
    // The header alone of one row.
    let mut wide = file.clone();
    wide[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 1]);
    let refusal = probe(&wide, MAX_PIXELS).unwrap_err();
    assert!(matches!(refusal, ReadError::SideTooLong { .. }), "{refusal}");
    for other in [&b"GIF89a"[..], b"BM", b"", b"<svg/>", b"%PDF-1.7"] {
        assert_eq!(probe(other, MAX_PIXELS), Err(ReadError::Format));
    }
}

/// A picture in each format, with transparency where the format has it.
fn written(format: ImageFormat) -> Vec<u8> {
    let pixel = |x: u32, y: u32| Rgb([(x * 5) as u8, (y * 7) as u8, ((x ^ y) * 3) as u8]);
    let picture = RgbImage::from_fn(50, 30, pixel);
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

#[test]
fn formats_and_depths_become_rgb() {
    let png = decode(&written(ImageFormat::Png), MAX_PIXELS).unwrap();
    assert_eq!(png.dimensions(), (50, 30));
    assert_eq!(png, decode(&written(ImageFormat::WebP), MAX_PIXELS).unwrap());
    let jpeg = decode(&written(ImageFormat::Jpeg), MAX_PIXELS).unwrap();
    let worst = png
        .as_raw()
        .iter()
        .zip(jpeg.as_raw())
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!(worst.is_some_and(|worst| worst < 120), "{worst:?}");
    // 16 bits with alpha, which is dropped.
    let deep = ImageBuffer::from_fn(3, 2, |x, y| Rgba([x as u16 * 257, y as u16 * 257, 257, 9]));
    let mut file = Cursor::new(Vec::new());
    DynamicImage::ImageRgba16(deep)
        .write_to(&mut file, ImageFormat::Png)
        .unwrap();
    let shallow = decode(&file.into_inner(), MAX_PIXELS).unwrap();
    assert_eq!(shallow.get_pixel(2, 1), &Rgb([2, 1, 1]));
}

#[test]
fn the_orientation_of_exif_is_applied() {
    let jpeg = written(ImageFormat::Jpeg);
    // An APP1 segment behind the first marker: big-endian TIFF, one entry, orientation 6 (turn right).
    let mut tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let length = u16::try_from(tiff.len() + 2).unwrap().to_be_bytes();
    let mut turned = jpeg[..2].to_vec();
    turned.extend([0xFF, 0xE1]);
    turned.extend(length);
    turned.append(&mut tiff);
    turned.extend_from_slice(&jpeg[2..]);
    let header = probe(&turned, MAX_PIXELS).unwrap();
    assert_eq!((header.width, header.height), (30, 50));
    let picture = decode(&turned, MAX_PIXELS).unwrap();
    assert_eq!(picture.dimensions(), (30, 50));
    let plain = decode(&jpeg, MAX_PIXELS).unwrap();
    assert_eq!(picture.get_pixel(29, 0), plain.get_pixel(0, 0));
}

#[test]
fn files_that_are_cut_are_errors() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let file = written(format);
        for part in 1..10 {
            let cut = &file[..file.len() * part / 10];
            let error = decode(cut, MAX_PIXELS).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_files_are_one_line(
        format in prop::sample::select(vec![ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP]),
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut file = written(format);
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
