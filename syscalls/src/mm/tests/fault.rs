//! Page faults: copy on write, files' ends, stacks, patched code.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as linux;

use super::*;
use crate::{
    mm::{CodePage, CodePatcher, CodeRange, FixedPages, MapRequest, Protection, VmaFlags},
    page::OutOfMemory,
    task::rlimit::{Limit, Resource},
};

#[test]
fn untouched_memory_costs_one_page_however_much_is_read() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0, 100 * PAGE, RW, ANON).unwrap() as u64;
    let before = process.machine.frames_in_use();
    for page in 0..100 {
        assert_eq!(peek(&space, at + page * PAGE), Ok(0));
    }
    assert_eq!(process.machine.frames_in_use(), before + 1);
    poke(&space, at + 3 * PAGE, 8).unwrap();
    assert_eq!((peek(&space, at + 3 * PAGE), peek(&space, at + 4 * PAGE)), (Ok(8), Ok(0)));
    assert_eq!(process.machine.frames_in_use(), before + 2);
}

#[test]
fn after_fork_each_sees_its_own_writes() {
    let process = TestProcess::new();
    let parent = process.space();
    let at = mmap(&process, 0, 3 * PAGE, RW, ANON).unwrap() as u64;
    let shared = mmap(&process, 0, PAGE, RW, SHARED_ANON).unwrap() as u64;
    poke(&parent, at, 1).unwrap();
    poke(&parent, at + PAGE, 1).unwrap();
    poke(&parent, shared, 1).unwrap();
    let before = process.machine.frames_in_use();
    let child = parent.fork().unwrap();
    assert_eq!(process.machine.frames_in_use(), before, "nothing is copied by the fork itself");
    poke(&child, at, 2).unwrap();
    poke(&parent, at + PAGE, 3).unwrap();
    poke(&child, shared, 4).unwrap();
    assert_eq!((peek(&parent, at), peek(&child, at)), (Ok(1), Ok(2)));
    assert_eq!((peek(&parent, at + PAGE), peek(&child, at + PAGE)), (Ok(3), Ok(1)));
    assert_eq!((peek(&parent, shared), peek(&child, shared)), (Ok(4), Ok(4)));
    assert_eq!(process.machine.frames_in_use(), before + 2);
    // The last owner writes in place.
    poke(&parent, at, 5).unwrap();
    assert_eq!(process.machine.frames_in_use(), before + 2);
    drop(child);
    poke(&parent, at, 6).unwrap();
    assert_eq!(process.machine.frames_in_use(), before);
}

#[test]
fn fork_obeys_advice_and_forgets_locks() {
    let process = TestProcess::new();
    let parent = process.space();
    let at = mmap(&process, 0x2000_0000, 4 * PAGE, RW, ANON).unwrap() as u64;
    for page in 0..4 {
        poke(&parent, at + page * PAGE, 1).unwrap();
    }
    let advise = |page, advice: u32| {
        process.call(linux::__NR_madvise, &[at + page * PAGE, PAGE, advice.into()]).unwrap();
    };
    advise(1, linux::MADV_DONTFORK);
    advise(2, linux::MADV_WIPEONFORK);
    process.call(linux::__NR_mlock, &[at + 3 * PAGE, PAGE]).unwrap();
    process.call(linux::__NR_mlockall, &[linux::MCL_FUTURE.into()]).unwrap();
    let child = parent.fork().unwrap();
    assert_eq!(peek(&child, at), Ok(1));
    assert_eq!(peek(&child, at + PAGE), Err(Fault::NotMapped));
    assert_eq!((peek(&child, at + 2 * PAGE), peek(&parent, at + 2 * PAGE)), (Ok(0), Ok(1)));
    assert_eq!(child.accounts().locked, 0);
    let request = MapRequest::anonymous(PAGE_SIZE, Protection::READ);
    child.map(request).unwrap();
    assert_eq!(child.accounts().locked, 0);
    advise(1, linux::MADV_DOFORK);
    advise(2, linux::MADV_KEEPONFORK);
    let second = parent.fork().unwrap();
    assert_eq!((peek(&second, at + PAGE), peek(&second, at + 2 * PAGE)), (Ok(1), Ok(1)));
}

