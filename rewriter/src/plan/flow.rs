//! Control-flow recovery: which bytes of text are instructions.
//!
//! A run is decoded from an address that is known to be executed, instruction by instruction,
//! until control leaves it; the branches that it takes give more such addresses. Three bits for
//! each byte of text hold what is known: an instruction starts here, it is inside one, known code
//! jumps here.
//!
//! Trust comes in two grades. *Entries* (the file's entry point, function symbols, unwind tables,
//! initialisers, calls and branches from trusted code, jump tables of known size) are decoded
//! first. *Pointers* (addresses that are taken or stored, `endbr64` in unexplored text) may lead
//! to data: what they lead to is decoded on trial and kept only if all of it is sound, that is, no
//! invalid instruction, no disagreement with known code, no way out of text. If, besides, it calls
//! a known function (which data does by an accident of one in millions), it is code, and what it
//! calls is as well.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use super::{
    bits::Bits,
    image::{Image, Region, region_of},
};

/// Bytes of `syscall`.
const SYSCALL_LEN: usize = 2;

/// The longest x86 instruction.
pub(super) const MAX_INSTRUCTION: usize = 15;

/// The largest jump table that is believed in.
const MAX_TABLE: u32 = 4096;

/// How far before an indirect jump its table's address and size are looked for.
const TABLE_LOOKBACK: usize = 16;

/// By address, the instructions that control comes from.
type Predecessors = BTreeMap<u64, Vec<u64>>;

/// The largest function that is searched for the base of a jump table, in bytes.
const MAX_FUNCTION: u64 = 1 << 16;

/// One instruction, and where it is.
pub(super) type Decoded = Instruction;

/// An index into the bit sets: regions one after the other, with a gap of one byte.
type Index = usize;

/// A `syscall` instruction that control flow reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) address: u64,
    /// The decoding on trial that found it, if nothing but that says that it is code.
    pub(super) trial: Option<u32>,
}

/// What is known about the text.
pub(super) struct Flow<'i, 'a> {
    image: &'i Image<'a>,
    decoders: Vec<Decoder<'a>>,
    /// Bit index of each region's first byte.
    bases: Vec<Index>,
    starts: Bits,
    inside: Bits,
    targets: Bits,
    /// Trusted functions' first instructions.
    entries: Bits,
    /// First bytes after functions: code does not go on here after a call.
    ends: Bits,
    /// Jump tables: the jump's address and where it goes.
    tables: BTreeMap<u64, Vec<u64>>,
    /// Indirect jumps of trusted code whose tables are not known.
    unresolved: Vec<u64>,
    pending: Vec<u64>,
    pointers: Vec<u64>,
    found: Vec<Found>,
    /// Runs that ended in an invalid instruction: from the last point of doubt to there.
    doubtful: Bits,
    table_budget: usize,
    /// Instructions that may still be decoded in vain.
    trial_budget: usize,
    trial: Option<Trial>,
    trials: u32,
}

/// What a decoding on trial has to take back if it fails.
#[derive(Debug, Default)]
struct Trial {
    id: u32,
    decoded: Vec<(Index, usize)>,
    /// Functions that it calls.
    calls: Vec<u64>,
    /// It calls or jumps to a trusted function.
    anchored: bool,
    failed: bool,
}

/// How a run of instructions ended.
enum Step {
    Continue,
    Stop,
}

