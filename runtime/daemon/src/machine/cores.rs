//! The cores that compute: those that this process may use and, where cores differ, the fast ones among them.

use std::collections::BTreeSet;
use std::fmt;

use super::sysfs::Sysfs;

/// The speed from which on a CPU counts as fast, in percent of the fastest one's. Turbo frequencies of equal cores differ by
/// less, efficiency cores are slower.
const FAST_PERCENT: u64 = 80;

/// The threads of a step, and the CPUs that they are counted by. Threads are not pinned: the kernel's scheduler places them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ComputeCores {
    /// Threads of a step.
    pub(crate) threads: usize,
    /// What the number of threads follows from.
    pub(crate) origin: ThreadsOrigin,
    /// The CPUs that this process may use, without `slower`, in ascending order; empty where the system does not tell.
    cpus: Vec<usize>,
    /// The CPUs that this process may use and that no thread is started for, since others are faster.
    slower: Vec<usize>,
}

/// What a number of threads follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadsOrigin {
    /// The configuration or a flag.
    Setting,
    /// The number of cores.
    Cores,
    /// The CPU quota of the control group, which is below the number of cores.
    Quota,
}

impl ThreadsOrigin {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Cores => "cores",
            Self::Quota => "quota",
        }
    }
}

impl ComputeCores {
    /// Those of this process; `configured` is a number of threads that was asked for.
    pub(crate) fn detect(sysfs: &Sysfs, configured: Option<usize>) -> Self {
        // Counts the CPUs of the affinity, which a cpuset limits too, and knows the quotas of control groups.
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        Self::choose(sysfs, allowed_cpus(), available, configured)
    }

    /// As [`Self::detect`], for a process that may use `allowed` CPUs, and as many of them at a time as `available`.
    fn choose(sysfs: &Sysfs, allowed: Vec<usize>, available: usize, configured: Option<usize>) -> Self {
        if let Some(threads) = configured {
            return Self {
                threads,
                origin: ThreadsOrigin::Setting,
                cpus: allowed,
                slower: Vec::new(),
            };
        }
        let fast = fast_cpus(sysfs, &allowed);
        let slower = allowed.into_iter().filter(|cpu| !fast.contains(cpu)).collect();
        let cores = match fast.len() {
            0 => available,
            _ => core_count(sysfs, &fast),
        };
        Self {
            threads: cores.min(available).max(1),
            origin: if available < cores {
                ThreadsOrigin::Quota
            } else {
                ThreadsOrigin::Cores
            },
            cpus: fast,
            slower,
        }
    }

    /// The CPUs that the threads are counted by, such as `0-3,8`; `None` where the system does not tell.
    pub(crate) fn cpus(&self) -> Option<String> {
        (!self.cpus.is_empty()).then(|| ranges(&self.cpus))
    }

    /// The first of these CPUs; `None` where the system does not tell.
    pub(crate) fn first_cpu(&self) -> Option<usize> {
        self.cpus.first().copied()
    }

    /// The CPUs that are left out because others are faster; `None` where there are none.
    pub(crate) fn slower(&self) -> Option<String> {
        (!self.slower.is_empty()).then(|| ranges(&self.slower))
    }
}

impl fmt::Display for ComputeCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.threads;
        write!(f, "{threads} {}", if threads == 1 { "thread" } else { "threads" })?;
        match self.origin {
            ThreadsOrigin::Setting => f.write_str(" as set")?,
            ThreadsOrigin::Quota => f.write_str(" by the CPU quota")?,
            ThreadsOrigin::Cores if self.cpus.len() > threads => f.write_str(", one for each core")?,
            ThreadsOrigin::Cores => {}
        }
        let noun = |cpus: &[usize]| if cpus.len() == 1 { "CPU" } else { "CPUs" };
        if let Some(cpus) = self.cpus() {
            write!(f, ", {} {cpus}", noun(&self.cpus))?;
        }
        if let Some(slower) = self.slower() {
            write!(f, "; not counted: the slower {} {slower}", noun(&self.slower))?;
        }
        Ok(())
    }
}