#[test]
fn a_grandchild_shares_with_both() {
    let process = TestProcess::new();
    let parent = process.space();
    let at = mmap(&process, 0, PAGE, RW, ANON).unwrap() as u64;
    poke(&parent, at, 1).unwrap();
    let child = parent.fork().unwrap();
    let grandchild = child.fork().unwrap();
    poke(&child, at, 2).unwrap();
    assert_eq!((peek(&parent, at), peek(&grandchild, at)), (Ok(1), Ok(1)));
    poke(&grandchild, at, 3).unwrap();
    poke(&parent, at, 4).unwrap();
    assert_eq!([&parent, &child, &grandchild].map(|space| peek(space, at).unwrap()), [4, 2, 3]);
}

#[test]
fn pages_written_before_a_file_was_forked_go_along() {
    let process = TestProcess::new();
    let parent = process.space();
    let fd = open(&process, &TestFile::new(2 * PAGE), linux::O_RDONLY);
    let at = mmap_file(&process, 0, 2 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    poke(&parent, at, 50).unwrap();
    let child = parent.fork().unwrap();
    poke(&parent, at, 51).unwrap();
    assert_eq!((peek(&child, at), peek(&child, at + PAGE)), (Ok(50), Ok(2)));
}

#[test]
fn an_area_with_copies_keeps_them_when_it_becomes_part_of_another() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = open(&process, &TestFile::new(2 * PAGE), linux::O_RDONLY);
    let at = 0x2000_0000;
    let map = |page: u64| {
        mmap_file(&process, at + page * PAGE, PAGE, RW, PRIVATE | FIXED, fd, page * PAGE).unwrap();
    };
    map(1);
    poke(&space, at + PAGE, 50).unwrap();
    map(0);
    assert_eq!(areas(&space, at), ["0-2 rw-p"]);
    let child = space.fork().unwrap();
    assert_eq!((peek(&child, at), peek(&child, at + PAGE)), (Ok(1), Ok(50)));
}

#[test]
fn a_files_end() {
    let process = TestProcess::new();
    let space = process.space();
    let file = TestFile::new(PAGE + 10);
    let fd = open(&process, &file, linux::O_RDWR);
    for flags in [PRIVATE, SHARED] {
        let at = mmap_file(&process, 0, 4 * PAGE, RW, flags, fd, 0).unwrap() as u64;
        assert_eq!(peek(&space, at + PAGE + 9), Ok(2));
        assert_eq!(peek(&space, at + PAGE + 10), Ok(0));
        assert_eq!(peek(&space, at + 2 * PAGE), Err(Fault::PastEnd));
        assert_eq!(poke(&space, at + 2 * PAGE, 1), Err(Fault::PastEnd));
        // Growing makes the pages there; shrinking takes them away, private copies too.
        file.truncate(3 * PAGE);
        assert_eq!(peek(&space, at + 2 * PAGE), Ok(3));
        poke(&space, at + 2 * PAGE, 9).unwrap();
        let resident = space.accounts().resident;
        file.truncate(PAGE + 10);
        assert_eq!(space.accounts().resident, resident - 1);
        assert_eq!(peek(&space, at + 2 * PAGE), Err(Fault::PastEnd));
    }
}

