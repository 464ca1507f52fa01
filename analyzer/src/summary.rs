//! What one file contributes, whatever program it is part of: a graph of its functions and data.
//!
//! A *node* is a stretch of code from one function's first instruction to the next one's, or a
//! stretch of data that holds addresses. Links say what a node leads to once it is executed or its
//! address is known. All code of a node counts as reached when any of it is, so a jump into the
//! middle of a function, or one whose targets are not known, needs no care.
//!
//! Summaries depend on nothing but the file, and are kept by its content ([`crate::cache`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use hx_rewriter::plan::{
    PlanError,
    code::{Code, recover},
};
use iced_x86::{
    Code as Opcode, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};
use serde::{Deserialize, Serialize};

use crate::{
    linkage::{Import, Linkage, Target},
    numbers::{self, Callee, Numbers, Site, Table, Use},
    parts::Guard,
    value::{ARGUMENTS, SURVIVORS, is_zero_store, number_of},
};

/// Changes whenever summaries do.
pub(crate) const VERSION: u32 = 20;

/// What a node leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Link {
    /// Calls this node.
    Call(u32),
    /// Jumps or falls into this node.
    Jump(u32),
    /// Takes the address of the function there: whoever has it may call it.
    Taken(u32),
    /// Takes the address of data.
    Data(u32),
    /// Calls what this import is bound to.
    CallImport(u32),
    /// Takes the address of what this import is bound to.
    TakeImport(u32),
    /// Holds a copy of what this import is in another file.
    CopyImport(u32),
    /// Goes on to this part if the guard ([`Summary::guards`]) says so.
    Guarded(u32, u32),
    /// Takes the address of a function that is found by this name ([`Summary::strings`]): NSS's.
    TakenByName(u32, u32),
    /// Gives the address of a function to glibc's `__tunable_get_val`, which calls it if somebody set the
    /// tunable.
    Tunable(u32),
}

impl Link {
    /// The node of the same file that it leads to.
    pub(crate) fn node(self) -> Option<u32> {
        match self {
            Self::Call(to)
            | Self::Jump(to)
            | Self::Taken(to)
            | Self::Data(to)
            | Self::Guarded(to, _)
            | Self::TakenByName(to, _)
            | Self::Tunable(to) => Some(to),
            Self::CallImport(_) | Self::TakeImport(_) | Self::CopyImport(_) => None,
        }
    }
}

/// A function, or data with addresses in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) address: u64,
    pub(crate) links: Vec<Link>,
    /// Strings that may name libraries or symbols: indices of [`Summary::strings`].
    pub(crate) strings: Vec<u32>,
}

/// A defined symbol.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) version: String,
    /// `None` for data without addresses in it.
    pub(crate) node: Option<u32>,
    pub(crate) is_code: bool,
    /// The registers, a bit each, whose first values, or what they point to, it may read.
    pub(crate) reads: u16,
    /// Imports that it calls, with the registers that may hold their first values there.
    pub(crate) hands_on: Vec<(u32, u16)>,
}

/// See the module.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Code first, then data; each by address. Then parts of functions ([`crate::parts`]).
    pub(crate) nodes: Vec<Node>,
    /// How many of them are code.
    pub(crate) code_nodes: u32,
    /// Where the parts begin.
    pub(crate) first_part: u32,
    /// When parts run.
    pub(crate) guards: Vec<Guard>,
    pub(crate) entry: Option<u32>,
    /// Whether symbols and relocations could not be read.
    pub(crate) is_damaged: bool,
    /// Whether this is a dynamic linker.
    pub(crate) is_interpreter: bool,
    /// Nodes that run because the file is loaded.
    pub(crate) initialisers: Vec<u32>,
    /// The same, as imports.
    pub(crate) initialiser_imports: Vec<u32>,
    /// Nodes that run when the file is linked.
    pub(crate) resolvers: Vec<u32>,
    pub(crate) imports: Vec<Import>,
    pub(crate) definitions: Vec<Definition>,
    pub(crate) sites: Vec<Site>,
    pub(crate) uses: Vec<Use>,
    /// Wrappers whose addresses lie in data.
    pub(crate) tables: Vec<Table>,
    /// Addresses of the constant string [`PLAIN_DEVICE`](crate::linkage::PLAIN_DEVICE).
    pub(crate) plain_devices: Vec<u64>,
    pub(crate) strings: Vec<String>,
    /// Strings that nobody can change and whose addresses are passed to something in [`Summary::uses`].
    pub(crate) constants: BTreeMap<u64, String>,
    /// Names of functions, by address.
    pub(crate) names: Vec<(u64, String)>,
}

impl Summary {
    /// The constant string at this address, if it is the argument of some function.
    pub(crate) fn constant(&self, address: u64) -> Option<&str> {
        self.constants.get(&address).map(String::as_str)
    }

    /// Whether a node is a part of a function.
    pub(crate) fn is_part(&self, node: u32) -> bool {
        node >= self.first_part
    }

    /// Whether a node is code.
    pub(crate) fn is_code(&self, node: u32) -> bool {
        node < self.code_nodes || node >= self.first_part
    }

