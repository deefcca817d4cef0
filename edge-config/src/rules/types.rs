//! The types of a rule, with every value checked and every default filled in.

use crate::{ByteSize, Origin, TimeSpan};

/// A rule. `default.toml` says what each key means; the comments here add what callers need.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The rule's name; one topic level.
    pub name: String,
    /// The topic filters whose messages it takes, each once; at least one. Placeholders are filled in.
    pub topics: Vec<String>,
    /// How payloads are read.
    pub payload: PayloadFormat,
    /// The fields that are extracted from each message, in the order of their names.
    pub fields: Vec<Field>,
    /// The key by which messages are grouped.
    pub group_by: Option<Selector>,
    /// The part of a message that is equal in a publisher's repetitions.
    pub dedupe: Option<Selector>,
    /// The windows.
    pub window: Window,
    /// The pictures that the model is shown; the default unless payloads are images.
    pub picture: Picture,
    /// The settings of the model's summary.
    pub words: Words,
    /// The output of events.
    pub output: Output,
    /// The resource limits.
    pub limits: RuleLimits,
    /// The origin of the rule.
    pub origin: Origin,
}

/// The format of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadFormat {
    /// JSON if the payload is JSON, else text.
    Auto,
    /// JSON.
    Json,
    /// Text; the rule then names no fields.
    Text,
    /// A number in decimal; the only pointer is then the empty one.
    Number,
    /// An image; the pointers are then `/bytes`, `/format` and `/digest`.
    Image,
}

/// The pictures of a window that the model is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    /// Which of them.
    pub which: PictureChoice,
    /// How closely the model looks at them.
    pub detail: PictureDetail,
}

/// A choice among the pictures of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureChoice {
    /// The newest.
    Newest,
    /// The first.
    First,
    /// The newest of this number on one sheet; 2 to 16.
    Sheet(usize),
}

/// How closely the model looks at a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureDetail {
    /// As one crop.
    Low,
    /// As `model.num_crops` crops.
    Auto,
    /// As 16 crops.
    High,
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

/// The windows of a rule. Keys that a kind does not use were refused, so they hold their defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// The kind, with its parameters.
    pub kind: WindowKind,
    /// The source of a message's time.
    pub time: TimeSource,
    /// The time zone's name, checked for its form only; none means the system's.
    pub tz: Option<String>,
    /// Whether windows without messages are reported.
    pub empty: bool,
    /// The number of messages that ends a window.
    pub max_messages: Option<u64>,
    /// The number of payload bytes that ends a window.
    pub max_bytes: Option<ByteSize>,
    /// A condition over fields; not parsed here.
    pub early: Option<String>,
    /// The rate of messages above which a window ends.
    pub early_rate: Option<Rate>,
    /// The time after an event of a group in which `early` and `early_rate` end none of its windows.
    pub cool_down: TimeSpan,
    /// The age at which a window ends; only for session and count windows.
    pub max_age: Option<TimeSpan>,
    /// The silence that is reported as an absence.
    pub absence: Option<TimeSpan>,
    /// The maximum number of groups.
    pub max_groups: usize,
}

/// The kinds of window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowKind {
    /// Windows of one length, one after the other.
    Tumbling {
        /// The length.
        every: TimeSpan,
    },
    /// Windows that overlap.
    Hopping {
        /// The time from start to start.
        every: TimeSpan,
        /// The time from start to end; at least `every`, at most 1000 times it.
        length: TimeSpan,
    },
    /// Windows that silence ends.
    Session {
        /// The silence.
        gap: TimeSpan,
    },
    /// Windows that a number of messages ends.
    Count {
        /// The number.
        messages: u64,
    },
    /// Windows from one local time to the next.
    Schedule {
        /// The times of a day, in ascending order; at least one.
        at: Vec<TimeOfDay>,
        /// The days on which the times apply.
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

/// The source of a message's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeSource {
    /// The time of arrival.
    Arrival,
    /// A field of the message (event time).
    Field {
        /// A JSON pointer.
        pointer: String,
        /// The allowed lateness: the time after a window's end in which its messages still count.
        lateness: TimeSpan,
    },
}

/// The settings by which the model summarises a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Words {
    /// The prompt.
    pub prompt: Prompt,
    /// The system prompt.
    pub system: Option<String>,
    /// The maximum number of new tokens; not yet bounded by `limits.max_tokens`.
    pub max_tokens: usize,
    /// 0 to 10; 0 always takes the likeliest token.
    pub temperature: f32,
    /// More than 0, up to 1.
    pub top_p: f32,
    /// The seed.
    pub seed: u64,
    /// Stop strings, none of them empty.
    pub stop: Vec<String>,
    /// The format of the text.
    pub format: TextFormat,
    /// Whether the numbers of the text are checked against facts and messages.
    pub check_numbers: bool,
    /// The deadline of the summary; none means `limits.max_deadline`, which also bounds it.
    pub deadline: Option<TimeSpan>,
    /// The maximum number of parts of a window that does not fit one prompt; 1 to 64.
    pub max_parts: usize,
    /// The maximum number of tokens of one prompt; none means the context's length.
    pub max_prompt_tokens: Option<usize>,
}

/// The source of a rule's prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// The text of a template, not parsed here.
    Text(String),
    /// The name of a built-in template; it is not checked here.
    Template(String),
    /// No model: facts alone.
    None,
}

/// The format of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Plain text.
    Text,
    /// A JSON document.
    Json,
}

/// The output of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The topic, with `{base}`, `{node}`, `{rule}`, `{group}` and `{topic:N}` in it; none means `{base}/event/{rule}`.
    pub topic: Option<String>,
    /// The quality of service, 0 or 1.
    pub qos: u8,
    /// The message expiry at the broker, in whole seconds.
    pub expiry: Option<TimeSpan>,
    /// Whether the broker retains the newest event for new subscribers.
    pub retain: bool,
}

/// The resource limits of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLimits {
    /// The maximum number of messages whose text a window keeps for the model.
    pub keep_messages: usize,
    /// The maximum size of these payloads.
    pub keep_bytes: ByteSize,
    /// The maximum size of the rule's messages in the store.
    pub store: ByteSize,
}
