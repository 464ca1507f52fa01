//! Tests of memory as a process sees it: through the calls, and through touching it.

mod calls;
mod fault;
mod model;
mod report;

use alloc::{collections::BTreeMap, sync::Arc, vec, vec::Vec};
use core::{any::Any, ops::Range};
use std::sync::Mutex;

use linux_raw_sys::general as linux;

use crate::{
    Errno, SysResult,
    fs::{File, FileDescription, OnExec},
    mm::{Access, AddressSpace, Fault, FileIdentity, Mappers, Mapping},
    page::{PAGE_SIZE, Page},
    testing::TestProcess,
    user::UserAddr,
};

pub(super) const PAGE: u64 = PAGE_SIZE as u64;
pub(super) const R: u64 = linux::PROT_READ as u64;
pub(super) const W: u64 = linux::PROT_WRITE as u64;
pub(super) const RW: u64 = R | W;
pub(super) const X: u64 = linux::PROT_EXEC as u64;
pub(super) const PRIVATE: u64 = linux::MAP_PRIVATE as u64;
pub(super) const SHARED: u64 = linux::MAP_SHARED as u64;
pub(super) const ANON: u64 = (linux::MAP_PRIVATE | linux::MAP_ANONYMOUS) as u64;
pub(super) const SHARED_ANON: u64 = (linux::MAP_SHARED | linux::MAP_ANONYMOUS) as u64;
pub(super) const FIXED: u64 = linux::MAP_FIXED as u64;

/// A file for mapping: pages that are made when first asked for, each filled with its index + 1.
pub(super) struct TestFile {
    pages: Mutex<(u64, BTreeMap<u64, Page>)>,
    mappers: Mappers,
}

impl TestFile {
    /// A file of `len` bytes.
    pub(super) fn new(len: u64) -> Arc<Self> {
        Arc::new(Self { pages: Mutex::new((len, BTreeMap::new())), mappers: Mappers::new() })
    }

    /// Cuts or extends it.
    pub(super) fn truncate(&self, len: u64) {
        let mut pages = self.pages.lock().unwrap();
        pages.0 = len;
        let first = len.div_ceil(PAGE);
        drop(pages.1.split_off(&first));
        drop(pages);
        self.mappers.truncated(first);
    }

    /// Exchanges page `index` for one filled with `byte`, as a first write to the root image does.
    pub(super) fn exchange(&self, index: u64, byte: u8) {
        let page = Page::zeroed().unwrap();
        page.write(0, &[byte; PAGE_SIZE]);
        let former = self.pages.lock().unwrap().1.insert(index, page);
        if let Some(former) = former {
            self.mappers.page_replaced(index, &former);
        }
    }

    /// The first byte of page `index`, as `read` would give it.
    pub(super) fn byte(&self, index: u64) -> u8 {
        let mut byte = [0];
        self.page(index).unwrap().read(0, &mut byte);
        byte[0]
    }
}

impl Mapping for TestFile {
    fn page(&self, index: u64) -> Result<Page, Fault> {
        let mut pages = self.pages.lock().unwrap();
        let (len, pages) = &mut *pages;
        if index >= len.div_ceil(PAGE) {
            return Err(Fault::PastEnd);
        }
        let in_page = (*len - index * PAGE).min(PAGE) as usize;
        let page = pages.entry(index).or_insert_with(|| {
            let page = Page::zeroed().unwrap();
            page.write(0, &vec![index as u8 + 1; in_page]);
            page
        });
        Ok(page.clone())
    }

    fn page_for_write(&self, index: u64) -> Result<Page, Fault> {
        self.page(index)
    }

    fn resident(&self, range: Range<u64>, found: &mut dyn FnMut(u64, Page)) {
        let pages: Vec<_> = {
            let pages = self.pages.lock().unwrap();
            pages.1.range(range).map(|(index, page)| (*index, page.clone())).collect()
        };
        pages.into_iter().for_each(|(index, page)| found(index, page));
    }

    fn mappers(&self) -> Option<&Mappers> {
        Some(&self.mappers)
    }

    fn identity(&self) -> FileIdentity {
        FileIdentity { device: 0x801, inode: 77 }
    }
}

/// An open [`TestFile`], or one that cannot be mapped.
struct OpenFile(Option<Arc<TestFile>>);

impl File for OpenFile {
    fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
        match &self.0 {
            Some(file) => Ok(file.clone()),
            None => Err(Errno::ENODEV),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/zero`.
struct ZeroFile;

impl File for ZeroFile {
    fn maps_zeros(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn install(process: &TestProcess, file: Arc<dyn File>, flags: u32) -> u64 {
    let description = FileDescription::new(file, flags);
    process.thread.files().allocate(description, OnExec::Keep, 0, 1024).unwrap() as u64
}

/// A descriptor of `file`, opened with `flags`.
pub(super) fn open(process: &TestProcess, file: &Arc<TestFile>, flags: u32) -> u64 {
    install(process, Arc::new(OpenFile(Some(file.clone()))), flags)
}

/// `mmap` with the arguments that matter.
pub(super) fn mmap(process: &TestProcess, addr: u64, len: u64, prot: u64, flags: u64) -> SysResult {
    mmap_file(process, addr, len, prot, flags, u64::MAX, 0)
}

pub(super) fn mmap_file(
    process: &TestProcess,
    addr: u64,
    len: u64,
    prot: u64,
    flags: u64,
    fd: u64,
    offset: u64,
) -> SysResult {
    process.call(linux::__NR_mmap, &[addr, len, prot, flags, fd, offset])
}

/// Reads a byte as the application would.
pub(super) fn peek(space: &AddressSpace, at: u64) -> Result<u8, Fault> {
    space.handle_fault(UserAddr(at), Access::Read)?;
    let mut byte = [0];
    assert_eq!(space.read_foreign(UserAddr(at), &mut byte), 1);
    Ok(byte[0])
}

/// Writes a byte as the application would.
pub(super) fn poke(space: &AddressSpace, at: u64, byte: u8) -> Result<(), Fault> {
    space.handle_fault(UserAddr(at), Access::Write)?;
    assert_eq!(space.write_foreign(UserAddr(at), &[byte]), 1);
    Ok(())
}

/// The areas as `start-end rwxp`, relative to `base`, in pages.
pub(super) fn areas(space: &AddressSpace, base: u64) -> Vec<alloc::string::String> {
    let mut result = Vec::new();
    space.each_area(|vma| {
        let bit = |flag, letter| if vma.protection.contains(flag) { letter } else { '-' };
        result.push(alloc::format!(
            "{}-{} {}{}{}{}",
            (vma.start as i64 - base as i64) / PAGE as i64,
            (vma.end as i64 - base as i64) / PAGE as i64,
            bit(crate::mm::Protection::READ, 'r'),
            bit(crate::mm::Protection::WRITE, 'w'),
            bit(crate::mm::Protection::EXEC, 'x'),
            if vma.is_shared() { 's' } else { 'p' },
        ));
    });
    result
}