/// The CPUs that this thread may run on, in ascending order; empty where the system does not tell.
#[cfg(target_os = "linux")]
fn allowed_cpus() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    // It fails on machines of more CPUs than the set has room for.
    let set = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

#[cfg(not(target_os = "linux"))]
fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

/// The fast ones of these CPUs: all of them, if they are alike or if the system does not tell.
fn fast_cpus(sysfs: &Sysfs, allowed: &[usize]) -> Vec<usize> {
    if let Some(fast) = fastest(allowed, |cpu| sysfs.cpu_capacity(cpu)) {
        return fast;
    }
    // Kernels that give all CPUs of an Intel hybrid one capacity tell the kinds of cores apart nevertheless.
    let performance = sysfs.performance_cpus().unwrap_or_default();
    let fast: Vec<usize> = allowed
        .iter()
        .copied()
        .filter(|cpu| performance.contains(cpu))
        .collect();
    if !fast.is_empty() {
        return fast;
    }
    fastest(allowed, |cpu| sysfs.cpu_max_frequency(cpu)).unwrap_or_else(|| allowed.to_vec())
}

/// The CPUs whose reading is near the greatest; `None` if that is true of all, or if one has no reading.
fn fastest(allowed: &[usize], read: impl Fn(usize) -> Option<u64>) -> Option<Vec<usize>> {
    let readings = allowed.iter().map(|cpu| Some((*cpu, read(*cpu)?)));
    let readings: Vec<(usize, u64)> = readings.collect::<Option<_>>()?;
    let greatest = readings.iter().map(|(_, reading)| *reading).max()?;
    let near = |reading: u64| reading.saturating_mul(100) >= greatest.saturating_mul(FAST_PERCENT);
    let fast = readings.iter().filter(|(_, reading)| near(*reading));
    let fast: Vec<usize> = fast.map(|(cpu, _)| *cpu).collect();
    (fast.len() < allowed.len()).then_some(fast)
}

/// The number of cores that have these CPUs: two CPUs of one core share what computes.
fn core_count(sysfs: &Sysfs, cpus: &[usize]) -> usize {
    let core = |cpu: &usize| {
        let first = sysfs
            .thread_siblings(*cpu)
            .and_then(|siblings| siblings.into_iter().min());
        first.unwrap_or(*cpu)
    };
    cpus.iter().map(core).collect::<BTreeSet<_>>().len()
}

