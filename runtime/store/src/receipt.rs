//! Receipts as they are stored.

/// The number of messages after which a receipt expires: three quarters of all packet ids. What is redelivered later was
/// lost on its way, and only has the id and the content of an earlier message: with brokers that count ids up, they have
/// come round by then.
pub const RECEIPT_REACH: u64 = 49_152;

/// The part of a digest that is kept.
pub type ReceiptMark = [u8; 16];

/// A receipt as the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiptRow {
    /// The broker's packet id.
    pub packet_id: u16,
    /// The place in the order of arrival, counted from 1.
    pub number: u64,
    /// The part of its digest that is kept.
    pub mark: ReceiptMark,
}

/// Returns the part of a digest that is kept: enough to tell messages apart.
pub fn receipt_mark(digest: &[u8; 32]) -> ReceiptMark {
    let mut mark = ReceiptMark::default();
    mark.copy_from_slice(&digest[..16]);
    mark
}
