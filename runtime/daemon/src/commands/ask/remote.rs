//! `phi-edge ask --broker`: one prompt, answered by a daemon at a broker.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use phi_edge_mqtt::{BrokerUrl, Client, ClientOptions, Received, Topics};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::ask_args::TruncationArg;
use super::status_bar::StatusBar;
use super::{AskArgs, LEFT_OUT, images};
use crate::commands::broker_client::{self, TlsArgs};
use crate::exit::{Exit, Fault};
use crate::machine::identity;
use crate::run::signals::{ControlReceiver, StopSignals};
use crate::terminal;

/// The time in which the status of a daemon must arrive.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum time between two replies; requests on a loaded machine may queue for long.
const REPLY_TIMEOUT: Duration = Duration::from_mins(10);

/// The time that a cancellation may take to reach the broker.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends the prompt and prints the answer as it comes. A signal that ends the process cancels the request at the daemon first; a
/// second one ends the process at once.
pub(crate) fn ask(args: &AskArgs, url: &BrokerUrl, prompt: String, images: &[Vec<u8>]) -> Result<(), Fault> {
    let pictures = pictures(args, images)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fault::failed)?;
    runtime.block_on(async {
        let mut signals = StopSignals::new(ControlReceiver::default())?;
        let mut conversation = tokio::select! {
            begun = Conversation::begin(args, url) => begun?,
            () = signals.next() => return Err(Fault::failed("interrupted")),
        };
        tokio::select! {
            done = conversation.hold(args, prompt, pictures) => {
                if done.is_ok() {
                    conversation.client.close().await;
                }
                return done;
            }
            () = signals.next() => {}
        }
        let cancelled = tokio::select! {
            cancelled = timeout(CANCEL_TIMEOUT, conversation.cancel()) => matches!(cancelled, Ok(true)),
            () = signals.next() => false,
        };
        Err(Fault::failed(if cancelled {
            "interrupted"
        } else {
            "interrupted; the request could not be cancelled, so the daemon may go on with it until its deadline"
        }))
    })
}

/// A request to a daemon.
struct Conversation {
    client: Client,
    topics: Topics,
    id: String,
    response: String,
    daemon: FoundDaemon,
}

impl Conversation {
    /// Finds the daemon and subscribes to the replies.
    async fn begin(args: &AskArgs, url: &BrokerUrl) -> Result<Self, Fault> {
        let mut client = Client::connect(options(args, url)?).await?;
        let daemon = find(&mut client, url.base.as_deref()).await?;
        let topics = Topics::new(daemon.base.clone(), Vec::new());
        let id = format!("ask-{}", identity::start_id());
        let response = topics.response(None, &id);
        client.subscribe(&response).await?;
        Ok(Self {
            client,
            topics,
            id,
            response,
            daemon,
        })
    }

    /// Sends the request and prints the answer.
    async fn hold(
        &mut self,
        args: &AskArgs,
        prompt: String,
        pictures: Map<String, Value>,
    ) -> Result<(), Fault> {
        let progress = self.daemon.shows_progress && StatusBar::is_possible();
        let mut request = request(args, &self.id, prompt, progress);
        request.extend(pictures);
        let request = Value::Object(request).to_string();
        self.daemon.check_size(request.len())?;
        let reply_to = Some((self.response.as_str(), self.id.as_bytes()));
        self.client
            .publish(&self.topics.request(None), request, reply_to)
            .await?;
        let mut printed = String::new();
        let mut status = StatusBar::new("waiting for the answer".to_owned());
        loop {
            let Some(message) = self.client.receive(REPLY_TIMEOUT).await? else {
                return Err(Fault::new(
                    Exit::Unavailable,
                    "no answer came; is the daemon running?",
                ));
            };
            if message.topic != self.response {
                continue;
            }
            let body: Value = serde_json::from_slice(&message.payload)
                .map_err(|error| Fault::failed(format!("the answer can't be read: {error}")))?;
            match reply_kind(&message, &body) {
                ReplyKind::Chunk if body["progress"].is_object() => {
                    let number = |key: &str| body["progress"][key].as_u64().unwrap_or_default();
                    status.set_progress(number("done"), number("total"));
                }
                ReplyKind::Chunk if args.json => {}
                ReplyKind::Chunk => {
                    status.clear();
                    let delta = body["delta"].as_str().unwrap_or_default();
                    printed.push_str(delta);
                    print(&terminal::text(delta))?;
                }
                ReplyKind::Final => {
                    status.clear();
                    return finish(args, &body, &printed);
                }
                ReplyKind::Error => {
                    status.clear();
                    let error = &body["error"];
                    let text = |key: &str| error[key].as_str().unwrap_or("?").to_owned();
                    return Err(Fault::failed(format!("{}: {}", text("code"), text("message"))));
                }
            }
        }
    }

