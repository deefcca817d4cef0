//! Many devices that talk at once, while the daemon is killed: is each message counted in exactly one window of each of
//! its rules?

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use phi_edge_mqtt::{Client, ClientOptions, Received};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{BASE, Chance, Counted, Daemon, Field, Mosquitto, TIMEOUT, client, demo_model, question};

/// Connections that the devices share, as behind gateways.
const CONNECTIONS: u32 = 5;
/// Devices are parted into so many lines, the groups of the rules.
const LINES: u32 = 10;
/// What is published together.
const BEAT: Duration = Duration::from_millis(10);
/// Counts what all devices say.
const ALL: &str = "all";
/// Words what those of one line say.
const WORDS: &str = "words";
/// The line that it words.
const WORDED: &str = "line-0";

/// How much is to be said, and how often the daemon dies meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Devices.
    pub devices: u32,
    /// Messages of each in a second.
    pub rate: u32,
    /// For how long.
    pub time: Duration,
    /// Times that the daemon is killed and started again.
    pub kills: u32,
    /// The windows' length, in seconds.
    pub window: u64,
}

/// Events by their ids.
#[derive(Default)]
struct Events {
    seen: BTreeMap<String, Value>,
    copies: u64,
    /// Milliseconds from a window's end to its event, of windows that ended in time.
    lags: Vec<u64>,
    late: u64,
    dropped: u64,
    closed_late: u64,
    worded: u64,
    without_words: u64,
    stats: Value,
    most_rss: u64,
    /// Messages counted in a second, between two statistics of one process.
    fastest: f64,
    last_count: Option<(Instant, u64)>,
    flushes: u64,
    last_flushes: u64,
}

