//! What to do about each site.
//!
//! The straight way to a site is the instructions before it through which control falls: no call,
//! no jump, but perhaps conditional branches out. A stub for a point on that way runs copies of
//! the instructions from there on, so it does what the original does, whoever else joins the way
//! later on: those go on in the original code. The order in which patches are tried is that of
//! [`Treatment`]; where known code joins between the patched instruction and the site, a patch of
//! the site itself is tried as well.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};

use super::{
    emit::{Constraint, Emitter, StubCode},
    flow::{Decoded, Flow, Found},
    image::{Image, Region, region_of},
};
use crate::format::{INT3, JUMP_LEN, Number, PAGE_SIZE, Reason, Site, Treatment};

/// The longest straight way that is copied, in bytes of original code.
const MAX_WAY: u64 = 96;

/// The most bytes that a jump and its filler cover.
const MAX_DISPLACED: u64 = 24;

/// Bytes of `syscall`.
const SYSCALL_LEN: u64 = 2;

/// More than any system call number that Linux has.
const MAX_NUMBER: u32 = 1024;

/// How far a two-byte jump reaches from its first byte, rounded down.
const SHORT_REACH: u64 = 126;

/// A patch that was decided on, its stub not yet placed.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) address: u64,
    pub(super) len: u8,
    pub(super) original: Vec<u8>,
    /// Address and content of the padding that holds the long jump.
    pub(super) hole: Option<(u64, [u8; JUMP_LEN])>,
    pub(super) stub: StubCode,
    pub(super) constraint: Constraint,
}

/// Decides on one site after the other and keeps track of the bytes already taken.
pub(super) struct Chooser<'f, 'i, 'a> {
    image: &'i Image<'a>,
    flow: &'f Flow<'i, 'a>,
    info: InstructionInfoFactory,
    /// Bytes that patches overwrite: start to end.
    taken: BTreeMap<u64, u64>,
    /// Decodings on trial that hold a site with a number that Linux knows: no accident.
    proven_trials: BTreeSet<u32>,
    pub(super) sites: Vec<Site>,
    pub(super) choices: Vec<Choice>,
}

/// A point on the straight way from which on the stub could take over.
struct Point {
    /// Position on the way, counted backwards from the site.
    index: usize,
    bypass: bool,
    knows_number: bool,
}

impl<'f, 'i, 'a> Chooser<'f, 'i, 'a> {
    pub(super) fn new(image: &'i Image<'a>, flow: &'f Flow<'i, 'a>) -> Self {
        Self {
            image,
            flow,
            info: InstructionInfoFactory::new(),
            taken: BTreeMap::new(),
            proven_trials: BTreeSet::new(),
            sites: Vec::new(),
            choices: Vec::new(),
        }
    }

    /// Decides on every site. Those that can be patched without displacing anything come first,
    /// so that a displacement never takes what another site could do better with.
    pub(super) fn choose_all(&mut self) {
        let mut rest = Vec::new();
        for found in self.flow.found() {
            if let Some(trial) = found.trial
                && let (_, Number::Known(..MAX_NUMBER)) = self.number(&self.way_to(found.address))
            {
                self.proven_trials.insert(trial);
            }
        }
        for found in self.flow.found() {
            match self.choose_in_place(*found) {
                Ok(site) => self.sites.push(site),
                Err(undecided) => rest.push(undecided),
            }
        }
        for undecided in rest {
            let site = self.choose_by_room(&undecided);
            self.sites.push(site);
        }
        self.sites.sort_unstable_by_key(|site| site.address);
        self.choices.sort_unstable_by_key(|choice| choice.address);
    }