    /// Cancels the request at the daemon; false if the broker does not take the message.
    async fn cancel(mut self) -> bool {
        let body = json!({ "id": self.id }).to_string();
        let taken = self.client.publish(&self.topics.cancel(None), body, None).await;
        if taken.is_ok() {
            self.client.close().await;
        }
        taken.is_ok()
    }
}

enum ReplyKind {
    Chunk,
    Final,
    Error,
}

fn reply_kind(message: &Received, body: &Value) -> ReplyKind {
    match message.property("kind") {
        Some("chunk") => ReplyKind::Chunk,
        Some("error") => ReplyKind::Error,
        Some(_) => ReplyKind::Final,
        // A bridge may have dropped the property.
        None if body.get("delta").is_some() => ReplyKind::Chunk,
        None if body.get("error").is_some() => ReplyKind::Error,
        None => ReplyKind::Final,
    }
}

fn finish(args: &AskArgs, body: &Value, printed: &str) -> Result<(), Fault> {
    if let Some(left_out_tokens) = body["usage"]["left_out_tokens"].as_u64() {
        tracing::warn!(left_out_tokens, "{LEFT_OUT}");
    }
    if args.json {
        return print(&format!("{}\n", terminal::json(&body.to_string())));
    }
    let text = body["text"].as_str().unwrap_or_default();
    // Chunks may get lost; the final text never lies.
    match text.strip_prefix(printed) {
        Some(rest) => print(&terminal::text(&format!("{rest}\n"))),
        None => print(&terminal::text(&format!("\n{text}\n"))),
    }
}

/// The members of a request about pictures: `images` in base64, and `detail`.
fn pictures(args: &AskArgs, images: &[Vec<u8>]) -> Result<Map<String, Value>, Fault> {
    let mut pictures = Map::new();
    if !images.is_empty() {
        let encoded = images.iter().map(|image| STANDARD.encode(image).into());
        pictures.insert("images".into(), Value::Array(encoded.collect()));
    }
    if let Some(detail) = images::detail(args.num_crops)? {
        pictures.insert("detail".into(), detail.into());
    }
    Ok(pictures)
}

fn request(args: &AskArgs, id: &str, prompt: String, progress: bool) -> Map<String, Value> {
    let mut request = Map::new();
    request.insert("id".into(), id.into());
    request.insert("prompt".into(), prompt.into());
    request.insert("max_tokens".into(), args.max_tokens.into());
    request.insert("temperature".into(), json!(args.temperature));
    request.insert("top_p".into(), json!(args.top_p));
    request.insert("top_k".into(), args.top_k.into());
    request.insert("seed".into(), args.seed.into());
    request.insert("stream".into(), (!args.json).into());
    // A daemon of an earlier version refuses what it does not know.
    if progress {
        request.insert("progress".into(), true.into());
    }
    if !matches!(args.truncation, TruncationArg::Error) {
        request.insert("truncation".into(), args.truncation.word().into());
    }
    if let Some(system) = &args.system {
        request.insert("system".into(), system.as_str().into());
    }
    if !args.stop.is_empty() {
        request.insert("stop".into(), json!(args.stop));
    }
    request
}

fn options(args: &AskArgs, url: &BrokerUrl) -> Result<ClientOptions, Fault> {
    let tls = TlsArgs {
        ca: args.ca.clone(),
        cert: args.cert.clone(),
        key: args.key.clone(),
    };
    broker_client::client_options(url, "ask", &tls)
}

/// A daemon at the broker.
struct FoundDaemon {
    base: String,
    /// Whether requests may ask for the progress of their prompt.
    shows_progress: bool,
    /// The most bytes of a request, where it says so.
    max_payload: Option<u64>,
}

impl FoundDaemon {
    /// The daemon at `base` by its status; `None`: it is offline.
    fn of(base: &str, status: &Value) -> Option<Self> {
        let features = status["features"].as_array();
        (status["state"] != "offline").then(|| Self {
            base: base.to_owned(),
            shows_progress: features.is_some_and(|features| features.iter().any(|f| f == "progress")),
            max_payload: status["limits"]["max_payload"].as_u64(),
        })
    }

