//! What registers hold: an abstract interpretation of one function.
//!
//! A value is a small set of [`Atom`]s, or unknown. At the function's first instruction each
//! register holds its own atom, so that a value at a system call is either known, or says where
//! the callers have to be asked. Control flow inside the function is followed, joins included; a
//! jump to the first instruction of a function is a call that does not come back.
//!
//! What is assumed: the calling convention (System V: `rbx`, `rbp`, `rsp`, `r12` to `r15` survive
//! calls; Go: only `rsp`), and that a function does not write to its callers' stack frames but
//! through addresses that they gave away.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use hx_rewriter::plan::code::Code;
use iced_x86::{
    Code as Opcode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use serde::{Deserialize, Serialize};

/// Where the callers of a function put something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Place {
    /// A general register, by its number in instructions.
    Register(u8),
    /// On the stack, so many bytes above `rsp` at the first instruction.
    Stack(i32),
    /// In memory, so many bytes from the address in this general register.
    Memory(u8, i32),
    /// In the word at this link-time address, whoever stored it there.
    Word(u64),
    /// In memory, so many bytes from the address that the word at this link-time address holds.
    Behind(u64, i32),
    /// In the thread's variable that lies so many bytes after the first one of the file.
    Thread(u64),
}

/// One of the things that a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Atom {
    Const(u64),
    /// What this place held at the function's first instruction.
    Param(Place),
    /// These bits of it, the others zero.
    Masked(Place, u64),
    /// The address so many bytes above `rsp` at the first instruction.
    StackAddress(i32),
}

/// The most atoms in a set.
const MAX_ATOMS: usize = 24;

/// How far from the function's frame stack places are followed, in bytes.
const MAX_FRAME: i32 = 1 << 20;

/// Addresses, from the first to before the second.
type Ranges = Vec<(u64, u64)>;

/// Whether an address is in any of the ranges.
pub(crate) fn is_in(ranges: &[(u64, u64)], address: u64) -> bool {
    ranges.iter().any(|(start, end)| (*start..*end).contains(&address))
}

/// A set of atoms, or anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// `None` is anything.
    atoms: Option<BTreeSet<Atom>>,
    /// Where that is anything: watched addresses that it may be as well as what is not known.
    perhaps: BTreeSet<u64>,
}

impl Value {
    const ANY: Self = Self { atoms: None, perhaps: BTreeSet::new() };

    fn of(atom: Atom) -> Self {
        Self::exactly(BTreeSet::from([atom]))
    }

    /// These, however many they are.
    fn exactly(atoms: BTreeSet<Atom>) -> Self {
        Self { atoms: Some(atoms), perhaps: BTreeSet::new() }
    }

    fn constant(value: u64) -> Self {
        Self::of(Atom::Const(value))
    }

    /// Anything.
    pub(crate) fn any() -> Self {
        Self::ANY
    }

    /// The atoms; `None` for anything.
    pub(crate) fn atoms(&self) -> Option<&BTreeSet<Atom>> {
        self.atoms.as_ref()
    }

    /// The numbers among the atoms, or the watched addresses that it may be.
    pub(crate) fn constants(&self) -> impl Iterator<Item = u64> {
        let known = self.atoms.iter().flatten().filter_map(|atom| match atom {
            Atom::Const(value) => Some(*value),
            _ => None,
        });
        known.chain(self.perhaps.iter().copied())
    }

    /// Either of them; where that is anything, the watched addresses of both stay.
    fn join(&self, other: &Self, watched: &Ranges) -> Self {
        let mut joined = match (&self.atoms, &other.atoms) {
            (Some(a), Some(b)) if a == b => self.clone(),
            (Some(a), Some(b)) => Self::set(a.union(b).copied().collect()),
            _ => Self::ANY,
        };
        if joined.atoms.is_none() && !watched.is_empty() {
            let both = self.constants().chain(other.constants());
            joined.perhaps = both.filter(|value| is_in(watched, *value)).collect();
        }
        joined
    }

    fn set(atoms: BTreeSet<Atom>) -> Self {
        if atoms.len() <= MAX_ATOMS { Self::exactly(atoms) } else { Self::ANY }
    }

    fn map(&self, change: impl Fn(Atom) -> Option<Atom>) -> Self {
        let Some(atoms) = &self.atoms else { return Self::ANY };
        let changed: Option<BTreeSet<Atom>> = atoms.iter().map(|atom| change(*atom)).collect();
        changed.map_or(Self::ANY, Self::set)
    }

    /// The lower half, the upper half zero.
    fn low32(&self) -> Self {
        self.map(|atom| match atom {
            Atom::Const(value) => Some(Atom::Const(value & 0xffff_ffff)),
            // Numbers and flags are 32 bits wide.
            Atom::Param(place) => Some(Atom::Param(place)),
            Atom::Masked(place, mask) => Some(Atom::Masked(place, mask & 0xffff_ffff)),
            Atom::StackAddress(_) => None,
        })
    }

    /// These bits, the others zero.
    fn masked(&self, mask: u64) -> Self {
        self.map(|atom| match atom {
            Atom::Const(value) => Some(Atom::Const(value & mask)),
            Atom::Param(place) => Some(Atom::Masked(place, mask)),
            Atom::Masked(place, other) => Some(Atom::Masked(place, other & mask)),
            Atom::StackAddress(_) => None,
        })
    }

    fn only(&self) -> Option<Atom> {
        let atoms = self.atoms.as_ref()?;
        (atoms.len() == 1).then(|| atoms.first().copied()).flatten()
    }

