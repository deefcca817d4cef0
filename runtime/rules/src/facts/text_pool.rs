//! The interned texts of a rule's windows.

use std::collections::HashSet;
use std::sync::Arc;

/// Bytes that a text costs beside its own: its counts, its entry in the pool, and the allocation's overhead.
const ENTRY_BYTES: usize = 64;
/// The least texts for which a sweep is worth its time.
const MIN_TEXTS_TO_SWEEP: usize = 64;

/// Interned texts. They are shared by all windows of a rule, and leave some time after the last window that held them.
#[derive(Debug, Default)]
pub(crate) struct TextPool {
    texts: HashSet<Arc<str>>,
    bytes: usize,
    /// The number of texts after the last sweep.
    swept: usize,
    /// Whether a window has closed since the last sweep.
    ended: bool,
}

impl TextPool {
    /// The shared text.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= (2 * self.swept).max(MIN_TEXTS_TO_SWEEP) {
            self.sweep();
        }
        let shared: Arc<str> = text.into();
        self.bytes += ENTRY_BYTES + text.len();
        self.texts.insert(Arc::clone(&shared));
        shared
    }

    /// Records that a window has closed: no other may hold its texts.
    pub(crate) fn window_ended(&mut self) {
        self.ended = true;
    }

    /// Frees the texts that no window holds, if a window has closed since the last time.
    pub(crate) fn free_texts(&mut self) {
        if self.ended {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        self.ended = false;
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.texts.shrink_to(2 * self.texts.len());
        self.swept = self.texts.len();
        self.bytes = self.texts.iter().map(|text| ENTRY_BYTES + text.len()).sum();
    }

    /// Their cost in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_held_once_and_leaves_with_its_last_holder() {
        let mut pool = TextPool::default();
        let first = pool.intern("a");
        assert!(Arc::ptr_eq(&first, &pool.intern("a")));
        assert_eq!(pool.bytes(), ENTRY_BYTES + 1);
        drop(first);
        pool.free_texts();
        assert_eq!(pool.bytes(), ENTRY_BYTES + 1);
        pool.window_ended();
        pool.free_texts();
        assert_eq!(pool.bytes(), 0);
    }

    #[test]
    fn what_is_no_longer_held_does_not_pile_up() {
        let mut pool = TextPool::default();
        for n in 0..10_000 {
            pool.intern(&n.to_string());
        }
        assert!(pool.bytes() <= MIN_TEXTS_TO_SWEEP * (ENTRY_BYTES + 4));
    }
}
