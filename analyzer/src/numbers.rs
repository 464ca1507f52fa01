//! Which numbers reach the `syscall` instructions of a file, and which arguments.
//!
//! Each function with a site is interpreted ([`crate::value`]). Where the number is what the
//! function was given, the function is a *wrapper*: its callers are interpreted in turn, and so on
//! until every number is a constant, or comes from outside of the file.

pub(crate) mod tables;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use iced_x86::FlowControl;
use serde::{Deserialize, Serialize};

use crate::{
    linkage::Target,
    parts::Guard,
    program::conditions::DECIDERS,
    summary::{Builder, Link},
    value::{Atom, Event, Interpreter, Place, State, Value},
};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Source {
    /// It is this.
    Const(u64),
    /// What the callers of this node put there.
    Param(u32, Place),
    /// Not known.
    Unknown,
}

/// A `syscall` instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) address: u64,
    /// The node that it is in.
    pub(crate) node: u32,
    /// Where `rax` comes from.
    pub(crate) number: Vec<Source>,
    /// For the calls in [`ARGUMENTS`], where the argument that decides comes from.
    pub(crate) argument: Vec<(u32, Vec<Source>)>,
}

/// Whose parameter is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Callee {
    /// A node of this file.
    Node(u32),
    /// An import.
    Import(u32),
    /// Whoever reads the word at this address.
    Word(u64),
}

/// What is passed to a wrapper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    /// Address of the call or jump.
    pub(crate) address: u64,
    /// The node that it is in.
    pub(crate) node: u32,
    pub(crate) callee: Callee,
    pub(crate) place: Place,
    pub(crate) value: Vec<Source>,
}

pub(crate) use tables::Table;

const RDI: Place = Place::Register(7);
const RSI: Place = Place::Register(6);
const RDX: Place = Place::Register(2);

/// Calls whose path says what is needed: 0 stands for [`PLAIN_DEVICE`](crate::linkage::PLAIN_DEVICE), 1 for
/// any other.
pub(crate) const OPEN: u32 = 2;
pub(crate) const OPENAT: u32 = 257;

/// System calls of which one argument says what is needed: number, place at the `syscall`.
pub(crate) const ARGUMENTS: [(u32, Place); 9] = [
    (OPEN, RDI),
    (OPENAT, RSI),
    (16, RSI),  // ioctl: the request
    (41, RDI),  // socket: the family
    (53, RDI),  // socketpair: the family
    (56, RDI),  // clone: the flags
    (72, RSI),  // fcntl: the command
    (157, RDI), // prctl: the option
    (202, RSI), // futex: the operation
];

/// Functions of C libraries whose arguments are recorded wherever they are called: exported
/// wrappers, which are found again as such in the file that defines them, and the loader's.
const WATCHED: [(&str, &[Place]); 13] = [
    ("syscall", &[RDI, RSI, RDX]),
    ("ioctl", &[RSI]),
    ("fcntl", &[RSI]),
    ("fcntl64", &[RSI]),
    ("socket", &[RDI]),
    ("socketpair", &[RDI]),
    ("prctl", &[RDI]),
    ("clone", &[RDX]),
    ("dlopen", &[RDI]),
    ("dlmopen", &[RSI]),
    ("dlsym", &[RDI, RSI]),
    ("dlvsym", &[RDI, RSI]),
    ("__libc_dlopen_mode", &[RDI]),
];

/// Where the callers are asked at most, to keep hostile files from growing without end.
const MAX_WANTED: usize = 20_000;

/// What is passed: by where, in which node, to whom, in which place.
type Uses = BTreeMap<(u64, u32, Callee, Place), BTreeSet<Source>>;

