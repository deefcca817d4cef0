//! The KV memory on a device: keys and values of all rows in allocations of the execution provider's own allocator, for
//! the exporter's graph. Rows that run together share a tensor ([`super::row_groups`]); all copies are made by the
//! provider ([`super::row_gather`]).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ort::memory::MemoryInfo;
use ort::session::Session;

use super::kv_error::KvError;
use super::row_gather::{GatherSource, RowGather};
use super::row_groups::{GroupId, Limits, NewGroup, Place, Regroup, RowGroups};
use super::tensors::{KvShape, Side};
use crate::device_memory::{DeviceAllocator, DeviceBuffer};
use crate::error::OnnxError;
use crate::library::Library;
use crate::provider::{ExecutionTarget, Provider};
use crate::raw::{self, View};

/// The keys and values of all rows.
pub(crate) struct DeviceRows {
    shape: KvShape,
    budget: u64,
    groups: RowGroups,
    /// Keys and values of each layer in turn.
    tensors: BTreeMap<GroupId, Vec<DeviceBuffer>>,
    gather: RowGather,
    allocator: Arc<DeviceAllocator>,
    host: MemoryInfo<'static>,
    /// One token of zeros on the host, the beginning of an empty row, and what is copied from and to the device. In words, so
    /// that they are aligned for all elements.
    zeros: Vec<u64>,
    staging: Vec<u64>,
}

/// Where [`DeviceRows`] are made.
pub(crate) struct DevicePlace<'a> {
    pub(crate) library: &'a Library,
    pub(crate) target: ExecutionTarget<'a>,
    pub(crate) session: &'a Session,
    /// An input of the session that takes keys or values.
    pub(crate) input: &'a str,
}

impl DeviceRows {
    /// Rows without memory, which may take `memory` bytes together. The shape's capacity is that of the longest row.
    pub(crate) fn new(shape: KvShape, memory: u64, place: &DevicePlace<'_>) -> Result<Self, OnnxError> {
        let fault = |fault: String| OnnxError::KvMemory {
            rows: shape.rows,
            context: shape.capacity,
            fault,
        };
        let allocator = DeviceAllocator::of_input(place.session, place.input).map_err(fault)?;
        let device = allocator.device().map_err(fault)?;
        if !matches!(place.target.provider, Provider::Cpu | Provider::Plugin) && device == "Cpu" {
            return Err(place.target.unavailable(format!(
                "the node of input \"{}\" has no kernel there and would run on the processor",
                place.input
            )));
        }
        tracing::debug!(
            device,
            memory,
            "Keys and values are in the memory of the provider's device."
        );
        let tokens = Self::budget(&shape, memory) / shape.bytes_per_token().max(1) as u64;
        let limits = Limits {
            memory: usize::try_from(tokens).unwrap_or(usize::MAX),
            row: shape.capacity,
        };
        Ok(Self {
            budget: Self::budget(&shape, memory),
            groups: RowGroups::new(shape.rows, limits),
            tensors: BTreeMap::new(),
            gather: RowGather::new(place.library, place.target, shape.element)?,
            allocator,
            host: raw::host_memory()?,
            zeros: words(shape.heads * shape.head_size * shape.element.bytes()),
            staging: Vec::new(),
            shape,
        })
    }

    /// The dimensions; the capacity is that of the longest row.
    pub(crate) fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// The bytes that rows of this shape may take of `memory`: all but those of a tensor, which comes on top while rows are moved.
    pub(crate) fn budget(shape: &KvShape, memory: u64) -> u64 {
        let tensors = 2 * shape.layers as u64;
        memory / (tensors + 1) * tensors
    }

    /// The bytes that the rows may take together.
    pub(crate) fn bytes(&self) -> u64 {
        self.budget
    }

    /// Makes room for `tokens` tokens of a row.
    pub(crate) fn ensure(&mut self, row: usize, tokens: usize) -> Result<(), KvError> {
        let plan = self.groups.plan_room(row, tokens);
        let plan = plan.map_err(|_| self.no_memory(tokens))?;
        self.carry_out(plan)?;
        self.groups.hold(row, tokens);
        Ok(())
    }