    fn stack_address(&self) -> Option<i32> {
        match self.only()? {
            Atom::StackAddress(offset) => Some(offset),
            _ => None,
        }
    }

    fn add(&self, amount: i64) -> Self {
        self.map(|atom| match atom {
            Atom::Const(value) => Some(Atom::Const(value.wrapping_add_signed(amount))),
            Atom::StackAddress(offset) => {
                let sum = i64::from(offset).checked_add(amount)?;
                let sum = i32::try_from(sum).ok().filter(|sum| sum.abs() < MAX_FRAME)?;
                Some(Atom::StackAddress(sum))
            }
            Atom::Param(_) | Atom::Masked(..) => None,
        })
    }
}

/// What an instruction compared, for the branches after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tested {
    pub(crate) value: Value,
    /// What the value was compared with.
    pub(crate) constant: u64,
    /// How many bytes of both.
    pub(crate) size: usize,
}

/// What is known at one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    registers: [Value; 16],
    /// Eight bytes each, by their distance from `rsp` at the first instruction.
    stack: BTreeMap<i32, Value>,
    /// The lowest place whose address was given away.
    escaped: i32,
    /// At [`Event::Store`], what is stored.
    stored: Value,
    /// At [`Event::Branch`], what the branch depends on, if that is known.
    tested: Option<Tested>,
}

impl State {
    fn entry() -> Self {
        let registers = std::array::from_fn(|number| match number {
            4 => Value::of(Atom::StackAddress(0)),
            _ => Value::of(Atom::Param(Place::Register(number as u8))),
        });
        Self {
            registers,
            stack: BTreeMap::new(),
            escaped: i32::MAX,
            stored: Value::ANY,
            tested: None,
        }
    }

    /// At the first instruction of a function to which callers pass these addresses.
    pub(crate) fn given(addresses: &BTreeMap<u8, BTreeSet<u64>>) -> Self {
        let mut state = Self::entry();
        for (register, addresses) in addresses {
            // Not cut short: none of them may get lost.
            let known = addresses.iter().map(|address| Atom::Const(*address)).collect();
            state.registers[usize::from(*register)] = Value::exactly(known);
        }
        state
    }

    /// What a register may hold, as far as it is constant.
    pub(crate) fn constants(&self, register: u8) -> Vec<u64> {
        self.registers[usize::from(register)].constants().collect()
    }

    /// Where the frame may hold constants of a kind.
    pub(crate) fn stack_constants(&self, is_wanted: impl Fn(u64) -> bool) -> Vec<i32> {
        let held = self.stack.iter().filter(|(_, value)| value.constants().any(&is_wanted));
        held.map(|(offset, _)| *offset).collect()
    }

    /// The lowest place in the frame whose address was given away.
    pub(crate) fn escaped(&self) -> i32 {
        self.escaped
    }

    /// Where `rsp` points to in the frame, if that is known.
    pub(crate) fn stack_pointer(&self) -> Option<i32> {
        self.registers[4].stack_address()
    }

    fn unknown() -> Self {
        let registers = std::array::from_fn(|_| Value::ANY);
        Self {
            registers,
            stack: BTreeMap::new(),
            escaped: i32::MIN,
            stored: Value::ANY,
            tested: None,
        }
    }

    /// What the called function will find in `place`. `pushed` is 8 at a call, 0 at a jump.
    pub(crate) fn at_callee(&self, place: Place, pushed: i32) -> Value {
        match place {
            Place::Register(number) => self.register(number),
            Place::Stack(offset) => match self.registers[4].stack_address() {
                Some(rsp) => self.load(rsp.saturating_add(offset).saturating_sub(pushed)),
                None => Value::ANY,
            },
            Place::Memory(number, offset) => self.behind(&self.register(number), offset),
            Place::Word(_) | Place::Behind(..) | Place::Thread(_) => Value::of(Atom::Param(place)),
        }
    }

    /// What a branch depends on.
    pub(crate) fn tested(&self) -> Option<&Tested> {
        self.tested.as_ref()
    }

    /// What is found so many bytes from the address that a value is.
    fn behind(&self, address: &Value, offset: i32) -> Value {
        let Some(atoms) = address.atoms() else { return Value::ANY };
        let mut found: Option<Value> = None;
        for atom in atoms {
            let value = match atom {
                Atom::StackAddress(at) => self.load(at.saturating_add(offset)),
                Atom::Param(Place::Register(number)) => {
                    Value::of(Atom::Param(Place::Memory(*number, offset)))
                }
                Atom::Param(Place::Word(at)) => Value::of(Atom::Param(Place::Behind(*at, offset))),
                // Nobody gets past a null pointer.
                Atom::Const(0) => continue,
                _ => return Value::ANY,
            };
            found = Some(found.map_or(value.clone(), |found| found.join(&value, &Ranges::new())));
        }
        found.unwrap_or(Value::ANY)
    }

    /// At [`Event::Store`], what this place means for the word that is written.
    pub(crate) fn stored(&self, place: Place) -> Value {
        match place {
            Place::Word(_) => self.stored.clone(),
            Place::Behind(_, offset) => self.behind(&self.stored, offset),
            _ => Value::ANY,
        }
    }

    /// A general register, by its number.
    pub(crate) fn register(&self, number: u8) -> Value {
        self.registers.get(usize::from(number)).cloned().unwrap_or(Value::ANY)
    }

    fn load(&self, offset: i32) -> Value {
        match self.stack.get(&offset) {
            Some(value) => value.clone(),
            // Above the return address: arguments, as long as nobody can have changed them.
            None if (8..256).contains(&offset) && self.escaped > offset => {
                Value::of(Atom::Param(Place::Stack(offset)))
            }
            None => Value::ANY,
        }
    }

