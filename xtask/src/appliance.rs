//! `cargo xtask appliance-test`: the package on a Debian that is booted with systemd, from its installation to its purge.
//!
//! The Debian is made by debootstrap and runs in QEMU: a kernel of its own, so that limits, system call filters and the
//! watchdog are the real ones whatever this machine allows. xtask/appliance/guest.sh is what happens inside; the first
//! commands there are those that the README tells a newcomer.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::library::Platform;
use crate::package::{self, Plan};
use crate::process::{root, run, target, works};

const SUITE: &str = "bookworm";
/// What the guest needs beside a minimal Debian; the kernel of clouds is small and knows virtio.
const GUEST: &str = "systemd,systemd-sysv,udev,dbus,kmod,procps,initramfs-tools,linux-image-cloud-amd64,libgcc-s1,\
                     libstdc++6,mosquitto,mosquitto-clients";
const HOSTS: &str = "127.0.0.1 localhost\n127.0.1.1 appliance\n::1 localhost ip6-localhost ip6-loopback\n";
/// Emulated processors are slow, and the watchdog waits for up to four minutes.
const TEST_TIMEOUT: Duration = Duration::from_mins(40);

/// Started by systemd once all is up; the machine goes off with it.
const UNIT: &str = "[Unit]
Description=The appliance test
After=multi-user.target
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=oneshot
ExecStartPre=/bin/mount -o ro /dev/vdb /mnt
WorkingDirectory=-/mnt
ExecStart=/bin/sh /mnt/guest.sh
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
";

#[derive(Args)]
pub(crate) struct ApplianceArgs {
    /// What runs the guest's processors.
    #[arg(long, value_enum, default_value = "tcg")]
    accelerator: Accelerator,
}

/// How QEMU runs a processor.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Accelerator {
    /// In software: works everywhere.
    Tcg,
    /// On the machine's own: faster.
    Kvm,
}

/// Makes two versions of the package and tries them out.
pub(crate) fn test(args: &ApplianceArgs) -> Result<()> {
    for (program, package) in [
        ("debootstrap", "debootstrap"),
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("mke2fs", "e2fsprogs"),
    ] {
        if !works(program, "--version") && !works(program, "-V") {
            bail!("{program} was not found; install {package}");
        }
    }
    let folder = target().join("appliance");
    std::fs::create_dir_all(&folder)?;
    let system = system(&folder)?;
    let payload = payload(&folder)?;
    let mut machine = start(args.accelerator, &folder, &system, &payload)?;
    let transcript = folder.join("transcript.txt");
    let seen = watch(&mut machine, &transcript);
    // It may have powered itself off already.
    let _ = machine.kill();
    let _ = machine.wait();
    seen.with_context(|| {
        format!(
            "the guest's console is in {}",
            folder.join("console.log").display()
        )
    })?;
    println!("The transcript is in {}.", transcript.display());
    Ok(())
}

/// A bootable Debian: its disk, its kernel and what the kernel starts from.
struct System {
    disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Returns the system, made once; a change of what it holds makes it again.
fn system(folder: &Path) -> Result<System> {
    let tree = folder.join(SUITE);
    let disk = folder.join(format!("{SUITE}.img"));
    let stamp = folder.join(format!("{SUITE}.stamp"));
    let recipe = format!("{SUITE}\n{GUEST}\n{HOSTS}\n{UNIT}");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) && disk.is_file() {
        return boot_files(&tree, disk);
    }
    eprintln!("Making a Debian for the guest …");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    // From the mirror that debootstrap itself knows.
    run(Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={GUEST}"), SUITE])
        .arg(&tree)
        .stdout(Stdio::null()))
    .context("debootstrap needs root and a network")?;
    std::fs::write(tree.join("etc/hostname"), "appliance\n")?;
    // As Debian's installer writes it.
    std::fs::write(tree.join("etc/hosts"), HOSTS)?;
    std::fs::write(tree.join("etc/systemd/system/appliance-test.service"), UNIT)?;
    run(Command::new("chroot")
        .arg(&tree)
        .args(["systemctl", "-q", "enable", "appliance-test.service"]))?;
    image(&disk, &tree, "3G")?;
    std::fs::write(&stamp, recipe)?;
    boot_files(&tree, disk)
}

