//! `cargo xtask old-cpu-test`: the program on processors without AVX2, which QEMU emulates. An instruction that such a processor
//! does not have ends the emulated program by SIGILL, whether it is the program's own, a dependency's or the library's.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::library;
use crate::process::{cargo, root, run, target, works};

/// QEMU's names of processors without AVX. The cores of Snowridge (Tremont) are those of the Celeron J6412.
const CPUS: [&str; 3] = ["Nehalem", "Denverton", "Snowridge"];
/// Commands that run a program of this machine's architecture on an emulated processor.
const EMULATORS: [&str; 2] = ["qemu-x86_64", "qemu-x86_64-static"];
const PROMPT: &str = "Who are you?";

/// Builds the program and runs it on each processor: `check`, `ask`, and a daemon with its own broker.
pub(crate) fn test() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "old-cpu-test is for Linux on x86-64"
    );
    let emulator = EMULATORS
        .into_iter()
        .find(|emulator| works(emulator, "--version"));
    let emulator = emulator.context(
        "QEMU's user-mode emulator was not found; install qemu-user, version 10 or later \
         (Debian 12: apt-get install qemu-user/bookworm-backports)",
    )?;
    let library = library::for_this_machine()?;
    run(cargo().args(["build", "--locked", "-p", "phi-edge"]))?;
    let program = Program {
        emulator,
        library,
        binary: target().join("debug/phi-edge"),
        model: root().join("models/demo"),
    };
    let expected = program.ask(None)?;
    for cpu in CPUS {
        program.check(cpu)?;
        let answer = program.ask(Some(cpu))?;
        ensure!(
            answer == expected,
            "{cpu} answers {answer:?}, ONNX Runtime's kernels of this machine {expected:?}"
        );
        program.serve(cpu, &expected)?;
        println!("{cpu}: check, ask and the daemon work by ONNX Runtime alone");
    }
    Ok(())
}

/// The program, and what it needs.
struct Program {
    emulator: &'static str,
    library: PathBuf,
    binary: PathBuf,
    model: PathBuf,
}

impl Program {
    /// A command of the program on an emulated processor, or on this machine's own.
    fn command(&self, cpu: Option<&str>) -> Command {
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new(self.emulator);
                command.args(["-cpu", cpu]).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command.env("ORT_DYLIB_PATH", &self.library);
        command
    }

    /// The answer of `ask`, computed by ONNX Runtime's kernels.
    fn ask(&self, cpu: Option<&str>) -> Result<String> {
        let mut command = self.command(cpu);
        command.arg("ask").arg("--model").arg(&self.model);
        if cpu.is_none() {
            command.args(["--isa", "none"]);
        }
        output(command.arg(PROMPT))
    }

    /// Checks what `check` says of the processor.
    fn check(&self, cpu: &str) -> Result<()> {
        let mut command = self.command(Some(cpu));
        command
            .args(["check", "--offline", "--set"])
            .arg(setting("model.path", &self.model));
        let said = output(&mut command)?;
        for line in [
            "warn   processor this processor has no AVX2",
            "instruction set none",
        ] {
            ensure!(said.contains(line), "{cpu}: check does not say {line:?}:\n{said}");
        }
        Ok(())
    }

    /// Runs the daemon with its own broker, asks it, and stops it.
    fn serve(&self, cpu: &str, expected: &str) -> Result<()> {
        let folder = target().join("old-cpu").join(cpu);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let mut command = self.command(Some(cpu));
        let settings = [
            setting("model.path", &self.model),
            setting("store.path", &folder),
            "mqtt.embedded=true".to_owned(),
            "mqtt.embedded_listen=127.0.0.1:0".to_owned(),
        ];
        command.arg("run");
        for setting in settings {
            command.args(["--set", &setting]);
        }
        let mut daemon = Daemon::start(&mut command)?;
        let address = daemon.ready().with_context(|| format!("the daemon on {cpu}"))?;
        let broker = format!("mqtt://{address}");
        let answer = output(self.command(None).args(["ask", "--broker", &broker, PROMPT]))?;
        ensure!(answer == expected, "the daemon on {cpu} answers {answer:?}");
        daemon.stop()
    }
}

/// A running daemon, which is killed where the test fails.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Ok(Self(child.context("the daemon can't be started")?))
    }

    /// Waits until the daemon is ready, and returns the address of its broker. The rest of its log is passed on.
    fn ready(&mut self) -> Result<String> {
        let log = self.0.stderr.take().context("the daemon has no log")?;
        let (mut address, mut warned) = (None, false);
        let mut lines = BufReader::new(log).lines();
        for line in &mut lines {
            let line = line?;
            if line.contains("the embedded broker listens") {
                let (_, rest) = line.split_once("address=").unwrap_or_default();
                address = rest.split_whitespace().next().map(ToOwned::to_owned);
            }
            warned |= line.contains("This processor has no AVX2");
            if line.contains("base=") && line.contains("ready") {
                ensure!(warned, "it does not say that the processor has no AVX2");
                // The pipe must be emptied, or the daemon waits for it.
                std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
                return address.context("it does not say where its broker listens");
            }
            eprintln!("{line}");
        }
        bail!("it ended before it was ready")
    }

    fn stop(mut self) -> Result<()> {
        let id = self.0.id().to_string();
        run(Command::new("kill").args(["-s", "TERM", &id]))?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It fails where the daemon has ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command prints.
fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("{shown} can't be started"))?;
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        let complained = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} failed: {}\n{printed}\n{complained}", output.status);
    }
    Ok(printed)
}

fn setting(key: &str, path: &Path) -> String {
    format!("{key}={}", path.display())
}
