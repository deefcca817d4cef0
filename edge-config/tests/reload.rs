//! What changes when the configuration is read again, and what keeps its value.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use machine::Machine;
use phi_edge_config::{Loaded, Reloaded};

fn rule(topic: &str) -> String {
    format!(
        "[[rules]]\nname = \"r\"\ntopics = [\"{topic}\"]\nfacts_only = true\nwindow = {{ kind = \"count\", messages = 2 }}\n"
    )
}

fn reloaded(running: &Loaded, config: &str) -> Result<Reloaded, String> {
    let machine = Machine::new().config(config);
    phi_edge_config::reload(&machine.options, running).map_err(|error| error.to_string())
}

#[test]
fn limits_the_log_and_rules_change_and_the_name_does_not() {
    let running = Machine::new()
        .config("[node]\nname = \"one\"\n[limits]\nqueue = 5\nrule_jobs = 1\n")
        .loaded();
    let text = format!(
        "[node]\nname = \"two\"\n[limits]\nqueue = 6\nrule_jobs = 3\n[log]\nlevel = \"warn\"\nformat = \"json\"\n\
         [store]\nkeep_for = \"1m\"\n{}",
        rule("{base}-x/{node}")
    );
    let Reloaded { loaded, held } = reloaded(&running, &text).unwrap();
    let config = &loaded.config;
    assert_eq!((config.limits.queue, config.limits.rule_jobs), (6, 1));
    assert_eq!(
        (config.log.level.as_str(), config.log.format),
        ("warn", running.config.log.format)
    );
    assert_eq!(config.store.keep_for.as_millis(), 60_000);
    assert_eq!(
        (config.node.name.as_str(), config.node.base.as_str()),
        ("one", "phi-edge/v1/one")
    );
    assert_eq!(config.mqtt, running.config.mqtt);
    assert_eq!(config.rules[0].topics, ["phi-edge/v1/one-x/one"]);
    assert_eq!(
        held,
        [
            "node.name",
            "node.base",
            "mqtt.reply_topics",
            "limits.rule_jobs",
            "log.format"
        ]
    );
    // As it was: nothing is held.
    let same = reloaded(
        &running,
        "[node]\nname = \"one\"\n[limits]\nqueue = 9\nrule_jobs = 1\n",
    )
    .unwrap();
    assert!(same.held.is_empty(), "{:?}", same.held);
}

#[test]
fn rules_are_held_against_the_base_that_stays() {
    let running = Machine::new().config("[node]\nname = \"one\"\n").loaded();
    let name = "[node]\nname = \"two\"\n";
    for topic in ["phi-edge/v1/one/status", "phi-edge/v1/one/#", "phi-edge/v1/two/x"] {
        let error = reloaded(&running, &format!("{name}{}", rule(topic))).unwrap_err();
        assert!(error.contains("below the node's own base"), "{topic}: {error}");
    }
    assert!(reloaded(&running, &format!("{name}{}", rule("plant/x"))).is_ok());
}

#[test]
fn what_is_set_or_taken_away_waits_for_a_restart() {
    let secret = "[mqtt]\nusername = \"u\"\npassword = \"p\"\n";
    let running = Machine::new().config(secret).loaded();
    let Reloaded { loaded, held } = reloaded(&running, "[mqtt]\npool = \"a\"\n").unwrap();
    assert_eq!(loaded.config.mqtt, running.config.mqtt);
    assert_eq!(held, ["mqtt.username", "mqtt.password", "mqtt.pool"]);
    let running = Machine::new().loaded();
    let Reloaded { loaded, held } = reloaded(&running, secret).unwrap();
    assert_eq!(loaded.config.mqtt, running.config.mqtt);
    assert_eq!(held, ["mqtt.username", "mqtt.password"]);
}

#[test]
fn limits_go_together_with_what_stays() {
    let running = Machine::new().config("[mqtt]\nmax_packet = \"2MiB\"\n").loaded();
    let both = "[mqtt]\nmax_packet = \"8MiB\"\n[limits]\nmax_payload = \"4MiB\"\n";
    let error = reloaded(&running, both).unwrap_err();
    assert!(error.contains("mqtt.max_packet"), "{error}");
}
