//! Many devices and a kill, in short; `cargo xtask devices` is the long form.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use phi_edge_tests::{Load, Mosquitto, devices, has_library};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_under_load_loses_and_doubles_nothing() {
    if !has_library() || Mosquitto::start().is_none() {
        return;
    }
    let report = devices(Load {
        devices: 40,
        rate: 10,
        time: Duration::from_secs(8),
        kills: 1,
        window: 2,
    })
    .await
    .unwrap();
    println!("{report}");
    assert_eq!(report["published"], 3_200);
}
