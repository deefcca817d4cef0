//! The file of `log.path`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::telemetry::rotated_file::RotatedFile;

/// The size at which the file is rotated, in bytes.
const MAX_SIZE: u64 = 16 << 20;
/// The number of rotated files that are kept.
const KEPT_FILES: usize = 5;

/// A writer of log lines to a file that is rotated by its size. Copies write to the same file.
#[derive(Clone)]
pub(super) struct LogFile(Arc<Mutex<RotatedFile>>);

impl LogFile {
    /// Opens the file at `path`, which is made if it is not there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = RotatedFile::open(path.to_owned(), MAX_SIZE, KEPT_FILES)?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }
}

impl io::Write for LogFile {
    /// Appends `line`: the layer hands over each with its line feed in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().append(&String::from_utf8_lossy(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
