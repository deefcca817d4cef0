//! The thermal and battery governor: the share of the time in which the engine computes.

use phi_edge_config::Pace;
use phi_edge_service::Throttle;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::sysfs::Sysfs;

/// Degrees Celsius below the limit at which the share rises again.
const COOL_MARGIN: f64 = 3.0;
/// The factor by which a reading above the limit lowers the share; a cool reading raises it by the inverse.
const SHARE_FACTOR: f64 = 0.8;

/// The state of the throttle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ThrottleState {
    /// The share of the time in which the engine computes, in percent.
    pub(crate) share: u32,
    /// The reason for a share below 100.
    pub(crate) reason: Option<ThrottleReason>,
}

impl Default for ThrottleState {
    fn default() -> Self {
        Self {
            share: 100,
            reason: None,
        }
    }
}

/// The reason why the engine is throttled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThrottleReason {
    Heat,
    Battery,
}

impl ThrottleReason {
    /// Every reason, for gauges.
    pub(crate) const ALL: [Self; 2] = [Self::Heat, Self::Battery];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Heat => "heat",
            Self::Battery => "battery",
        }
    }
}

/// Reads temperature and battery at an interval and sets `throttle`, until it is aborted. Returns at once if the
/// configuration limits nothing.
pub(crate) async fn govern(config: Pace, throttle: Throttle, state: watch::Sender<ThrottleState>) {
    if config.max_temperature.is_none() && config.battery_share >= 100 {
        return;
    }
    let sysfs = Sysfs::at(&config.sysfs);
    if config.max_temperature.is_some() && hottest(&config, &sysfs.temperatures()).is_none() {
        tracing::warn!(
            sysfs = %config.sysfs.display(),
            "runtime.pace.max_temperature has no effect: no thermal zone that counts has a reading"
        );
    }
    let mut ticks = interval(config.every.get());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut governor = Governor::new(config);
    loop {
        ticks.tick().await;
        let hottest = hottest(&governor.config, &sysfs.temperatures());
        let next = governor.update(hottest, sysfs.is_on_battery());
        throttle.set(f64::from(next.share) / 100.0);
        let before = state.send_replace(next);
        if before.reason != next.reason {
            if let Some(reason) = next.reason {
                tracing::warn!(
                    reason = reason.as_str(),
                    celsius = hottest,
                    share = next.share,
                    "the engine is throttled; answers take longer (runtime.pace)"
                );
            } else {
                tracing::info!(celsius = hottest, "the engine is no longer throttled");
            }
        }
    }
}

fn hottest(config: &Pace, readings: &[(String, f64)]) -> Option<f64> {
    let counts = |name: &String| config.zones.as_ref().is_none_or(|zones| zones.contains(name));
    let counted = readings.iter().filter(|(name, _)| counts(name));
    counted.map(|(_, celsius)| *celsius).max_by(f64::total_cmp)
}

/// The controller of the share, from one reading to the next.
struct Governor {
    config: Pace,
    /// The share that the temperature allows, from `least_share` to 1.
    cool_share: f64,
}

impl Governor {
    fn new(config: Pace) -> Self {
        Self {
            config,
            cool_share: 1.0,
        }
    }

    fn update(&mut self, hottest: Option<f64>, on_battery: bool) -> ThrottleState {
        if let (Some(limit), Some(celsius)) = (self.config.max_temperature, hottest) {
            let limit = f64::from(limit);
            if celsius > limit {
                let least = f64::from(self.config.least_share) / 100.0;
                self.cool_share = (self.cool_share * SHARE_FACTOR).max(least);
            } else if celsius < limit - COOL_MARGIN {
                self.cool_share = (self.cool_share / SHARE_FACTOR).min(1.0);
            }
        } else {
            // A zone without readings must not keep the engine throttled.
            self.cool_share = 1.0;
        }
        let (heat, battery) = (percent(self.cool_share), self.config.battery_share);
        if on_battery && battery <= heat && battery < 100 {
            ThrottleState {
                share: battery,
                reason: Some(ThrottleReason::Battery),
            }
        } else {
            ThrottleState {
                share: heat,
                reason: (heat < 100).then_some(ThrottleReason::Heat),
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and 100"
)]
fn percent(share: f64) -> u32 {
    (share * 100.0).round().clamp(1.0, 100.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn governor(settings: &[(&str, &str)]) -> Governor {
        let flag = |(key, value): &(&str, &str)| (format!("runtime.pace.{key}"), (*value).to_owned());
        let options = phi_edge_config::LoadOptions {
            flags: settings.iter().map(flag).collect(),
            ..phi_edge_config::LoadOptions::default()
        };
        let loaded = phi_edge_config::load(&options).expect("a configuration");
        Governor::new(loaded.config.runtime.pace)
    }

    #[test]
    fn heat_slows_down_to_the_least_share_and_coolness_gives_it_back() {
        let mut governor = governor(&[("max_temperature", "80"), ("least_share", "40")]);
        assert_eq!(
            governor.update(Some(80.0), false),
            ThrottleState::default(),
            "not above"
        );
        let shares: Vec<u32> = (0..6).map(|_| governor.update(Some(81.0), false).share).collect();
        assert_eq!(shares, [80, 64, 51, 41, 40, 40]);
        let steady = governor.update(Some(78.0), false);
        assert_eq!(
            (steady.share, steady.reason),
            (40, Some(ThrottleReason::Heat)),
            "neither hot nor cool"
        );
        let shares: Vec<u32> = (0..6).map(|_| governor.update(Some(70.0), false).share).collect();
        assert_eq!(shares, [50, 63, 78, 98, 100, 100]);
        assert_eq!(governor.update(Some(70.0), false), ThrottleState::default());
    }

    #[test]
    fn a_zone_that_falls_silent_keeps_nothing_slow() {
        let mut governor = governor(&[("max_temperature", "80")]);
        assert_eq!(governor.update(Some(99.0), false).share, 80);
        assert_eq!(governor.update(None, false), ThrottleState::default());
    }

    #[test]
    fn the_smaller_share_of_heat_and_battery_counts() {
        let mut governor = governor(&[("max_temperature", "80"), ("battery_share", "70")]);
        let on_battery = governor.update(Some(60.0), true);
        assert_eq!(
            (on_battery.share, on_battery.reason),
            (70, Some(ThrottleReason::Battery))
        );
        governor.update(Some(90.0), true);
        let both = governor.update(Some(90.0), true);
        assert_eq!((both.share, both.reason), (64, Some(ThrottleReason::Heat)));
        assert_eq!(governor.update(Some(78.0), false).share, 64, "plugged in");
    }

    #[test]
    fn only_zones_that_count_are_looked_at() {
        let config = governor(&[("zones", "cpu, gpu")]).config;
        let readings = [("cpu", 60.0), ("gpu", 70.0), ("wifi", 90.0)];
        let readings = readings.map(|(name, celsius)| (name.to_owned(), celsius));
        assert_eq!(hottest(&config, &readings), Some(70.0));
        assert_eq!(hottest(&config, &readings[2..]), None);
    }
}
