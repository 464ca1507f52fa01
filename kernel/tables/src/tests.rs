//! Processes that share tables, against a model that knows nothing of tables.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::Mutex,
};

use proptest::prelude::*;

use super::*;

const FRAMES: usize = 24;
const DIRTY: u64 = 1 << 6;

/// Frames in an arena. Frame n is a table or a page; its count is 0 while it is free.
struct Arena {
    tables: Vec<Table>,
    counts: Vec<AtomicU32>,
    links: Vec<AtomicU32>,
    free: Mutex<Vec<u64>>,
    lock: Mutex<()>,
}

impl Arena {
    fn new(frames: usize) -> Self {
        Self {
            // What a frame holds when it is allocated is anything.
            tables: (0..frames).map(|_| [const { AtomicU64::new(u64::MAX) }; 512]).collect(),
            counts: (0..frames).map(|_| AtomicU32::new(0)).collect(),
            links: (0..frames).map(|_| AtomicU32::new(0xdead)).collect(),
            free: Mutex::new((0..frames as u64).map(|frame| frame << FRAME_SHIFT).collect()),
            lock: Mutex::new(()),
        }
    }

    fn count(&self, address: u64) -> &AtomicU32 {
        &self.counts[(address >> FRAME_SHIFT) as usize]
    }

    fn give_up(&self, address: u64) {
        let before = self.count(address).fetch_sub(1, Ordering::SeqCst);
        assert_ne!(before, 0, "{address:#x} is free already");
        if before == 1 {
            self.free.lock().unwrap().push(address);
        }
    }

    fn in_use(&self) -> usize {
        self.counts.len() - self.free.lock().unwrap().len()
    }
}

impl Frames for Arena {
    fn table(&self, address: u64) -> &Table {
        assert_ne!(self.count(address).load(Ordering::SeqCst), 0, "a free frame is used");
        &self.tables[(address >> FRAME_SHIFT) as usize]
    }

    fn alloc(&self) -> Option<u64> {
        let address = self.free.lock().unwrap().pop()?;
        self.count(address).store(1, Ordering::SeqCst);
        Some(address)
    }

    fn free(&self, address: u64) {
        assert_eq!(self.count(address).load(Ordering::SeqCst), 1, "others have the table");
        self.give_up(address);
    }

    fn sharers(&self, address: u64) -> &AtomicU32 {
        self.count(address)
    }

    fn link(&self, address: u64) -> &AtomicU32 {
        &self.links[(address >> FRAME_SHIFT) as usize]
    }

    fn retain_page(&self, entry: u64) {
        let before = self.count(entry & ADDRESS).fetch_add(1, Ordering::SeqCst);
        assert_ne!(before, 0, "a free page is mapped");
    }

    fn release_page(&self, entry: u64) {
        self.give_up(entry & ADDRESS);
    }

    fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        let _held = self.lock.lock().unwrap();
        f()
    }
}

/// How many tables a process of the model has, and pages in each that are used.
const TABLES: usize = 2;
const PAGES: usize = 3;

/// Indexes of the pages in a table: the first, the last, and one between.
const INDEXES: [usize; PAGES] = [0, 200, 511];

/// A process: directory entries, what its processor remembers of them, and what it should find in
/// its pages. What a page holds is kept by frame.
struct Process {
    directory: [AtomicU64; TABLES],
    remembered: [Cell<u64>; TABLES],
    expected: [[Option<u8>; PAGES]; TABLES],
}

struct World {
    arena: Arena,
    contents: RefCell<BTreeMap<u64, u8>>,
    processes: Vec<Process>,
}

impl World {
    /// The processor's walk: the entry, if it allows the access. Goes by what it remembers.
    fn walk(&self, who: usize, table: usize, page: usize, write: bool) -> Option<&AtomicU64> {
        let process = &self.processes[who];
        let mut directory_entry = process.remembered[table].get();
        let may = |value: u64| value & PRESENT != 0 && (!write || value & WRITABLE != 0);
        if !may(directory_entry) {
            if process.directory[table].load(Ordering::SeqCst) & PRESENT != 0 {
                process.directory[table].fetch_or(ACCESSED, Ordering::SeqCst);
            }
            directory_entry = process.directory[table].load(Ordering::SeqCst);
            if !may(directory_entry) {
                return None;
            }
            process.remembered[table].set(directory_entry);
        }
        let entry = &self.arena.table(directory_entry & ADDRESS)[INDEXES[page]];
        if !may(entry.load(Ordering::SeqCst)) {
            return None;
        }
        entry.fetch_or(ACCESSED | if write { DIRTY } else { 0 }, Ordering::SeqCst);
        Some(entry)
    }

