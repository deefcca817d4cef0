//! A rule as its users see it: every value checked, every default filled in.

use crate::{ByteSize, Origin, TimeSpan};

/// What to make of which messages. `default.toml` says what each key means; the comments here add what callers need.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The rule's name; one topic level.
    pub name: String,
    /// The topic filters whose messages it takes, each once; at least one. Placeholders are filled in.
    pub topics: Vec<String>,
    /// How payloads are read.
    pub payload: PayloadFormat,
    /// What is picked from each message, in the order of the names.
    pub fields: Vec<Field>,
    /// What parts the messages into groups.
    pub group_by: Option<Selector>,
    /// Where a publisher's repeats have the same value.
    pub dedupe: Option<Selector>,
    /// When windows begin and end.
    pub window: Window,
    /// How the facts become words.
    pub words: Words,
    /// Where events go.
    pub output: Output,
    /// What it may cost.
    pub limits: RuleLimits,
    /// Where it stands.
    pub origin: Origin,
}

/// How a payload is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadFormat {
    /// JSON where it is JSON, else text.
    Auto,
    /// JSON.
    Json,
    /// Text; the rule then names no fields.
    Text,
    /// A number in decimal; the only pointer is then the empty one.
    Number,
}

/// A field of a rule's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name: `[A-Za-z_][A-Za-z0-9_]*`, and no word of the template language.
    pub name: String,
    /// A JSON pointer (RFC 6901); empty for the whole payload.
    pub pointer: String,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// A level of the topic, counted from 0.
    Topic(usize),
    /// A JSON pointer (RFC 6901) into the payload; empty for the whole payload.
    Field(String),
}

/// When windows begin and end. Keys that a kind does not use were refused, so they hold their defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// The kind, with what it needs.
    pub kind: WindowKind,
    /// What places a message in time.
    pub time: TimeSource,
    /// The time zone's name, checked for its form only; none means the system's.
    pub tz: Option<String>,
    /// Whether windows without messages are reported.
    pub empty: bool,
    /// So many messages end a window.
    pub max_messages: Option<u64>,
    /// So many bytes of payload end a window.
    pub max_bytes: Option<ByteSize>,
    /// A condition over fields; not parsed here.
    pub early: Option<String>,
    /// More messages than that end a window.
    pub early_rate: Option<Rate>,
    /// For so long after an event of a group, `early` and `early_rate` end none of its windows.
    pub cool_down: TimeSpan,
    /// A window of this age ends; only of session and count windows.
    pub max_age: Option<TimeSpan>,
    /// The silence that is reported.
    pub absence: Option<TimeSpan>,
    /// The most groups.
    pub max_groups: usize,
}

/// The kinds of window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowKind {
    /// One after the other.
    Tumbling {
        /// Their length.
        every: TimeSpan,
    },
    /// Overlapping.
    Hopping {
        /// From start to start.
        every: TimeSpan,
        /// From start to end; at least `every`, at most 1000 times it.
        length: TimeSpan,
    },
    /// Ended by silence.
    Session {
        /// The silence.
        gap: TimeSpan,
    },
    /// Ended by their number of messages.
    Count {
        /// The number.
        messages: u64,
    },
    /// From one local time to the next.
    Schedule {
        /// The times of a day, rising; at least one.
        at: Vec<TimeOfDay>,
        /// The days on which they hold.
        days: Weekdays,
    },
}

impl WindowKind {
    /// The kind's name, as it stands in `window.kind`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tumbling { .. } => "tumbling",
            Self::Hopping { .. } => "hopping",
            Self::Session { .. } => "session",
            Self::Count { .. } => "count",
            Self::Schedule { .. } => "schedule",
        }
    }
}

/// A local time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay {
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// A set of weekdays, not empty: bit 0 is Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weekdays(pub u8);

impl Weekdays {
    /// Every day.
    pub const ALL: Self = Self(0b111_1111);
}

/// A number of messages within a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The number; at least 1.
    pub messages: u64,
    /// The time.
    pub within: TimeSpan,
}

/// What places a message in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeSource {
    /// Its arrival.
    Arrival,
    /// A field of it.
    Field {
        /// A JSON pointer.
        pointer: String,
        /// How long after a window's end messages of it are waited for.
        lateness: TimeSpan,
    },
}

/// How facts become words.
#[derive(Debug, Clone, PartialEq)]
pub struct Words {
    /// The prompt.
    pub prompt: Prompt,
    /// What the model is told before it.
    pub system: Option<String>,
    /// The most new tokens; not held against `limits.max_tokens` yet.
    pub max_tokens: usize,
    /// 0 to 10; 0 always takes the likeliest token.
    pub temperature: f32,
    /// More than 0, up to 1.
    pub top_p: f32,
    /// The seed.
    pub seed: u64,
    /// Stop strings, none of them empty.
    pub stop: Vec<String>,
    /// The text's form.
    pub format: TextFormat,
    /// Whether the text's numbers are looked for in facts and messages.
    pub check_numbers: bool,
    /// How long the model is waited for; none means `limits.max_deadline`, which also bounds it.
    pub deadline: Option<TimeSpan>,
    /// Parts into which a window that does not fit the prompt is taken, at most; 1 to 64.
    pub max_parts: usize,
    /// The most tokens of one prompt; none means what the context holds.
    pub max_prompt_tokens: Option<usize>,
}

/// Where a rule's prompt comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// The text of a template, not parsed here.
    Text(String),
    /// The name of a built-in template; whether there is one of that name is not known here.
    Template(String),
    /// No model: facts alone.
    None,
}

/// The form of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Any.
    Text,
    /// A JSON document.
    Json,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The topic, with `{base}`, `{node}`, `{rule}`, `{group}` and `{topic:N}` in it; none means `{base}/event/{rule}`.
    pub topic: Option<String>,
    /// 0 or 1.
    pub qos: u8,
    /// How long a broker keeps it for who is away, in whole seconds.
    pub expiry: Option<TimeSpan>,
    /// Whether the broker keeps the newest for new subscribers.
    pub retain: bool,
}

/// What a rule may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLimits {
    /// The most messages whose text a window keeps for the model.
    pub keep_messages: usize,
    /// The most bytes of their payloads.
    pub keep_bytes: ByteSize,
    /// The most bytes of its messages in the store.
    pub store: ByteSize,
}
