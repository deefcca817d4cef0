//! Notifications to systemd (sd_notify(3)): readiness, status, stopping and the watchdog.
//!
//! Without a service manager nothing is sent.

use std::time::Duration;

use phi_edge_config::Limits;
use phi_edge_mqtt::{LinkLiveness, LinkState};
use phi_edge_service::{Beat, EnginePulse};
use phi_edge_wire::{State, Status};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::health::refusal;

/// The time in which the broker is to answer the subscription; afterwards the service counts as ready without it.
const SUBSCRIPTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The time of a shutdown beyond the grace for running answers: for the last replies and the disconnect.
const SHUTDOWN_ALLOWANCE: Duration = Duration::from_secs(30);

/// The state that the notifications are made from.
pub(crate) struct NotifierInputs {
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) liveness: LinkLiveness,
    pub(crate) engine: EnginePulse,
    /// For `drain_grace`, which a reload may change.
    pub(crate) limits: watch::Receiver<Limits>,
}

/// Sends notifications from the moment that the model is loaded to the end. A broker that is away does not delay
/// readiness for long: the daemon reconnects by itself, and a restart would not help.
pub(crate) async fn run(inputs: NotifierInputs) {
    let watchdog = async {
        match sd_notify::watchdog_enabled() {
            Some(limit) => feed_watchdog(limit, inputs.liveness.clone(), inputs.engine.clone()).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(report_status(&inputs), watchdog);
}

/// Sends a status text, for the time before [`run`].
pub(crate) fn send_status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// The state of reloading, from [`Reloading::begin`] to the drop.
pub(crate) struct Reloading(());

impl Reloading {
    /// Sends that the configuration is being reloaded.
    pub(crate) fn begin() -> Self {
        let mut messages = vec![NotifyState::Reloading];
        // Asked for by Type=notify-reload, ignored by others.
        messages.extend(NotifyState::monotonic_usec_now().ok());
        send(&messages);
        Self(())
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        send(&[NotifyState::Ready]);
    }
}

async fn report_status(inputs: &NotifierInputs) {
    let (mut status, mut link) = (inputs.status.clone(), inputs.link.clone());
    let mut sent = describe(&status.borrow(), &link.borrow());
    send_status(&sent);
    first_attempt(inputs.liveness.subscribed(), link.clone()).await;
    let mut first = true;
    loop {
        let now = describe(&status.borrow_and_update(), &link.borrow_and_update());
        if first || now != sent {
            let mut messages = vec![NotifyState::Status(&now)];
            if first {
                messages.push(NotifyState::Ready);
            }
            send(&messages);
            first = false;
            sent = now;
        }
        if status.borrow().state == State::Draining {
            // Running answers may take all of their time, whatever TimeoutStopSec= says.
            let grace = inputs.limits.borrow().drain_grace.get();
            let time = (grace + SHUTDOWN_ALLOWANCE).as_micros();
            let extend = NotifyState::ExtendTimeoutUsec(u32::try_from(time).unwrap_or(u32::MAX));
            send(&[NotifyState::Stopping, extend]);
            return;
        }
        tokio::select! {
            Ok(()) = status.changed() => {}
            Ok(()) = link.changed() => {}
            // Both senders are gone: the daemon has ended.
            else => return,
        }
    }
}

/// Waits until the first connection attempt has succeeded or failed.
async fn first_attempt(mut subscribed: watch::Receiver<bool>, mut link: watch::Receiver<LinkState>) {
    let result = async {
        tokio::select! {
            _ = subscribed.wait_for(|subscribed| *subscribed) => {}
            _ = link.wait_for(|state| !matches!(state, LinkState::Connecting | LinkState::Up)) => {}
        }
    };
    if timeout(SUBSCRIPTION_TIMEOUT, result).await.is_err() {
        tracing::warn!("the broker has not answered the subscription yet");
    }
}

fn describe(status: &Status, link: &LinkState) -> String {
    let broker = match link {
        LinkState::Connecting => Some("connecting to the broker".to_owned()),
        LinkState::Down { reason } => Some(format!("no connection to the broker: {reason}")),
        LinkState::Refused { reason } => Some(refusal(reason)),
        LinkState::Up | LinkState::TakenOver | LinkState::Closed => None,
    };
    let state = match status.state {
        State::Starting => "starting",
        State::Ready => "ready",
        State::Degraded => "degraded",
        State::Draining => "draining",
        State::Offline => "offline",
    };
    let model = status.model.as_deref().filter(|_| status.state == State::Ready);
    // The status may say the same.
    let broker = broker.filter(|broker| status.reason.as_ref() != Some(broker));
    let mut text = state.to_owned();
    for detail in [model, status.reason.as_deref(), broker.as_deref()]
        .into_iter()
        .flatten()
    {
        text.push_str("; ");
        // One line: a line break would begin the next message to systemd.
        text.push_str(&detail.replace(['\n', '\r'], " "));
    }
    text
}

/// Feeds the watchdog as long as engine and link make progress. That this task runs proves that the runtime does.
async fn feed_watchdog(limit: Duration, link: LinkLiveness, engine: EnginePulse) {
    let mut watch = StallDetector::new(limit, Instant::now(), engine.read(), link.beats());
    let mut ticks = interval(limit / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match watch.check(Instant::now(), engine.read(), link.beats()) {
            None => send(&[NotifyState::Watchdog]),
            Some(stuck) => tracing::error!(
                part = stuck,
                limit_s = limit.as_secs_f64(),
                "no progress; the watchdog is not fed"
            ),
        }
    }
}

/// The times of the last progress of engine and link.
struct StallDetector {
    /// The time without progress after which a part counts as stuck. It is generous, since one step may be 512 tokens
    /// of a large model on a small machine; systemd waits as long again.
    limit: Duration,
    engine: (Beat, Instant),
    link: (u64, Instant),
}

impl StallDetector {
    fn new(limit: Duration, now: Instant, engine: Beat, link: u64) -> Self {
        Self {
            limit,
            engine: (engine, now),
            link: (link, now),
        }
    }

    /// The part that is stuck, if one is.
    fn check(&mut self, now: Instant, engine: Beat, link: u64) -> Option<&'static str> {
        if !engine.is_stuck_since(self.engine.0) {
            self.engine = (engine, now);
        }
        if link != self.link.0 {
            self.link = (link, now);
        }
        if now - self.engine.1 >= self.limit {
            Some("engine")
        } else if now - self.link.1 >= self.limit {
            Some("link")
        } else {
            None
        }
    }
}

fn send(messages: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(messages) {
        // Without notifications the service looks stuck to systemd, so the fault is logged.
        tracing::warn!(%error, "systemd can't be notified of the service's state");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(2);

    #[test]
    fn a_step_may_take_as_long_as_the_limit() {
        let (pulse, start) = (EnginePulse::default(), Instant::now());
        let mut watch = StallDetector::new(LIMIT, start, pulse.read(), 0);
        let mut link = 0;
        let mut check = |seconds: u64| {
            link += 1;
            watch.check(start + Duration::from_secs(seconds), pulse.read(), link)
        };
        assert_eq!(check(1000), None, "an idle engine");
        pulse.work();
        assert_eq!(check(1010), None);
        assert_eq!(check(1129), None, "a long step");
        assert_eq!(check(1130), Some("engine"), "too long a step");
        pulse.step();
        assert_eq!(check(1140), None, "it has ended after all");
        for chunk in 0..20 {
            pulse.step();
            assert_eq!(check(1240 + chunk * 100), None, "a long prompt, chunk by chunk");
        }
        pulse.rest();
        assert_eq!(check(9000), None);
    }

    #[test]
    fn a_link_that_does_not_respond_is_named() {
        let (pulse, start) = (EnginePulse::default(), Instant::now());
        let mut watch = StallDetector::new(LIMIT, start, pulse.read(), 7);
        let mut check =
            |seconds, ticks| watch.check(start + Duration::from_secs(seconds), pulse.read(), ticks);
        assert_eq!(check(119, 7), None);
        assert_eq!(check(120, 7), Some("link"));
        assert_eq!(check(121, 8), None);
    }

    #[test]
    fn the_status_is_one_line() {
        let status = Status {
            model: Some("phi".into()),
            ..Status::new(State::Ready, "")
        };
        assert_eq!(describe(&status, &LinkState::Up), "ready; phi");
        let down = LinkState::Down {
            reason: "refused\nMAINPID=1".into(),
        };
        assert_eq!(
            describe(&status, &down),
            "ready; phi; no connection to the broker: refused MAINPID=1"
        );
    }
}
