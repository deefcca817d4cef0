//! The block tables of rows in paged device memory: which blocks of the pool a row has, and how many rows have a block.
//! Bookkeeping alone: the tensors are [`super::paged_rows`]'s.
//!
//! A block holds some neighbouring tokens of a row, in all layers. Rows that begin alike have the same blocks there. A block that
//! several rows have is never written: before a row writes to it, the row gets one of its own, with a copy of what it keeps.

/// A block of the pool.
pub(super) type BlockId = u32;

/// The first tokens of a block, to be copied to another one before that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockCopy {
    pub(super) from: BlockId,
    pub(super) to: BlockId,
    pub(super) tokens: usize,
}

/// The pool has no blocks left for a change of the tables, which did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoBlocks;

#[derive(Debug, Clone, Default)]
struct RowBlocks {
    /// In the order of their tokens. The last ones may be empty.
    blocks: Vec<BlockId>,
    /// Tokens that it holds.
    tokens: usize,
}

/// The tables of all rows, and the blocks that no row has.
#[derive(Debug)]
pub(super) struct BlockTables {
    block_tokens: usize,
    rows: Vec<RowBlocks>,
    /// The number of rows that have each block.
    users: Vec<u32>,
    free: Vec<BlockId>,
}

impl BlockTables {
    /// Rows without tokens, over a pool of `blocks` blocks of `block_tokens` tokens.
    pub(super) fn new(rows: usize, blocks: BlockId, block_tokens: usize) -> Self {
        Self {
            block_tokens: block_tokens.max(1),
            rows: vec![RowBlocks::default(); rows],
            users: (0..blocks).map(|_| 0).collect(),
            // The lowest is taken first.
            free: (0..blocks).rev().collect(),
        }
    }

    /// The blocks of a row, in the order of its tokens.
    pub(super) fn blocks(&self, row: usize) -> &[BlockId] {
        self.rows.get(row).map_or(&[], |row| &row.blocks)
    }

    /// The tokens that a row holds.
    pub(super) fn tokens(&self, row: usize) -> usize {
        self.rows.get(row).map_or(0, |row| row.tokens)
    }

    /// The number of blocks that some row has.
    pub(super) fn taken(&self) -> usize {
        self.users.len() - self.free.len()
    }

    /// Gives a row room for `tokens` tokens. It holds no more than before.
    pub(super) fn reserve(&mut self, row: usize, tokens: usize) -> Result<(), NoBlocks> {
        let missing = self.block_count(tokens).saturating_sub(self.blocks(row).len());
        let new = self.take(missing)?;
        if let Some(row) = self.rows.get_mut(row) {
            row.blocks.extend(new);
        }
        Ok(())
    }

    /// Prepares a row for tokens at `start..end`: it keeps what it holds before them, and holds them from now on. The blocks of
    /// these tokens are its own then. Returns the copy that must be made before they are written.
    pub(super) fn write(
        &mut self,
        row: usize,
        start: usize,
        end: usize,
    ) -> Result<Option<BlockCopy>, NoBlocks> {
        let block_tokens = self.block_tokens;
        let (first, needed) = (start / block_tokens, self.block_count(end));
        let own = |tables: &Self, at: usize| tables.blocks(row).get(at).is_some_and(|id| tables.is_own(*id));
        let places: Vec<usize> = (first..needed).filter(|&at| !own(self, at)).collect();
        let mut new = self.take(places.len())?.into_iter();
        let mut copy = None;
        for at in places {
            let (Some(to), Some(row)) = (new.next(), self.rows.get_mut(row)) else {
                break;
            };
            let Some(place) = row.blocks.get_mut(at) else {
                row.blocks.push(to);
                continue;
            };
            let from = std::mem::replace(place, to);
            let tokens = start % block_tokens;
            if at == first && tokens > 0 {
                copy = Some(BlockCopy { from, to, tokens });
            }
            self.drop_user(from);
        }
        // What follows is room for tokens to come, and must be its own as well.
        let len = self.blocks(row).len();
        if let Some(shared) = (needed..len).find(|&at| !own(self, at)) {
            self.cut(row, shared);
        }
        if let Some(row) = self.rows.get_mut(row) {
            row.tokens = end;
        }
        Ok(copy)
    }

    /// Lets `to` have the blocks of the first `tokens` tokens of `from`, in the place of its own.
    pub(super) fn share(&mut self, from: usize, to: usize, tokens: usize) {
        if from == to || from >= self.rows.len() || to >= self.rows.len() {
            return;
        }
        let tokens = tokens.min(self.tokens(from));
        let blocks = self.blocks(from)[..self.block_count(tokens)].to_vec();
        for &id in &blocks {
            self.users[id as usize] += 1;
        }
        self.cut(to, 0);
        self.rows[to] = RowBlocks { blocks, tokens };
    }

    /// Discards what a row holds after its first `tokens` tokens, with the blocks behind them.
    pub(super) fn truncate(&mut self, row: usize, tokens: usize) {
        let kept = self.block_count(tokens);
        self.cut(row, kept);
        if let Some(row) = self.rows.get_mut(row) {
            row.tokens = row.tokens.min(tokens);
        }
    }

    /// The number of blocks that `tokens` tokens take.
    fn block_count(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    fn is_own(&self, id: BlockId) -> bool {
        self.users.get(id as usize) == Some(&1)
    }

    /// Takes this many blocks, or none.
    fn take(&mut self, count: usize) -> Result<Vec<BlockId>, NoBlocks> {
        let left = self.free.len().checked_sub(count).ok_or(NoBlocks)?;
        let mut taken = self.free.split_off(left);
        taken.reverse();
        for &id in &taken {
            self.users[id as usize] = 1;
        }
        Ok(taken)
    }

    /// Takes the blocks after the first `kept` from a row.
    fn cut(&mut self, row: usize, kept: usize) {
        let Some(row) = self.rows.get_mut(row).filter(|row| row.blocks.len() > kept) else {
            return;
        };
        for id in row.blocks.split_off(kept).into_iter().rev() {
            self.drop_user(id);
        }
    }

    fn drop_user(&mut self, id: BlockId) {
        let Some(users) = self.users.get_mut(id as usize) else {
            return;
        };
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.free.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
