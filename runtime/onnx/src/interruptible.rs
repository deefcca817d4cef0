//! Runs that an [`Interrupt`] ends.

use std::sync::Arc;

use ort::session::RunOptions;
use phi_edge_engine::{DecodeError, Hook, Interrupt};

use crate::error::one_line;

/// Runs a session, with options that end the run when `interrupt` is raised.
pub(crate) fn interruptible<T>(
    options: &Arc<RunOptions>,
    interrupt: &Interrupt,
    run: impl FnOnce(&RunOptions) -> Result<T, String>,
) -> Result<T, DecodeError> {
    let ended = Arc::clone(options);
    let hook: Hook = Arc::new(move || {
        if let Err(error) = ended.terminate() {
            tracing::warn!(%error, "A run could not be interrupted.");
        }
    });
    let guard = interrupt.during(&hook);
    let outcome = run(options);
    drop(guard);
    if interrupt.is_raised() {
        // The flag stays set in the options until it is cleared.
        options
            .unterminate()
            .map_err(|error| DecodeError::Failed(one_line(error)))?;
    }
    match outcome {
        Ok(value) => Ok(value),
        Err(_) if interrupt.is_raised() => Err(DecodeError::Interrupted),
        Err(fault) if fault.contains("Failed to allocate") || fault.contains("bad_alloc") => {
            Err(DecodeError::OutOfMemory(fault))
        }
        Err(fault) => Err(DecodeError::Failed(fault)),
    }
}