    /// Puts rows into one group with room for `tokens` each; each of them comes to hold the tokens beside its number. Fails without a change where the memory does not hold it.
    pub(crate) fn group(&mut self, rows: &[(usize, usize)], tokens: usize) -> Result<(), KvError> {
        if let Some((row, _)) = rows.iter().find(|(row, _)| self.groups.is_lost(*row)) {
            return Err(KvError::Failed(format!(
                "the keys and values of row {row} were lost when the device had no memory left"
            )));
        }
        let numbers: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
        let plan = self.groups.plan_run(&numbers, tokens);
        let plan = plan.map_err(|_| self.no_memory(tokens))?;
        self.carry_out(plan)?;
        for (row, tokens) in rows {
            self.groups.hold(*row, *tokens);
        }
        Ok(())
    }

    /// The group that `rows` are, in the order of its places.
    pub(crate) fn group_of(&self, rows: &[usize]) -> Result<GroupId, String> {
        let places: Vec<Place> = rows.iter().filter_map(|row| self.groups.place(*row)).collect();
        let group = places.first().map(|place| place.group);
        let group = group.ok_or("rows without memory")?;
        let are_all = self
            .groups
            .group(group)
            .is_some_and(|of| of.members.len() == rows.len());
        let in_order = places
            .iter()
            .enumerate()
            .all(|(at, place)| (place.group, place.index) == (group, at));
        if are_all && in_order && places.len() == rows.len() {
            Ok(group)
        } else {
            Err("rows that are no group of the device".into())
        }
    }

    /// The parts of a run ([`RowGroups::partition`]).
    pub(crate) fn partition(&self, tokens: &[usize]) -> Vec<Vec<usize>> {
        self.groups.partition(tokens)
    }

    /// The place of a row in its group.
    pub(crate) fn index(&self, row: usize) -> usize {
        self.groups.place(row).map_or(0, |place| place.index)
    }

    /// The tensor of a group, of one layer and side. It must be dropped before the next change of the rows.
    pub(crate) fn view(&self, group: GroupId, layer: usize, side: Side) -> Result<View, String> {
        self.tensor(group, 2 * layer + usize::from(side == Side::Value))
    }

    /// Copies the first `tokens` of one row to another.
    pub(crate) fn copy(&mut self, from: usize, to: usize, tokens: &Range<usize>) -> Result<(), KvError> {
        if tokens.start != 0 {
            return Err(KvError::Failed(
                "a copy that does not begin at a row's first token".into(),
            ));
        }
        if from == to || tokens.is_empty() {
            return Ok(());
        }
        if self.groups.is_lost(from) {
            return Err(KvError::Failed(format!("row {from} holds nothing any more")));
        }
        self.alone(to, tokens.end)?;
        let (Some(source), Some(target)) = (self.groups.place(from), self.groups.place(to)) else {
            return Err(KvError::Failed(format!("row {from} holds nothing")));
        };
        let capacity = self.capacity(target.group);
        for index in 0..self.tensor_count() {
            let outcome = self
                .tensor(source.group, index)
                .and_then(|tensor| Ok((tensor, self.tensor(target.group, index)?)))
                .and_then(|(tensor, target)| {
                    let source = GatherSource {
                        tensor: &tensor,
                        index: source.index,
                        tokens: tokens.end,
                    };
                    self.gather.run(&[source], capacity, &target)
                });
            self.overwritten(to, outcome)?;
        }
        self.groups.replace(to, tokens.end);
        Ok(())
    }

    /// Discards what a row holds after its first `tokens`.
    pub(crate) fn truncate(&mut self, row: usize, tokens: usize) {
        if let Some(emptied) = self.groups.truncate(row, tokens) {
            self.tensors.remove(&emptied);
        }
    }

    /// Appends the first `tokens` of a row to `out`: layer by layer, keys then values, head by head.
    pub(crate) fn read(&mut self, row: usize, tokens: usize, out: &mut Vec<u8>) -> Result<(), KvError> {
        let place = self.groups.place(row).filter(|_| !self.groups.is_lost(row));
        let place = place.filter(|place| (1..=self.capacity(place.group)).contains(&tokens));
        let place =
            place.ok_or_else(|| KvError::Failed(format!("row {row} does not hold {tokens} tokens")))?;
        self.read_place(place, tokens, out).map_err(KvError::Failed)
    }

