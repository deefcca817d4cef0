//! The memory budget of keys and values where the configuration sets none.

use std::path::Path;

use crate::machine::memory;

/// The share of the free memory that is used, after the model is loaded.
const FREE_MEMORY_SHARE: f64 = 0.6;

/// The budget for keys and values, in bytes: a share of the memory that this process may still allocate. `None` where
/// the system does not report it (neither Linux nor Windows).
pub(crate) fn kv_budget() -> Option<u64> {
    budget(Path::new("/")).or_else(|| memory::physical().map(|memory| share(memory.available)))
}

/// The memory of this machine, or of the unit (`MemoryMax=`) if that is less, in bytes. `None` where the system does not
/// report it (neither Linux nor Windows).
pub(crate) fn machine_memory() -> Option<u64> {
    total(Path::new("/")).or_else(|| memory::physical().map(|memory| memory.installed))
}

fn total(root: &Path) -> Option<u64> {
    let installed = meminfo(root, "MemTotal:");
    let unit = least_in_cgroups(root, |folder| number_in(&folder.join("memory.max")));
    [installed, unit].into_iter().flatten().min()
}

fn budget(root: &Path) -> Option<u64> {
    let free = [available(root), left_in_cgroup(root)];
    free.into_iter().flatten().min().map(share)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of bytes, far below 2^52"
)]
fn share(free: u64) -> u64 {
    (free as f64 * FREE_MEMORY_SHARE) as u64
}

/// The memory that the kernel can provide without swapping, in bytes.
fn available(root: &Path) -> Option<u64> {
    meminfo(root, "MemAvailable:")
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(root: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The memory that the unit's limits (cgroup v2, `MemoryMax=`) leave, in bytes.
fn left_in_cgroup(root: &Path) -> Option<u64> {
    least_in_cgroups(root, |folder| {
        // `max` is no number, and no limit.
        let limit = number_in(&folder.join("memory.max"))?;
        let used = number_in(&folder.join("memory.current"))?;
        // The page cache counts as used, including the model's file, but is reclaimed when memory is needed.
        Some(limit.saturating_sub(used.saturating_sub(cached(&folder.join("memory.stat")))))
    })
}

/// The minimum of what `of` returns for the folders of this process's control group and of all groups above it.
fn least_in_cgroups(root: &Path, of: impl Fn(&Path) -> Option<u64>) -> Option<u64> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounted = root.join("sys/fs/cgroup");
    let mut folder = mounted.join(path.trim());
    let mut least = None;
    loop {
        least = [least, of(&folder)].into_iter().flatten().min();
        if folder == mounted || !folder.pop() {
            return least;
        }
    }
}

/// The number in a file of one line.
fn number_in(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The page cache of a group, in bytes, which the kernel reclaims when memory is needed.
fn cached(statistics: &Path) -> u64 {
    let text = std::fs::read_to_string(statistics).unwrap_or_default();
    let number = |line: &str| -> Option<u64> {
        let (name, number) = line.split_once(' ')?;
        matches!(name, "active_file" | "inactive_file").then(|| number.trim().parse().ok())?
    };
    text.lines().filter_map(number).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn file(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_tightest_bound_counts() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(budget(root.path()), None);
        file(
            root.path(),
            "proc/meminfo",
            "MemTotal: 9000 kB\nMemAvailable:    1000 kB\n",
        );
        assert_eq!(budget(root.path()), Some(614_400));
        assert_eq!(total(root.path()), Some(9_000 << 10));
        file(
            root.path(),
            "proc/self/cgroup",
            "0::/system.slice/phi-edge.service\n",
        );
        let unit = "sys/fs/cgroup/system.slice/phi-edge.service";
        file(root.path(), &format!("{unit}/memory.max"), "max\n");
        file(root.path(), &format!("{unit}/memory.current"), "100\n");
        assert_eq!(budget(root.path()), Some(614_400));
        file(root.path(), &format!("{unit}/memory.max"), "1100\n");
        assert_eq!(budget(root.path()), Some(600));
        // Most of the used memory are pages of the model's file.
        file(root.path(), &format!("{unit}/memory.current"), "900\n");
        file(
            root.path(),
            &format!("{unit}/memory.stat"),
            "anon 100\nfile 800\nactive_file 300\ninactive_file 500\nslab 0\n",
        );
        assert_eq!(budget(root.path()), Some(600));
        file(root.path(), "sys/fs/cgroup/system.slice/memory.max", "150\n");
        file(root.path(), "sys/fs/cgroup/system.slice/memory.current", "100\n");
        assert_eq!(budget(root.path()), Some(30));
        assert_eq!(total(root.path()), Some(150));
    }
}
