//! Rules that are wrong: each fault is one line that names the rule, the place and what to do; and nothing makes the
//! reader panic.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use machine::Machine;
use phi_edge_config::{render, rule_keys};
use proptest::prelude::*;

fn check_file(text: &str, expected: &str) {
    assert_eq!(Machine::new().config(text).fault(), expected, "{text}");
}

/// A rule with a name, topics and a prompt on lines 1 to 4, and these keys from line 5.
fn check(keys: &str, expected: &str) {
    let text = format!("[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\n{keys}");
    let fault = Machine::new().config(&text).fault();
    assert_eq!(fault, format!("my.toml:5: rule \"r\": {expected}"), "{keys}");
}

#[test]
fn every_rule_has_a_name_topics_and_a_prompt() {
    check_file(
        "rules = 1",
        "my.toml:1: `rules` must be an array of tables, each begun by a line [[rules]], but is integer",
    );
    check_file(
        "rules = [1]",
        "my.toml:1: rule number 1: must be a table, begun by a line [[rules]]",
    );
    check_file(
        "[[rules]]\ntopics = [\"a\"]",
        "my.toml:1: rule number 1: has no `name`; give one of 1 to 64 of A-Z a-z 0-9 . _ -",
    );
    check_file(
        "[[rules]]\nname = \"a b\"",
        "my.toml:2: rule number 1: `name` must be 1 to 64 of A-Z a-z 0-9 . _ -",
    );
    check_file(
        "[[rules]]\nname = \"r\"",
        "my.toml:2: rule \"r\": has no `topics`; name the topic filters whose messages it takes",
    );
    check_file(
        "[[rules]]\nname = \"r\"\ntopics = [\"a\"]",
        "my.toml:2: rule \"r\": says nothing of its words; give `prompt` (a template's text), `template` (the name of a \
         built-in one) or `facts_only = true`",
    );
    let good = "[[rules]]\nname = \"r\"\ntopics = [\"a\"]\nprompt = \"p\"\n";
    check_file(
        &format!("{good}{good}"),
        "my.toml:5: rule \"r\": its name is taken by the rule at my.toml:1; rename one",
    );
}

#[test]
fn unknown_keys_are_named_with_the_nearest() {
    let unknown =
        |key: &str, nearest: &str| format!("unknown key `{key}`; the nearest known one is `{nearest}`");
    check("promt = \"p\"", &unknown("promt", "prompt"));
    check("max-tokens = 1", &unknown("max-tokens", "max_tokens"));
    check("windows = {}", &unknown("windows", "window"));
    check("absence = \"10m\"", &unknown("absence", "window.absence"));
    check("qos = 1", &unknown("qos", "output.qos"));
    check("outputs.topic = \"x\"", &unknown("outputs", "output"));
    check("\"window.kind\" = 1", &unknown("\"window.kind\"", "window.kind"));
    check(
        "window = { kind = \"tumbling\", evry = \"1s\" }",
        &unknown("window.evry", "window.every"),
    );
    check(
        "limits = { keep_message = 1 }",
        &unknown("limits.keep_message", "limits.keep_messages"),
    );
}

