//! Layers, origins, derived values, rules and printing, through the public interface.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use std::path::PathBuf;
use std::time::Duration;

use machine::Machine;
use phi_edge_config::{Fallback, KvCache, Origin, Provider, RopePolicy, missing_credential, render};

#[test]
fn without_any_file_the_defaults_hold() {
    let loaded = Machine::new().loaded();
    let config = &loaded.config;
    assert_eq!(config.node.name, "gateway");
    assert_eq!(config.node.base, "phi-edge/v1/gateway");
    assert_eq!((config.mqtt.host.as_str(), config.mqtt.port), ("localhost", 1883));
    assert_eq!(config.mqtt.reply_topics, ["phi-edge/v1/gateway/response/#"]);
    assert_eq!(config.limits.max_deadline.get(), Duration::from_mins(10));
    assert_eq!(config.runtime.provider, Provider::Auto);
    assert_eq!(config.runtime.threads.count(), None);
    assert!(config.metrics.listen.is_none() && !config.mqtt.tls.is_on() && !config.mqtt.embedded);
    assert!(config.mqtt.embedded_listen.ip().is_loopback());
    assert!(loaded.warnings.is_empty() && loaded.files.is_empty() && config.rules.is_empty());
    assert_eq!(loaded.origins["node.name"], Origin::Derived("the host name"));
    assert_eq!(loaded.origins["mqtt.host"], Origin::Default);
    assert!(!loaded.origins.contains_key("mqtt.username"));
}

/// As on Windows, where the default folders are found when the program runs.
#[test]
fn model_and_store_follow_the_folder_of_the_state() {
    let mut machine = Machine::new().flag("store.path", "/elsewhere");
    machine.options.state_dir = machine.path("state");
    let loaded = machine.loaded();
    assert_eq!(loaded.config.model.path, machine.path("state").join("model"));
    assert_eq!(
        loaded.origins["model.path"],
        Origin::Derived("the system's folder")
    );
    assert_eq!(loaded.config.store.path, PathBuf::from("/elsewhere"));
}

#[test]
fn later_layers_win_and_say_so() {
    let all =
        "[mqtt]\nhost = \"main\"\nport = 1\nusername = \"main\"\npool = \"main\"\n[log]\nlevel = \"warn\"\n";
    let machine = Machine::new()
        .file("etc/config.toml", all)
        .file(
            "etc/conf.d/20-b.toml",
            "mqtt.port = 3\nmqtt.username = \"b\"\nmqtt.pool = \"b\"",
        )
        .file(
            "etc/conf.d/10-a.toml",
            "[mqtt]\nhost = \"a\"\nport = 2\nusername = \"a\"\npool = \"a\"",
        )
        .file("etc/conf.d/.30-hidden.toml", "nonsense = 1")
        .file("etc/conf.d/30-note.txt", "nonsense")
        .config("[mqtt]\nusername = \"mine\"\npool = \"mine\"")
        .env("PHI_EDGE__MQTT__POOL", "env")
        .env("PHI_EDGE__RUNTIME__SLOTS", "4")
        .env("PHI_EDGE_FIXTURES", "not ours")
        .flag("runtime.slots", "8");
    let loaded = machine.loaded();
    let mqtt = &loaded.config.mqtt;
    assert_eq!((mqtt.host.as_str(), mqtt.port), ("a", 3));
    assert_eq!(
        (mqtt.username.as_deref(), mqtt.pool.as_deref()),
        (Some("mine"), Some("env"))
    );
    assert_eq!(loaded.config.runtime.slots, 8);
    assert_eq!(loaded.config.log.level, "warn");

    let file = |name: &str, line| Origin::File {
        path: machine.path(name),
        line: Some(line),
    };
    assert_eq!(loaded.origins["mqtt.host"], file("etc/conf.d/10-a.toml", 2));
    assert_eq!(loaded.origins["mqtt.port"], file("etc/conf.d/20-b.toml", 1));
    assert_eq!(loaded.origins["mqtt.username"], file("my.toml", 2));
    assert_eq!(
        loaded.origins["mqtt.pool"],
        Origin::Environment("PHI_EDGE__MQTT__POOL".to_owned())
    );
    assert_eq!(
        loaded.origins["runtime.slots"],
        Origin::Flag("runtime.slots".to_owned())
    );
    assert_eq!(loaded.origins["log.level"], file("etc/config.toml", 7));
    let names: Vec<_> = loaded
        .files
        .iter()
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["config.toml", "10-a.toml", "20-b.toml", "my.toml"]);
}

