//! `phi-edge top`: the state of one node or of a fleet, from their retained messages.

mod nodes;
mod screen;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use phi_edge_mqtt::{BrokerUrl, Client};
use tokio::time::Instant;

use crate::commands::broker_client::{self, TlsArgs};
use crate::exit::Fault;
use nodes::Nodes;

/// The maximum time between two frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(500);
/// The time that a single snapshot waits for retained messages.
const SNAPSHOT_TIME: Duration = Duration::from_secs(2);
/// The filter for all nodes, where the URL names none.
const ALL_NODES: &str = "phi-edge/v1/+";

#[derive(Args)]
pub(crate) struct TopArgs {
    /// The broker: mqtt://[user:password@]host[:port][/base/topic], or mqtts://; all nodes unless a base topic is given.
    #[arg(long, value_name = "URL", default_value = "mqtt://localhost")]
    pub(crate) broker: BrokerUrl,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Print what there is as text, once; so too where the output is no terminal.
    #[arg(long)]
    pub(crate) once: bool,
}

/// Shows the nodes until `q`; once, as text, where the output is no terminal or `--once` is given.
pub(crate) fn top(args: &TopArgs) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fault::failed)?;
    runtime.block_on(async {
        let mut nodes = Nodes::default();
        let mut client = connect(args).await?;
        if args.once || !std::io::stdout().is_terminal() {
            listen(&mut client, &mut nodes, SNAPSHOT_TIME).await?;
            print!("{}", nodes.text());
            return Ok(());
        }
        let mut screen = screen::Screen::open().map_err(Fault::failed)?;
        let mut lost: Option<String> = None;
        loop {
            screen.draw(&nodes, lost.as_deref()).map_err(Fault::failed)?;
            if screen::Screen::is_left().map_err(Fault::failed)? {
                return Ok(());
            }
            match listen(&mut client, &mut nodes, FRAME_INTERVAL).await {
                Ok(()) => lost = None,
                Err(fault) => {
                    lost = Some(fault.message);
                    tokio::time::sleep(FRAME_INTERVAL).await;
                    if let Ok(again) = connect(args).await {
                        client = again;
                    }
                }
            }
        }
    })
}

async fn connect(args: &TopArgs) -> Result<Client, Fault> {
    let url = &args.broker;
    let options = broker_client::client_options(url, "top", &args.tls)?;
    let mut client = Client::connect(options).await?;
    let base = url.base.as_deref().unwrap_or(ALL_NODES);
    client.subscribe(&format!("{base}/status")).await?;
    client.subscribe(&format!("{base}/stats")).await?;
    Ok(client)
}

/// Stores the messages that arrive within `time`.
async fn listen(client: &mut Client, nodes: &mut Nodes, time: Duration) -> Result<(), Fault> {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if let Some(message) = client.receive(left).await? {
            nodes.take(&message.topic, &message.payload);
        }
    }
    Ok(())
}
