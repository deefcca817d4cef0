//! The identity of a delivered message.

/// The identity of one delivery of a QoS 1 message, the same again when the broker delivers it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The broker's packet id.
    pub packet_id: u16,
    /// A digest of what identifies the message beside its packet id.
    pub digest: [u8; 32],
}