    /// The name of the function that `address` is in, with the distance from its start.
    pub(crate) fn name_of(&self, address: u64) -> String {
        let index = self.names.partition_point(|(start, _)| *start <= address);
        let node = self.nodes[..self.code_nodes as usize]
            .partition_point(|node| node.address <= address)
            .checked_sub(1)
            .map_or(address, |node| self.nodes[node].address);
        match self.names[..index].last() {
            Some((start, name)) if *start >= node => match address - start {
                0 => name.clone(),
                distance => format!("{name}+{distance:#x}"),
            },
            _ => match address - node {
                0 => format!("fn_{node:x}"),
                distance => format!("fn_{node:x}+{distance:#x}"),
            },
        }
    }
}

/// Analyses a file.
///
/// # Errors
/// [`PlanError`] for what is no x86-64 ELF file.
pub(crate) fn summarise(bytes: &[u8]) -> Result<Summary, PlanError> {
    let linkage = Linkage::read(bytes);
    recover(bytes, |code| Builder::new(code, linkage).build())
}

/// The longest string that is taken for the name of a library or symbol.
const MAX_STRING: usize = 128;

/// What is known while the graph is made.
pub(crate) struct Builder<'c, 'i, 'a> {
    pub(crate) code: &'c Code<'i, 'a>,
    pub(crate) linkage: Linkage,
    /// First addresses of code nodes, sorted.
    pub(crate) starts: Vec<u64>,
    /// First addresses of stretches of data, sorted.
    chunks: Vec<u64>,
    /// The nodes of those that hold addresses.
    chunk_nodes: HashMap<u64, u32>,
    pub(crate) nodes: Vec<Node>,
    strings: BTreeMap<String, u32>,
    /// Jumps into the middle of another node: from node, to node.
    pub(crate) middles: Vec<(u32, u32)>,
    /// Direct calls and jumps to other nodes: where, and to which.
    pub(crate) calls: Vec<(u64, u32)>,
    /// Calls and jumps through a word: where, and which.
    pub(crate) slot_calls: Vec<(u64, u64)>,
    /// Instructions other than `mov` from a register that may write the word, by its address.
    pub(crate) odd_writes: HashSet<u64>,
    /// `mov`s to a word: where, and which word.
    pub(crate) stores: Vec<(u64, u64)>,
    /// Instructions other than calls that read words with addresses of code: where, and which word.
    pub(crate) loads: Vec<(u64, u64)>,
    /// Instructions other than calls that read the words of imports: where, and which word.
    pub(crate) import_loads: Vec<(u64, u64)>,
    /// Addresses of data that code knows: where, and which.
    pub(crate) data_refs: Vec<(u64, u64)>,
    /// Addresses of code that code knows: where, and which.
    pub(crate) code_refs: Vec<(u64, u64)>,
    /// Words whose address something takes.
    pub(crate) known_words: HashSet<u64>,
    /// `syscall` instructions, with the start of the gap if they are in one.
    pub(crate) syscalls: Vec<(u64, Option<u64>)>,
    /// Addresses inside functions that something takes, sorted.
    pub(crate) labels: Vec<u64>,
    /// See [`Summary::first_part`].
    pub(crate) first_part: u32,
    /// The functions of the parts.
    pub(crate) homes: Vec<u32>,
    /// The parts that instructions are in, by address.
    pub(crate) parts: HashMap<u64, u32>,
    pub(crate) guards: Vec<Guard>,
    /// Functions of NSS modules in the C library, with their names there.
    services: HashMap<u64, String>,
    /// All these names.
    service_names: HashSet<String>,
    takes_symbols: bool,
    pub(crate) info: InstructionInfoFactory,
    low: u64,
    high: u64,
}

impl<'c, 'i, 'a> Builder<'c, 'i, 'a> {
    fn new(code: &'c Code<'i, 'a>, linkage: Linkage) -> Self {
        let low = code.segments().map(|(address, _)| address).min().unwrap_or(0);
        let high = code.segments().map(|(a, bytes)| a + bytes.len() as u64).max().unwrap_or(0);
        let imports_dlsym =
            linkage.imports.iter().any(|i| matches!(&*i.name, "dlsym" | "dlvsym" | "dlopen"));
        let services = services(&linkage);
        Self {
            code,
            labels: Vec::new(),
            first_part: 0,
            homes: Vec::new(),
            parts: HashMap::new(),
            guards: Vec::new(),
            service_names: services
                .values()
                .filter_map(|name| name.strip_prefix(SERVICE))
                .map(str::to_owned)
                .collect(),
            services,
            takes_symbols: imports_dlsym,
            info: InstructionInfoFactory::new(),
            linkage,
            starts: Vec::new(),
            chunks: Vec::new(),
            chunk_nodes: HashMap::new(),
            nodes: Vec::new(),
            strings: BTreeMap::new(),
            middles: Vec::new(),
            calls: Vec::new(),
            odd_writes: HashSet::new(),
            stores: Vec::new(),
            loads: Vec::new(),
            import_loads: Vec::new(),
            data_refs: Vec::new(),
            code_refs: Vec::new(),
            known_words: HashSet::new(),
            slot_calls: Vec::new(),
            syscalls: Vec::new(),
            low,
            high,
        }
    }

