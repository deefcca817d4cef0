//! The image encoder: pixels of an image to its features, one crop a run.
//!
//! Its graph is cut before the crops are joined ([`crate::prepare::cut_encoder`]): so text goes on between two crops, and
//! only crops in use are computed. Each crop is a run of its own, so that its result does not depend on the others, to the
//! last bit. A graph that can't be cut runs as a whole.

mod opening;
mod sessions;
mod trial_image;
mod weights;

use std::sync::Arc;

use ort::logging::LogLevel;
use ort::session::RunOptions;
use phi_edge_engine::{DecodeError, ImageEncoding, ImageFeatures, ImageId, ImagePixels, Interrupt};
use phi_edge_models::VisionConfig;

use crate::interruptible::interruptible;
use crate::raw::Element;
use sessions::{Sessions, encode_whole};

pub(crate) use opening::{EncoderSource, open};
pub use weights::VisionWeights;

/// An image encoder ready to run.
pub struct VisionEncoder {
    sessions: Sessions,
    names: VisionConfig,
    element: Element,
    /// The crops that the whole graph wants, where their number is fixed.
    wanted_crops: Option<usize>,
    /// The width of a row of features.
    width: usize,
    options: Arc<RunOptions>,
    weights: VisionWeights,
    loss: Option<f64>,
}

impl VisionEncoder {
    /// Encodes the next crop of `pixels`, or joins the crops after the last one. Returns the features once they are
    /// complete; `None`: there is more to do. After an error `encoding` is what it was.
    pub fn encode_next(
        &mut self,
        image: ImageId,
        pixels: &ImagePixels,
        encoding: &mut ImageEncoding,
        interrupt: &Interrupt,
    ) -> Result<Option<ImageFeatures>, DecodeError> {
        let crop_len = 3 * pixels.side * pixels.side;
        if pixels.crops == 0 || crop_len == 0 || pixels.data.len() != pixels.crops * crop_len {
            return Err(DecodeError::Unsupported("pixels that are no whole crops".into()));
        }
        let (names, element) = (&self.names, self.element);
        let data = match &mut self.sessions {
            Sessions::Whole(session) => interruptible(&self.options, interrupt, |options| {
                encode_whole(session, names, pixels, (element, self.wanted_crops), options)
            })?,
            Sessions::Cut(cut) if encoding.crops < pixels.crops => {
                let crop = pixels
                    .data
                    .chunks_exact(crop_len)
                    .nth(encoding.crops)
                    .unwrap_or_default();
                let len = encoding.data.len();
                let outcome = interruptible(&self.options, interrupt, |options| {
                    cut.encode(names, (crop, pixels.side), element, options, &mut encoding.data)
                });
                if outcome.is_err() {
                    encoding.data.truncate(len);
                }
                outcome?;
                encoding.crops += 1;
                return Ok(None);
            }
            Sessions::Cut(cut) => interruptible(&self.options, interrupt, |options| {
                cut.join(names, (&encoding.data, pixels), element, options)
            })?,
        };
        if data.is_empty() || !data.len().is_multiple_of(self.width) {
            return Err(DecodeError::Failed(format!(
                "the image encoder gave {} values, no rows of {}",
                data.len(),
                self.width
            )));
        }
        Ok(Some(ImageFeatures {
            id: image,
            data,
            width: self.width,
        }))
    }

    /// Keeps what fails in its runs from the library's log: for trials that may fail.
    fn silence(&mut self) -> ort::Result<()> {
        let mut options = RunOptions::new()?;
        options.set_log_level(LogLevel::Fatal)?;
        self.options = Arc::new(options);
        Ok(())
    }

    /// Whether each crop is a run of its own.
    pub fn is_cut(&self) -> bool {
        matches!(self.sessions, Sessions::Cut(_))
    }

    /// The form of its weights in memory: never `auto`.
    pub fn weights(&self) -> VisionWeights {
        self.weights
    }

    /// The relative error of features by quantised weights on a drawn image; `None`: the weights are as in the file.
    pub fn loss(&self) -> Option<f64> {
        self.loss
    }
}
