//! Wrappers whose address lies in data: who calls them through it.
//!
//! A library may call `syscall(3)` through a table that holds its address (libcap does). All code that
//! knows where the table is gets interpreted, with the functions that it passes the table's address
//! to. Calls through the table's words are calls of the wrapper. Wherever an address of the table or
//! what is in its words gets out of sight (stored, passed to another file, computed with), that place is
//! a *leak*: if it is reached, anyone may call the wrapper.
//!
//! The same is done for code that loads the address of another file's wrapper into a register, to call it there
//! (compilers do so before a loop): the address of the word that it is loaded from stands for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use serde::{Deserialize, Serialize};

use super::{Callee, Finder};
use crate::{
    linkage::Target,
    summary::Builder,
    value::{Event, State, Value, is_cmov, is_in, number_of},
};

/// What is known about a wrapper whose address lies in data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// The wrapper.
    pub(crate) node: u32,
    pub(crate) leaks: Vec<Leak>,
}

/// Where the address gets out of sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Leak {
    pub(crate) node: u32,
    pub(crate) address: u64,
    /// It does so only if this import reads this register.
    pub(crate) passed_to: Option<(u32, u8)>,
}

/// How many functions are interpreted for one wrapper, and for all of a file.
const MAX_WALKS: usize = 400;
const MAX_ALL_WALKS: usize = 1600;

/// How many instructions that know where a table is are looked at.
const MAX_KNOWN: usize = 256;

/// How many wrappers of a file are followed so, and through how many words each.
const MAX_TABLES: usize = 64;

/// How far around a word that holds the wrapper's address an address counts as one of the same
/// table, at least. Objects that are known to be larger count as a whole.
const NEAR: u64 = 512;

/// Registers that a call hands on: all but those that survive calls.
const HANDED_ON: [u8; 9] = [0, 1, 2, 6, 7, 8, 9, 10, 11];

/// Those that carry arguments: what other files and calls through pointers can rely on.
const ARGUMENTS: [u8; 6] = [7, 6, 2, 1, 8, 9];

/// By register, addresses in tables that a function is given.
type Given = BTreeMap<u8, BTreeSet<u64>>;

/// One wrapper's search.
struct Walk<'b, 'c, 'i, 'a> {
    wrapper: Callee,
    /// What is followed is the wrapper's own address in registers; where it is loaded from words, their addresses
    /// stand for it.
    is_in_registers: bool,
    builder: &'b Builder<'c, 'i, 'a>,
    stubs: Rc<HashMap<u64, Callee>>,
    info: InstructionInfoFactory,
    words: BTreeSet<u64>,
    windows: Vec<(u64, u64)>,
    /// Calls of the wrapper through its words.
    calls: BTreeSet<u64>,
    leaks: BTreeSet<Leak>,
    passed: Vec<(u64, Given)>,
    visited: HashSet<u64>,
    /// Of the instruction that is being interpreted: places in the frame that hold such an address,
    /// whether it writes to the frame, and the register whose new value has to be known.
    held: Vec<i32>,
    writes_frame: bool,
    computes: Option<u8>,
    /// Stores to the words while it is interpreted, and whether those who are called through them
    /// may find the table's address in a register.
    stores: BTreeSet<u64>,
    is_passed: bool,
    /// What `rdx` held at the function's first instruction.
    given: Value,
}

