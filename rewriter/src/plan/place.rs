//! Lays out the stub area and turns choices into a [`Plan`].

use alloc::{collections::BTreeMap, vec, vec::Vec};

use super::{
    PlanError,
    choose::Choice,
    emit::{Constraint, TRAPS},
};
use crate::format::{
    JUMP_LEN, Number, PAGE_SIZE, Patch, Plan, Resume, SLOT_LEN, STUB_AREA_ALIGN, Site, Stub,
};

/// How many gaps are looked at for a stub whose address is constrained.
const MAX_GAPS: usize = 64;

/// The largest stub area: what is left of 2 GiB has to reach over the text.
const MAX_STUB_AREA: u32 = 256 << 20;

/// Free stretches of the stub area, by offset. The last has no end.
struct Gaps(Vec<(u32, u32)>);

impl Gaps {
    fn new(start: u32) -> Self {
        Self(vec![(start, u32::MAX)])
    }

    /// Takes `len` bytes from the gap at `index`, from offset `at` on.
    fn take(&mut self, index: usize, at: u32, len: u32) {
        let (start, end) = self.0[index];
        let rest = [(start, at), (at + len, end)];
        self.0.splice(index..=index, rest.into_iter().filter(|(start, end)| start < end));
    }

    /// Room for a stub to which `constraint` applies, for a patch at `address`.
    fn take_constrained(&mut self, address: u64, byte: u8, len: u32) -> Result<u32, PlanError> {
        let first = self.0.len().saturating_sub(MAX_GAPS);
        for index in first..self.0.len() {
            let (start, end) = self.0[index];
            let last = start.saturating_add(STUB_AREA_ALIGN as u32).min(end.saturating_sub(len));
            let mut at = start;
            while at <= last {
                let field = displacement(address, at);
                if TRAPS.contains(&field[usize::from(byte) - 1]) {
                    self.take(index, at, len);
                    return Ok(at);
                }
                // To where the byte changes next.
                at += if byte == 2 { 256 - u32::from(field[0]) } else { 1 };
            }
        }
        Err(PlanError::TooLarge)
    }

    /// Room for a stub that may lie anywhere. `cursor` is the first gap worth looking at: stubs
    /// are about the same size, so what is too small for one is given up.
    fn take_any(&mut self, cursor: &mut usize, len: u32) -> Result<u32, PlanError> {
        while let Some((start, end)) = self.0.get_mut(*cursor) {
            if *end - *start >= len {
                let at = *start;
                *start += len;
                return Ok(at);
            }
            *cursor += 1;
        }
        Err(PlanError::TooLarge)
    }
}

/// The displacement of a jump at `address` to the stub at `offset`: the two low bytes, in which load
/// bias and stub area cancel out.
fn displacement(address: u64, offset: u32) -> [u8; 2] {
    let value = u64::from(offset).wrapping_sub(address).wrapping_sub(JUMP_LEN as u64);
    [value as u8, (value >> 8) as u8]
}

/// Builds the plan. `choices` are sorted by address, as are `sites`.
pub(super) fn place(sites: &[Site], choices: &[Choice]) -> Result<Plan, PlanError> {
    let mut slots: Vec<Number> = choices.iter().filter_map(|choice| choice.stub.number).collect();
    slots.sort_unstable();
    slots.dedup();
    let slot_offset: BTreeMap<Number, u32> =
        slots.iter().enumerate().map(|(n, &number)| (number, (n * SLOT_LEN) as u32)).collect();

    let mut gaps = Gaps::new((slots.len() * SLOT_LEN) as u32);
    let mut offsets = vec![0; choices.len()];
    for (choice, offset) in choices.iter().zip(&mut offsets) {
        if let Constraint::TrapAt(byte) = choice.constraint {
            *offset = gaps.take_constrained(choice.address, byte, choice.stub.code.len() as u32)?;
        }
    }
    let mut cursor = 0;
    for (choice, offset) in choices.iter().zip(&mut offsets) {
        if choice.constraint == Constraint::None {
            *offset = gaps.take_any(&mut cursor, choice.stub.code.len() as u32)?;
        }
    }

    let mut plan =
        Plan { slots, sites: Plan::encode_sites(sites), reach: (u64::MAX, 0), ..Plan::default() };
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_unstable_by_key(|&index| offsets[index]);
    for index in order {
        add_stub(&mut plan, &choices[index], offsets[index], &slot_offset);
    }
    for (choice, &offset) in choices.iter().zip(&offsets) {
        let hole = choice.hole.map(|(hole, _)| hole.wrapping_sub(choice.address) as i8);
        let patch = Patch {
            address: choice.address,
            stub: offset,
            original: plan.originals.len() as u32,
            original_len: choice.original.len() as u8,
            len: choice.len,
            hole,
        };
        plan.originals.extend_from_slice(&choice.original);
        plan.originals.extend(choice.hole.iter().flat_map(|(_, bytes)| bytes));
        if let Some((low, high)) = patch.extent() {
            extend_reach(&mut plan, low);
            extend_reach(&mut plan, high);
        }
        plan.patches.push(patch);
    }
    plan.resumes.sort_unstable_by_key(|resume| resume.address);
    if plan.patches.is_empty() {
        plan.reach = (0, 0);
    }
    let used = plan.stubs.last().map_or(0, |stub| stub.offset + u32::from(stub.len));
    let used = used.max((plan.slots.len() * SLOT_LEN) as u32);
    plan.stub_area_len = used.next_multiple_of(PAGE_SIZE as u32);
    if plan.stub_area_len > MAX_STUB_AREA {
        return Err(PlanError::TooLarge);
    }
    plan.validate().map_err(PlanError::Internal)?;
    Ok(plan)
}

fn add_stub(plan: &mut Plan, choice: &Choice, offset: u32, slots: &BTreeMap<Number, u32>) {
    let stub = &choice.stub;
    let mut code = stub.code.clone();
    let mut write = |at: usize, value: u32| {
        if let Some(field) = code.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    for fixup in &stub.fixups {
        let next = offset.wrapping_add(fixup.next as u32);
        write(fixup.at, (fixup.target as u32).wrapping_sub(next));
        extend_reach(plan, fixup.target);
    }
    let slot = stub.number.and_then(|number| slots.get(&number)).copied().unwrap_or(0);
    write(stub.slot, slot.wrapping_sub(offset + stub.slot as u32 + 4));
    plan.stubs.push(Stub {
        offset,
        code: plan.code.len() as u32,
        fixup: plan.fixups.len() as u32,
        step: (plan.steps.len() / crate::format::STEP_LEN) as u32,
        origin: stub.origin,
        len: code.len() as u8,
        fixups: stub.fixups.len() as u8,
        steps: stub.steps.len() as u8,
    });
    plan.code.append(&mut code);
    plan.fixups.extend(stub.fixups.iter().map(|fixup| fixup.at as u8));
    for &(at, address) in &stub.steps {
        plan.steps.extend_from_slice(&[at, address.wrapping_sub(stub.origin) as u8]);
    }
    plan.resumes.extend(
        stub.resumes
            .iter()
            .map(|&(address, at)| Resume { address, offset: offset + u32::from(at) }),
    );
}

fn extend_reach(plan: &mut Plan, address: u64) {
    plan.reach.0 = plan.reach.0.min(address);
    plan.reach.1 = plan.reach.1.max(address);
}
