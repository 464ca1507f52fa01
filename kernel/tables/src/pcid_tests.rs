//! Processors whose translations have identifiers, switching between processes that change: no processor
//! may ever have a translation under the identifier that is loaded which the tables do not bear out.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use proptest::prelude::*;

use crate::pcid::{Change, Hardware, Keep, Processor, SLOTS, Space};

const CPUS: usize = 3;
const PAGES: usize = 2;
/// More than there are slots.
const PROCESSES: usize = SLOTS + 2;
const KERNEL_ROOT: u64 = 0x1000;

/// What is mapped: which frame, and whether it can be written. No frame is used twice.
type Entry = Option<(u32, bool)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Page {
    Application(usize),
    Kernel,
}

struct Process {
    space: Space,
    root: u64,
    users: Cell<u64>,
    pages: [Cell<Entry>; PAGES],
}

struct Cpu {
    index: usize,
    processor: Processor,
    cr3: Cell<u64>,
    active_root: Cell<u64>,
    loaded_root: Cell<u64>,
    is_switching: Cell<bool>,
    tlb: RefCell<BTreeMap<(u64, Page), (u32, bool)>>,
}

impl Cpu {
    fn identifier(&self) -> u64 {
        self.cr3.get() & 0xfff
    }

    fn flush_identifier(&self, identifier: u64) {
        self.tlb.borrow_mut().retain(|(of, _), _| *of != identifier);
    }

    fn flush(&self, page: Option<Page>) {
        match page {
            Some(page) => drop(self.tlb.borrow_mut().remove(&(self.identifier(), page))),
            None => self.flush_identifier(self.identifier()),
        }
    }
}

/// What another processor does while one switches.
#[derive(Clone, Copy, Debug)]
enum Op {
    Touch(usize, bool),
    Unmap(usize),
    Protect(usize),
    ChangeTables,
    Fork,
    Exit,
    ChangeKernel,
    Switch([Option<(usize, usize, Interruption)>; 3]),
}

/// [`Op`]s that may come in between.
#[derive(Clone, Copy, Debug)]
enum Interruption {
    Unmap(usize),
    Protect(usize),
    ChangeTables,
    Exit,
    ChangeKernel,
}

struct World {
    cpus: Vec<Cpu>,
    processes: RefCell<Vec<Rc<Process>>>,
    kernel_page: Cell<u32>,
    next_frame: Cell<u32>,
    next_number: Cell<u64>,
    free_roots: RefCell<Vec<u64>>,
    /// What comes in between, at each of the three moments of a switch; by which processor, to which process.
    interruptions: RefCell<Vec<Option<(usize, usize, Interruption)>>>,
}

/// A processor of the world as the code under test sees it.
struct Seen<'a>(&'a World, &'a Cpu);

impl Hardware for Seen<'_> {
    fn load(&self, root: u64, identifier: u64, keep: Keep) {
        let Self(world, cpu) = self;
        world.interrupt(cpu);
        cpu.cr3.set(root | identifier);
        if keep == Keep::No {
            cpu.flush_identifier(identifier);
        }
        world.check(cpu, "just loaded");
        world.interrupt(cpu);
        world.check(cpu, "just loaded, and interrupted");
    }

    fn flush_identifier(&self, cr3: u64) {
        self.1.flush_identifier(cr3 & 0xfff);
    }
}

impl World {
    fn new() -> Self {
        let cpu = |index| Cpu {
            index,
            processor: Processor::default(),
            cr3: Cell::new(KERNEL_ROOT),
            active_root: Cell::new(KERNEL_ROOT),
            loaded_root: Cell::new(KERNEL_ROOT),
            is_switching: Cell::new(false),
            tlb: RefCell::default(),
        };
        let world = Self {
            cpus: (0..CPUS).map(cpu).collect(),
            processes: RefCell::default(),
            kernel_page: Cell::new(1),
            next_frame: Cell::new(2),
            next_number: Cell::new(1),
            free_roots: RefCell::new((2..2 + PROCESSES as u64).map(|root| root << 12).collect()),
            interruptions: RefCell::default(),
        };
        world.add([None; PAGES]);
        world
    }

    fn frame(&self) -> u32 {
        self.next_frame.replace(self.next_frame.get() + 1)
    }

    fn add(&self, pages: [Entry; PAGES]) {
        let root = self.free_roots.borrow_mut().pop().expect("there are not too many");
        let number = self.next_number.replace(self.next_number.get() + 1);
        let space = Space::new(number);
        let pages = pages.map(Cell::new);
        self.processes.borrow_mut().push(Rc::new(Process {
            space,
            root,
            users: Cell::new(0),
            pages,
        }));
    }

    fn process(&self, number: usize) -> Rc<Process> {
        let processes = self.processes.borrow();
        Rc::clone(&processes[number % processes.len()])
    }

