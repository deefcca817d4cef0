//! The URL of a broker, as `mqtt://user:password@host:port/base`.

use std::str::FromStr;

use url::Url;

/// A broker's address on a command line. The path, if there is one, is the daemon's base topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// The name or address.
    pub host: String,
    /// The port: without one 1883, or 8883 with TLS.
    pub port: u16,
    /// Whether the scheme is `mqtts`.
    pub tls: bool,
    /// The user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The base topic of the daemon.
    pub base: Option<String>,
}

/// The reason why a text is no URL of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: write mqtt://[user:password@]host[:port][/base/topic] or mqtts://…")]
pub struct BrokerUrlError(String);

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `localhost` and `localhost:1883` are what people type.
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("mqtt://{text}")
        };
        let url = Url::parse(&full).map_err(|error| BrokerUrlError(error.to_string()))?;
        let tls = match url.scheme() {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" => true,
            other => return Err(BrokerUrlError(format!("unknown scheme {other}"))),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| BrokerUrlError("no host".to_owned()))?;
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8_lossy()
                .into_owned()
        };
        let base = decoded(url.path().trim_matches('/'));
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(if tls { 8883 } else { 1883 }),
            tls,
            username: Some(decoded(url.username())).filter(|user| !user.is_empty()),
            password: url.password().map(decoded),
            base: Some(base).filter(|base| !base.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn urls_are_read_as_they_are_typed() {
        let url: BrokerUrl = "mqtts://ann:p%40ss@broker.local/phi-edge/v1/box".parse().unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.tls),
            ("broker.local", 8883, true)
        );
        assert_eq!(url.username.as_deref(), Some("ann"));
        assert_eq!(url.password.as_deref(), Some("p@ss"));
        assert_eq!(url.base.as_deref(), Some("phi-edge/v1/box"));
        let plain: BrokerUrl = "localhost".parse().unwrap();
        assert_eq!(
            (plain.host.as_str(), plain.port, plain.base),
            ("localhost", 1883, None)
        );
        let v6: BrokerUrl = "mqtt://[::1]:2000".parse().unwrap();
        assert_eq!((v6.host.as_str(), v6.port), ("::1", 2000));
    }

    #[test]
    fn others_are_refused_with_the_form() {
        for bad in ["http://x", "mqtt://", "mqtt://h:99999"] {
            let error = bad.parse::<BrokerUrl>().unwrap_err().to_string();
            assert!(error.contains("mqtt://"), "{error}");
        }
    }
}
