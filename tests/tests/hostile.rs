//! Attacks from outside, in their short form; `cargo xtask hostile` is the long one.
//!
//! A failure names its seed: `PHI_EDGE_HOSTILE_SEED` repeats it.

#![allow(clippy::unwrap_used, missing_docs)]

use phi_edge_tests::hostile::{Plan, Report, Scenario};
use phi_edge_tests::{Mosquitto, has_library};
use tokio::sync::RwLock;

/// Scenarios that measure latencies run alone.
static EXCLUSIVE: RwLock<()> = RwLock::const_new(());

async fn check(scenario: Scenario) {
    if !has_library() || Mosquitto::start().is_none() {
        return;
    }
    let Some(report) = (if scenario == Scenario::Memory {
        let _alone = EXCLUSIVE.write().await;
        scenario.run(Plan::short()).await
    } else {
        let _beside = EXCLUSIVE.read().await;
        scenario.run(Plan::short()).await
    }) else {
        return;
    };
    println!("{}", Report::table(std::slice::from_ref(&report)));
    assert!(
        report.broken.is_empty(),
        "{} with seed {}: {:#?}",
        report.scenario,
        report.seed,
        report.broken
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisons_are_quarantined() {
    check(Scenario::Poisons).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_path_convicts_nothing() {
    check(Scenario::Flapping).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_counts_each_message_once() {
    check(Scenario::CrashLoop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_memory_is_enough_under_attack() {
    check(Scenario::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_of_mosquitto_stop_nothing() {
    check(Scenario::Clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_of_the_embedded_broker_stop_nothing() {
    check(Scenario::ClientsEmbedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_lose_and_double_nothing() {
    check(Scenario::Reloads).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_at_the_embedded_broker_lose_and_double_nothing() {
    check(Scenario::ReloadsEmbedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_fight_stops_nothing() {
    check(Scenario::Fights).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_pictures_have_one_outcome_each() {
    check(Scenario::Pictures).await;
}
