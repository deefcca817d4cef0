//! The scenarios of a picture: the time to the first token, and the gaps of running streams meanwhile.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::{Image, ImageId, RequestId, Symbol};
use phi_edge_models::{ImageGrid, ImageInfo, decode, image_id, preprocess};
use serde_json::{Value, json};

use super::bench_args::BenchArgs;
use super::scenarios::{finish_all, gaps_beside, request_of};
use super::{Bench, prompt_of, salt};
use crate::commands::local_images::{MAX_PIXELS, ReadyPixels};
use crate::exit::{Exit, Fault};

/// Text tokens before the picture and behind it.
const TEXT_TOKENS: (usize, usize) = (3, 12);

/// The time to the first token of a prompt with a picture that no cache has.
pub(super) fn first_token(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let started = local.now();
    let picture = read(local, args)?;
    let read = local.now();
    let (crops, info) = (picture.crops, picture.info);
    submit(local, RequestId(0), picture, 1)?;
    finish_all(local)?;
    let ended = local.now();
    let encoded = local.engine.decoder_mut().take_times();
    Ok(json!({
        "first_token_ms": milliseconds(ended.saturating_sub(started)),
        "read_ms": milliseconds(read.saturating_sub(started)),
        "encoder_ms": milliseconds(encoded.crops.iter().sum()),
        "longest_crop_ms": milliseconds(longest(&encoded.crops)),
        "crops": crops,
        "image_tokens": info.tokens,
    }))
}

/// The gaps of running streams from the arrival of a picture, read before, to its answer's first token.
pub(super) fn gaps(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    // As the daemon reads them: not on the engine's thread.
    let picture = read(local, args)?;
    let mut report = gaps_beside(local, args, |local, id| {
        local.engine.decoder_mut().take_times();
        submit(local, id, picture, 2)
    })?;
    let times = local.engine.decoder_mut().take_times();
    report["longest_crop_ms"] = json!(milliseconds(longest(&times.crops)));
    report["longest_run_ms"] = json!(milliseconds(longest(&times.runs)));
    Ok(report)
}

/// A picture that is read.
struct Picture {
    info: ImageInfo,
    image: Image,
    crops: usize,
}

fn read(local: &Bench, args: &BenchArgs) -> Result<Picture, Fault> {
    let usage = |text: String| Fault::new(Exit::Usage, text);
    let Some(path) = &args.image else {
        return Err(usage("this scenario needs --image FILE".to_owned()));
    };
    if local.model.encoder_path().is_none() {
        return Err(usage("--image: this model takes text alone".to_owned()));
    }
    let crops = usize::from(args.num_crops);
    let named = |text: String| usage(format!("--image {}: {text}", path.display()));
    let file = std::fs::read(path).map_err(|error| named(error.to_string()))?;
    let picture = decode(&file, MAX_PIXELS).map_err(|error| named(error.to_string()))?;
    let ImageId(mut id) = image_id(&picture, crops);
    // Another one each time, so that neither its features nor its keys and values are in a cache.
    for (byte, salt) in id.iter_mut().zip(salt(local).to_le_bytes()) {
        *byte ^= salt;
    }
    let tokens = ImageGrid::of(picture.width(), picture.height(), crops).tokens();
    let pixels = preprocess(picture, crops);
    let info = ImageInfo {
        id: ImageId(id),
        tokens,
    };
    Ok(Picture {
        crops: pixels.crops,
        image: Image {
            id: info.id,
            tokens,
            source: Arc::new(ReadyPixels::new(pixels)),
        },
        info,
    })
}

/// Submits text with the picture in it.
fn submit(local: &mut Bench, id: RequestId, picture: Picture, new: usize) -> Result<(), Fault> {
    let salt = salt(local);
    let mut prompt = prompt_of(local, salt, TEXT_TOKENS.0);
    let places = u32::try_from(picture.info.tokens).unwrap_or(u32::MAX);
    prompt.extend(Symbol::of_image(picture.info.id, places));
    prompt.extend(prompt_of(local, salt + 1, TEXT_TOKENS.1));
    let mut request = request_of(id, prompt, new);
    request.images.push(picture.image);
    let now = local.now();
    local.engine.submit(request, now).map_err(Fault::failed)
}

fn longest(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
