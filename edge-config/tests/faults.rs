//! Faults: each one line that names key, place and what is expected; and nothing makes loading panic.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use std::fs;

use machine::Machine;
use phi_edge_config::render;
use proptest::prelude::*;

fn check_fault(text: &str, expected: &str) {
    assert_eq!(Machine::new().config(text).fault(), expected, "{text}");
}

#[test]
fn unknown_keys_are_named_with_file_and_nearest() {
    check_fault(
        "[mqtt]\nhsot = \"x\"",
        "my.toml:2: unknown key `mqtt.hsot`; the nearest known one is `mqtt.host`",
    );
    check_fault(
        "[mqqt]\nhost = \"x\"",
        "my.toml:1: unknown key `mqqt`; the nearest known one is `mqtt`",
    );
    check_fault(
        "host = \"x\"",
        "my.toml:1: unknown key `host`; the nearest known one is `mqtt.host`",
    );
    check_fault(
        "[mqtt.tls]\ncafile = \"x\"",
        "my.toml:2: unknown key `mqtt.tls.cafile`; the nearest known one is `mqtt.tls.ca`",
    );
    check_fault(
        "\"mqtt.host\" = 1",
        "my.toml:1: unknown key `\"mqtt.host\"`; the nearest known one is `mqtt.host`",
    );
    let fault = Machine::new().env("PHI_EDGE__MQTT__TLS_CA", "x").fault();
    assert_eq!(
        fault,
        "environment PHI_EDGE__MQTT__TLS_CA: unknown key `mqtt.tls_ca`; the nearest known one is \
         `PHI_EDGE__MQTT__TLS__CA`"
    );
    let fault = Machine::new().flag("model.pth", "x").fault();
    assert_eq!(
        fault,
        "command line (model.pth): unknown key `model.pth`; the nearest known one is `model.path`"
    );
    // A file of conf.d is named as well.
    let fault = Machine::new()
        .file("etc/conf.d/x.toml", "[limits]\n\nqueues = 1")
        .fault();
    assert_eq!(
        fault,
        "etc/conf.d/x.toml:3: unknown key `limits.queues`; the nearest known one is `limits.queue`"
    );
}

#[test]
fn wrong_values_name_key_place_and_shape() {
    check_fault(
        "[mqtt]\nport = \"abc\"",
        "my.toml:2: `mqtt.port` must be a whole number from 1 to 65535, but is \"abc\"",
    );
    check_fault(
        "mqtt.port = 0",
        "my.toml:1: `mqtt.port` must be a whole number from 1 to 65535, but is 0",
    );
    check_fault(
        "mqtt.port = -1",
        "my.toml:1: `mqtt.port` must be a whole number from 1 to 65535, but is -1",
    );
    check_fault(
        "limits.max_deadline = 600",
        "my.toml:1: `limits.max_deadline` must be a duration from 1s to 30d, such as \"30s\" or \"10m\", but is 600",
    );
    check_fault(
        "limits.max_deadline = \"600\"",
        "my.toml:1: `limits.max_deadline` must be a duration from 1s to 30d, such as \"30s\" or \"10m\", but is \
         \"600\" (no unit; use one of ms, s, m, h, d)",
    );
    check_fault(
        "runtime.kv_memory = \"512M\"",
        "my.toml:1: `runtime.kv_memory` must be a size from 1MiB to 16TiB, such as \"512MiB\", but is \"512M\" \
         (unknown unit \"M\"; use one of B, KiB, MiB, GiB, TiB, kB, MB, GB)",
    );
    check_fault(
        "runtime.provider = \"gpu\"",
        "my.toml:1: `runtime.provider` must be one of \"auto\", \"cpu\", \"cuda\", \"directml\", \"webgpu\", \"plugin\", but is \"gpu\"",
    );
    check_fault(
        "runtime.kv_cache = \"q8\"",
        "my.toml:1: `runtime.kv_cache` must be one of \"auto\", \"f32\", \"i8\", but is \"q8\"",
    );
    check_fault(
        "runtime.rope_policy = \"long\"",
        "my.toml:1: `runtime.rope_policy` must be one of \"switch\", \"pin\", but is \"long\"",
    );
    check_fault(
        "mqtt.embedded = 1",
        "my.toml:1: `mqtt.embedded` must be true or false, but is 1",
    );
    check_fault(
        "node.name = \"a/b\"",
        "my.toml:1: `node.name` must be 1 to 64 of A-Z a-z 0-9 . _ -, but is \"a/b\"",
    );
    check_fault(
        "mqtt = 3",
        "my.toml:1: `mqtt` must be a section, begun by a line [mqtt], but is a value (integer)",
    );
    check_fault(
        "metrics.listen = \"localhost\"",
        "my.toml:1: `metrics.listen` must be an IP address and port, such as \"127.0.0.1:9464\", but is \"localhost\"",
    );
    let fault = Machine::new().env("PHI_EDGE__RUNTIME__THREADS", "many").fault();
    assert_eq!(
        fault,
        "environment PHI_EDGE__RUNTIME__THREADS: `runtime.threads` must be \"auto\" or a whole number from 1 to \
         1024, but is \"many\""
    );
}

