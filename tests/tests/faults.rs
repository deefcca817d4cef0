//! The fault matrix: whatever breaks, each request that was accepted has one outcome.
//!
//! Each case runs once, or as often as `PHI_EDGE_FAULT_ROUNDS` says (`cargo xtask faults`), at random moments. The table of
//! docs/reliability.md is made of what the cases write to `PHI_EDGE_FAULT_TABLE`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs
)]

mod faults {
    pub mod support;

    mod box_itself;
    mod broker;
    mod daemon;
    mod requests;
}