#[test]
fn the_environment_reaches_every_kind_of_value() {
    let loaded = Machine::new()
        .env("PHI_EDGE__MQTT__TLS__CA", "/ca.pem")
        .env("PHI_EDGE__MQTT__EMBEDDED", "true")
        .env("PHI_EDGE__MQTT__EMBEDDED_LISTEN", "127.0.0.1:0")
        .env(
            "PHI_EDGE__MQTT__REPLY_TOPICS",
            "{base}/response/#, plant/+/answer",
        )
        .env("PHI_EDGE__RUNTIME__KV_CACHE", "i8")
        .env("PHI_EDGE__RUNTIME__KV_MEMORY", "512MiB")
        .env("PHI_EDGE__LIMITS__MAX_DEADLINE", "90s")
        .env("PHI_EDGE__LIMITS__MAX_PAYLOAD", "65536")
        .env("PHI_EDGE__RUNTIME__PROVIDER", "directml")
        .env("PHI_EDGE__RUNTIME__ROPE_POLICY", "pin")
        .loaded();
    let config = loaded.config;
    assert_eq!(config.mqtt.tls.ca, Some(PathBuf::from("/ca.pem")));
    assert_eq!(config.mqtt.port, 8883);
    assert!(config.mqtt.embedded && config.mqtt.embedded_listen.port() == 0);
    assert_eq!(
        config.mqtt.reply_topics,
        ["phi-edge/v1/gateway/response/#", "plant/+/answer"]
    );
    assert_eq!(config.runtime.kv_cache, KvCache::I8);
    assert_eq!(config.runtime.kv_memory.unwrap().bytes(), 512 << 20);
    assert_eq!(config.limits.max_deadline.to_string(), "1m30s");
    assert_eq!(config.limits.max_payload.get(), 65_536);
    assert_eq!(config.runtime.provider, Provider::DirectMl);
    assert_eq!(config.runtime.rope_policy, RopePolicy::Pin);
}

#[test]
fn an_array_in_the_environment_may_be_toml() {
    let loaded = Machine::new()
        .env("PHI_EDGE__MQTT__REPLY_TOPICS", r#"["a/#", "b,c"]"#)
        .loaded();
    assert_eq!(loaded.config.mqtt.reply_topics, ["a/#", "b,c"]);
}

#[test]
fn an_empty_text_takes_an_optional_key_back() {
    let machine = Machine::new()
        .file(
            "etc/config.toml",
            "[mqtt]\nusername = \"x\"\nport = 7\npool = \"p\"\n[node]\nname = \"n\"",
        )
        .config("mqtt.username = \"\"\nnode.name = \"\"")
        .env("PHI_EDGE__MQTT__PORT", "");
    let loaded = machine.loaded();
    assert_eq!(
        (loaded.config.mqtt.username, loaded.config.mqtt.port),
        (None, 1883)
    );
    assert_eq!(loaded.config.node.name, "gateway");
    assert_eq!(loaded.config.mqtt.pool.as_deref(), Some("p"));
    assert!(!loaded.origins.contains_key("mqtt.username"));
}

#[test]
fn secrets_stay_hidden() {
    let machine = Machine::new().config("[mqtt]\nusername = \"u\"\npassword = \"s3cret\"");
    let loaded = machine.loaded();
    assert_eq!(loaded.config.mqtt.password.as_ref().unwrap().expose(), "s3cret");
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].contains("my.toml:3: `mqtt.password` holds a password in clear"));
    for text in [
        render(&loaded),
        format!("{:?}", loaded.config),
        toml::to_string(&loaded.config).unwrap(),
        loaded.warnings[0].clone(),
    ] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert!(render(&loaded).contains("password = \"***\""));
    for broken in [
        "mqtt.password = [\"s3cret\"]",
        "mqtt.password = \"s3cret\\u0000\"",
        "[mqtt]\npassword = \"s3cret",
        "[mqtt]\npassword = s3cret",
        "[mqtt]\npassword = \"x\"\npassword = \"s3cret\"",
    ] {
        let fault = Machine::new().config(broken).load().unwrap_err();
        assert!(!fault.to_string().contains("s3cret"), "{fault}");
    }
    // Addresses may hold one too.
    for broken in [
        "traces.endpoint = \"http://u:s3cret@collector:4318\"",
        "mqtt.host = \"mqtt://u:s3cret@host\"",
    ] {
        let fault = Machine::new().config(broken).fault();
        assert!(fault.contains("://***@"), "{fault}");
    }
    let fault = Machine::new()
        .config("traces.endpoint = \"http://u:s3cret@collector:4318\"")
        .fault();
    assert!(fault.contains("without user and password"), "{fault}");
    let mut loaded = machine.loaded();
    loaded.config.mqtt.password = None;
    assert!(
        !format!("{loaded:?}").contains("s3cret"),
        "the whole result must be safe to log"
    );
}

