//! Asks a phi-edge node over MQTT 5 and prints the answer as it grows.
//!
//! In this checkout: `cargo run -p phi-edge-mqtt --example ask -- press-07 "Why is the sky blue?" [HOST[:PORT]]`.
//! In a crate of your own, with these dependencies:
//!
//! ```toml
//! anyhow = "1"
//! rumqttc = { package = "rumqttc-v5-next", version = "=0.34.0", default-features = false }
//! serde_json = "1"
//! tokio = { version = "1", features = ["macros", "rt", "time"] }
//! ```

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rumqttc::{
    AsyncClient, Broker, Event, MqttOptions, Packet, Publish, PublishOptions, PublishProperties, QoS,
};
use serde_json::{Value, json};

/// Who asks: the user name at the broker, where it has access rules.
const CLIENT: &str = "rust";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(node), Some(question)) = (arguments.next(), arguments.next()) else {
        bail!("usage: ask NODE QUESTION [HOST[:PORT]]");
    };
    let broker = arguments.next().unwrap_or_else(|| "localhost".to_owned());
    let (host, port) = broker.split_once(':').unwrap_or((&broker, "1883"));

    let base = format!("phi-edge/v1/{node}");
    let id = format!("rs-{}", std::process::id());
    let topic = format!("{base}/response/{CLIENT}/{id}");
    let mut options = MqttOptions::new(id.as_str(), Broker::tcp(host, port.parse().context("no port")?));
    options.set_keep_alive(30).set_clean_start(true);
    let (client, mut events) = AsyncClient::builder(options).capacity(16).build();

    let ask = || -> Result<()> {
        let request = json!({"id": id, "prompt": question, "max_tokens": 256, "stream": true});
        let properties = PublishProperties {
            content_type: Some("application/json".into()),
            response_topic: Some(topic.clone()),
            correlation_data: Some(id.clone().into()),
            ..PublishProperties::default()
        };
        let options = PublishOptions::at_least_once().properties(properties);
        client.try_publish(format!("{base}/request/{CLIENT}"), request.to_string(), options)?;
        Ok(())
    };

    let mut answer = Answer::default();
    loop {
        // An error ends the connection; polling again would make a new one.
        match events.poll().await? {
            Event::Incoming(Packet::ConnAck(_)) => client.try_subscribe(topic.as_str(), QoS::AtLeastOnce)?,
            Event::Incoming(Packet::SubAck(_)) => ask()?,
            Event::Incoming(Packet::Publish(reply)) => match answer.take(&reply)? {
                Next::Wait => {}
                Next::Ask(after) => {
                    tokio::time::sleep(after).await;
                    ask()?;
                }
                Next::End => return Ok(()),
            },
            _ => {}
        }
    }
}

/// The answer as far as it is known.
#[derive(Default)]
struct Answer {
    attempt: u64,
    shown: String,
}

enum Next {
    Wait,
    Ask(Duration),
    End,
}

impl Answer {
    fn take(&mut self, reply: &Publish) -> Result<Next> {
        let properties = reply.properties.as_ref().context("a reply of MQTT 3")?;
        let kind = properties.user_properties.iter().find(|(name, _)| name == "kind");
        let body: Value = serde_json::from_slice(&reply.payload)?;
        match kind.map(|(_, kind)| kind.as_str()) {
            Some("chunk") => {
                let attempt = body["attempt"].as_u64().unwrap_or_default();
                if attempt != self.attempt {
                    // The first, or the node has restarted and answers again from the beginning.
                    self.attempt = attempt;
                    self.shown.clear();
                }
                let delta = body["delta"].as_str().unwrap_or_default();
                self.shown.push_str(delta);
                print!("{delta}");
                std::io::stdout().flush()?;
                Ok(Next::Wait)
            }
            Some("final") => {
                // Chunks may get lost; the final reply has all of the text.
                let text = body["text"].as_str().unwrap_or_default();
                match text.strip_prefix(self.shown.as_str()) {
                    Some(rest) => println!("{rest}"),
                    None => println!("\n{text}"),
                }
                let reason = body["finish_reason"].as_str().unwrap_or_default();
                eprintln!("[{reason}, {} tokens]", body["usage"]["completion_tokens"]);
                Ok(Next::End)
            }
            Some("error") => match body["error"]["code"].as_str() {
                Some("busy" | "unavailable") => {
                    let wait = body["error"]["retry_after_ms"].as_u64().unwrap_or(1000);
                    Ok(Next::Ask(Duration::from_millis(wait)))
                }
                _ => bail!("{}", body["error"]),
            },
            _ => Ok(Next::Wait),
        }
    }
}