impl Finder<'_, '_, '_, '_> {
    /// Finds the calls of a wrapper through words in data; `None` where no word holds its address.
    pub(super) fn follow_tables(&mut self, wrapper: u32) -> Option<Table> {
        let builder = self.builder;
        let start = builder.starts[wrapper as usize];
        let words: BTreeSet<u64> = self.holders.get(&start)?.iter().copied().collect();
        let followed = self.tables.values().flatten().count();
        if words.len() > MAX_TABLES || followed >= MAX_TABLES {
            return None;
        }
        let mut walk = Walk::new(self.builder, &self.stubs, Callee::Node(wrapper), words);
        walk.windows = walk.words.iter().map(|word| builder.around(*word, NEAR)).collect();
        walk.leaks_of_data();
        let is_called = self.called.contains(&Callee::Node(wrapper));
        for &(at, word) in &builder.loads {
            if walk.words.contains(&word) && !is_called {
                walk.leak(at);
            }
        }
        if builder.linkage.initialisers.contains(&start) {
            walk.leak_everywhere();
        }
        let known = builder.data_refs.iter().filter(|(_, to)| walk.is_near(*to));
        let known: Vec<u64> = known.map(|(at, _)| *at).collect();
        if known.len() > MAX_KNOWN {
            return None;
        }
        self.follow(&mut walk, &known);
        if walk.is_passed {
            // What is stored there gets the table's address when it is called.
            let stores = builder.stores.iter().filter(|(_, word)| walk.words.contains(word));
            let stores: Vec<u64> = stores.map(|(at, _)| *at).chain(walk.stores.clone()).collect();
            for at in stores {
                walk.leak(at);
            }
            if walk.words.iter().any(|word| builder.odd_writes.contains(word)) {
                walk.leak_everywhere();
            }
        }
        let Walk { calls, leaks, .. } = walk;
        self.note_calls(Callee::Node(wrapper), calls);
        Some(Table { node: wrapper, leaks: leaks.into_iter().collect() })
    }

    /// Finds the calls of an import through registers.
    pub(super) fn follow_import(&mut self, import: u32) {
        let builder = self.builder;
        let callee = Callee::Import(import);
        let is_its = |slot: &u64| super::callee_of_slot(builder, *slot) == Some(callee);
        let loads = builder.import_loads.iter().filter(|(_, slot)| is_its(slot));
        let (known, words): (Vec<u64>, _) = loads.copied().unzip();
        self.follow_registers(callee, &known, words);
    }

    /// Finds the calls of a function of this file through registers.
    pub(super) fn follow_function(&mut self, node: u32) {
        let builder = self.builder;
        let start = builder.starts[node as usize];
        if builder.linkage.resolvers.contains(&start) {
            return;
        }
        let holders = self.holders.get(&start).map_or(&[][..], Vec::as_slice);
        let refs = builder.code_refs.iter().filter(|(_, to)| *to == start);
        let loads = builder.loads.iter().filter(|(_, word)| holders.contains(word));
        let (known, words): (Vec<u64>, _) = refs.chain(loads).copied().unzip();
        self.follow_registers(Callee::Node(node), &known, words);
    }

    /// Finds the calls of what code loads from these words, or of the function at this address.
    fn follow_registers(&mut self, callee: Callee, known: &[u64], words: BTreeSet<u64>) {
        if known.is_empty() || known.len() > MAX_KNOWN {
            return;
        }
        let mut walk = Walk::new(self.builder, &self.stubs, callee, words.clone());
        walk.is_in_registers = true;
        walk.windows = words.iter().map(|word| (*word, word.saturating_add(1))).collect();
        if matches!(callee, Callee::Import(_)) {
            walk.leaks_of_data();
        }
        self.interpreter.let_stand(words);
        self.follow(&mut walk, known);
        self.interpreter.let_stand(BTreeSet::new());
        let Walk { calls, leaks, .. } = walk;
        self.note_calls(callee, calls);
        if leaks.is_empty() {
            self.called.insert(callee);
        }
    }

