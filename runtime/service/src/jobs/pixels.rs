//! The pixels of a running job's images: read again from their files when the engine asks for them.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use phi_edge_engine::{Image, PixelSource, PixelState};
use phi_edge_models::ImageInfo;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::known_images::KnownImage;
use crate::engine_thread::EngineWaker;
use phi_edge_api::RequestImage;
use phi_edge_prompts::{DecodeMemory, Prompts};

/// The number of images that are decoded at once for the engine, which encodes one after another. A large one takes
/// hundreds of megabytes meanwhile.
const MAX_DECODES: usize = 1;

/// The reader of images' files for the engine.
#[derive(Clone)]
pub(crate) struct ImageReader {
    prompts: Arc<dyn Prompts>,
    waker: EngineWaker,
    memory: DecodeMemory,
    permits: Arc<Semaphore>,
    /// The engine's thread, which asks for pixels, is none of the runtime's.
    runtime: Handle,
}

impl ImageReader {
    /// A reader that decodes on the current tokio runtime.
    pub(crate) fn new(prompts: Arc<dyn Prompts>, memory: DecodeMemory, waker: EngineWaker) -> Self {
        Self {
            prompts,
            waker,
            memory,
            permits: Arc::new(Semaphore::new(MAX_DECODES)),
            runtime: Handle::current(),
        }
    }

    /// Reads the identities of images, which are in no store.
    ///
    /// # Errors
    /// One can't be read; one line for the client.
    pub(crate) async fn infos(&self, files: &[RequestImage]) -> Result<Vec<ImageInfo>, String> {
        let mut infos = Vec::with_capacity(files.len());
        for image in files {
            let image = image.clone();
            let read = self.decode(image, |prompts, image| {
                prompts.read_image(&image.file, image.detail)
            });
            infos.push(read.await?);
        }
        Ok(infos)
    }

    /// Returns the images as the engine takes them: nothing is decoded before it asks.
    pub(crate) fn engine_images(&self, images: &[KnownImage]) -> Vec<Image> {
        let images = images.iter().map(|image| Image {
            id: image.info.id,
            tokens: image.info.tokens,
            source: Arc::new(FilePixels {
                file: image.file.clone(),
                reader: self.clone(),
                state: Arc::new(Mutex::new(None)),
            }),
        });
        images.collect()
    }

    /// Runs `read`, which decodes the image, on a thread where it may take its time, when its turn has come and there is memory
    /// for it.
    async fn decode<T: Send + 'static>(
        &self,
        image: RequestImage,
        read: impl FnOnce(&dyn Prompts, &RequestImage) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        // It is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let share = self.memory.take(self.prompts.image_size(&image.file)?).await;
        let prompts = Arc::clone(&self.prompts);
        let read = tokio::task::spawn_blocking(move || {
            let read = read(prompts.as_ref(), &image);
            drop((permit, share));
            read
        });
        read.await.unwrap_or_else(|error| {
            tracing::error!(%error, "reading an image panicked");
            Err("an image can't be read".to_owned())
        })
    }
}

/// The source of the pixels of one image of a request.
struct FilePixels {
    file: RequestImage,
    reader: ImageReader,
    /// `None` until the engine has asked, and when it has the pixels.
    state: Arc<Mutex<Option<PixelState>>>,
}

impl PixelSource for FilePixels {
    fn pixels(&self) -> PixelState {
        let mut state = self.state.lock();
        match &*state {
            // Handed over: they are large, and the engine seldom asks twice.
            Some(PixelState::Ready(_)) => return state.take().unwrap_or(PixelState::Pending),
            Some(state) => return state.clone(),
            None => {}
        }
        *state = Some(PixelState::Pending);
        let make = make(
            self.file.clone(),
            self.reader.clone(),
            Arc::downgrade(&self.state),
        );
        self.reader.runtime.spawn(make);
        PixelState::Pending
    }
}

/// Makes the pixels of a file, unless no request waits for them any more, and wakes the engine.
async fn make(image: RequestImage, reader: ImageReader, state: Weak<Mutex<Option<PixelState>>>) {
    let waits = Weak::clone(&state);
    let pixels = reader.decode(image, move |prompts, image| {
        if waits.strong_count() == 0 {
            return Err("the request has ended".to_owned());
        }
        prompts.image_pixels(&image.file, image.detail)
    });
    let made = match pixels.await {
        Ok(pixels) => PixelState::Ready(Arc::new(pixels)),
        Err(message) => PixelState::Failed(message),
    };
    if let Some(state) = state.upgrade() {
        *state.lock() = Some(made);
        reader.waker.wake();
    }
}