#[test]
fn shared_writes_reach_the_file_and_private_ones_do_not() {
    let process = TestProcess::new();
    let space = process.space();
    let file = TestFile::new(3 * PAGE);
    let fd = open(&process, &file, linux::O_RDWR);
    let shared = mmap_file(&process, 0, 3 * PAGE, RW, SHARED, fd, 0).unwrap() as u64;
    let private = mmap_file(&process, 0, 3 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    assert_eq!((peek(&space, shared), peek(&space, private)), (Ok(1), Ok(1)));
    poke(&space, shared, 10).unwrap();
    poke(&space, private + PAGE, 11).unwrap();
    assert_eq!((file.byte(0), file.byte(1)), (10, 2));
    assert_eq!((peek(&space, private), peek(&space, shared + PAGE)), (Ok(10), Ok(2)));
}

#[test]
fn a_page_that_the_file_exchanges_is_exchanged_in_mappings() {
    let process = TestProcess::new();
    let space = process.space();
    let file = TestFile::new(2 * PAGE);
    let fd = open(&process, &file, linux::O_RDWR);
    let shared = mmap_file(&process, 0, 2 * PAGE, R, SHARED, fd, 0).unwrap() as u64;
    let private = mmap_file(&process, 0, 2 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    assert_eq!((peek(&space, shared), peek(&space, private)), (Ok(1), Ok(1)));
    poke(&space, private + PAGE, 5).unwrap();
    file.exchange(0, 40);
    file.exchange(1, 41);
    assert_eq!((peek(&space, shared), peek(&space, private)), (Ok(40), Ok(40)));
    assert_eq!((peek(&space, shared + PAGE), peek(&space, private + PAGE)), (Ok(41), Ok(5)));
}

#[test]
fn a_mapping_knows_whether_it_is_mapped_writable() {
    let process = TestProcess::new();
    let file = TestFile::new(PAGE);
    let fd = open(&process, &file, linux::O_RDWR);
    let read_only = open(&process, &file, linux::O_RDONLY);
    mmap_file(&process, 0, PAGE, RW, PRIVATE, fd, 0).unwrap();
    mmap_file(&process, 0, PAGE, R, SHARED, read_only, 0).unwrap();
    assert!(file.mappers.is_mapped() && !file.mappers.is_mapped_writable());
    let at = mmap_file(&process, 0, PAGE, R, SHARED, fd, 0).unwrap() as u64;
    assert!(file.mappers.is_mapped_writable());
    process.call(linux::__NR_munmap, &[at, PAGE]).unwrap();
    assert!(!file.mappers.is_mapped_writable());
}

#[test]
fn neighbours_in_memory_are_mapped_with_a_read_fault() {
    let process = TestProcess::new();
    let space = process.space();
    let file = TestFile::new(64 * PAGE);
    let fd = open(&process, &file, linux::O_RDONLY);
    for page in 0..64 {
        let _ = file.byte(page);
    }
    let at = mmap_file(&process, 0x2000_0000, 64 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    assert_eq!(peek(&space, at + 20 * PAGE), Ok(21));
    let mut mapped = Vec::new();
    space.each_mapped_page(UserAddr(at)..UserAddr(at + 64 * PAGE), |addr, entry| {
        assert!(!entry.protection.contains(Protection::WRITE));
        mapped.push((addr.0 - at) / PAGE);
    });
    assert_eq!(mapped, (16..32).collect::<Vec<_>>());
    // Not for those who said that it is of no use.
    let random = [at + 32 * PAGE, 32 * PAGE, linux::MADV_RANDOM.into()];
    process.call(linux::__NR_madvise, &random).unwrap();
    let before = space.accounts().resident;
    assert_eq!(peek(&space, at + 40 * PAGE), Ok(41));
    assert_eq!(space.accounts().resident, before + 1);
}

#[test]
fn image_pages_are_mapped_without_copying_until_they_are_written() {
    struct Image;
    impl Mapping for Image {
        fn page(&self, index: u64) -> Result<Page, Fault> {
            Page::of_image(index as usize * PAGE_SIZE).ok_or(Fault::PastEnd)
        }
        fn page_for_write(&self, _: u64) -> Result<Page, Fault> {
            Err(Fault::OutOfMemory)
        }
    }
    let process = TestProcess::new();
    process.machine.set_image(vec![7; 2 * PAGE_SIZE]);
    let space = process.space();
    let rw = Protection::READ | Protection::WRITE;
    let request = MapRequest::mapping(Arc::new(Image), 0, None, 2 * PAGE_SIZE, rw);
    let at = space.map(request).unwrap().0;
    let before = process.machine.frames_in_use();
    assert_eq!((peek(&space, at), peek(&space, at + PAGE)), (Ok(7), Ok(7)));
    assert_eq!(process.machine.frames_in_use(), before);
    poke(&space, at, 8).unwrap();
    poke(&space, at + 1, 9).unwrap();
    assert_eq!(
        (peek(&space, at), peek(&space, at + 1), peek(&space, at + 2)),
        (Ok(8), Ok(9), Ok(7))
    );
    assert_eq!(process.machine.frames_in_use(), before + 1);
}

#[test]
fn a_stack_grows_down_to_its_limit_and_its_gap() {
    let process = TestProcess::new();
    let space = process.space();
    let top = 0x7000_0000;
    let down = ANON | FIXED | u64::from(linux::MAP_GROWSDOWN);
    mmap(&process, top - PAGE, PAGE, RW, down).unwrap();
    let stack_limit = 600 * PAGE;
    let mut limits = process.thread.process.limits.lock().clone();
    limits.set(Resource::STACK, Limit { soft: stack_limit, hard: u64::MAX });
    space.set_limits(&limits);
    poke(&space, top - 10 * PAGE, 1).unwrap();
    assert_eq!(areas(&space, top), ["-10-0 rw-p"]);
    assert_eq!(space.accounts().stack, 10);
    assert_eq!(peek(&space, top - stack_limit), Ok(0));
    assert_eq!(peek(&space, top - stack_limit - 1), Err(Fault::NotMapped));
    // With something accessible below, the gap stays.
    let other = 0x6000_0000;
    mmap(&process, other - PAGE, PAGE, RW, down).unwrap();
    let below = other - 300 * PAGE;
    mmap(&process, below, PAGE, RW, ANON | FIXED).unwrap();
    let lowest = below + PAGE + crate::mm::STACK_GUARD_GAP;
    assert_eq!(peek(&space, lowest), Ok(0));
    assert_eq!(peek(&space, lowest - PAGE), Err(Fault::NotMapped));
    process.call(linux::__NR_mprotect, &[below, PAGE, 0]).unwrap();
    assert_eq!(peek(&space, lowest - PAGE), Ok(0));
}

#[test]
fn accesses_are_checked_against_the_area() {
    let process = TestProcess::new();
    let space = process.space();
    let at = |prot| mmap(&process, 0, PAGE, prot, ANON).unwrap() as u64;
    let fault = |at, access| space.handle_fault(UserAddr(at), access);
    let (none, read, write, execute) = (at(0), at(R), at(W), at(X));
    assert_eq!(fault(none, Access::Read), Err(Fault::NotAllowed));
    assert_eq!(fault(read, Access::Write), Err(Fault::NotAllowed));
    assert_eq!(fault(read, Access::Execute), Err(Fault::NotAllowed));
    assert_eq!(fault(read, Access::Read), Ok(()));
    // As on x86-64: whatever can be written or executed can be read.
    assert_eq!(fault(write, Access::Read), Ok(()));
    assert_eq!(fault(execute, Access::Read), Ok(()));
    assert_eq!(fault(execute, Access::Execute), Ok(()));
    assert_eq!(fault(8, Access::Read), Err(Fault::NotMapped));
    assert_eq!(fault(u64::MAX, Access::Read), Err(Fault::NotMapped));
    // Faulted in by reading, then made executable.
    let request = [read, PAGE, R | X];
    process.call(linux::__NR_mprotect, &request).unwrap();
    assert_eq!(fault(read, Access::Execute), Ok(()));
}

#[test]
fn no_memory_is_told_and_nothing_leaks() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0, 8 * PAGE, RW, ANON).unwrap() as u64;
    poke(&space, at, 1).unwrap();
    let child = space.fork().unwrap();
    process.machine.set_total_frames(process.machine.frames_in_use());
    assert_eq!(poke(&space, at, 2), Err(Fault::OutOfMemory));
    assert_eq!(poke(&space, at + PAGE, 2), Err(Fault::OutOfMemory));
    assert_eq!(peek(&space, at), Ok(1));
    drop(child);
    poke(&space, at, 2).unwrap();
    let machine = process.machine.clone();
    drop(space);
    drop(process);
    assert_eq!(machine.frames_in_use(), 0);
}

#[test]
fn fixed_pages_are_shared_and_cannot_be_extended() {
    let process = TestProcess::new();
    let space = process.space();
    let pages: Vec<Page> = (0..2).map(|_| Page::zeroed().unwrap()).collect();
    let request = MapRequest::mapping(
        FixedPages::new(pages.clone(), b"[vdso]"),
        0,
        None,
        2 * PAGE_SIZE,
        Protection::READ | Protection::EXEC,
    )
    .with(VmaFlags::DONT_EXPAND);
    let at = space.map(request).unwrap().0;
    pages[1].write(5, &[6]);
    assert_eq!(peek(&space, at + PAGE + 5), Ok(6));
    let remap = [at, 2 * PAGE, 3 * PAGE, linux::MREMAP_MAYMOVE.into()];
    assert_eq!(process.call(linux::__NR_mremap, &remap), Err(Errno::EFAULT));
}

/// Patches the second byte of odd pages.
#[derive(Default)]
struct Patcher {
    ranges: Mutex<Vec<(u64, u64, u64)>>,
    patched: AtomicUsize,
}

impl CodePatcher for Patcher {
    fn original_address(&self, at: UserAddr) -> UserAddr {
        at
    }

    fn resume_address(&self, _at: UserAddr) -> Option<UserAddr> {
        None
    }

    fn range_executable(&self, space: &AddressSpace, code: &CodeRange) {
        let pages = (code.range.end.0 - code.range.start.0) / PAGE;
        self.ranges.lock().unwrap().push((code.range.start.0, pages, code.first));
        // As for stubs.
        let execute = Protection::READ | Protection::EXEC;
        space.map(MapRequest::anonymous(PAGE_SIZE, execute)).unwrap();
    }

    fn forked(&self) -> Arc<dyn CodePatcher> {
        Arc::new(Self::default())
    }

    fn at_hand(&self, page: &CodePage<'_>, original: Page) -> Option<Page> {
        page.index.is_multiple_of(2).then_some(original)
    }

    fn patch(&self, page: &CodePage<'_>, original: &Page) -> Result<Option<Page>, OutOfMemory> {
        if page.index.is_multiple_of(2) {
            return Ok(None);
        }
        self.patched.fetch_add(1, Ordering::Relaxed);
        let patched = original.duplicate()?;
        patched.write(1, &[0xcc]);
        Ok(Some(patched))
    }
}

#[test]
fn code_is_patched_as_it_is_mapped() {
    let process = TestProcess::new();
    let space = process.space();
    let patcher = Arc::new(Patcher::default());
    space.set_code_patcher(patcher.clone());
    let file = TestFile::new(8 * PAGE);
    for page in 0..8 {
        let _ = file.byte(page);
    }
    let fd = open(&process, &file, linux::O_RDWR);
    let at = mmap_file(&process, 0x2000_0000, 8 * PAGE, R | X, PRIVATE, fd, 0).unwrap() as u64;
    assert_eq!(*patcher.ranges.lock().unwrap(), [(at, 8, 0)]);
    // A fault maps the clean pages around it, and patches only the page that was touched.
    assert_eq!(peek(&space, at + PAGE + 1), Ok(0xcc));
    assert_eq!(patcher.patched.load(Ordering::Relaxed), 1);
    assert_eq!(peek(&space, at + 1), Ok(1));
    assert_eq!(peek(&space, at + 3 * PAGE + 1), Ok(0xcc));
    assert_eq!(file.byte(3), 4, "the file is as it was");
    // A forked child has the patched pages without patching.
    let child = space.fork().unwrap();
    assert_eq!(peek(&child, at + 3 * PAGE + 1), Ok(0xcc));
    assert_eq!(patcher.patched.load(Ordering::Relaxed), 2);
    // Shared mappings are the file itself.
    let shared = mmap_file(&process, 0, 8 * PAGE, R | X, SHARED, fd, 0).unwrap() as u64;
    assert_eq!(peek(&space, shared + PAGE + 1), Ok(2));
}

#[test]
fn code_is_patched_when_mprotect_makes_it_executable() {
    let process = TestProcess::new();
    let space = process.space();
    let patcher = Arc::new(Patcher::default());
    space.set_code_patcher(patcher.clone());
    let fd = open(&process, &TestFile::new(8 * PAGE), linux::O_RDONLY);
    let at = mmap_file(&process, 0x2000_0000, 8 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    assert_eq!(peek(&space, at + PAGE + 1), Ok(2));
    poke(&space, at + 3 * PAGE, 77).unwrap();
    process.call(linux::__NR_mprotect, &[at, 8 * PAGE, R | X]).unwrap();
    assert_eq!(*patcher.ranges.lock().unwrap(), [(at, 8, 0)]);
    assert_eq!(peek(&space, at + PAGE + 1), Ok(0xcc));
    assert_eq!(peek(&space, at + 3 * PAGE + 1), Ok(4), "what was written is left alone");
    assert_eq!(peek(&space, at + 3 * PAGE), Ok(77));
    // Writable and executable: the copy is of the patched page.
    let both = mmap_file(&process, 0x3000_0000, 8 * PAGE, RW | X, PRIVATE, fd, 0).unwrap() as u64;
    poke(&space, both + PAGE, 1).unwrap();
    assert_eq!(peek(&space, both + PAGE + 1), Ok(0xcc));
}

#[test]
fn a_mapping_that_changes_while_its_page_is_fetched_is_asked_again() {
    /// Truncates the file behind the fault's back, once.
    struct Racing {
        file: Arc<TestFile>,
        race: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    }
    impl Mapping for Racing {
        fn page(&self, index: u64) -> Result<Page, Fault> {
            let page = self.file.page(index)?;
            if let Some(race) = self.race.lock().unwrap().take() {
                race();
            }
            Ok(page)
        }
        fn page_for_write(&self, index: u64) -> Result<Page, Fault> {
            self.page(index)
        }
        fn mappers(&self) -> Option<&Mappers> {
            self.file.mappers()
        }
    }
    let process = TestProcess::new();
    let space = process.space();
    let file = TestFile::new(2 * PAGE);
    let race: Box<dyn FnOnce() + Send> = {
        let file = file.clone();
        Box::new(move || file.truncate(PAGE))
    };
    let racing = Arc::new(Racing { file, race: Mutex::new(Some(race)) });
    let request = MapRequest::mapping(racing, 0, None, 2 * PAGE_SIZE, Protection::READ);
    let at = space.map(request).unwrap().0;
    assert_eq!(peek(&space, at + PAGE), Err(Fault::PastEnd));
}

#[test]
fn threads_that_fault_at_once_agree() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0, 64 * PAGE, RW, ANON).unwrap() as u64;
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let space = space.clone();
            crate::testing::start(move || {
                for page in 0..64 {
                    poke(&space, at + page * PAGE + thread, thread as u8 + 1).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for page in 0..64 {
        for thread in 0..4 {
            assert_eq!(peek(&space, at + page * PAGE + thread), Ok(thread as u8 + 1));
        }
    }
    assert_eq!(space.accounts().resident, 64);
}
