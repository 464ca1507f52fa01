//! Address spaces against a model that knows nothing of areas or page tables: a list of pages.
//!
//! A random history of calls, touches and forks is played on both. After it, and in between, every
//! page of every process must be as the model has it: whether it can be touched, and what it holds;
//! the areas must be the longest runs of pages that belong together; and the accounts must be what a
//! count gives.

use alloc::string::String;

use linux_raw_sys::general as linux;
use proptest::prelude::*;

use super::*;
use crate::mm::{
    Backing, FileBacking, MapRequest, Place, Protection, RemapRequest, RemapSource, RemapTarget,
    STACK_GUARD_GAP, SharedMemory, VmaFlags,
};

const BASE: u64 = 0x2000_0000;
/// Pages in the stretch of addresses that is played on.
const PAGES: usize = 20;
const FILE_PAGES: u64 = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Anonymous,
    SharedAnonymous,
    PrivateFile,
    SharedFile,
}

#[derive(Clone, Debug)]
enum Op {
    Map { at: usize, len: usize, prot: u32, kind: Kind, first: u64, replace: bool },
    Unmap { at: usize, len: usize },
    Protect { at: usize, len: usize, prot: u32 },
    Resize { at: usize, len: usize, new_len: usize },
    Move { at: usize, len: usize, new_len: usize, to: usize, keep: bool },
    Forget { at: usize, len: usize },
    Write { at: usize, byte: u8 },
    Read { at: usize },
    Truncate { pages: u64 },
    Fork,
    Exit,
    Check,
}

/// An operation, and the process that does it.
fn op() -> impl Strategy<Value = (usize, Op)> {
    let at = 0..PAGES;
    let len = 1..9usize;
    let prot = prop_oneof![Just(0), Just(R), Just(RW), Just(R | X)].prop_map(|bits| bits as u32);
    let kind = prop_oneof![
        2 => Just(Kind::Anonymous),
        1 => Just(Kind::SharedAnonymous),
        2 => Just(Kind::PrivateFile),
        1 => Just(Kind::SharedFile),
    ];
    let op = prop_oneof![
        4 => (at.clone(), len.clone(), prot.clone(), kind, 0..FILE_PAGES, any::<bool>())
            .prop_map(|(at, len, prot, kind, first, replace)| Op::Map { at, len, prot, kind, first, replace }),
        2 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Unmap { at, len }),
        3 => (at.clone(), len.clone(), prot).prop_map(|(at, len, prot)| Op::Protect { at, len, prot }),
        1 => (at.clone(), len.clone(), 1..9usize)
            .prop_map(|(at, len, new_len)| Op::Resize { at, len, new_len }),
        2 => (at.clone(), len.clone(), 1..9usize, at.clone(), any::<bool>())
            .prop_map(|(at, len, new_len, to, keep)| Op::Move { at, len, new_len, to, keep }),
        1 => (at.clone(), len).prop_map(|(at, len)| Op::Forget { at, len }),
        8 => (at.clone(), 100..200u8).prop_map(|(at, byte)| Op::Write { at, byte }),
        4 => at.prop_map(|at| Op::Read { at }),
        1 => (0..=FILE_PAGES).prop_map(|pages| Op::Truncate { pages }),
        1 => Just(Op::Fork),
        1 => Just(Op::Exit),
        1 => Just(Op::Check),
    ];
    (0..3usize, op)
}

/// What a page is of: a number for each shared object, 0 for the file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Origin {
    Anonymous,
    Private { index: u64 },
    Shared { object: usize, index: u64 },
}

impl Origin {
    fn next(self) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Private { index } => Self::Private { index: index + 1 },
            Self::Shared { object, index } => Self::Shared { object, index: index + 1 },
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ModelPage {
    prot: u32,
    origin: Origin,
    /// What the process has written into its private copy.
    own: Option<u8>,
}

type ModelProcess = [Option<ModelPage>; PAGES];

/// Shared contents: by object and index.
struct Model {
    processes: Vec<ModelProcess>,
    shared: BTreeMap<(usize, u64), u8>,
    /// Lengths of the shared objects, in pages.
    lengths: Vec<u64>,
}

impl Model {
    fn shared_byte(&self, object: usize, index: u64) -> Result<u8, Fault> {
        if index >= self.lengths[object] {
            return Err(Fault::PastEnd);
        }
        let initial = if object == 0 { index as u8 + 1 } else { 0 };
        Ok(self.shared.get(&(object, index)).copied().unwrap_or(initial))
    }

