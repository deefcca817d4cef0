//! The names that were given up, and what took their place.

use crate::source::file::{Definition, Kind};

/// A name that no definition may bear.
pub(crate) struct Old {
    kind: Kind,
    name: &'static str,
    /// Paths begin with one of these.
    scope: &'static [&'static str],
    instead: &'static str,
}

impl Old {
    pub(crate) fn applies_to(&self, path: &str) -> bool {
        self.scope.iter().any(|folder| path.starts_with(folder))
    }

    pub(crate) fn is(&self, definition: &Definition) -> bool {
        definition.kind == self.kind && definition.name == self.name
    }

    /// True for the file or the folder of a module of this name.
    pub(crate) fn is_file(&self, path: &str) -> bool {
        let stem = path.trim_end_matches("/mod.rs").trim_end_matches(".rs");
        self.kind == Kind::Module && stem.rsplit('/').next() == Some(self.name)
    }

    pub(crate) fn advice(&self) -> String {
        let kind = match self.kind {
            Kind::Module => "mod",
            Kind::Type => "type",
            Kind::Function => "fn",
            Kind::Constant => "const",
        };
        format!("{kind} {} -> {}", self.name, self.instead)
    }
}

/// Names that one crate may give to several modules or types, since they mean the same thing in each place.
pub(crate) const MAY_RECUR: &[(&str, &str)] = &[
    // What each operator has: its graph edit and its code, its arithmetic, its scratch memory and shared state.
    ("phi-edge-onnx", "attention"),
    ("phi-edge-onnx", "matmul"),
    ("phi-edge-onnx", "operator"),
    ("phi-edge-onnx", "tile"),
    ("phi-edge-onnx", "Pool"),
    ("phi-edge-onnx", "Scratch"),
    ("phi-edge-onnx", "Shared"),
    // The errors of a folder.
    ("phi-edge-models", "error"),
    // The arguments of a command, or of several.
    ("phi-edge", "args"),
];

const ENGINE: &[&str] = &["runtime/engine/"];
const ONNX: &[&str] = &["runtime/onnx/"];
const MODELS: &[&str] = &["models/"];
const HUB: &[&str] = &["models/src/hub/"];
const DAEMON: &[&str] = &["runtime/daemon/"];
const MQTT: &[&str] = &["runtime/mqtt/"];
const RULES: &[&str] = &["runtime/rules/", "runtime/service/src/rules/"];
/// With the rules, what was the service's.
const SERVICE: &[&str] = &[
    "runtime/api/",
    "runtime/job/",
    "runtime/rules/",
    "runtime/service/",
    "runtime/store/",
    "runtime/wire/",
];
const MESSAGES: &[&str] = &[
    "runtime/rules/",
    "runtime/service/src/rules/",
    "runtime/service/src/service/",
    "runtime/mqtt/src/link/inbox/",
];
const RUNTIME: &[&str] = &["runtime/"];
const EVERYWHERE: &[&str] = &[""];