/// Runs it.
///
/// # Errors
/// A message was lost or counted twice, a copy differs, a prompt was not answered; or something is missing.
pub async fn devices(load: Load) -> Result<Value> {
    let lines = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n";
    let broker = Mosquitto::with(lines, |_| {}).context("mosquitto is not installed")?;
    let port = broker.port;
    let rules = tempfile::tempdir()?;
    for (name, text) in rules_of(load) {
        std::fs::write(rules.path().join(format!("{name}.toml")), text)?;
    }
    // Beside the build: a folder in memory would have no disk to wait for.
    let folder = tempfile::tempdir_in(std::env::current_exe()?.parent().context("a folder")?)?;
    let rules_dir = format!("node.rules_dir={}", rules.path().display());
    let settings = [rules_dir.as_str(), "log.level=info"];
    let mut daemon = Daemon::start_in(folder, port, &demo_model(), &settings);
    let mut listener = client(port).await;
    for what in ["event/#", "stats"] {
        listener.subscribe(&format!("{BASE}/{what}")).await?;
    }
    let mut field = Field::at(port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    let begun = Instant::now();
    let speakers: Vec<JoinHandle<Result<(Counted, Counted)>>> = (0..CONNECTIONS)
        .map(|connection| tokio::spawn(speak(port, connection, load)))
        .collect();
    let asker = tokio::spawn(ask(field, load.time));
    let mut events = Events::default();
    for moment in moments(load) {
        let until = begun + moment;
        events.listen(&mut listener, until).await?;
        let busy = processor_time(daemon.id());
        let kept = daemon.kill();
        daemon = Daemon::start_in(kept, port, &demo_model(), &settings);
        eprintln!(
            "killed after {:.1} s, {busy:?} of processor time",
            moment.as_secs_f64()
        );
    }
    let (mut all, mut worded) = (Counted::default(), Counted::default());
    for speaker in speakers {
        let mut speaker = speaker;
        let (of_all, of_worded) = loop {
            tokio::select! {
                said = &mut speaker => break said??,
                heard = events.listen(&mut listener, Instant::now() + BEAT * 20) => heard?,
            }
        };
        all = all.and(of_all);
        worded = worded.and(of_worded);
    }
    let spoken = begun.elapsed();
    let deadline = Instant::now() + TIMEOUT * 2;
    while events.counted(ALL).messages < all.messages || events.counted(WORDS).messages < worded.messages {
        if Instant::now() > deadline {
            bail!(
                "messages are lost: {:?} of {all:?}, {:?} of {worded:?}; {}",
                events.counted(ALL),
                events.counted(WORDS),
                events.stats
            );
        }
        events.listen(&mut listener, Instant::now() + BEAT * 20).await?;
    }
    let settled = begun.elapsed();
    // What should not come would come now.
    let quiet = Instant::now() + Duration::from_secs(load.window) + Duration::from_secs(1);
    events.listen(&mut listener, quiet).await?;
    let tally = asker.await?;
    let processor = processor_time(daemon.id());
    ensure!(
        events.counted(ALL) == all,
        "{:?} is not {all:?}",
        events.counted(ALL)
    );
    ensure!(
        events.counted(WORDS) == worded,
        "{:?} is not {worded:?}",
        events.counted(WORDS)
    );
    ensure!(
        (events.late, events.dropped) == (0, 0),
        "{} late, {} dropped",
        events.late,
        events.dropped
    );
    ensure!(tally.answered == tally.asked && tally.errors == 0, "{tally:?}");
    events.lags.sort_unstable();
    let percentile = |p: usize| {
        events
            .lags
            .get(events.lags.len().saturating_sub(1) * p / 100)
            .copied()
    };
    let counted = all.messages + worded.messages;
    let rate = |messages: u64, time: Duration| (as_float(messages) / time.as_secs_f64()).round();
    Ok(json!({
        "published": all.messages,
        "published_per_s": rate(all.messages, spoken),
        "counted": counted,
        "counted_per_s": rate(counted, spoken),
        "fastest_per_s": events.fastest.round(),
        "settled_after_s": (settled.saturating_sub(spoken)).as_secs_f64(),
        "kills": load.kills,
        "events": events.seen.len(),
        "copies": events.copies,
        "closed_late": events.closed_late,
        "worded": events.worded,
        "without_words": events.without_words,
        "lag_ms": {"p50": percentile(50), "p99": percentile(99), "max": events.lags.last()},
        "prompts": tally.asked,
        "answered": tally.answered,
        "flushes": events.flushes,
        "peak_rss_bytes": events.most_rss,
        "processor_s_of_last_process": processor.map(|time| time.as_secs_f64()),
    }))
}

fn rules_of(load: Load) -> [(&'static str, String); 2] {
    let window = format!(
        "window = {{ kind = \"tumbling\", every = \"{}s\" }}\n",
        load.window
    );
    let fields = "fields = { n = \"/n\", temperature = \"/temperature\" }\ngroup_by = \"topic:1\"\n";
    [
        (
            ALL,
            format!("topics = [\"plant/+/+/reading\"]\nfacts_only = true\n{fields}{window}"),
        ),
        (
            WORDS,
            format!(
                "topics = [\"plant/{WORDED}/+/reading\"]\nmax_tokens = 60\nprompt = \"{{% include 'demo-digest' %}}\"\n\
                 {fields}{window}"
            ),
        ),
    ]
}

/// Busy moments, each somewhere in its part of the time.
fn moments(load: Load) -> Vec<Duration> {
    let mut chance = Chance::random();
    let part = load.time / load.kills.max(1);
    (0..load.kills)
        .map(|kill| part * kill + chance.time(part.mul_f64(0.3)..part.mul_f64(0.8)))
        .collect()
}

/// What the devices behind one connection say: all of it, and that of the worded line.
async fn speak(port: u16, connection: u32, load: Load) -> Result<(Counted, Counted)> {
    let options = ClientOptions {
        host: "127.0.0.1".into(),
        port,
        client_id: format!("gateway-{connection}"),
        ..ClientOptions::default()
    };
    let mut client = Client::connect(options).await?;
    let own: Vec<u32> = (0..load.devices)
        .filter(|device| device % CONNECTIONS == connection)
        .collect();
    let mut numbers = vec![0_u64; own.len()];
    let (mut all, mut worded) = (Counted::default(), Counted::default());
    let begun = Instant::now();
    let mut beats = tokio::time::interval(BEAT);
    let mut turn = 0_usize;
    let mut sent = 0_u64;
    let each = u64::from(load.rate) * own.len() as u64;
    let wanted = each * load.time.as_secs();
    while sent < wanted {
        beats.tick().await;
        let due = (each * u64::try_from(begun.elapsed().as_millis())? / 1000).min(wanted);
        while sent < due {
            let (device, number) = (own[turn], numbers[turn]);
            let line = device % LINES;
            let topic = format!("plant/line-{line}/device-{device:03}/reading");
            let temperature = 40 + (u64::from(device) + number) % 50;
            let payload = json!({"device": device, "n": number, "temperature": temperature}).to_string();
            sent += 1;
            if sent == due {
                // The last of a beat is waited for: what the broker has not taken does not pile up here.
                client.publish(&topic, payload, None).await?;
            } else {
                client.publish_later(&topic, payload)?;
            }
            all = all.and(Counted::of(number));
            if topic.contains(WORDED) {
                worded = worded.and(Counted::of(number));
            }
            numbers[turn] += 1;
            turn = (turn + 1) % own.len();
        }
    }
    client.close().await;
    Ok((all, worded))
}

/// A client with prompts of its own, one after the other.
async fn ask(mut field: Field, time: Duration) -> crate::Tally {
    let begun = Instant::now();
    let mut asked = 0;
    while begun.elapsed() < time {
        field.ask(&format!("p{asked}"), question(8)).await;
        asked += 1;
        field
            .listen_until("an answer", |field| field.answered() == asked)
            .await;
        field.listen(Duration::from_millis(250)).await;
    }
    field.settle().await
}

impl Events {
    async fn listen(&mut self, client: &mut Client, until: Instant) -> Result<()> {
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if let Some(message) = client.receive(left).await? {
                self.take(&message)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Received) -> Result<()> {
        let body = crate::json(message);
        if message.topic.ends_with("/stats") {
            self.note(&body);
            return Ok(());
        }
        let id = body["event_id"].as_str().context("an event without an id")?;
        if let Some(first) = self.seen.get(id) {
            ensure!(*first == body, "a copy differs: {first} {body}");
            self.copies += 1;
            return Ok(());
        }
        let window = &body["window"];
        let number = |key: &str| window[key].as_u64().unwrap_or(0);
        self.late += number("late");
        self.dropped += number("dropped");
        if window["closed_late"] == true {
            self.closed_late += 1;
        } else if body["rule"] == ALL {
            self.lags
                .extend(since(window["end"].as_str().unwrap_or_default()));
        }
        if body["rule"] == WORDS {
            if body["text"].is_string() {
                self.worded += 1;
            } else {
                self.without_words += 1;
            }
        }
        self.seen.insert(id.to_owned(), body);
        Ok(())
    }

    fn note(&mut self, stats: &Value) {
        let rules = &stats["rules"];
        self.most_rss = self
            .most_rss
            .max(stats["memory"]["rss_bytes"].as_u64().unwrap_or(0));
        // The numbers of each process begin at 0.
        let flushes = stats["store"]["flushes"].as_u64().unwrap_or(0);
        self.flushes += flushes.checked_sub(self.last_flushes).unwrap_or(flushes);
        self.last_flushes = flushes;
        let messages = rules["messages"].as_u64().unwrap_or(0);
        let now = Instant::now();
        if let Some((at, before)) = self.last_count
            && messages > before
            && now - at > Duration::from_secs(1)
        {
            let fast = as_float(messages - before) / (now - at).as_secs_f64();
            self.fastest = self.fastest.max(fast);
        }
        self.last_count = Some((now, messages));
        self.stats = stats.clone();
    }

    /// What a rule's events come to.
    fn counted(&self, rule: &str) -> Counted {
        let of_rule = self.seen.values().filter(|event| event["rule"] == rule);
        of_rule.fold(Counted::default(), |sum, event| sum.and(Counted::of_event(event)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of messages, far below 2^52")]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// Milliseconds since a moment of RFC 3339.
fn since(moment: &str) -> Option<u64> {
    let moment: jiff::Timestamp = moment.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let now = i64::try_from(now.as_millis()).ok()?;
    u64::try_from(now - moment.as_millisecond()).ok()
}

/// What a process has used of processors; Linux only.
fn processor_time(id: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Behind the name, which may hold blanks; user and system time are fields 14 and 15, in hundredths of a second.
    let mut fields = text.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_millis(ticks * 10))
}