    fn read_place(&mut self, place: Place, tokens: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let bytes = self.segment_bytes(tokens);
        for index in 0..self.tensor_count() {
            let tensor = self.tensor(place.group, index)?;
            let target = self.staged(tokens)?;
            let source = GatherSource {
                tensor: &tensor,
                index: place.index,
                tokens,
            };
            self.gather.run(&[source], tokens, &target)?;
            let staged = self.staging.iter().flat_map(|word| word.to_ne_bytes());
            out.extend(staged.take(bytes));
        }
        Ok(())
    }

    /// Writes what [`DeviceRows::read`] returned. `bytes` must be exactly that long.
    pub(crate) fn write(&mut self, row: usize, tokens: usize, bytes: &[u8]) -> Result<(), KvError> {
        let segment = self.segment_bytes(tokens);
        if segment == 0 || bytes.len() != segment * self.tensor_count() {
            return Err(KvError::Failed(
                "the saved keys and values have another size than this model's".into(),
            ));
        }
        self.alone(row, tokens)?;
        let Some(place) = self.groups.place(row) else {
            return Err(KvError::Failed(format!("row {row} has no memory")));
        };
        let capacity = self.capacity(place.group);
        for (index, bytes) in bytes.chunks_exact(segment).enumerate() {
            let outcome = self.staged(tokens).and_then(|tensor| {
                for (word, bytes) in self.staging.iter_mut().zip(bytes.chunks(8)) {
                    let mut whole = [0; 8];
                    whole[..bytes.len()].copy_from_slice(bytes);
                    *word = u64::from_ne_bytes(whole);
                }
                let target = self.tensor(place.group, index)?;
                let source = GatherSource {
                    tensor: &tensor,
                    index: 0,
                    tokens,
                };
                self.gather.run(&[source], capacity, &target)
            });
            self.overwritten(row, outcome)?;
        }
        self.groups.replace(row, tokens);
        Ok(())
    }

    /// Gives a row a group of its own with room for `tokens`.
    fn alone(&mut self, row: usize, tokens: usize) -> Result<(), KvError> {
        let plan = self.groups.plan_run(&[row], tokens);
        let plan = plan.map_err(|_| self.no_memory(tokens))?;
        self.carry_out(plan)
    }

    /// Makes a change of the groups: the tensors are replaced one after the other. Where the first can't be, nothing has
    /// changed; where a later one can't, the rows of the change are lost.
    fn carry_out(&mut self, plan: Option<Regroup>) -> Result<(), KvError> {
        let Some(plan) = plan else { return Ok(()) };
        let mut old: Vec<Vec<Option<DeviceBuffer>>> = Vec::new();
        let mut new: Vec<Vec<DeviceBuffer>> = plan.added.iter().map(|_| Vec::new()).collect();
        for index in 0..self.tensor_count() {
            for (group, tensors) in plan.added.iter().zip(&mut new) {
                match self.gathered(group, index, &plan.removed, &old) {
                    Ok(tensor) => tensors.push(tensor),
                    Err(fault) if index == 0 => return Err(KvError::OutOfMemory(fault)),
                    Err(fault) => {
                        self.groups.lose(&plan);
                        return Err(KvError::OutOfMemory(fault));
                    }
                }
            }
            if index == 0 {
                let removed = plan
                    .removed
                    .iter()
                    .map(|id| self.tensors.remove(id).unwrap_or_default());
                old = removed
                    .map(|tensors| tensors.into_iter().map(Some).collect())
                    .collect();
            }
            for tensors in &mut old {
                if let Some(tensor) = tensors.get_mut(index) {
                    *tensor = None;
                }
            }
        }
        self.groups.carry_out(&plan);
        self.tensors
            .extend(plan.added.iter().map(|group| group.id).zip(new));
        Ok(())
    }

