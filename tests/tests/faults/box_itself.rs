//! What happens to the machine: its disk, its files, its clock.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phi_edge_tests::{phi_edge, question, skip};

use super::support::{Copies, Stage, rounds};

/// SQLite's page, in bytes.
const PAGE: usize = 4096;

/// A small disk, gone with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(folder: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(folder)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            // Needs root and the right to mount.
            skip("no tmpfs can be mounted: the full disk is not tested");
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    /// Writes until there is no room.
    fn fill(&self) {
        let filler = self.0.join("filler");
        for size in [1 << 16, 1 << 12, 1] {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&filler)
                .unwrap();
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon may still hold its files.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn the_disk_is_full() {
    rounds("disk full", Copies::Forbidden, async || {
        let mount = tempfile::tempdir().unwrap();
        let disk = SmallDisk::on(mount.path())?;
        let path = format!("store.path={}", mount.path().display());
        let mut stage = Stage::new(&["runtime.slots=1", &path]).await?;
        for n in 0..3 {
            stage.field.ask(&format!("before{n}"), question(200)).await;
        }
        let moment = stage.chance.ms(200);
        stage.field.listen(moment).await;
        disk.fill();
        // Something has to be written for the fault to show.
        let mut n = 0;
        while stage.field.state() != "degraded" {
            stage.field.ask(&format!("meanwhile{n}"), question(8)).await;
            stage.field.listen(Duration::from_millis(100)).await;
            n += 1;
        }
        stage.field.ask("refused", question(8)).await;
        stage
            .field
            .listen_until("a refusal", |field| field.has("refused"))
            .await;
        let refusal = stage.field.outcome("refused");
        assert_eq!(refusal["error"]["code"], "unavailable", "{refusal}");
        disk.make_room();
        stage
            .field
            .listen_until("recovery", |field| field.state() == "ready")
            .await;
        stage.field.ask("after", question(8)).await;
        let tally = stage.field.settle().await;
        assert!(stage.field.outcome("after")["text"].is_string());
        stage.daemon = None;
        Some(tally)
    })
    .await;
}

#[tokio::test]
async fn the_store_is_damaged_while_it_rests() {
    rounds("store file damaged", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        stage.field.ask("before", question(20)).await;
        stage.field.settle().await;
        // In good order, so that all is in the file and nothing in its journal.
        stage.daemon().signal("TERM");
        assert!(stage.daemon().wait().success());
        let folder = stage.daemon.take().unwrap().kill();
        let file = folder.path().join("phi-edge.db");
        let mut bytes = std::fs::read(&file).unwrap();
        let pages = bytes.len() / PAGE;
        // The first page is the file's head: without it there is no database at all.
        let page = stage.chance.below(pages as u64) as usize;
        bytes[page * PAGE..(page + 1) * PAGE].fill(0x55);
        std::fs::write(&file, bytes).unwrap();
        stage.start(folder);
        stage.ready().await;
        stage.field.ask("after", question(20)).await;
        let tally = stage.field.settle().await;
        let folder = stage.daemon().folder.path().to_owned();
        let aside = std::fs::read_dir(folder)
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("damaged"));
        assert!(aside, "the damaged file is kept");
        Some(tally)
    })
    .await;
}

#[tokio::test]
async fn the_clock_is_set() {
    rounds("clock set back and forth an hour", Copies::Allowed, async || {
        let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
        if !Path::new(library).exists() {
            skip("libfaketime is not installed: the clock is not set");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let clock = folder.path().join("clock");
        std::fs::write(&clock, "+0").unwrap();
        let mut stage = Stage::without_daemon("", &["runtime.slots=1"]).await?;
        let under = || {
            let mut command = Command::new("env");
            command
                .arg(format!("LD_PRELOAD={library}"))
                .arg(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()))
                .args(["FAKETIME_CACHE_DURATION=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"])
                .args(["DONT_FAKE_MONOTONIC=1", "FAKETIME_NO_CACHE=1"])
                .arg(phi_edge());
            command
        };
        stage.start_under(under(), tempfile::tempdir().unwrap());
        stage.ready().await;
        for (n, offset) in ["+3600", "-3600", "+0"].iter().enumerate() {
            for m in 0..3 {
                let mut body = question(30);
                body["deadline_ms"] = serde_json::json!(300_000);
                stage.field.ask(&format!("q{n}-{m}"), body).await;
            }
            let moment = stage.chance.ms(50);
            stage.field.listen(moment).await;
            std::fs::write(&clock, offset).unwrap();
            if stage.chance.below(2) == 0 {
                let folder = stage.daemon.take().unwrap().kill();
                stage.start_under(under(), folder);
                stage.ready().await;
            }
        }
        let tally = stage.field.settle().await;
        assert_eq!(tally.errors, 0, "nothing expires for a clock that was set");
        Some(tally)
    })
    .await;
}
