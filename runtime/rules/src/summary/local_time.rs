//! Moments as people at the wall read them.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

use crate::Time;

/// The moment on the clocks of `zone`; none beyond the years that calendars know.
pub(super) fn local_time(time: Time, zone: &TimeZone) -> Option<ZonedDateTime> {
    Timestamp::from_millisecond(time.0)
        .ok()
        .map(|timestamp| timestamp.to_zoned_datetime(zone.clone()))
}

/// The moment as RFC 3339 has it, in `zone`; milliseconds are shown where there are any.
pub fn rfc3339(time: Time, zone: &TimeZone) -> String {
    local_time(time, zone).map_or_else(
        || time.0.to_string(),
        |zoned| zoned.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_with_offset() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(rfc3339(Time(0), &TimeZone::UTC), "1970-01-01T00:00:00+00:00");
        assert_eq!(rfc3339(Time(1_500), &berlin), "1970-01-01T01:00:01.5+01:00");
        assert_eq!(rfc3339(Time(i64::MAX), &berlin), i64::MAX.to_string());
    }
}
