//! The processor as the operating system names it.

use std::path::Path;

/// The name of a processor, and its extensions that the kernels and ONNX Runtime's have a use for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processor {
    pub(crate) name: String,
    /// As `/proc/cpuinfo` spells them.
    pub(crate) extensions: Vec<String>,
}

/// Extensions that kernels for products and attention are written for, on x86-64 and Arm.
const EXTENSIONS: [&str; 23] = [
    "ssse3",
    "sse4_1",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "sme",
    "sme2",
];

impl Processor {
    /// That of this machine.
    pub(crate) fn detect() -> Self {
        Self::read(Path::new("/proc"))
    }

    /// As [`Self::detect`], from a folder like `/proc`.
    fn read(proc: &Path) -> Self {
        let described = std::fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default();
        let value = |key: &str| {
            let lines = described.lines().filter_map(|line| line.split_once(':'));
            let mut values = lines.filter(|(name, _)| name.trim() == key);
            values.next().map(|(_, value)| value.trim().to_owned())
        };
        // On Arm there are numbers for the cores alone; the board has a name, with a zero byte behind it.
        let board = || {
            let name = std::fs::read_to_string(proc.join("device-tree/model")).ok()?;
            Some(name.trim_matches(['\0', '\n', ' ']).to_owned())
        };
        let name = value("model name").or_else(board);
        let name = name.or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok());
        let flags = value("flags").or_else(|| value("Features")).unwrap_or_default();
        let has = |extension: &&str| flags.split_whitespace().any(|flag| flag == *extension);
        Self {
            name: name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            extensions: EXTENSIONS
                .iter()
                .filter(|extension| has(extension))
                .map(ToString::to_string)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

    use super::super::sysfs::tests::write;
    use super::*;

    fn check(files: &[(&str, &str)], name: &str, extensions: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), files);
        let processor = Processor::read(folder.path());
        assert_eq!(
            (processor.name.as_str(), processor.extensions),
            (name, owned(extensions))
        );
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_and_extensions_are_found_on_both_architectures() {
        let x86 = "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t\t: fpu avx2 fma f16c avx_vnni vaes";
        check(
            &[("cpuinfo", x86)],
            "Intel(R) N100",
            &["f16c", "fma", "avx2", "avx_vnni"],
        );
        let arm = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd0b";
        check(
            &[
                ("cpuinfo", arm),
                ("device-tree/model", "Raspberry Pi 5 Model B\0"),
            ],
            "Raspberry Pi 5 Model B",
            &["asimd", "asimdhp", "asimddp"],
        );
        // Windows says it in the environment.
        let plain =
            std::env::var("PROCESSOR_IDENTIFIER").unwrap_or_else(|_| std::env::consts::ARCH.to_owned());
        check(&[("cpuinfo", "")], &plain, &[]);
    }
}