    fn flush(&self, who: usize) {
        self.processes[who].remembered.iter().for_each(|entry| entry.set(0));
    }

    /// The kernel's way to change an entry.
    fn own(&self, who: usize, table: usize) -> Option<&Table> {
        let entry = &self.processes[who].directory[table];
        let value = entry.load(Ordering::SeqCst);
        let address = match value & (PRESENT | WRITABLE) {
            0 => {
                let address = self.arena.alloc()?;
                for entry in self.arena.table(address) {
                    entry.store(0, Ordering::SeqCst);
                }
                entry.store(address | PRESENT | WRITABLE, Ordering::SeqCst);
                address
            }
            PRESENT => own(&self.arena, entry, || self.flush(who)),
            _ => value & ADDRESS,
        };
        assert_eq!(page_count(&self.arena, entry.load(Ordering::SeqCst)), self.pages(who, table));
        Some(self.arena.table(address))
    }

    fn pages(&self, who: usize, table: usize) -> usize {
        self.processes[who].expected[table].iter().flatten().count()
    }

    fn write(&mut self, who: usize, table: usize, page: usize, byte: u8) {
        loop {
            if let Some(entry) = self.walk(who, table, page, true) {
                let frame = entry.load(Ordering::SeqCst) & ADDRESS;
                self.contents.borrow_mut().insert(frame, byte);
                break;
            }
            // A page fault.
            let Some(leaves) = self.own(who, table) else { return };
            let entry = &leaves[INDEXES[page]];
            let old = entry.load(Ordering::SeqCst);
            if old & WRITABLE != 0 {
                continue;
            }
            let is_only = old != 0 && self.arena.count(old & ADDRESS).load(Ordering::SeqCst) == 1;
            if is_only {
                entry.store(old & ADDRESS | PRESENT | WRITABLE, Ordering::SeqCst);
                continue;
            }
            let Some(frame) = self.arena.alloc() else { return };
            entry.store(frame | PRESENT | WRITABLE, Ordering::SeqCst);
            if old != 0 {
                self.flush(who);
                self.arena.give_up(old & ADDRESS);
            }
        }
        self.processes[who].expected[table][page] = Some(byte);
    }

    fn unmap(&mut self, who: usize, table: usize, page: usize) {
        if self.processes[who].directory[table].load(Ordering::SeqCst) == 0 {
            return;
        }
        let entry = &self.own(who, table).expect("memory is not needed")[INDEXES[page]];
        let old = entry.swap(0, Ordering::SeqCst);
        self.flush(who);
        if owns_page(old) {
            self.arena.give_up(old & ADDRESS);
        }
        self.processes[who].expected[table][page] = None;
    }

    fn park(&mut self, who: usize, table: usize, page: usize) {
        if self.processes[who].expected[table][page].is_some() {
            let entry = &self.own(who, table).unwrap()[INDEXES[page]];
            let old = entry.load(Ordering::SeqCst);
            entry.store(old & ADDRESS | PARKED, Ordering::SeqCst);
            self.flush(who);
        }
    }

    fn fork(&mut self, who: usize) {
        let parent = &self.processes[who];
        let mut child = Process {
            directory: [const { AtomicU64::new(0) }; TABLES],
            remembered: [const { Cell::new(0) }; TABLES],
            expected: parent.expected,
        };
        for table in 0..TABLES {
            let (own, new) = (&parent.directory[table], &child.directory[table]);
            let value = own.load(Ordering::SeqCst);
            if value & PRESENT == 0 {
                continue;
            }
            let pages = page_count(&self.arena, value);
            assert_eq!(pages, self.pages(who, table));
            match share(&self.arena, own, new, pages) {
                Ok(lost) => assert_eq!(lost, value & WRITABLE != 0),
                Err(OutOfMemory) => {
                    assert_eq!(own.load(Ordering::SeqCst) & !ACCESSED, value & !ACCESSED);
                    child.expected[table] = [None; PAGES];
                    continue;
                }
            }
            assert!(sharers(&self.arena, value & !WRITABLE) > 1);
        }
        self.flush(who);
        self.processes.push(child);
    }

    fn give_up(&mut self, who: usize, table: usize) {
        let value = self.processes[who].directory[table].swap(0, Ordering::SeqCst);
        self.flush(who);
        if value == 0 {
            return;
        }
        if value & WRITABLE == 0 {
            release(&self.arena, value);
        } else {
            for entry in self.arena.table(value & ADDRESS) {
                let entry = entry.load(Ordering::SeqCst);
                if owns_page(entry) {
                    self.arena.give_up(entry & ADDRESS);
                }
            }
            self.arena.free(value & ADDRESS);
        }
        self.processes[who].expected[table] = [None; PAGES];
    }