#[test]
fn credentials_come_from_systemd() {
    let machine = Machine::new().config("[mqtt]\nusername = \"u\"\npassword_file = \"credential:mqtt\"");
    // Most commands never ask for the password, and systemd gives it to the daemon alone.
    let elsewhere = machine.loaded();
    let file = elsewhere.config.mqtt.password_file.as_deref().unwrap();
    assert_eq!(missing_credential(file), Some("mqtt"));
    assert!(render(&elsewhere).contains("password_file = \"credential:mqtt\""));
    let fault = Machine::new().config("store.path = \"credential:store\"").fault();
    assert!(
        fault.contains("the credential \"store\" needs $CREDENTIALS_DIRECTORY"),
        "{fault}"
    );
    let loaded = machine
        .env("CREDENTIALS_DIRECTORY", "/run/credentials/x")
        .loaded();
    let expected = PathBuf::from("/run/credentials/x").join("mqtt");
    assert_eq!(missing_credential(&expected), None);
    assert_eq!(loaded.config.mqtt.password_file, Some(expected));
    let fault = Machine::new()
        .config("mqtt.password_file = \"credential:../x\"")
        .fault();
    assert!(fault.contains("`mqtt.password_file` must be the path"), "{fault}");
}

#[test]
fn relative_paths_count_from_their_file() {
    let machine = Machine::new()
        .config("model.path = \"models/demo\"\nstore.path = \"/abs\"")
        .env("PHI_EDGE__RUNTIME__LIBRARY", "lib/x.so");
    let config = machine.loaded().config;
    assert_eq!(config.model.path, machine.path("models/demo"));
    assert_eq!(config.store.path, PathBuf::from("/abs"));
    assert_eq!(config.runtime.library, Some(PathBuf::from("lib/x.so")));
}

#[test]
fn odd_host_names_still_give_a_name() {
    for (host, name) in [
        ("", "phi-edge"),
        ("gäte way", "g-te-way"),
        ("a/+#", "a---"),
        ("box.local", "box.local"),
    ] {
        let mut machine = Machine::new();
        machine.options.hostname = host.to_owned();
        assert_eq!(machine.loaded().config.node.name, name, "{host}");
    }
}

#[test]
fn risky_settings_are_warned_about() {
    let machine =
        Machine::new().config("[mqtt]\nembedded = true\nembedded_listen = \"0.0.0.0:1883\"\ntls.ca = \"x\"");
    let warnings = machine.loaded().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings
            .iter()
            .any(|line| line.contains("open to the network without passwords"))
    );
}

