//! A validated rule.

use std::time::Duration;

use jiff::civil;
use jiff::tz::TimeZone;

use crate::picture::{PictureChoice, PictureSpec};

/// A rule: the messages that it takes, their windows, and the summary and destination of its events.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name, one topic level.
    pub name: String,
    /// The topic filters whose messages it takes; at least one.
    pub topics: Vec<String>,
    /// The format of payloads.
    pub payload: PayloadFormat,
    /// The fields extracted from each message, in the order of their names.
    pub fields: Vec<Field>,
    /// The key by which messages are grouped, each group with windows of its own.
    pub group_by: Option<Selector>,
    /// The key by which a publisher's repeats are recognised; they count once.
    pub dedupe: Option<Selector>,
    /// The windows.
    pub window: WindowSpec,
    /// The pictures that the model is shown; of no meaning unless payloads are images.
    pub picture: PictureSpec,
    /// The summary of an event.
    pub summary: SummarySpec,
    /// The destination of events.
    pub output: Output,
    /// The limits of its memory and storage.
    pub limits: RuleLimits,
}

impl Rule {
    /// A rule of one topic filter, with summaries of 256 tokens within ten minutes and defaults for all else.
    pub fn new(name: impl Into<String>, topic: &str, kind: WindowKind, prompt: PromptSource) -> Self {
        let name = name.into();
        Self {
            topics: vec![topic.to_owned()],
            payload: PayloadFormat::Auto,
            fields: Vec::new(),
            group_by: None,
            dedupe: None,
            window: WindowSpec::new(kind),
            picture: PictureSpec::default(),
            summary: SummarySpec {
                prompt,
                system: None,
                max_tokens: 256,
                temperature: 0.0,
                top_p: 1.0,
                seed: 0,
                stop: Vec::new(),
                format: TextFormat::Text,
                check_numbers: false,
                deadline: Duration::from_mins(10),
                max_parts: 8,
                max_prompt_tokens: None,
            },
            output: Output {
                topic: format!("events/{name}"),
                qos: 1,
                expiry: None,
                retain: false,
            },
            limits: RuleLimits {
                keep_messages: 2_000,
                keep_bytes: 1 << 20,
                store_bytes: 64 << 20,
            },
            name,
        }
    }

    /// Whether the model writes a summary for its events.
    pub(crate) fn needs_summary(&self) -> bool {
        self.summary.prompt != PromptSource::None
    }

    /// The choice of pictures, where the model is shown any.
    pub(crate) fn shown_pictures(&self) -> Option<PictureChoice> {
        (self.payload == PayloadFormat::Image && self.needs_summary()).then_some(self.picture.choice)
    }

    /// Whether both count the same messages in the same windows, so that one may go on with the other's.
    pub(crate) fn counts_as(&self, other: &Self) -> bool {
        (
            &self.payload,
            &self.fields,
            &self.group_by,
            &self.dedupe,
            &self.window,
        ) == (
            &other.payload,
            &other.fields,
            &other.group_by,
            &other.dedupe,
            &other.window,
        ) && self.limits.keep_messages == other.limits.keep_messages
            && self.picture.choice == other.picture.choice
    }
}

/// The format of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadFormat {
    /// JSON where it is JSON, else text.
    #[default]
    Auto,
    /// JSON; another payload counts, without fields.
    Json,
    /// Text; it has no fields.
    Text,
    /// A number in decimal; the field pointer "" is its value.
    Number,
    /// A picture (PNG, JPEG, WebP); its fields are what is known of it without decoding: `/bytes`, `/format`, `/digest`.
    Image,
}

/// A field of a rule's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name in facts, templates and conditions.
    pub name: String,
    /// A JSON pointer (RFC 6901); empty for the whole payload.
    pub pointer: String,
}

/// A part of a message that is used as a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// A level of the topic, counted from 0.
    Topic(usize),
    /// The value at a JSON pointer of the payload.
    Field(String),
}

