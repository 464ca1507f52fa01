//! What of a function runs only if something else does: its *parts*.
//!
//! A branch that depends on a thread's variable, or on the kind of a mutex, goes only one way as long as
//! nothing that is reached says otherwise. What lies behind such a branch and is not led to otherwise
//! becomes a node of its own, and the link to it has a [`Guard`]. A function stays whole where not all
//! ways into it and inside it are known: where others jump into its middle, where jumps go to
//! unknown places, where there is code that nothing known leads to.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use iced_x86::{
    Code as Opcode, ConditionCode, FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register,
};
use serde::{Deserialize, Serialize};

use crate::{
    linkage::FOREIGN_VARIABLE,
    numbers::Source,
    summary::{Builder, Link, Node},
    value::{Atom, Event, Interpreter, Place, SURVIVORS, Tested, number_of},
};

/// When the flags lead to a branch being taken, as in its mnemonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Condition {
    Equal,
    NotEqual,
    Below,
    NotBelow,
    Above,
    NotAbove,
    Less,
    NotLess,
    Greater,
    NotGreater,
    Negative,
    NotNegative,
}

impl Condition {
    fn of(code: ConditionCode) -> Option<Self> {
        Some(match code {
            ConditionCode::e => Self::Equal,
            ConditionCode::ne => Self::NotEqual,
            ConditionCode::b => Self::Below,
            ConditionCode::ae => Self::NotBelow,
            ConditionCode::a => Self::Above,
            ConditionCode::be => Self::NotAbove,
            ConditionCode::l => Self::Less,
            ConditionCode::ge => Self::NotLess,
            ConditionCode::g => Self::Greater,
            ConditionCode::le => Self::NotGreater,
            ConditionCode::s => Self::Negative,
            ConditionCode::ns => Self::NotNegative,
            _ => return None,
        })
    }

    fn negated(self) -> Self {
        match self {
            Self::Equal => Self::NotEqual,
            Self::NotEqual => Self::Equal,
            Self::Below => Self::NotBelow,
            Self::NotBelow => Self::Below,
            Self::Above => Self::NotAbove,
            Self::NotAbove => Self::Above,
            Self::Less => Self::NotLess,
            Self::NotLess => Self::Less,
            Self::Greater => Self::NotGreater,
            Self::NotGreater => Self::Greater,
            Self::Negative => Self::NotNegative,
            Self::NotNegative => Self::Negative,
        }
    }
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Test {
    pub(crate) condition: Condition,
    /// What a value is compared with.
    pub(crate) constant: u64,
    /// How many bytes of both.
    pub(crate) size: u8,
}

impl Test {
    fn of_exactly(self, value: u64) -> bool {
        let Some(shift) = 64_u32.checked_sub(u32::from(self.size) * 8) else { return true };
        let (a, b) = (value << shift, self.constant << shift);
        let (signed_a, signed_b) = (a as i64, b as i64);
        match self.condition {
            Condition::Equal => a == b,
            Condition::NotEqual => a != b,
            Condition::Below => a < b,
            Condition::NotBelow => a >= b,
            Condition::Above => a > b,
            Condition::NotAbove => a <= b,
            Condition::Less => signed_a < signed_b,
            Condition::NotLess => signed_a >= signed_b,
            Condition::Greater => signed_a > signed_b,
            Condition::NotGreater => signed_a <= signed_b,
            Condition::Negative => (a.wrapping_sub(b) as i64) < 0,
            Condition::NotNegative => (a.wrapping_sub(b) as i64) >= 0,
        }
    }

    /// Whether it may hold for these bits of a value, whose upper half may have been cut off or made
    /// from its sign on the way ([`crate::value`] does not tell).
    pub(crate) fn may_hold(self, value: u64, mask: u64) -> bool {
        let low = value & 0xffff_ffff;
        let extended = i64::from(low as u32 as i32) as u64;
        [value, low, extended].into_iter().any(|value| self.of_exactly(value & mask))
    }
}

/// Why a part may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Guard {
    /// One of these nodes is reached: they write the variable that the branch depends on.
    Reached(Vec<u32>),
    /// The comparison may hold for these bits of one of these values: kinds of mutexes.
    Value(Vec<(Source, u64)>, Test),
}

/// The distance of `__kind` in glibc's `pthread_mutex_t` (`struct __pthread_mutex_s`).
pub(crate) const MUTEX_KIND: i32 = 16;