    /// Interprets the functions that `known` instructions are in, and those that they pass what is followed to.
    fn follow(&mut self, walk: &mut Walk<'_, '_, '_, '_>, known: &[u64]) {
        let builder = self.builder;
        let mut roots = BTreeSet::new();
        for at in known {
            if let Some(node) = builder.node_of(*at) {
                roots.extend(self.roots(node));
            }
        }
        let mut todo: Vec<(u64, Given)> =
            roots.iter().map(|root| (builder.starts[*root as usize], Given::new())).collect();
        let mut given: HashMap<u64, Given> = HashMap::new();
        let mut walks = 0;
        while let Some((function, more)) = todo.pop() {
            let is_new = !given.contains_key(&function);
            let all = given.entry(function).or_default();
            let before = all.values().map(BTreeSet::len).sum::<usize>();
            for (register, addresses) in more {
                all.entry(register).or_default().extend(addresses);
            }
            if !is_new && all.values().map(BTreeSet::len).sum::<usize>() == before {
                continue;
            }
            walks += 1;
            self.walks += 1;
            if walks > MAX_WALKS || self.walks > MAX_ALL_WALKS {
                walk.leak_everywhere();
                break;
            }
            let state = State::given(all);
            walk.given = state.register(2);
            self.interpreter.watch(walk.windows.clone());
            let done = self.interpreter.function_from(function, state, |at, event, state| {
                walk.event(at, event, state);
            });
            self.interpreter.watch(Vec::new());
            if done.is_none() {
                walk.leak(function);
            }
            todo.append(&mut walk.passed);
        }
        for at in known {
            if !walk.visited.contains(at) {
                walk.leak(*at);
            }
        }
    }

    fn note_calls(&mut self, callee: Callee, calls: BTreeSet<u64>) {
        for at in calls {
            self.indirect.entry(at).or_default().insert(callee);
            if let Some(node) = self.builder.node_of(at) {
                let callers = self.callers.entry(callee).or_default();
                if !callers.contains(&node) {
                    callers.push(node);
                }
            }
        }
    }
}

impl<'b, 'c, 'i, 'a> Walk<'b, 'c, 'i, 'a> {
    fn new(
        builder: &'b Builder<'c, 'i, 'a>,
        stubs: &Rc<HashMap<u64, Callee>>,
        wrapper: Callee,
        words: BTreeSet<u64>,
    ) -> Self {
        Self {
            wrapper,
            is_in_registers: false,
            builder,
            stubs: Rc::clone(stubs),
            info: InstructionInfoFactory::new(),
            windows: Vec::new(),
            words,
            calls: BTreeSet::new(),
            leaks: BTreeSet::new(),
            passed: Vec::new(),
            visited: HashSet::new(),
            held: Vec::new(),
            writes_frame: false,
            computes: None,
            stores: BTreeSet::new(),
            is_passed: false,
            given: Value::any(),
        }
    }

    fn is_near(&self, address: u64) -> bool {
        is_in(&self.windows, address)
    }

    /// The addresses near the words that a register may hold.
    fn near(&self, state: &State, register: u8) -> BTreeSet<u64> {
        let constants = state.constants(register);
        constants.into_iter().filter(|address| self.is_near(*address)).collect()
    }

    fn leak(&mut self, address: u64) {
        self.leak_if(address, None);
    }

    fn leak_if(&mut self, address: u64, passed_to: Option<(u32, u8)>) {
        if let Some(node) = self.builder.node_of(address) {
            self.leaks.insert(Leak { node, address, passed_to });
        }
    }

    /// As soon as the table is reached.
    fn leak_everywhere(&mut self) {
        for word in self.words.clone() {
            if let Some(node) = self.builder.chunk_of(word) {
                self.leaks.insert(Leak { node, address: word, passed_to: None });
            }
        }
    }

    /// Data that leads to the table, and others that find it by name.
    fn leaks_of_data(&mut self) {
        let builder = self.builder;
        for (at, target) in &builder.linkage.slots {
            // A pointer to itself stands for the file (__dso_handle), or for an empty list.
            let is_own = |address: u64| {
                let word = |word: &u64| builder.chunk_of(*word) == builder.chunk_of(*at);
                address == *at && !self.words.iter().any(word)
            };
            if let Target::Internal(address) = target
                && self.is_near(*address)
                && !is_own(*address)
                && let Some(node) = builder.chunk_of(*at)
            {
                self.leaks.insert(Leak { node, address: *at, passed_to: None });
            }
        }
        let is_exported = builder.linkage.exports.iter().any(|export| {
            let end = export.address.saturating_add(export.size.max(8));
            !export.is_code && self.words.range(export.address..end).next().is_some()
        });
        if is_exported {
            self.leak_everywhere();
        }
    }