    fn build(mut self) -> Summary {
        if self.code.is_fixed() {
            self.scan_words();
        }
        self.find_starts();
        self.make_nodes();
        self.find_parts();
        self.link_code();
        self.link_data();
        for node in &mut self.nodes {
            node.links.sort_unstable();
            node.links.dedup();
            node.strings.sort_unstable();
            node.strings.dedup();
        }
        self.syscalls.sort_unstable();
        self.syscalls.dedup_by_key(|(address, _)| *address);
        let Numbers { sites, uses, tables, called } = numbers::find(&self);
        let data: HashSet<u32> = self.chunk_nodes.values().copied().collect();
        let nodes = self.nodes.iter_mut().zip(0..).filter(|(_, index)| !data.contains(index));
        for link in nodes.flat_map(|(node, _)| &mut node.links) {
            match *link {
                Link::TakeImport(to) if called.contains(&Callee::Import(to)) => {
                    *link = Link::CallImport(to);
                }
                Link::Taken(to) if called.contains(&Callee::Node(to)) => *link = Link::Call(to),
                _ => {}
            }
        }
        let constants = self.constants(&uses);
        let is_interpreter = self.is_interpreter();
        let code_nodes = self.starts.len() as u32;
        let mut initialisers: Vec<u32> =
            self.linkage.initialisers.iter().filter_map(|&at| self.node_of(at)).collect();
        // The first values of threads' variables, which code finds without knowing their address.
        if let Some((start, end)) = self.linkage.threads {
            let words = self.linkage.slots.range(start..end);
            initialisers.extend(words.filter_map(|(slot, _)| self.chunk_of(*slot)));
            initialisers.sort_unstable();
            initialisers.dedup();
        }
        if self.code.is_go() {
            // Method tables hold offsets, not addresses, and the linker has left out what no one
            // can call.
            initialisers.extend(0..code_nodes);
        }
        let definitions = self
            .linkage
            .exports
            .iter()
            .map(|export| {
                let is_resolver = self.linkage.resolvers.contains(&export.address);
                let (reads, hands_on) =
                    if is_resolver { None } else { self.first_values(export.address) }
                        .unwrap_or((u16::MAX, Vec::new()));
                Definition {
                    name: export.name.clone(),
                    version: export.version.clone(),
                    node: if self.code.is_text(export.address) {
                        self.node_of(export.address)
                    } else {
                        self.chunk_of(export.address)
                    },
                    is_code: export.is_code || self.code.is_text(export.address),
                    reads,
                    hands_on,
                }
            })
            .collect();
        let mut strings = vec![String::new(); self.strings.len()];
        for (string, index) in &self.strings {
            strings[*index as usize].clone_from(string);
        }
        Summary {
            entry: self.node_of(self.linkage.entry),
            initialisers,
            is_damaged: self.linkage.is_damaged,
            is_interpreter,
            constants,
            initialiser_imports: self.linkage.initialiser_imports.clone(),
            resolvers: self.linkage.resolvers.iter().filter_map(|&at| self.node_of(at)).collect(),
            definitions,
            sites,
            uses,
            tables,
            plain_devices: self.linkage.plain_devices,
            strings,
            code_nodes,
            first_part: self.first_part,
            guards: self.guards,
            names: self.linkage.names.into_iter().collect(),
            imports: self.linkage.imports,
            nodes: self.nodes,
        }
    }

    /// The code node that `address` is in.
    pub(crate) fn node_of(&self, address: u64) -> Option<u32> {
        if !self.code.is_text(address) {
            return None;
        }
        let index = self.starts.partition_point(|start| *start <= address).checked_sub(1)?;
        u32::try_from(index).ok()
    }

    /// The data node that `address` is in, if it holds addresses.
    pub(crate) fn chunk_of(&self, address: u64) -> Option<u32> {
        let index = self.chunks.partition_point(|start| *start <= address).checked_sub(1)?;
        self.chunk_nodes.get(&self.chunks[index]).copied()
    }

    /// The stretch of data that `address` is in, and at least so many bytes before and after it.
    pub(crate) fn around(&self, address: u64, near: u64) -> (u64, u64) {
        let index = self.chunks.partition_point(|start| *start <= address);
        let start = index.checked_sub(1).map_or(address, |index| self.chunks[index]);
        let end = self.chunks.get(index).copied().unwrap_or(self.high);
        (start.min(address.saturating_sub(near)), end.max(address.saturating_add(near)))
    }

    fn is_data(&self, address: u64) -> bool {
        (self.low..self.high).contains(&address) && !self.code.is_text(address)
    }

    /// Words of a file for a fixed address that may be addresses.
    fn scan_words(&mut self) {
        for (start, bytes) in self.code.segments() {
            let headers = headers_len(bytes);
            let skip = headers + (start + headers as u64).wrapping_neg() as usize % 8;
            let words = bytes.get(skip..).unwrap_or(&[]).as_chunks::<8>().0;
            for (n, word) in words.iter().enumerate() {
                let at = start + (skip + n * 8) as u64;
                let value = u64::from_le_bytes(*word);
                if (self.low..self.high).contains(&value) && !self.code.is_text(at) {
                    self.linkage.slots.entry(at).or_insert(Target::Internal(value));
                }
            }
        }
    }