const fn module(name: &'static str, scope: &'static [&'static str], instead: &'static str) -> Old {
    old(Kind::Module, name, scope, instead)
}

const fn kind(name: &'static str, scope: &'static [&'static str], instead: &'static str) -> Old {
    old(Kind::Type, name, scope, instead)
}

const fn function(name: &'static str, scope: &'static [&'static str], instead: &'static str) -> Old {
    old(Kind::Function, name, scope, instead)
}

const fn constant(name: &'static str, instead: &'static str) -> Old {
    old(Kind::Constant, name, EVERYWHERE, instead)
}

const fn old(kind: Kind, name: &'static str, scope: &'static [&'static str], instead: &'static str) -> Old {
    Old {
        kind,
        name,
        scope,
        instead,
    }
}

/// All of them. `edge-config` has types that bear the names of its keys, which are the contract.
pub(crate) const OLD: &[Old] = &[
    // Speculation.
    module("guess", ENGINE, "speculation"),
    kind("Guesser", ENGINE, "NgramDrafter"),
    function("guess", ENGINE, "draft"),
    function("promise", ENGINE, "expected_tokens"),
    function("worth", ENGINE, "draft_length"),
    // Rows and scheduling.
    kind("Slot", ENGINE, "RowState"),
    function("refuge", ENGINE, "spare_row"),
    function("rescue", ENGINE, "copy_out"),
    kind("Turns", ENGINE, "Scheduler"),
    kind("Work", ENGINE, "StepKind"),
    kind("Choices", ENGINE, "SampleOutcome"),
    // ONNX.
    kind("Draft", ONNX, "GraphEditor"),
    module("check", ONNX, "verification of graph edits"),
    module("verdicts", ONNX, "edit cache"),
    kind("Verdicts", ONNX, "edit cache"),
    module("own", ONNX, "custom operators"),
    kind("Own", ONNX, "custom operators"),
    module("bare", ONNX, "baseline"),
    module("feeds", ONNX, "run inputs"),
    kind("Feeds", ONNX, "run inputs"),
    module("products", ONNX, "matmul"),
    // Rules.
    module("book", SERVICE, "rule engine"),
    kind("Book", SERVICE, "RuleEngine"),
    function("book", SERVICE, "rule engine"),
    module("desk", SERVICE, "rule state"),
    kind("Desk", SERVICE, "RuleState"),
    function("desk", SERVICE, "rule state"),
    module("words", SERVICE, "summary"),
    kind("Words", RULES, "summary"),
    kind("WordsError", SERVICE, "SummaryError"),
    function("words", RULES, "summary; tokens, where those of a text are meant"),
    module("worded", SERVICE, "summary"),
    kind("Worded", SERVICE, "summary"),
    function("worded", SERVICE, "summarize"),
    function("wordy", SERVICE, "needs_summary"),
    function("is_wordy", SERVICE, "needs_summary"),
    kind("Unworded", SERVICE, "PendingSummary"),
    function("unworded", SERVICE, "pending summary"),
    module("intake", SERVICE, "extraction"),
    kind("Reader", RULES, "Extractor"),
    kind("Reading", RULES, "ParsedPayload"),
    kind("Read", RULES, "Extracted"),
    kind(
        "Mark",
        SERVICE,
        "Checkpoint; a digest, where that of a message is meant",
    ),
    kind("Closing", SERVICE, "CloseReason"),
    function("hold", RULES, "hold_event_time"),
    // Observers and ingestion.
    module("witness", RUNTIME, "observers"),
    kind("Witness", RUNTIME, "Observer"),
    kind("Witnesses", RUNTIME, "Observers"),
    function("witnesses", RUNTIME, "observers"),
    function("tell", &["runtime/service/"], "notify"),
    function("observe", MESSAGES, "ingest"),
    // Models and hub.
    module("shelf", MODELS, "model store"),
    kind("Shelf", MODELS, "ModelStore"),
    kind("Patience", MODELS, "RetryPolicy"),
    module("part", HUB, "partial file"),
    kind("Part", HUB, "PartialFile"),
    module("shown", MODELS, "redaction"),
    function("shown", HUB, "redacted"),
    // Times and liveness.
    module("pulse", RUNTIME, "liveness"),
    kind("Beat", RUNTIME, "Heartbeat"),
    kind("Pulse", RUNTIME, "LivenessProbe"),
    kind("EnginePulse", RUNTIME, "LivenessProbe"),
    function("pulse", RUNTIME, "liveness probe"),
    module(
        "pace",
        RUNTIME,
        "run times (engine), throughput (service), thermal (daemon)",
    ),
    kind(
        "Pace",
        RUNTIME,
        "run times (engine), throughput (service), thermal (daemon)",
    ),
    module("life", DAEMON, "crash marker"),
    kind("Life", DAEMON, "CrashMarker"),
    // The daemon's setup.
    kind("Choice", DAEMON, "ModelSetup"),
    function("is_given", DAEMON, "require_credential"),
    // The link.
    module("landed", MQTT, "completion"),
    kind("Landed", MQTT, "Completion"),
    function("landed", MQTT, "complete"),
    kind("Suspicion", MQTT, "TakeoverDetector"),
    constant("FIGHT", "what is counted"),
    // The ledger.
    function("comes", SERVICE, "record_receipt"),
    function("has_come", SERVICE, "is_redelivery"),
    function("alone", SERVICE, "suspect running"),
    function("kept", SERVICE, "outcomes"),
    // Constants name the quantity.
    constant("LOOK", "POLL_INTERVAL"),
    constant("PATIENCE", "TIMEOUT"),
    constant("AGAIN", "RETRY_INTERVAL"),
    constant("NEAR", "a quantity"),
    constant("MOST", "MAX_…"),
    constant("EACH", "a quantity"),
    constant("LONGEST", "MAX_…"),
    constant("SHORTEST", "MIN_…"),
    constant("ROOM", "CAPACITY"),
    constant("OWN", "a quantity"),
    constant("JUST", "a quantity"),
    constant("LATE", "a quantity"),
    constant("ALONE", "a quantity"),
    constant("AHEAD", "a quantity"),
    constant("AT_ONCE", "MAX_CONCURRENT_…"),
    constant("BEFORE", "a quantity"),
    constant("BESIDE", "a quantity"),
    constant("ENOUGH", "a quantity"),
    constant("EVEN", "a quantity"),
    constant("FEW_AHEAD", "a quantity"),
    constant("FURTHER", "a quantity"),
    constant("HOPELESS", "a quantity"),
    constant("KEEPS", "a quantity"),
    constant("LEAST", "MIN_…"),
    constant("LEFT", "a quantity"),
    constant("MANY", "a quantity"),
    constant("MOST_AHEAD", "MAX_…"),
    constant("NEXT", "a quantity"),
    constant("ONLY", "a quantity"),
    constant("OVER", "a quantity"),
    constant("QUIET", "a quantity"),
    constant("SHORT", "a quantity"),
    constant("SMALL", "a quantity"),
    constant("TALLEST", "MAX_…"),
    constant("UNSTEADY", "a quantity"),
    constant("USUAL", "DEFAULT_…"),
    constant("WIDEST", "MAX_…"),
];