struct Finder<'b, 'c, 'i, 'a> {
    builder: &'b Builder<'c, 'i, 'a>,
    interpreter: Interpreter<'c, 'i, 'a>,
    /// By callee, the nodes that call or jump to it.
    callers: HashMap<Callee, Vec<u32>>,
    /// By node, those that jump into its middle.
    middles: HashMap<u32, Vec<u32>>,
    /// PLT entries, and what they lead to.
    stubs: Rc<HashMap<u64, Callee>>,
    wanted: BTreeSet<(Callee, Place)>,
    todo: Vec<(Callee, Place)>,
    /// Nodes with jumps whose targets are not known.
    lost: HashSet<u32>,
    /// By function, the words in data that hold its address.
    holders: HashMap<u64, Vec<u64>>,
    /// Calls through such words, or what was loaded from an import's: who is called.
    indirect: BTreeMap<u64, BTreeSet<Callee>>,
    /// What is known about wrappers whose addresses are in data; those that were looked at.
    tables: BTreeMap<u32, Option<Table>>,
    /// See [`Numbers::called`].
    called: BTreeSet<Callee>,
    /// How many functions were interpreted for tables.
    walks: usize,
}

/// What [`find`] finds.
pub(crate) struct Numbers {
    pub(crate) sites: Vec<Site>,
    pub(crate) uses: Vec<Use>,
    pub(crate) tables: Vec<Table>,
    /// Those whose addresses code puts into registers for nothing but to call them there.
    pub(crate) called: BTreeSet<Callee>,
}

pub(crate) fn find(builder: &Builder<'_, '_, '_>) -> Numbers {
    let entries = builder.entries();
    let mut stubs = HashMap::new();
    for &start in &builder.starts {
        if let Some(slot) = builder.stub(start)
            && let Some(callee) = callee_of_slot(builder, slot)
        {
            stubs.insert(start, callee);
        }
    }
    let mut callers: HashMap<Callee, Vec<u32>> = HashMap::new();
    for (from, node) in builder.nodes.iter().enumerate() {
        let from = builder.home_of(from as u32);
        if from as usize >= builder.starts.len() {
            continue;
        }
        for link in &node.links {
            let callee = match link {
                Link::Call(to) | Link::Jump(to) => match builder.starts.get(*to as usize) {
                    Some(start) => stubs.get(start).copied().unwrap_or(Callee::Node(*to)),
                    // A part of the same function.
                    None => continue,
                },
                Link::CallImport(import) => Callee::Import(*import),
                _ => continue,
            };
            callers.entry(callee).or_default().push(from);
        }
    }
    let mut middles: HashMap<u32, Vec<u32>> = HashMap::new();
    for &(from, to) in &builder.middles {
        let list = middles.entry(to).or_default();
        if !list.contains(&from) && list.len() < 64 {
            list.push(from);
        }
    }
    let mut holders: HashMap<u64, Vec<u64>> = HashMap::new();
    for (word, target) in &builder.linkage.slots {
        if let Target::Internal(address) = target
            && builder.code.is_text(*address)
        {
            holders.entry(*address).or_default().push(*word);
        }
    }
    let interpreter =
        Interpreter::new(builder.code, &entries, &builder.labels, &builder.linkage.thread_slots);
    let mut finder = Finder {
        builder,
        // The entries live as long as this function.
        interpreter,
        callers,
        middles,
        stubs: Rc::new(stubs),
        wanted: BTreeSet::new(),
        todo: Vec::new(),
        lost: HashSet::new(),
        holders,
        indirect: BTreeMap::new(),
        tables: BTreeMap::new(),
        called: BTreeSet::new(),
        walks: 0,
    };
    let sites = finder.sites();
    for (import, index) in builder.linkage.imports.iter().zip(0..) {
        for (name, places) in WATCHED {
            if import.name == name {
                for &place in places {
                    finder.want(Callee::Import(index), place);
                }
                finder.follow_import(index);
            }
        }
        for (_, place) in DECIDERS.iter().filter(|(name, _)| import.name == *name) {
            finder.want(Callee::Import(index), *place);
        }
    }
    for export in &builder.linkage.exports {
        for (_, place) in DECIDERS.iter().filter(|(name, _)| export.name == *name) {
            if let Some(node) = builder.node_of(export.address) {
                finder.want(Callee::Node(node), *place);
            }
        }
    }
    for guard in &builder.guards {
        if let Guard::Value(values, _) = guard {
            for (source, _) in values {
                if let Source::Param(node, place) = source {
                    finder.want(Callee::Node(*node), *place);
                }
            }
        }
    }
    let mut uses = finder.uses();
    // Inside, functions are whole.
    let mut sites = sites;
    for site in &mut sites {
        site.node = builder.part_of(site.address).unwrap_or(site.node);
    }
    for call in &mut uses {
        call.node = builder.part_of(call.address).unwrap_or(call.node);
    }
    Numbers {
        sites,
        uses,
        tables: finder.tables.into_values().flatten().collect(),
        called: finder.called,
    }
}

