//! kill -9 while the daemon catches up, again and again: each message counts once.
//!
//! `PHI_EDGE_CRASH_KILLS` and `PHI_EDGE_CRASH_MESSAGES` make the loops longer and the batches larger.

#![allow(clippy::unwrap_used, missing_docs)]

use phi_edge_tests::{CrashLoop, crash_loop, has_library};

fn from_environment(name: &str, otherwise: u32) -> u32 {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |value| value.parse().unwrap())
}

async fn each_message_counts_once(inflight: u16, equal: bool) {
    if !has_library() {
        return;
    }
    let plan = CrashLoop {
        messages: from_environment("PHI_EDGE_CRASH_MESSAGES", 2000),
        kills: from_environment("PHI_EDGE_CRASH_KILLS", 15),
        kills_a_batch: 15,
        inflight,
        equal,
        seed: 0x9e37_79b9_7f4a_7c15 ^ u64::from(inflight),
    };
    if let Some(report) = crash_loop(plan).await.unwrap() {
        println!("{report}");
    }
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
