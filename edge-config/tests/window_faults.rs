//! Windows that are wrong: keys that a kind needs or does not use, and values that do not go together.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use machine::Machine;

/// A rule with this line, the fifth.
fn check(keys: &str, expected: &str) {
    let text = format!("[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\n{keys}");
    let fault = Machine::new().config(&text).fault();
    assert_eq!(fault, format!("my.toml:5: rule \"r\": {expected}"), "{keys}");
}

/// A rule with this window on line 5.
fn check_window(keys: &str, expected: &str) {
    check(&format!("window = {{ {keys} }}"), expected);
}

#[test]
fn windows_need_the_keys_of_their_kind() {
    check(
        "window = {}",
        "`window` has no `kind`; give \"tumbling\", \"hopping\", \"session\", \"count\" or \"schedule\"",
    );
    check_window(
        "kind = \"sliding\"",
        "`window.kind` must be one of \"tumbling\", \"hopping\", \"session\", \"count\", \"schedule\", but is \"sliding\"",
    );
    let needs = |kind: &str, key: &str, example: &str| {
        format!("`window.kind` \"{kind}\" needs `window.{key}`; add it, such as {example}")
    };
    check_window(
        "kind = \"tumbling\"",
        &needs("tumbling", "every", "every = \"1m\""),
    );
    check_window("kind = \"hopping\"", &needs("hopping", "every", "every = \"1m\""));
    check_window(
        "kind = \"hopping\", every = \"1s\"",
        &needs("hopping", "length", "length = \"10m\""),
    );
    check_window("kind = \"session\"", &needs("session", "gap", "gap = \"30s\""));
    check_window("kind = \"count\"", &needs("count", "messages", "messages = 100"));
    check_window(
        "kind = \"schedule\"",
        &needs("schedule", "at", "at = [\"06:00\", \"14:00\", \"22:00\"]"),
    );
}

#[test]
fn windows_refuse_the_keys_of_other_kinds() {
    let check = |kind: &str, key: &str, users: &str| {
        let needed = match kind {
            "tumbling" => "every = \"1m\"",
            "hopping" => "every = \"1m\", length = \"2m\"",
            "session" => "gap = \"1m\"",
            "count" => "messages = 9",
            _ => "at = [\"06:00\"]",
        };
        let name = key.split(' ').next().unwrap();
        check_window(
            &format!("kind = \"{kind}\", {needed}, {key}"),
            &format!(
                "`window.{name}` is not used by windows of kind \"{kind}\", only by {users}; remove it or choose another \
                 kind"
            ),
        );
    };
    check("tumbling", "gap = \"1s\"", "session");
    check("tumbling", "length = \"1s\"", "hopping");
    check("tumbling", "days = [\"mon\"]", "schedule");
    check("tumbling", "max_age = \"1s\"", "session, count");
    check("session", "every = \"1s\"", "tumbling, hopping");
    check("session", "empty = true", "tumbling, hopping, schedule");
    check("count", "at = [\"06:00\"]", "schedule");
    check("schedule", "messages = 3", "count");
    for key in [
        "max_messages = 3",
        "max_bytes = 3",
        "early = \"a\"",
        "early_rate = \"5/1s\"",
        "cool_down = \"1s\"",
    ] {
        check("hopping", key, "tumbling, session, count, schedule");
    }
}

#[test]
fn values_of_windows_must_go_together() {
    check_window(
        "kind = \"hopping\", every = \"10s\", length = \"9s\"",
        "`window.length` (9s) must be at least `window.every` (10s), or messages would fall between windows",
    );
    check_window(
        "kind = \"hopping\", every = \"1s\", length = \"1001s\"",
        "`window.length` (16m41s) must be at most 1000 times `window.every` (1s), since a message counts in each window \
         that overlaps",
    );
    check_window(
        "kind = \"schedule\", at = [\"06:00\", \"06:00:00\"]",
        "`window.at` has \"06:00:00\" twice; remove one",
    );
    check_window(
        "kind = \"schedule\", at = [\"6:00\"]",
        "`window.at` must be a list of local times, such as [\"06:00\", \"14:00\", \"22:00\"], but is [\"6:00\"]",
    );
    check_window(
        "kind = \"schedule\", at = []",
        "`window.at` must be a list of local times, such as [\"06:00\", \"14:00\", \"22:00\"], but is []",
    );
    check_window(
        "kind = \"schedule\", at = [\"06:00\"], days = [\"mon\", \"mon\"]",
        "`window.days` has \"mon\" twice; remove one",
    );
    check_window(
        "kind = \"schedule\", at = [\"06:00\"], days = [\"Mo\"]",
        "`window.days` must be a list of \"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\", but is [\"Mo\"]",
    );
    let plain = "kind = \"tumbling\", every = \"1m\"";
    check_window(
        &format!("{plain}, lateness = \"1s\""),
        "`window.lateness` has no effect unless `window.time` is a field, such as \"field:/time\", since messages arrive in \
         order; add that or remove it",
    );
    check_window(
        &format!("{plain}, cool_down = \"1s\""),
        "`window.cool_down` has no effect without `window.early` or `window.early_rate`; add one or remove it",
    );
    check_window(
        &format!("{plain}, time = \"/t\""),
        "`window.time` must be \"arrival\" or \"field:/json/pointer\", but is \"/t\"",
    );
    check_window(
        &format!("{plain}, tz = \"+02:00\""),
        "`window.tz` must be the name of a time zone, such as \"Europe/Berlin\" or \"UTC\", but is \"+02:00\"",
    );
    for rate in ["50", "0/1s", "5/0s", "5/400d", "5/s"] {
        check_window(
            &format!("{plain}, early_rate = \"{rate}\""),
            &format!(
                "`window.early_rate` must be a number of messages and a duration, such as \"50/10s\", but is \"{rate}\""
            ),
        );
    }
    check_window(
        &format!("{plain}, max_groups = 100001"),
        "`window.max_groups` must be a whole number from 1 to 100000, but is 100001",
    );
}
