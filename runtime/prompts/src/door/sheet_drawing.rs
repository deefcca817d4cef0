//! The drawing of several pictures on one contact sheet, which decodes each of them.

use std::sync::Arc;

use phi_edge_models::{ContactSheet, contact_sheet_file, probe};
use sha2::{Digest as _, Sha256};

use super::EncodeDoor;
use super::budget::Lane;
use super::image_reading::decoding_memory;
use phi_edge_store::encode_note::{self, Standing, WorkDigest};

impl EncodeDoor {
    /// Draws pictures on one sheet when there is memory for the largest of them. Those that can't be read, or have
    /// more than `max_pixels`, are left out.
    ///
    /// # Errors
    /// None can be read, or processes died of them; one line.
    pub async fn contact_sheet(
        &self,
        files: Vec<Arc<[u8]>>,
        max_pixels: u64,
    ) -> Result<ContactSheet, String> {
        let files: Arc<[Arc<[u8]>]> = files.into();
        let hashed = Arc::clone(&files);
        let digest = tokio::task::spawn_blocking(move || digest(&hashed));
        let digest = digest.await.map_err(|_| "the runtime ends".to_owned())?;
        let standing = self.lock().standing(&digest);
        if let Standing::GivenUp { deaths, .. } = standing {
            return Err(format!(
                "the service ended {deaths} times while it drew these pictures on one sheet alone; they are not drawn again"
            ));
        }
        let suspect = standing == Standing::Suspect;
        let share = if suspect {
            self.all_after_delay().await
        } else {
            self.budget.take(Lane::Large, memory(&files, max_pixels)).await
        };
        let note = Arc::clone(&self.note);
        let drawn = tokio::task::spawn_blocking(move || {
            let _entry = encode_note::enter(&note, digest, suspect);
            let files: Vec<&[u8]> = files.iter().map(AsRef::as_ref).collect();
            let drawn = contact_sheet_file(&files, max_pixels);
            drop(share);
            drawn
        });
        let drawn = drawn.await.map_err(|error| {
            tracing::error!(%error, "drawing a contact sheet panicked");
            "the contact sheet can't be drawn".to_owned()
        })?;
        drawn.map_err(|error| error.to_string())
    }
}

/// The memory that the decoding of the largest takes, in bytes; they are decoded one after another.
fn memory(files: &[Arc<[u8]>], max_pixels: u64) -> usize {
    let headers = files.iter().filter_map(|file| probe(file, max_pixels).ok());
    headers
        .map(|header| decoding_memory(header.width, header.height))
        .max()
        .unwrap_or_default()
}

fn digest(files: &[Arc<[u8]>]) -> WorkDigest {
    // Other than that of a request with the same pictures.
    let mut digest = Sha256::new_with_prefix("contact sheet");
    for file in files {
        digest.update(file.len().to_le_bytes());
        digest.update(file);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use parking_lot::Mutex;
    use phi_edge_store::encode_note::EncodeNote;
    use tokio::time::{Instant, timeout};

    use super::super::ENCODE_MEMORY;
    use super::*;

    fn picture() -> Arc<[u8]> {
        include_bytes!("../../../../tests/fixtures/vision/images/dot.png")
            .as_slice()
            .into()
    }

    #[tokio::test]
    async fn a_sheet_waits_for_memory_and_says_what_can_not_be_read() {
        let door = EncodeDoor::open(None);
        let all = door.budget.take(Lane::Large, ENCODE_MEMORY).await;
        let waiting = timeout(
            Duration::from_millis(50),
            door.contact_sheet(vec![picture()], 1000),
        )
        .await;
        assert!(waiting.is_err(), "there is no memory");
        drop(all);
        let files = vec![picture(), b"no".as_slice().into(), picture()];
        let sheet = door.contact_sheet(files, 1000).await.unwrap();
        assert!(probe(&sheet.png, 1000).is_ok());
        assert_eq!(sheet.shown, [0, 2]);
        let damaged = door.contact_sheet(vec![b"no".as_slice().into()], 1000).await;
        assert_eq!(
            damaged,
            Err("none of the 1 pictures can be read: the first is neither PNG, JPEG nor WebP".to_owned())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pictures_that_killed_processes_are_drawn_alone_and_given_up_then() {
        let folder = tempfile::tempdir().unwrap();
        let files = vec![picture(), picture()];
        for alone in [false, true, true] {
            let note = Arc::new(Mutex::new(EncodeNote::open(Some(folder.path()))));
            std::mem::forget(encode_note::enter(&note, digest(&files), alone));
        }
        let door = EncodeDoor::open(Some(folder.path()));
        let begun = Instant::now();
        let waits = timeout(Duration::from_secs(1), door.contact_sheet(files.clone(), 1000)).await;
        assert!(waits.is_err(), "a suspect waits, from {begun:?}");
        std::mem::forget(encode_note::enter(&door.note, digest(&files), true));
        let door = EncodeDoor::open(Some(folder.path()));
        let given_up = door.contact_sheet(files, 1000).await;
        assert!(given_up.unwrap_err().contains("3 times"));
    }
}