#[test]
fn wrong_values_name_their_line() {
    check_file(
        "[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\n[rules.window]\nkind = \"tumbling\"\nevery = \"1ms\"",
        "my.toml:7: rule \"r\": `window.every` must be a duration from 100ms to 370d, such as \"30s\" or \"10m\", but is \
         \"1ms\"",
    );
    check(
        "payload = \"xml\"",
        "`payload` must be one of \"auto\", \"json\", \"text\", \"number\", \"image\", but is \"xml\"",
    );
    check(
        "group_by = \"topic\"",
        "`group_by` must be \"topic:N\" with N counted from 0, or \"field:/json/pointer\", but is \"topic\"",
    );
    check(
        "dedupe = \"field:n\"",
        "`dedupe` must be \"topic:N\" with N counted from 0, or \"field:/json/pointer\", but is \"field:n\"",
    );
    check(
        "system = \" \"",
        "`system` must be a text that is not blank, but is \" \"",
    );
    check(
        "max_tokens = 0",
        "`max_tokens` must be a whole number from 1 to 1048576, but is 0",
    );
    check(
        "temperature = 11",
        "`temperature` must be a number from 0 to 10, but is 11",
    );
    check(
        "temperature = nan",
        "`temperature` must be a number from 0 to 10, but is nan",
    );
    check(
        "top_p = 0",
        "`top_p` must be a number above 0, at most 1, but is 0",
    );
    check(
        "top_p = 1.5",
        "`top_p` must be a number above 0, at most 1, but is 1.5",
    );
    check(
        "seed = -1",
        "`seed` must be a whole number of at least 0, but is -1",
    );
    check(
        "stop = [\"\"]",
        "`stop` must be a list of texts of 1 to 256 bytes each, but is [\"\"]",
    );
    let many = vec!["\"s\""; 17].join(", ");
    check(
        &format!("stop = [{many}]"),
        "`stop` has 17 texts, 16 are the most; remove some",
    );
    check(
        "max_parts = 65",
        "`max_parts` must be a whole number from 1 to 64, but is 65",
    );
    check(
        "deadline = \"371d\"",
        "`deadline` must be a duration from 1ms to 370d, such as \"30s\" or \"10m\", but is \"371d\"",
    );
    check(
        "deadline = \"10min\"",
        "`deadline` must be a duration from 1ms to 370d, such as \"30s\" or \"10m\", but is \"10min\" (unknown unit \
         \"min\"; use one of ms, s, m, h, d)",
    );
    check(
        "window = \"10s\"",
        "`window` must be a table, such as { kind = \"tumbling\", every = \"10s\" }, but is \"10s\"",
    );
    check(
        "output = { qos = 2 }",
        "`output.qos` must be a whole number from 0 to 1, but is 2",
    );
    check(
        "output = { expiry = \"1500ms\" }",
        "`output.expiry` must be whole seconds, as MQTT counts them",
    );
    check(
        "limits = { keep_bytes = \"1M\" }",
        "`limits.keep_bytes` must be a size from 1KiB to 1GiB, such as \"512MiB\", but is \"1M\" (unknown unit \"M\"; use \
         one of B, KiB, MiB, GiB, TiB, kB, MB, GB)",
    );
}

#[test]
fn fields_have_names_that_templates_can_use() {
    let begin = "`fields` must be a table of JSON pointers by names, such as { value = \"/value\" }, but is";
    check("fields = 1", &format!("{begin} 1"));
    check(
        "fields = { v = \"value\" }",
        &format!("{begin} a table (v is no JSON pointer; write \"/a/b\", or \"\" for the whole payload)"),
    );
    for name in ["a-b", "2a", "not"] {
        check(
            &format!("fields = {{ {name} = \"/v\" }}"),
            &format!(
                "{begin} a table (\"{name}\" can't be a name, since templates use names: letters, digits and _, not begun \
                 by a digit, at most 64, and no word of theirs such as \"not\")"
            ),
        );
    }
}

#[test]
fn pictures_are_of_images() {
    check(
        "picture = { which = \"first\" }",
        "`picture` is for rules with `payload` \"image\"; add it, or leave `picture` out",
    );
    check(
        "picture = { sheet = 3 }\npayload = \"image\"",
        "`picture.sheet` is for `picture.which` \"sheet\", not \"newest\"; remove one",
    );
    check(
        "picture = { which = \"sheet\", sheet = 17 }\npayload = \"image\"",
        "`picture.sheet` must be a whole number from 2 to 16, but is 17",
    );
    check(
        "limits = { keep_messages = 3 }\npayload = \"image\"\npicture = { which = \"sheet\" }",
        "`limits.keep_messages` is 3, but the pictures that `picture` shows need at least 4",
    );
    check(
        "fields = { w = \"/width\" }\npayload = \"image\"",
        "`fields` points at \"/width\", but with `payload` \"image\" there is only \"/bytes\", \"/format\" and \"/digest\"; \
         use one of them",
    );
}

#[test]
fn pointers_must_fit_the_payload() {
    check(
        "fields = { v = \"\" }\npayload = \"text\"",
        "`fields` points at \"\", but with `payload` \"text\" there is no field; use \"json\" or \"auto\"",
    );
    check(
        "dedupe = \"field:/n\"\npayload = \"number\"",
        "`dedupe` points at \"/n\", but with `payload` \"number\" there is only the pointer \"\", the number itself; use \
         \"json\" or \"auto\"",
    );
}

