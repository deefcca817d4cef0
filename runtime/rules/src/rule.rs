//! A rule, validated.

use std::time::Duration;

use jiff::civil;
use jiff::tz::TimeZone;

/// What to make of which messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name, one topic level.
    pub name: String,
    /// The topic filters whose messages it takes; at least one.
    pub topics: Vec<String>,
    /// How payloads are read.
    pub payload: PayloadFormat,
    /// What is picked from each message, in the order of their names.
    pub fields: Vec<Field>,
    /// What parts the messages into groups, each with windows of its own.
    pub group_by: Option<Selector>,
    /// Publishers' repeats have the same value here, and count once.
    pub dedupe: Option<Selector>,
    /// When windows begin and end.
    pub window: WindowSpec,
    /// How the facts become words.
    pub summary: SummarySpec,
    /// Where events go.
    pub output: Output,
    /// What it may cost.
    pub limits: RuleLimits,
}

impl Rule {
    /// A rule of one topic filter whose windows the model words in 256 tokens within ten minutes; all else is as plain as it
    /// can be.
    pub fn new(name: impl Into<String>, topic: &str, kind: WindowKind, prompt: PromptSource) -> Self {
        let name = name.into();
        Self {
            topics: vec![topic.to_owned()],
            payload: PayloadFormat::Auto,
            fields: Vec::new(),
            group_by: None,
            dedupe: None,
            window: WindowSpec::new(kind),
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
    }
}

/// How a payload is read.
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
}

/// A field of a rule's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name in facts, templates and conditions.
    pub name: String,
    /// A JSON pointer (RFC 6901); empty for the whole payload.
    pub pointer: String,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// A level of the topic, counted from 0.
    Topic(usize),
    /// What a JSON pointer finds in the payload.
    Field(String),
}

/// When windows begin and end.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowSpec {
    /// The kind.
    pub kind: WindowKind,
    /// What places a message in time.
    pub time: TimeSource,
    /// The zone of local times.
    pub zone: TimeZone,
    /// Whether windows without messages are reported, for groups that were seen before and for rules without groups.
    pub empty: bool,
    /// So many messages end a window; not of hopping windows.
    pub max_messages: Option<u64>,
    /// So many bytes of payload end a window; not of hopping windows.
    pub max_bytes: Option<u64>,
    /// A condition over fields that ends a window with the message that meets it; not of hopping windows.
    pub early: Option<String>,
    /// More than so many messages within that time end a window; not of hopping windows.
    pub early_rate: Option<(u64, Duration)>,
    /// After an event of a group, neither `early` nor `early_rate` ends its windows for so long.
    pub cool_down: Duration,
    /// A window that is so old ends; only of session and count windows.
    pub max_age: Option<Duration>,
    /// When nothing came for so long, an event says so, once until something comes.
    pub absence: Option<Duration>,
    /// The most groups; messages of further ones go to a group of their own, named `other`.
    pub max_groups: usize,
}

impl WindowSpec {
    /// WindowOperator of this kind by arrival and in UTC, which nothing ends but themselves, of a hundred groups at the most.
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

/// The kinds of window.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowKind {
    /// One after the other, aligned to local midnight.
    Tumbling {
        /// Their length.
        every: Duration,
    },
    /// Overlapping, begun as tumbling ones are.
    Hopping {
        /// From start to start.
        every: Duration,
        /// From start to end.
        length: Duration,
    },
    /// Ended by silence.
    Session {
        /// The silence.
        gap: Duration,
    },
    /// Ended by their number of messages.
    Count {
        /// The number.
        messages: u64,
    },
    /// From one of these local times to the next.
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

/// What places a message in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeSource {
    /// Its arrival.
    Arrival,
    /// A field of it.
    Field {
        /// A JSON pointer to RFC 3339 text, or to seconds or milliseconds since 1970.
        pointer: String,
        /// How long after a window's end messages of it are waited for.
        lateness: Duration,
    },
}

/// How facts become words.
#[derive(Debug, Clone, PartialEq)]
pub struct SummarySpec {
    /// The prompt.
    pub prompt: PromptSource,
    /// What the model is told before it.
    pub system: Option<String>,
    /// The most new tokens.
    pub max_tokens: usize,
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens that make up this share.
    pub top_p: f32,
    /// The same seed gives the same text.
    pub seed: u64,
    /// Stop strings.
    pub stop: Vec<String>,
    /// The text's form.
    pub format: TextFormat,
    /// Whether the text's numbers are looked for in facts and messages.
    pub check_numbers: bool,
    /// How long the model is waited for.
    pub deadline: Duration,
    /// Parts into which a window that does not fit the prompt is taken, at most; what is beyond is left out.
    pub max_parts: usize,
    /// The most tokens of one prompt; none means what the context holds.
    pub max_prompt_tokens: Option<usize>,
}

/// A rule's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptSource {
    /// One that comes along, by its name.
    BuiltIn(String),
    /// Its text (minijinja).
    Text(String),
    /// No model: facts alone.
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

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The topic; of a rule with `{group}` and `{topic:N}` in it, which each event fills in.
    pub topic: String,
    /// 0 or 1.
    pub qos: u8,
    /// How long a broker keeps it for who is away.
    pub expiry: Option<Duration>,
    /// Whether the broker keeps the newest for new subscribers.
    pub retain: bool,
}

/// What a rule may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleLimits {
    /// The most messages whose text a window keeps for the model; of more, the newest.
    pub keep_messages: usize,
    /// The most bytes of their payloads.
    pub keep_bytes: usize,
    /// The most bytes of its messages in the store; further messages are dropped and counted.
    pub store_bytes: u64,
}
