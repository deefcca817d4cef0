//! What the daemon tells the service manager: readiness, status, its end, and that it lives.

#![allow(clippy::unwrap_used, missing_docs)]
#![cfg(unix)]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use phi_edge_tests::{Daemon, Mosquitto, TIMEOUT, demo_model, free_port, has_library, phi_edge};

/// The place of systemd.
struct Manager {
    socket: UnixDatagram,
    /// All that was said so far.
    heard: Vec<String>,
}

impl Manager {
    fn listen(folder: &Path) -> Self {
        let socket = UnixDatagram::bind(folder.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    fn start(port: u16, settings: &[&str]) -> (Self, Daemon) {
        let folder = tempfile::tempdir().unwrap();
        let manager = Self::listen(folder.path());
        let mut command = Command::new(phi_edge());
        command
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env("WATCHDOG_USEC", "2000000")
            .env_remove("WATCHDOG_PID");
        let daemon = Daemon::start_under(command, folder, port, &demo_model(), settings);
        (manager, daemon)
    }

    /// Waits for a line and returns it.
    fn hear(&mut self, what: &str) -> String {
        self.hear_within(what, TIMEOUT)
            .unwrap_or_else(|| panic!("waited in vain for {what}; heard {:?}", self.heard))
    }

    fn hear_within(&mut self, what: &str, time: Duration) -> Option<String> {
        let deadline = Instant::now() + time;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let found = message
                .lines()
                .find(|line| line.contains(what))
                .map(str::to_owned);
            self.heard.extend(message.lines().map(str::to_owned));
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

#[test]
fn the_service_is_ready_once_it_takes_requests_and_says_that_it_stops() {
    let Some(broker) = Mosquitto::start() else { return };
    if !has_library() {
        return;
    }
    let (mut manager, mut daemon) = Manager::start(broker.port, &[]);
    manager.hear("READY=1");
    assert_eq!(manager.heard[0], "STATUS=the model is loading");
    let status = manager
        .heard
        .iter()
        .rfind(|line| line.starts_with("STATUS="))
        .unwrap();
    assert!(status.starts_with("STATUS=ready; "), "{status}");
    manager.hear("WATCHDOG=1");
    manager.hear("WATCHDOG=1");
    daemon.signal("TERM");
    manager.hear("STOPPING=1");
    // Twenty seconds of limits.drain_grace, thirty beyond.
    assert!(manager.heard.contains(&"EXTEND_TIMEOUT_USEC=50000000".to_owned()));
    assert!(daemon.wait().success());
}

#[test]
fn a_broker_that_is_away_keeps_nobody_from_being_ready() {
    if !has_library() {
        return;
    }
    let (mut manager, mut daemon) = Manager::start(free_port(), &[]);
    manager.hear("READY=1");
    let status = manager
        .heard
        .iter()
        .rfind(|line| line.starts_with("STATUS="))
        .unwrap();
    assert!(status.contains("no connection to the broker: "), "{status}");
    // The watchdog is fed all the same.
    manager.hear("WATCHDOG=1");
    manager.hear("WATCHDOG=1");
    daemon.signal("TERM");
    manager.hear("STOPPING=1");
    daemon.wait();
}

#[test]
fn a_process_that_is_held_up_does_not_feed_the_watchdog() {
    if !has_library() {
        return;
    }
    let (mut manager, daemon) = Manager::start(free_port(), &[]);
    manager.hear("WATCHDOG=1");
    daemon.signal("STOP");
    // What was sent before the signal took effect.
    while manager
        .hear_within("WATCHDOG=1", Duration::from_millis(200))
        .is_some()
    {}
    assert_eq!(
        manager.hear_within("WATCHDOG=1", Duration::from_millis(1500)),
        None
    );
    daemon.signal("CONT");
    manager.hear("WATCHDOG=1");
}

#[test]
fn a_reload_is_told_and_ends_nothing() {
    if !has_library() {
        return;
    }
    let (mut manager, mut daemon) = Manager::start(free_port(), &[]);
    manager.hear("READY=1");
    daemon.signal("HUP");
    manager.hear("RELOADING=1");
    manager.hear("READY=1");
    daemon.signal("TERM");
    manager.hear("STOPPING=1");
    assert!(daemon.wait().success());
}