    fn store(&mut self, offset: i32, value: Value) {
        // Words that overlap it are gone.
        let overlapping: Vec<i32> = self
            .stack
            .range(offset.saturating_sub(7)..offset.saturating_add(8))
            .map(|e| *e.0)
            .collect();
        for other in overlapping {
            self.stack.insert(other, Value::ANY);
        }
        if self.stack.len() < 512 {
            self.stack.insert(offset, value);
        }
    }

    fn escape(&mut self, value: &Value) {
        for atom in value.atoms.iter().flatten() {
            if let Atom::StackAddress(offset) = atom {
                self.escaped = self.escaped.min(*offset);
            }
        }
    }

    /// Somebody else may have written where they have an address.
    fn forget_escaped(&mut self) {
        let escaped = self.escaped;
        for (_, value) in self.stack.range_mut(escaped..) {
            *value = Value::ANY;
        }
    }

    /// Joins what comes from elsewhere; whether that changed anything.
    fn join(&mut self, other: &Self, watched: &Ranges) -> bool {
        let mut changed = false;
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            let joined = mine.join(theirs, watched);
            changed |= *mine != joined;
            *mine = joined;
        }
        let offsets: Vec<i32> = self.stack.keys().chain(other.stack.keys()).copied().collect();
        for offset in offsets {
            let joined = self.load(offset).join(&other.load(offset), watched);
            if self.stack.get(&offset) != Some(&joined) {
                changed = true;
                self.stack.insert(offset, joined);
            }
        }
        if other.escaped < self.escaped {
            self.escaped = other.escaped;
            changed = true;
        }
        changed
    }
}

/// What is looked at on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A `syscall` instruction.
    Syscall,
    /// A call of this function.
    Call(u64),
    /// A jump to the first instruction of this function.
    Jump(u64),
    /// A call or jump through the word at this address; bytes pushed.
    Through(u64, i32),
    /// A conditional branch; [`State::tested`] is what it depends on.
    Branch,
    /// A jump inside the function whose targets are not known.
    Lost,
    /// The word at this address is written; [`State::stored`] is what.
    Store(u64),
    /// A call or jump through a register or memory that a register points to; bytes pushed.
    Indirect(i32),
    /// While something is watched: any instruction, before it is interpreted.
    Instruction,
    /// While something is watched: the same without control flow, afterwards.
    Done,
}

/// How many instructions are interpreted for one function before giving up.
const BUDGET: usize = 400_000;

/// Interprets functions of one file.
pub(crate) struct Interpreter<'c, 'i, 'a> {
    code: &'c Code<'i, 'a>,
    /// First instructions of functions.
    entries: &'c HashSet<u64>,
    info: InstructionInfoFactory,
    /// Addresses inside functions that something takes: labels as values.
    labels: &'c [u64],
    /// [`Linkage::thread_slots`](crate::linkage::Linkage::thread_slots).
    threads: &'c BTreeMap<u64, u64>,
    /// Whether functions return, as far as that was asked.
    returns: HashMap<u64, bool>,
    /// Which registers functions may change, a bit each, as far as that was asked.
    changes: HashMap<u64, u16>,
    /// Addresses of which none may get lost where control joins, if any.
    watched: Ranges,
    /// Words whose addresses stand for what they hold.
    standing: BTreeSet<u64>,
}

/// Registers that survive calls: `rbx`, `rsp`, `rbp`, `r12` to `r15`; Go's: `rsp`.
pub(crate) const SURVIVORS: u16 = 1 << 3 | 1 << 4 | 1 << 5 | 0xf000;
/// Those that carry a call's integer arguments: `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9`.
pub(crate) const ARGUMENTS: u16 = 1 << 7 | 1 << 6 | 1 << 2 | 1 << 1 | 1 << 8 | 1 << 9;
const GO_SURVIVORS: u16 = 1 << 4;

/// How deep calls are followed to find out whether a function returns.
const MAX_DEPTH: usize = 12;

impl<'c, 'i, 'a> Interpreter<'c, 'i, 'a> {
    pub(crate) fn new(
        code: &'c Code<'i, 'a>,
        entries: &'c HashSet<u64>,
        labels: &'c [u64],
        threads: &'c BTreeMap<u64, u64>,
    ) -> Self {
        Self {
            code,
            entries,
            info: InstructionInfoFactory::new(),
            labels,
            threads,
            returns: HashMap::new(),
            changes: HashMap::new(),
            watched: Ranges::new(),
            standing: BTreeSet::new(),
        }
    }

    /// Shows every instruction from now on, and minds addresses in these ranges; in none, to end it.
    pub(crate) fn watch(&mut self, ranges: Ranges) {
        self.watched = ranges;
    }

    /// From now on, what is loaded from these words is taken to be their address.
    pub(crate) fn let_stand(&mut self, words: BTreeSet<u64>) {
        self.standing = words;
    }

    /// What is loaded from the word at a known address.
    fn word(&self, address: u64, size: usize) -> Value {
        if size == 8 && self.standing.contains(&address) {
            return Value::constant(address);
        }
        Value::of(Atom::Param(Place::Word(address)))
    }