#[test]
fn one_prompt_and_what_belongs_to_it() {
    check("template = \"b\"", "has both `prompt` and `template`; remove one");
    check(
        "facts_only = true",
        "has both `prompt` and `facts_only`; remove one",
    );
    check(
        "template = \"a b\"",
        "`template` must be 1 to 64 of A-Z a-z 0-9 . _ -, but is \"a b\"",
    );
    check_file(
        "[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nfacts_only = true\nmax_tokens = 3",
        "my.toml:5: rule \"r\": `max_tokens` has no effect with `facts_only`, which asks no model; remove one",
    );
    check_file(
        "[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nfacts_only = true\ntemplate = \"x\"",
        "my.toml:4: rule \"r\": has both `template` and `facts_only`; remove one",
    );
}

#[test]
fn topics_are_taken_from_others_only() {
    let check = |filter: &str, expected: &str| {
        let text = format!("\n[[rules]]\nname = \"r\"\ntopics = [{filter}]\nprompt = \"p\"");
        let fault = Machine::new().config(&text).fault();
        assert_eq!(fault, format!("my.toml:{expected}"), "{filter}");
    };
    let shape = "4: rule \"r\": `topics` must be a list of topic filters without leading $, such as [\"plant/+/alarm\"], \
                 but is";
    check("", &format!("{shape} []"));
    check("\"a/#/b\"", &format!("{shape} [\"a/#/b\"]"));
    check("1", &format!("{shape} [1]"));
    check(
        "\"$share/g/a\"",
        &format!(
            "{shape} [\"$share/g/a\"] (a shared subscription would spread a window's messages over nodes; name the filter \
             behind it)"
        ),
    );
    check(
        "\"$SYS/#\"",
        &format!("{shape} [\"$SYS/#\"] (topics with a leading $ are the broker's own)"),
    );
    check(
        "\"{rule}/x\"",
        &format!("{shape} [\"{{rule}}/x\"] (only {{base}} and {{node}} are filled in)"),
    );
    for filter in [
        "{base}/event/+",
        "phi-edge/v1/gateway/#",
        "phi-edge/v1/{node}/event/x",
    ] {
        check(
            &format!("\"{filter}\""),
            &format!(
                "2: rule \"r\": `topics`: \"{filter}\" lies below the node's own base \"phi-edge/v1/gateway\", and a node \
                 never takes its own messages, so that no rule feeds itself; remove it"
            ),
        );
    }
    check(
        "\"gateway/a\", \"{node}/a\"",
        "2: rule \"r\": `topics`: \"{node}/a\" stands twice; remove one",
    );
    let long = "x".repeat(1018);
    let fault = Machine::new()
        .config(&format!(
            "[[rules]]\nname = \"r\"\ntopics = [\"{{node}}{long}\"]\nprompt = \"p\""
        ))
        .fault();
    assert!(
        fault.ends_with("which is no topic filter; shorten it or write it out"),
        "{fault}"
    );
}