    /// The addresses that an instruction computes or holds: not those that it reads or writes.
    fn addresses(&self, instruction: &Instruction, mut show: impl FnMut(u64)) {
        let has_memory =
            (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if has_memory && instruction.is_ip_rel_memory_operand() {
            if instruction.code() == Opcode::Lea_r64_m {
                show(instruction.ip_rel_memory_address());
            }
        } else if has_memory
            && self.code.is_fixed()
            && (instruction.memory_base() != Register::None
                || instruction.memory_index() != Register::None
                || instruction.mnemonic() == iced_x86::Mnemonic::Lea)
        {
            show(instruction.memory_displacement64());
        }
        if self.code.is_fixed() && is_branchless(instruction) {
            for n in 0..instruction.op_count() {
                if let Ok(value) = instruction.try_immediate(n) {
                    show(value);
                    show(value & 0xffff_ffff);
                }
            }
        }
    }

    /// The address of a word that an instruction reads, and how many bytes it reads.
    fn slot(instruction: &Instruction) -> Option<(u64, u64)> {
        let has_memory =
            (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if !has_memory || instruction.mnemonic() == iced_x86::Mnemonic::Lea {
            return None;
        }
        let is_plain = instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None
            && instruction.segment_prefix() == Register::None;
        (instruction.is_ip_rel_memory_operand() || is_plain).then(|| {
            (instruction.memory_displacement64(), instruction.memory_size().size().max(8) as u64)
        })
    }

    /// Whether `address` is inside a function that the file describes, and not its start.
    fn is_inside_function(&self, address: u64) -> bool {
        let functions = self.code.functions();
        let index = functions.partition_point(|&(start, _)| start <= address);
        let near = functions[..index].iter().rev().take(8);
        let mut inside = false;
        for &(start, end) in near {
            if start == address {
                return false;
            }
            inside |= address < end;
        }
        inside
    }

    /// Whether the code at `address` does nothing but go where some word says.
    pub(crate) fn stub(&self, address: u64) -> Option<u64> {
        let mut instruction = self.code.decode(address)?;
        if instruction.mnemonic() == iced_x86::Mnemonic::Endbr64 {
            instruction = self.code.decode(instruction.next_ip())?;
        }
        (instruction.flow_control() == FlowControl::IndirectBranch)
            .then(|| Self::slot(&instruction).map(|(slot, _)| slot))
            .flatten()
    }

    /// Finds where nodes start.
    fn find_starts(&mut self) {
        let mut starts: BTreeSet<u64> = self.code.entries().into_iter().collect();
        starts.extend(self.code.regions().map(|(start, _)| start));
        let mut chunks: BTreeSet<u64> = self.code.segments().map(|(start, _)| start).collect();
        chunks.extend(&self.linkage.objects);
        let mut taken = BTreeSet::new();
        taken.extend(self.linkage.exports.iter().map(|export| export.address));
        for target in self.linkage.slots.values() {
            match target {
                Target::Internal(address) | Target::Resolver(address) => {
                    taken.insert(*address);
                }
                _ => {}
            }
        }
        let mut jumps = BTreeSet::new();
        self.code.each_instruction(|instruction| {
            self.addresses(instruction, |address| {
                taken.insert(address);
            });
            if matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
            ) && instruction.op0_kind() == OpKind::NearBranch64
            {
                let target = instruction.near_branch_target();
                if target.abs_diff(instruction.ip()) > 64 && !starts.contains(&target) {
                    jumps.insert(target);
                }
            }
        });
        for address in taken {
            if self.code.is_text(address) {
                if !self.code.is_start(address) {
                    continue;
                }
                // One entry of unwind tables describes all of a PLT.
                if self.is_inside_function(address) && self.stub(address).is_none() {
                    self.labels.push(address);
                } else {
                    starts.insert(address);
                }
            } else if self.is_data(address) {
                chunks.insert(address);
            }
        }
        starts.extend(jumps.into_iter().filter(|&target| self.stub(target).is_some()));
        self.starts = starts.into_iter().filter(|&start| self.code.is_text(start)).collect();
        // Text in between (in files without sections) ends a stretch of data.
        chunks.extend(self.code.regions().map(|(start, bytes)| start + bytes.len() as u64));
        chunks.extend(self.linkage.threads.iter().flat_map(|(start, end)| [*start, *end]));
        // Whoever has an address in an object has all of the object.
        for &(start, end) in &self.linkage.extents {
            let inside: Vec<u64> = chunks.range(start + 1..end).copied().collect();
            for address in inside {
                chunks.remove(&address);
            }
        }
        self.chunks = chunks.into_iter().collect();
    }

    fn make_nodes(&mut self) {
        let node = |&address: &u64| Node { address, ..Node::default() };
        self.nodes = self.starts.iter().map(node).collect();
        for &slot in self.linkage.slots.keys() {
            let index = self.chunks.partition_point(|start| *start <= slot);
            let Some(&start) = index.checked_sub(1).and_then(|index| self.chunks.get(index)) else {
                continue;
            };
            if let std::collections::hash_map::Entry::Vacant(entry) = self.chunk_nodes.entry(start)
            {
                entry.insert(self.nodes.len() as u32);
                self.nodes.push(Node { address: start, ..Node::default() });
            }
        }
    }

    /// Notes that `from` knows `address`.
    fn link_address(&mut self, from: u32, address: u64) {
        if self.code.is_text(address) {
            if self.code.is_start(address)
                && let Some(to) = self.node_of(address)
                && (to != from || self.starts[to as usize] == address)
            {
                self.link(from, Link::Taken(to));
            }
        } else {
            self.known_words.insert(address);
        }
        if self.is_data(address) {
            if let Some(to) = self.chunk_of(address) {
                self.link(from, Link::Data(to));
            }
            self.note_string(from, address);
        }
    }

    fn link_slot(&mut self, from: u32, slot: u64, is_call: bool) {
        match self.linkage.slots.get(&slot).copied() {
            Some(Target::Internal(address)) => match self.node_of(address) {
                Some(to) if is_call => self.link(from, Link::Call(to)),
                _ => self.link_address(from, address),
            },
            Some(Target::Import(import)) if is_call => self.link(from, Link::CallImport(import)),
            Some(Target::Import(import)) => self.link(from, Link::TakeImport(import)),
            Some(Target::Copy(import)) => self.link(from, Link::CopyImport(import)),
            Some(Target::Resolver(address)) => {
                if let Some(to) = self.node_of(address) {
                    self.link(from, Link::Taken(to));
                }
            }
            None => {}
        }
    }

    pub(crate) fn link(&mut self, from: u32, link: Link) {
        let node = &mut self.nodes[from as usize];
        if node.links.last() != Some(&link) {
            node.links.push(link);
        }
    }

    fn note_string(&mut self, from: u32, address: u64) {
        let Some(bytes) = self.code.read(address) else { return };
        let bytes = &bytes[..bytes.len().min(MAX_STRING)];
        let Some(len) = bytes.iter().position(|byte| *byte == 0) else { return };
        let Ok(text) = std::str::from_utf8(&bytes[..len]) else { return };
        let is_library = text.contains(".so")
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && text.len() > 4;
        let is_symbol = (self.takes_symbols
            || self.linkage.imports.is_empty()
            || self.linkage.names.values().next().is_some() && self.is_interpreter())
            && text.len() > 2
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let is_service = self.service_names.contains(text);
        if is_library || is_symbol {
            let index = self.string(text);
            self.nodes[from as usize].strings.push(index);
        }
        if is_service {
            let index = self.string(&format!("{SERVICE}{text}"));
            self.nodes[from as usize].strings.push(index);
        }
    }

    /// The index of a string.
    fn string(&mut self, text: &str) -> u32 {
        let next = self.strings.len() as u32;
        *self.strings.entry(text.to_owned()).or_insert(next)
    }

    /// The constant strings whose addresses are passed in these calls.
    fn constants(&self, uses: &[Use]) -> BTreeMap<u64, String> {
        if !self.takes_symbols {
            return BTreeMap::new();
        }
        let passed = uses.iter().flat_map(|call| &call.value).filter_map(|source| match source {
            numbers::Source::Const(address) => Some(*address),
            _ => None,
        });
        let is_constant = |address: &u64| {
            self.linkage.constant.iter().any(|(start, end)| (*start..*end).contains(address))
        };
        let text = |address: u64| {
            let bytes = self.code.read(address)?;
            let bytes = &bytes[..bytes.len().min(MAX_STRING)];
            let len = bytes.iter().position(|byte| *byte == 0)?;
            Some((address, String::from_utf8(bytes[..len].to_vec()).ok()?))
        };
        passed.filter(is_constant).filter_map(text).collect()
    }

    /// Whether this is a dynamic linker: it finds symbols of others by itself.
    fn is_interpreter(&self) -> bool {
        self.linkage.exports.iter().any(|export| {
            matches!(&*export.name, "_rtld_global" | "__dls3" | "_dlstart" | "__dls2b")
        })
    }

    fn link_code(&mut self) {
        let code = self.code;
        let mut end = 0;
        let mut gaps = Vec::new();
        let mut instructions = |instruction: &Instruction| {
            if end != 0 && instruction.ip() > end && code.is_text(end) {
                gaps.push((end, instruction.ip()));
            }
            end = end.max(instruction.next_ip());
            self.link_instruction(instruction, None);
        };
        code.each_instruction(&mut instructions);
        for (start, end) in gaps {
            self.sweep(start, end);
        }
    }

    /// Decodes a gap: landing pads, and what follows jumps whose targets are not known.
    fn sweep(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let Some(bytes) = self.code.read(at) else { return };
            if matches!(bytes.first(), Some(0 | 0xcc | 0x90)) {
                at += 1;
                continue;
            }
            let Some(instruction) = self.code.decode(at).filter(|i| i.next_ip() <= end) else {
                return;
            };
            if instruction.mnemonic() != iced_x86::Mnemonic::Nop {
                self.link_instruction(&instruction, Some(start));
            }
            at = instruction.next_ip();
        }
    }

