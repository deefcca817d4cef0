//! Rules: what is read becomes the struct, what is wrong becomes one line, and where rules of several files meet.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use machine::Machine;
use phi_edge_config::{
    ByteSize, Field, Origin, Output, PayloadFormat, Picture, PictureChoice, PictureDetail, Prompt, Rate,
    Rule, RuleLimits, Selector, TextFormat, TimeOfDay, TimeSource, TimeSpan, Weekdays, Window, WindowKind,
    Words, render,
};

/// The one rule of a configuration with this rule.
fn rule(keys: &str) -> Rule {
    let machine = Machine::new().config(&format!("[[rules]]\n{keys}"));
    let mut rules = machine.loaded().config.rules;
    assert_eq!(rules.len(), 1, "{keys}");
    rules.remove(0)
}

/// A rule of which this is the window.
fn window(keys: &str) -> Window {
    rule(&format!(
        "name = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\nwindow = {{ {keys} }}"
    ))
    .window
}

#[test]
fn what_is_not_said_has_its_default() {
    let machine = Machine::new().config("\n[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"");
    let expected = Rule {
        name: "r".to_owned(),
        topics: vec!["t".to_owned()],
        payload: PayloadFormat::Auto,
        fields: Vec::new(),
        group_by: None,
        dedupe: None,
        window: Window {
            kind: WindowKind::Tumbling {
                every: TimeSpan::from_secs(60),
            },
            time: TimeSource::Arrival,
            tz: None,
            empty: false,
            max_messages: None,
            max_bytes: None,
            early: None,
            early_rate: None,
            cool_down: TimeSpan::from_millis(0),
            max_age: None,
            absence: None,
            max_groups: 1_000,
        },
        picture: Picture {
            which: PictureChoice::Newest,
            detail: PictureDetail::Auto,
        },
        words: Words {
            prompt: Prompt::Text("p".to_owned()),
            system: None,
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
            format: TextFormat::Text,
            check_numbers: false,
            deadline: None,
            max_parts: 8,
            max_prompt_tokens: None,
        },
        output: Output {
            topic: None,
            qos: 1,
            expiry: None,
            retain: false,
        },
        limits: RuleLimits {
            keep_messages: 2_000,
            keep_bytes: ByteSize::from_bytes(1 << 20),
            store: ByteSize::from_bytes(64 << 20),
        },
        origin: Origin::File {
            path: machine.path("my.toml"),
            line: Some(2),
        },
    };
    assert_eq!(machine.loaded().config.rules, [expected]);
}

#[test]
fn every_key_reaches_its_field() {
    let rule = rule(
        r#"
        name = "alarms"
        topics = ["plant/+/alarm", "{node}/x"]
        payload = "json"
        fields = { value = "/value", all = "", severity = "/a~1b/0" }
        group_by = "topic:1"
        dedupe = "field:/n"
        template = "alarm-digest"
        system = "You watch."
        max_tokens = 7
        temperature = 0.5
        top_p = 0.9
        seed = 3
        stop = ["END"]
        format = "json"
        check_numbers = true
        deadline = "2m"
        max_parts = 3
        max_prompt_tokens = 900
        output = { topic = "out/{node}/{rule}/{group}/{topic:1}", qos = 0, expiry = "1h", retain = true }
        limits = { keep_messages = 5, keep_bytes = "2KiB", store = "1MiB" }
        [rules.window]
        kind = "session"
        gap = "30s"
        time = "field:/t"
        lateness = "5s"
        tz = "Europe/Berlin"
        max_messages = 50
        max_bytes = "1MiB"
        early = "severity >= 3"
        early_rate = "50/10s"
        cool_down = "1m"
        max_age = "1h"
        absence = "10m"
        max_groups = 9
        "#,
    );
    assert_eq!(rule.topics, ["plant/+/alarm", "gateway/x"]);
    assert_eq!(rule.payload, PayloadFormat::Json);
    let field = |name: &str, pointer: &str| Field {
        name: name.to_owned(),
        pointer: pointer.to_owned(),
    };
    let fields = [
        field("all", ""),
        field("severity", "/a~1b/0"),
        field("value", "/value"),
    ];
    assert_eq!(rule.fields, fields);
    assert_eq!(rule.group_by, Some(Selector::Topic(1)));
    assert_eq!(rule.dedupe, Some(Selector::Field("/n".to_owned())));
    let words = Words {
        prompt: Prompt::Template("alarm-digest".to_owned()),
        system: Some("You watch.".to_owned()),
        max_tokens: 7,
        temperature: 0.5,
        top_p: 0.9,
        seed: 3,
        stop: vec!["END".to_owned()],
        format: TextFormat::Json,
        check_numbers: true,
        deadline: Some(TimeSpan::from_secs(120)),
        max_parts: 3,
        max_prompt_tokens: Some(900),
    };
    assert_eq!(rule.words, words);
    let output = Output {
        topic: Some("out/{node}/{rule}/{group}/{topic:1}".to_owned()),
        qos: 0,
        expiry: Some(TimeSpan::from_secs(3_600)),
        retain: true,
    };
    assert_eq!(rule.output, output);
    let limits = RuleLimits {
        keep_messages: 5,
        keep_bytes: ByteSize::from_bytes(2 << 10),
        store: ByteSize::from_bytes(1 << 20),
    };
    assert_eq!(rule.limits, limits);
    let window = Window {
        kind: WindowKind::Session {
            gap: TimeSpan::from_secs(30),
        },
        time: TimeSource::Field {
            pointer: "/t".to_owned(),
            lateness: TimeSpan::from_secs(5),
        },
        tz: Some("Europe/Berlin".to_owned()),
        empty: false,
        max_messages: Some(50),
        max_bytes: Some(ByteSize::from_bytes(1 << 20)),
        early: Some("severity >= 3".to_owned()),
        early_rate: Some(Rate {
            messages: 50,
            within: TimeSpan::from_secs(10),
        }),
        cool_down: TimeSpan::from_secs(60),
        max_age: Some(TimeSpan::from_secs(3_600)),
        absence: Some(TimeSpan::from_secs(600)),
        max_groups: 9,
    };
    assert_eq!(rule.window, window);
}

#[test]
fn windows_of_every_kind() {
    let check = |keys: &str, expected: WindowKind| assert_eq!(window(keys).kind, expected, "{keys}");
    let secs = TimeSpan::from_secs;
    check(
        "kind = \"tumbling\", every = \"100ms\"",
        WindowKind::Tumbling {
            every: TimeSpan::from_millis(100),
        },
    );
    check(
        "kind = \"hopping\", every = \"10s\", length = \"10s\"",
        WindowKind::Hopping {
            every: secs(10),
            length: secs(10),
        },
    );
    check(
        "kind = \"hopping\", every = \"1s\", length = \"1000s\"",
        WindowKind::Hopping {
            every: secs(1),
            length: secs(1_000),
        },
    );
    check(
        "kind = \"session\", gap = \"30s\"",
        WindowKind::Session { gap: secs(30) },
    );
    check(
        "kind = \"count\", messages = 9",
        WindowKind::Count { messages: 9 },
    );
    let time = |hour, minute, second| TimeOfDay { hour, minute, second };
    check(
        "kind = \"schedule\", at = [\"22:00\", \"06:00:30\", \"06:00\"]",
        WindowKind::Schedule {
            at: vec![time(6, 0, 0), time(6, 0, 30), time(22, 0, 0)],
            days: Weekdays::ALL,
        },
    );
    check(
        "kind = \"schedule\", at = [\"06:00\"], days = [\"sun\", \"mon\"], empty = true",
        WindowKind::Schedule {
            at: vec![time(6, 0, 0)],
            days: Weekdays(0b100_0001),
        },
    );
}

#[test]
fn prompts_of_every_kind() {
    let check = |keys: &str, expected: Prompt| {
        let rule = rule(&format!("name = \"r\"\ntopics = [\"t\"]\n{keys}"));
        assert_eq!(rule.words.prompt, expected, "{keys}");
    };
    check("prompt = \"a\\nb\"", Prompt::Text("a\nb".to_owned()));
    check("prompt = \"a\"\nfacts_only = false", Prompt::Text("a".to_owned()));
    check("template = \"digest\"", Prompt::Template("digest".to_owned()));
    check("facts_only = true", Prompt::None);
}

#[test]
fn topics_that_merely_may_reach_the_own_ones_are_fine() {
    for filter in [
        "#",
        "+/#",
        "phi-edge/v1/+/event/#",
        "phi-edge/v1/gateway",
        "phi-edge/v1/gateway2/#",
    ] {
        let rule = rule(&format!("name = \"r\"\ntopics = [\"{filter}\"]\nprompt = \"p\""));
        assert_eq!(rule.topics, [filter]);
    }
    for topic in [
        "{base}/event/x",
        "{base}/requests",
        "{base}/{topic:1}",
        "/a//b",
        "{base}/x/request",
    ] {
        let rule = rule(&format!(
            "name = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\noutput.topic = \"{topic}\""
        ));
        assert_eq!(rule.output.topic.as_deref(), Some(topic));
    }
}

#[test]
fn rules_can_not_be_set_by_environment_or_flags() {
    let fault = Machine::new().env("PHI_EDGE__RULES", "x").fault();
    assert_eq!(
        fault,
        "environment PHI_EDGE__RULES: `rules` must be given in a file, as [[rules]], but is a text"
    );
    let fault = Machine::new().flag("rules.name", "x").fault();
    assert_eq!(
        fault,
        "command line (rules.name): `rules` must be given in a file, as [[rules]], but is a text"
    );
}

#[test]
fn printing_names_rules_with_kind_and_origin() {
    let machine = Machine::new()
        .config("[[rules]]\nname = \"one\"\ntopics = [\"a\", \"b\"]\nprompt = \"s3cret\"")
        .file(
            "etc/rules.d/two.toml",
            "topics = [\"c\"]\nfacts_only = true\nwindow = { kind = \"count\", messages = 1 }",
        );
    let shown = render(&machine.loaded()).replace(&machine.folder.path().display().to_string(), "");
    let rules = shown.split_once("# [[rules]]").unwrap().1.replace('\\', "/");
    assert_eq!(
        rules,
        "  # /my.toml:1\n# name = \"one\"\n# topics = [\"a\", \"b\"]\n# window.kind = \"tumbling\"\n\n\
         # [[rules]]  # /etc/rules.d/two.toml\n# name = \"two\"\n# topics = [\"c\"]\n# window.kind = \"count\"\n"
    );
}
