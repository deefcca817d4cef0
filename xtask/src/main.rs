//! Developer commands. Each does its own set-up on a fresh checkout.

mod aarch64;
mod advisories;
mod appliance;
mod bench;
mod cross_cargo;
mod debian_package;
mod debian_root;
mod demo;
mod device_library;
mod docs;
mod faults;
mod files;
mod gpu;
mod hostile;
mod kv_loss;
mod library;
mod long;
mod model;
mod node;
mod old_cpu;
mod package;
mod plugins;
mod process;
mod python;
mod standard_library;
mod test;
mod tools;
mod webgpu;
mod wheels;
mod windows;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::device_library::DeviceProvider;
use crate::library::Platform;
use crate::windows::{WindowsCommand, WindowsTestArgs};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer commands of phi-edge; each does its own set-up."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// An architecture that the tests run on under an emulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TestTarget {
    /// 64-bit Arm, as Linux has it.
    Aarch64,
}

#[derive(Subcommand)]
enum Command {
    /// Show everything at work: an embedded broker, the daemon, prompts, and machines that a rule watches over.
    Demo,
    /// Fetch the pinned ONNX Runtime library and print its path.
    Library {
        /// The platform to fetch it for; this machine's unless given.
        #[arg(long, value_enum)]
        platform: Option<Platform>,
        /// The library with this execution provider, for the platform that it is pinned for.
        #[arg(long, value_enum)]
        provider: Option<DeviceProvider>,
        /// With `--provider cuda`: put CUDA's own libraries beside it, 1.3 GB of downloads. Not needed where the system has them.
        #[arg(long, requires = "provider")]
        with_cuda: bool,
    },
    /// Run every test.
    Test {
        /// Another architecture: the tests of what depends on it, under QEMU.
        #[arg(long, value_enum)]
        target: Option<TestTarget>,
        /// Arguments for `cargo test`, after `--`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Write a model directory of a model's full shape with random weights.
    BenchModel(model::BenchModelArgs),
    /// Compare with onnxruntime-genai and llama.cpp, in turns, and write docs/benchmarks.md.
    Bench(bench::BenchArgs),
    /// Measure what 8-bit keys and values cost in accuracy, to a row of 131,072 tokens, and write docs/benchmarks.md.
    KvLoss(kv_loss::KvLossArgs),
    /// The fault matrix at full count; writes the table of docs/reliability.md.
    Faults(faults::FaultsArgs),
    /// Attacks from outside: poisons, flapping paths, crash loops, hostile clients; writes the table of docs/reliability.md.
    Hostile(hostile::HostileArgs),
    /// A pool of three nodes, one of which is killed at random and comes back.
    Fleet {
        /// Rounds.
        #[arg(long, default_value = "10")]
        rounds: u32,
        /// Requests a round.
        #[arg(long, default_value = "300")]
        requests: u32,
    },
    /// How many small requests pass through broker, link, store and service in a second.
    Flood {
        /// Requests.
        #[arg(long, default_value = "50000")]
        requests: u32,
    },
    /// 200 devices at 25 messages a second each, while the daemon is killed twice: each message counts once.
    Devices {
        /// For how long.
        #[arg(long, default_value = "120")]
        seconds: u32,
    },
    /// Requests without end while things break; memory and descriptors are watched.
    Soak {
        /// For how long.
        #[arg(long, default_value = "20")]
        minutes: u32,
        /// Hostile clients attack meanwhile; the bounds are the same.
        #[arg(long)]
        hostile: bool,
    },
    /// The .deb and the .rpm, in target/packages.
    Package(package::PackageArgs),
    /// The .deb on a Debian of its own: installed, started, asked, killed, hung, upgraded, purged.
    ApplianceTest(appliance::ApplianceArgs),
    /// The .deb for arm64 in a Debian of that architecture under QEMU: installed, and asked.
    Aarch64PackageTest,
    /// The tests of device memory on WebGPU's software driver, in a Debian of its own.
    WebgpuTest {
        /// The folder of the models with golden outputs; ../shared/fixtures unless given.
        #[arg(long)]
        fixtures: Option<PathBuf>,
    },
    /// The program on emulated processors without AVX2: check, ask, and a daemon with its own broker.
    OldCpuTest,
    /// The kit for a machine with an NVIDIA GPU.
    Gpu {
        #[command(subcommand)]
        command: gpu::GpuCommand,
    },
    /// The program for Windows.
    #[command(subcommand)]
    Windows(WindowsCommand),
    /// The program for Windows and unit tests under wine, in a Debian of its own.
    WindowsTest(WindowsTestArgs),
    /// Write docs/config.md from edge-config/default.toml.
    Docs,
    /// Formatting, lints and dependency rules: what CI runs after the tests.
    Lint,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain in one line; a backtrace does not help here.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Library {
            platform,
            provider,
            with_cuda,
        } => {
            let library = match provider {
                Some(provider) => device_library::fetch(provider, platform, with_cuda)?,
                None => library::fetch(platform.map_or_else(Platform::of_this_machine, Ok)?)?,
            };
            println!("{}", library.display());
            Ok(())
        }
        Command::Test {
            target: Some(TestTarget::Aarch64),
            arguments,
        } => aarch64::test(&arguments),
        Command::Test {
            target: None,
            arguments,
        } => test::test(&arguments),
        Command::Demo => demo::demo(),
        Command::BenchModel(args) => model::bench_model(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::KvLoss(args) => kv_loss::kv_loss(&args),
        Command::Faults(args) => faults::faults(&args),
        Command::Hostile(args) => hostile::hostile(&args),
        Command::Fleet { rounds, requests } => long::fleet(rounds, requests),
        Command::Flood { requests } => long::flood(requests),
        Command::Devices { seconds } => long::devices(seconds),
        Command::Soak { minutes, hostile } => long::soak(minutes, hostile),
        Command::Package(args) => package::package(args),
        Command::ApplianceTest(args) => appliance::test(&args),
        Command::OldCpuTest => old_cpu::test(),
        Command::WebgpuTest { fixtures } => webgpu::webgpu_test(fixtures),
        Command::Gpu { command } => gpu::gpu(&command),
        Command::Windows(command) => windows::windows(&command),
        Command::WindowsTest(args) => windows::test(&args),
        Command::Aarch64PackageTest => aarch64::package_test(),
        Command::Docs => docs::docs(),
        Command::Lint => test::lint(),
    }
}
