//! Finds out whether another client has this node's session, at a broker that does not say so.
//!
//! mosquitto 2.0 closes the connection of a client whose session is taken over without the DISCONNECT of MQTT 5, section
//! 3.1.4. To connect again would take the session back, and the other would do the same. A load balancer, a tunnel or a
//! firewall closes connections just so. So a connection that was closed opens a probe, a second one of another name, which
//! listens to the node's status while this node goes on connecting: the other node publishes its own each time that it
//! takes the session back. [`Evidence`] says what of that is a takeover; a series of closed connections never is.

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

/// How long the other node may take to publish its status: it subscribes first.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// The same where a message is as likely to have ended the connection: others wait for it to be tried.
const STATUS_TIMEOUT_IN_TRIALS: Duration = Duration::from_millis(300);
/// How long the probe may take to subscribe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Deaths in a row that a status was waited for in vain; after them the usual backoff is time enough.
const MAX_FRUITLESS_WAITS: u32 = 5;
/// A connection that lived shorter than this was short.
pub(crate) const SHORT_CONNECTION: Duration = Duration::from_secs(10);
/// A connection that lived as long ends a series of deaths: longer than any wait of another node between its attempts.
const SERIES_END_AGE: Duration = Duration::from_mins(2);
/// Short connections in a row between two lines of the log.
const SHORT_CONNECTIONS_PER_WARNING: u32 = 5;

/// Makes the options of a probe's connection.
type ProbeOptions = Box<dyn Fn() -> Result<MqttOptions, TlsError> + Send + Sync>;

/// What is known of the deaths of the connection.
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

    /// The connection is made.
    pub(crate) fn connected(&mut self) {
        self.evidence.connected(Instant::now());
    }

    /// Attends to a connection that is up since `since`: hears what the probe hears, and ends a series of deaths once the
    /// connection has lived long. Never ends; nothing is lost if it is started again.
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

    /// Counts a connection that ended, for whatever reason. It lived so long; none if there was no connection.
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

    /// Whether a connection that lived so long and was closed by the other side means that the session is another's. Takes
    /// at least `wait`, the time until the next attempt, unless it does. `in_trials`: a message is as likely to be the reason.
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
        // It must hear what the next death brings.
        if let Some(probe) = &mut self.probe {
            probe.subscribed(PROBE_TIMEOUT).await;
        }
        sleep_until(resume).await;
        false
    }

    /// Listens to statuses until `resume`, and until `late` where one may still come.
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

    /// The next status that the probe hears; none if there is none until then.
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