#[test]
fn events_go_to_topics_of_their_own() {
    let check = |topic: &str, hint: &str| {
        let text = format!("output = {{ topic = \"{topic}\" }}");
        let shape = "`output.topic` must be a topic without wildcards (+ #) and leading $, such as \
                     \"plant/{topic:1}/summary\", but is";
        check(&text, &format!("{shape} \"{topic}\"{hint}"));
    };
    for wrong in ["", "a/+", "a/#", "$SYS/a"] {
        check(wrong, "");
    }
    check(
        "a/{name}",
        " ({name} is no placeholder; there are {base}, {node}, {rule}, {group} and {topic:N})",
    );
    check(
        "a/{topic:}",
        " ({topic:} is no placeholder; there are {base}, {node}, {rule}, {group} and {topic:N})",
    );
    self::check(
        "output = { topic = \"a/{group}\" }",
        "`output.topic` names {group}, but the rule has no `group_by`; add it, or leave {group} out",
    );
    for (topic, own) in [
        ("{base}/request", "request"),
        ("{base}/request/{rule}", "request"),
        ("phi-edge/v1/{node}/cancel/{topic:0}", "cancel"),
        ("phi-edge/v1/gateway/status", "status"),
        ("{base}/stats", "stats"),
        ("{base}/dead-letter/x", "dead-letter"),
        ("{base}/{rule}", "stats"),
        ("{base}/response/{topic:0}", "response"),
        ("{base}/response", "response"),
    ] {
        let text = format!(
            "[[rules]]\nname = \"stats\"\ntopics = [\"t\"]\nprompt = \"p\"\noutput.topic = \"{topic}\""
        );
        check_file(
            &text,
            &format!(
                "my.toml:1: rule \"stats\": `output.topic` is \"phi-edge/v1/gateway/{own}\" or below it, which is the \
                 node's own; choose another, such as \"{{base}}/event/{{rule}}\""
            ),
        );
    }
    let pool = "[mqtt]\npool = \"plant\"\n\n[[rules]]\nname = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\n\
                output.topic = \"phi-edge/v1/pool/plant/request/{topic:0}\"";
    check_file(
        pool,
        "my.toml:4: rule \"r\": `output.topic` is \"phi-edge/v1/pool/plant/request\" or below it, which is the node's own; \
         choose another, such as \"{base}/event/{rule}\"",
    );
}

/// TOML that comes near to a rule: known and unknown keys with values of every type and form.
fn near_rule() -> impl Strategy<Value = String> {
    let keys = prop::sample::select(rule_keys()).prop_map(|key| key.path.to_owned());
    let key =
        prop_oneof![8 => keys, 1 => "[a-z_]{1,8}(\\.[a-z_\"]{1,8}){0,2}", 1 => Just("window".to_owned())];
    let text = prop_oneof![
        any::<String>(),
        "[0-9]{1,20}(ms|s|m|h|d|B|KiB|GiB)?",
        "[0-9]{0,3}/[0-9]{0,3}(ms|s|d)?",
        "(topic:|field:)[0-9/~a-z]{0,8}",
        "[0-9]{0,3}:[0-9é]{0,3}(:[0-9]{0,3})?",
        "([a-z/+#$]|\\{base\\}|\\{node\\}|\\{group\\}|\\{topic:1\\}|[{}]){0,6}",
        "(tumbling|hopping|session|count|schedule|mon|arrival|json|Europe/[A-Z]{0,3})",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|on| on.to_string()),
        any::<f64>().prop_map(|number| toml::Value::from(number).to_string()),
        text.clone().prop_map(|text| toml::Value::from(text).to_string()),
        prop::collection::vec(text.clone(), 0..3).prop_map(|texts| toml::Value::from(texts).to_string()),
        ("[a-z_]{0,4}", text)
            .prop_map(|(name, text)| format!("{{ \"{name}\" = {} }}", toml::Value::from(text))),
        Just("1979-05-27T07:32:00Z".to_owned()),
    ];
    prop::collection::vec((key, value), 0..6).prop_map(|pairs| {
        let lines: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        lines.join("\n")
    })
}

/// Loads a machine with these texts; a fault must be one line.
fn survives(machine: &Machine) -> Result<(), TestCaseError> {
    match machine.load() {
        Ok(loaded) => prop_assert!(!render(&loaded).is_empty()),
        Err(fault) => prop_assert!(!fault.to_string().contains('\n'), "{fault}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_rule_makes_the_reader_panic(keys in near_rule(), plain in any::<bool>()) {
        let begin = if plain { "name = \"r\"\ntopics = [\"t\"]\nprompt = \"p\"\n" } else { "name = \"r\"\n" };
        survives(&Machine::new().config(&format!("[[rules]]\n{begin}{keys}")))?;
    }

    #[test]
    fn no_rule_file_makes_the_reader_panic(
        text in prop_oneof![near_rule(), ".*", "[\\[\\]={}\"'a-z.\n#0-9]{0,60}"]
    ) {
        survives(&Machine::new().file("etc/rules.d/r.toml", &text))?;
        survives(&Machine::new().file("etc/rules.d/r.toml", &format!("topics = [\"t\"]\n{text}")))?;
    }
}