#[test]
fn rules_gather_over_files_and_replace_by_name() {
    let rule = |name: &str, topic: &str| {
        format!("[[rules]]\nname = \"{name}\"\ntopics = [\"{topic}\"]\nprompt = \"p\"\n")
    };
    let machine = Machine::new()
        .file("etc/config.toml", &(rule("one", "a/#") + &rule("two", "b/#")))
        .config(&format!("\n{}{}", rule("two", "c/+/d"), rule("three", "d")));
    let loaded = machine.loaded();
    let seen: Vec<_> = loaded
        .config
        .rules
        .iter()
        .map(|rule| (rule.name.as_str(), rule.topics[0].as_str()))
        .collect();
    assert_eq!(seen, [("one", "a/#"), ("two", "c/+/d"), ("three", "d")]);
    assert_eq!(
        loaded.config.rules[1].origin,
        Origin::File {
            path: machine.path("my.toml"),
            line: Some(2)
        }
    );
    let shown = render(&loaded);
    assert!(
        shown.contains("name = \"three\"") && !shown.contains("b/#"),
        "{shown}"
    );
}

#[test]
fn printing_shows_values_and_origins_as_toml() {
    let machine = Machine::new()
        .config("[mqtt]\nhost = \"broker\"")
        .env("PHI_EDGE__LOG__LEVEL", "debug");
    let shown = render(&machine.loaded());
    let line = |start: &str| {
        shown
            .lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(line("host = \"broker\"").ends_with("my.toml:2"), "{shown}");
    assert!(
        line("level = \"debug\"").ends_with("# environment PHI_EDGE__LOG__LEVEL"),
        "{shown}"
    );
    assert!(
        line("name = \"gateway\"").ends_with("# default, from the host name"),
        "{shown}"
    );
    assert!(line("# username").ends_with("# not set"), "{shown}");
    // What is printed is itself a configuration with the same meaning.
    assert_eq!(
        Machine::new().config(&shown).loaded().config,
        machine.loaded().config
    );
}

#[test]
fn options_of_a_provider_keep_their_names_in_every_layer() {
    let machine = Machine::new().config(
        "[runtime]\nprovider = \"webgpu\"\ndevice_id = 1\ndevice_memory = \"4GiB\"\nfallback = \"cpu\"\n\
         allow_cpu_nodes = [\"Gather\"]\n[runtime.provider_options]\npreferredLayout = \"NHWC\"\n\"a.b\" = \"\"\n\
         [runtime.plugin]\nlibrary = \"/usr/lib/ep.so\"\n",
    );
    let machine = machine.env("PHI_EDGE__RUNTIME__PLUGIN__OPTIONS", "{ devId = \"0\" }");
    let loaded = machine.loaded();
    let runtime = &loaded.config.runtime;
    let options = |options: &[(&str, &str)]| {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Some(options.iter().map(owned).collect())
    };
    assert_eq!(
        runtime.provider_options,
        options(&[("a.b", ""), ("preferredLayout", "NHWC")])
    );
    assert_eq!(runtime.plugin.options, options(&[("devId", "0")]));
    assert_eq!(
        runtime.plugin.library.as_deref(),
        Some(std::path::Path::new("/usr/lib/ep.so"))
    );
    assert_eq!((runtime.provider, runtime.device_id), (Provider::WebGpu, Some(1)));
    assert_eq!(runtime.fallback, Some(Fallback::Cpu));
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(
        loaded.warnings[0].contains("my.toml:11: `runtime.plugin.library` has no effect"),
        "{:?}",
        loaded.warnings
    );
    let shown = render(&loaded);
    assert!(
        shown.contains("provider_options = { \"a.b\" = \"\", preferredLayout = \"NHWC\" }"),
        "{shown}"
    );
    // A later layer unsets them.
    let unset = machine.flag("runtime.provider_options", "").loaded();
    assert_eq!(unset.config.runtime.provider_options, None);
    let fault = Machine::new().flag("runtime.plugin.options", "a=1").fault();
    assert!(fault.contains("must be a table of texts by names"), "{fault}");
}
