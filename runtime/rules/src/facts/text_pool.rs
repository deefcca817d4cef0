//! The texts that the windows of a rule hold, each of them once.

use std::collections::HashSet;
use std::sync::Arc;

/// What a text costs beside its bytes: its counts, its place in the pool, and what an allocation takes.
const ENTRY_BYTES: usize = 64;
/// Fewer texts than these are not looked through for those that no window holds any more.
const MIN_TEXTS_TO_SWEEP: usize = 64;

/// Interned texts. They are shared by all windows of a rule, and leave some time after the last window that held them.
#[derive(Debug, Default)]
pub(crate) struct TextPool {
    texts: HashSet<Arc<str>>,
    bytes: usize,
    /// How many there were after the last sweep.
    swept: usize,
    /// A window has ended since.
    ended: bool,
}

impl TextPool {
    /// The text as it is shared.
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

    /// A window has ended: its texts may be held by no other.
    pub(crate) fn window_ended(&mut self) {
        self.ended = true;
    }

    /// Gives back what no window holds any more, if a window has ended since the last time.
    pub(crate) fn give_back(&mut self) {
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

    /// What they cost in memory, in bytes.
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
        pool.give_back();
        assert_eq!(pool.bytes(), ENTRY_BYTES + 1);
        pool.window_ended();
        pool.give_back();
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