    fn read(&self, process: usize, at: usize) -> Result<u8, Fault> {
        let page = self.processes[process][at].ok_or(Fault::NotMapped)?;
        if page.prot == 0 {
            return Err(Fault::NotAllowed);
        }
        match (page.own, page.origin) {
            (Some(byte), _) => Ok(byte),
            (None, Origin::Anonymous) => Ok(0),
            (None, Origin::Private { index }) => self.shared_byte(0, index),
            (None, Origin::Shared { object, index }) => self.shared_byte(object, index),
        }
    }

    fn write(&mut self, process: usize, at: usize, byte: u8) -> Result<(), Fault> {
        let page = self.processes[process][at].ok_or(Fault::NotMapped)?;
        if page.prot & linux::PROT_WRITE == 0 {
            return Err(Fault::NotAllowed);
        }
        self.read(process, at)?;
        match page.origin {
            Origin::Shared { object, index } => {
                self.shared.insert((object, index), byte);
            }
            _ => self.processes[process][at].as_mut().unwrap().own = Some(byte),
        }
        Ok(())
    }

    /// The end of the run of pages that belong together with `at`.
    fn area_end(&self, process: usize, at: usize) -> usize {
        let pages = &self.processes[process];
        let mut end = at + 1;
        while end < PAGES
            && let (Some(last), Some(next)) = (pages[end - 1], pages[end])
            && last.prot == next.prot
            && last.origin.next() == next.origin
        {
            end += 1;
        }
        end
    }

    fn areas(&self, process: usize) -> Vec<String> {
        let mut result = Vec::new();
        let mut at = 0;
        while at < PAGES {
            let Some(page) = self.processes[process][at] else {
                at += 1;
                continue;
            };
            let end = self.area_end(process, at);
            let bit = |bit, letter| if page.prot & bit != 0 { letter } else { '-' };
            let (r, w, x) = (
                bit(linux::PROT_READ, 'r'),
                bit(linux::PROT_WRITE, 'w'),
                bit(linux::PROT_EXEC, 'x'),
            );
            let s = if matches!(page.origin, Origin::Shared { .. }) { 's' } else { 'p' };
            result.push(alloc::format!("{at}-{end} {r}{w}{x}{s}"));
            at = end;
        }
        result
    }
}

struct World {
    spaces: Vec<Arc<AddressSpace>>,
    file: Arc<TestFile>,
    model: Model,
}

fn addr(page: usize) -> u64 {
    BASE + page as u64 * PAGE
}

fn user(at: usize, len: usize) -> Range<UserAddr> {
    UserAddr(addr(at))..UserAddr(addr(at + len))
}

impl World {
    fn new(first: Arc<AddressSpace>) -> Self {
        Self {
            spaces: vec![first],
            file: TestFile::new(FILE_PAGES * PAGE),
            model: Model {
                processes: vec![[None; PAGES]],
                shared: BTreeMap::new(),
                lengths: vec![FILE_PAGES],
            },
        }
    }

