//! kill -9 while the daemon catches up, again and again: each message counts once.
//!
//! `PHI_EDGE_CRASH_KILLS` and `PHI_EDGE_CRASH_MESSAGES` make the loops longer and the batches larger.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use phi_edge_tests::hostile::{CrashLoop, Report};
use phi_edge_tests::{Mosquitto, has_library};

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |value| value.parse().unwrap())
}

async fn each_message_counts_once(inflight: u16, equal: bool) {
    if !has_library() || Mosquitto::start().is_none() {
        return;
    }
    let crash_loop = CrashLoop {
        kills: from_environment("PHI_EDGE_CRASH_KILLS", 15),
        batch: from_environment("PHI_EDGE_CRASH_MESSAGES", 2000),
        kills_a_batch: 15,
        inflight,
        equal,
        time: Duration::from_hours(24),
        seed: 0x9e37_79b9_7f4a_7c15 ^ u64::from(inflight),
    };
    let report = crash_loop.run().await;
    println!("{}", Report::table(std::slice::from_ref(&report)));
    assert!(report.broken.is_empty(), "{:#?}", report.broken);
}

#[tokio::test]
async fn with_all_that_waits_in_flight() {
    each_message_counts_once(0, false).await;
}

#[tokio::test]
async fn with_twenty_in_flight() {
    each_message_counts_once(20, false).await;
}

#[tokio::test]
async fn with_messages_that_only_their_packet_ids_tell_apart() {
    each_message_counts_once(0, true).await;
}
