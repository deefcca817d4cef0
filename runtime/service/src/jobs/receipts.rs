//! Receipts of messages that were handled, for the broker's redeliveries.
//!
//! At QoS 1 a packet id names at most one unacknowledged message of a session (MQTT 5, section 2.2.1): a new message with
//! the id of an earlier one proves that the broker has discarded the earlier one. So one receipt for each packet id covers
//! whatever a broker may deliver again, and the protocol bounds their number.

use std::collections::HashSet;

use phi_edge_job::Receipt;
use phi_edge_store::{RECEIPT_REACH, ReceiptMark, ReceiptRow, receipt_mark};

/// The receipts of a session, one for each packet id.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    /// The receipts by packet id; grows with the largest one, to 65,536 entries of 24 bytes.
    slots: Vec<Slot>,
    /// The number of the newest receipt.
    last: u64,
    /// Receipts that an earlier version of the program stored, without their packet ids.
    former: HashSet<ReceiptMark>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The place in the order of arrival; 0 for an empty slot.
    number: u64,
    mark: ReceiptMark,
}

impl Receipts {
    /// Whether a message that the broker delivers again was handled before.
    pub(crate) fn knows(&self, receipt: &Receipt) -> bool {
        let mark = receipt_mark(&receipt.digest);
        let slot = self.slots.get(usize::from(receipt.packet_id));
        let known = slot.is_some_and(|slot| {
            slot.number > 0 && slot.mark == mark && self.last - slot.number < RECEIPT_REACH
        });
        known || self.former.contains(&mark)
    }

    /// Replaces the earlier receipt of the same packet id; returns the row to store.
    pub(crate) fn add(&mut self, receipt: &Receipt) -> ReceiptRow {
        self.last += 1;
        if self.last > RECEIPT_REACH {
            self.former = HashSet::new();
        }
        let row = ReceiptRow {
            packet_id: receipt.packet_id,
            number: self.last,
            mark: receipt_mark(&receipt.digest),
        };
        self.put(row);
        row
    }

    /// Forgets all: the broker has lost the session, and what it delivers from now on is new.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Restores the receipts of an earlier process, which those of this process are numbered after.
    pub(crate) fn restore(&mut self, rows: Vec<ReceiptRow>, former: impl IntoIterator<Item = ReceiptMark>) {
        let own: Vec<ReceiptRow> = self.rows().collect();
        let before = rows.iter().map(|row| row.number).max().unwrap_or(0);
        for row in rows {
            self.put(row);
        }
        for row in own {
            let number = row.number + before;
            self.put(ReceiptRow { number, ..row });
        }
        self.last += before;
        if self.last <= RECEIPT_REACH {
            self.former.extend(former);
        }
    }

    /// Returns the rows of all receipts.
    pub(crate) fn rows(&self) -> impl Iterator<Item = ReceiptRow> {
        let slots = (0..=u16::MAX).zip(&self.slots);
        slots
            .filter(|(_, slot)| slot.number > 0)
            .map(|(packet_id, slot)| ReceiptRow {
                packet_id,
                number: slot.number,
                mark: slot.mark,
            })
    }