impl<'i, 'a> Flow<'i, 'a> {
    /// Explores the image's text.
    pub(super) fn explore(image: &'i Image<'a>) -> Self {
        let mut bases = Vec::with_capacity(image.regions.len());
        let mut len = 64;
        for region in &image.regions {
            bases.push(len);
            len += region.bytes.len() + 1;
        }
        let decoders = image
            .regions
            .iter()
            .map(|region| Decoder::with_ip(64, region.bytes, region.address, DecoderOptions::NONE));
        let mut flow = Self {
            decoders: decoders.collect(),
            starts: Bits::new(len),
            inside: Bits::new(len),
            targets: Bits::new(len),
            ends: Bits::new(len),
            entries: Bits::new(len),
            tables: BTreeMap::new(),
            unresolved: Vec::new(),
            pending: Vec::new(),
            pointers: Vec::new(),
            found: Vec::new(),
            doubtful: Bits::new(len),
            table_budget: len,
            trial_budget: len.saturating_mul(2),
            trial: None,
            trials: 0,
            bases,
            image,
        };
        for &(_, end) in &image.functions {
            if let Some((_, index)) = flow.locate(end) {
                flow.ends.set(index);
            }
        }
        for &address in image.entries.iter().rev() {
            flow.call(address);
        }
        flow.drain();
        flow.resolve_jumps();
        flow.pointers.extend(&image.pointers);
        flow.pointers.extend(branch_marks(&image.regions));
        flow.try_pointers();
        flow.resolve_jumps();
        flow.found.sort_unstable();
        flow.found.dedup_by_key(|found| found.address);
        flow
    }

    /// The `syscall` instructions, by address.
    pub(super) fn found(&self) -> &[Found] {
        &self.found
    }

    /// Region and bit index of an address in text.
    fn locate(&self, address: u64) -> Option<(usize, Index)> {
        let regions = &self.image.regions;
        let region = regions.partition_point(|region| region.address <= address).checked_sub(1)?;
        let offset = usize::try_from(address - regions[region].address).ok()?;
        (offset < regions[region].bytes.len()).then(|| (region, self.bases[region] + offset))
    }

    /// Notes that control goes to `address`.
    fn go_to(&mut self, address: u64) {
        match self.locate(address) {
            Some((_, index)) => {
                self.targets.set(index);
                if !self.starts.get(index) {
                    self.pending.push(address);
                }
            }
            None => self.fail(),
        }
    }

    /// Notes that trusted code calls `address`.
    fn call(&mut self, address: u64) {
        if let Some((_, index)) = self.locate(address) {
            self.entries.set(index);
        }
        self.go_to(address);
    }

    /// Whether a function that trusted code calls starts at `address`.
    fn is_entry(&self, address: u64) -> bool {
        self.locate(address)
            .is_some_and(|(_, index)| self.entries.get(index) && self.starts.get(index))
    }

    fn fail(&mut self) {
        if let Some(trial) = &mut self.trial {
            trial.failed = true;
        }
    }

    fn drain(&mut self) {
        while let Some(address) = self.pending.pop() {
            self.run(address);
            if self.trial.as_ref().is_some_and(|trial| trial.failed) {
                self.pending.clear();
            }
        }
    }

    fn try_pointers(&mut self) {
        while !self.pointers.is_empty() {
            let mut batch = core::mem::take(&mut self.pointers);
            batch.sort_unstable();
            batch.dedup();
            for address in batch {
                if self.trial_budget == 0 {
                    return;
                }
                let Some((_, index)) = self.locate(address) else { continue };
                // A word that happens to be an address inside an instruction is no pointer.
                if self.inside.get(index) && !self.starts.get(index) {
                    continue;
                }
                self.targets.set(index);
                if self.starts.get(index) {
                    continue;
                }
                let found = self.found.len();
                let pointers = self.pointers.len();
                self.trials = self.trials.wrapping_add(1);
                self.trial = Some(Trial { id: self.trials, ..Trial::default() });
                self.pending.push(address);
                self.drain();
                let trial = self.trial.take().unwrap_or_default();
                if trial.anchored && !trial.failed {
                    for found in &mut self.found[found..] {
                        found.trial = None;
                    }
                    for call in trial.calls {
                        self.call(call);
                    }
                    self.drain();
                } else if !trial.failed {
                    self.pointers.extend(trial.calls);
                } else {
                    self.trial_budget = self.trial_budget.saturating_sub(trial.decoded.len() + 1);
                    for (index, len) in trial.decoded {
                        self.starts.clear_range(index, 1);
                        self.inside.clear_range(index + 1, len - 1);
                    }
                    self.found.truncate(found);
                    self.pointers.truncate(pointers);
                }
            }
        }
    }

