//! The start of the machine that this process belongs to, by which a crash marker of an earlier start is recognised.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::machine::uptime;

/// The most by which two computations of the time of one start differ, in milliseconds: clocks drift and are adjusted.
const TOLERANCE_MS: u64 = 120_000;

/// A start of the machine, as its line in the crash marker tells it.
#[derive(Debug)]
pub(super) enum MachineStart {
    /// The kernel's id of it; empty where it has none.
    Id(String),
    /// The time of it by the wall clock, in milliseconds since 1970, on Windows.
    At(i64),
}

impl MachineStart {
    /// Returns the start that this process belongs to.
    pub(super) fn current() -> Self {
        if let Some(up) = uptime::since_boot_ms() {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let wall = i64::try_from(wall.as_millis()).unwrap_or(i64::MAX);
            return Self::At(wall.saturating_sub_unsigned(up));
        }
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self::Id(id.map(|id| id.trim().to_owned()).unwrap_or_default())
    }

    /// Whether `line` notes this start.
    pub(super) fn is_noted_as(&self, line: &str) -> bool {
        match self {
            Self::Id(id) => line == id,
            Self::At(time) => line
                .parse::<i64>()
                .is_ok_and(|noted| noted.abs_diff(*time) <= TOLERANCE_MS),
        }
    }

    /// Whether something from outside notes the crash of a process on this system.
    pub(super) fn has_observer(&self) -> bool {
        matches!(self, Self::Id(_))
    }
}

impl fmt::Display for MachineStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::At(time) => write!(f, "{time}"),
        }
    }
}