    fn link_instruction(&mut self, instruction: &Instruction, gap: Option<u64>) {
        let Some(home) = self.node_of(instruction.ip()) else { return };
        let from = self.parts.get(&instruction.ip()).copied().unwrap_or(home);
        let mut known = [0; 8];
        let mut count = 0;
        self.addresses(instruction, |address| {
            if count < known.len() {
                known[count] = address;
                count += 1;
            }
        });
        for address in &known[..count] {
            if self.is_data(*address) {
                self.data_refs.push((instruction.ip(), *address));
            } else if self.code.is_text(*address) {
                self.code_refs.push((instruction.ip(), *address));
            }
            if let Some(name) = self.services.get(address) {
                let name = name.clone();
                let name = self.string(&name);
                if let Some(to) = self.node_of(*address) {
                    self.link(from, Link::TakenByName(to, name));
                }
            } else if self.code.is_text(*address) && self.is_for_tunable(instruction) {
                if let Some(to) = self.node_of(*address) {
                    self.link(from, Link::Tunable(to));
                }
            } else if !(self.code.is_text(*address) && self.is_only_compared(instruction)) {
                self.link_address(from, *address);
            }
        }
        let is_branch = matches!(
            instruction.flow_control(),
            FlowControl::IndirectCall | FlowControl::IndirectBranch
        );
        if let Some((slot, size)) = Self::slot(instruction) {
            if is_branch {
                self.slot_calls.push((instruction.ip(), slot));
            } else if instruction.op0_kind() == OpKind::Memory {
                use iced_x86::Mnemonic::{Cmp, Mov, Push, Test};
                match instruction.mnemonic() {
                    Mov => {
                        self.stores.push((instruction.ip(), slot));
                        self.odd_writes.extend(words_of(instruction, slot).filter(|w| *w != slot));
                    }
                    Cmp | Push | Test => {}
                    _ if self.code.is_go() && is_zero_store(instruction) => {
                        let halves = [slot, slot.wrapping_add(8)];
                        self.stores.extend(halves.map(|half| (instruction.ip(), half)));
                        let others = words_of(instruction, slot).filter(|w| !halves.contains(w));
                        self.odd_writes.extend(others);
                    }
                    _ => self.odd_writes.extend(words_of(instruction, slot)),
                }
            } else if instruction.op_count() > 1
                && instruction.op1_kind() == OpKind::Memory
                && instruction.mnemonic() == iced_x86::Mnemonic::Xchg
            {
                self.odd_writes.extend(words_of(instruction, slot));
            }
            use iced_x86::Mnemonic::{Cmp, Mov, Test};
            // What was there before is not read.
            let is_store = instruction.op0_kind() == OpKind::Memory
                && instruction.mnemonic() == Mov
                && !is_branch;
            let is_load = !is_branch && !is_store && !matches!(instruction.mnemonic(), Cmp | Test);
            for at in (0..if is_store { 0 } else { size.min(64) }).step_by(8) {
                let word = slot.wrapping_add(at);
                let target = self.linkage.slots.get(&word);
                if is_load && matches!(target, Some(Target::Internal(to)) if self.code.is_text(*to))
                {
                    self.loads.push((instruction.ip(), word));
                }
                if !is_branch && matches!(target, Some(Target::Import(_))) {
                    self.import_loads.push((instruction.ip(), word));
                }
                self.link_slot(from, word, is_branch);
            }
        }
        let mut falls = true;
        match instruction.flow_control() {
            FlowControl::Call if instruction.code() == Opcode::Syscall => {
                self.syscalls.push((instruction.ip(), gap));
            }
            FlowControl::Call | FlowControl::IndirectCall => {
                if instruction.op0_kind() == OpKind::NearBranch64
                    && let Some(to) = self.node_of(instruction.near_branch_target())
                    && (to != home || self.starts[to as usize] == instruction.near_branch_target())
                {
                    self.link(from, Link::Call(to));
                    self.calls.push((instruction.ip(), to));
                }
                falls = !self.code.is_end(instruction.next_ip());
            }
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::XbeginXabortXend => {
                if instruction.op0_kind() == OpKind::NearBranch64 {
                    let target = instruction.near_branch_target();
                    if let Some(to) = self.node_of(target)
                        && to != home
                    {
                        self.link(from, Link::Jump(to));
                        if self.starts[to as usize] == target {
                            self.calls.push((instruction.ip(), to));
                        } else {
                            self.middles.push((home, to));
                        }
                    }
                }
                falls = instruction.flow_control() != FlowControl::UnconditionalBranch;
            }
            FlowControl::IndirectBranch => {
                for &target in self.code.jump_table(instruction.ip()).unwrap_or(&[]) {
                    if let Some(to) = self.node_of(target)
                        && to != home
                    {
                        self.link(from, Link::Jump(to));
                        if self.starts[to as usize] != target {
                            self.middles.push((home, to));
                        }
                    }
                }
                falls = false;
            }
            FlowControl::Return | FlowControl::Exception => falls = false,
            FlowControl::Interrupt => falls = instruction.code() != Opcode::Int3,
            FlowControl::Next => falls = instruction.code() != Opcode::Hlt,
        }
        if falls
            && gap.is_none()
            && let Some(to) = self.node_of(instruction.next_ip())
            && to != home
        {
            self.link(from, Link::Jump(to));
        }
    }

