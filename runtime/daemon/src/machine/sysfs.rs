//! The kernel's readings of temperature, power and CPUs (sysfs); Linux only, elsewhere there are none.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of sysfs without a configuration: the default of `runtime.pace.sysfs`.
pub(crate) const SYSFS: &str = "/sys";

/// A tree of files like `/sys`.
#[derive(Debug, Clone)]
pub(crate) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Degrees Celsius of the thermal zones that have a reading, by type.
    ///
    /// <https://docs.kernel.org/driver-api/thermal/sysfs-api.html>
    pub(crate) fn temperatures(&self) -> Vec<(String, f64)> {
        let mut readings: Vec<(String, f64)> = folders(&self.root.join("class/thermal"))
            .filter_map(|zone| {
                let milli: f64 = line(&zone.join("temp"))?.parse().ok()?;
                Some((line(&zone.join("type"))?, milli / 1000.0))
            })
            .collect();
        readings.sort_by(|a, b| a.0.cmp(&b.0));
        readings
    }

    /// Whether the machine runs on battery: a battery discharges, and no supply is online.
    ///
    /// Batteries of devices (a mouse, a sensor) have the scope "Device" and don't count.
    /// <https://docs.kernel.org/power/power_supply_class.html>
    pub(crate) fn is_on_battery(&self) -> bool {
        let mut discharged = false;
        for supply in folders(&self.root.join("class/power_supply")) {
            let says = |file: &str, word: &str| line(&supply.join(file)).as_deref() == Some(word);
            if says("scope", "Device") {
                continue;
            }
            if says("type", "Battery") || says("type", "UPS") {
                discharged |= says("status", "Discharging");
            } else if says("online", "1") {
                return false;
            }
        }
        discharged
    }

    /// The capacity of a CPU, relative to the machine's fastest one, which has 1024.
    ///
    /// <https://docs.kernel.org/scheduler/sched-capacity.html>
    pub(crate) fn cpu_capacity(&self, cpu: usize) -> Option<u64> {
        line(&self.cpu(cpu).join("cpu_capacity"))?.parse().ok()
    }

    /// The highest frequency of a CPU, in kHz.
    pub(crate) fn cpu_max_frequency(&self, cpu: usize) -> Option<u64> {
        line(&self.cpu(cpu).join("cpufreq/cpuinfo_max_freq"))?
            .parse()
            .ok()
    }

    /// The CPUs that share a core with this one, itself among them.
    pub(crate) fn thread_siblings(&self, cpu: usize) -> Option<Vec<usize>> {
        cpu_list(&line(&self.cpu(cpu).join("topology/thread_siblings_list"))?)
    }

    /// The CPUs on performance cores of an Intel hybrid, whose kinds of cores have performance counters of their own.
    pub(crate) fn performance_cpus(&self) -> Option<Vec<usize>> {
        cpu_list(&line(&self.root.join("devices/cpu_core/cpus"))?)
    }

    /// The caches of a CPU, from the first level to the last.
    pub(crate) fn caches(&self, cpu: usize) -> Vec<CpuCache> {
        let mut caches: Vec<CpuCache> = folders(&self.cpu(cpu).join("cache"))
            .filter_map(|cache| {
                Some(CpuCache {
                    level: line(&cache.join("level"))?.parse().ok()?,
                    kind: line(&cache.join("type"))?,
                    bytes: size(&line(&cache.join("size"))?)?,
                })
            })
            .collect();
        caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
        caches
    }

    fn cpu(&self, cpu: usize) -> PathBuf {
        self.root.join(format!("devices/system/cpu/cpu{cpu}"))
    }
}

/// A cache of a CPU, which others may share.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct CpuCache {
    pub(crate) level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub(crate) kind: String,
    pub(crate) bytes: u64,
}

/// A size such as `48K`, in bytes.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (text.strip_suffix('M')?, 1 << 20),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A list of CPUs such as `0-3,8`; `None` if it is none.
///
/// <https://docs.kernel.org/admin-guide/cputopology.html>
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    /// Beyond any machine; a larger number is a mistake, and must not become a list.
    const MAX_CPU: usize = 1 << 16;
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn folders(of: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(of)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

fn line(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

    use super::*;

    /// Writes files of a tree, as paths and contents.
    pub(crate) fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
    }

    #[test]
    fn zones_without_a_reading_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(folder.path());
        assert!(sysfs.temperatures().is_empty());
        write(
            folder.path(),
            &[
                ("class/thermal/thermal_zone0/type", "x86_pkg_temp"),
                ("class/thermal/thermal_zone0/temp", "61500"),
                ("class/thermal/thermal_zone1/type", "iwlwifi"),
                ("class/thermal/thermal_zone1/temp", "not now"),
                ("class/thermal/thermal_zone2/type", "acpitz"),
                ("class/thermal/thermal_zone2/temp", "-3000"),
                ("class/thermal/cooling_device0/type", "Processor"),
            ],
        );
        let expected = [("acpitz".to_owned(), -3.0), ("x86_pkg_temp".to_owned(), 61.5)];
        assert_eq!(sysfs.temperatures(), expected);
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(cpu_list("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(cpu_list("4"), Some(vec![4]));
        for wrong in ["", "a", "3-1", "0-", "0-4000000000"] {
            assert_eq!(cpu_list(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn caches_are_listed_by_level() {
        let folder = tempfile::tempdir().unwrap();
        let cache = "devices/system/cpu/cpu1/cache";
        let files = [
            ("index3", "3", "Unified", "32M"),
            ("index0", "1", "Data", "48K"),
            ("index1", "1", "Instruction", "?"),
        ];
        for (index, level, kind, size) in files {
            for (file, text) in [("level", level), ("type", kind), ("size", size)] {
                write(folder.path(), &[(&format!("{cache}/{index}/{file}"), text)]);
            }
        }
        let cache = |level, kind: &str, bytes| CpuCache {
            level,
            kind: kind.to_owned(),
            bytes,
        };
        let expected = [cache(1, "Data", 48 << 10), cache(3, "Unified", 32 << 20)];
        assert_eq!(Sysfs::at(folder.path()).caches(1), expected);
    }

    #[test]
    fn a_battery_counts_that_is_discharged_while_nothing_is_plugged_in() {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(folder.path());
        assert!(!sysfs.is_on_battery(), "a machine without any");
        let mouse = [
            ("class/power_supply/hid/type", "Battery"),
            ("class/power_supply/hid/scope", "Device"),
            ("class/power_supply/hid/status", "Discharging"),
        ];
        write(folder.path(), &mouse);
        assert!(!sysfs.is_on_battery(), "a mouse's");
        let battery = [
            ("class/power_supply/BAT0/type", "Battery"),
            ("class/power_supply/BAT0/status", "Discharging"),
            ("class/power_supply/AC/type", "Mains"),
            ("class/power_supply/AC/online", "0"),
        ];
        write(folder.path(), &battery);
        assert!(sysfs.is_on_battery());
        write(folder.path(), &[("class/power_supply/AC/online", "1")]);
        assert!(!sysfs.is_on_battery(), "plugged in");
    }
}