#[test]
fn a_key_with_a_default_can_not_be_taken_back() {
    check_fault(
        "mqtt.host = \"\"",
        "my.toml:1: `mqtt.host` must be a host name or IP address without scheme and port, such as \
         \"broker.local\", but is \"\"",
    );
}

#[test]
fn a_fault_is_found_even_where_a_later_layer_covers_it() {
    let fault = Machine::new()
        .file("etc/config.toml", "mqtt.port = 0")
        .config("mqtt.port = 1")
        .fault();
    assert!(fault.starts_with("etc/config.toml:1: `mqtt.port`"), "{fault}");
}

#[test]
fn topics_are_checked() {
    for base in ["a/+/b", "a/#", "$SYS/x", "/a", "a//b", "a/{name}", ""] {
        let fault = Machine::new().config(&format!("node.base = \"{base}\"")).fault();
        assert!(
            fault.contains("`node.base` must be a topic without wildcards"),
            "{fault}"
        );
    }
    for filter in ["", "a/#/b", "$SYS/#", "{bse}/x"] {
        let fault = Machine::new()
            .config(&format!("mqtt.reply_topics = [\"{filter}\"]"))
            .fault();
        assert!(
            fault.contains("`mqtt.reply_topics` must be a list of topic filters"),
            "{fault}"
        );
    }
    let fault = Machine::new().config("mqtt.reply_topics = []").fault();
    assert!(fault.contains("`mqtt.reply_topics` must be"), "{fault}");
    let config = Machine::new()
        .config("node.name = \"n\"\nnode.base = \"plant/{node.name}/ai\"")
        .loaded()
        .config;
    assert_eq!(config.node.base, "plant/n/ai");
    assert_eq!(config.mqtt.reply_topics, ["plant/n/ai/response/#"]);
}