    /// Decodes from `address` until control leaves, or joins what is known.
    fn run(&mut self, address: u64) {
        let Some((region, mut index)) = self.locate(address) else { return self.fail() };
        let Region { address: start, bytes, .. } = self.image.regions[region];
        if self.decoders[region].try_set_position((address - start) as usize).is_err() {
            return self.fail();
        }
        self.decoders[region].set_ip(address);
        let limit = self.bases[region] + bytes.len();
        let mut instruction = Instruction::default();
        // Where doubt begins: a call may not return, and then what follows it need not be code.
        let mut doubt = address;
        loop {
            if index >= limit {
                return self.fail();
            }
            if self.starts.get(index) {
                return;
            }
            self.decoders[region].decode_out(&mut instruction);
            let len = instruction.len();
            if instruction.code() == Code::INVALID {
                let len = (instruction.ip() - doubt) as usize;
                self.doubtful.set_long_range(index - len, len);
                return self.fail();
            }
            if let Some(trial) = &mut self.trial {
                if self.inside.get(index) || self.starts.any(index + 1, len - 1) {
                    trial.failed = true;
                    return;
                }
                trial.decoded.push((index, len));
            }
            self.starts.set(index);
            self.inside.set_range(index + 1, len - 1);
            index += len;
            match self.follow(&instruction, index) {
                Step::Stop => return,
                Step::Continue => {}
            }
            if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
                doubt = instruction.next_ip();
            }
        }
    }

    /// Acts on what an instruction does to control flow. `next` is the index after it.
    fn follow(&mut self, instruction: &Instruction, next: Index) -> Step {
        match instruction.flow_control() {
            // Privileged: whoever executes it as a program ends there.
            FlowControl::Next if instruction.code() == Code::Hlt => Step::Stop,
            FlowControl::Next => {
                self.note_pointer(instruction);
                Step::Continue
            }
            FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                if instruction.op0_kind() == OpKind::NearBranch64 {
                    self.go_to(instruction.near_branch_target());
                }
                Step::Continue
            }
            FlowControl::UnconditionalBranch => {
                let target = instruction.near_branch_target();
                let is_tail_call =
                    instruction.code() == Code::Jmp_rel32_64 && self.is_entry(target);
                if let Some(trial) = &mut self.trial {
                    trial.anchored |= is_tail_call;
                }
                self.go_to(target);
                Step::Stop
            }
            FlowControl::Call if instruction.code() == Code::Syscall => {
                // With prefixes it is longer, does the same, and is written by nobody: it stays.
                if instruction.len() == SYSCALL_LEN {
                    self.found.push(Found {
                        address: instruction.ip(),
                        trial: self.trial.as_ref().map(|trial| trial.id),
                    });
                }
                Step::Continue
            }
            FlowControl::Call | FlowControl::IndirectCall => {
                if instruction.op0_kind() == OpKind::NearBranch64 {
                    let target = instruction.near_branch_target();
                    let is_text = self.locate(target).is_some();
                    let is_entry = self.is_entry(target);
                    match &mut self.trial {
                        // On trial, what is called stands for itself.
                        Some(trial) => {
                            trial.calls.push(target);
                            trial.anchored |= is_entry;
                            trial.failed |= !is_text;
                        }
                        None => self.call(target),
                    }
                }
                if self.ends.get(next) { Step::Stop } else { Step::Continue }
            }
            FlowControl::IndirectBranch => {
                if !self.read_jump_table(instruction, None) && self.trial.is_none() {
                    self.unresolved.push(instruction.ip());
                }
                Step::Stop
            }
            FlowControl::Interrupt => {
                if instruction.code() == Code::Int3 {
                    Step::Stop
                } else {
                    Step::Continue
                }
            }
            FlowControl::Return | FlowControl::Exception => Step::Stop,
        }
    }

    /// Remembers addresses of text that code computes: functions to pass on, mostly.
    fn note_pointer(&mut self, instruction: &Instruction) {
        let address = match instruction.code() {
            Code::Lea_r64_m if instruction.is_ip_rel_memory_operand() => {
                instruction.ip_rel_memory_address()
            }
            Code::Mov_r32_imm32 | Code::Pushq_imm32 | Code::Mov_rm64_imm32 if self.image.fixed => {
                u64::from(instruction.immediate32())
            }
            _ => return,
        };
        if region_of(&self.image.regions, address).is_some() {
            self.pointers.push(address);
        }
    }

    /// Addresses at which functions start, ascending.
    pub(super) fn entries(&self) -> Vec<u64> {
        self.addresses(&self.entries).filter(|&address| self.is_start(address)).collect()
    }

    /// Addresses of all known instructions, ascending.
    pub(super) fn start_addresses(&self) -> impl Iterator<Item = u64> {
        self.addresses(&self.starts)
    }

    fn addresses<'s>(&'s self, bits: &'s Bits) -> impl Iterator<Item = u64> + 's {
        let mut regions = self.bases.iter().zip(&self.image.regions).peekable();
        bits.iter().filter_map(move |index| {
            while regions.next_if(|(base, r)| index >= **base + r.bytes.len()).is_some() {}
            let (base, region) = regions.peek()?;
            Some(region.address + index.checked_sub(**base)? as u64)
        })
    }

    /// Whether `address` is the first byte after a function.
    pub(super) fn is_end(&self, address: u64) -> bool {
        self.locate(address).is_some_and(|(_, index)| self.ends.get(index))
    }

    /// The targets of the indirect jump at `address`, if its table is known.
    pub(super) fn table(&self, address: u64) -> Option<&[u64]> {
        self.tables.get(&address).map(Vec::as_slice)
    }

    /// The instruction that falls through to `address`, decoded.
    pub(super) fn before(&self, address: u64) -> Option<Decoded> {
        let (region, index) = self.locate(address)?;
        let reach = MAX_INSTRUCTION.min(index - self.bases[region]);
        let mut previous = index;
        // The nearest start may belong to another reading of the same bytes.
        while let Some(start) = self.starts.previous(previous, reach - (index - previous)) {
            let decoded = self.at(address - (index - start) as u64)?;
            if decoded.next_ip() == address {
                return Some(decoded);
            }
            previous = start;
        }
        None
    }

    /// The instruction at `address`, which must be known to be one.
    pub(super) fn at(&self, address: u64) -> Option<Decoded> {
        let (region, index) = self.locate(address)?;
        if !self.starts.get(index) {
            return None;
        }
        let Region { address: start, bytes, .. } = self.image.regions[region];
        let bytes = bytes.get((address - start) as usize..)?;
        let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION)];
        let decoded = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        (decoded.code() != Code::INVALID).then_some(decoded)
    }

    /// Whether known code jumps, or a pointer leads, to `address`.
    pub(super) fn is_target(&self, address: u64) -> bool {
        self.locate(address).is_some_and(|(_, index)| self.targets.get(index))
    }

    /// Whether an instruction is known to start at `address`.
    pub(super) fn is_start(&self, address: u64) -> bool {
        self.locate(address).is_some_and(|(_, index)| self.starts.get(index))
    }

    /// Whether any of these bytes is known to be part of an instruction, or the target of one.
    pub(super) fn is_known(&self, address: u64, len: usize) -> bool {
        self.locate(address).is_none_or(|(_, index)| {
            [&self.starts, &self.inside, &self.targets].iter().any(|bits| bits.any(index, len))
        })
    }

    /// Whether two readings of the text disagree on the `len` bytes at `address`, which are
    /// one instruction in one of them, or the reading that has it ran into an invalid one.
    pub(super) fn is_disputed(&self, address: u64, len: usize) -> bool {
        self.locate(address).is_none_or(|(_, index)| {
            self.inside.get(index)
                || self.starts.any(index + 1, len - 1)
                || self.targets.any(index + 1, len - 1)
                || self.doubtful.get(index)
        })
    }

    /// Whether the byte at `address` is part of a known instruction.
    pub(super) fn is_instruction(&self, address: u64) -> bool {
        self.locate(address)
            .is_some_and(|(_, index)| self.starts.get(index) || self.inside.get(index))
    }

    /// Bytes of text that are part of a known instruction.
    pub(super) fn known_bytes(&self) -> usize {
        self.starts.count_union(&self.inside)
    }

    /// Tries again what depends on code that was not known yet.
    fn resolve_jumps(&mut self) {
        loop {
            let jumps = core::mem::take(&mut self.unresolved);
            let tried = jumps.len();
            let mut function = None;
            for address in jumps {
                let extent = self.image.function_of(address);
                let extent = extent.filter(|(start, end)| end - start <= MAX_FUNCTION);
                if let Some((start, end)) = extent
                    && function.as_ref().is_none_or(|(known, _)| *known != start)
                {
                    function = Some((start, self.predecessors(start, end)));
                }
                let before = extent.and(function.as_ref()).map(|(_, before)| before);
                let jump = self.at(address);
                if !jump.is_some_and(|jump| self.read_jump_table(&jump, before)) {
                    self.unresolved.push(address);
                }
            }
            let is_done = self.unresolved.len() == tried;
            self.drain();
            if is_done {
                return;
            }
        }
    }

    /// Follows the jump table of an indirect jump, if it is one of those that compilers make; whether it is.
    fn read_jump_table(&mut self, jump: &Instruction, predecessors: Option<&Predecessors>) -> bool {
        let Some(table) = self.recognise_table(jump, predecessors) else { return false };
        let entry_len = match table.entries {
            Entries::Absolute => 8,
            Entries::Relative => 4,
        };
        let Some(bytes) = self.image.read(table.address) else { return false };
        let extent = self.image.function_of(jump.ip());
        let len = table.len.unwrap_or(MAX_TABLE).min(MAX_TABLE) as usize;
        if self.table_budget < len {
            return false;
        }
        self.table_budget -= len;
        let mut targets = vec![];
        for entry in bytes.chunks_exact(entry_len).take(len) {
            let target = match (table.entries, entry) {
                (Entries::Absolute, &[a, b, c, d, e, f, g, h]) => {
                    u64::from_le_bytes([a, b, c, d, e, f, g, h])
                }
                (Entries::Relative, &[a, b, c, d]) => {
                    table.address.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into())
                }
                _ => break,
            };
            // A table of unknown length ends where its entries leave the function or make no sense.
            let Some((_, index)) = self.locate(target) else { break };
            if table.len.is_none()
                && (extent.is_none_or(|(start, end)| !(start..end).contains(&target))
                    || self.inside.get(index))
            {
                break;
            }
            targets.push(target);
        }
        // An entry that is not in text means that this is no table, or not of this size.
        if table.len.is_some_and(|_| targets.len() < len) {
            return false;
        }
        for &target in &targets {
            self.go_to(target);
        }
        self.tables.insert(jump.ip(), targets);
        true
    }

    /// Where control comes from to each known instruction of a function.
    fn predecessors(&self, start: u64, end: u64) -> Predecessors {
        let mut all = Predecessors::new();
        for instruction in (start..end).filter_map(|address| self.at(address)) {
            let from = instruction.ip();
            let mut note = |to: u64| all.entry(to).or_default().push(from);
            let is_direct = instruction.op_count() > 0
                && instruction.op0_kind() == OpKind::NearBranch64
                && !instruction.is_call_near();
            if is_direct {
                note(instruction.near_branch_target());
            }
            self.table(from).into_iter().flatten().for_each(|&to| note(to));
            if matches!(
                instruction.flow_control(),
                FlowControl::Next
                    | FlowControl::Call
                    | FlowControl::IndirectCall
                    | FlowControl::ConditionalBranch
                    | FlowControl::XbeginXabortXend
                    | FlowControl::Interrupt
            ) {
                note(instruction.next_ip());
            }
        }
        all
    }

    /// The address that a register holds at `jump`: a table's that was put there before a loop. Known if each way
    /// there leads from one `lea`.
    fn base_before(&self, register: Register, jump: u64, before: &Predecessors) -> Option<u64> {
        use Register::{R8, R9, R10, R11, R12, R13, R14, R15, RBP, RBX};
        let survives_calls = matches!(register, RBX | RBP | R12 | R13 | R14 | R15);
        // The others are written by instructions that do not name them.
        if !survives_calls && !matches!(register, R8 | R9 | R10 | R11) {
            return None;
        }
        let mut base = None;
        let mut todo = before.get(&jump)?.clone();
        let mut seen = BTreeSet::new();
        while let Some(address) = todo.pop() {
            if !seen.insert(address) {
                continue;
            }
            let instruction = self.at(address)?;
            let is_its = |operand| {
                instruction.op_count() > operand
                    && instruction.op_kind(operand) == OpKind::Register
                    && instruction.op_register(operand).full_register() == register
            };
            let is_exchange = matches!(
                instruction.mnemonic(),
                iced_x86::Mnemonic::Xadd | iced_x86::Mnemonic::Xchg
            );
            let is_call =
                matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
            if is_its(0) && writes_op0(&instruction) && !is_call {
                let is_lea =
                    instruction.code() == Code::Lea_r64_m && instruction.is_ip_rel_memory_operand();
                let found = Some(instruction.ip_rel_memory_address()).filter(|_| is_lea)?;
                if base.is_some_and(|base| base != found) {
                    return None;
                }
                base = Some(found);
            } else if is_exchange && is_its(1) || is_call && !survives_calls {
                return None;
            } else {
                // Nothing leads there: the function's start, or a place that control comes to in ways not known.
                todo.extend(before.get(&address)?);
            }
        }
        base
    }

    fn recognise_table(
        &self,
        jump: &Instruction,
        predecessors: Option<&Predecessors>,
    ) -> Option<Table> {
        let mut before = vec![];
        let mut at = jump.ip();
        while before.len() < TABLE_LOOKBACK {
            let Some(decoded) = self.before(at) else { break };
            if matches!(
                decoded.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::Return
                    | FlowControl::IndirectBranch
            ) {
                break;
            }
            at = decoded.ip();
            before.push(decoded);
        }
        let base = |register: Register, from: usize| {
            let nearest =
                before[from..].iter().find(|i| i.op0_register() == register && writes_op0(i));
            match nearest {
                Some(i) => (i.code() == Code::Lea_r64_m && i.is_ip_rel_memory_operand())
                    .then(|| i.ip_rel_memory_address()),
                None => self.base_before(register, jump.ip(), predecessors?),
            }
        };
        // jmp *table(, %index, 8), or the same loaded into a register first.
        let load = if jump.op0_kind() == OpKind::Memory {
            Some((0, *jump))
        } else {
            let register = jump.op0_register();
            before
                .iter()
                .position(|i| i.op0_register() == register && writes_op0(i))
                .map(|n| (n, before[n]))
        };
        let (position, load) = load?;
        let is_scaled = |i: &Instruction, scale| {
            i.memory_index() != Register::None && i.memory_index_scale() == scale
        };
        let is_absolute = jump.op0_kind() == OpKind::Memory || load.code() == Code::Mov_r64_rm64;
        if is_absolute && is_scaled(&load, 8) {
            let address = match load.memory_base() {
                Register::None => load.memory_displacement64(),
                register if load.memory_displacement64() == 0 => base(register, position)?,
                _ => return None,
            };
            let len = table_len(&before, load.memory_index());
            return Some(Table { address, len, entries: Entries::Absolute });
        }
        // movslq (%base, %index, 4), %offset; add %base, %offset; jmp *%offset
        if load.code() == Code::Add_r64_rm64 || load.code() == Code::Add_rm64_r64 {
            let (one, other) = (load.op0_register(), load.op1_register());
            let (n, offset) = before.iter().enumerate().skip(position + 1).find(|(_, i)| {
                i.code() == Code::Movsxd_r64_rm32
                    && (i.op0_register() == one || i.op0_register() == other)
            })?;
            let register = if offset.op0_register() == one { other } else { one };
            if !is_scaled(offset, 4)
                || offset.memory_base() != register
                || offset.memory_displacement64() != 0
            {
                return None;
            }
            let address = base(register, n + 1).or_else(|| base(register, position + 1))?;
            let len = table_len(&before, offset.memory_index());
            return Some(Table { address, len, entries: Entries::Relative });
        }
        None
    }
}