    /// Labels of the function that `address` is in.
    fn labels(&self, address: u64) -> &'c [u64] {
        let functions = self.code.functions();
        let index = functions.partition_point(|&(start, _)| start <= address);
        let near = functions[..index].iter().rev().take(4);
        let Some(&(start, end)) = near.into_iter().find(|(_, end)| address < *end) else {
            return &[];
        };
        let first = self.labels.partition_point(|label| *label <= start);
        let last = self.labels.partition_point(|label| *label < end);
        self.labels.get(first..last).unwrap_or(&[])
    }

    /// The registers that a call of the function at `start` may change: fewer than the calling
    /// convention says, where compilers know both sides.
    fn changed_by(&mut self, start: u64, depth: usize) -> u16 {
        let all = if self.code.is_go() { !GO_SURVIVORS } else { !SURVIVORS };
        if let Some(known) = self.changes.get(&start) {
            return *known;
        }
        if depth > MAX_DEPTH {
            return all;
        }
        // While it is looked at, and in circles, all.
        self.changes.insert(start, all);
        let changed = self.find_changes(start, depth).map_or(all, |changed| changed & all);
        self.changes.insert(start, changed);
        changed
    }

    fn find_changes(&mut self, start: u64, depth: usize) -> Option<u16> {
        let mut changed = 0;
        let mut todo = vec![start];
        let mut seen = HashSet::new();
        while let Some(mut at) = todo.pop() {
            loop {
                if at != start && self.entries.contains(&at) {
                    changed |= self.changed_by(at, depth + 1);
                    break;
                }
                if !seen.insert(at) {
                    break;
                }
                let instruction = self.code.decode(at).filter(|_| seen.len() < 500)?;
                for used in self.info.info(&instruction).used_registers() {
                    if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
                        && let Some(number) = number_of(used.register())
                    {
                        changed |= 1 << number;
                    }
                }
                let target = (instruction.op_count() > 0
                    && instruction.op0_kind() == OpKind::NearBranch64)
                    .then(|| instruction.near_branch_target());
                match instruction.flow_control() {
                    FlowControl::UnconditionalBranch => {
                        todo.extend(target);
                        break;
                    }
                    FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                        todo.extend(target);
                    }
                    FlowControl::IndirectBranch => {
                        todo.extend(self.code.jump_table(at)?);
                        break;
                    }
                    FlowControl::Call if instruction.code() == Opcode::Syscall => {
                        changed |= 1 | 1 << 1 | 1 << 11;
                    }
                    FlowControl::Call | FlowControl::IndirectCall => {
                        changed |= self.changed_by(target?, depth + 1);
                    }
                    FlowControl::Return | FlowControl::Exception => break,
                    FlowControl::Interrupt if instruction.code() == Opcode::Int3 => break,
                    FlowControl::Next if instruction.code() == Opcode::Hlt => break,
                    FlowControl::Next | FlowControl::Interrupt => {}
                }
                at = instruction.next_ip();
            }
        }
        Some(changed)
    }

    /// Interprets the function at `root` until nothing new is learnt, then shows every event with
    /// its address and what is known there. Returns the addresses of the instructions seen, or
    /// `None` where the function is too complex.
    pub(crate) fn function(
        &mut self,
        root: u64,
        show: impl FnMut(u64, Event, &State),
    ) -> Option<HashSet<u64>> {
        self.run(root, State::entry(), show)
    }

    /// The same with this known at the function's first instruction.
    pub(crate) fn function_from(
        &mut self,
        root: u64,
        state: State,
        show: impl FnMut(u64, Event, &State),
    ) -> Option<HashSet<u64>> {
        self.run(root, state, show)
    }

    /// Whether the function at `start` may return. Where that is not found out soon, it may.
    fn may_return(&mut self, start: u64, depth: usize) -> bool {
        if let Some(known) = self.returns.get(&start) {
            return *known;
        }
        if depth > MAX_DEPTH {
            return true;
        }
        // While it is looked at, and in circles, it may.
        self.returns.insert(start, true);
        let returns = self.finds_return(start, depth);
        self.returns.insert(start, returns);
        returns
    }

    fn finds_return(&mut self, start: u64, depth: usize) -> bool {
        let mut todo = vec![start];
        let mut seen = HashSet::new();
        while let Some(mut at) = todo.pop() {
            loop {
                if at != start && self.entries.contains(&at) {
                    if self.may_return(at, depth + 1) {
                        return true;
                    }
                    break;
                }
                if !seen.insert(at) {
                    break;
                }
                let Some(instruction) = self.code.decode(at).filter(|_| seen.len() < 2000) else {
                    return true;
                };
                let target = (instruction.op_count() > 0
                    && instruction.op0_kind() == OpKind::NearBranch64)
                    .then(|| instruction.near_branch_target());
                match instruction.flow_control() {
                    FlowControl::UnconditionalBranch => {
                        todo.extend(target);
                        break;
                    }
                    FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                        todo.extend(target);
                    }
                    FlowControl::IndirectBranch => match self.code.jump_table(at) {
                        Some(targets) => {
                            todo.extend(targets);
                            break;
                        }
                        None => return true,
                    },
                    FlowControl::Return => return true,
                    FlowControl::Call if instruction.code() == Opcode::Syscall => {}
                    FlowControl::Call | FlowControl::IndirectCall => {
                        if self.code.is_end(instruction.next_ip())
                            || target.is_some_and(|target| !self.may_return(target, depth + 1))
                        {
                            break;
                        }
                    }
                    FlowControl::Exception => break,
                    FlowControl::Interrupt if instruction.code() == Opcode::Int3 => break,
                    FlowControl::Next if instruction.code() == Opcode::Hlt => break,
                    FlowControl::Next | FlowControl::Interrupt => {}
                }
                at = instruction.next_ip();
            }
        }
        false
    }

    /// The same from an address of which nothing is known.
    pub(crate) fn fragment(
        &mut self,
        start: u64,
        show: impl FnMut(u64, Event, &State),
    ) -> Option<HashSet<u64>> {
        self.run(start, State::unknown(), show)
    }

    fn run(
        &mut self,
        root: u64,
        state: State,
        mut show: impl FnMut(u64, Event, &State),
    ) -> Option<HashSet<u64>> {
        let mut leaders: HashMap<u64, State> = HashMap::from([(root, state)]);
        let mut todo = BTreeSet::from([root]);
        let mut budget = BUDGET;
        while let Some(at) = todo.pop_first() {
            let state = leaders[&at].clone();
            let mut joins = Vec::new();
            self.block(root, at, state, &leaders, &mut joins, &mut budget, &mut |_, _, _| {});
            if budget == 0 {
                return None;
            }
            for (target, state) in joins {
                match leaders.get_mut(&target) {
                    Some(known) => {
                        if known.join(&state, &self.watched) {
                            todo.insert(target);
                        }
                    }
                    None => {
                        leaders.insert(target, state);
                        todo.insert(target);
                    }
                }
            }
        }
        let mut seen = HashSet::new();
        let mut starts: Vec<u64> = leaders.keys().copied().collect();
        starts.sort_unstable();
        for at in starts {
            let state = leaders[&at].clone();
            let mut budget = BUDGET;
            seen.extend(self.block(
                root,
                at,
                state,
                &leaders,
                &mut Vec::new(),
                &mut budget,
                &mut show,
            ));
        }
        Some(seen)
    }

    /// Interprets from `at` to where control leaves or joins.
    #[expect(clippy::too_many_arguments)]
    fn block(
        &mut self,
        root: u64,
        mut at: u64,
        mut state: State,
        leaders: &HashMap<u64, State>,
        joins: &mut Vec<(u64, State)>,
        budget: &mut usize,
        show: &mut impl FnMut(u64, Event, &State),
    ) -> Vec<u64> {
        let mut seen = Vec::new();
        // What the instruction before compared: a register, and with what.
        let mut compared: Option<(usize, u64)> = None;
        state.tested = None;
        loop {
            if !seen.is_empty() && at != root && self.entries.contains(&at) {
                show(at, Event::Jump(at), &state);
                return seen;
            }
            if !seen.is_empty() && (self.code.is_target(at) || leaders.contains_key(&at)) {
                joins.push((at, state));
                return seen;
            }
            *budget = budget.saturating_sub(1);
            let Some(instruction) = self.code.decode(at).filter(|_| *budget > 0) else {
                return seen;
            };
            seen.push(at);
            let is_watching = !self.watched.is_empty();
            if is_watching {
                show(at, Event::Instruction, &state);
            }
            let is_memory_slot = instruction.op_count() > 0
                && instruction.op0_kind() == OpKind::Memory
                && (instruction.is_ip_rel_memory_operand()
                    || (instruction.memory_base() == Register::None
                        && instruction.memory_index() == Register::None));
            match instruction.flow_control() {
                FlowControl::UnconditionalBranch => {
                    let target = instruction.near_branch_target();
                    if target != root && self.entries.contains(&target) {
                        show(at, Event::Jump(target), &state);
                    } else {
                        joins.push((target, state));
                    }
                    return seen;
                }
                FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                    if instruction.op0_kind() == OpKind::NearBranch64 {
                        let target = instruction.near_branch_target();
                        show(at, Event::Branch, &state);
                        let mut there = state.clone();
                        match (compared, instruction.mnemonic()) {
                            (Some((register, value)), Mnemonic::Je) => {
                                there.registers[register] = Value::constant(value);
                            }
                            (Some((register, value)), Mnemonic::Jne) => {
                                state.registers[register] = Value::constant(value);
                            }
                            _ => {}
                        }
                        if target != root && self.entries.contains(&target) {
                            show(at, Event::Jump(target), &there);
                        } else {
                            joins.push((target, there));
                        }
                    }
                }
                FlowControl::Call if instruction.code() == Opcode::Syscall => {
                    show(at, Event::Syscall, &state);
                    for number in [0, 1, 11] {
                        state.registers[number] = Value::ANY;
                    }
                    state.forget_escaped();
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    for number in [7, 6, 2, 1, 8, 9, 0] {
                        let value = state.registers[number].clone();
                        state.escape(&value);
                    }
                    if instruction.op0_kind() == OpKind::NearBranch64 {
                        show(at, Event::Call(instruction.near_branch_target()), &state);
                    } else if is_memory_slot {
                        let slot = instruction.memory_displacement64();
                        show(at, Event::Through(slot, 8), &state);
                    } else {
                        show(at, Event::Indirect(8), &state);
                    }
                    let never_returns = instruction.op0_kind() == OpKind::NearBranch64
                        && !self.may_return(instruction.near_branch_target(), 0);
                    if never_returns || self.code.is_end(instruction.next_ip()) {
                        return seen;
                    }
                    let changed = if instruction.op0_kind() == OpKind::NearBranch64 {
                        self.changed_by(instruction.near_branch_target(), 0)
                    } else if self.code.is_go() {
                        !GO_SURVIVORS
                    } else {
                        !SURVIVORS
                    };
                    for number in 0..16 {
                        if changed >> number & 1 != 0 {
                            state.registers[number] = Value::ANY;
                        }
                    }
                    state.forget_escaped();
                }
                FlowControl::IndirectBranch => {
                    if is_memory_slot {
                        let slot = instruction.memory_displacement64();
                        show(at, Event::Through(slot, 0), &state);
                    } else if self.code.jump_table(at).is_none() {
                        show(at, Event::Indirect(0), &state);
                    }
                    match self.code.jump_table(at) {
                        Some(targets) => {
                            joins.extend(targets.iter().map(|target| (*target, state.clone())));
                        }
                        // With the stack as it was on entry, this is a call of another function.
                        None if !is_memory_slot
                            && (state.registers[4].stack_address() != Some(0)
                                || !self.labels(at).is_empty()) =>
                        {
                            let labels = self.labels(at);
                            if labels.is_empty() {
                                show(at, Event::Lost, &state);
                            }
                            joins.extend(labels.iter().map(|label| (*label, state.clone())));
                        }
                        None => {}
                    }
                    return seen;
                }
                FlowControl::Return | FlowControl::Exception => return seen,
                FlowControl::Interrupt if instruction.code() == Opcode::Int3 => return seen,
                FlowControl::Next if instruction.code() == Opcode::Hlt => return seen,
                FlowControl::Next | FlowControl::Interrupt => {
                    if instruction.mnemonic() == Mnemonic::Mov && is_memory_slot {
                        state.stored = self.operand(&instruction, 1, &state);
                        show(at, Event::Store(instruction.memory_displacement64()), &state);
                        state.stored = Value::ANY;
                    } else if is_memory_slot && self.code.is_go() && is_zero_store(&instruction) {
                        state.stored = Value::constant(0);
                        let slot = instruction.memory_displacement64();
                        for half in [slot, slot.wrapping_add(8)] {
                            show(at, Event::Store(half), &state);
                        }
                        state.stored = Value::ANY;
                    }
                    let tested = self.tested(&instruction, &state);
                    self.step(&instruction, &mut state);
                    if let Some(tested) = tested {
                        state.tested = tested;
                    }
                    if is_watching {
                        show(at, Event::Done, &state);
                    }
                }
            }
            if matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall | FlowControl::Interrupt
            ) {
                state.tested = None;
            }
            compared = compared_with(&instruction);
            at = instruction.next_ip();
        }
    }

    /// What a branch behind this instruction depends on, if the instruction changes that.
    fn tested(&self, instruction: &Instruction, state: &State) -> Option<Option<Tested>> {
        if instruction.rflags_modified() == 0 {
            return None;
        }
        let size = operand_size(instruction, 0);
        let of = |value: Value, constant: u64| {
            (value.atoms.is_some() && size > 0).then_some(Tested { value, constant, size })
        };
        let first = || self.operand(instruction, 0, state);
        let second = || match self.operand(instruction, 1, state).only() {
            Some(Atom::Const(value)) => Some(value),
            _ => None,
        };
        Some(match instruction.mnemonic() {
            Mnemonic::Cmp => second().and_then(|constant| of(first(), constant)),
            Mnemonic::Test
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register() =>
            {
                of(first(), 0)
            }
            Mnemonic::Test | Mnemonic::And => second().and_then(|mask| of(first().masked(mask), 0)),
            _ => None,
        })
    }

    fn operand(&self, instruction: &Instruction, index: u32, state: &State) -> Value {
        match instruction.op_kind(index) {
            OpKind::Register => {
                let register = instruction.op_register(index);
                let Some(number) = number_of(register) else { return Value::ANY };
                let value = &state.registers[number];
                match register.size() {
                    8 => value.clone(),
                    4 => value.low32(),
                    _ if is_high(register) => Value::ANY,
                    size => value.masked((1 << (size * 8)) - 1),
                }
            }
            OpKind::Memory => {
                let size = instruction.memory_size().size();
                if let Some(offset) = frame_offset(instruction, state) {
                    let value = state.load(offset);
                    return match size {
                        8 => value,
                        4 => value.low32(),
                        _ => Value::ANY,
                    };
                }
                if let Some(place) = self.thread_variable(instruction, state)
                    && matches!(size, 4 | 8)
                {
                    return Value::of(Atom::Param(place));
                }
                if !matches!(size, 4 | 8)
                    || instruction.memory_index() != Register::None
                    || instruction.segment_prefix() != Register::None
                {
                    return Value::ANY;
                }
                if instruction.is_ip_rel_memory_operand() {
                    return self.word(instruction.ip_rel_memory_address(), size);
                }
                if instruction.memory_base() == Register::None {
                    return self.word(instruction.memory_displacement64(), size);
                }
                let Some(base) = number_of(instruction.memory_base()) else { return Value::ANY };
                match i32::try_from(instruction.memory_displacement64() as i64) {
                    Ok(offset) => match state.registers[base].only() {
                        Some(Atom::Param(_)) => state.behind(&state.registers[base], offset),
                        _ => Value::ANY,
                    },
                    Err(_) => Value::ANY,
                }
            }
            _ => match instruction.try_immediate(index) {
                Ok(value) => {
                    let is_wide = instruction.op0_register().size() == 8
                        || instruction.memory_size().size() == 8;
                    Value::constant(if is_wide { value } else { value & 0xffff_ffff })
                }
                Err(_) => Value::ANY,
            },
        }
    }

    /// The thread's variable that is the memory operand.
    fn thread_variable(&self, instruction: &Instruction, state: &State) -> Option<Place> {
        let is_plain = instruction.memory_segment() == Register::FS
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == 0;
        let base = number_of(instruction.memory_base()).filter(|_| is_plain)?;
        match state.registers[base].only()? {
            Atom::Param(Place::Word(slot)) => self.threads.get(&slot).copied().map(Place::Thread),
            _ => None,
        }
    }

    /// What an instruction without control flow does.
    fn step(&mut self, instruction: &Instruction, state: &mut State) {
        let value = match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => Some(self.operand(instruction, 1, state)),
            Mnemonic::Movsxd | Mnemonic::Movsx => Some(sign_extended(
                &self.operand(instruction, 1, state),
                operand_size(instruction, 1),
                operand_size(instruction, 0),
            )),
            Mnemonic::Cdqe => {
                state.registers[0] = sign_extended(&state.registers[0].low32(), 4, 8);
                return;
            }
            Mnemonic::Lea => Some(if instruction.is_ip_rel_memory_operand() {
                Value::constant(instruction.ip_rel_memory_address())
            } else if instruction.memory_base() == Register::None
                && instruction.memory_index() == Register::None
            {
                Value::constant(instruction.memory_displacement64())
            } else if instruction.memory_index() == Register::None {
                let base = number_of(instruction.memory_base());
                let displacement = instruction.memory_displacement64() as i64;
                base.map_or(Value::ANY, |base| state.registers[base].add(displacement))
            } else {
                Value::ANY
            }),
            Mnemonic::Xor | Mnemonic::Sub | Mnemonic::Pxor
                if instruction.op0_kind() == OpKind::Register
                    && instruction.op1_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register() =>
            {
                Some(Value::constant(0))
            }
            Mnemonic::Sbb
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register() =>
            {
                Some(Value::set([Atom::Const(0), Atom::Const(u64::MAX)].into()))
            }
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::Or | Mnemonic::And | Mnemonic::Xor => {
                Some(self.arithmetic(instruction, state))
            }
            Mnemonic::Inc => Some(self.operand(instruction, 0, state).add(1)),
            Mnemonic::Dec => Some(self.operand(instruction, 0, state).add(-1)),
            mnemonic if is_cmov(mnemonic) => {
                let (old, new) =
                    (self.operand(instruction, 0, state), self.operand(instruction, 1, state));
                Some(old.join(&new, &self.watched))
            }
            mnemonic if is_set(mnemonic) => {
                Some(Value::set([Atom::Const(0), Atom::Const(1)].into()))
            }
            Mnemonic::Push => {
                let value = self.operand(instruction, 0, state);
                state.registers[4] = state.registers[4].add(-8);
                match state.registers[4].stack_address() {
                    Some(rsp) => state.store(rsp, value),
                    None => state.escape(&value),
                }
                return;
            }
            Mnemonic::Pop => {
                let value = match state.registers[4].stack_address() {
                    Some(rsp) => state.load(rsp),
                    None => Value::ANY,
                };
                state.registers[4] = state.registers[4].add(8);
                self.write(instruction, state, value);
                return;
            }
            Mnemonic::Leave => {
                let frame = state.registers[5].clone();
                state.registers[5] =
                    frame.stack_address().map_or(Value::ANY, |offset| state.load(offset));
                state.registers[4] = frame.add(8);
                return;
            }
            Mnemonic::Xchg => {
                let (a, b) =
                    (self.operand(instruction, 0, state), self.operand(instruction, 1, state));
                let second = number_of(instruction.op1_register());
                self.write(instruction, state, b);
                if instruction.op1_kind() == OpKind::Register
                    && let Some(second) = second
                {
                    let is_whole = instruction.op1_register().size() >= 4;
                    state.registers[second] = if is_whole { a } else { Value::ANY };
                }
                return;
            }
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Nop | Mnemonic::Endbr64 => return,
            Mnemonic::Movups if self.code.is_go() && is_zero_store(instruction) => {
                match frame_offset(instruction, state) {
                    Some(offset) => {
                        for half in [offset, offset.saturating_add(8)] {
                            state.store(half, Value::constant(0));
                        }
                    }
                    None => state.forget_escaped(),
                }
                return;
            }
            _ => None,
        };
        match value {
            Some(value) => self.write(instruction, state, value),
            None => self.forget_written(instruction, state),
        }
    }

    fn arithmetic(&self, instruction: &Instruction, state: &State) -> Value {
        let (a, b) = (self.operand(instruction, 0, state), self.operand(instruction, 1, state));
        let mask = match operand_size(instruction, 0) {
            8 => u64::MAX,
            4 => 0xffff_ffff,
            _ => return Value::ANY,
        };
        let mnemonic = instruction.mnemonic();
        match (mnemonic, a.only(), b.only()) {
            (Mnemonic::Add, Some(Atom::StackAddress(_)), Some(Atom::Const(b))) => {
                return a.add(b as i64);
            }
            (Mnemonic::Sub, Some(Atom::StackAddress(_)), Some(Atom::Const(b))) => {
                return a.add((b as i64).wrapping_neg());
            }
            // Aligning the stack: a frame of its own, out of the way of what is known.
            (Mnemonic::And, Some(Atom::StackAddress(offset)), Some(Atom::Const(b)))
                if (b as i64) < 0 && (b as i64) >= -4096 =>
            {
                return Value::of(Atom::StackAddress(offset.saturating_sub(8192)));
            }
            // All bits set, whatever was there.
            (Mnemonic::Or, _, Some(Atom::Const(u64::MAX))) => return b,
            (Mnemonic::Or, _, Some(Atom::Const(0xffff_ffff))) if mask == 0xffff_ffff => return b,
            (Mnemonic::And, _, Some(Atom::Const(0))) => return b,
            (Mnemonic::And, _, Some(Atom::Const(b))) if a.atoms.is_some() => {
                return a.masked(b & mask);
            }
            // Flags that are added in the kernel's part of a number: kept as they are.
            _ => {}
        }
        let (Some(left), Some(right)) = (a.atoms(), b.atoms()) else { return Value::ANY };
        let mut atoms = BTreeSet::new();
        for a in left {
            for b in right {
                let (Atom::Const(a), Atom::Const(b)) = (a, b) else { return Value::ANY };
                let result = match mnemonic {
                    Mnemonic::Add => a.wrapping_add(*b),
                    Mnemonic::Sub => a.wrapping_sub(*b),
                    Mnemonic::Or => a | b,
                    Mnemonic::And => a & b,
                    _ => a ^ b,
                };
                atoms.insert(Atom::Const(result & mask));
                if atoms.len() > MAX_ATOMS {
                    return Value::ANY;
                }
            }
        }
        Value::set(atoms)
    }

    /// Writes the first operand.
    fn write(&mut self, instruction: &Instruction, state: &mut State, value: Value) {
        if instruction.op0_kind() == OpKind::Memory {
            let size = instruction.memory_size().size();
            match frame_offset(instruction, state) {
                Some(offset) if size == 8 => state.store(offset, value),
                Some(offset) if size == 4 => state.store(offset, value.low32()),
                Some(offset) => state.store(offset, Value::ANY),
                None => {
                    state.escape(&value);
                    state.forget_escaped();
                }
            }
            return;
        }
        let register = instruction.op0_register();
        let Some(number) = number_of(register) else { return };
        state.registers[number] = match register.size() {
            8 => value,
            4 => value.low32(),
            // The rest of the register stays: the numbers that matter are not made so, but for
            // a zero extension of what was zero.
            size => match (state.registers[number].only(), value.only()) {
                (Some(Atom::Const(old)), Some(Atom::Const(new))) if !is_high(register) => {
                    let mask = (1 << (size * 8)) - 1;
                    Value::constant(old & !mask | new & mask)
                }
                _ => Value::ANY,
            },
        };
    }

    fn forget_written(&mut self, instruction: &Instruction, state: &mut State) {
        let info = self.info.info(instruction);
        let mut registers = [false; 16];
        for used in info.used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
                && let Some(number) = number_of(used.register())
            {
                registers[number] = true;
            }
        }
        let writes_memory = info.used_memory().iter().any(|used| {
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
        });
        if writes_memory {
            match frame_offset(instruction, state) {
                Some(offset) => {
                    let len = instruction.memory_size().size().max(8) as i32;
                    for at in (0..len).step_by(8) {
                        state.store(offset.saturating_add(at), Value::ANY);
                    }
                }
                None => state.forget_escaped(),
            }
            if instruction.is_string_instruction() {
                // Through rdi, as far as rcx says.
                let value = state.registers[7].clone();
                state.escape(&value);
                state.forget_escaped();
            }
        }
        for (number, written) in registers.into_iter().enumerate() {
            if written {
                state.registers[number] = Value::ANY;
            }
        }
    }
}