/// The bits of a mutex's kind that can be enumerated: type, robustness, protocol
/// (`PTHREAD_MUTEX_KIND_MASK_NP` and above, glibc's nptl/pthreadP.h).
const MUTEX_BITS: u64 = 0x7f;

/// The most parts of a function that lie directly behind guards.
const MAX_HEADS: usize = 64;

/// How many instructions a register is followed for.
const BUDGET: usize = 600;

/// An instruction of one function.
struct Step {
    at: u64,
    next: Option<u64>,
    targets: Vec<u64>,
    condition: Option<Condition>,
}

/// Threads' variables that only instructions which name them use.
#[derive(Debug, Default)]
struct Threads {
    /// By place, which of `stores` write it.
    private: BTreeMap<u64, Vec<u32>>,
    /// Addresses of instructions.
    stores: Vec<u64>,
}

impl Builder<'_, '_, '_> {
    /// Finds the parts of functions, and makes nodes of them.
    pub(crate) fn find_parts(&mut self) {
        self.first_part = self.nodes.len() as u32;
        if self.code.is_go() {
            return;
        }
        let threads = self.threads();
        let mut whole: HashSet<u32> = HashSet::new();
        let code = self.code;
        code.each_instruction(|instruction| {
            let Some(home) = self.node_of(instruction.ip()) else { return };
            let mut go = |target: u64| {
                if let Some(to) = self.node_of(target)
                    && to != home
                    && self.starts[to as usize] != target
                {
                    whole.insert(to);
                }
            };
            if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64 {
                go(instruction.near_branch_target());
            }
            for &target in code.jump_table(instruction.ip()).unwrap_or(&[]) {
                go(target);
            }
        });
        whole.extend(self.labels.iter().filter_map(|label| self.node_of(*label)));
        let has_mutexes = self.linkage.exports.iter().any(|e| e.name == "pthread_mutex_lock");
        let (entries, labels) = (self.entries(), self.labels.clone());
        let slots = self.linkage.thread_slots.clone();
        let mut interpreter = Interpreter::new(code, &entries, &labels, &slots);
        let mut steps: Vec<Step> = Vec::new();
        let mut current: Option<u32> = None;
        let mut is_whole = false;
        let mut found = Vec::new();
        let mut uses_threads = false;
        let mut masks_kind = false;
        let this: &Self = self;
        let mut finish = |node: u32, steps: &mut Vec<Step>, is_whole: bool, is_special: bool| {
            let start = this.starts[node as usize];
            let is_candidate = !is_whole
                && !whole.contains(&node)
                && is_special
                && steps.first().is_some_and(|step| step.at == start)
                && steps.iter().any(|step| step.condition.is_some());
            if is_candidate {
                found.extend(this.split(node, steps, &mut interpreter, has_mutexes, &threads));
            }
            steps.clear();
        };
        let mut end = 0;
        code.each_instruction(|instruction| {
            let at = instruction.ip();
            let Some(node) = this.node_of(at) else { return };
            if current != Some(node) {
                if let Some(current) = current {
                    let next = this.starts.get(current as usize + 1).copied().unwrap_or(at);
                    let is_gap = !this.is_padding(end, next.min(at));
                    finish(current, &mut steps, is_whole || is_gap, uses_threads || masks_kind);
                }
                current = Some(node);
                is_whole = false;
                uses_threads = false;
                masks_kind = false;
            } else {
                is_whole |= at < end || !this.is_padding(end, at);
            }
            end = instruction.next_ip();
            uses_threads |= instruction.is_ip_rel_memory_operand()
                && slots.contains_key(&instruction.ip_rel_memory_address());
            masks_kind |= has_mutexes
                && instruction.mnemonic() == Mnemonic::And
                && instruction.try_immediate(1).is_ok_and(|mask| mask == MUTEX_BITS);
            steps.push(this.step_of(instruction));
        });
        if let Some(current) = current {
            let mut regions = code.regions().map(|(start, bytes)| start + bytes.len() as u64);
            let is_gap =
                regions.find(|last| *last >= end).is_none_or(|last| !this.is_padding(end, last));
            finish(current, &mut steps, is_whole || is_gap, uses_threads || masks_kind);
        }
        for (home, parts, links) in found {
            self.add_parts(home, parts, links);
        }
        // Only now is it known in which parts the stores are.
        let mut guards = std::mem::take(&mut self.guards);
        for guard in &mut guards {
            if let Guard::Reached(by) = guard {
                let stores = by.iter().map(|number| threads.stores[*number as usize]);
                *by = stores.filter_map(|at| self.part_of(at)).collect();
            }
        }
        self.guards = guards;
    }

    fn step_of(&self, instruction: &Instruction) -> Step {
        let mut step =
            Step { at: instruction.ip(), next: None, targets: Vec::new(), condition: None };
        let is_near = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
        let falls = match instruction.flow_control() {
            FlowControl::Call if instruction.code() == Opcode::Syscall => true,
            FlowControl::Call | FlowControl::IndirectCall => {
                !self.code.is_end(instruction.next_ip())
            }
            FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                if is_near {
                    step.targets.push(instruction.near_branch_target());
                    step.condition = Condition::of(instruction.condition_code());
                }
                true
            }
            FlowControl::UnconditionalBranch => {
                if is_near {
                    step.targets.push(instruction.near_branch_target());
                }
                false
            }
            FlowControl::IndirectBranch => {
                let targets = self.code.jump_table(instruction.ip()).unwrap_or(&[]);
                step.targets.extend(targets);
                false
            }
            FlowControl::Return | FlowControl::Exception => false,
            FlowControl::Interrupt => instruction.code() != Opcode::Int3,
            FlowControl::Next => instruction.code() != Opcode::Hlt,
        };
        step.next = falls.then_some(instruction.next_ip());
        step
    }

    /// Whether there is nothing but padding from `start` to `end`.
    fn is_padding(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            let Some(bytes) = self.code.read(at) else { return false };
            if matches!(bytes.first(), Some(0 | 0xcc | 0x90)) {
                at += 1;
                continue;
            }
            match self.code.decode(at) {
                Some(nop) if nop.mnemonic() == Mnemonic::Nop => at = nop.next_ip(),
                _ => return false,
            }
        }
        true
    }

    /// The guard of a branch that is taken if `test` holds; `None` for one that decides nothing.
    fn guard(
        &self,
        node: u32,
        tested: &Tested,
        condition: Condition,
        has_mutexes: bool,
        threads: &Threads,
    ) -> Option<Guard> {
        let test =
            Test { condition, constant: tested.constant, size: u8::try_from(tested.size).ok()? };
        let atoms = tested.value.atoms().filter(|atoms| (1..=4).contains(&atoms.len()))?;
        if let Some(Atom::Param(Place::Thread(at))) = atoms.first() {
            let stores = threads.private.get(at).filter(|_| atoms.len() == 1)?;
            if test.may_hold(self.first_thread_value(*at)?, u64::MAX) {
                return None;
            }
            return Some(Guard::Reached(stores.clone()));
        }
        let mut values = Vec::new();
        for atom in atoms {
            let (place, mask) = match atom {
                Atom::Const(value) => {
                    values.push((Source::Const(*value), u64::MAX));
                    continue;
                }
                Atom::Param(place) => (*place, u64::MAX),
                Atom::Masked(place, mask) => (*place, *mask),
                Atom::StackAddress(_) => return None,
            };
            let is_known = match place {
                Place::Memory(_, MUTEX_KIND) => has_mutexes && mask & !MUTEX_BITS == 0,
                _ => false,
            };
            if !is_known {
                return None;
            }
            values.push((Source::Param(node, place), mask));
        }
        let is_parameter = |value: &(Source, u64)| matches!(value.0, Source::Param(..));
        values.iter().any(is_parameter).then_some(Guard::Value(values, test))
    }

    /// What a thread's variable holds at first.
    fn first_thread_value(&self, at: u64) -> Option<u64> {
        let (start, end) = self.linkage.threads?;
        let address = start.checked_add(at)?;
        if address >= end {
            return Some(0);
        }
        let bytes = self.code.read(address)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    /// The parts of one function (addresses of instructions) and links to them: from which part, to which, and why.
    #[expect(clippy::type_complexity)]
    fn split(
        &self,
        node: u32,
        steps: &[Step],
        interpreter: &mut Interpreter<'_, '_, '_>,
        has_mutexes: bool,
        threads: &Threads,
    ) -> Option<(u32, Vec<Vec<u64>>, Vec<(Option<usize>, usize, Option<Guard>)>)> {
        let mut tested: HashMap<u64, Option<Tested>> = HashMap::new();
        let mut is_lost = false;
        let seen = interpreter.function(steps[0].at, |at, event, state| match event {
            Event::Branch => {
                let new = state.tested().cloned();
                let entry = tested.entry(at).or_insert_with(|| new.clone());
                if *entry != new {
                    *entry = None;
                }
            }
            Event::Lost => is_lost = true,
            _ => {}
        })?;
        if is_lost {
            return None;
        }
        let index_of = |at: u64| steps.binary_search_by_key(&at, |step| step.at).ok();
        // Where control goes to, and on which condition.
        let mut edges: Vec<Vec<(usize, Option<Guard>)>> = Vec::with_capacity(steps.len());
        let mut has_guards = false;
        for step in steps {
            let mut out = Vec::new();
            let next = step.next.and_then(index_of);
            let guard = |condition: Condition| {
                let tested = tested.get(&step.at)?.as_ref()?;
                self.guard(node, tested, condition, has_mutexes, threads)
            };
            let is_one = step.targets.len() == 1 && step.targets.first() != step.next.as_ref();
            let condition = step.condition.filter(|_| is_one);
            for target in step.targets.iter().filter_map(|target| index_of(*target)) {
                out.push((target, condition.and_then(guard)));
            }
            if let Some(next) = next {
                out.push((next, condition.and_then(|condition| guard(condition.negated()))));
            }
            has_guards |= out.iter().any(|(_, guard)| guard.is_some());
            edges.push(out);
        }
        if !has_guards {
            return None;
        }
        let close = |roots: Vec<usize>| {
            let mut reached = vec![false; steps.len()];
            let mut todo = roots;
            while let Some(at) = todo.pop() {
                if !std::mem::replace(&mut reached[at], true) {
                    todo.extend(edges[at].iter().filter(|e| e.1.is_none()).map(|e| e.0));
                }
            }
            reached
        };
        let mut roots: Vec<usize> =
            (0..steps.len()).filter(|index| !seen.contains(&steps[*index].at)).collect();
        roots.push(0);
        let mut base = close(roots.clone());
        let guarded = edges.iter().flatten().filter(|edge| edge.1.is_some());
        let heads: BTreeSet<usize> = guarded.map(|e| e.0).filter(|head| !base[*head]).collect();
        let more: Vec<usize> = heads.iter().skip(MAX_HEADS).copied().collect();
        if !more.is_empty() {
            roots.extend(more);
            base = close(roots);
        }
        let heads: Vec<usize> = heads.into_iter().filter(|head| !base[*head]).collect();
        if heads.is_empty() {
            return None;
        }
        // What leads where, a bit for each head: what the same ones lead to is one part.
        let mut by = vec![0_u64; steps.len()];
        for (bit, head) in heads.iter().enumerate() {
            for (at, _) in close(vec![*head]).iter().enumerate().filter(|(_, reached)| **reached) {
                by[at] |= 1 << bit;
            }
        }
        let mut parts: Vec<Vec<u64>> = Vec::new();
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        let mut part_of = vec![None; steps.len()];
        for (at, step) in steps.iter().enumerate().filter(|(at, _)| !base[*at]) {
            let number = *numbers.entry(by[at]).or_insert_with(|| {
                parts.push(Vec::new());
                parts.len() - 1
            });
            parts[number].push(step.at);
            part_of[at] = Some(number);
        }
        let mut links = Vec::new();
        for (at, out) in edges.iter().enumerate() {
            for (to, guard) in out {
                if let Some(to) = part_of[*to].filter(|to| part_of[at] != Some(*to)) {
                    let link = (part_of[at], to, guard.clone());
                    if !links.contains(&link) {
                        links.push(link);
                    }
                }
            }
        }
        Some((node, parts, links))
    }

    fn add_parts(
        &mut self,
        home: u32,
        parts: Vec<Vec<u64>>,
        links: Vec<(Option<usize>, usize, Option<Guard>)>,
    ) {
        let first = self.nodes.len() as u32;
        for part in parts {
            let number = self.nodes.len() as u32;
            self.nodes.push(Node { address: part[0], ..Node::default() });
            self.homes.push(home);
            self.parts.extend(part.into_iter().map(|at| (at, number)));
        }
        for (from, to, guard) in links {
            let from = from.map_or(home, |from| first + from as u32);
            let to = first + to as u32;
            let link = match guard {
                None => Link::Jump(to),
                Some(guard) => {
                    self.guards.push(guard);
                    Link::Guarded(to, self.guards.len() as u32 - 1)
                }
            };
            self.link(from, link);
        }
    }

    /// The node or part that an instruction is in.
    pub(crate) fn part_of(&self, at: u64) -> Option<u32> {
        self.parts.get(&at).copied().or_else(|| self.node_of(at))
    }

    /// The function of a node of code.
    pub(crate) fn home_of(&self, node: u32) -> u32 {
        let part = node.checked_sub(self.first_part);
        part.and_then(|part| self.homes.get(part as usize)).copied().unwrap_or(node)
    }

    /// Finds out which threads' variables nobody reaches but by their own distances from the thread
    /// pointer, none of which gets anywhere else.
    fn threads(&mut self) -> Threads {
        let slots = self.linkage.thread_slots.clone();
        if slots.is_empty() || self.linkage.has_other_threads || self.code.is_fixed() {
            return Threads::default();
        }
        let mut loads = Vec::new();
        let mut taken = BTreeSet::from([FOREIGN_VARIABLE]);
        let mut is_other = false;
        self.code.each_instruction(|instruction| {
            let has_memory =
                (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
            if !has_memory {
                return;
            }
            if instruction.is_ip_rel_memory_operand()
                && let Some(at) = slots.get(&instruction.ip_rel_memory_address())
            {
                if instruction.code() == Opcode::Mov_r64_rm64 {
                    loads.push((*instruction, *at));
                } else {
                    taken.insert(*at);
                }
            }
            // By distances that instructions hold, as programs find their own.
            is_other |= instruction.memory_segment() == Register::FS
                && (instruction.memory_displacement64() as i32) < 0;
        });
        let mut stores: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (load, at) in loads {
            stores.entry(at).or_default();
            if self.follow_thread_slot(&load, at, &mut stores).is_none() {
                taken.insert(at);
            }
        }
        if is_other {
            return Threads::default();
        }
        stores.retain(|at, _| !taken.contains(at));
        let mut threads = Threads::default();
        for (place, stores) in stores {
            let first = threads.stores.len() as u32;
            threads.stores.extend(stores);
            threads.private.insert(place, (first..threads.stores.len() as u32).collect());
        }
        threads
    }

    /// Follows a distance that a register holds; `None` where it is used otherwise than to find the variable.
    fn follow_thread_slot(
        &mut self,
        load: &Instruction,
        place: u64,
        stores: &mut BTreeMap<u64, Vec<u64>>,
    ) -> Option<()> {
        let register = load.op0_register();
        let is_lost_by_calls = number_of(register).is_some_and(|n| SURVIVORS >> n & 1 == 0);
        let home = self.node_of(load.ip())?;
        let mut todo = vec![load.next_ip()];
        let mut seen = HashSet::new();
        let mut is_private = true;
        while let Some(mut at) = todo.pop() {
            while seen.insert(at) {
                if seen.len() > BUDGET {
                    return None;
                }
                // No other function knows what to do with a distance.
                if self.node_of(at) != Some(home) {
                    break;
                }
                let next = self.code.decode(at)?;
                let (mut reads, mut writes) = (false, false);
                for used in self.info.info(&next).used_registers() {
                    if used.register().full_register() == register {
                        writes |= matches!(used.access(), OpAccess::Write);
                        reads |= !matches!(used.access(), OpAccess::Write);
                    }
                }
                let is_call =
                    matches!(next.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
                        && next.code() != Opcode::Syscall;
                if reads {
                    let is_variable = next.memory_segment() == Register::FS
                        && next.memory_base() == register
                        && next.memory_index() == Register::None
                        && next.memory_displacement64() == 0;
                    let is_value = (0..next.op_count()).any(|n| {
                        next.op_kind(n) == OpKind::Register
                            && next.op_register(n).full_register() == register
                            && !(n == 0 && next.mnemonic() == Mnemonic::Mov)
                    });
                    if !is_variable || is_call {
                        return None;
                    }
                    is_private &= !is_value;
                    let only_reads = next.op0_kind() != OpKind::Memory
                        && !matches!(next.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd)
                        || matches!(next.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
                    if !only_reads {
                        stores.entry(place).or_default().push(at);
                    }
                }
                if writes {
                    break;
                }
                match next.flow_control() {
                    FlowControl::UnconditionalBranch => {
                        todo.push(next.near_branch_target());
                        break;
                    }
                    FlowControl::ConditionalBranch => todo.push(next.near_branch_target()),
                    FlowControl::IndirectBranch => {
                        todo.extend(self.code.jump_table(at).unwrap_or(&[]));
                        break;
                    }
                    FlowControl::Return | FlowControl::Exception => break,
                    FlowControl::XbeginXabortXend => return None,
                    _ => {}
                }
                if is_call && (is_lost_by_calls || self.code.is_end(next.next_ip())) {
                    break;
                }
                at = next.next_ip();
            }
        }
        is_private.then_some(())
    }
}