    /// Whether the address that a `lea` computes goes to `__tunable_get_val` as its third argument and
    /// nowhere else.
    fn is_for_tunable(&mut self, lea: &Instruction) -> bool {
        if lea.code() != Opcode::Lea_r64_m || lea.op0_register() != Register::RDX {
            return false;
        }
        let mut at = lea.next_ip();
        for _ in 0..8 {
            let Some(next) = self.code.decode(at) else { return false };
            if next.flow_control() == FlowControl::Call && next.code() != Opcode::Syscall {
                let slot = match next.op0_kind() {
                    OpKind::NearBranch64 => self.stub(next.near_branch_target()),
                    _ => Self::slot(&next).map(|(slot, _)| slot),
                };
                let target = slot.and_then(|slot| self.linkage.slots.get(&slot));
                return matches!(target, Some(Target::Import(import))
                    if self.linkage.imports[*import as usize].name == "__tunable_get_val");
            }
            let mut used = self.info.info(&next).used_registers().iter();
            if next.flow_control() != FlowControl::Next
                || self.code.is_target(at)
                || used.any(|used| used.register().full_register() == Register::RDX)
            {
                return false;
            }
            at = next.next_ip();
        }
        false
    }

    /// Whether the address that a `lea` computes is compared with others and nothing else, such as
    /// the bounds of musl's cancellation points: nobody calls it then.
    fn is_only_compared(&mut self, lea: &Instruction) -> bool {
        if lea.code() != Opcode::Lea_r64_m {
            return false;
        }
        let register = lea.op0_register();
        let mut was_compared = false;
        let mut todo = vec![lea.next_ip()];
        let mut budget = 32;
        while let Some(mut at) = todo.pop() {
            loop {
                budget -= 1;
                let Some(next) = self.code.decode(at).filter(|_| budget > 0) else { return false };
                match next.flow_control() {
                    FlowControl::Next => {}
                    FlowControl::ConditionalBranch => todo.push(next.near_branch_target()),
                    FlowControl::UnconditionalBranch => {
                        todo.push(next.near_branch_target());
                        break;
                    }
                    // Overwrites these two, and reads neither.
                    FlowControl::Call
                        if next.code() == Opcode::Syscall
                            && matches!(register, Register::RCX | Register::R11) =>
                    {
                        break;
                    }
                    // Not in the registers that carry a result.
                    FlowControl::Return if !matches!(register, Register::RAX | Register::RDX) => {
                        break;
                    }
                    _ => return false,
                }
                let is_plain = (0..next.op_count()).all(|n| next.op_kind(n) != OpKind::Memory)
                    || next.memory_base().full_register() != register
                        && next.memory_index().full_register() != register;
                let (mut reads, mut writes) = (false, false);
                for used in self.info.info(&next).used_registers() {
                    if used.register().full_register() == register {
                        let access = used.access();
                        writes |= matches!(access, OpAccess::Write);
                        reads |= !matches!(access, OpAccess::Write);
                    }
                }
                if reads {
                    if !is_plain || next.mnemonic() != iced_x86::Mnemonic::Cmp {
                        return false;
                    }
                    was_compared = true;
                }
                if writes {
                    break;
                }
                at = next.next_ip();
            }
        }
        was_compared
    }