    /// Leaves the site, or replaces one instruction on the way to it.
    fn choose_in_place(&mut self, found: Found) -> Result<Site, Undecided> {
        let address = found.address;
        let way = self.way_to(address);
        let (writer, number) = self.number(&way);
        let mut site =
            Site { address, number, treatment: Treatment::Leave(Reason::NoRoom), bypass: false };
        if let Some(reason) = self.reason_to_leave(found) {
            site.treatment = Treatment::Leave(reason);
            return Ok(site);
        }
        let mut points = Vec::new();
        let mut bypass = self.flow.is_target(address);
        let mut crosses_page = false;
        for (index, instruction) in way.iter().enumerate() {
            let usable = instruction.len() >= JUMP_LEN
                && !self.flow.is_disputed(instruction.ip(), instruction.len())
                && self.is_free(instruction.ip(), instruction.next_ip());
            if usable && !in_one_page(instruction.ip(), instruction.next_ip()) {
                crosses_page = true;
            } else if usable {
                let knows_number = writer.is_some_and(|writer| index >= writer);
                points.push(Point { index, bypass, knows_number });
            }
            bypass |= self.flow.is_target(instruction.ip());
        }
        let best = points.into_iter().min_by_key(|p| (p.bypass, !p.knows_number, p.index));
        let undecided = |point| Undecided { site, way, writer, point, crosses_page };
        match best {
            Some(point) if !point.bypass => {
                let undecided = undecided(None);
                Ok(self.replace(&undecided, &point))
            }
            point => Err(undecided(point)),
        }
    }

    /// Finds room at the site itself; failing that, takes a way round which there is a bypass.
    fn choose_by_room(&mut self, undecided: &Undecided) -> Site {
        let short = self.short_jump(undecided);
        let itself = short
            .or_else(|| self.displace_forward(undecided))
            .or_else(|| self.displace_backward(undecided));
        match (&undecided.point, itself) {
            // Those who come past the point know the number; the others take the patched site.
            (Some(point), Some(_))
                if point.knows_number && self.is_point_free(undecided, point) =>
            {
                let site = self.replace(undecided, point);
                Site { bypass: false, ..site }
            }
            (_, Some(treatment)) => Site { treatment, ..undecided.site },
            (Some(point), None) if self.is_point_free(undecided, point) => {
                self.replace(undecided, point)
            }
            _ => {
                let reason =
                    if undecided.crosses_page { Reason::PageBoundary } else { Reason::NoRoom };
                Site { treatment: Treatment::Leave(reason), ..undecided.site }
            }
        }
    }

    fn reason_to_leave(&self, found: Found) -> Option<Reason> {
        let address = found.address;
        let region = region_of(&self.image.regions, address)?;
        if region.writable {
            return Some(Reason::Writable);
        }
        if self.flow.is_disputed(address, SYSCALL_LEN as usize) {
            return Some(Reason::Unproven);
        }
        if self.is_relocated(address, address + SYSCALL_LEN) {
            return Some(Reason::Relocated);
        }
        // An address that is taken or stored leads here, and it may be that of data, though what
        // follows makes sense as code.
        if found.trial.is_some_and(|trial| !self.proven_trials.contains(&trial)) {
            return Some(Reason::Unproven);
        }
        let offset = (address - region.address) as usize;
        let before = offset.checked_sub(RESTORER.len()).and_then(|at| region.bytes.get(at..offset));
        let is_restorer =
            before == Some(&RESTORER) && self.image.is_restorer_recognised_by_bytes(address);
        is_restorer.then_some(Reason::SignalRestorer)
    }

    /// The instructions through which control falls to `address`, the nearest first.
    fn way_to(&self, address: u64) -> Vec<Decoded> {
        let mut way = Vec::new();
        let mut at = address;
        while let Some(instruction) = self.flow.before(at) {
            if !can_copy(&instruction)
                || ends_flow(&instruction)
                || address - instruction.ip() > MAX_WAY
                || self.is_relocated(instruction.ip(), address)
            {
                break;
            }
            at = instruction.ip();
            way.push(instruction);
        }
        way
    }

    /// Where on the way the number is set, and to what.
    fn number(&mut self, way: &[Decoded]) -> (Option<usize>, Number) {
        let mut register = Register::RAX;
        for (index, instruction) in way.iter().enumerate() {
            let info = self.info.info(instruction);
            let writes = info.used_registers().iter().any(|used| {
                used.register().full_register() == register
                    && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
            });
            if !writes {
                continue;
            }
            if let Some(number) = constant(instruction) {
                return (Some(index), Number::Known(number));
            }
            // push $n; pop %rax
            if instruction.code() == Code::Pop_r64
                && let Some(push) = way.get(index + 1)
                && matches!(push.code(), Code::Pushq_imm8 | Code::Pushq_imm32)
            {
                return (Some(index + 1), Number::Known(push.immediate(0) as u32));
            }
            match copied_register(instruction) {
                Some(source) => register = source,
                None => break,
            }
        }
        (None, Number::Computed)
    }

