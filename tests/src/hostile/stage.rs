//! What a scenario stands on: a broker, the daemon with rules, and the accounts of what it says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::report::Report;
use super::watch::{Seen, Watch};
use crate::daemon::{NODE, TIMEOUT};
use crate::{Daemon, Mosquitto, demo_model, free_port};

/// The broker that a scenario runs against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broker {
    /// Debian's mosquitto, without access rules.
    Mosquitto,
    /// The broker in the daemon's own process.
    Embedded,
}

/// Lines of mosquitto's configuration with which it keeps whatever waits.
pub(super) const KEEPS_ALL: &str = "max_queued_messages 0\n";

/// What mosquitto needs to be told so that no client needs a password.
pub(super) const ANONYMOUS: &str = "allow_anonymous true\n";

/// Between two looks at the process.
pub(super) const SLICE: Duration = Duration::from_millis(500);

/// The user that reads everything, where there are users.
pub(super) const AUDITOR: &str = "auditor";

/// Broker, daemon and accounts.
pub(super) struct Stage {
    /// Where clients connect.
    pub(super) port: u16,
    pub(super) mosquitto: Option<Mosquitto>,
    pub(super) daemon: Option<Daemon>,
    pub(super) watch: Watch,
    pub(super) rules: TempDir,
    /// Where the daemon connects, which may be a proxy.
    node_port: u16,
    settings: Vec<String>,
    model: PathBuf,
    /// Peak memory of processes that are gone.
    peak: u64,
}

/// What a stage is set up with.
#[derive(Default)]
pub(super) struct Setting<'a> {
    /// Rules by name.
    pub(super) rules: &'a [(&'a str, String)],
    /// Further settings of the daemon.
    pub(super) settings: &'a [String],
    /// Where the daemon connects; the broker itself unless given.
    pub(super) node_port: Option<u16>,
    /// The user that keeps the accounts.
    pub(super) auditor: Option<&'a str>,
    /// The model's folder; the demonstration's unless given.
    pub(super) model: Option<&'a Path>,
    /// A command that ends in the daemon's own.
    pub(super) under: Option<Command>,
}

impl Setting<'_> {
    fn model(&self) -> PathBuf {
        self.model.map_or_else(demo_model, Path::to_path_buf)
    }
}

impl Stage {
    /// At a mosquitto that runs already; the daemon is ready when this returns.
    pub(super) async fn at(mosquitto: Mosquitto, setting: Setting<'_>) -> Result<Self> {
        let port = mosquitto.port;
        let watch = Watch::start(port, setting.auditor).await?;
        let mut stage = Self::new(port, watch, &setting)?;
        stage.mosquitto = Some(mosquitto);
        let command = setting.under.unwrap_or_else(|| Command::new(crate::phi_edge()));
        stage.start_under(command, folder()?);
        stage.ready().await?;
        Ok(stage)
    }