    fn exit(&mut self, who: usize) {
        (0..TABLES).for_each(|table| self.give_up(who, table));
        self.processes.swap_remove(who);
    }

    fn check(&self) {
        for (who, process) in self.processes.iter().enumerate() {
            for (table, pages) in process.expected.iter().enumerate() {
                for (page, expected) in pages.iter().enumerate() {
                    let value = process.directory[table].load(Ordering::SeqCst);
                    let entry = match value & PRESENT {
                        0 => 0,
                        _ => {
                            self.arena.table(value & ADDRESS)[INDEXES[page]].load(Ordering::SeqCst)
                        }
                    };
                    let found =
                        owns_page(entry).then(|| self.contents.borrow()[&(entry & ADDRESS)]);
                    assert_eq!(found, *expected, "process {who}, table {table}, page {page}");
                    if entry & PRESENT != 0 {
                        assert!(self.walk(who, table, page, false).is_some());
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(u8),
    Unmap,
    Park,
    UnmapTable,
    Fork,
    Exit,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => any::<u8>().prop_map(Op::Write),
        1 => Just(Op::Unmap),
        1 => Just(Op::Park),
        1 => Just(Op::UnmapTable),
        3 => Just(Op::Fork),
        2 => Just(Op::Exit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn each_process_finds_what_it_wrote(
        ops in prop::collection::vec((0..4usize, 0..TABLES, 0..PAGES, op()), 1..60)
    ) {
        let first = Process {
            directory: [const { AtomicU64::new(0) }; TABLES],
            remembered: [const { Cell::new(0) }; TABLES],
            expected: [[None; PAGES]; TABLES],
        };
        let mut world = World {
            arena: Arena::new(FRAMES),
            contents: RefCell::default(),
            processes: vec![first],
        };
        for (who, table, page, op) in ops {
            let who = who % world.processes.len();
            match op {
                Op::Write(byte) => world.write(who, table, page, byte),
                Op::Unmap => world.unmap(who, table, page),
                Op::Park => world.park(who, table, page),
                Op::UnmapTable => world.give_up(who, table),
                Op::Fork if world.processes.len() < 4 => world.fork(who),
                Op::Exit if world.processes.len() > 1 => world.exit(who),
                Op::Fork | Op::Exit => {}
            }
            world.check();
        }
        while !world.processes.is_empty() {
            world.exit(0);
        }
        prop_assert_eq!(world.arena.in_use(), 0);
    }
}

/// Two processes write, and give up, the same tables at the same time.
#[test]
fn sharers_go_apart_at_the_same_time() {
    const ROUNDS: usize = 2000;
    const WHO: usize = 3;
    let arena = Arena::new(32);
    for round in 0..ROUNDS {
        let parent = AtomicU64::new(arena.alloc().unwrap() | PRESENT | WRITABLE);
        let table = arena.table(parent.load(Ordering::SeqCst) & ADDRESS);
        for (index, entry) in table.iter().enumerate() {
            let page =
                if index % 128 == 0 { arena.alloc().unwrap() | PRESENT | WRITABLE } else { 0 };
            entry.store(page, Ordering::SeqCst);
        }
        let directory: [AtomicU64; WHO] = [const { AtomicU64::new(0) }; WHO];
        for entry in &directory {
            share(&arena, &parent, entry, 4).unwrap();
        }
        release(&arena, parent.load(Ordering::SeqCst));
        let start = std::sync::Barrier::new(WHO);
        let run = &|who: usize| {
            start.wait();
            let entry = &directory[who];
            if (round >> who) & 1 == 0 {
                own(&arena, entry, || ());
                let value = entry.load(Ordering::SeqCst);
                assert_eq!(value & WRITABLE, WRITABLE);
                for entry in arena.table(value & ADDRESS) {
                    arena_release(&arena, entry.swap(0, Ordering::SeqCst));
                }
                arena.free(value & ADDRESS);
            } else {
                release(&arena, entry.load(Ordering::SeqCst));
            }
        };
        std::thread::scope(|scope| {
            (0..WHO).for_each(|who| drop(scope.spawn(move || run(who))));
        });
        assert_eq!(arena.in_use(), 0, "round {round}");
    }
}

fn arena_release(arena: &Arena, entry: u64) {
    if owns_page(entry) {
        arena.give_up(entry & ADDRESS);
    }
}