/// The windows of a rule: their kind, timestamps, triggers and groups.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowSpec {
    /// The kind.
    pub kind: WindowKind,
    /// The source of timestamps.
    pub time: TimeSource,
    /// The zone of local times.
    pub zone: TimeZone,
    /// Whether windows without messages are reported, for groups that were seen before and for rules without groups.
    pub empty: bool,
    /// The number of messages that closes a window; not of hopping windows.
    pub max_messages: Option<u64>,
    /// The bytes of payloads that close a window; not of hopping windows.
    pub max_bytes: Option<u64>,
    /// A condition over fields that closes a window with the message that meets it; not of hopping windows.
    pub early: Option<String>,
    /// The rate (messages, time) that closes a window when it is exceeded; not of hopping windows.
    pub early_rate: Option<(u64, Duration)>,
    /// The time after an event of a group in which neither `early` nor `early_rate` closes its windows.
    pub cool_down: Duration,
    /// The age that closes a window; only of session and count windows.
    pub max_age: Option<Duration>,
    /// The silence after which an event reports the absence of a group, once until its next message.
    pub absence: Option<Duration>,
    /// The most groups; messages of further ones share the group `other`.
    pub max_groups: usize,
}

impl WindowSpec {
    /// Windows of this kind by arrival and in UTC, without further triggers, of at most a hundred groups.
    pub fn new(kind: WindowKind) -> Self {
        Self {
            kind,
            time: TimeSource::Arrival,
            zone: TimeZone::UTC,
            empty: false,
            max_messages: None,
            max_bytes: None,
            early: None,
            early_rate: None,
            cool_down: Duration::ZERO,
            max_age: None,
            absence: None,
            max_groups: 100,
        }
    }
}

/// The kinds of window. Beside the exhaustive matches, `if let` and `matches!` in `window/` single out hopping and count
/// windows; `tests/windows/` holds all kinds against a plain reference.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowKind {
    /// Adjacent windows, aligned to local midnight.
    Tumbling {
        /// Their length.
        every: Duration,
    },
    /// Overlapping windows that begin as tumbling ones do (Flink: sliding).
    Hopping {
        /// From start to start.
        every: Duration,
        /// From start to end.
        length: Duration,
    },
    /// Windows that close after silence.
    Session {
        /// The silence.
        gap: Duration,
    },
    /// Windows of a number of messages.
    Count {
        /// The number.
        messages: u64,
    },
    /// Windows from one of these local times to the next.
    Schedule {
        /// The times of a day, in order; at least one.
        at: Vec<civil::Time>,
        /// The days on which they hold.
        days: Weekdays,
    },
}

/// A set of weekdays: bit 0 is Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weekdays(pub u8);

impl Weekdays {
    /// Every day.
    pub const ALL: Self = Self(0b111_1111);

    /// Whether `day` is one of them.
    pub fn contains(self, day: civil::Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }
}

/// The source of a message's timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeSource {
    /// Its arrival (Flink: processing time).
    Arrival,
    /// A field with its event time.
    Field {
        /// A JSON pointer to RFC 3339 text, or to seconds or milliseconds since 1970.
        pointer: String,
        /// The lag of the watermark behind the clock: the time after a window's end in which its messages are waited for.
        lateness: Duration,
    },
}

/// The specification of a rule's summaries: the prompt and the sampling parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct SummarySpec {
    /// The prompt.
    pub prompt: PromptSource,
    /// The system message.
    pub system: Option<String>,
    /// The most new tokens.
    pub max_tokens: usize,
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// The share of probability whose likeliest tokens are kept.
    pub top_p: f32,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Stop strings.
    pub stop: Vec<String>,
    /// The text's form.
    pub format: TextFormat,
    /// Whether the text's numbers are checked against facts and messages.
    pub check_numbers: bool,
    /// The time after the window's close within which the summary must be there.
    pub deadline: Duration,
    /// The most parts of a window that does not fit one prompt; older messages are left out.
    pub max_parts: usize,
    /// The most tokens of one prompt; `None` means what the context holds.
    pub max_prompt_tokens: Option<usize>,
}

/// The prompt template of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptSource {
    /// A built-in template, by its name.
    BuiltIn(String),
    /// The text of a template (minijinja).
    Text(String),
    /// No summary: events have facts only.
    None,
}

/// The form of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextFormat {
    /// Any.
    #[default]
    Text,
    /// A JSON document.
    Json,
}

/// The destination of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The topic. That of a rule may have the placeholders `{group}` and `{topic:N}`, which each event fills in.
    pub topic: String,
    /// 0 or 1.
    pub qos: u8,
    /// The message expiry.
    pub expiry: Option<Duration>,
    /// Whether the broker keeps the newest for new subscribers.
    pub retain: bool,
}

/// The limits of a rule's memory and storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLimits {
    /// The most messages of a window that the model is shown, the newest.
    pub keep_messages: usize,
    /// The most bytes of their payloads.
    pub keep_bytes: usize,
    /// The most bytes of its messages in the store; further messages are dropped and counted.
    pub store_bytes: u64,
}