    fn play(&mut self, who: usize, op: &Op) {
        let who = who % self.spaces.len();
        let space = self.spaces[who].clone();
        let space = &*space;
        match *op {
            Op::Map { at, len, prot, kind, first, replace } => {
                let len = len.min(PAGES - at);
                self.map(who, at, len, prot, kind, first, replace);
            }
            Op::Unmap { at, len } => {
                let len = len.min(PAGES - at);
                space.unmap(user(at, len)).unwrap();
                self.model.processes[who][at..at + len].fill(None);
            }
            Op::Protect { at, len, prot } => {
                let len = len.min(PAGES - at);
                let result = space.protect(user(at, len), Protection::from_bits_retain(prot));
                let mut expected = Ok(());
                for page in &mut self.model.processes[who][at..at + len] {
                    match page {
                        Some(page) => page.prot = prot,
                        None => {
                            expected = Err(Errno::ENOMEM);
                            break;
                        }
                    }
                }
                assert_eq!(result, expected);
            }
            Op::Resize { at, len, new_len } => {
                self.resize(who, at, len.min(PAGES - at), new_len.min(PAGES - at));
            }
            Op::Move { at, len, new_len, to, keep } => {
                let new_len = new_len.min(PAGES - to);
                let len = if keep { new_len } else { len };
                self.relocate(who, at, len.min(PAGES - at), new_len, to, keep);
            }
            Op::Forget { at, len } => {
                let len = len.min(PAGES - at);
                let result = space.advise(addr(at)..addr(at + len), linux::MADV_DONTNEED);
                let mut expected = Ok(());
                for page in &mut self.model.processes[who][at..at + len] {
                    match page {
                        Some(page) => page.own = None,
                        None => expected = Err(Errno::ENOMEM),
                    }
                }
                assert_eq!(result, expected);
            }
            Op::Write { at, byte } => {
                assert_eq!(poke(space, addr(at), byte), self.model.write(who, at, byte));
            }
            Op::Read { at } => {
                assert_eq!(peek(space, addr(at)), self.model.read(who, at));
            }
            Op::Truncate { pages } => {
                self.file.truncate(pages * PAGE);
                self.model.lengths[0] = pages;
                self.model.shared.retain(|(object, index), _| *object != 0 || *index < pages);
                for page in self.model.processes.iter_mut().flatten().flatten() {
                    if matches!(page.origin, Origin::Private { index } if index >= pages) {
                        page.own = None;
                    }
                }
            }
            Op::Fork if self.spaces.len() < 3 => {
                self.spaces.push(space.fork().unwrap());
                let copy = self.model.processes[who];
                self.model.processes.push(copy);
            }
            Op::Exit if self.spaces.len() > 1 => {
                self.spaces.remove(who);
                self.model.processes.remove(who);
            }
            Op::Fork | Op::Exit => {}
            Op::Check => self.check(),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn map(
        &mut self,
        who: usize,
        at: usize,
        len: usize,
        prot: u32,
        kind: Kind,
        first: u64,
        replace: bool,
    ) {
        let is_shared = matches!(kind, Kind::SharedAnonymous | Kind::SharedFile);
        let object = if kind == Kind::SharedAnonymous { self.model.lengths.len() } else { 0 };
        let place = UserAddr(addr(at));
        let mut request =
            MapRequest::anonymous(len * PAGE_SIZE, Protection::from_bits_retain(prot));
        request.place = if replace { Place::Fixed(place) } else { Place::FixedNoReplace(place) };
        if is_shared {
            request.flags |= VmaFlags::SHARED;
        }
        let first = if object == 0 { first } else { 0 };
        let mapping: Option<Arc<dyn Mapping>> = match kind {
            Kind::Anonymous => None,
            Kind::SharedAnonymous => {
                Some(SharedMemory::new(len * PAGE_SIZE, b"", FileIdentity::default()))
            }
            Kind::PrivateFile | Kind::SharedFile => Some(self.file.clone()),
        };
        if let Some(mapping) = mapping {
            request.backing = Backing::Mapping(FileBacking { mapping, first, file: None });
        }
        let pages = &mut self.model.processes[who][at..at + len];
        let expected = if !replace && pages.iter().any(Option::is_some) {
            Err(Errno::EEXIST)
        } else {
            let mut origin = match kind {
                Kind::Anonymous => Origin::Anonymous,
                Kind::PrivateFile => Origin::Private { index: first },
                _ => Origin::Shared { object, index: first },
            };
            for page in pages {
                *page = Some(ModelPage { prot, origin, own: None });
                origin = origin.next();
            }
            if kind == Kind::SharedAnonymous {
                self.model.lengths.push(len as u64);
            }
            Ok(place)
        };
        assert_eq!(self.spaces[who].map(request), expected);
    }

    fn remap(
        &self,
        who: usize,
        at: usize,
        len: usize,
        new_len: usize,
        target: RemapTarget,
        source: RemapSource,
    ) -> Result<UserAddr, Errno> {
        self.spaces[who].remap(&RemapRequest {
            old_start: addr(at),
            old_len: len as u64 * PAGE,
            new_len: new_len as u64 * PAGE,
            target,
            source,
            lock_limit: u64::MAX,
        })
    }

    fn resize(&mut self, who: usize, at: usize, len: usize, new_len: usize) {
        let result = self.remap(who, at, len, new_len, RemapTarget::Here, RemapSource::Unmap);
        let end = self.model.area_end(who, at);
        let pages = &mut self.model.processes[who];
        let expected = if pages[at].is_none() {
            Err(Errno::EFAULT)
        } else if new_len <= len {
            pages[at + new_len..at + len].fill(None);
            Ok(UserAddr(addr(at)))
        } else if at + len > end {
            Err(Errno::EFAULT)
        } else if at + len < end || pages[end..at + new_len].iter().any(Option::is_some) {
            Err(Errno::ENOMEM)
        } else {
            for page in end..at + new_len {
                let last = pages[page - 1].unwrap();
                pages[page] = Some(ModelPage { origin: last.origin.next(), own: None, ..last });
            }
            Ok(UserAddr(addr(at)))
        };
        assert_eq!(result, expected);
    }

    fn relocate(
        &mut self,
        who: usize,
        at: usize,
        len: usize,
        new_len: usize,
        to: usize,
        keep: bool,
    ) {
        let target = RemapTarget::Fixed(UserAddr(addr(to)));
        let source = if keep { RemapSource::Keep } else { RemapSource::Unmap };
        // DONTUNMAP wants equal lengths; `mremap` itself has seen to that.
        let new_len = if keep { len.min(new_len) } else { new_len };
        let len = if keep { new_len } else { len };
        let result = self.remap(who, at, len, new_len, target, source);
        let overlaps = at < to + new_len && to < at + len;
        let expected = if self.model.processes[who][at].is_none() {
            Err(if overlaps { Errno::EINVAL } else { Errno::EFAULT })
        } else if overlaps {
            Err(Errno::EINVAL)
        } else {
            self.model.processes[who][to..to + new_len].fill(None);
            if len > new_len {
                self.model.processes[who][at + new_len..at + len].fill(None);
            }
            let len = len.min(new_len);
            if self.model.area_end(who, at) < at + len {
                Err(Errno::EFAULT)
            } else {
                let pages = &mut self.model.processes[who];
                for offset in 0..new_len {
                    pages[to + offset] = if offset < len {
                        let page = pages[at + offset];
                        pages[at + offset] =
                            page.filter(|_| keep).map(|page| ModelPage { own: None, ..page });
                        page
                    } else {
                        let last = pages[to + offset - 1].unwrap();
                        Some(ModelPage { origin: last.origin.next(), own: None, ..last })
                    };
                }
                Ok(UserAddr(addr(to)))
            }
        };
        // An address that is not mapped is found out before one that overlaps.
        let expected = match (expected, self.model.processes[who][at]) {
            (Err(Errno::EINVAL), None) => Err(Errno::EFAULT),
            (expected, _) => expected,
        };
        assert_eq!(result, expected);
    }

    fn check(&self) {
        for (who, space) in self.spaces.iter().enumerate() {
            assert_eq!(areas(space, BASE), self.model.areas(who));
            let pages = &self.model.processes[who];
            for at in 0..PAGES {
                assert_eq!(peek(space, addr(at)), self.model.read(who, at), "page {at}");
            }
            let accounts = space.accounts();
            let mapped = pages.iter().flatten().count() as u64;
            let is_data = |page: &&ModelPage| {
                page.prot & linux::PROT_WRITE != 0 && !matches!(page.origin, Origin::Shared { .. })
            };
            assert_eq!(accounts.total, mapped);
            assert_eq!(accounts.data, pages.iter().flatten().filter(is_data).count() as u64);
            let mut resident = 0;
            space.each_mapped_page(user(0, PAGES), |_, _| resident += 1);
            assert_eq!(accounts.resident, resident);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_as_the_model_has_it(ops in proptest::collection::vec(op(), 1..80)) {
        let process = TestProcess::new();
        let machine = process.machine.clone();
        let mut world = World::new(process.space());
        for (who, op) in &ops {
            world.play(*who, op);
        }
        world.check();
        drop(world);
        drop(process);
        prop_assert_eq!(machine.frames_in_use(), 0);
    }

    #[test]
    fn places_are_the_highest_that_are_free(
        sizes in proptest::collection::vec((1..6u64, any::<bool>(), 0..100usize, proptest::bool::weighted(0.1)), 1..120)
    ) {
        // Against a search of every address from the top.
        let top = 1u64 << 40;
        let mut tree = crate::mm::VmaTree::new(top);
        let mut taken: Vec<(Range<u64>, u64)> = Vec::new();
        for (len, unmap, which, is_stack) in sizes {
            if unmap && !taken.is_empty() {
                let (range, _) = taken.swap_remove(which % taken.len());
                tree.take(range);
                continue;
            }
            let len = len * PAGE;
            let is_free = |at: u64| taken.iter().all(|(range, guard)| at + len <= range.start - guard || range.end <= at);
            let expected = (1..).map(|page| top - page * PAGE).filter(|at| at + len <= top).find(|at| is_free(*at));
            let found = tree.find_gap(len);
            prop_assert_eq!(found, expected);
            let at = found.unwrap();
            taken.push((at..at + len, if is_stack { STACK_GUARD_GAP } else { 0 }));
            tree.insert(crate::mm::Vma {
                start: at,
                end: at + len,
                protection: if which % 2 == 0 { Protection::READ } else { Protection::WRITE },
                flags: if is_stack { VmaFlags::GROWS_DOWN } else { VmaFlags::empty() },
                backing: Backing::Anonymous,
                name: None,
                has_private_pages: false,
            });
        }
    }
}