#[test]
fn values_must_go_together() {
    let check = |text: &str, expected: &str| {
        let fault = Machine::new().config(text).fault();
        assert!(fault.contains(expected), "{text}: {fault}");
    };
    check(
        "mqtt.tls.cert = \"c\"",
        "my.toml:1: `mqtt.tls.cert`: is set without `mqtt.tls.key`",
    );
    check(
        "mqtt.tls.key = \"k\"",
        "my.toml:1: `mqtt.tls.key`: is set without `mqtt.tls.cert`",
    );
    check(
        "[mqtt.tls]\ncert = \"c\"\nkey = \"k\"",
        "`mqtt.tls.cert`: is set without `mqtt.tls.ca`",
    );
    check(
        "[mqtt]\npassword = \"s3cret\"\npassword_file = \"f\"",
        "`mqtt.password`: is set, and so is",
    );
    check(
        "mqtt.password_file = \"f\"",
        "`mqtt.password_file`: is set without `mqtt.username`",
    );
    check(
        "mqtt.keep_alive = \"5500ms\"",
        "`mqtt.keep_alive`: must be whole seconds",
    );
    check(
        "limits.max_payload = \"2MiB\"",
        "`mqtt.max_packet`: (2MiB) must be at least 4KiB more",
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let mut machine = Machine::new();
    machine.options.config = Some(machine.path("absent.toml"));
    assert!(
        machine
            .fault()
            .starts_with("absent.toml: can't read the configuration"),
        "{}",
        machine.fault()
    );
    check_fault(
        "[mqtt\nhost = 1",
        "my.toml:1: not valid TOML (column 6): unclosed table, expected `]`",
    );
    let machine = Machine::new();
    fs::write(machine.path("etc/config.toml"), b"[mqtt]\nhost = \"\xff\"").unwrap();
    assert!(
        machine.fault().starts_with("etc/config.toml: can't read"),
        "{}",
        machine.fault()
    );
}

#[test]
fn settings_of_the_provider_that_contradict_each_other_are_refused() {
    check_fault(
        "runtime.provider = \"plugin\"",
        "my.toml:1: `runtime.provider`: is \"plugin\", and `runtime.plugin.library` is not set; name the provider's library",
    );
    check_fault(
        "[runtime.plugin]\noptions = { device_type = \"GPU\" }",
        "my.toml:2: `runtime.plugin.options`: is set without `runtime.plugin.library`; name the provider's library",
    );
    check_fault(
        "runtime.plugin.library = \"ep.so\"",
        "my.toml:1: `runtime.plugin.library` must be the absolute path of a file, such as \
         \"/usr/lib/phi-edge/provider.so\", but is \"ep.so\"",
    );
    check_fault(
        "[runtime]\nprovider = \"cpu\"\nprovider_options = { a = \"1\" }",
        "my.toml:3: `runtime.provider_options`: is set, and `runtime.provider` takes no options; remove it",
    );
    check_fault(
        "[runtime]\nprovider = \"plugin\"\nprovider_options = { a = \"1\" }\nplugin.library = \"/ep.so\"",
        "my.toml:3: `runtime.provider_options`: is set, and `runtime.provider` is \"plugin\"; set \
         `runtime.plugin.options` instead",
    );
    for (provider, option) in [
        ("cuda", "enable_cuda_graph"),
        ("webgpu", "ep.webgpuexecutionprovider.enableGraphCapture"),
    ] {
        check_fault(
            &format!("[runtime]\nprovider = \"{provider}\"\nprovider_options = {{ \"{option}\" = \"1\" }}"),
            "my.toml:3: `runtime.provider_options`: has a graph captured, which would repeat its first run whatever the next one's \
             tokens are; remove enable_cuda_graph or enableGraphCapture",
        );
    }
    check_fault(
        "[runtime]\nprovider = \"cuda\"\nprovider_options = { enable_cuda_graph = 1 }",
        "my.toml:3: `runtime.provider_options` must be a table of texts by names, such as { name = \"value\" }, but is \
         a table (enable_cuda_graph is no text without control characters; write numbers and switches in quotes, as in \
         \"1\")",
    );
    check_fault(
        "runtime.fallback = \"cuda\"",
        "my.toml:1: `runtime.fallback` must be one of \"cpu\", but is \"cuda\"",
    );
}

/// TOML that comes near to a configuration: known and unknown keys with values of every type.
fn near_toml() -> impl Strategy<Value = String> {
    let keys = prop::sample::select(phi_edge_config::known_keys()).prop_map(|key| key.path.to_owned());
    let key =
        prop_oneof![4 => keys, 1 => "[a-z_]{1,8}(\\.[a-z_\"]{1,8}){0,3}", 1 => Just("rules".to_owned())];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|on| on.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| toml::Value::from(text).to_string()),
        "[0-9]{1,20}(ms|s|m|h|d|B|KiB|GiB)".prop_map(|text| format!("\"{text}\"")),
        "[a-z+#$/{}.]{0,12}".prop_map(|text| format!("[\"{text}\"]")),
        Just("[{ name = \"x\", topics = [\"#\"] }]".to_owned()),
        Just("{ a = 1 }".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
    ];
    prop::collection::vec((key, value), 0..5).prop_map(|pairs| {
        let lines: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_file_makes_loading_panic(text in prop_oneof![near_toml(), ".*", "[\\[\\]={}\"'a-z.\n#0-9]{0,60}"]) {
        match Machine::new().config(&text).load() {
            Ok(loaded) => prop_assert!(!render(&loaded).is_empty()),
            Err(fault) => prop_assert!(!fault.to_string().contains('\n'), "{fault}"),
        }
    }

    #[test]
    fn no_variable_makes_loading_panic(name in "[A-Z_]{0,20}", value in ".*") {
        let result = Machine::new().env(&format!("PHI_EDGE__{name}"), &value).load();
        prop_assert!(result.is_err(), "no key has a name without a section");
    }
}