    fn put(&mut self, row: ReceiptRow) {
        let place = usize::from(row.packet_id);
        if self.slots.len() <= place {
            self.slots.resize(place + 1, Slot::default());
        }
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = Slot {
                number: row.number,
                mark: row.mark,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn receipt(packet_id: u16, content: u8) -> Receipt {
        Receipt {
            packet_id,
            digest: [content; 32],
        }
    }

    #[test]
    fn a_receipt_holds_until_its_packet_id_is_used_again() {
        let mut receipts = Receipts::default();
        receipts.add(&receipt(1, 7));
        assert!(receipts.knows(&receipt(1, 7)));
        assert!(!receipts.knows(&receipt(2, 7)) && !receipts.knows(&receipt(1, 8)));
        receipts.add(&receipt(1, 8));
        assert!(!receipts.knows(&receipt(1, 7)) && receipts.knows(&receipt(1, 8)));
        receipts.clear();
        assert!(!receipts.knows(&receipt(1, 8)));
    }

    #[test]
    fn all_packet_ids_are_covered_until_they_come_round() {
        let mut receipts = Receipts::default();
        let ids = 1..=u16::MAX;
        for id in ids.clone() {
            receipts.add(&receipt(id, 1));
        }
        let known = ids.filter(|id| receipts.knows(&receipt(*id, 1))).count();
        assert_eq!(known, usize::try_from(RECEIPT_REACH).unwrap());
        assert_eq!(receipts.rows().count(), 65_535);
        // A message that was lost on its way has the packet id that would have come next.
        assert!(!receipts.knows(&receipt(1, 1)));
    }

    #[test]
    fn receipts_of_an_earlier_version_hold_until_new_ones_have_taken_their_place() {
        let mut receipts = Receipts::default();
        receipts.restore(Vec::new(), [receipt_mark(&[7; 32])]);
        assert!(receipts.knows(&receipt(9, 7)));
        for id in 1..=50_000 {
            receipts.add(&receipt(id, 1));
        }
        assert!(!receipts.knows(&receipt(9, 7)));
    }

    #[test]
    fn what_came_before_the_store_could_be_read_comes_behind_what_it_holds() {
        let mut earlier = Receipts::default();
        for id in 1..=3 {
            earlier.add(&receipt(id, 1));
        }
        let mut receipts = Receipts::default();
        receipts.add(&receipt(2, 2));
        receipts.restore(earlier.rows().collect(), []);
        assert!(receipts.knows(&receipt(1, 1)) && receipts.knows(&receipt(3, 1)));
        assert!(receipts.knows(&receipt(2, 2)) && !receipts.knows(&receipt(2, 1)));
        assert_eq!(receipts.add(&receipt(4, 1)).number, 5);
    }

    /// A broker of this many packet ids, counted up, and the messages that it has under way: id, content, sent before.
    const IDS: u16 = 64;

    #[derive(Debug, Clone)]
    enum Step {
        /// The broker sends a new message; of so many contents, since equal ones are what packet ids are for.
        Publish(u8),
        /// The node takes the oldest that is on its way.
        Take,
        /// The node's oldest acknowledgement reaches the broker.
        Acknowledge,
        /// Node or connection dies, and the broker sends all again that it has under way.
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..3_u8).prop_map(Step::Publish),
            4 => Just(Step::Take),
            3 => Just(Step::Acknowledge),
            1 => Just(Step::Crash),
        ];
        proptest::collection::vec(step, 1..600)
    }

    proptest! {
        #[test]
        fn each_message_counts_once_whatever_crashes(steps in steps()) {
            let mut receipts = Receipts::default();
            let mut counted: BTreeMap<u32, u32> = BTreeMap::new();
            let mut unacknowledged: VecDeque<(u16, u8, u32, bool)> = VecDeque::new();
            let mut wire: VecDeque<(u16, u8, u32, bool)> = VecDeque::new();
            let mut acknowledgements: VecDeque<u16> = VecDeque::new();
            let (mut messages, mut next) = (0, 0_u16);
            for step in steps {
                match step {
                    Step::Publish(content) if unacknowledged.len() < usize::from(IDS) / 2 => {
                        next = next % IDS + 1;
                        messages += 1;
                        unacknowledged.push_back((next, content, messages, true));
                        wire.push_back((next, content, messages, false));
                    }
                    Step::Publish(_) => {}
                    Step::Take => if let Some((id, content, message, again)) = wire.pop_front() {
                        // All contents differ within a round of the ids, as far as a receipt can tell.
                        let content = content ^ u8::try_from(message / u32::from(IDS) % 64).unwrap() << 2;
                        let receipt = receipt(id, content);
                        if !(again && receipts.knows(&receipt)) {
                            receipts.add(&receipt);
                            *counted.entry(message).or_default() += 1;
                        }
                        acknowledgements.push_back(id);
                    },
                    Step::Acknowledge => if let Some(id) = acknowledgements.pop_front() {
                        unacknowledged.retain(|(other, ..)| *other != id);
                    },
                    Step::Crash => {
                        acknowledgements.clear();
                        wire = unacknowledged.clone();
                        let mut restored = Receipts::default();
                        restored.restore(receipts.rows().collect(), []);
                        receipts = restored;
                    }
                }
            }
            while let Some((id, content, message, again)) = wire.pop_front() {
                let content = content ^ u8::try_from(message / u32::from(IDS) % 64).unwrap() << 2;
                if !(again && receipts.knows(&receipt(id, content))) {
                    receipts.add(&receipt(id, content));
                    *counted.entry(message).or_default() += 1;
                }
            }
            prop_assert_eq!(counted.len(), usize::try_from(messages).unwrap());
            prop_assert!(counted.values().all(|times| *times == 1), "{:?}", counted);
        }
    }
}