    fn loaded_process(&self, cpu: &Cpu) -> Option<Rc<Process>> {
        let root = cpu.cr3.get() & !0xfff;
        self.processes.borrow().iter().find(|process| process.root == root).cloned()
    }

    /// What the tables say that `cpu` has loaded.
    fn walk(&self, cpu: &Cpu, page: Page) -> Entry {
        match page {
            Page::Kernel => Some((self.kernel_page.get(), true)),
            Page::Application(page) => self.loaded_process(cpu)?.pages[page].get(),
        }
    }

    fn check(&self, cpu: &Cpu, when: &str) {
        for ((identifier, page), (frame, writable)) in cpu.tlb.borrow().iter() {
            // A processor that leaves a process uses the kernel's half only.
            let is_used = !cpu.is_switching.get()
                || *page == Page::Kernel
                || cpu.cr3.get() & !0xfff == cpu.active_root.get();
            if *identifier == cpu.identifier() && is_used {
                let found = self.walk(cpu, *page);
                let is_right = found.is_some_and(|(is, may)| is == *frame && (may || !writable));
                let index = cpu.index;
                assert!(is_right, "{when}: processor {index} has {page:?} at {frame}: {found:?}");
            }
        }
    }

    fn interrupt(&self, cpu: &Cpu) {
        let interruption = self.interruptions.borrow_mut().pop().flatten();
        let Some((by, who, interruption)) = interruption else { return };
        let by = &self.cpus[(cpu.index + 1 + by % (CPUS - 1)) % CPUS];
        let who = self.process(who);
        match interruption {
            Interruption::Unmap(page) => self.unmap(by, &who, page),
            Interruption::Protect(page) => self.protect(by, &who, page),
            Interruption::ChangeTables => self.change(by, &who, None, true),
            Interruption::ChangeKernel => self.change_kernel(),
            // A process to which somebody switches does not end.
            Interruption::Exit if who.root != cpu.active_root.get() => self.exit(&who),
            Interruption::Exit => {}
        }
    }

    // What follows does what `paging.rs` and `smp.rs` do.

    fn switch(&self, cpu: &Cpu, to: &Process) {
        if cpu.active_root.get() == to.root {
            return;
        }
        cpu.is_switching.set(true);
        cpu.active_root.set(to.root);
        to.users.set(to.users.get() | 1 << cpu.index);
        self.interrupt(cpu);
        cpu.processor.enter(&Seen(self, cpu), &to.space, to.root);
        cpu.loaded_root.set(to.root);
        cpu.is_switching.set(false);
    }

    /// The entries have been changed.
    fn change(&self, by: &Cpu, process: &Process, page: Option<usize>, tables: bool) {
        let page = page.map(Page::Application);
        let change = process.space.change();
        if by.active_root.get() == process.root {
            by.flush(page);
        }
        by.processor.flushed(change);
        for other in self.cpus.iter().filter(|other| other.index != by.index) {
            let bit = 1 << other.index;
            let (active, loaded) = (other.active_root.get(), other.loaded_root.get());
            if process.users.get() & bit == 0 {
                continue;
            }
            if tables {
                if active == process.root || loaded == process.root {
                    self.be_asked(other, None, change);
                }
            } else if active == process.root {
                self.be_asked(other, page, change);
            } else if loaded != process.root {
                process.users.set(process.users.get() & !bit);
            }
        }
    }

    fn be_asked(&self, cpu: &Cpu, page: Option<Page>, change: Change) {
        cpu.processor.flush_coming(&Seen(self, cpu));
        cpu.flush(page);
        cpu.processor.flushed(change);
    }

    fn change_kernel(&self) {
        self.kernel_page.set(self.frame());
        for cpu in &self.cpus {
            cpu.processor.forget_all();
            cpu.processor.flush_coming(&Seen(self, cpu));
            cpu.flush(None);
        }
    }

    fn exit(&self, process: &Process) {
        if self.processes.borrow().len() == 1 {
            return;
        }
        for cpu in &self.cpus {
            let has_it = process.users.get() & 1 << cpu.index != 0;
            if has_it && cpu.cr3.get() & !0xfff == process.root {
                cpu.processor.leave();
                cpu.cr3.set(KERNEL_ROOT);
                cpu.flush(None);
                cpu.loaded_root.set(KERNEL_ROOT);
                if cpu.active_root.get() == process.root {
                    cpu.active_root.set(KERNEL_ROOT);
                }
            }
        }
        self.processes.borrow_mut().retain(|other| other.root != process.root);
        // The next process gets it.
        self.free_roots.borrow_mut().push(process.root);
    }

    // What processes do.

