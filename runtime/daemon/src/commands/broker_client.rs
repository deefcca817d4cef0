//! The connection of a command to a broker.

use std::path::PathBuf;

use clap::Args;
use phi_edge_mqtt::{BrokerUrl, ClientOptions, TlsFiles};

use crate::exit::{Exit, Fault};
use crate::machine::identity;

/// The flags for a broker behind TLS.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TlsArgs {
    /// For mqtts://: the authority that signed the broker's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// For mqtts://: the client's own certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// For mqtts://: the key of the client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

/// The options with which a command connects to a broker. Its client id differs with each start.
pub(crate) fn client_options(url: &BrokerUrl, command: &str, tls: &TlsArgs) -> Result<ClientOptions, Fault> {
    let tls = match (url.tls, &tls.ca) {
        (true, Some(ca)) => Some(TlsFiles {
            ca: ca.clone(),
            identity: tls.cert.clone().zip(tls.key.clone()),
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