fn callee_of_slot(builder: &Builder<'_, '_, '_>, slot: u64) -> Option<Callee> {
    match builder.linkage.slots.get(&slot)? {
        Target::Import(import) => Some(Callee::Import(*import)),
        Target::Internal(address) => builder.node_of(*address).map(Callee::Node),
        _ => None,
    }
}

impl Finder<'_, '_, '_, '_> {
    /// Asks the callers; whether they will be.
    fn want(&mut self, callee: Callee, place: Place) -> bool {
        if self.wanted.contains(&(callee, place)) {
            return true;
        }
        if self.wanted.len() >= MAX_WANTED {
            return false;
        }
        self.wanted.insert((callee, place));
        self.todo.push((callee, place));
        true
    }

    /// Nodes from whose start control may come to this one without a call.
    fn roots(&self, node: u32) -> Vec<u32> {
        let mut roots = vec![node];
        let mut at = 0;
        while at < roots.len() && roots.len() < 64 {
            for &from in self.middles.get(&roots[at]).into_iter().flatten() {
                if !roots.contains(&from) {
                    roots.push(from);
                }
            }
            at += 1;
        }
        roots
    }

    /// The word at `address` when the program starts; zero where the file holds nothing.
    fn initial(&self, address: u64) -> u64 {
        let bytes = self.builder.code.read(address).and_then(|bytes| bytes.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes).into())
    }

    /// Whether all that is ever in the word at `address` is put there by instructions that name it.
    fn is_private(&self, address: u64) -> bool {
        let builder = self.builder;
        !builder.known_words.contains(&address)
            && !builder.odd_writes.contains(&address)
            && !builder.linkage.slots.contains_key(&address)
            && builder.linkage.exports.iter().all(|export| {
                export.is_code
                    || !(export.address..=export.address + export.size).contains(&address)
            })
    }

    fn sources(&mut self, root: Option<u32>, value: &Value) -> Vec<Source> {
        let Some(atoms) = value.atoms() else { return vec![Source::Unknown] };
        let mut sources: Vec<Source> = atoms
            .iter()
            .map(|atom| match (atom, root) {
                (Atom::Const(value), _) => Source::Const(*value),
                (Atom::Param(Place::Thread(_)), _) => Source::Unknown,
                (Atom::Param(place @ (Place::Word(at) | Place::Behind(at, _))), _) => {
                    if self.is_private(*at) { Source::Param(0, *place) } else { Source::Unknown }
                }
                (Atom::Param(place), Some(root)) => Source::Param(root, *place),
                _ => Source::Unknown,
            })
            .collect();
        // What a word holds before anyone writes to it.
        let words = sources.iter().filter_map(|source| match source {
            Source::Param(_, Place::Word(at)) => Some(Source::Const(self.initial(*at))),
            _ => None,
        });
        let words: Vec<Source> = words.collect();
        sources.extend(words);
        for source in &mut sources {
            let will_be_known = match *source {
                Source::Param(_, place @ (Place::Word(at) | Place::Behind(at, _))) => {
                    self.want(Callee::Word(at), place)
                }
                Source::Param(root, place) => self.want(Callee::Node(root), place),
                _ => true,
            };
            if !will_be_known {
                *source = Source::Unknown;
            }
        }
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    fn sites(&mut self) -> Vec<Site> {
        let builder = self.builder;
        let mut found: BTreeMap<u64, Site> = BTreeMap::new();
        let nodes: BTreeSet<u32> =
            builder.syscalls.iter().filter_map(|(address, _)| builder.node_of(*address)).collect();
        let mut roots: BTreeSet<u32> = BTreeSet::new();
        for node in nodes {
            roots.extend(self.roots(node));
        }
        for root in roots {
            let mut seen = Vec::new();
            let mut is_lost = false;
            self.interpreter.function(builder.starts[root as usize], |address, event, state| {
                match event {
                    Event::Syscall => seen.push((address, Observed::at_site(state))),
                    Event::Lost => is_lost = true,
                    _ => {}
                }
            });
            if is_lost {
                self.lost.insert(root);
            }
            for (address, observed) in seen {
                self.observe(&mut found, Some(root), address, &observed);
            }
        }
        // What no path from a function's start leads to: as far as the code just before it says.
        for &(address, gap) in &builder.syscalls {
            let Some(node) = builder.node_of(address) else { continue };
            if found.contains_key(&address) && !self.lost.contains(&node) {
                continue;
            }
            let leader = self.leader(builder.starts[node as usize], address);
            let starts = gap.map_or([leader, self.run_start(address)], |gap| [gap; 2]);
            let mut seen = Vec::new();
            for start in starts {
                self.interpreter.fragment(start, |at, event, state| {
                    if event == Event::Syscall && at == address {
                        seen.push(Observed::at_site(state));
                    }
                });
                if !seen.is_empty() {
                    break;
                }
            }
            let is_known = seen.iter().any(|o| o.number.atoms().is_some());
            if gap.is_some() && !is_known {
                // Most likely not code.
                continue;
            }
            if seen.is_empty() {
                seen.push(Observed::nothing());
            }
            for observed in seen {
                self.observe(&mut found, None, address, &observed);
            }
        }
        found.into_values().collect()
    }

    /// The nearest address before `address` that something jumps to.
    fn leader(&self, start: u64, address: u64) -> u64 {
        let nearest = address.saturating_sub(256).max(start);
        (nearest..=address)
            .rev()
            .find(|&at| self.builder.code.is_start(at) && self.builder.code.is_target(at))
            .unwrap_or(start)
    }

    /// Where the instructions start that run one after the other up to `address`, without calls, jumps and
    /// targets of jumps in between: a landing pad, which nothing leads to but the unwinder.
    fn run_start(&self, address: u64) -> u64 {
        let code = self.builder.code;
        let mut start = address;
        while !code.is_target(start) {
            let nearest = (start.saturating_sub(15)..start).rev();
            let mut before =
                nearest.filter(|at| code.is_start(*at)).filter_map(|at| code.decode(at));
            let before = before.find(|instruction| instruction.next_ip() == start);
            match before {
                Some(before) if before.flow_control() == FlowControl::Next => start = before.ip(),
                _ => break,
            }
        }
        start
    }

    fn observe(
        &mut self,
        found: &mut BTreeMap<u64, Site>,
        root: Option<u32>,
        address: u64,
        observed: &Observed,
    ) {
        let Some(node) = self.builder.node_of(address) else { return };
        let number = self.sources(root, &observed.number);
        let mut argument = Vec::new();
        for ((nr, _), value) in ARGUMENTS.iter().zip(&observed.arguments) {
            // Only where this site makes that call, or any.
            if number.iter().any(|n| *n == Source::Const(u64::from(*nr))) {
                argument.push((*nr, self.sources(root, value)));
            } else if !number.iter().all(|n| matches!(n, Source::Const(_))) {
                argument.push((*nr, vec![Source::Unknown]));
            }
        }
        let site = found.entry(address).or_insert_with(|| Site {
            address,
            node,
            number: Vec::new(),
            argument: Vec::new(),
        });
        site.number.extend(number);
        site.number.sort_unstable();
        site.number.dedup();
        for (nr, sources) in argument {
            match site.argument.iter_mut().find(|(other, _)| *other == nr) {
                Some((_, known)) => {
                    known.extend(sources);
                    known.sort_unstable();
                    known.dedup();
                }
                None => site.argument.push((nr, sources)),
            }
        }
    }

    /// Follows what is wanted to the callers.
    fn uses(&mut self) -> Vec<Use> {
        let builder = self.builder;
        let mut uses = Uses::new();
        while !self.todo.is_empty() {
            let mut batch: BTreeMap<Callee, BTreeSet<Place>> = BTreeMap::new();
            for (callee, place) in std::mem::take(&mut self.todo) {
                batch.entry(callee).or_default().insert(place);
            }
            for callee in batch.keys() {
                if let Callee::Node(node) = *callee
                    && !self.tables.contains_key(&node)
                {
                    self.follow_function(node);
                    let table = self.follow_tables(node);
                    self.tables.insert(node, table);
                }
            }
            let mut roots: BTreeSet<u32> = BTreeSet::new();
            for callee in batch.keys() {
                for caller in self.callers.get(callee).cloned().unwrap_or_default() {
                    roots.extend(self.roots(caller));
                }
                if let Callee::Word(word) = callee {
                    let stores = builder.stores.iter().filter(|(_, slot)| slot == word);
                    for node in stores.filter_map(|(at, _)| builder.node_of(*at)) {
                        roots.extend(self.roots(node));
                    }
                }
            }
            for root in roots {
                self.uses_in(root, &batch, &mut uses);
            }
            self.uses_elsewhere(&batch, &mut uses);
        }
        uses.into_iter()
            .map(|((address, node, callee, place), value)| Use {
                address,
                node,
                callee,
                place,
                value: value.into_iter().collect(),
            })
            .collect()
    }

    /// Calls that no path from a function's start leads to, and all calls in functions with jumps
    /// whose targets are not known: as far as the code just before them says.
    fn uses_elsewhere(&mut self, batch: &BTreeMap<Callee, BTreeSet<Place>>, uses: &mut Uses) {
        let builder = self.builder;
        let direct = builder.calls.iter().filter_map(|&(at, to)| {
            let start = builder.starts[to as usize];
            let callee = self.stubs.get(&start).copied().unwrap_or(Callee::Node(to));
            batch.contains_key(&callee).then_some((at, callee))
        });
        let through = builder.slot_calls.iter().filter_map(|&(at, slot)| {
            let callee = callee_of_slot(builder, slot)?;
            (batch.contains_key(&callee) && !self.is_stub(at)).then_some((at, callee))
        });
        let stores = builder.stores.iter().filter_map(|&(at, word)| {
            let callee = Callee::Word(word);
            batch.contains_key(&callee).then_some((at, callee))
        });
        let indirect = self.indirect.iter().flat_map(|(at, callees)| {
            let callees = callees.iter().filter(|callee| batch.contains_key(callee));
            callees.map(|callee| (*at, *callee))
        });
        let calls: Vec<(u64, Callee)> =
            direct.chain(through).chain(stores).chain(indirect).collect();
        for (address, callee) in calls {
            let Some(node) = builder.node_of(address) else { continue };
            let mut places: BTreeSet<Place> = batch[&callee].clone();
            if !self.lost.contains(&node) {
                places.retain(|place| !uses.contains_key(&(address, node, callee, *place)));
            }
            if places.is_empty() {
                continue;
            }
            let leader = self.leader(builder.starts[node as usize], address);
            let mut seen = Vec::new();
            for start in [leader, self.run_start(address)] {
                self.interpreter.fragment(start, |at, event, state| {
                    let pushed = match event {
                        Event::Call(_) => 8,
                        Event::Through(_, pushed) | Event::Indirect(pushed) => pushed,
                        _ => 0,
                    };
                    if at == address {
                        for place in &places {
                            let value = match event {
                                Event::Store(_) => state.stored(*place),
                                _ => state.at_callee(*place, pushed),
                            };
                            seen.push((*place, value));
                        }
                    }
                });
                if !seen.is_empty() {
                    break;
                }
            }
            for place in &places {
                let key = (address, node, callee, *place);
                let values = seen.iter().filter(|(other, _)| other == place);
                let mut sources: Vec<Source> = Vec::new();
                for (_, value) in values {
                    sources.extend(self.sources(None, value));
                }
                if sources.is_empty() {
                    sources.push(Source::Unknown);
                }
                uses.entry(key).or_default().extend(sources);
            }
        }
    }

    /// Whether the instruction is the jump of a PLT entry.
    fn is_stub(&self, address: u64) -> bool {
        let node = self.builder.node_of(address);
        node.is_some_and(|node| self.stubs.contains_key(&self.builder.starts[node as usize]))
    }

    fn uses_in(&mut self, root: u32, batch: &BTreeMap<Callee, BTreeSet<Place>>, uses: &mut Uses) {
        let builder = self.builder;
        let (stubs, indirect) = (&self.stubs, &self.indirect);
        let mut seen: Vec<(u64, Callee, Place, Value)> = Vec::new();
        let mut is_lost = false;
        self.interpreter.function(builder.starts[root as usize], |address, event, state| {
            let (callee, pushed) = match event {
                Event::Syscall | Event::Branch | Event::Instruction | Event::Done => return,
                Event::Indirect(pushed) => {
                    for callee in indirect.get(&address).into_iter().flatten() {
                        for place in batch.get(callee).into_iter().flatten() {
                            seen.push((address, *callee, *place, state.at_callee(*place, pushed)));
                        }
                    }
                    return;
                }
                Event::Lost => {
                    is_lost = true;
                    return;
                }
                Event::Call(target) | Event::Jump(target) => {
                    let callee = match stubs.get(&target) {
                        Some(callee) => Some(*callee),
                        None => builder.node_of(target).map(Callee::Node),
                    };
                    (callee, if matches!(event, Event::Call(_)) { 8 } else { 0 })
                }
                Event::Through(slot, pushed) => (callee_of_slot(builder, slot), pushed),
                Event::Store(word) => {
                    for place in batch.get(&Callee::Word(word)).into_iter().flatten() {
                        seen.push((address, Callee::Word(word), *place, state.stored(*place)));
                    }
                    return;
                }
            };
            let Some(callee) = callee else { return };
            for place in batch.get(&callee).into_iter().flatten() {
                seen.push((address, callee, *place, state.at_callee(*place, pushed)));
            }
        });
        if is_lost {
            self.lost.insert(root);
        }
        for (address, callee, place, value) in seen {
            let sources = self.sources(Some(root), &value);
            let Some(node) = builder.node_of(address) else { continue };
            uses.entry((address, node, callee, place)).or_default().extend(sources);
        }
    }
}

/// What is known at a `syscall`.
struct Observed {
    number: Value,
    arguments: [Value; ARGUMENTS.len()],
}

impl Observed {
    fn at_site(state: &State) -> Self {
        let argument = |place| match place {
            Place::Register(number) => state.register(number),
            _ => Value::any(),
        };
        Self { number: state.register(0), arguments: ARGUMENTS.map(|(_, place)| argument(place)) }
    }

    fn nothing() -> Self {
        Self { number: Value::any(), arguments: ARGUMENTS.map(|_| Value::any()) }
    }
}
