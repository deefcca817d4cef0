//! The detection of a takeover of this node's session, for brokers that do not tell of it.
//!
//! mosquitto 2.0 closes the connection of a client whose session is taken over without the DISCONNECT of MQTT 5, section
//! 3.1.4. To reconnect would take the session back, and the other client would do the same. A load balancer, a tunnel or a
//! firewall closes connections in the same way. So after a closed connection a probe, a second connection of another client
//! id, listens to the node's status while this node goes on reconnecting: another node publishes its status each time that it
//! takes the session back. [`Evidence`] decides what of that is a takeover; a series of closed connections alone never is.

mod evidence;
mod probe;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::MqttOptions;
use tokio::time::{Instant, sleep_until};

use super::LinkConfig;
use super::counters::Counters;
use crate::tls::TlsError;
use evidence::Evidence;
use probe::{Probe, Sighting};

/// The time within which another node publishes its status, for which it subscribes first.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// The same time where a message may as well have ended the connection, and others wait for its trial.
const STATUS_TIMEOUT_IN_TRIALS: Duration = Duration::from_millis(300);
/// The time within which the probe subscribes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Deaths in a row after which no status came; after so many the detector waits no longer than the backoff.
const MAX_FRUITLESS_WAITS: u32 = 5;
/// The age below which a connection was a short one.
pub(crate) const SHORT_CONNECTION: Duration = Duration::from_secs(10);
/// The age of a connection that ends a series of deaths: longer than any backoff of another node.
const SERIES_END_AGE: Duration = Duration::from_mins(2);
/// The number of short connections in a row between two warnings.
const SHORT_CONNECTIONS_PER_WARNING: u32 = 5;

/// Makes the options of a probe's connection.
type ProbeOptions = Box<dyn Fn() -> Result<MqttOptions, TlsError> + Send + Sync>;

/// The detector of takeovers, which the poller tells of each connection and its end.
pub(crate) struct TakeoverDetector {
    probe_options: ProbeOptions,
    status_topic: String,
    counters: Arc<Counters>,
    evidence: Evidence,
    probe: Option<Probe>,
    fruitless_waits: u32,
}

impl TakeoverDetector {
    pub(crate) fn new(config: &LinkConfig, boot_id: &str, counters: Arc<Counters>) -> Self {
        let (of_probe, own) = (config.clone(), boot_id.to_owned());
        Self {
            probe_options: Box::new(move || probe::options(&of_probe, &own)),
            status_topic: config.topics.status(),
            counters,
            evidence: Evidence::new(boot_id),
            probe: None,
            fruitless_waits: 0,
        }
    }

    /// Notes that a connection is made.
    pub(crate) fn connected(&mut self) {
        self.evidence.connected(Instant::now());
    }

    /// Watches a connection that is up since `since`: takes the probe's sightings, and ends a series of deaths once the
    /// connection is old enough. Never resolves. Cancel safe.
    pub(crate) async fn watch(&mut self, since: Instant) -> Infallible {
        loop {
            let short = *self.counters.short_connections.borrow() > 0;
            let due = match (short, &self.probe) {
                (true, _) => Some(since + SHORT_CONNECTION),
                (false, Some(_)) => Some(since + SERIES_END_AGE),
                (false, None) => None,
            };
            let heard = self.next_sighting(due).await;
            match heard {
                Some(sighting) => self.evidence.seen(&sighting.boot_id, sighting.at),
                None if short => self.reset_short_connections(),
                None => {
                    self.probe = None;
                    self.fruitless_waits = 0;
                    self.evidence.clear();
                }
            }
        }
    }

    /// Notes that a connection ended, whatever the reason, after `lived`; `None` for a failed attempt.
    pub(crate) fn ended(&mut self, lived: Option<Duration>) {
        self.evidence.lost();
        match lived {
            Some(lived) if lived < SHORT_CONNECTION => {
                let mut connections = 0;
                self.counters.short_connections.send_modify(|short| {
                    *short = short.saturating_add(1);
                    connections = *short;
                });
                if connections.is_multiple_of(SHORT_CONNECTIONS_PER_WARNING) {
                    tracing::warn!(
                        connections,
                        "connections to the broker end again and again after a short time; something on the way closes \
                         them, or another client uses this node's client id"
                    );
                }
            }
            Some(_) => self.reset_short_connections(),
            None => {}
        }
    }

    /// Whether the session was taken over, after the other side closed a connection that had lived for `lived`. Takes at least
    /// `wait`, the time until the next attempt, unless it was. `in_trials`: a message may as well be the reason.
    pub(crate) async fn is_taken_over(
        &mut self,
        lived: Option<Duration>,
        wait: Duration,
        in_trials: bool,
    ) -> bool {
        let now = Instant::now();
        let resume = now + wait;
        let Some(lived) = lived else {
            // There was no session to be taken.
            sleep_until(resume).await;
            return false;
        };
        self.probe.take_if(|probe| probe.has_ended());
        let watched = self.probe.as_ref().is_some_and(Probe::is_subscribed);
        self.evidence.died(now, lived, watched);
        if watched {
            let timeout = if in_trials {
                STATUS_TIMEOUT_IN_TRIALS
            } else {
                STATUS_TIMEOUT
            };
            return self.is_confirmed(now + timeout, resume).await;
        }
        if self.probe.is_none() {
            match (self.probe_options)() {
                Ok(options) => self.probe = Some(Probe::open(options, self.status_topic.clone())),
                Err(error) => tracing::debug!(%error, "the probe can't be set up"),
            }
        }
        // The probe must be subscribed before the next death.
        if let Some(probe) = &mut self.probe {
            probe.subscribed(PROBE_TIMEOUT).await;
        }
        sleep_until(resume).await;
        false
    }

    /// Takes sightings until `resume`, and until `late` while one may still come.
    async fn is_confirmed(&mut self, late: Instant, resume: Instant) -> bool {
        let patient = self.fruitless_waits < MAX_FRUITLESS_WAITS;
        loop {
            if self.evidence.is_conclusive() {
                return true;
            }
            let current = self.evidence.is_current();
            let until = if patient && !current {
                resume.max(late)
            } else {
                resume
            };
            if let Some(sighting) = self.next_sighting(Some(until)).await {
                self.evidence.seen(&sighting.boot_id, sighting.at);
            } else {
                self.fruitless_waits = if current { 0 } else { self.fruitless_waits + 1 };
                return false;
            }
        }
    }

    /// Returns the probe's next sighting; `None` if there is none before `until`.
    async fn next_sighting(&mut self, until: Option<Instant>) -> Option<Sighting> {
        let heard = async {
            match &mut self.probe {
                Some(probe) => probe.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            sighting = heard => Some(sighting),
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => None,
        }
    }

    fn reset_short_connections(&self) {
        self.counters
            .short_connections
            .send_if_modified(|short| std::mem::take(short) > 0);
    }
}

#[cfg(test)]
mod tests;