/// Ascending numbers as ranges, such as `0-3,8`.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let runs = runs.filter_map(|run| match run {
        [] => None,
        [only] => Some(only.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

    use std::path::Path;

    use super::super::sysfs::tests::write;
    use super::*;

    /// The choice on a machine with these files below `/sys`, for a process that may use `allowed` CPUs.
    fn check(files: &[(String, String)], allowed: &[usize], available: usize, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        write(folder.path(), &files);
        let chosen = ComputeCores::choose(&Sysfs::at(folder.path()), allowed.to_vec(), available, None);
        assert_eq!(chosen.to_string(), expected);
    }

    /// A file of each CPU.
    fn of_cpus<T: ToString>(file: &str, values: impl IntoIterator<Item = T>) -> Vec<(String, String)> {
        let entry =
            |(cpu, value): (usize, T)| (format!("devices/system/cpu/cpu{cpu}/{file}"), value.to_string());
        values.into_iter().enumerate().map(entry).collect()
    }

    /// Four small cores and four large ones (RK3588).
    fn big_little() -> Vec<(String, String)> {
        of_cpus("cpu_capacity", [414, 414, 414, 414, 1024, 1024, 1024, 1024])
    }

    /// Two performance cores of two threads each and eight efficiency cores (Core i5-1235U).
    fn hybrid() -> Vec<(String, String)> {
        let siblings = [
            "0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7", "8", "9", "10", "11",
        ];
        let mut files = of_cpus("topology/thread_siblings_list", siblings);
        files.extend(of_cpus("cpu_capacity", [1024; 12]));
        files.push(("devices/cpu_core/cpus".into(), "0-3".into()));
        files.push(("devices/cpu_atom/cpus".into(), "4-11".into()));
        files
    }

    #[test]
    fn threads_are_counted_by_the_large_cores() {
        let all: Vec<usize> = (0..8).collect();
        check(
            &big_little(),
            &all,
            8,
            "4 threads, CPUs 4-7; not counted: the slower CPUs 0-3",
        );
        // Frequencies alone say the same.
        let frequencies = [1_800_000; 4]
            .into_iter()
            .chain([2_400_000, 2_400_000, 2_256_000, 2_256_000]);
        check(
            &of_cpus("cpufreq/cpuinfo_max_freq", frequencies),
            &all,
            8,
            "4 threads, CPUs 4-7; not counted: the slower CPUs 0-3",
        );
    }

    #[test]
    fn threads_are_counted_by_the_performance_cores_of_a_hybrid() {
        let all: Vec<usize> = (0..12).collect();
        check(
            &hybrid(),
            &all,
            12,
            "2 threads, one for each core, CPUs 0-3; not counted: the slower CPUs 4-11",
        );
        // A newer kernel gives their capacities.
        let mut files = hybrid();
        files.extend(of_cpus("cpu_capacity", [1024; 4].into_iter().chain([620; 8])));
        check(
            &files,
            &all,
            12,
            "2 threads, one for each core, CPUs 0-3; not counted: the slower CPUs 4-11",
        );
    }

    #[test]
    fn cores_that_are_alike_or_unknown_all_count() {
        check(&[], &[0, 1], 2, "2 threads, CPUs 0-1");
        check(
            &of_cpus("cpu_capacity", [1024; 4]),
            &[0, 1, 3],
            3,
            "3 threads, CPUs 0-1,3",
        );
        // Turbo frequencies of single cores, and a CPU without a reading.
        let turbo = of_cpus("cpufreq/cpuinfo_max_freq", [5_000_000, 5_200_000, 5_000_000]);
        check(&turbo, &[0, 1, 2], 3, "3 threads, CPUs 0-2");
        check(&turbo, &[0, 1, 2, 3], 4, "4 threads, CPUs 0-3");
        // Where the system tells nothing, as on Windows.
        check(&[], &[], 6, "6 threads");
    }

    #[test]
    fn two_threads_of_a_core_count_once() {
        let siblings = of_cpus(
            "topology/thread_siblings_list",
            ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"],
        );
        let all: Vec<usize> = (0..8).collect();
        check(&siblings, &all, 8, "4 threads, one for each core, CPUs 0-7");
        // One CPU of each of two cores.
        check(&siblings, &[1, 6], 2, "2 threads, CPUs 1,6");
    }

    #[test]
    fn affinity_and_quota_bound_the_threads() {
        let all: Vec<usize> = (0..8).collect();
        check(
            &big_little(),
            &all,
            2,
            "2 threads by the CPU quota, CPUs 4-7; not counted: the slower CPUs 0-3",
        );
        // A process that is confined to small cores uses them.
        check(&big_little(), &[0, 1, 2], 3, "3 threads, CPUs 0-2");
        check(&hybrid(), &[6, 7], 2, "2 threads, CPUs 6-7");
        check(
            &big_little(),
            &[3, 4],
            2,
            "1 thread, CPU 4; not counted: the slower CPU 3",
        );
    }

    #[test]
    fn a_number_that_is_set_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let chosen = ComputeCores::choose(&Sysfs::at(folder.path()), vec![0, 1], 1, Some(6));
        assert_eq!(chosen.to_string(), "6 threads as set, CPUs 0-1");
    }

    /// The affinity of this process, as the kernel has it.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_affinity_of_a_process_counts() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        // A thread of its own: the affinity is of threads, and others must keep theirs.
        let bound = std::thread::spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| all.is_set(*cpu)).unwrap();
            let mut one = CpuSet::new();
            one.set(last);
            sched_setaffinity(None, &one).unwrap();
            (ComputeCores::detect(&Sysfs::at(Path::new("/sys")), None), last)
        });
        let (chosen, last) = bound.join().unwrap();
        assert_eq!((chosen.threads, chosen.cpus()), (1, Some(last.to_string())));
    }
}