    fn replace(&mut self, undecided: &Undecided, point: &Point) -> Site {
        let Undecided { site, way, writer, .. } = undecided;
        let first = &way[point.index];
        let mut emitter = self.emitter(first.ip());
        for instruction in way[..=point.index].iter().rev() {
            emitter.copy(instruction, self.bytes(instruction.ip(), instruction.len()));
        }
        let number = if point.knows_number { site.number } else { Number::Computed };
        emitter.enter_kernel(site.address, number, site.address + SYSCALL_LEN);
        self.push(Choice {
            address: first.ip(),
            len: first.len() as u8,
            original: self.bytes_to(first.ip(), site.address + SYSCALL_LEN),
            hole: None,
            stub: emitter.finish(),
            constraint: Constraint::None,
        });
        let treatment = if *writer == Some(point.index) && constant(first).is_some() {
            Treatment::ReplaceMov
        } else {
            Treatment::ReplaceInstruction
        };
        Site { treatment, bypass: point.bypass, ..*site }
    }

    /// A two-byte jump over the site to padding in the same page.
    fn short_jump(&mut self, undecided: &Undecided) -> Option<Treatment> {
        let address = undecided.site.address;
        let end = address + SYSCALL_LEN;
        if !in_one_page(address, end) || !self.is_free(address, end) {
            return None;
        }
        let region = *region_of(&self.image.regions, address)?;
        let page = address / PAGE_SIZE * PAGE_SIZE;
        let low = address.saturating_sub(SHORT_REACH).max(page).max(region.address);
        let high = (address + SHORT_REACH).min(page + PAGE_SIZE).min(region.end());
        let hole = self.find_padding(region, low, high)?;
        let bytes = *self.bytes(hole, JUMP_LEN).first_chunk()?;
        let mut emitter = self.emitter(address);
        emitter.enter_kernel(address, Number::Computed, end);
        self.taken.insert(hole, hole + JUMP_LEN as u64);
        self.push(Choice {
            address,
            len: SYSCALL_LEN as u8,
            original: self.bytes_to(address, end),
            hole: Some((hole, bytes)),
            stub: emitter.finish(),
            constraint: Constraint::None,
        });
        Some(Treatment::ShortJump)
    }

    /// [`JUMP_LEN`] bytes between `low` and `high` that nothing executes: filler after an
    /// instruction through which control does not fall, before the next aligned address.
    fn find_padding(&self, region: Region<'_>, low: u64, high: u64) -> Option<u64> {
        let mut at = low;
        while at + JUMP_LEN as u64 <= high {
            let is_end = self.flow.is_start(at)
                && self.flow.at(at).is_some_and(|instruction| ends_flow(&instruction));
            if !is_end {
                at += 1;
                continue;
            }
            let start = self.flow.at(at)?.next_ip();
            let offset = (start - region.address) as usize;
            let limit = start.next_multiple_of(16).min(high);
            let limit = (limit.saturating_sub(start)) as usize;
            let rest = region.bytes.get(offset..).unwrap_or(&[]);
            let len = padding_len(&rest[..rest.len().min(limit)]);
            if len >= JUMP_LEN
                && start >= low
                && !self.flow.is_known(start, len)
                && self.is_free(start, start + len as u64)
                && !self.is_relocated(start, start + len as u64)
            {
                return Some(start);
            }
            at += 1;
        }
        None
    }