    fn link_data(&mut self) {
        let slots: Vec<u64> = self.linkage.slots.keys().copied().collect();
        for slot in slots {
            if let Some(from) = self.chunk_of(slot) {
                self.link_slot(from, slot, false);
            }
        }
    }

    /// The registers, a bit each, whose values at the function's first instruction it may read but to store
    /// something there, and the imports that it calls with registers which may hold them still. `None` where that
    /// is not found out soon: all.
    fn first_values(&self, start: u64) -> Option<(u16, Vec<(u32, u16)>)> {
        let code = self.code;
        let mut info = InstructionInfoFactory::new();
        let mut read = 0;
        let mut hands_on = BTreeSet::new();
        // Where to go on, and what is overwritten by then.
        let mut todo = vec![(start, 0_u16)];
        let mut seen = HashSet::new();
        while let Some((mut at, mut written)) = todo.pop() {
            while seen.insert((at, written)) {
                let instruction = code.decode(at).filter(|_| seen.len() < 256)?;
                let is_syscall = instruction.code() == Opcode::Syscall;
                let is_same = instruction.mnemonic() == iced_x86::Mnemonic::Xor
                    && instruction.op1_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register();
                // Storing where a register points to says nothing about what it points to.
                let stores_by = |register: Register| {
                    use iced_x86::Mnemonic::{Mov, Movaps, Movdqa, Movdqu, Movq, Movups};
                    matches!(instruction.mnemonic(), Mov | Movaps | Movdqa | Movdqu | Movq | Movups)
                        && instruction.op0_kind() == OpKind::Memory
                        && (instruction.op1_kind() != OpKind::Register
                            || instruction.op1_register().full_register() != register)
                };
                let mut writes = 0;
                for used in info.info(&instruction).used_registers() {
                    let Some(number) = number_of(used.register()) else { continue };
                    let is_read = !matches!(used.access(), OpAccess::Write);
                    let by_store = stores_by(used.register().full_register());
                    if is_read && !is_syscall && !is_same && !by_store {
                        read |= 1_u16 << number & !written;
                    }
                    let is_whole = used.register().size() >= 4;
                    if matches!(used.access(), OpAccess::Write | OpAccess::ReadWrite) && is_whole {
                        writes |= 1_u16 << number;
                    }
                }
                written |= writes;
                match instruction.flow_control() {
                    FlowControl::Next => {}
                    FlowControl::Call if is_syscall => {}
                    FlowControl::Call | FlowControl::IndirectCall => {
                        let import = self.called_import(&instruction)?;
                        hands_on.insert((import, !written & ARGUMENTS));
                        written |= !SURVIVORS;
                    }
                    FlowControl::ConditionalBranch => {
                        todo.push((instruction.near_branch_target(), written));
                    }
                    FlowControl::UnconditionalBranch => {
                        todo.push((instruction.near_branch_target(), written));
                        break;
                    }
                    FlowControl::IndirectBranch => {
                        let import = self.called_import(&instruction)?;
                        hands_on.insert((import, !written & ARGUMENTS));
                        break;
                    }
                    FlowControl::Return => break,
                    _ => return None,
                }
                at = instruction.next_ip();
            }
        }
        Some((read, hands_on.into_iter().filter(|(_, registers)| *registers != 0).collect()))
    }

