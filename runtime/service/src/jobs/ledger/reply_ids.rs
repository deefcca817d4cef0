//! The ids of replies.

/// The generator of reply ids, which are unique among the processes of a node.
#[derive(Debug)]
pub(super) struct ReplyIds {
    /// A random number of this process.
    boot: u64,
    issued: u64,
}

impl ReplyIds {
    pub(super) fn new(boot: u64) -> Self {
        Self { boot, issued: 0 }
    }

    /// Returns a new id.
    pub(super) fn issue(&mut self) -> String {
        self.issued += 1;
        format!("{:016x}-{}", self.boot, self.issued)
    }
}
