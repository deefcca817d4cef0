//! The classification of connection errors, with reasons for the operator.

use std::io::ErrorKind;

use rumqttc::{ConnectReturnCode, ConnectionError, DisconnectReasonCode, Error, StateError, TlsError};

/// The reason why a connection could not be made or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionFailure {
    /// Another client of the same id has taken the session over.
    TakenOver,
    /// The broker refuses the client: credentials, ban, client id.
    Refused(String),
    /// This side closed the connection.
    Closed,
    /// The broker closed the connection without a reason. Some brokers do so when another client takes the session over.
    Dropped,
    /// The connection was reset: by the broker, as [`ConnectionFailure::Dropped`], or by something on the way.
    Reset,
    /// Any other failure, which a later attempt may not have.
    Down(String),
}

impl ConnectionFailure {
    pub(crate) fn classify(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::RequestsDone | ConnectionError::DisconnectTimeout => Self::Closed,
            ConnectionError::ConnectionRefused(code)
            | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => Self::refused(*code),
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code,
                reason_string,
            }) => match reason_code {
                DisconnectReasonCode::SessionTakenOver => Self::TakenOver,
                DisconnectReasonCode::ServerShuttingDown => Self::Down("the broker shuts down".into()),
                code => {
                    let why = reason_string
                        .as_deref()
                        .map(|why| format!(": {why}"))
                        .unwrap_or_default();
                    Self::Down(format!("the broker ended the connection: {code:?}{why}"))
                }
            },
            ConnectionError::MqttState(StateError::ConnectionAborted) => Self::Dropped,
            ConnectionError::Io(error)
            | ConnectionError::MqttState(
                StateError::Io(error) | StateError::Deserialization(Error::Io(error)),
            ) if is_reset(error.kind()) => Self::Reset,
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                Self::Down("the broker did not answer in time".into())
            }
            ConnectionError::Timeout(_) => Self::Down("no answer from the broker in time".into()),
            ConnectionError::Io(error) => Self::Down(error.to_string()),
            ConnectionError::MqttState(StateError::Io(error)) => Self::Down(error.to_string()),
            ConnectionError::Tls(TlsError::Io(error)) => Self::Down(tls_reason(&error.to_string())),
            ConnectionError::Tls(error) => Self::Down(tls_reason(&error.to_string())),
            other => Self::Down(other.to_string()),
        }
    }

    fn refused(code: ConnectReturnCode) -> Self {
        use ConnectReturnCode as Code;
        match code {
            Code::BadUserNamePassword | Code::NotAuthorized | Code::BadAuthenticationMethod => Self::Refused(
                "the broker refuses user or password: see mqtt.username and mqtt.password_file".into(),
            ),
            Code::Banned => Self::Refused("the broker has banned this client".into()),
            Code::BadClientId | Code::ClientIdentifierNotValid => {
                Self::Refused("the broker refuses the client id: see mqtt.client_id".into())
            }
            Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
                Self::Refused("the broker does not speak MQTT 5, which phi-edge needs".into())
            }
            other => Self::Down(format!("the broker refuses the connection: {other:?}")),
        }
    }
}

/// Whether the other side closed the connection while this side was sending. A DISCONNECT with a reason is lost then.
fn is_reset(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

/// Returns the library's message about a failed handshake, with the usual cause and what to do.
fn tls_reason(error: &str) -> String {
    let hint = if error.contains("NotValidYet") || error.contains("not valid yet") {
        " (is this machine's clock right?)"
    } else if error.contains("UnknownIssuer") || error.contains("BadSignature") {
        " (mqtt.tls.ca does not hold the authority that signed the broker's certificate)"
    } else if error.contains("CertificateRequired") || error.contains("certificate required") {
        " (the broker wants a client certificate: see mqtt.tls.cert and mqtt.tls.key)"
    } else if error.contains("NotValidForName") || error.contains("not valid for name") {
        " (mqtt.host is not a name in the broker's certificate)"
    } else {
        ""
    };
    format!("TLS: {error}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_retrying_can_not_mend_is_told_apart() {
        let server = |reason_code| {
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code,
                reason_string: None,
            })
        };
        assert_eq!(
            ConnectionFailure::classify(&server(DisconnectReasonCode::SessionTakenOver)),
            ConnectionFailure::TakenOver
        );
        assert!(matches!(
            ConnectionFailure::classify(&server(DisconnectReasonCode::ServerBusy)),
            ConnectionFailure::Down(_)
        ));
        let refused = |code| ConnectionFailure::classify(&ConnectionError::ConnectionRefused(code));
        assert!(matches!(
            refused(ConnectReturnCode::NotAuthorized),
            ConnectionFailure::Refused(_)
        ));
        assert!(matches!(
            refused(ConnectReturnCode::ServerUnavailable),
            ConnectionFailure::Down(_)
        ));
        assert_eq!(
            ConnectionFailure::classify(&ConnectionError::RequestsDone),
            ConnectionFailure::Closed
        );
    }

    #[test]
    fn a_reset_may_be_the_brokers_way_to_close() {
        let reset = || std::io::Error::from(ErrorKind::ConnectionReset);
        for error in [
            ConnectionError::Io(reset()),
            ConnectionError::MqttState(StateError::Io(reset())),
            ConnectionError::MqttState(StateError::Deserialization(Error::Io(reset()))),
        ] {
            assert_eq!(
                ConnectionFailure::classify(&error),
                ConnectionFailure::Reset,
                "{error}"
            );
        }
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert!(matches!(
            ConnectionFailure::classify(&ConnectionError::Io(refused)),
            ConnectionFailure::Down(_)
        ));
    }
}
