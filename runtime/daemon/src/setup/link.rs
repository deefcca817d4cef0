//! From sections of the configuration to what each crate wants.

use std::path::Path;

use phi_edge_config::{Config, missing_credential};
use phi_edge_mqtt::{EmbeddedBroker, EmbeddedBrokerConfig, LinkConfig, RequestLimits, TlsFiles, Topics};
use phi_edge_service::{Quota, ServiceConfig};
use serde_json::{Value, json};

use crate::exit::{Exit, Fault};
use crate::machine::identity;

/// What events may hold that wait for the broker, and their share of `store.max_size` where that is less: most of the store
/// stays for requests.
const EVENT_BYTES: u64 = 64 << 20;
const EVENT_SHARE: u64 = 4;

/// The broker in this process, if the configuration wants one.
pub(crate) async fn embedded_broker(config: &Config) -> Result<Option<EmbeddedBroker>, Fault> {
    let mqtt = &config.mqtt;
    if !mqtt.embedded {
        return Ok(None);
    }
    is_given(
        "mqtt.embedded_password_file",
        mqtt.embedded_password_file.as_deref(),
    )?;
    is_given("mqtt.embedded_acl_file", mqtt.embedded_acl_file.as_deref())?;
    let broker = EmbeddedBroker::start(EmbeddedBrokerConfig {
        listen: mqtt.embedded_listen,
        password_file: mqtt.embedded_password_file.clone(),
        acl_file: mqtt.embedded_acl_file.clone(),
        storage: Some(config.store.path.join("broker")),
        max_packet: usize_of(mqtt.max_packet.bytes()),
    })
    .await
    .map_err(|error| Fault::new(Exit::Config, error.to_string()))?;
    tracing::info!(address = %broker.address(), "the embedded broker listens");
    Ok(Some(broker))
}

/// The link's configuration.
pub(crate) fn link(config: &Config, embedded: Option<&EmbeddedBroker>) -> Result<LinkConfig, Fault> {
    let mqtt = &config.mqtt;
    let client_id = match &mqtt.client_id {
        Some(id) => id.clone(),
        None => format!(
            "{}-{}",
            config.node.name,
            identity::machine_id(&config.store.path)?
        ),
    };
    let (host, port) = match embedded {
        Some(broker) => (broker.address().ip().to_string(), broker.address().port()),
        None => (mqtt.host.clone(), mqtt.port),
    };
    Ok(LinkConfig {
        host,
        port,
        client_id,
        credentials: credentials(config)?,
        tls: if embedded.is_some() {
            None
        } else {
            given_tls(config)?
        },
        keep_alive: mqtt.keep_alive.get(),
        session_expiry: mqtt.session_expiry.get(),
        max_packet: u32::try_from(mqtt.max_packet.bytes()).unwrap_or(u32::MAX),
        topics: topics(config),
        node: config.node.name.clone(),
    })
}

/// What requests may ask for.
pub(crate) fn request_limits(config: &Config) -> RequestLimits {
    RequestLimits {
        max_payload: usize_of(config.limits.max_payload.bytes()),
        max_tokens: config.limits.max_tokens,
    }
}

/// The service's bounds.
pub(crate) fn service(config: &Config, model: &str) -> ServiceConfig {
    let (limits, store) = (&config.limits, &config.store);
    ServiceConfig {
        queue: limits.queue,
        max_deadline: limits.max_deadline.get(),
        max_prompt_tokens: limits.max_prompt_tokens,
        session_ttl: limits.session_ttl.get(),
        session_memory: usize_of(limits.session_memory.bytes()),
        keep_for: store.keep_for.get(),
        keep_outcomes: store.keep_outcomes,
        keep_bytes: usize_of(store.keep_memory.bytes()),
        quota: Quota {
            requests: limits.client_requests_per_minute,
            tokens: limits.client_tokens_per_minute,
        },
        model: model.to_owned(),
        rule_jobs: limits.rule_jobs,
        rules_bytes: store.max_rules_size.bytes(),
        event_bytes: EVENT_BYTES.min(store.max_size.bytes() / EVENT_SHARE),
        ..ServiceConfig::default()
    }
}

