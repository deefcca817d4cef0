//! The thermal zones as metric series.

use parking_lot::Mutex;
use std::collections::BTreeMap;

/// The last reading of each type of zone.
#[derive(Debug, Default)]
pub(crate) struct Zones(Mutex<BTreeMap<String, f64>>);

impl Zones {
    /// The hottest of these readings for each type: zones of one type would overwrite each other. NaN for a type
    /// without a reading, since a published series can't be removed, and its last value would stay.
    pub(super) fn hottest(&self, readings: Vec<(String, f64)>) -> BTreeMap<String, f64> {
        let mut known = self.0.lock();
        known.values_mut().for_each(|celsius| *celsius = f64::NAN);
        for (zone, celsius) in readings {
            let hottest = known.entry(zone).or_insert(f64::NAN);
            *hottest = hottest.max(celsius);
        }
        known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_series_which_ends_in_nan() {
        let zones = Zones::default();
        let reading = |zone: &str, celsius| (zone.to_owned(), celsius);
        let both = vec![reading("cpu", 71.0), reading("cpu", 54.0), reading("gpu", -3.0)];
        let expected = BTreeMap::from([reading("cpu", 71.0), reading("gpu", -3.0)]);
        assert_eq!(zones.hottest(both), expected);
        let later = zones.hottest(vec![reading("cpu", 54.0)]);
        assert_eq!(later.get("cpu"), Some(&54.0));
        assert!(later.get("gpu").is_some_and(|celsius| celsius.is_nan()));
    }
}
