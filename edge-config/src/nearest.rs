//! The search for the known key that is most similar to an unknown one.

use strsim::{jaro_winkler, normalized_damerau_levenshtein as likeness};

use crate::schema::{KEYS, SECTIONS};

/// The similarity of two keys with the same last part: the right key in the wrong section is a likelier slip than a
/// key that merely looks similar, unless that one differs by a letter or two.
const SAME_LAST_PART_SIMILARITY: f64 = 0.85;

/// The known key or section that is most similar to `unknown`.
pub(crate) fn nearest(unknown: &str) -> &'static str {
    let candidates = KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().copied());
    nearest_of(unknown, candidates).unwrap_or("node.name")
}

/// The known name that is most similar to `unknown`, ignoring case, for a suggestion in a message. Names may have
/// parts separated by dots or slashes (`mqtt.host`, `Europe/Berlin`); `None` only if `known` is empty.
pub fn nearest_of<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let unknown = unknown.to_lowercase();
    let scored = known.map(|candidate| (score(&unknown, &candidate.to_lowercase()), candidate));
    scored
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn score(unknown: &str, candidate: &str) -> f64 {
    let whole = likeness(unknown, candidate);
    let (section, last) = parts(unknown);
    let (candidate_section, candidate_last) = parts(candidate);
    if last == candidate_last {
        // The small addend decides between several keys of one name by the likeness of their sections.
        return whole.max(SAME_LAST_PART_SIMILARITY + whole / 100.0);
    }
    // Edit distance alone takes "hostname" for "username"; a common beginning says more.
    let names = f64::midpoint(likeness(last, candidate_last), jaro_winkler(last, candidate_last));
    let by_parts = 0.4 * likeness(section, candidate_section) + 0.6 * names;
    whole.max(by_parts)
}

fn parts(path: &str) -> (&str, &str) {
    path.rsplit_once(['.', '/']).unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_kind_are_found() {
        let zones = [
            "UTC",
            "Europe/Berlin",
            "Europe/Bern",
            "Asia/Beirut",
            "America/Los_Angeles",
        ];
        let check = |unknown: &str, expected: &str| {
            assert_eq!(
                nearest_of(unknown, zones.into_iter()),
                Some(expected),
                "{unknown}"
            );
        };
        check("Europe/Berln", "Europe/Berlin");
        check("Berlin", "Europe/Berlin");
        check("America/Berlin", "Europe/Berlin");
        check("Los_Angeles", "America/Los_Angeles");
        assert_eq!(nearest_of("x", std::iter::empty()), None);
    }

    #[test]
    fn slips_find_their_key() {
        let check = |unknown: &str, expected: &str| assert_eq!(nearest(unknown), expected, "{unknown}");
        check("mqtt.hsot", "mqtt.host");
        check("mqtt.hostname", "mqtt.host");
        check("host", "mqtt.host");
        check("mqqt", "mqtt");
        check("mqtt.tsl", "mqtt.tls");
        check("mqtt.level", "log.level");
        check("runtime.slot", "runtime.slots");
        check("runtime.kv-memory", "runtime.kv_memory");
        check("MQTT.Password-File", "mqtt.password_file");
        check("rule", "rules");
        check("mqtt.tls_ca", "mqtt.tls.ca");
        check("mqtt.user", "mqtt.username");
        check("limits.maximum_deadline", "limits.max_deadline");
    }
}
