//! Programs for Windows, started in a Debian that has wine.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use phi_edge_tests::TIMEOUT;

/// The folder of the program, its library and its models, in the root.
const STAGE: &str = "phi-edge";
/// wine's folder of a Windows installation, in the root.
const PREFIX: &str = "wine-prefix";
/// `%ProgramData%\phi-edge`, in [`PREFIX`].
const PROGRAM_DATA: &str = "drive_c/ProgramData/phi-edge";

/// A Debian with wine, and the staged program in it.
pub(crate) struct Wine {
    root: PathBuf,
    /// The number of the X server's display, `:N`.
    display: String,
    /// A screen, without which DXGI lists no devices.
    screen: Child,
    /// Keeps wine's server and service manager up between commands.
    server: Child,
}

/// A process of Windows that was started here.
pub(crate) struct Process(Child);

impl Wine {
    pub(crate) fn new(root: &Path) -> Result<Self> {
        let root = root
            .canonicalize()
            .with_context(|| format!("{} is not there", root.display()))?;
        ensure!(
            root.join(STAGE).join("phi-edge.exe").is_file(),
            "phi-edge.exe is not staged"
        );
        make_prefix(&root)?;
        let data = root.join(PREFIX).join(PROGRAM_DATA);
        if data.exists() {
            // An earlier run left its configuration.
            std::fs::remove_dir_all(&data)?;
        }
        let (screen, display) = screen(&root)?;
        // `-f -p`: in the foreground, until it is ended.
        let server = in_root(&root, "wineserver")
            .args(["-f", "-p"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("unshare can't be started")?;
        Ok(Self {
            root,
            display,
            screen,
            server,
        })
    }

    /// A folder beside the program, emptied: its path here, and as Windows has it.
    pub(crate) fn folder(&self, name: &str) -> Result<(PathBuf, String)> {
        let here = self.root.join(STAGE).join(name);
        if here.exists() {
            std::fs::remove_dir_all(&here)?;
        }
        std::fs::create_dir_all(&here)?;
        Ok((here, staged(name)))
    }

    /// The names of staged files that end so, in order.
    pub(crate) fn staged_files(&self, suffix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.join(STAGE))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(suffix) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// `%ProgramData%\phi-edge`, emptied.
    pub(crate) fn program_data(&self) -> Result<PathBuf> {
        let folder = self.root.join(PREFIX).join(PROGRAM_DATA);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(folder.join("log"))?;
        Ok(folder)
    }

    /// `phi-edge.exe` with these arguments.
    pub(crate) fn phi_edge(&self, arguments: &[&str]) -> Command {
        let mut command = self.windows(&staged("phi-edge.exe"));
        command.args(arguments);
        command
    }

    /// A program of Windows.
    pub(crate) fn windows(&self, program: &str) -> Command {
        let mut command = in_root(&self.root, "wine");
        command.arg(program).env("DISPLAY", &self.display);
        command
    }

    /// Runs `phi-edge.exe` to its end and returns what it wrote.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = output(&mut self.phi_edge(arguments))?;
        let said = said(&output);
        ensure!(
            output.status.success(),
            "phi-edge {arguments:?} ended with {}: {said}",
            output.status
        );
        Ok(said)
    }

    /// The process ids, on this machine, of programs in the root whose command line has these words.
    pub(crate) fn processes(&self, words: &[&str]) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let folder = entry?.path();
            let id = folder.file_name().and_then(|name| name.to_str()?.parse().ok());
            let (Some(id), Ok(root)) = (id, std::fs::read_link(folder.join("root"))) else {
                continue;
            };
            let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if root == self.root && words.iter().all(|word| line.contains(word)) {
                found.push(id);
            }
        }
        Ok(found)
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        // The server ends all programs that still run.
        let _ = in_root(&self.root, "wineserver").arg("-k").status();
        for child in [&mut self.server, &mut self.screen] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Process {
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }

    /// Presses Ctrl-C: wine makes one of a signal.
    pub(crate) fn interrupt(&self) {
        phi_edge_tests::signal(&self.0, "INT");
    }

    /// Ends it without ceremony.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Waits for its end and returns its exit code.
    pub(crate) async fn exit_code(mut self) -> Result<i32> {
        let mut code = None;
        eventually("the daemon's end", || {
            code = self.0.try_wait()?.and_then(|status| status.code());
            Ok(code.is_some())
        })
        .await?;
        code.context("it was ended by a signal")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while !holds()? {
        if tokio::time::Instant::now() >= deadline {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Runs a program to its end and takes what it wrote, from files: wine's services begin with the first program that needs them,
/// keep its outputs open, and so would keep pipes open.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let (out, error) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let status = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(error.try_clone()?)
        .status()?;
    let written = |mut file: File| {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    Ok(Output {
        status,
        stdout: written(out)?,
        stderr: written(error)?,
    })
}

/// All that a program wrote.
pub(crate) fn said(output: &Output) -> String {
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{out}{error}").replace('\r', "")
}

/// The path of a staged file, as Windows has it.
pub(crate) fn staged(name: &str) -> String {
    format!(r"Z:\{STAGE}\{}", name.replace('/', r"\"))
}

/// An X server without a screen that anybody sees, and the display that it has chosen.
fn screen(root: &Path) -> Result<(Child, String)> {
    let mut server = in_root(root, "Xvfb")
        .args(["-displayfd", "1", "-nolisten", "tcp"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("unshare can't be started")?;
    let mut number = String::new();
    let said = server.stdout.take().context("Xvfb has no output")?;
    // It ends the line once it takes clients.
    BufReader::new(said).read_line(&mut number)?;
    ensure!(!number.trim().is_empty(), "Xvfb does not start");
    Ok((server, format!(":{}", number.trim())))
}

/// Makes wine's folder of a Windows installation, once.
fn make_prefix(root: &Path) -> Result<()> {
    let stamp = root.join(PREFIX).join("made");
    if stamp.is_file() {
        return Ok(());
    }
    eprintln!("Making an installation of Windows for wine …");
    for (program, argument) in [("wineboot", "-i"), ("wineserver", "-w")] {
        let status = in_root(root, program)
            .arg(argument)
            .status()
            .context("unshare can't be started")?;
        ensure!(status.success(), "{program} {argument} ended with {status}");
    }
    Ok(std::fs::write(stamp, "")?)
}

/// The checkout's root, as the crates were built with it.
fn checkout() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// A program of the root, in an environment that is the same everywhere.
fn in_root(root: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    // wine needs /proc, which is there for its processes alone, as is what follows.
    // Tests look for their files where they were built.
    let enter = r#"mount -t proc proc "$0/proc" && mkdir -p "$0$1" && mount -o bind,ro "$1" "$0$1" || exit
        root=$0 && shift && exec chroot "$root" "$@""#;
    command
        .args(["--mount", "sh", "-c", enter])
        .arg(root)
        .arg(checkout())
        .arg(program)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        // Else wine complains.
        .env("XDG_RUNTIME_DIR", "/tmp")
        .env("WINEPREFIX", format!("/{PREFIX}"))
        .env("WINEDEBUG", "-all");
    command
}