struct Table {
    address: u64,
    /// Entries, where a bounds check tells.
    len: Option<u32>,
    entries: Entries,
}

#[derive(Clone, Copy)]
enum Entries {
    /// 64-bit addresses.
    Absolute,
    /// 32-bit distances from the table.
    Relative,
}

/// The table's length by the bounds check before it: `cmp $n, index; ja` or `jae`, or a mask.
fn table_len(before: &[Instruction], index: Register) -> Option<u32> {
    // The index and what it was copied from.
    let mut indices = vec![index.full_register()];
    for (n, check) in before.iter().enumerate() {
        let is_immediate = matches!(
            check.op1_kind(),
            OpKind::Immediate8
                | OpKind::Immediate32
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        );
        match check.mnemonic() {
            iced_x86::Mnemonic::Ja | iced_x86::Mnemonic::Jae => {
                let more = u32::from(check.mnemonic() == iced_x86::Mnemonic::Ja);
                let compare = before
                    .get(n + 1..)?
                    .iter()
                    .find(|i| i.mnemonic() == iced_x86::Mnemonic::Cmp)?;
                let limit = u32::try_from(compare.try_immediate(1).ok()?).ok()?;
                return limit.checked_add(more);
            }
            iced_x86::Mnemonic::Mov | iced_x86::Mnemonic::Movzx
                if check.op0_kind() == OpKind::Register
                    && check.op1_kind() == OpKind::Register
                    && indices.contains(&check.op0_register().full_register()) =>
            {
                indices.push(check.op1_register().full_register());
            }
            iced_x86::Mnemonic::And
                if is_immediate && indices.contains(&check.op0_register().full_register()) =>
            {
                return u32::try_from(check.immediate(1)).ok()?.checked_add(1);
            }
            _ => {}
        }
    }
    None
}

/// Whether the first operand is written rather than read. Enough for the instructions that build
/// the address of a jump table.
fn writes_op0(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Cmp, Push, Test};
    !matches!(instruction.mnemonic(), Cmp | Test | Push)
}

/// Addresses of `endbr64`, aligned as functions are: landing places of indirect jumps, unless the
/// bytes are something else.
fn branch_marks<'r>(regions: &'r [Region<'_>]) -> impl Iterator<Item = u64> + 'r {
    regions.iter().flat_map(|region| {
        let skip = region.address.wrapping_neg() as usize % 16;
        region.bytes.chunks(16).enumerate().filter_map(move |(n, _)| {
            let at = skip + n * 16;
            (region.bytes.get(at..at + 4)? == [0xf3, 0x0f, 0x1e, 0xfa])
                .then_some(region.address + at as u64)
        })
    })
}
