//! The signals of the daemon: SIGTERM, SIGINT and Ctrl-C stop it, SIGHUP reloads its configuration.

use crate::exit::Fault;

/// The signals that stop the daemon.
pub(crate) struct StopSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

/// The signal that reloads the configuration.
pub(crate) struct ReloadSignals {
    #[cfg(unix)]
    hangup: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl ReloadSignals {
    /// Takes over the signal, which no longer ends the process by itself.
    pub(crate) fn new() -> Result<Self, Fault> {
        use tokio::signal::unix::{SignalKind, signal};
        let hangup = signal(SignalKind::hangup())
            .map_err(|error| Fault::failed(format!("signals can't be handled: {error}")))?;
        Ok(Self { hangup })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        if self.hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
impl ReloadSignals {
    pub(crate) fn new() -> Result<Self, Fault> {
        Ok(Self {})
    }

    pub(crate) async fn next(&mut self) {
        std::future::pending::<()>().await;
    }
}

#[cfg(unix)]
impl StopSignals {
    /// Takes over the signals, which no longer end the process by themselves.
    pub(crate) fn new() -> Result<Self, Fault> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen =
            |kind| signal(kind).map_err(|error| Fault::failed(format!("signals can't be handled: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl StopSignals {
    pub(crate) fn new() -> Result<Self, Fault> {
        Ok(Self {})
    }

    pub(crate) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
