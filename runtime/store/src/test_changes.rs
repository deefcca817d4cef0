//! Changes that several tests of the store make.

use phi_edge_rules::Time;
use phi_edge_rules::changes::{KeptMessage, RuleChange};

/// The change that keeps a message of a window.
pub(crate) fn keep_message(seq: u64, payload: &[u8]) -> RuleChange {
    RuleChange::KeepMessage(Box::new(KeptMessage {
        seq,
        rule: "r".into(),
        group: "g".into(),
        arrived: Time(0),
        topic: "t".into(),
        payload: payload.to_vec(),
    }))
}