/// Whether an instruction of Go's compiler stores 16 zero bytes: `X15` is always zero there
/// (Go internal ABI specification, "amd64 architecture").
pub(crate) fn is_zero_store(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Movups
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_register() == Register::XMM15
}

/// Where in the frame the memory operand is, if it is there.
pub(crate) fn frame_offset(instruction: &Instruction, state: &State) -> Option<i32> {
    if instruction.memory_index() != Register::None
        || instruction.memory_segment() == Register::FS
        || instruction.memory_segment() == Register::GS
    {
        return None;
    }
    let base = number_of(instruction.memory_base())?;
    let displacement = instruction.memory_displacement64() as i64;
    state.registers[base].add(displacement).stack_address()
}

/// A whole register and the number that the instruction compares it with.
fn compared_with(instruction: &Instruction) -> Option<(usize, u64)> {
    if instruction.op0_kind() != OpKind::Register || instruction.op_count() < 2 {
        return None;
    }
    let register = instruction.op0_register();
    let number = number_of(register).filter(|_| register.size() == 8)?;
    match instruction.mnemonic() {
        Mnemonic::Test
            if instruction.op1_kind() == OpKind::Register
                && instruction.op1_register() == register =>
        {
            Some((number, 0))
        }
        Mnemonic::Cmp => instruction.try_immediate(1).ok().map(|value| (number, value)),
        _ => None,
    }
}

