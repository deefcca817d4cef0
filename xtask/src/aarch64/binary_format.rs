//! The kernel's knowledge of foreign programs: those of 64-bit Arm run by themselves, also below a changed root.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::aarch64::emulator::emulator;
use crate::process::run;

const FOLDER: &str = "/proc/sys/fs/binfmt_misc";
const NAME: &str = "phi-edge-aarch64";
/// The head of a program of 64-bit Arm, and the bits of it that count (the kind of the file is a program's or a shared object's).
const HEAD: &str = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
const MASK: &str = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";

/// The entry of the emulator, for as long as this lives.
pub(super) struct BinaryFormat;

impl BinaryFormat {
    /// Registers the emulator.
    pub(super) fn register() -> Result<Self> {
        let emulator = emulator()?;
        let folder = Path::new(FOLDER);
        if !folder.join("register").exists() {
            run(Command::new("mount").args(["-t", "binfmt_misc", "binfmt_misc", FOLDER]))
                .context("the kernel knows no foreign programs (binfmt_misc)")?;
        }
        remove();
        // F: the emulator is opened now, so that it need not lie below a changed root.
        let entry = format!(":{NAME}:M::{HEAD}:{MASK}:{}:F", emulator.display());
        std::fs::write(folder.join("register"), entry)
            .context("the emulator can't be registered; this needs root")?;
        Ok(Self)
    }
}

impl Drop for BinaryFormat {
    fn drop(&mut self) {
        remove();
    }
}

/// Removes the entry, where it is there.
fn remove() {
    let _ = std::fs::write(Path::new(FOLDER).join(NAME), "-1");
}
