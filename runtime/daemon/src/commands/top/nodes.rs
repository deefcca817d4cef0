//! The last status and numbers of each node.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::terminal;

/// The maximum number of nodes that are shown: any publisher can make up names.
const MAX_NODES: usize = 4096;
/// The size of the largest message that is read; those of a node are far smaller.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// All nodes, by their base topic.
#[derive(Debug, Default)]
pub(super) struct Nodes(BTreeMap<String, Node>);

#[derive(Debug, Default)]
struct Node {
    status: Value,
    stats: Value,
}

/// The columns, each with its minimum width.
pub(super) const COLUMNS: [(&str, u16); 11] = [
    ("node", 16),
    ("state", 9),
    ("queue", 6),
    ("slots", 6),
    ("tokens/s", 9),
    ("first token", 12),
    ("served", 8),
    ("errors", 8),
    ("memory", 9),
    ("model", 9),
    ("pace", 12),
];

impl Nodes {
    /// Stores a message on `{base}/status` or `{base}/stats`; other messages, and those that can't be parsed, are
    /// ignored.
    pub(super) fn take(&mut self, topic: &str, payload: &[u8]) {
        let Some((base, what)) = topic.rsplit_once('/') else {
            return;
        };
        if payload.len() > MAX_MESSAGE_BYTES {
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(payload) else {
            return;
        };
        if self.0.len() >= MAX_NODES && !self.0.contains_key(base) {
            return;
        }
        let node = self.0.entry(base.to_owned()).or_default();
        match what {
            "status" => node.status = value,
            "stats" => node.stats = value,
            _ => {}
        }
    }

    /// One row for each node, in the order of their topics, with the reason if the node is not ready.
    pub(super) fn rows(&self) -> Vec<([String; COLUMNS.len()], Option<String>)> {
        self.0
            .iter()
            .map(|(base, node)| (node.cells(base), node.reason()))
            .collect()
    }

    /// The rows as a text table.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |cells: &[&str]| {
            let mut line = String::new();
            for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
                let _ = write!(line, "{cell:<width$} ", width = usize::from(width));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        };
        line(&COLUMNS.map(|(name, _)| name));
        for (cells, _) in self.rows() {
            line(&cells.each_ref().map(String::as_str));
        }
        for (cells, reason) in self.rows() {
            if let Some(reason) = reason {
                let _ = writeln!(text, "{}: {reason}", cells[0]);
            }
        }
        text
    }
}

impl Node {
    fn cells(&self, base: &str) -> [String; COLUMNS.len()] {
        let stats = &self.stats;
        let count = |key: &str| stats[key].as_u64().map_or_else(unknown, |n| n.to_string());
        let both = |a: &str, b: &str| match (stats[a].as_u64(), stats[b].as_u64()) {
            (Some(a), Some(b)) => format!("{a}/{b}"),
            _ => unknown(),
        };
        let errors = match (stats["failed"].as_u64(), stats["refused"].as_u64()) {
            (Some(failed), Some(refused)) => (failed + refused).to_string(),
            _ => unknown(),
        };
        [
            shown(base.rsplit('/').next().unwrap_or(base)),
            shown(self.status["state"].as_str().unwrap_or("?")),
            count("queued"),
            both("running", "slots"),
            stats["tokens_per_s"]
                .as_f64()
                .map_or_else(unknown, |n| format!("{n:.1}")),
            stats["latency"]["first_token_ms"]
                .as_u64()
                .map_or_else(unknown, |ms| format!("{ms} ms")),
            count("served"),
            errors,
            stats["memory"]["rss_bytes"]
                .as_u64()
                .map_or_else(unknown, |bytes| format!("{} MiB", bytes >> 20)),
            match stats["model"]["loaded"].as_bool() {
                Some(true) => "loaded".to_owned(),
                Some(false) => "unloaded".to_owned(),
                None => unknown(),
            },
            self.pace(),
        ]
    }

    /// The share of the time in which the node computes, and the reason if it is throttled.
    fn pace(&self) -> String {
        let pace = &self.stats["pace"];
        match (pace["share"].as_u64(), pace["reason"].as_str()) {
            (Some(share), Some(reason)) => format!("{share} % {}", shown(reason)),
            (Some(share), None) => format!("{share} %"),
            (None, _) => unknown(),
        }
    }

    fn reason(&self) -> Option<String> {
        self.status["reason"].as_str().map(shown)
    }
}

/// An untrusted text, made safe for the terminal.
fn shown(text: &str) -> String {
    terminal::line(text).into_owned()
}

fn unknown() -> String {
    "–".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_commands_no_terminal() {
        let hostile = "\u{1b}]0;title\u{7}\u{9b}2J\r\n\u{202e}x";
        let text = |key: &str| serde_json::json!({ key: hostile }).to_string().into_bytes();
        let mut nodes = Nodes::default();
        nodes.take(&format!("phi-edge/v1/{hostile}/status"), &text("state"));
        nodes.take("phi-edge/v1/b/status", &text("reason"));
        let stats = serde_json::json!({ "pace": { "share": 3, "reason": hostile } }).to_string();
        nodes.take("phi-edge/v1/c/stats", stats.as_bytes());
        let text = nodes.text();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
        assert!(
            !text.contains('\u{202e}') && text.matches("title").count() == 4,
            "{text}"
        );
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn a_fleet_is_listed_with_what_is_wrong() {
        let mut nodes = Nodes::default();
        nodes.take(
            "phi-edge/v1/b/status",
            br#"{"state":"degraded","reason":"the store fails: disk full"}"#,
        );
        nodes.take("phi-edge/v1/a/status", br#"{"state":"ready","reason":null}"#);
        nodes.take(
            "phi-edge/v1/a/stats",
            br#"{"queued":3,"running":1,"slots":4,"tokens_per_s":12.5,"served":7,"failed":1,"refused":2,
                "latency":{"first_token_ms":250},"memory":{"rss_bytes":3145728},
                "model":{"loaded":false},"pace":{"share":30,"reason":"heat"}}"#,
        );
        nodes.take("phi-edge/v1/a/stats/x", b"not json");
        let text = nodes.text();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "a", "ready", "3", "1/4", "12.5", "250", "ms", "7", "3", "3", "MiB", "unloaded", "30", "%",
                "heat"
            ]
        );
        assert_eq!(&lines[2][..2], ["b", "degraded"]);
        assert!(text.ends_with("b: the store fails: disk full\n"), "{text}");
    }

    #[test]
    fn made_up_nodes_do_not_fill_the_memory() {
        let mut nodes = Nodes::default();
        for n in 0..2 * MAX_NODES {
            nodes.take(&format!("phi-edge/v1/{n}/status"), br#"{"state":"ready"}"#);
        }
        nodes.take("phi-edge/v1/0/status", br#"{"state":"degraded"}"#);
        let long = format!(
            r#"{{"state":"ready","reason":"{}"}}"#,
            "x".repeat(MAX_MESSAGE_BYTES)
        );
        nodes.take("phi-edge/v1/1/status", long.as_bytes());
        assert_eq!(nodes.rows().len(), MAX_NODES);
        assert!(nodes.text().contains("degraded"));
        assert!(nodes.text().len() < MAX_NODES * 300);
    }
}
