//! The durable state of the broker session: receipts and the link's note.

use crate::jobs::receipts::Receipts;
use phi_edge_job::Receipt;
use phi_edge_store::{Change, ReceiptMark, ReceiptRow};

/// The receipts of all messages that were processed (accepted, repeated, refused, or counted by rules), and the link's note.
///
/// A method that changes it returns the change for the journal.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    receipts: Receipts,
    note: Option<String>,
}

impl LinkState {
    /// Whether a message that the broker delivers again was processed before.
    pub(super) fn is_redelivery(&self, receipt: &Receipt) -> bool {
        self.receipts.knows(receipt)
    }

    /// Records the receipt of a processed message.
    pub(super) fn record_receipt(&mut self, receipt: &Receipt) -> Change {
        Change::Received(self.receipts.add(receipt))
    }

    /// Forgets all receipts: the broker has lost the session, and its packet ids name other messages from now on.
    pub(super) fn forget_receipts(&mut self) -> Change {
        self.receipts.clear();
        Change::ForgetReceipts
    }

    /// Replaces the link's note.
    pub(super) fn set_note(&mut self, note: String) -> Change {
        self.note = Some(note.clone());
        Change::LinkNote(note)
    }

    /// The link's last note.
    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Adds the state of an earlier process. A note of this process is newer and stays.
    pub(super) fn restore(
        &mut self,
        receipts: Vec<ReceiptRow>,
        former_receipts: impl IntoIterator<Item = ReceiptMark>,
        note: Option<String>,
    ) {
        self.receipts.restore(receipts, former_receipts);
        if self.note.is_none() {
            self.note = note;
        }
    }

    /// The changes that write all of it.
    pub(super) fn all_changes(&self) -> impl Iterator<Item = Change> {
        let receipts = self.receipts.rows().map(Change::Received);
        receipts.chain(self.note.clone().map(Change::LinkNote))
    }
}