fn operand_size(instruction: &Instruction, index: u32) -> usize {
    match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index).size(),
        OpKind::Memory => instruction.memory_size().size(),
        _ => 0,
    }
}

fn sign_extended(value: &Value, from: usize, to: usize) -> Value {
    value.map(|atom| match atom {
        Atom::Const(value) => {
            let shift = 64_u32.checked_sub(from as u32 * 8)?;
            let value = ((value << shift) as i64 >> shift) as u64;
            Some(Atom::Const(if to == 4 { value & 0xffff_ffff } else { value }))
        }
        Atom::Param(place) if from >= 4 => Some(Atom::Param(place)),
        _ => None,
    })
}

/// The number of the general register that this one is part of.
pub(crate) fn number_of(register: Register) -> Option<usize> {
    let full = register.full_register();
    (register.is_gpr()).then(|| full as usize - Register::RAX as usize)
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

pub(crate) fn is_cmov(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{
        Cmova, Cmovae, Cmovb, Cmovbe, Cmove, Cmovg, Cmovge, Cmovl, Cmovle, Cmovne, Cmovno, Cmovnp,
        Cmovns, Cmovo, Cmovp, Cmovs,
    };
    matches!(
        mnemonic,
        Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
    )
}

fn is_set(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{
        Seta, Setae, Setb, Setbe, Sete, Setg, Setge, Setl, Setle, Setne, Setno, Setnp, Setns, Seto,
        Setp, Sets,
    };
    matches!(
        mnemonic,
        Seta | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
    )
}
