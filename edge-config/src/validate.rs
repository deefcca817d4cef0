//! The checks of values that are valid by themselves but may contradict each other.

use std::collections::BTreeMap;

use crate::{ByteSize, Config, ConfigError, Origin, Provider};

/// The bytes of a packet beyond its payload: topic, properties, headers. `mqtt.max_packet` must leave room for them,
/// so that a payload just above the limit still arrives and is answered `too_large`.
const PACKET_OVERHEAD: u64 = 4 << 10;

/// The options of CUDA and WebGPU that have a run's commands recorded and repeated. A repeated run takes no inputs from the host,
/// where the node's are.
const CAPTURE_OPTIONS: [&str; 2] = ["enable_cuda_graph", "enableGraphCapture"];

type Origins = BTreeMap<String, Origin>;

/// Refuses values that contradict each other.
pub(crate) fn validate(config: &Config, origins: &Origins) -> Result<(), ConfigError> {
    let mqtt = &config.mqtt;
    let conflict = |key: &'static str, problem: String| {
        let origin = origins.get(key).cloned().unwrap_or(Origin::Default);
        Err(ConfigError::Conflict { key, origin, problem })
    };
    let tls = &mqtt.tls;
    if tls.cert.is_some() && tls.key.is_none() {
        return conflict(
            "mqtt.tls.cert",
            "is set without `mqtt.tls.key`; name the certificate's key".to_owned(),
        );
    }
    if tls.key.is_some() && tls.cert.is_none() {
        return conflict(
            "mqtt.tls.key",
            "is set without `mqtt.tls.cert`; name the key's certificate".to_owned(),
        );
    }
    if tls.cert.is_some() && tls.ca.is_none() {
        let problem = "is set without `mqtt.tls.ca`; name the certificates that the broker's descends from \
                       (for a public one often /etc/ssl/certs/ca-certificates.crt)";
        return conflict("mqtt.tls.cert", problem.to_owned());
    }
    if mqtt.password.is_some()
        && let Some(file) = &mqtt.password_file
    {
        let problem = format!(
            "is set, and so is `mqtt.password_file` ({}); remove one",
            file.display()
        );
        return conflict("mqtt.password", problem);
    }
    if mqtt.username.is_none() {
        let key = if mqtt.password.is_some() {
            "mqtt.password"
        } else {
            "mqtt.password_file"
        };
        if mqtt.password.is_some() || mqtt.password_file.is_some() {
            return conflict(key, "is set without `mqtt.username`; name the user".to_owned());
        }
    }
    if !mqtt.keep_alive.as_millis().is_multiple_of(1_000) {
        return conflict(
            "mqtt.keep_alive",
            "must be whole seconds, as MQTT counts them".to_owned(),
        );
    }
    if !mqtt.session_expiry.as_millis().is_multiple_of(1_000) {
        return conflict(
            "mqtt.session_expiry",
            "must be whole seconds, as MQTT counts them".to_owned(),
        );
    }
    validate_provider(config, origins)?;
    if config.limits.max_payload.bytes().saturating_add(PACKET_OVERHEAD) > mqtt.max_packet.bytes() {
        let problem = format!(
            "({}) must be at least {} more than `limits.max_payload` ({}), for topic and properties",
            mqtt.max_packet,
            ByteSize::from_bytes(PACKET_OVERHEAD),
            config.limits.max_payload
        );
        return conflict("mqtt.max_packet", problem);
    }
    Ok(())
}

/// Refuses settings of the execution provider that contradict each other.
fn validate_provider(config: &Config, origins: &Origins) -> Result<(), ConfigError> {
    let runtime = &config.runtime;
    let conflict = |key: &'static str, problem: &str| {
        let origin = origins.get(key).cloned().unwrap_or(Origin::Default);
        let problem = problem.to_owned();
        Err(ConfigError::Conflict { key, origin, problem })
    };
    if runtime.provider == Provider::Plugin && runtime.plugin.library.is_none() {
        return conflict(
            "runtime.provider",
            "is \"plugin\", and `runtime.plugin.library` is not set; name the provider's library",
        );
    }
    if runtime.plugin.options.is_some() && runtime.plugin.library.is_none() {
        return conflict(
            "runtime.plugin.options",
            "is set without `runtime.plugin.library`; name the provider's library",
        );
    }
    let Some(options) = &runtime.provider_options else {
        return Ok(());
    };
    let captures = |(name, value): (&String, &String)| {
        CAPTURE_OPTIONS.iter().any(|option| name.ends_with(option))
            && !matches!(value.as_str(), "" | "0" | "false")
    };
    if options.iter().any(captures) {
        return conflict(
            "runtime.provider_options",
            "has a graph captured, which would repeat its first run whatever the next one's tokens are; remove \
             enable_cuda_graph or enableGraphCapture",
        );
    }
    match runtime.provider {
        // Of `auto` the warnings speak.
        Provider::Auto | Provider::Cuda | Provider::WebGpu => Ok(()),
        Provider::Plugin => conflict(
            "runtime.provider_options",
            "is set, and `runtime.provider` is \"plugin\"; set `runtime.plugin.options` instead",
        ),
        Provider::Cpu | Provider::DirectMl => conflict(
            "runtime.provider_options",
            "is set, and `runtime.provider` takes no options; remove it",
        ),
    }
}

/// Warnings about settings that are allowed, one line each.
pub(crate) fn warnings(config: &Config, origins: &Origins) -> Vec<String> {
    let mqtt = &config.mqtt;
    let mut warnings = Vec::new();
    let origin = |key: &str| origins.get(key).map(ToString::to_string).unwrap_or_default();
    if mqtt.password.is_some() {
        warnings.push(format!(
            "{}: `mqtt.password` holds a password in clear; put it into a file that only the service user may \
             read and name it in `mqtt.password_file`",
            origin("mqtt.password")
        ));
    }
    if mqtt.embedded && mqtt.tls.is_on() {
        warnings.push(format!(
            "{}: `mqtt.tls` has no effect with `mqtt.embedded`, whose broker is reached within the machine",
            origin("mqtt.tls.ca")
        ));
    }
    if mqtt.embedded && !mqtt.embedded_listen.ip().is_loopback() && mqtt.embedded_password_file.is_none() {
        warnings.push(format!(
            "{}: `mqtt.embedded_listen` ({}) is open to the network without passwords; set \
             `mqtt.embedded_password_file`",
            origin("mqtt.embedded_listen"),
            mqtt.embedded_listen
        ));
    }
    let runtime = &config.runtime;
    if runtime.plugin.library.is_some() && !matches!(runtime.provider, Provider::Plugin | Provider::Auto) {
        warnings.push(format!(
            "{}: `runtime.plugin.library` has no effect, since `runtime.provider` is another one",
            origin("runtime.plugin.library")
        ));
    }
    if runtime.provider_options.is_some() && runtime.provider == Provider::Auto {
        warnings.push(format!(
            "{}: `runtime.provider_options` has no effect, since options are those of one provider and `runtime.provider` is \
             \"auto\"",
            origin("runtime.provider_options")
        ));
    }
    if let Some(address) = config.metrics.listen
        && !address.ip().is_loopback()
    {
        warnings.push(format!(
            "{}: `metrics.listen` ({address}) is open to the network, without passwords and encryption; let Prometheus come \
             by a loopback address or a firewall's leave",
            origin("metrics.listen")
        ));
    }
    warnings
}
