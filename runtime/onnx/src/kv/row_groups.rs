//! The groups of rows in device memory: which rows share a tensor, and how large it is. Bookkeeping alone: the tensors are
//! [`super::device_rows`]'s.
//!
//! A run takes a tensor `[rows, heads, capacity, head_size]` of its rows for each layer and side, and a device's memory can't
//! always be addressed within an allocation. So the rows that run together are a group: one allocation a layer and side, in
//! which each row has a place. A row that runs alone is a group of one. Where the rows of a run are another set than before,
//! their groups are replaced by new ones, whose contents are gathered from the old.
//!
//! Capacities go in classes of at most a quarter more than is asked for, so that a growing row is moved rarely.

use std::collections::{BTreeMap, BTreeSet};

/// The smallest step of capacities, in tokens.
pub(super) const BLOCK_TOKENS: usize = 16;

/// A group. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupId(u64);

/// A row's place in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: GroupId,
    pub(super) index: usize,
}

/// Rows whose keys and values share a tensor in each layer and side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Tokens that each place has room for.
    pub(super) capacity: usize,
    /// The row of each place; `None`: the row has left.
    pub(super) members: Vec<Option<usize>>,
}

impl Group {
    /// The capacities of its places together.
    fn taken(&self) -> usize {
        self.members.len() * self.capacity
    }
}

/// The replacement of groups by new ones. Every row of a removed group has a place in an added one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regroup {
    pub(super) removed: Vec<GroupId>,
    pub(super) added: Vec<NewGroup>,
}

/// A group to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewGroup {
    pub(super) id: GroupId,
    pub(super) capacity: usize,
    pub(super) members: Vec<Member>,
}

/// A row of a group to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) row: usize,
    /// Where its tokens are; `None`: it has none.
    pub(super) source: Option<Source>,
}

/// The first tokens of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) place: Place,
    pub(super) tokens: usize,
}

/// What the groups may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The sum of the capacities of all places, in tokens. While groups are replaced, one tensor after the other, a tensor of
    /// them comes on top.
    pub(super) memory: usize,
    /// The capacity of a row, in tokens.
    pub(super) row: usize,
}

/// There is no memory for a change of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoMemory;

#[derive(Debug, Clone, Copy, Default)]
struct RowState {
    place: Option<Place>,
    /// Tokens that it may hold.
    tokens: usize,
    /// What it held is gone.
    is_lost: bool,
}

/// The groups of all rows.
#[derive(Debug)]
pub(super) struct RowGroups {
    rows: Vec<RowState>,
    groups: BTreeMap<GroupId, Group>,
    next: u64,
    limits: Limits,
}

impl RowGroups {
    /// Rows without memory.
    pub(super) fn new(rows: usize, limits: Limits) -> Self {
        Self {
            rows: vec![RowState::default(); rows],
            groups: BTreeMap::new(),
            next: 0,
            limits,
        }
    }

    /// The place of a row, if it has memory.
    pub(super) fn place(&self, row: usize) -> Option<Place> {
        self.rows.get(row)?.place
    }

    /// A group that exists.
    pub(super) fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    /// Whether what the row held was lost by a failed change of the groups.
    pub(super) fn is_lost(&self, row: usize) -> bool {
        self.rows.get(row).is_some_and(|row| row.is_lost)
    }

    /// The change by which `row` gets room for `tokens`; `None`: it has.
    pub(super) fn plan_room(&self, row: usize, tokens: usize) -> Result<Option<Regroup>, NoMemory> {
        let Some(place) = self.place(row) else {
            let alone = vec![(vec![row], self.class(tokens))];
            return self.first_that_fits(&[], &[alone]).map(Some);
        };
        let Some(group) = self.group(place.group).filter(|group| group.capacity < tokens) else {
            return Ok(None);
        };
        let capacity = self.class(tokens.max(self.held(row)));
        let members: Vec<usize> = group.members.iter().flatten().copied().collect();
        let need = |&member: &usize| {
            if member == row {
                capacity
            } else {
                self.class(self.held(member))
            }
        };
        let needs: usize = members.iter().map(need).sum();
        let mut wanted = Vec::new();
        if is_tight(members.len(), capacity, needs) {
            wanted.push(vec![(members, capacity)]);
        }
        wanted.push(vec![(vec![row], capacity)]);
        self.first_that_fits(&[place.group], &wanted).map(Some)
    }

