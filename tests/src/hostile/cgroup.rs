//! A memory cgroup for one process, of version 1 or 2, whichever the machine has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The group, removed with this value once its process is gone.
pub(super) struct Memory {
    folder: PathBuf,
    is_unified: bool,
}

impl Memory {
    /// A group whose processes get so many bytes and no swap.
    ///
    /// # Errors
    /// This user can't make one here.
    pub(super) fn limited(bytes: u64) -> Result<Self> {
        let name = format!("phi-edge-hostile-{}-{}", std::process::id(), crate::unique());
        let first = Path::new("/sys/fs/cgroup/memory");
        if first.join("memory.limit_in_bytes").exists() {
            let group = Self::made(first.join(name), false)?;
            group.write("memory.limit_in_bytes", bytes)?;
            // Absent where the kernel does not count swap.
            let _ = group.write("memory.memsw.limit_in_bytes", bytes);
            return Ok(group);
        }
        let second = Path::new("/sys/fs/cgroup");
        if !second.join("cgroup.controllers").exists() {
            bail!("no cgroup file system is mounted");
        }
        // It may be on already, and then writing it may not be allowed.
        let _ = std::fs::write(second.join("cgroup.subtree_control"), "+memory");
        let group = Self::made(second.join(name), true)?;
        group.write("memory.max", bytes)?;
        let _ = group.write("memory.swap.max", 0);
        Ok(group)
    }

    fn made(folder: PathBuf, is_unified: bool) -> Result<Self> {
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder, is_unified })
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let file = self.folder.join(file);
        std::fs::write(&file, value.to_string()).with_context(|| file.display().to_string())
    }

    /// A command that joins the group and becomes the program; its arguments are added by the caller.
    pub(super) fn command(&self, program: &Path) -> Command {
        let procs = self.folder.join("cgroup.procs");
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(procs)
            .arg(program);
        command
    }

    /// Processes that the kernel ended because the group's memory was used up.
    pub(super) fn killed(&self) -> u64 {
        let file = if self.is_unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Its process is gone by now; an empty group that stays does no harm.
        let _ = std::fs::remove_dir(&self.folder);
    }
}