    fn event(&mut self, at: u64, event: Event, state: &State) {
        match event {
            Event::Branch => {}
            Event::Instruction => self.before(at, state),
            Event::Done => self.after(at, state),
            Event::Call(target) => {
                self.check_stack(at, state);
                let callee = self.stubs.get(&target).copied();
                self.hand_on(at, callee.ok_or(target), &HANDED_ON, state);
            }
            Event::Jump(target) => {
                let all: Vec<u8> = (0..16).filter(|register| *register != 4).collect();
                if !self.held.is_empty() {
                    self.leak(at);
                }
                let callee = self.stubs.get(&target).copied();
                self.hand_on(at, callee.ok_or(target), &all, state);
            }
            Event::Through(slot, _) => {
                self.check_stack(at, state);
                match super::callee_of_slot(self.builder, slot) {
                    Some(callee) => self.hand_on(at, Ok(callee), &HANDED_ON, state),
                    None => self.leak_arguments(at, state),
                }
            }
            Event::Indirect(_) => {
                self.check_stack(at, state);
                if self.calls.contains(&at) {
                    self.is_passed |= self.has_arguments(state);
                    // The register that is called through is no argument: nobody passes itself to a wrapper.
                    let target = self.builder.code.decode(at).filter(|_| self.is_in_registers);
                    let target = target.and_then(|call| number_of(call.op0_register()));
                    let mut registers = HANDED_ON.to_vec();
                    registers.retain(|register| Some(usize::from(*register)) != target);
                    self.hand_on(at, Ok(self.wrapper), &registers, state);
                } else {
                    self.leak_arguments(at, state);
                }
            }
            Event::Lost => self.leak(at),
            // rt_sigaction's structure with a handler, perhaps; the kernel calls nothing else.
            Event::Syscall if !self.near(state, 6).is_empty() => self.leak(at),
            Event::Syscall => {}
            Event::Store(_) => {}
        }
    }

    fn has_arguments(&self, state: &State) -> bool {
        ARGUMENTS.iter().any(|register| !self.near(state, *register).is_empty())
    }

    fn leak_arguments(&mut self, at: u64, state: &State) {
        if self.has_arguments(state) {
            self.leak(at);
        }
    }

    /// What the frame holds at a call: given away, or passed.
    fn check_stack(&mut self, at: u64, state: &State) {
        let (escaped, top) = (state.escaped(), state.stack_pointer());
        let is_passed = |offset: &i32| {
            *offset >= escaped
                || top.is_none_or(|top| (top..top.saturating_add(48)).contains(offset))
        };
        if self.held.iter().any(is_passed) {
            self.leak(at);
        }
    }

    fn hand_on(&mut self, at: u64, callee: Result<Callee, u64>, registers: &[u8], state: &State) {
        let mut given = Given::new();
        for &register in registers {
            let near = self.near(state, register);
            if !near.is_empty() {
                given.insert(register, near);
            }
        }
        if given.is_empty() {
            return;
        }
        if given.contains_key(&2) && self.reads_result(at) {
            self.leak(at);
        }
        match callee {
            Ok(Callee::Import(import)) => {
                for register in given.into_keys().filter(|r| ARGUMENTS.contains(r)) {
                    self.leak_if(at, Some((import, register)));
                }
            }
            Ok(Callee::Node(node)) => {
                self.passed.push((self.builder.starts[node as usize], given));
            }
            Ok(Callee::Word(_)) => self.leak(at),
            Err(target) if self.builder.code.is_text(target) => self.passed.push((target, given)),
            Err(_) => self.leak(at),
        }
    }

