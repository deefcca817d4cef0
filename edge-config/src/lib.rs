//! Reads, layers and validates the configuration; it must never know any other crate of the workspace, a
//! network, a clock, or any state of the machine beyond the files it is told to read.
//!
//! [`load`] takes everything it depends on in [`LoadOptions`], environment and host name included, and gives a
//! [`Config`] in which every value has been checked, together with where each value came from.
//! `default.toml` ([`DEFAULT_FILE`]) is the reference for operators; a test holds it against the structs.

mod derive;
mod document;
mod entries;
mod error;
mod file;
mod from_text;
mod layer;
mod load;
mod load_options;
mod nearest;
mod origin;
mod plain_text;
mod reference;
mod reload;
mod render;
mod rules;
mod schema;
mod secret;
mod sections;
mod shape;
mod threads;
mod topic;
mod units;
mod validate;

pub use error::ConfigError;
pub use load::{Loaded, load};
pub use load_options::LoadOptions;
pub use nearest::nearest_of;
pub use origin::Origin;
pub use reference::reference;
pub use reload::{Reloaded, reload};
pub use render::render;
pub use rules::{
    Field, Output, PayloadFormat, Picture, PictureChoice, PictureDetail, Prompt, Rate, Rule, RuleLimits,
    Selector, TextFormat, TimeOfDay, TimeSource, Weekdays, Window, WindowKind, Words, rule_keys,
};
pub use schema::{Key, Preset, known_keys};
pub use secret::Secret;
pub use sections::{
    Audit, Config, Fallback, InstructionSet, KvCache, Limits, Log, LogFormat, Metrics, Model, Mqtt, Node,
    Pace, Plugin, Provider, RopePolicy, Runtime, Store, Tls, Traces, VisionWeights, WhenFailing,
};
pub use shape::{Range, Shape, Wording, missing_credential};
pub use threads::{AutoWord, Threads};
pub use units::{ByteSize, TimeSpan, UnitError};

/// The commented default file: every key with its meaning, unit and default, all keys commented out.
pub const DEFAULT_FILE: &str = include_str!("../default.toml");
