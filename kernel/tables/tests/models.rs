//! A processor that switches between address spaces while others change them, in every order that the
//! memory model allows with up to three preemptions (loom). The interrupt by which it is asked to flush runs
//! beside it, which allows more than an interrupt does.
#![allow(unreachable_pub, dead_code, missing_docs, reason = "a module of the crate, as it is")]

use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// What a processor shares with its own interrupts, which see all that it has done; loom's threads would
/// see some of it late. So every access is one that never does.
mod atomic {
    use loom::sync::atomic;
    pub(crate) use loom::sync::atomic::Ordering;

    macro_rules! latest {
        ($name:ident, $value:ty) => {
            #[derive(Debug)]
            pub(crate) struct $name(atomic::$name);

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                pub(crate) fn load(&self, _: Ordering) -> $value {
                    self.0.fetch_add(0, Ordering::SeqCst)
                }

                pub(crate) fn store(&self, value: $value, _: Ordering) {
                    self.0.swap(value, Ordering::SeqCst);
                }

                pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    self.0.fetch_add(value, order)
                }

                pub(crate) fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.0.compare_exchange(old, new, success, failure)
                }
            }
        };
    }

    latest!(AtomicU64, u64);
    latest!(AtomicUsize, usize);
}

#[path = "../src/pcid.rs"]
mod pcid;

use pcid::{Hardware, Keep, Processor, Space};

const PAGES: usize = 2;
/// Roots of the two address spaces; the first is the one that changes.
const ROOTS: [u64; 2] = [0x1000, 0x2000];

/// The processor's translations: under which identifier, of which page, to which frame.
#[derive(Default)]
struct Translations {
    cr3: u64,
    known: Vec<(u64, usize, u64)>,
    /// Frames that have been given back.
    free: Vec<u64>,
}

impl Translations {
    fn flush(&mut self, identifier: u64) {
        self.known.retain(|(of, ..)| *of != identifier);
    }

    fn check(&self) {
        let own = self.cr3 & 0xfff;
        let stale = |(of, _, frame): &&(u64, usize, u64)| *of == own && self.free.contains(frame);
        assert_eq!(self.known.iter().find(stale), None, "a page that has been given back is used");
    }
}

struct Machine {
    translations: Mutex<Translations>,
    processor: Processor,
    spaces: [Space; 2],
    /// The frames of the first address space's pages.
    pages: [AtomicU64; PAGES],
    /// Changes of an address space come one after the other.
    changing: Mutex<()>,
    is_user: AtomicU64,
    active_root: AtomicU64,
    loaded_root: AtomicU64,
}

impl Hardware for Machine {
    fn load(&self, root: u64, identifier: u64, keep: Keep) {
        let mut translations = self.translations.lock().unwrap();
        translations.cr3 = root | identifier;
        if keep == Keep::No {
            translations.flush(identifier);
        }
        translations.check();
    }

    fn flush_identifier(&self, cr3: u64) {
        self.translations.lock().unwrap().flush(cr3 & 0xfff);
    }
}

impl Machine {
    fn new() -> Self {
        Self {
            translations: Mutex::new(Translations::default()),
            processor: Processor::default(),
            spaces: [Space::new(1), Space::new(2)],
            pages: [AtomicU64::new(0), AtomicU64::new(1)],
            changing: Mutex::new(()),
            is_user: AtomicU64::new(0),
            active_root: AtomicU64::new(0),
            loaded_root: AtomicU64::new(0),
        }
    }

    fn switch(&self, to: usize) {
        self.active_root.store(ROOTS[to], Ordering::SeqCst);
        if to == 0 {
            self.is_user.fetch_or(1, Ordering::SeqCst);
        }
        self.processor.enter(self, &self.spaces[to], ROOTS[to]);
        self.loaded_root.store(ROOTS[to], Ordering::Release);
    }

    /// Uses all pages of the first address space.
    fn touch(&self) {
        let mut translations = self.translations.lock().unwrap();
        let identifier = translations.cr3 & 0xfff;
        for (page, entry) in self.pages.iter().enumerate() {
            let is_known = |(of, at, _): &(u64, usize, u64)| (*of, *at) == (identifier, page);
            if !translations.known.iter().any(is_known) {
                let frame = entry.load(Ordering::Acquire);
                translations.known.push((identifier, page, frame));
            }
        }
        translations.check();
    }

    /// Another processor puts a new page in the place of one.
    fn replace(&self, page: usize) {
        let _changing = self.changing.lock().unwrap();
        let old = self.pages[page].swap(10 + page as u64, Ordering::SeqCst);
        let change = self.spaces[0].change();
        let ask = || {
            self.processor.flush_coming(self);
            let mut translations = self.translations.lock().unwrap();
            let identifier = translations.cr3 & 0xfff;
            translations.known.retain(|(of, at, _)| (*of, *at) != (identifier, page));
            drop(translations);
            self.processor.flushed(change);
        };
        // Loom's loads may be late even if they are sequentially consistent; this one is not.
        if self.is_user.fetch_or(0, Ordering::SeqCst) == 1 {
            if self.active_root.load(Ordering::SeqCst) == ROOTS[0] {
                ask();
            } else if self.loaded_root.load(Ordering::Acquire) != ROOTS[0] {
                self.is_user.fetch_and(0, Ordering::SeqCst);
                if self.active_root.load(Ordering::SeqCst) == ROOTS[0] {
                    self.is_user.fetch_or(1, Ordering::SeqCst);
                    ask();
                }
            }
        }
        // Whoever finds it under the identifier that is loaded from now on has been told too late.
        self.translations.lock().unwrap().free.push(old);
    }
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

fn changes(pages: usize, preemptions: usize) {
    model(preemptions, move || {
        let machine = Arc::new(Machine::new());
        machine.switch(0);
        machine.touch();
        machine.switch(1);
        let changers: Vec<_> = (0..pages)
            .map(|page| {
                let machine = machine.clone();
                thread::spawn(move || machine.replace(page))
            })
            .collect();
        machine.switch(0);
        machine.touch();
        machine.switch(1);
        machine.switch(0);
        machine.touch();
        for changer in changers {
            changer.join().unwrap();
        }
        machine.touch();
    });
}

#[test]
fn a_change_is_seen_while_the_address_space_comes_back() {
    changes(1, 3);
}

#[test]
fn two_changes_are_seen() {
    changes(2, 2);
}