    /// Whether the code after a call reads `rdx` as a result.
    fn reads_result(&mut self, call: u64) -> bool {
        let code = self.builder.code;
        let mut next = code.decode(call).map(|call| call.next_ip());
        for _ in 0..16 {
            let Some(instruction) = next.and_then(|at| code.decode(at)) else { return false };
            let mut is_written = false;
            for used in self.info.info(&instruction).used_registers() {
                if number_of(used.register()) == Some(2) {
                    if !matches!(used.access(), OpAccess::Write) {
                        return true;
                    }
                    is_written = true;
                }
            }
            if is_written || instruction.flow_control() != FlowControl::Next {
                return false;
            }
            next = Some(instruction.next_ip());
        }
        false
    }

    /// Looks at an instruction before it is interpreted.
    fn before(&mut self, at: u64, state: &State) {
        self.visited.insert(at);
        self.held = state.stack_constants(|address| self.is_near(address));
        self.writes_frame = false;
        self.computes = None;
        let Some(instruction) = self.builder.code.decode(at) else { return };
        if instruction.mnemonic() == Mnemonic::Nop {
            return;
        }
        if !self.is_harmless(&instruction, state) {
            self.leak(at);
        }
    }

    fn is_harmless(&mut self, instruction: &Instruction, state: &State) -> bool {
        let mnemonic = instruction.mnemonic();
        let is_flow = instruction.flow_control() != FlowControl::Next;
        let is_looked_at = matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test);
        let memory =
            (0..instruction.op_count()).find(|n| instruction.op_kind(*n) == OpKind::Memory);
        let is_store = mnemonic == Mnemonic::Mov && memory == Some(0);
        let frame = crate::value::frame_offset(instruction, state).filter(|_| memory.is_some());
        self.writes_frame = mnemonic == Mnemonic::Push || memory == Some(0) && frame.is_some();
        let base = number_of(instruction.memory_base()).map(|number| number as u8);
        if self.is_in_registers {
            if is_flow
                && instruction.op0_kind() == OpKind::Register
                && let Some(register) = number_of(instruction.op0_register())
                && !self.near(state, register as u8).is_empty()
            {
                self.calls.insert(instruction.ip());
                return true;
            }
            if memory.is_some() && !self.is_plain_load(instruction, state) {
                return false;
            }
            let is_immediate = |n| {
                let value = instruction.try_immediate(n).unwrap_or(0);
                self.is_near(value) || self.is_near(value & 0xffff_ffff)
            };
            if !is_flow && (0..instruction.op_count()).any(is_immediate) {
                let is_move = mnemonic == Mnemonic::Mov
                    && instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register().size() >= 4;
                return is_move || is_looked_at;
            }
        }
        if memory.is_some() && !instruction.is_ip_rel_memory_operand() {
            let displacement = instruction.memory_displacement64();
            let has_register = instruction.memory_base() != Register::None
                || instruction.memory_index() != Register::None;
            if has_register && self.is_near(displacement) {
                return false;
            }
            if let Some(index) = number_of(instruction.memory_index())
                && (!self.near(state, index as u8).is_empty()
                    || base.is_some_and(|base| !self.near(state, base).is_empty()))
            {
                return false;
            }
            let near = base.map(|base| self.near(state, base)).unwrap_or_default();
            for address in near {
                let address = address.wrapping_add(displacement);
                if instruction.flow_control() == FlowControl::IndirectCall
                    || instruction.flow_control() == FlowControl::IndirectBranch
                {
                    if self.words.contains(&address) {
                        self.calls.insert(instruction.ip());
                    }
                } else if mnemonic == Mnemonic::Lea {
                    self.computes = number_of(instruction.op0_register()).map(|n| n as u8);
                } else if !is_looked_at {
                    let end = address.saturating_add(instruction.memory_size().size() as u64);
                    let is_word = self.words.range(address.saturating_sub(7)..end).next().is_some();
                    if is_word && !is_store {
                        return false;
                    } else if is_word {
                        self.stores.insert(instruction.ip());
                    }
                }
            }
        }
        if let Some(offset) = frame.filter(|_| !is_store && mnemonic != Mnemonic::Lea) {
            let end = offset.saturating_add(instruction.memory_size().size() as i32);
            let is_read =
                self.held.iter().any(|held| held.saturating_add(7) >= offset && *held < end);
            let is_plain = mnemonic == Mnemonic::Mov
                && self.held.contains(&offset)
                && instruction.op0_register().size() == 8;
            if is_read && !is_plain && !is_looked_at {
                return false;
            }
        }
        if instruction.flow_control() == FlowControl::Return {
            // What was in rdx from the start is a result only if the caller reads it.
            return self.near(state, 0).is_empty()
                && (self.near(state, 2).is_empty() || state.register(2) == self.given);
        }
        if is_flow && memory.is_some() {
            return true;
        }
        let read: Vec<u8> = self
            .info
            .info(instruction)
            .used_registers()
            .iter()
            .filter(|used| !matches!(used.access(), OpAccess::Write | OpAccess::CondWrite))
            .filter_map(|used| number_of(used.register()).map(|number| number as u8))
            .collect();
        for register in read {
            if self.near(state, register).is_empty() {
                continue;
            }
            let is_operand = (0..instruction.op_count()).any(|n| {
                instruction.op_kind(n) == OpKind::Register
                    && number_of(instruction.op_register(n)) == Some(usize::from(register))
            });
            let is_base = base == Some(register) && memory.is_some();
            if !is_operand && is_base {
                continue;
            }
            let escaped = state.escaped();
            let is_fine = is_operand
                && match mnemonic {
                    Mnemonic::Mov if is_store => frame.is_some_and(|offset| offset < escaped),
                    Mnemonic::Mov => instruction.op0_register().size() == 8,
                    Mnemonic::Push => state.stack_pointer().is_some_and(|top| top - 8 < escaped),
                    Mnemonic::Cmp | Mnemonic::Test => true,
                    // The same register twice: nothing of it stays.
                    Mnemonic::Xor if instruction.op0_register() == instruction.op1_register() => {
                        true
                    }
                    Mnemonic::Add | Mnemonic::Sub => {
                        self.computes = number_of(instruction.op0_register()).map(|n| n as u8);
                        memory.is_none()
                    }
                    mnemonic if is_cmov(mnemonic) => {
                        self.computes = number_of(instruction.op0_register()).map(|n| n as u8);
                        memory.is_none()
                    }
                    _ => false,
                };
            if !is_fine {
                return false;
            }
        }
        true
    }

    /// Whether an instruction with a memory operand does no more to an import's address than to load it.
    fn is_plain_load(&self, instruction: &Instruction, state: &State) -> bool {
        let registers = [instruction.memory_base(), instruction.memory_index()];
        if registers.iter().filter_map(|register| number_of(*register)).next().is_some() {
            let used = registers.iter().filter_map(|register| number_of(*register));
            let is_followed = |register: usize| !self.near(state, register as u8).is_empty();
            return !{ used }.any(is_followed);
        }
        let slot = instruction.memory_displacement64();
        let end = slot.saturating_add(instruction.memory_size().size().max(1) as u64);
        let touches = self.words.range(slot.saturating_sub(7)..end).next().is_some();
        !touches
            || instruction.flow_control() != FlowControl::Next
            || matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test)
            || matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea)
                && (instruction.mnemonic() == Mnemonic::Lea) == self.builder.code.is_text(slot)
                && self.words.contains(&slot)
                && instruction.op0_kind() == OpKind::Register
                && instruction.op0_register().size() == 8
    }

    /// Looks at what an instruction without control flow has done.
    fn after(&mut self, at: u64, state: &State) {
        let is_known =
            self.computes.is_none_or(|register| state.register(register).atoms().is_some());
        let held = state.stack_constants(|address| self.is_near(address));
        let is_kept = self.writes_frame || self.held.iter().all(|offset| held.contains(offset));
        if !is_known || !is_kept {
            self.leak(at);
        }
    }
}