    /// The change by which `rows` are one group with room for `tokens`; `None`: they are.
    pub(super) fn plan_run(&self, rows: &[usize], tokens: usize) -> Result<Option<Regroup>, NoMemory> {
        let places: Vec<Place> = rows.iter().filter_map(|&row| self.place(row)).collect();
        if let Some(first) = places.first()
            && places.len() == rows.len()
            && places.iter().all(|place| place.group == first.group)
            && let Some(group) = self.group(first.group)
            && group.members.len() == rows.len()
            && group.capacity >= tokens
        {
            return Ok(None);
        }
        let held = rows.iter().map(|&row| self.held(row)).max().unwrap_or(0);
        let removed: Vec<GroupId> = places.iter().map(|place| place.group).collect();
        let wanted = vec![(rows.to_vec(), self.class(tokens.max(held)))];
        self.first_that_fits(&removed, &[wanted]).map(Some)
    }

    /// The parts of a run: sets of rows of similar length, so that a group takes at most half more memory than its rows alone.
    /// `tokens` are those that each row needs room for; returned are indices into it.
    pub(super) fn partition(&self, tokens: &[usize]) -> Vec<Vec<usize>> {
        let classes: Vec<usize> = tokens.iter().map(|&tokens| self.class(tokens)).collect();
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(classes[index]));
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let (mut capacity, mut sum) = (0, 0);
        for index in order {
            let class = classes[index];
            match parts.last_mut() {
                Some(part) if is_tight(part.len() + 1, capacity, sum + class) => {
                    part.push(index);
                    sum += class;
                }
                _ => {
                    parts.push(vec![index]);
                    (capacity, sum) = (class, class);
                }
            }
        }
        for part in &mut parts {
            part.sort_unstable();
        }
        parts
    }

    /// Records a change that was made.
    pub(super) fn carry_out(&mut self, regroup: &Regroup) {
        for id in &regroup.removed {
            self.groups.remove(id);
        }
        for new in &regroup.added {
            self.next = self.next.max(new.id.0 + 1);
            for (index, member) in new.members.iter().enumerate() {
                let group = new.id;
                self.leave(member.row);
                self.rows[member.row].place = Some(Place { group, index });
            }
            let members = new.members.iter().map(|member| Some(member.row)).collect();
            let capacity = new.capacity;
            self.groups.insert(new.id, Group { capacity, members });
        }
    }

    /// Records that a change has failed midway: its rows have lost what they held, and the groups are gone.
    pub(super) fn lose(&mut self, regroup: &Regroup) {
        for id in &regroup.removed {
            self.groups.remove(id);
        }
        for member in regroup.added.iter().flat_map(|new| &new.members) {
            self.lose_row(member.row);
        }
    }

    /// Records that what a row held is gone.
    pub(super) fn lose_row(&mut self, row: usize) -> Option<GroupId> {
        let emptied = self.leave(row);
        let is_lost = self.rows[row].tokens > 0;
        self.rows[row] = RowState {
            is_lost,
            ..RowState::default()
        };
        emptied
    }

    /// Records that a row may hold `tokens` now.
    pub(super) fn hold(&mut self, row: usize, tokens: usize) {
        let row = &mut self.rows[row];
        row.tokens = row.tokens.max(tokens);
    }

    /// Records that a row holds other tokens than before, in the same place.
    pub(super) fn replace(&mut self, row: usize, tokens: usize) {
        let row = &mut self.rows[row];
        row.tokens = tokens;
        row.is_lost = false;
    }

    /// Records that a row holds no more than `tokens`. Returns the group that is empty then.
    pub(super) fn truncate(&mut self, row: usize, tokens: usize) -> Option<GroupId> {
        let state = self.rows.get_mut(row)?;
        state.tokens = state.tokens.min(tokens);
        if tokens > 0 {
            return None;
        }
        state.is_lost = false;
        self.leave(row)
    }

    /// Tokens of all groups' places together.
    pub(super) fn taken(&self) -> usize {
        self.groups.values().map(Group::taken).sum()
    }

    /// Takes a row from its group. Returns the group if that is empty then.
    fn leave(&mut self, row: usize) -> Option<GroupId> {
        let place = self.rows[row].place.take()?;
        let group = self.groups.get_mut(&place.group)?;
        group.members[place.index] = None;
        if group.members.iter().any(Option::is_some) {
            return None;
        }
        self.groups.remove(&place.group);
        Some(place.group)
    }

    fn held(&self, row: usize) -> usize {
        self.rows.get(row).map_or(0, |row| row.tokens)
    }

    /// The capacity for `tokens`.
    fn class(&self, tokens: usize) -> usize {
        class(tokens).min(self.limits.row).max(tokens)
    }

    /// The first of `wanted` that the memory holds, in the place of the groups `removed`; where none does, with the memory
    /// that other groups do not need given back.
    fn first_that_fits(
        &self,
        removed: &[GroupId],
        wanted: &[Vec<(Vec<usize>, usize)>],
    ) -> Result<Regroup, NoMemory> {
        let removed: BTreeSet<GroupId> = removed.iter().copied().collect();
        let mut plans = wanted.iter().map(|wanted| self.regroup(&removed, wanted));
        if let Some(plan) = plans.find(|plan| self.fits(plan)) {
            return Ok(plan);
        }
        let mut all = removed;
        let loose = self.groups.iter().filter(|(_, group)| self.is_loose(group));
        all.extend(loose.map(|(id, _)| *id));
        let mut plans = wanted.iter().map(|wanted| self.regroup(&all, wanted));
        plans.find(|plan| self.fits(plan)).ok_or(NoMemory)
    }

    /// Whether the rows of a group would take less memory alone.
    fn is_loose(&self, group: &Group) -> bool {
        let rows = group.members.iter().flatten();
        let alone: usize = rows.map(|&row| self.class(self.held(row))).sum();
        alone < group.taken()
    }

    fn fits(&self, regroup: &Regroup) -> bool {
        let groups = regroup.removed.iter().filter_map(|id| self.groups.get(id));
        let removed: usize = groups.map(Group::taken).sum();
        let added = regroup.added.iter();
        let added: usize = added.map(|group| group.members.len() * group.capacity).sum();
        self.taken() - removed + added <= self.limits.memory
    }

    /// The replacement of `removed` by groups of these rows and capacities; each other row of `removed` gets one of its own.
    fn regroup(&self, removed: &BTreeSet<GroupId>, wanted: &[(Vec<usize>, usize)]) -> Regroup {
        let named: BTreeSet<usize> = wanted.iter().flat_map(|(rows, _)| rows).copied().collect();
        let groups = removed.iter().filter_map(|id| self.groups.get(id));
        let left = groups.flat_map(|group| group.members.iter().flatten().copied());
        let alone = left
            .filter(|row| !named.contains(row))
            .map(|row| (vec![row], self.class(self.held(row))));
        let all = wanted.iter().cloned().chain(alone);
        let added = (self.next..).zip(all).map(|(id, (rows, capacity))| NewGroup {
            id: GroupId(id),
            capacity,
            members: rows.iter().map(|&row| self.member(row, capacity)).collect(),
        });
        Regroup {
            removed: removed.iter().copied().collect(),
            added: added.collect(),
        }
    }

    fn member(&self, row: usize, capacity: usize) -> Member {
        let source = self.place(row).and_then(|place| {
            let most = self.group(place.group)?.capacity.min(capacity);
            let tokens = self.held(row).min(most);
            (tokens > 0).then_some(Source { place, tokens })
        });
        Member { row, source }
    }
}

/// The capacity for `tokens`, at most 5/4 of whole blocks: a multiple of a block, and of a quarter of the power of two below it.
fn class(tokens: usize) -> usize {
    let power = 1 << (tokens.max(2) - 1).ilog2();
    tokens.max(1).next_multiple_of(BLOCK_TOKENS.max(power / 4))
}

/// Whether `rows` places of `capacity` take at most half more than the memory of the rows alone.
fn is_tight(rows: usize, capacity: usize, alone: usize) -> bool {
    2 * rows * capacity <= 3 * alone
}

#[cfg(test)]
mod tests;