    /// Fails where a request of `bytes` is more than the daemon takes: it may be told so only after a connection was lost, or
    /// not at all.
    fn check_size(&self, bytes: usize) -> Result<(), Fault> {
        match self.max_payload {
            Some(most) if bytes as u64 > most => Err(Fault::failed(format!(
                "the request has {bytes} bytes, and the daemon takes {most} (limits.max_payload and mqtt.max_packet there); pictures \
                 grow by a third on the way: send a smaller one, or raise the limits (docs/vision.md)"
            ))),
            _ => Ok(()),
        }
    }
}

/// Returns the daemon, found by its retained status: the one with that base, or the only one at the
/// broker. A daemon publishes its status once it is subscribed, so a request that is sent from now on reaches it.
async fn find(client: &mut Client, base: Option<&str>) -> Result<FoundDaemon, Fault> {
    let filter = format!("{}/status", base.unwrap_or("phi-edge/v1/+"));
    client.subscribe(&filter).await?;
    // The last word of each: one that has just started says so more than once.
    let mut states: BTreeMap<String, Option<FoundDaemon>> = BTreeMap::new();
    let mut wait = DISCOVERY_TIMEOUT;
    while let Some(message) = client.receive(wait).await? {
        // More would come right behind the first.
        wait = Duration::from_millis(if base.is_some() { 0 } else { 300 });
        let status: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let Some(base) = message.topic.strip_suffix("/status") else {
            continue;
        };
        states.insert(base.to_owned(), FoundDaemon::of(base, &status));
    }
    let offline = states.keys().next().cloned();
    let mut found: Vec<FoundDaemon> = states.into_values().flatten().collect();
    if found.len() == 1
        && let Some(daemon) = found.pop()
    {
        return Ok(daemon);
    }
    match (found.as_slice(), offline) {
        ([], Some(base)) => Err(Fault::new(
            Exit::Unavailable,
            format!("the daemon at {base} is offline"),
        )),
        ([], None) => Err(Fault::new(
            Exit::Unavailable,
            format!(
                "no phi-edge is at this broker (looked for {filter}); name its base in the URL: mqtt://host/base/topic"
            ),
        )),
        (many, _) => Err(Fault::new(
            Exit::Usage,
            format!(
                "several are at this broker, name one in the URL, as in mqtt://host/{}: {}",
                many[0].base,
                many.iter()
                    .map(|daemon| daemon.base.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        )),
    }
}

fn print(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Fault::failed(format!("the answer can't be written to standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ask: AskArgs,
    }

    #[test]
    fn a_request_that_the_daemon_would_not_take_is_not_sent() {
        let status = json!({"state": "ready", "features": ["progress"], "limits": {"max_payload": 1000}});
        let daemon = FoundDaemon::of("b", &status).unwrap();
        assert!(daemon.shows_progress);
        assert!(daemon.check_size(1000).is_ok());
        let fault = daemon.check_size(1001).unwrap_err().to_string();
        assert!(
            fault.contains("1001 bytes") && fault.contains("limits.max_payload"),
            "{fault}"
        );
        let silent = FoundDaemon::of("b", &json!({"state": "starting"})).unwrap();
        assert!(silent.check_size(usize::MAX).is_ok());
        assert!(FoundDaemon::of("b", &json!({"state": "offline"})).is_none());
    }

    #[test]
    fn pictures_go_in_base64() {
        let check = |flags: &[&str], images: &[Vec<u8>], expected: Value| {
            let line = ["ask", "--broker", "mqtt://b"].iter().chain(flags).chain(&["p"]);
            let args = Line::try_parse_from(line)
                .map_err(|error| error.to_string())
                .unwrap()
                .ask;
            let pictures = Value::Object(pictures(&args, images).unwrap());
            assert_eq!(pictures, expected);
        };
        check(&[], &[], json!({}));
        let one = vec![0xFF, 0xD8, 0xFF];
        check(
            &["--image", "a"],
            std::slice::from_ref(&one),
            json!({"images": ["/9j/"]}),
        );
        check(
            &["--image", "a", "--image", "b", "--num-crops", "16"],
            &[one.clone(), vec![0]],
            json!({"images": ["/9j/", "AA=="], "detail": "high"}),
        );
    }

    #[test]
    fn crops_are_of_pictures() {
        for line in [
            &["ask", "--num-crops", "4", "p"][..],
            &["ask", "--image", "a", "--num-crops", "17", "p"],
            &["ask", "--image", "a", "--raw", "p"],
        ] {
            assert!(Line::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
