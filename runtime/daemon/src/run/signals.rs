//! What stops the daemon or has it read its configuration again: signals of the system, and controls of a service manager.
//!
//! On Unix SIGTERM and SIGINT stop it and SIGHUP reloads. On Windows Ctrl-C, Ctrl-Break, the end of the console and a
//! shutdown stop it, and the service manager's controls do both.

use std::io;

use tokio::sync::mpsc;

#[cfg(unix)]
use super::unix_signals::{Hangups as SystemReloads, TerminationSignals as SystemStops};
#[cfg(windows)]
use super::windows_signals::{ConsoleEvents as SystemStops, NoReloads as SystemReloads};
use crate::exit::Fault;

/// The controls that a service manager sends by calls in place of signals.
#[derive(Default)]
pub(crate) struct ServiceControls {
    pub(crate) stops: ControlReceiver,
    pub(crate) reloads: ControlReceiver,
}

/// The receiver of one kind of control; the default one receives none.
#[derive(Default)]
pub(crate) struct ControlReceiver(Option<mpsc::Receiver<()>>);

/// What stops the daemon.
pub(crate) struct StopSignals {
    system: SystemStops,
    controls: ControlReceiver,
}

/// What reloads the configuration.
pub(crate) struct ReloadSignals {
    system: SystemReloads,
    controls: ControlReceiver,
}

impl ControlReceiver {
    #[cfg(windows)]
    pub(crate) fn new(controls: mpsc::Receiver<()>) -> Self {
        Self(Some(controls))
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        let received = match &mut self.0 {
            Some(controls) => controls.recv().await,
            None => None,
        };
        if received.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

impl StopSignals {
    /// Takes over the signals, which no longer end the process by themselves.
    pub(crate) fn new(controls: ControlReceiver) -> Result<Self, Fault> {
        let system = SystemStops::new().map_err(|error| unavailable(&error))?;
        Ok(Self { system, controls })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            () = self.system.next() => {}
            () = self.controls.next() => {}
        }
    }
}

impl ReloadSignals {
    /// Takes over the signal, which no longer ends the process by itself.
    pub(crate) fn new(controls: ControlReceiver) -> Result<Self, Fault> {
        let system = SystemReloads::new().map_err(|error| unavailable(&error))?;
        Ok(Self { system, controls })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            () = self.system.next() => {}
            () = self.controls.next() => {}
        }
    }
}

fn unavailable(error: &io::Error) -> Fault {
    Fault::failed(format!("signals can't be handled: {error}"))
}
