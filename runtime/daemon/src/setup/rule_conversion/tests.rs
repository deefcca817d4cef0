use std::fs;

use config::{LoadOptions, load};

use super::*;

fn defaults() -> RuleDefaults {
    RuleDefaults {
        base: "b".to_owned(),
        node: "n".to_owned(),
        zone: TimeZone::UTC,
        max_deadline: Duration::from_mins(10),
        max_tokens: 300,
        max_prompt_tokens: Some(1_000),
    }
}

/// The rule with these keys, by way of a file.
fn converted(keys: &str) -> Result<service::Rule, Fault> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    fs::write(
        &path,
        format!("[[rules]]\nname = \"r\"\ntopics = [\"t\"]\n{keys}"),
    )
    .unwrap();
    let loaded = load(&LoadOptions {
        config: Some(path),
        ..LoadOptions::default()
    });
    convert(&loaded.unwrap().config.rules[0], &defaults())
}

#[test]
fn what_is_not_said_comes_from_the_limits() {
    let rule = converted("prompt = \"p\"").unwrap();
    let expected = service::Rule {
        name: "r".to_owned(),
        topics: vec!["t".to_owned()],
        payload: service::PayloadFormat::Auto,
        fields: Vec::new(),
        group_by: None,
        dedupe: None,
        window: service::WindowSpec {
            kind: service::WindowKind::Tumbling {
                every: Duration::from_mins(1),
            },
            time: service::TimeSource::Arrival,
            zone: TimeZone::UTC,
            empty: false,
            max_messages: None,
            max_bytes: None,
            early: None,
            early_rate: None,
            cool_down: Duration::ZERO,
            max_age: None,
            absence: None,
            max_groups: 1_000,
        },
        picture: service::PictureSpec::default(),
        summary: service::SummarySpec {
            prompt: service::PromptSource::Text("p".to_owned()),
            system: None,
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
            format: service::TextFormat::Text,
            check_numbers: false,
            deadline: Duration::from_mins(10),
            max_parts: 8,
            max_prompt_tokens: Some(1_000),
        },
        output: service::Output {
            topic: "b/event/r".to_owned(),
            qos: 1,
            expiry: None,
            retain: false,
        },
        limits: service::RuleLimits {
            keep_messages: 2_000,
            keep_bytes: 1 << 20,
            store_bytes: 64 << 20,
        },
    };
    assert_eq!(rule, expected);
}

#[test]
fn what_is_said_stays() {
    let rule = converted(
        "template = \"digest\"\npayload = \"json\"\nfields = { v = \"/v\" }\ngroup_by = \"topic:1\"\n\
         dedupe = \"field:/n\"\nformat = \"json\"\ndeadline = \"2m\"\nmax_prompt_tokens = 900\n\
         output = { expiry = \"1h\", qos = 0 }\n\
         window = { kind = \"session\", gap = \"5s\", time = \"field:/t\", lateness = \"1s\", max_bytes = \"1KiB\", \
         early_rate = \"50/10s\", max_age = \"1h\" }",
    )
    .unwrap();
    assert_eq!(rule.payload, service::PayloadFormat::Json);
    assert_eq!(
        (rule.fields[0].name.as_str(), rule.fields[0].pointer.as_str()),
        ("v", "/v")
    );
    assert_eq!(rule.group_by, Some(service::Selector::Topic(1)));
    assert_eq!(rule.dedupe, Some(service::Selector::Field("/n".to_owned())));
    assert_eq!(
        rule.summary.prompt,
        service::PromptSource::BuiltIn("digest".to_owned())
    );
    assert_eq!(rule.summary.format, service::TextFormat::Json);
    assert_eq!(rule.summary.deadline, Duration::from_mins(2));
    assert_eq!(rule.summary.max_prompt_tokens, Some(900));
    assert_eq!(rule.output.expiry, Some(Duration::from_hours(1)));
    let window = rule.window;
    let gap = Duration::from_secs(5);
    assert_eq!(window.kind, service::WindowKind::Session { gap });
    assert_eq!(window.early_rate, Some((50, Duration::from_secs(10))));
    assert_eq!(
        (window.max_bytes, window.max_age),
        (Some(1_024), Some(Duration::from_hours(1)))
    );
    let time = service::TimeSource::Field {
        pointer: "/t".to_owned(),
        lateness: Duration::from_secs(1),
    };
    assert_eq!(window.time, time);
}

#[test]
fn pictures_are_chosen() {
    let rule = converted(
        "prompt = \"p\"\npayload = \"image\"\nfields = { size = \"/bytes\" }\n\
         picture = { which = \"sheet\", sheet = 6, detail = \"low\" }",
    )
    .unwrap();
    assert_eq!(rule.payload, service::PayloadFormat::Image);
    let expected = service::PictureSpec {
        choice: service::PictureChoice::Sheet(6),
        detail: service::PictureDetail::Low,
    };
    assert_eq!(rule.picture, expected);
}

#[test]
fn limits_bound_what_a_rule_asks() {
    let rule =
        converted("prompt = \"p\"\nmax_tokens = 4096\ndeadline = \"1h\"\nmax_prompt_tokens = 5000").unwrap();
    assert_eq!(rule.summary.max_tokens, 300);
    assert_eq!(rule.summary.deadline, Duration::from_mins(10));
    assert_eq!(rule.summary.max_prompt_tokens, Some(1_000));
}

#[test]
fn schedules_have_times_days_and_their_zone() {
    let rule = converted(
        "facts_only = true\nwindow = { kind = \"schedule\", at = [\"14:00\", \"06:00:30\"], days = [\"mon\", \"sun\"], tz = \
         \"Europe/Berlin\" }",
    )
    .unwrap();
    assert_eq!(rule.summary.prompt, service::PromptSource::None);
    assert_eq!(rule.window.zone.iana_name(), Some("Europe/Berlin"));
    let service::WindowKind::Schedule { at, days } = rule.window.kind else {
        panic!("{:?}", rule.window.kind);
    };
    assert_eq!(at, [civil::time(6, 0, 30, 0), civil::time(14, 0, 0, 0)]);
    assert!(days.contains(civil::Weekday::Monday) && days.contains(civil::Weekday::Sunday));
    assert!(!days.contains(civil::Weekday::Tuesday));
}

#[test]
fn zones_of_old_names_are_known() {
    for name in ["UTC", "CET", "US/Eastern", "europe/berlin"] {
        assert!(zone(name).is_ok(), "{name}");
    }
}

#[test]
fn an_unknown_zone_is_a_fault_with_the_nearest() {
    let fault =
        converted("prompt = \"p\"\nwindow = { kind = \"tumbling\", every = \"1d\", tz = \"Europe/Berln\" }")
            .unwrap_err();
    assert_eq!(fault.exit, Exit::Config);
    let (origin, problem) = fault.message.split_once(": rule ").unwrap();
    assert!(origin.ends_with("r.toml:1"), "{origin}");
    assert_eq!(
        problem,
        "\"r\": `window.tz`: there is no time zone \"Europe/Berln\"; the nearest known one is \"Europe/Berlin\""
    );
}