    /// The import that a call or jump leads to, by a PLT entry or by its word in the GOT.
    fn called_import(&self, instruction: &Instruction) -> Option<u32> {
        let slot = if instruction.op0_kind() == OpKind::NearBranch64 {
            self.stub(instruction.near_branch_target())?
        } else {
            Self::slot(instruction)?.0
        };
        match self.linkage.slots.get(&slot)? {
            Target::Import(import) => Some(*import),
            _ => None,
        }
    }

    /// Every node's first address.
    pub(crate) fn entries(&self) -> HashSet<u64> {
        self.starts.iter().copied().collect()
    }
}

/// Before the name of a function of NSS, in [`Summary::strings`].
pub(crate) const SERVICE: &str = "nss:";

/// The functions of NSS's modules that are part of glibc (2.34 and later), with the names by which it finds
/// them (`nss_module_functions`): `_nss_files_getpwnam_r` by `getpwnam_r`.
fn services(linkage: &Linkage) -> HashMap<u64, String> {
    let exports = &linkage.exports;
    if !exports.iter().any(|export| export.name == "__nss_lookup_function") {
        return HashMap::new();
    }
    let name = |full: &str| {
        let (_, name) = full.strip_prefix("_nss_")?.split_once('_')?;
        let is_function = ["get", "set", "end", "initgroups"].iter().any(|s| name.starts_with(s));
        is_function.then(|| format!("{SERVICE}{name}"))
    };
    let services = exports.iter().filter(|export| export.is_code);
    services.filter_map(|export| Some((export.address, name(&export.name)?))).collect()
}

/// How many bytes of a segment are the file's headers, which hold addresses for others to read.
fn headers_len(segment: &[u8]) -> usize {
    let word = |at: usize| segment.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
    if !segment.starts_with(b"\x7fELF") {
        return 0;
    }
    let count = segment.get(56..58).map_or(0, |count| u16::from_le_bytes([count[0], count[1]]));
    let end = word(32).and_then(|offset| offset.checked_add(u64::from(count) * 56));
    end.and_then(|end| usize::try_from(end).ok()).map_or(0, |end| end.min(segment.len()))
}

/// The words of four bytes that an instruction touches which writes at `slot`.
fn words_of(instruction: &Instruction, slot: u64) -> impl Iterator<Item = u64> + use<> {
    let size = instruction.memory_size().size().max(1) as u64;
    // The aligned ones, and the one that is written to.
    let aligned = ((slot & !3)..slot.saturating_add(size)).step_by(4);
    std::iter::once(slot).chain(aligned.filter(move |word| *word != slot))
}

/// Whether immediate operands are values rather than targets.
fn is_branchless(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && instruction.op0_kind() != OpKind::NearBranch64
}

impl Summary {
    /// Whether all indices are in range: what was kept may be damaged.
    pub(crate) fn is_sound(&self) -> bool {
        let nodes = self.nodes.len() as u32;
        let imports = self.imports.len() as u32;
        let is_link = |link: &Link| match link {
            Link::Call(to)
            | Link::Jump(to)
            | Link::Taken(to)
            | Link::Data(to)
            | Link::Tunable(to) => *to < nodes,
            Link::Guarded(to, guard) => *to < nodes && (*guard as usize) < self.guards.len(),
            Link::TakenByName(to, name) => *to < nodes && (*name as usize) < self.strings.len(),
            Link::CallImport(to) | Link::TakeImport(to) | Link::CopyImport(to) => *to < imports,
        };
        let is_source = |source: &numbers::Source| match source {
            numbers::Source::Param(node, _) => *node < nodes,
            _ => true,
        };
        self.code_nodes <= self.first_part
            && self.first_part <= nodes
            && self.guards.iter().all(|guard| match guard {
                Guard::Reached(by) => by.iter().all(|node| *node < nodes),
                Guard::Value(values, _) => values.iter().all(|value| is_source(&value.0)),
            })
            && self.nodes.iter().all(|node| {
                node.links.iter().all(is_link)
                    && node.strings.iter().all(|n| (*n as usize) < self.strings.len())
            })
            && self.entry.is_none_or(|node| node < nodes)
            && self.initialiser_imports.iter().all(|import| *import < imports)
            && self.initialisers.iter().chain(&self.resolvers).all(|node| *node < nodes)
            && self.definitions.iter().all(|d| {
                d.node.is_none_or(|node| node < nodes)
                    && d.hands_on.iter().all(|(import, _)| *import < imports)
            })
            && self.sites.iter().all(|site| {
                site.node < nodes
                    && site.number.iter().all(is_source)
                    && site.argument.iter().all(|(_, sources)| sources.iter().all(is_source))
            })
            && self.tables.iter().all(|table| {
                table.node < nodes
                    && table.leaks.iter().all(|leak| {
                        leak.node < nodes
                            && leak.passed_to.is_none_or(|(import, _)| import < imports)
                    })
            })
            && self.uses.iter().all(|call| {
                call.node < nodes
                    && call.value.iter().all(is_source)
                    && match call.callee {
                        numbers::Callee::Node(node) => node < nodes,
                        numbers::Callee::Import(import) => import < imports,
                        numbers::Callee::Word(_) => true,
                    }
            })
    }
}