    /// The jump covers `syscall` and what follows.
    fn displace_forward(&mut self, undecided: &Undecided) -> Option<Treatment> {
        let address = undecided.site.address;
        let mut displaced: Vec<Decoded> = Vec::new();
        let mut end = address + SYSCALL_LEN;
        let mut falls_through = true;
        while end - address < JUMP_LEN as u64 {
            if !falls_through {
                // Behind the end of the flow only padding may be overwritten.
                let region = region_of(&self.image.regions, end)?;
                let rest = region.bytes.get((end - region.address) as usize..)?;
                let need = (address + JUMP_LEN as u64 - end) as usize;
                let len = padding_len(rest.get(..rest.len().min(16))?);
                if len < need || self.flow.is_known(end, need) {
                    return None;
                }
                end = address + JUMP_LEN as u64;
                break;
            }
            let instruction = self.flow.at(end)?;
            // Bytes three and four of the displacement cannot be made to trap.
            let offset = end - address;
            if self.flow.is_target(end)
                || !can_copy(&instruction)
                || self.flow.is_disputed(end, instruction.len())
                || !matches!(offset, 1 | 2 | 5..)
            {
                return None;
            }
            falls_through = !ends_flow(&instruction);
            end = instruction.next_ip();
            displaced.push(instruction);
        }
        if !in_one_page(address, end)
            || !self.is_free(address, end)
            || self.is_relocated(address, end)
        {
            return None;
        }
        let mut emitter = self.emitter(address);
        emitter.enter_kernel_and_continue(address, Number::Computed, address + SYSCALL_LEN);
        for instruction in &displaced {
            emitter.resume_here(instruction.ip());
            emitter.copy(instruction, self.bytes(instruction.ip(), instruction.len()));
        }
        if falls_through {
            emitter.jump_back(end);
        }
        self.push(Choice {
            address,
            len: (end - address) as u8,
            original: self.bytes_to(address, end),
            hole: None,
            stub: emitter.finish(),
            constraint: Constraint::TrapAt(SYSCALL_LEN as u8),
        });
        Some(Treatment::DisplaceForward)
    }

    /// The jump covers what precedes `syscall`, and `syscall`.
    fn displace_backward(&mut self, undecided: &Undecided) -> Option<Treatment> {
        let address = undecided.site.address;
        let end = address + SYSCALL_LEN;
        let mut following = address;
        for (index, first) in undecided.way.iter().enumerate() {
            if self.flow.is_target(following)
                || self.flow.is_disputed(first.ip(), first.len())
                || !self.is_free(first.ip(), end)
            {
                return None;
            }
            let start = first.ip();
            following = start;
            if end - start > MAX_DISPLACED {
                return None;
            }
            if end - start < JUMP_LEN as u64 || !in_one_page(start, end) {
                continue;
            }
            let covered = undecided.way[..=index].iter().rev();
            let boundaries = covered.clone().skip(1).map(|i| i.ip()).chain([address]);
            let mut acceptable = true;
            let mut trap_at = None;
            for boundary in boundaries {
                match boundary - start {
                    offset @ (1 | 2) if trap_at.is_none() => trap_at = Some(offset as u8),
                    JUMP_LEN_U64.. => {}
                    _ => acceptable = false,
                }
            }
            if !acceptable {
                continue;
            }
            let mut emitter = self.emitter(start);
            for (n, instruction) in covered.enumerate() {
                if n > 0 {
                    emitter.resume_here(instruction.ip());
                }
                emitter.copy(instruction, self.bytes(instruction.ip(), instruction.len()));
            }
            emitter.resume_here(address);
            let knows_number = undecided.writer.is_some_and(|writer| index >= writer);
            let number = if knows_number { undecided.site.number } else { Number::Computed };
            // An overwritten `syscall` may be jumped to with another number.
            let number = if trap_at.is_some() { Number::Computed } else { number };
            emitter.enter_kernel(address, number, end);
            self.push(Choice {
                address: start,
                len: (end - start) as u8,
                original: self.bytes_to(start, end),
                hole: None,
                stub: emitter.finish(),
                constraint: trap_at.map_or(Constraint::None, Constraint::TrapAt),
            });
            return Some(Treatment::DisplaceBackward);
        }
        None
    }

    fn push(&mut self, choice: Choice) {
        self.taken.insert(choice.address, choice.address + u64::from(choice.len));
        self.choices.push(choice);
    }

    fn emitter(&self, origin: u64) -> Emitter {
        Emitter::new(origin)
    }

    /// Whether no patch overwrites any byte from `start` to `end`.
    fn is_free(&self, start: u64, end: u64) -> bool {
        self.taken.range(..end).next_back().is_none_or(|(_, &taken_end)| taken_end <= start)
    }

    fn is_point_free(&self, undecided: &Undecided, point: &Point) -> bool {
        let first = &undecided.way[point.index];
        self.is_free(first.ip(), first.next_ip())
    }

    /// Whether the dynamic linker changes any byte from `start` to `end`.
    fn is_relocated(&self, start: u64, end: u64) -> bool {
        let first = self.image.relocated.partition_point(|at| at.saturating_add(8) <= start);
        self.image.relocated.get(first).is_some_and(|&at| at < end)
    }

