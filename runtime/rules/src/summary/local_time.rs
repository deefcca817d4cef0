//! Moments in local time.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

use crate::Time;

/// The moment in `zone`; `None` beyond the years of the calendar.
pub(super) fn local_time(time: Time, zone: &TimeZone) -> Option<ZonedDateTime> {
    Timestamp::from_millisecond(time.0)
        .ok()
        .map(|timestamp| timestamp.to_zoned_datetime(zone.clone()))
}

/// The moment in RFC 3339, in `zone`; milliseconds are written unless they are 0.
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