fn topics(config: &Config) -> Topics {
    let mqtt = &config.mqtt;
    let topics = Topics::new(config.node.base.as_str(), mqtt.reply_topics.clone())
        .with_max_levels(mqtt.max_topic_levels);
    match &mqtt.pool {
        Some(pool) => topics.in_pool(&mqtt.pool_base, pool),
        None => topics,
    }
}

/// User and password of the link.
pub(crate) fn credentials(config: &Config) -> Result<Option<(String, String)>, Fault> {
    let mqtt = &config.mqtt;
    let Some(username) = mqtt.username.clone() else {
        return Ok(None);
    };
    let password = match (&mqtt.password, &mqtt.password_file) {
        (Some(password), _) => password.expose().to_owned(),
        (None, Some(file)) => {
            is_given("mqtt.password_file", Some(file))?;
            first_line(file)?
        }
        (None, None) => String::new(),
    };
    Ok(Some((username, password)))
}

/// The TLS files of the link, if it uses TLS.
pub(crate) fn tls(config: &Config) -> Option<TlsFiles> {
    let tls = &config.mqtt.tls;
    Some(TlsFiles {
        ca: tls.ca.clone()?,
        identity: tls.cert.clone().zip(tls.key.clone()),
    })
}

/// The TLS files of the link, unless one of them was to come from systemd and did not.
pub(crate) fn given_tls(config: &Config) -> Result<Option<TlsFiles>, Fault> {
    let files = &config.mqtt.tls;
    is_given("mqtt.tls.ca", files.ca.as_deref())?;
    is_given("mqtt.tls.cert", files.cert.as_deref())?;
    is_given("mqtt.tls.key", files.key.as_deref())?;
    Ok(tls(config))
}

/// Fails where the file of `key` is a credential that systemd has not given to this process.
pub(crate) fn is_given(key: &str, file: Option<&Path>) -> Result<(), Fault> {
    let Some(name) = file.and_then(missing_credential) else {
        return Ok(());
    };
    let message = format!(
        "the credential {name:?} ({key}) is not there: systemd gives it to the unit's own processes alone, by \
         LoadCredential={name}:FILE in the unit; elsewhere name a file that can be read"
    );
    Err(Fault::new(Exit::Config, message))
}

fn first_line(file: &Path) -> Result<String, Fault> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Fault::new(
            Exit::Config,
            format!(
                "{}: the password can't be read: {error} (mqtt.password_file)",
                file.display()
            ),
        )
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What clients are told of the bounds, in the status.
pub(crate) fn limits(config: &Config) -> Value {
    let limits = &config.limits;
    json!({
        "max_payload": limits.max_payload.bytes(),
        "max_tokens": limits.max_tokens,
        "max_prompt_tokens": limits.max_prompt_tokens,
        "max_deadline_ms": limits.max_deadline.as_millis(),
        "queue": limits.queue,
        "slots": config.runtime.slots,
    })
}

/// The fault of a session that another client took.
pub(crate) fn taken_over() -> Fault {
    Fault::new(
        Exit::TakenOver,
        "another client with the same id took over the MQTT session: give each node its own node.name or \
         mqtt.client_id",
    )
}

/// Bytes as this machine counts them.
pub(crate) fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_is_not_there_is_named_with_its_key() {
        let file = Path::new("credential:broker");
        let fault = is_given("mqtt.tls.key", Some(file)).expect_err("it is not there");
        assert_eq!(fault.exit, Exit::Config);
        assert!(
            fault.message.contains("\"broker\" (mqtt.tls.key)"),
            "{}",
            fault.message
        );
        assert!(is_given("mqtt.tls.key", Some(Path::new("/etc/key.pem"))).is_ok());
        assert!(is_given("mqtt.tls.key", None).is_ok());
    }
}