    fn bytes(&self, address: u64, len: usize) -> &'a [u8] {
        self.image.read(address).and_then(|bytes| bytes.get(..len)).unwrap_or(&[])
    }

    fn bytes_to(&self, start: u64, end: u64) -> Vec<u8> {
        self.bytes(start, (end - start) as usize).to_vec()
    }
}

const JUMP_LEN_U64: u64 = JUMP_LEN as u64;

/// `mov $15, %rax`, as signal restorers have it: without unwind tables, libgcc and gdb know a
/// signal frame by these bytes and the `syscall` after them.
const RESTORER: [u8; 7] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0];

/// A site for which no instruction on the straight way to it can be replaced, or only one that is
/// passed by.
struct Undecided {
    site: Site,
    way: Vec<Decoded>,
    /// Position on the way of the instruction that sets the number.
    writer: Option<usize>,
    point: Option<Point>,
    crosses_page: bool,
}

/// The value that an instruction sets `rax` to, if that is all it does with it.
fn constant(instruction: &Instruction) -> Option<u32> {
    let same = instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register();
    match instruction.code() {
        Code::Mov_r32_imm32 | Code::Mov_rm32_imm32 | Code::Mov_rm64_imm32 | Code::Mov_r64_imm64 => {
            Some(instruction.immediate(1) as u32)
        }
        Code::Xor_r32_rm32
        | Code::Xor_rm32_r32
        | Code::Xor_r64_rm64
        | Code::Xor_rm64_r64
        | Code::Sub_r32_rm32
        | Code::Sub_rm32_r32
            if same =>
        {
            Some(0)
        }
        _ => None,
    }
}

/// The register that an instruction copies, if that is all it does.
fn copied_register(instruction: &Instruction) -> Option<Register> {
    let is_copy = matches!(
        instruction.code(),
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64 | Code::Mov_r32_rm32 | Code::Mov_rm32_r32
    );
    let is_register =
        instruction.op1_kind() == OpKind::Register && instruction.op0_kind() == OpKind::Register;
    (is_copy && is_register).then(|| instruction.op1_register().full_register())
}

/// Whether control never falls through.
fn ends_flow(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// Whether an instruction does the same elsewhere, perhaps with an adjusted displacement.
fn can_copy(instruction: &Instruction) -> bool {
    match instruction.flow_control() {
        FlowControl::Next => instruction.code() != Code::Hlt && !uses_narrow_rip(instruction),
        FlowControl::ConditionalBranch => instruction.is_jcc_short_or_near(),
        FlowControl::UnconditionalBranch => {
            matches!(instruction.code(), Code::Jmp_rel8_64 | Code::Jmp_rel32_64)
        }
        FlowControl::IndirectBranch => {
            instruction.code() == Code::Jmp_rm64 && !uses_narrow_rip(instruction)
        }
        FlowControl::Return => matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16),
        _ => false,
    }
}

/// `eip`-relative operands wrap at 4 GiB: they are not moved.
fn uses_narrow_rip(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::EIP
}

/// Whether the bytes from `start` to `end` lie in one page.
fn in_one_page(start: u64, end: u64) -> bool {
    start / PAGE_SIZE == (end - 1) / PAGE_SIZE
}

/// How many of the first bytes are filler: `int3`, or `nop` in any of its lengths.
fn padding_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    while let Some(rest) = bytes.get(len..).filter(|rest| !rest.is_empty()) {
        let nop = match rest {
            [INT3 | 0x90, ..] => 1,
            _ => nop_len(rest),
        };
        if nop == 0 {
            break;
        }
        len += nop;
    }
    len.min(bytes.len())
}

/// Length of the multi-byte `nop` at the start, by the SDM's table of recommended forms with any
/// number of operand-size and segment prefixes; a form that is cut off counts as far as it goes.
fn nop_len(bytes: &[u8]) -> usize {
    let prefixes = bytes.iter().take_while(|byte| matches!(byte, 0x66 | 0x2e)).count();
    let Some(rest) = bytes.get(prefixes..) else { return 0 };
    let body = match rest {
        [0x90, ..] => 1,
        [0x0f, 0x1f, 0x00, ..] => 3,
        [0x0f, 0x1f, 0x40, ..] => 4,
        [0x0f, 0x1f, 0x44, ..] => 5,
        [0x0f, 0x1f, 0x80, ..] => 7,
        [0x0f, 0x1f, 0x84, ..] => 8,
        _ => return 0,
    };
    prefixes + body
}
