//! The configurations of the link and of the embedded broker.

use std::path::Path;

use phi_edge_config::{Config, missing_credential};
use phi_edge_mqtt::{EmbeddedBroker, EmbeddedBrokerConfig, LinkConfig, RequestLimits, TlsFiles, Topics};

use super::usize_of;
use crate::exit::{Exit, Fault};
use crate::machine::identity;

/// The embedded broker's configuration; none if the broker is not embedded.
pub(crate) fn embedded_broker(config: &Config) -> Result<Option<EmbeddedBrokerConfig>, Fault> {
    let mqtt = &config.mqtt;
    if !mqtt.embedded {
        return Ok(None);
    }
    require_credential(
        "mqtt.embedded_password_file",
        mqtt.embedded_password_file.as_deref(),
    )?;
    require_credential("mqtt.embedded_acl_file", mqtt.embedded_acl_file.as_deref())?;
    Ok(Some(EmbeddedBrokerConfig {
        listen: mqtt.embedded_listen,
        password_file: mqtt.embedded_password_file.clone(),
        acl_file: mqtt.embedded_acl_file.clone(),
        storage: Some(config.store.path.join("broker")),
        max_packet: usize_of(mqtt.max_packet.bytes()),
    }))
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
            checked_tls(config)?
        },
        keep_alive: mqtt.keep_alive.get(),
        session_expiry: mqtt.session_expiry.get(),
        max_packet: u32::try_from(mqtt.max_packet.bytes()).unwrap_or(u32::MAX),
        topics: topics(config),
        node: config.node.name.clone(),
    })
}

/// The limits of a request.
pub(crate) fn request_limits(config: &Config) -> RequestLimits {
    RequestLimits {
        max_payload: usize_of(config.limits.max_payload.bytes()),
        max_tokens: config.limits.max_tokens,
        images: config.limits.images,
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
            require_credential("mqtt.password_file", Some(file))?;
            first_line(file)?
        }
        (None, None) => String::new(),
    };
    Ok(Some((username, password)))
}

/// The TLS files of the link; none if it uses no TLS or the broker is embedded.
pub(crate) fn tls_in_use(config: &Config) -> Option<TlsFiles> {
    if config.mqtt.embedded {
        None
    } else {
        tls_files(config)
    }
}

fn tls_files(config: &Config) -> Option<TlsFiles> {
    let tls = &config.mqtt.tls;
    Some(TlsFiles {
        ca: tls.ca.clone()?,
        identity: tls.cert.clone().zip(tls.key.clone()),
    })
}

/// The TLS files of the link. Fails if one of them is a systemd credential that this process has not.
pub(crate) fn checked_tls(config: &Config) -> Result<Option<TlsFiles>, Fault> {
    let files = &config.mqtt.tls;
    require_credential("mqtt.tls.ca", files.ca.as_deref())?;
    require_credential("mqtt.tls.cert", files.cert.as_deref())?;
    require_credential("mqtt.tls.key", files.key.as_deref())?;
    Ok(tls_files(config))
}

/// Fails if the file of `key` is a credential that systemd has not given to this process.
pub(crate) fn require_credential(key: &str, file: Option<&Path>) -> Result<(), Fault> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_that_is_not_there_is_named_with_its_key() {
        let file = Path::new("credential:broker");
        let fault = require_credential("mqtt.tls.key", Some(file)).expect_err("it is not there");
        assert_eq!(fault.exit, Exit::Config);
        assert!(
            fault.message.contains("\"broker\" (mqtt.tls.key)"),
            "{}",
            fault.message
        );
        assert!(require_credential("mqtt.tls.key", Some(Path::new("/etc/key.pem"))).is_ok());
        assert!(require_credential("mqtt.tls.key", None).is_ok());
    }
}