    fn touch(&self, cpu: &Cpu, page: usize, write: bool) {
        let key = |page| (cpu.identifier(), page);
        let kernel = self.walk(cpu, Page::Kernel).unwrap();
        cpu.tlb.borrow_mut().entry(key(Page::Kernel)).or_insert(kernel);
        let Some(process) = self.loaded_process(cpu) else { return };
        let known = cpu.tlb.borrow().get(&key(Page::Application(page))).copied();
        if known.is_some_and(|(_, writable)| writable || !write) {
            return;
        }
        let entry = match process.pages[page].get() {
            Some((frame, writable)) if writable || !write => Some((frame, writable)),
            None if !write => None,
            // A page fault: a page of its own.
            found => {
                let new = Some((self.frame(), true));
                process.pages[page].set(new);
                if found.is_some() {
                    self.change(cpu, &process, Some(page), false);
                }
                new
            }
        };
        if let Some(entry) = entry {
            cpu.tlb.borrow_mut().insert(key(Page::Application(page)), entry);
        }
    }

    fn unmap(&self, by: &Cpu, process: &Process, page: usize) {
        if process.pages[page].take().is_some() {
            self.change(by, process, Some(page), false);
        }
    }

    fn protect(&self, by: &Cpu, process: &Process, page: usize) {
        if let Some((frame, true)) = process.pages[page].get() {
            process.pages[page].set(Some((frame, false)));
            self.change(by, process, Some(page), false);
        }
    }

    fn fork(&self, by: &Cpu, process: &Process) {
        if self.processes.borrow().len() == PROCESSES {
            return;
        }
        let pages = [0, 1].map(|page: usize| {
            let shared = process.pages[page].get().map(|(frame, _)| (frame, false));
            process.pages[page].set(shared);
            shared
        });
        self.change(by, process, None, false);
        self.add(pages);
    }

    fn run(&self, cpu: usize, who: usize, op: Op) {
        let (cpu, process) = (&self.cpus[cpu], self.process(who));
        match op {
            Op::Touch(page, write) => self.touch(cpu, page, write),
            Op::Unmap(page) => self.unmap(cpu, &process, page),
            Op::Protect(page) => self.protect(cpu, &process, page),
            Op::ChangeTables => self.change(cpu, &process, None, true),
            Op::Fork => self.fork(cpu, &process),
            Op::Exit => self.exit(&process),
            Op::ChangeKernel => self.change_kernel(),
            Op::Switch(interruptions) => {
                *self.interruptions.borrow_mut() = interruptions.to_vec();
                self.switch(cpu, &process);
                self.interruptions.borrow_mut().clear();
            }
        }
        self.cpus.iter().for_each(|cpu| self.check(cpu, "after an operation"));
    }
}

fn interruption() -> impl Strategy<Value = Option<(usize, usize, Interruption)>> {
    let what = prop_oneof![
        (0..PAGES).prop_map(Interruption::Unmap),
        (0..PAGES).prop_map(Interruption::Protect),
        Just(Interruption::ChangeTables),
        Just(Interruption::Exit),
        Just(Interruption::ChangeKernel),
    ];
    prop::option::weighted(0.3, (0..CPUS, 0..PROCESSES, what))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..PAGES, any::<bool>()).prop_map(|(page, write)| Op::Touch(page, write)),
        1 => (0..PAGES).prop_map(Op::Unmap),
        1 => (0..PAGES).prop_map(Op::Protect),
        1 => Just(Op::ChangeTables),
        2 => Just(Op::Fork),
        1 => Just(Op::Exit),
        1 => Just(Op::ChangeKernel),
        8 => [interruption(), interruption(), interruption()].prop_map(Op::Switch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn no_translation_that_is_in_use_is_stale(
        ops in prop::collection::vec((0..CPUS, 0..PROCESSES, op()), 1..120)
    ) {
        let world = World::new();
        for (cpu, who, op) in ops {
            world.run(cpu, who, op);
        }
    }
}

/// Without this, nothing would be gained.
#[test]
fn what_has_not_changed_stays() {
    let world = World::new();
    let cpu = &world.cpus[0];
    (1..SLOTS).for_each(|_| world.run(0, 0, Op::Fork));
    for who in 0..SLOTS {
        world.run(0, who, Op::Switch([None; 3]));
        world.run(0, who, Op::Touch(0, true));
        // Changes that this processor makes itself, or is asked to follow, are no reason to flush later.
        world.run(0, who, Op::Touch(1, true));
        world.run(0, who, Op::Protect(1));
        world.run(1, who, Op::Unmap(1));
    }
    let known = cpu.tlb.borrow().clone();
    assert_eq!(known.len(), 2 * SLOTS);
    for who in 0..SLOTS {
        world.run(0, who, Op::Switch([None; 3]));
        assert_eq!(*cpu.tlb.borrow(), known);
    }
    // One more takes the oldest's place.
    world.run(0, 0, Op::Fork);
    world.run(0, SLOTS, Op::Switch([None; 3]));
    assert_eq!(cpu.tlb.borrow().len(), known.len() - 2);
}