fn boot_files(tree: &Path, disk: PathBuf) -> Result<System> {
    let find = |prefix: &str| -> Result<PathBuf> {
        std::fs::read_dir(tree.join("boot"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            })
            .with_context(|| format!("the guest has no {prefix}"))
    };
    Ok(System {
        disk,
        kernel: find("vmlinuz-")?,
        initrd: find("initrd.img-")?,
    })
}

/// The disk with both packages, the README's commands and the script.
fn payload(folder: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let tree = folder.join("payload");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir_all(&tree)?;
    // The older one under the name that the README has.
    let older = format!("phi-edge_{version}_amd64.deb");
    for (name, version) in [
        (older.as_str(), version.to_owned()),
        ("new.deb", format!("{version}+1")),
    ] {
        let plan = Plan {
            platform: Platform::LinuxX64,
            version,
            rpm: false,
            release: true,
        };
        let made = package::make(&plan)?;
        std::fs::copy(made.first().context("no package was made")?, tree.join(name))?;
    }
    std::fs::copy(root().join("xtask/appliance/guest.sh"), tree.join("guest.sh"))?;
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    std::fs::write(tree.join("newcomer.txt"), newcomer(&readme)?)?;
    let disk = folder.join("payload.img");
    image(&disk, &tree, "256M")?;
    Ok(disk)
}

/// The commands that the README has for the package, one a line.
fn newcomer(readme: &str) -> Result<String> {
    let commands: Vec<&str> = readme
        .lines()
        .skip_while(|line| !line.starts_with("**From the package**"))
        .skip_while(|line| !line.starts_with("    "))
        .take_while(|line| line.starts_with("    "))
        .map(str::trim_start)
        .collect();
    match commands.len() {
        4..=8 => Ok(commands.join("\n") + "\n"),
        count => bail!("the README has {count} commands for a newcomer, not four to eight: {commands:?}"),
    }
}

fn image(disk: &Path, tree: &Path, size: &str) -> Result<()> {
    if disk.exists() {
        std::fs::remove_file(disk)?;
    }
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(tree)
        .arg(disk)
        .arg(size))
}

fn start(
    accelerator: Accelerator,
    folder: &Path,
    system: &System,
    payload: &Path,
) -> Result<std::process::Child> {
    let (accel, cpu) = match accelerator {
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
        Accelerator::Kvm => ("kvm", "host"),
    };
    let drive =
        |disk: &Path, options: &str| format!("file={},if=virtio,format=raw,{options}", disk.display());
    Command::new("qemu-system-x86_64")
        .args(["-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "2048"])
        .args([
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-nic",
            "none",
        ])
        .arg("-kernel")
        .arg(&system.kernel)
        .arg("-initrd")
        .arg(&system.initrd)
        .args(["-append", "root=/dev/vda rw console=ttyS0 quiet"])
        // What the guest writes is thrown away: each test begins with the same disk.
        .args(["-drive", &drive(&system.disk, "snapshot=on")])
        .args(["-drive", &drive(payload, "readonly=on")])
        .args([
            "-serial",
            &format!("file:{}", folder.join("console.log").display()),
        ])
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("QEMU can't be started")
}

/// Shows what the guest says, until it has said how it ended.
fn watch(machine: &mut std::process::Child, transcript: &Path) -> Result<()> {
    let output = machine.stdout.take().context("QEMU has no output")?;
    let (lines_tx, lines) = std::sync::mpsc::sync_channel(1024);
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines_tx.send(line).is_err() {
                break;
            }
        }
    });
    let deadline = std::time::Instant::now() + TEST_TIMEOUT;
    let mut text = String::new();
    let outcome = loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let line = line.trim_end();
                println!("{line}");
                text.push_str(line);
                text.push('\n');
                if line == "DONE" {
                    break Ok(());
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                break Err(anyhow::anyhow!(
                    "the guest has not come to its end in {} minutes",
                    TEST_TIMEOUT.as_secs() / 60
                ));
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                break Err(anyhow::anyhow!("the guest ended without being done"));
            }
        }
    };
    drop(lines);
    let _ = machine.kill();
    let _ = reader.join();
    std::fs::write(transcript, text)?;
    outcome
}
