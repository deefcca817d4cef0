//! The connection of a command to a broker.

use std::path::PathBuf;

use phi_edge_mqtt::{BrokerUrl, ClientOptions, TlsFiles};

use crate::exit::{Exit, Fault};
use crate::machine::identity;

/// The options with which a command connects to a broker. Its client id differs with each start.
pub(crate) fn client_options(
    url: &BrokerUrl,
    command: &str,
    ca: Option<&PathBuf>,
    identity: Option<(&PathBuf, &PathBuf)>,
) -> Result<ClientOptions, Fault> {
    let tls = match (url.tls, ca) {
        (true, Some(ca)) => Some(TlsFiles {
            ca: ca.clone(),
            identity: identity.map(|(cert, key)| (cert.clone(), key.clone())),
        }),
        (true, None) => {
            return Err(Fault::new(
                Exit::Usage,
                "mqtts:// needs --ca FILE, the broker's authority",
            ));
        }
        (false, _) => None,
    };
    let password = url.password.clone().unwrap_or_default();
    Ok(ClientOptions {
        host: url.host.clone(),
        port: url.port,
        client_id: format!("phi-edge-{command}-{}", identity::start_id()),
        credentials: url.username.clone().map(|user| (user, password)),
        tls,
        session: None,
    })
}
