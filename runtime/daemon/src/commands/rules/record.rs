//! `phi-edge rules record`: the recording of a broker's messages, one JSON object a line, for `phi-edge rules test`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use phi_edge_mqtt::{BrokerUrl, Client};
use serde::{Deserialize, Serialize};

use crate::commands::broker_client::{self, TlsArgs};
use crate::exit::{Exit, Fault};
use crate::terminal;

pub(super) const EXAMPLE: &str = "Example:
  phi-edge rules record 'plant/+/alarm' > alarms.jsonl";

#[derive(Args)]
pub(super) struct RecordArgs {
    /// Topic filters.
    #[arg(required = true, value_name = "TOPIC")]
    pub(crate) topics: Vec<String>,
    /// The broker: mqtt://[user:password@]host[:port], or mqtts://
    #[arg(long, value_name = "URL", default_value = "mqtt://localhost")]
    pub(crate) broker: BrokerUrl,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    pub(crate) messages: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    pub(crate) seconds: Option<u64>,
}

/// A recorded message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Recorded {
    /// The time of arrival, RFC 3339.
    pub(crate) time: jiff::Timestamp,
    pub(crate) topic: String,
    /// The payload as text; one that is no UTF-8 stands in `payload_base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload_base64: Option<String>,
}

impl Recorded {
    fn of(topic: String, payload: &[u8]) -> Self {
        use base64::Engine as _;
        let text = std::str::from_utf8(payload).ok().map(str::to_owned);
        let raw = text
            .is_none()
            .then(|| base64::engine::general_purpose::STANDARD.encode(payload));
        Self {
            time: jiff::Timestamp::now(),
            topic,
            payload: text,
            payload_base64: raw,
        }
    }

    /// The payload's bytes.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, String> {
        use base64::Engine as _;
        match (&self.payload, &self.payload_base64) {
            (Some(text), None) => Ok(text.clone().into_bytes()),
            (None, Some(raw)) => base64::engine::general_purpose::STANDARD
                .decode(raw)
                .map_err(|error| format!("payload_base64: {error}")),
            _ => Err("needs `payload` or `payload_base64`".to_owned()),
        }
    }
}

/// Prints messages until Ctrl-C, or until the wanted number or time is reached.
pub(super) fn record(args: &RecordArgs) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fault::failed)?;
    runtime.block_on(async {
        tokio::select! {
            done = listen(args) => done,
            // The usual end.
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

async fn listen(args: &RecordArgs) -> Result<(), Fault> {
    let options = broker_client::client_options(&args.broker, "record", &args.tls)?;
    let mut client = Client::connect(options).await?;
    for topic in &args.topics {
        client.subscribe(topic).await?;
    }
    eprintln!("recording; Ctrl-C ends it");
    let until = args
        .seconds
        .map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds));
    let mut left = args.messages.unwrap_or(u64::MAX);
    while left > 0 {
        let wait = until.map_or(Duration::from_hours(1), |until| {
            until.saturating_duration_since(tokio::time::Instant::now())
        });
        let Some(message) = client.receive(wait).await? else {
            if until.is_some_and(|until| until <= tokio::time::Instant::now()) {
                break;
            }
            continue;
        };
        // What the broker had kept from before is none of what happens now.
        if message.retained {
            continue;
        }
        left -= 1;
        let line =
            serde_json::to_string(&Recorded::of(message.topic, &message.payload)).map_err(Fault::failed)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", terminal::json(&line))
            .and_then(|()| out.flush())
            .map_err(|error| Fault::new(Exit::Failed, format!("the recording can't be written: {error}")))?;
    }
    client.close().await;
    Ok(())
}