    /// A tensor of a group to be made, with what its rows hold. `old` are the tensors of the `removed` groups, once they
    /// are taken from `self`.
    fn gathered(
        &mut self,
        group: &NewGroup,
        index: usize,
        removed: &[GroupId],
        old: &[Vec<Option<DeviceBuffer>>],
    ) -> Result<DeviceBuffer, String> {
        let shape = self.dims(group.members.len(), group.capacity);
        let bytes = group.members.len() * self.segment_bytes(group.capacity);
        let buffer = self.allocator.allocate(bytes)?;
        let mut tensors = Vec::with_capacity(group.members.len());
        for member in &group.members {
            let Some(source) = member.source else {
                tensors.push((self.empty_row()?, 0, 1));
                continue;
            };
            let id = source.place.group;
            let taken = removed.iter().position(|removed| *removed == id);
            let tensor = match taken.and_then(|at| old.get(at)?.get(index)?.as_ref()) {
                Some(buffer) => self.tensor_over(id, buffer)?,
                None => self.tensor(id, index)?,
            };
            tensors.push((tensor, source.place.index, source.tokens));
        }
        let sources: Vec<GatherSource<'_>> = tensors
            .iter()
            .map(|(tensor, index, tokens)| GatherSource {
                tensor,
                index: *index,
                tokens: *tokens,
            })
            .collect();
        let target = buffer.view(&shape, self.shape.element)?;
        self.gather.run(&sources, group.capacity, &target)?;
        Ok(buffer)
    }

    fn tensor(&self, group: GroupId, index: usize) -> Result<View, String> {
        let tensors = self.tensors.get(&group).and_then(|tensors| tensors.get(index));
        self.tensor_over(group, tensors.ok_or("rows without memory")?)
    }

    fn tensor_over(&self, group: GroupId, buffer: &DeviceBuffer) -> Result<View, String> {
        let group = self.groups.group(group).ok_or("rows without a group")?;
        buffer.view(
            &self.dims(group.members.len(), group.capacity),
            self.shape.element,
        )
    }

    /// One token of zeros on the host.
    fn empty_row(&mut self) -> Result<View, String> {
        let shape = self.dims(1, 1);
        // SAFETY: the zeros have the shape's size, and are never written.
        unsafe {
            View::new(
                &self.host,
                self.zeros.as_mut_ptr().cast(),
                &shape,
                self.shape.element,
            )
        }
    }

    /// The staging buffer as a tensor of one row of `tokens` tokens.
    fn staged(&mut self, tokens: usize) -> Result<View, String> {
        let words = words(self.segment_bytes(tokens)).len();
        self.staging.resize(words, 0);
        let shape = self.dims(1, tokens);
        // SAFETY: the buffer has the shape's size, and the view is used before the buffer is resized.
        unsafe {
            View::new(
                &self.host,
                self.staging.as_mut_ptr().cast(),
                &shape,
                self.shape.element,
            )
        }
    }

    /// Passes on the outcome of writing over a row; where it is an error, the row is lost.
    fn overwritten(&mut self, row: usize, outcome: Result<(), String>) -> Result<(), KvError> {
        outcome.map_err(|fault| {
            if let Some(emptied) = self.groups.lose_row(row) {
                self.tensors.remove(&emptied);
            }
            KvError::Failed(fault)
        })
    }

    fn no_memory(&self, tokens: usize) -> KvError {
        let bytes = self.groups.taken() as u64 * self.shape.bytes_per_token() as u64;
        KvError::OutOfMemory(format!(
            "{tokens} tokens more on the device, where keys and values take {bytes} of {} bytes",
            self.budget
        ))
    }

    fn capacity(&self, group: GroupId) -> usize {
        self.groups.group(group).map_or(0, |group| group.capacity)
    }

    fn dims(&self, places: usize, capacity: usize) -> [i64; 4] {
        [places, self.shape.heads, capacity, self.shape.head_size]
            .map(|dim| i64::try_from(dim).unwrap_or(i64::MAX))
    }

    /// The bytes of `tokens` tokens in one tensor.
    fn segment_bytes(&self, tokens: usize) -> usize {
        tokens * self.shape.heads * self.shape.head_size * self.shape.element.bytes()
    }

    fn tensor_count(&self) -> usize {
        2 * self.shape.layers
    }
}

/// Zeroed words of at least this many bytes.
fn words(bytes: usize) -> Vec<u64> {
    vec![0; bytes.div_ceil(8)]
}
