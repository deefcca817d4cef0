//! Numbers of this process and of its disk.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The number of open file descriptors; Linux only.
pub(crate) fn open_files() -> Option<usize> {
    // The folder's own descriptor is among them.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

/// The processor time of the process, including threads that have ended; Linux only.
pub(crate) fn cpu_time() -> Option<Duration> {
    // Of USER_HZ, which is 100 on all supported processors.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may hold anything; fields 14 and 15 of proc(5) come behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let ticks = times
        .next()?
        .parse::<u32>()
        .ok()?
        .saturating_add(times.next()?.parse().ok()?);
    Some(TICK * ticks)
}

/// The free bytes on the disk of `folder` that this process may use.
#[cfg(unix)]
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
pub(crate) fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// The resident memory of this process, in bytes; Linux only.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The peak of this process's resident memory, in bytes; 0 where the system does not report it.
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Seconds since 1970.
pub(crate) fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