    /// At one of the brokers, without users.
    pub(super) async fn with(broker: Broker, lines: &str, mut setting: Setting<'_>) -> Result<Self> {
        if broker == Broker::Mosquitto {
            let lines = format!("{ANONYMOUS}{KEEPS_ALL}{lines}");
            let mosquitto = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
            return Self::at(mosquitto, setting).await;
        }
        let port = free_port();
        let mut settings = setting.settings.to_vec();
        settings.push("mqtt.embedded=true".to_owned());
        settings.push(format!("mqtt.embedded_listen=127.0.0.1:{port}"));
        setting.settings = &settings;
        // The broker comes with the daemon, and what keeps the accounts after it.
        let folder = folder()?;
        let rules = rules(setting.rules)?;
        let given: Vec<String> = arguments(&settings, rules.path());
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let daemon = Daemon::start_in(folder, port, &setting.model(), &given);
        let deadline = Instant::now() + TIMEOUT;
        let watch = loop {
            match Watch::start(port, None).await {
                Ok(watch) => break watch,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut stage = Self::new(port, watch, &setting)?;
        stage.rules = rules;
        stage.daemon = Some(daemon);
        stage.ready().await?;
        Ok(stage)
    }

    fn new(port: u16, watch: Watch, setting: &Setting<'_>) -> Result<Self> {
        Ok(Self {
            port,
            mosquitto: None,
            daemon: None,
            watch,
            rules: rules(setting.rules)?,
            node_port: setting.node_port.unwrap_or(port),
            settings: setting.settings.to_vec(),
            model: setting.model(),
            peak: 0,
        })
    }

    /// Starts the daemon on this folder.
    pub(super) fn start(&mut self, folder: TempDir) {
        self.start_under(Command::new(crate::phi_edge()), folder);
    }

    fn start_under(&mut self, command: Command, folder: TempDir) {
        let settings = arguments(&self.settings, self.rules.path());
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start_under(
            command,
            folder,
            self.node_port,
            &self.model,
            &settings,
        ));
    }

    /// Waits until the daemon says that it is ready.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let waited = self
            .watch
            .until("a ready daemon", TIMEOUT, |seen| seen.state() == "ready")
            .await;
        match waited {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error}; the daemon's log ends:\n{}", self.log_tail(20)),
        }
    }

    /// Waits until the accounts are as wanted, at most as long as the daemon lives.
    ///
    /// # Errors
    /// They are not by then.
    pub(super) async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&Seen) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let slice = deadline.saturating_duration_since(Instant::now()).min(SLICE);
            let waited = self.watch.until(what, slice, &mut holds).await;
            if waited.is_ok() || Instant::now() >= deadline || self.exited().is_some() {
                return waited;
            }
        }
    }

    /// Ends the daemon as a power cut does; what it stored is in the folder.
    pub(super) fn kill(&mut self) -> Result<TempDir> {
        self.measure();
        let daemon = self.daemon.take().context("no daemon runs")?;
        Ok(daemon.kill())
    }

    /// The exit code of a daemon that has ended by itself; killed by a signal: -1.
    pub(super) fn exited(&mut self) -> Option<i32> {
        let daemon = self.daemon.as_mut()?;
        if daemon.runs() {
            return None;
        }
        Some(daemon.wait().code().unwrap_or(-1))
    }

    /// Notes the daemon's peak memory, while there is a daemon.
    pub(super) fn measure(&mut self) -> u64 {
        let peak = self.daemon.as_ref().and_then(|daemon| peak_memory(daemon.id()));
        self.peak = self.peak.max(peak.unwrap_or(0));
        self.peak
    }

    /// Forgets the peak so far and returns the resident memory of the daemon, in bytes.
    pub(super) fn reset_peak(&mut self) -> Option<u64> {
        let id = self.daemon.as_ref()?.id();
        // Sets the peak of the process to what it has now.
        std::fs::write(format!("/proc/{id}/clear_refs"), "5").ok()?;
        self.peak = peak_memory(id)?;
        Some(self.peak)
    }

    /// The number of lines of the daemon's log that hold `text`.
    pub(super) fn log_lines(&self, text: &str) -> usize {
        let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// What holds after every scenario: the process is the same one, and no one else's content is on its topics.
    pub(super) fn conclude(&mut self, report: &mut Report) {
        report.peak = self.measure();
        if let Some(code) = self.exited() {
            report.exits += 1;
            let log = self.log_tail(2).replace('\n', " / ");
            report.require(false, || format!("the process ended with {code}: {log}"));
        }
        let seen = self.watch.seen();
        report.dead_letters = seen.dead.len() as u64;
        report.require(seen.foreign.is_empty(), || {
            let first = seen.foreign.first();
            format!("{} foreign messages, the first on {first:?}", seen.foreign.len())
        });
        report.require(seen.differing.is_empty(), || {
            format!("copies differ: {:?}", seen.differing.first())
        });
    }

    /// What a second process is given that is started by hand with the same configuration.
    pub(super) fn command_of_second(&self) -> Result<Command> {
        let daemon = self.daemon.as_ref().context("no daemon runs")?;
        let mut command = Command::new(crate::phi_edge());
        command.arg("run");
        let own = [
            format!("mqtt.port={}", self.node_port),
            format!("node.name={NODE}"),
            "log.level=info".to_owned(),
            "runtime.provider=cpu".to_owned(),
            format!("model.path={}", self.model.display()),
            format!("store.path={}", daemon.folder.path().display()),
        ];
        for setting in own.iter().chain(&arguments(&self.settings, self.rules.path())) {
            command.args(["--set", setting]);
        }
        Ok(command)
    }

    pub(super) fn write_rule(&self, name: &str, text: &str) -> Result<()> {
        // In one step: a reload must not read half a file.
        let file = self.rules.path().join(format!("{name}.toml"));
        let draft = self.rules.path().join(format!("{name}.draft"));
        std::fs::write(&draft, text)?;
        Ok(std::fs::rename(draft, file)?)
    }

    pub(super) fn remove_rule(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(
            self.rules.path().join(format!("{name}.toml")),
        )?)
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn folder() -> Result<TempDir> {
    // Beside the build: a folder in memory would have no disk to wait for.
    let program = std::env::current_exe()?;
    Ok(tempfile::tempdir_in(
        program.parent().context("a program's folder")?,
    )?)
}

fn rules(rules: &[(&str, String)]) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for (name, text) in rules {
        std::fs::write(folder.path().join(format!("{name}.toml")), text)?;
    }
    Ok(folder)
}

fn arguments(settings: &[String], rules: &Path) -> Vec<String> {
    let mut all = vec![
        "mqtt.host=127.0.0.1".to_owned(),
        "log.level=info".to_owned(),
        format!("node.rules_dir={}", rules.display()),
    ];
    all.extend_from_slice(settings);
    all
}

/// A process's peak of resident memory; Linux only.
fn peak_memory(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// A mosquitto with the access rules that come along, these users (whose passwords are their names), and what an operator
/// adds for a plant's topics.
pub(super) fn guarded(users: &[&str], lines: &str) -> Result<Mosquitto> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/acl/mosquitto.acl");
    let rules = std::fs::read_to_string(&shipped).context("the access rules")?;
    let added = format!(
        "\nuser phi-edge\ntopic read plant/#\ntopic write out/#\n\nuser plant\ntopic write plant/#\n\nuser {AUDITOR}\ntopic read #\n"
    );
    let base = "allow_anonymous false\npassword_file {folder}/users\nacl_file {folder}/acl\n";
    let mut made = Ok(());
    let broker = Mosquitto::with(&format!("{base}{KEEPS_ALL}{lines}"), |folder| {
        made = prepare(folder, &format!("{rules}{added}"), users);
    });
    made?;
    broker.context("mosquitto is not installed")
}

fn prepare(folder: &Path, rules: &str, users: &[&str]) -> Result<()> {
    std::fs::write(folder.join("acl"), rules)?;
    std::fs::write(folder.join("users"), "")?;
    for user in users {
        let status = Command::new("mosquitto_passwd")
            .arg("-b")
            .arg(folder.join("users"))
            .args([user, user])
            .status()?;
        if !status.success() {
            bail!("mosquitto_passwd fails: {status}");
        }
    }
    #[cfg(unix)]
    for file in ["acl", "users"] {
        // mosquitto requires that only its user can read both.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.join(file), mode)?;
    }
    Ok(())
}
