//! Page tables: the kernel's half, and the [`PageTable`] of each process.
//!
//! | from | what | pages |
//! |---|---|---|
//! | `0x0000_0000_0000_1000` | application, to `0x7fff_ffff_f000` | 4 KiB |
//! | [`DIRECT_MAP`] | all RAM, read-write | 2 MiB |
//! | [`KERNEL_STACKS`] | kernel stacks with guard pages | 4 KiB |
//! | [`DEVICES`] | device registers, uncached | 4 KiB |
//! | [`BUFFERS`] | buffers, with memory while they hold something | 4 KiB |
//! | [`KERNEL_BASE`] | kernel image, each segment with its own rights | 4 KiB |
//!
//! The kernel's half is the same in every table: its top-level entries are made at boot and copied
//! into each new table, and never change after. One page of it is different for each processor
//! ([`super::cpu::WINDOW`]), so a table has a root for each ([`ProcessTable`]); it is known by the first
//! processor's, which every root names in [`IDENTITY_SLOT`].
//!
//! After a fork, parent and child share tables of the lowest level ([`hx_tables`]): every change of an
//! entry comes through [`ProcessTable::own`], which sees to that.
//!
//! Application pages are supervisor pages here, as everything runs at CPL 0; [`APPLICATION`] is the
//! one place that says so. A change to a process' table flushes stale translations on all processors
//! that use it before the page is given back ([`super::smp`]); those that have used it before find out
//! when they load it again ([`hx_tables::pcid`]).

use alloc::vec::Vec;
use core::{
    cell::Cell,
    mem::ManuallyDrop,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use hx_syscalls::sync::{Mutex, Once};
use hx_syscalls::{
    mm::{Entry, PageTable, Protection},
    page::{OutOfMemory, PAGE_SIZE, Page},
    platform::Frame,
    user::UserAddr,
};
use hx_tables::{
    ACCESSED, ADDRESS, PARKED, PRESENT, Table, WRITABLE,
    pcid::{Change, Space},
};
use x86_64::registers::control::Cr3;

use super::{
    cpu::{self, MAX_CPUS},
    smp,
    tables::{COUNTED, TableFrames, release_owned, retain_owned},
    tlb::{self, ThisProcessor},
};
use crate::memory::{
    PhysRange,
    frames::{self, FRAME_SIZE, Purpose},
};

/// Link address of physical address 0: the kernel's image.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// All physical memory.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Kernel stacks.
pub const KERNEL_STACKS: u64 = 0xffff_c000_0000_0000;
/// Device registers.
pub const DEVICES: u64 = 0xffff_c100_0000_0000;
/// Buffers that have memory now and then ([`crate::memory::buffers`]). The top-level entry is that of
/// [`DEVICES`].
pub const BUFFERS: u64 = 0xffff_c140_0000_0000;
/// The lowest address of the kernel's half.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 4 | 1 << 3;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Extra bits of every application page and of the tables above it. A machine that runs the
/// application at CPL 3 sets [`USER`].
const APPLICATION: u64 = 0;
const _: u64 = USER;

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __kernel_end: u8;
}

/// Where the direct map has physical address `phys`.
pub fn phys_to_virt(phys: u64) -> *mut u8 {
    (DIRECT_MAP + phys) as *mut u8
}

/// The physical address behind one of the direct map or the kernel image.
pub fn virt_to_phys(virt: u64) -> u64 {
    if virt >= KERNEL_BASE { virt - KERNEL_BASE } else { virt - DIRECT_MAP }
}

/// The bytes of a physical range of boot data, as far as the boot page tables map them.
pub fn phys_slice(range: PhysRange) -> Option<&'static [u8]> {
    if range.is_empty() {
        return Some(&[]);
    }
    if range.end > 1 << 30 && KERNEL_PML4.get().is_none() {
        return None;
    }
    // SAFETY: the range is mapped by the boot tables or the direct map, and what the boot loader
    // left there is not written while the kernel reads it: its users reserve it.
    Some(unsafe { core::slice::from_raw_parts(phys_to_virt(range.start), range.len() as usize) })
}

/// The range of physical memory that the kernel's image takes.
pub fn kernel_range() -> PhysRange {
    let (start, end) = ((&raw const __text_start) as u64, (&raw const __kernel_end) as u64);
    PhysRange::new(virt_to_phys(start), virt_to_phys(end))
}

static KERNEL_PML4: Once<u64> = Once::new();

/// Each processor's root of the kernel's own table.
pub(super) static KERNEL_ROOTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Which of the upper 256 top-level entries the kernel has, a bit each.
static KERNEL_SLOTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Top-level entry, of addresses that are never mapped, that holds the address of the root that the
/// table is known by: it is not present.
const IDENTITY_SLOT: usize = 510;

pub(super) fn table(phys: u64) -> &'static Table {
    // SAFETY: page table frames are mapped in the direct map for as long as they are in use, and
    // the processor and the kernel access their entries as atomics only.
    unsafe { &*phys_to_virt(phys).cast::<Table>() }
}

fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level)) as usize & 511
}

fn new_table() -> Result<u64, OutOfMemory> {
    let frame = frames::alloc_zeroed(Purpose::Kernel).ok_or(OutOfMemory)?;
    Ok(frame.0 * FRAME_SIZE)
}

/// The table of level `level - 1` that covers `address`, made if missing.
fn descend(entry: &AtomicU64, extra: u64) -> Result<&'static Table, OutOfMemory> {
    let value = entry.load(Ordering::Relaxed);
    if value & PRESENT != 0 {
        debug_assert_eq!(value & LARGE, 0);
        return Ok(table(value & ADDRESS));
    }
    let new = new_table()?;
    entry.store(new | PRESENT | WRITABLE | extra, Ordering::Release);
    Ok(table(new))
}

/// The entry of the lowest level but one for `address`, tables made on the way.
fn directory_entry(root: u64, address: u64, extra: u64) -> Result<&'static AtomicU64, OutOfMemory> {
    let mut level = table(root);
    for depth in (2..4).rev() {
        level = descend(&level[index(address, depth)], extra)?;
    }
    Ok(&level[index(address, 1)])
}

/// The entry of the lowest level for `address`, tables made on the way.
fn leaf(root: u64, address: u64, extra: u64) -> Result<&'static AtomicU64, OutOfMemory> {
    Ok(&descend(directory_entry(root, address, extra)?, extra)?[index(address, 0)])
}

/// The entry of the lowest level for `address`, if the tables are there.
fn find(root: u64, address: u64) -> Option<&'static AtomicU64> {
    let (leaves, _) = find_leaf_table(root, address)?;
    Some(&leaves[index(address, 0)])
}

/// The table of the lowest level for `address`, if the tables are there, and the entry that leads to it.
fn find_leaf_table(root: u64, address: u64) -> Option<(&'static Table, u64)> {
    let mut level = table(root);
    let mut value = 0;
    for depth in (1..4).rev() {
        value = level[index(address, depth)].load(Ordering::Relaxed);
        if value & PRESENT == 0 || value & LARGE != 0 {
            return None;
        }
        level = table(value & ADDRESS);
    }
    Some((level, value))
}

fn kernel_flags(protection: Protection) -> u64 {
    let mut flags = PRESENT;
    if protection.contains(Protection::WRITE) {
        flags |= WRITABLE;
    }
    if !protection.contains(Protection::EXEC) {
        flags |= NO_EXECUTE;
    }
    flags
}

/// Builds the kernel's page tables and switches to them. The frame allocator is ready.
///
/// # Errors
/// [`OutOfMemory`].
pub fn init(ram: &[PhysRange]) -> Result<(), OutOfMemory> {
    let root = new_table()?;
    // The direct map, in 2 MiB pages.
    for range in ram {
        let mut at = range.start & !0x1f_ffff;
        while at < range.end {
            let mut level = table(root);
            for depth in (2..4).rev() {
                level = descend(&level[index(DIRECT_MAP + at, depth)], 0)?;
            }
            let entry = &level[index(DIRECT_MAP + at, 1)];
            entry.store(at | PRESENT | WRITABLE | LARGE | NO_EXECUTE, Ordering::Relaxed);
            at += 2 << 20;
        }
    }
    // The first MiB too: firmware tables and the start_info lie there.
    let mut level = table(root);
    for depth in (2..4).rev() {
        level = descend(&level[index(DIRECT_MAP, depth)], 0)?;
    }
    level[index(DIRECT_MAP, 1)].store(PRESENT | WRITABLE | LARGE | NO_EXECUTE, Ordering::Relaxed);

    let [text, text_end, rodata_end, end] = [
        &raw const __text_start,
        &raw const __text_end,
        &raw const __rodata_end,
        &raw const __kernel_end,
    ]
    .map(|symbol| symbol as u64);
    let segments = [
        (text..text_end, Protection::READ | Protection::EXEC),
        (text_end..rodata_end, Protection::READ),
        (rodata_end..end, Protection::READ | Protection::WRITE),
    ];
    for (range, protection) in segments {
        for at in range.step_by(FRAME_SIZE as usize) {
            leaf(root, at, 0)?
                .store(virt_to_phys(at) | kernel_flags(protection), Ordering::Relaxed);
        }
    }
    leaf(root, window(), 0)?.store(
        new_table()? | kernel_flags(Protection::READ | Protection::WRITE),
        Ordering::Relaxed,
    );
    // The areas that grow later: their top-level entries exist from now on.
    for area in [KERNEL_STACKS, DEVICES] {
        descend(&table(root)[index(area, 3)], 0)?;
    }
    // SAFETY: the new tables map the running code and all of the direct map, with the stack, as the boot
    // tables did.
    unsafe { tlb::load(root) };
    KERNEL_PML4.call_once(|| root);
    KERNEL_ROOTS[0].store(root, Ordering::Relaxed);
    for (slot, entry) in table(root)[256..].iter().enumerate() {
        if entry.load(Ordering::Relaxed) & PRESENT != 0 {
            KERNEL_SLOTS[slot / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
        }
    }
    table(root)[IDENTITY_SLOT].store(root, Ordering::Relaxed);
    Ok(())
}

/// A new root with the kernel's half as `kernel_root` has it, for the table known by root `identity`,
/// or by this one.
fn new_root(kernel_root: u64, identity: Option<u64>) -> Result<u64, OutOfMemory> {
    let root = new_table()?;
    let (new, kernel) = (table(root), table(kernel_root));
    for (word, slots) in KERNEL_SLOTS.iter().enumerate() {
        let mut slots = slots.load(Ordering::Relaxed);
        while slots != 0 {
            let slot = 256 + word * 64 + slots.trailing_zeros() as usize;
            new[slot].store(kernel[slot].load(Ordering::Relaxed), Ordering::Relaxed);
            slots &= slots - 1;
        }
    }
    new[IDENTITY_SLOT].store(identity.unwrap_or(root), Ordering::Relaxed);
    Ok(root)
}

/// Makes the kernel's own table for processor `index`, in which [`cpu::WINDOW`] is a page of its own.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn add_processor(index: usize) -> Result<(), OutOfMemory> {
    let shared = kernel_root();
    let root = new_root(shared, Some(shared))?;
    // The tables on the way to the page are the processor's own as well.
    let at = window();
    let mut level = table(root);
    for depth in (1..4).rev() {
        let entry = &level[self::index(at, depth)];
        let value = entry.load(Ordering::Relaxed);
        let copy = new_table()?;
        level = table(copy);
        for (new, old) in level.iter().zip(table(value & ADDRESS)) {
            new.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        entry.store(copy | value & !ADDRESS, Ordering::Relaxed);
    }
    let page = new_table()?;
    let flags = kernel_flags(Protection::READ | Protection::WRITE);
    level[self::index(at, 0)].store(page | flags, Ordering::Relaxed);
    KERNEL_ROOTS[index].store(root, Ordering::Release);
    Ok(())
}

/// Address of [`cpu::WINDOW`].
fn window() -> u64 {
    (&raw const cpu::WINDOW) as u64
}

/// Where the direct map has what processor `index` finds at [`cpu::WINDOW`].
pub(super) fn window_of(index: usize) -> Option<*mut u8> {
    let root = KERNEL_ROOTS.get(index)?.load(Ordering::Acquire);
    let entry = if root == 0 { None } else { find(root, window()) };
    Some(phys_to_virt(entry?.load(Ordering::Relaxed) & ADDRESS))
}

/// Root that the kernel's own table is known by.
pub(super) fn kernel_root() -> u64 {
    *KERNEL_PML4.get().expect("paging::init comes first")
}

/// Root that the table is known by which this processor has loaded.
pub(super) fn loaded_root() -> u64 {
    table(Cr3::read().0.start_address().as_u64())[IDENTITY_SLOT].load(Ordering::Relaxed)
}

/// Leaves a process' table.
pub(super) fn load_kernel_root() {
    let root = KERNEL_ROOTS[cpu::this().index].load(Ordering::Relaxed);
    cpu::this().pcid.leave();
    // SAFETY: the kernel's own table lives for ever.
    unsafe { tlb::load(root) };
    cpu::this().smp.set_loaded_root(kernel_root());
}

/// Serialises changes to the kernel's growing areas.
static GROWTH: Mutex<()> = Mutex::new(());

/// Maps a page of the kernel's own at `at`, in one of the growing areas.
///
/// # Errors
/// [`OutOfMemory`].
pub fn map_kernel_page(at: u64, frame: Frame, protection: Protection) -> Result<(), OutOfMemory> {
    let _growing = GROWTH.lock();
    let entry = leaf(kernel_root(), at, 0)?;
    entry.store((frame.0 * FRAME_SIZE) | kernel_flags(protection), Ordering::Release);
    Ok(())
}

/// Unmaps a page of [`map_kernel_page`] and gives its frame, which [`flush_kernel_pages`] must precede
/// the next use of.
pub fn unmap_kernel_page(at: u64) -> Option<Frame> {
    let value = find(kernel_root(), at)?.swap(0, Ordering::AcqRel);
    (value & PRESENT != 0).then_some(Frame((value & ADDRESS) / FRAME_SIZE))
}

/// Makes all processors forget what [`unmap_kernel_page`] has unmapped.
pub fn flush_kernel_pages() {
    tlb::flush_kernel_half();
    smp::flush_everywhere();
}

/// Whether a stack frame at `address` can be read: it lies on the boot's stack or on a mapped kernel stack.
pub fn is_mapped_stack(address: u64) -> bool {
    let boot = super::boot::area();
    let on_boot_stack = (DIRECT_MAP + boot.start..DIRECT_MAP + boot.end - 15).contains(&address);
    let on_stack = || {
        let root = KERNEL_PML4.get()?;
        Some(find(*root, address)?.load(Ordering::Relaxed) & PRESENT != 0)
    };
    on_boot_stack || ((KERNEL_STACKS..DEVICES).contains(&address) && on_stack() == Some(true))
}

/// Whether the application's page at `address` is mapped by the page table that is loaded.
pub(super) fn is_mapped_now(address: u64) -> bool {
    find(loaded_root(), address).is_some_and(|entry| entry.load(Ordering::Relaxed) & PRESENT != 0)
}

static NEXT_DEVICE: AtomicU64 = AtomicU64::new(DEVICES);

/// Maps `len` bytes of device registers at physical address `phys`.
///
/// # Errors
/// [`OutOfMemory`].
pub fn map_device(phys: u64, len: u64) -> Result<*mut u8, OutOfMemory> {
    let first = phys & !(FRAME_SIZE - 1);
    let size = (phys + len).next_multiple_of(FRAME_SIZE) - first;
    let at = NEXT_DEVICE.fetch_add(size, Ordering::Relaxed);
    let _growing = GROWTH.lock();
    for offset in (0..size).step_by(FRAME_SIZE as usize) {
        let entry = leaf(kernel_root(), at + offset, 0)?;
        let flags = kernel_flags(Protection::READ | Protection::WRITE) | UNCACHED;
        entry.store((first + offset) | flags, Ordering::Release);
    }
    Ok((at + phys - first) as *mut u8)
}

/// A process' page table.
pub struct ProcessTable {
    /// The first processor's root, which the table is known by.
    root: u64,
    /// The other processors', in their order.
    other_roots: Vec<u64>,
    /// Processors that may have translations of it: a bit each, set before the table is loaded.
    users: AtomicU64,
    /// What processors with PCIDs know it by.
    space: Space,
}

/// The numbers of address spaces.
static NEXT_SPACE: AtomicU64 = AtomicU64::new(1);

/// How many pages a batch flushes one by one; more are flushed by reloading CR3.
const SINGLE_FLUSHES: usize = smp::MAX_PAGES;

/// How many pages are kept at hand while one batch of them is flushed.
const UNMAP_BATCH: usize = 16;

/// Bytes that a table of the lowest level maps.
const TABLE_SPAN: u64 = 512 * FRAME_SIZE;

/// How many pages a table must have to be shared by `fork`: the entries of one with fewer are copied
/// in less time than it takes to share the table and, when it is written, to make it one's own again.
const SHARED_FROM: usize = 64;

impl ProcessTable {
    /// With the kernel's half only.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Self, OutOfMemory> {
        let root = new_root(kernel_root(), None)?;
        let number = NEXT_SPACE.fetch_add(1, Ordering::Relaxed);
        let mut new = Self {
            root,
            other_roots: Vec::new(),
            users: AtomicU64::new(0),
            space: Space::new(number),
        };
        let others = &KERNEL_ROOTS[1..cpu::count()];
        new.other_roots.try_reserve_exact(others.len()).map_err(|_| OutOfMemory)?;
        for kernel_root in others {
            let kernel_root = kernel_root.load(Ordering::Relaxed);
            new.other_roots.push(new_root(kernel_root, Some(root))?);
        }
        Ok(new)
    }

    /// [`leaf`] of this table.
    fn leaf(&self, address: u64) -> Result<&'static AtomicU64, OutOfMemory> {
        Ok(&self.leaf_table(address)?[index(address, 0)])
    }

    /// The table of the lowest level for `address`, made if missing, this process' own if it was shared.
    fn leaf_table(&self, address: u64) -> Result<&'static Table, OutOfMemory> {
        let directory_entry = self.directory_entry(address)?;
        let value = directory_entry.load(Ordering::Relaxed);
        if value & PRESENT == 0 {
            return descend(directory_entry, APPLICATION);
        }
        Ok(self.own(directory_entry, value, address))
    }

    /// [`directory_entry`] of this table.
    fn directory_entry(&self, address: u64) -> Result<&'static AtomicU64, OutOfMemory> {
        let slot = index(address, 3);
        let is_new = table(self.root)[slot].load(Ordering::Relaxed) & PRESENT == 0;
        let entry = directory_entry(self.root, address, APPLICATION)?;
        if is_new {
            let value = table(self.root)[slot].load(Ordering::Relaxed);
            for root in &self.other_roots {
                table(*root)[slot].store(value, Ordering::Release);
            }
        }
        Ok(entry)
    }

    /// The table of the lowest level that the entry for `at`, present with this `value`, leads to: this
    /// process' own from now on.
    fn own(&self, directory_entry: &AtomicU64, value: u64, at: u64) -> &'static Table {
        if value & WRITABLE != 0 {
            return table(value & ADDRESS);
        }
        table(hx_tables::own(&TableFrames, directory_entry, || self.forget_table(at)))
    }

    /// Makes all processors forget the entry that leads to the table of the lowest level for `at`, before
    /// that table is somebody else's.
    fn forget_table(&self, at: u64) {
        let change = self.change();
        // Flushing one page makes a processor forget all entries of the levels above the lowest (Intel
        // SDM vol. 3 §4.10.4.1, AMD APM vol. 2 §5.5). The pages are as they were.
        self.flush_here(at);
        self.flushed_here(change);
        if self.is_used_elsewhere() {
            smp::forget_tables(&self.users, self.root, change);
        }
    }

    /// Notes that translations have become stale: those of processors that have the table loaded are to
    /// be flushed now.
    fn change(&self) -> Option<Change> {
        tlb::uses_pcids().then(|| self.space.change())
    }

    /// Notes that this processor has flushed what `change` has made stale, if it has the table loaded.
    fn flushed_here(&self, change: Option<Change>) {
        if let Some(change) = change {
            cpu::this().pcid.flushed(change);
        }
    }

    /// This processor's root.
    fn own_root(&self) -> u64 {
        match cpu::this().index {
            0 => self.root,
            index => self.other_roots[index - 1],
        }
    }

    fn flags(protection: Protection) -> u64 {
        // x86 has no write-only or execute-only pages without protection keys: any right makes a
        // page readable, as under Linux.
        if protection.is_empty() { PARKED } else { kernel_flags(protection) | APPLICATION }
    }

    /// The entry that takes over `page`.
    fn owning(page: Page, protection: Protection) -> u64 {
        let frame = page.into_raw();
        let counted = if frames::is_counted(frame) { COUNTED } else { 0 };
        (frame.0 * FRAME_SIZE) | Self::flags(protection) | counted
    }

    fn protection(value: u64) -> Protection {
        let mut protection = Protection::empty();
        if value & PRESENT != 0 {
            protection |= Protection::READ;
            protection.set(Protection::WRITE, value & WRITABLE != 0);
            protection.set(Protection::EXEC, value & NO_EXECUTE == 0);
        }
        protection
    }

    /// Calls `visit` with each leaf entry of `range` that owns a page, skipping missing tables. The
    /// entries may be changed: their tables are the process' own.
    fn walk(&self, range: Range<UserAddr>, visit: impl FnMut(u64, &'static AtomicU64)) {
        let enter = |at, entry: &AtomicU64, value, _| Some(self.own(entry, value, at));
        self.walk_through(range, enter, visit);
    }

    /// [`Self::walk`] for entries that are to be unmapped: what is shared is given up where all of it is
    /// to go. Gives how many pages have gone so.
    fn walk_to_unmap(
        &self,
        range: Range<UserAddr>,
        visit: impl FnMut(u64, &'static AtomicU64),
    ) -> usize {
        let mut unmapped = 0;
        let enter = |at, entry: &AtomicU64, value, len| {
            if value & WRITABLE != 0 || len < TABLE_SPAN {
                return Some(self.own(entry, value, at));
            }
            entry.swap(0, Ordering::SeqCst);
            self.flush_all();
            self.forget_table(at);
            unmapped += hx_tables::page_count(&TableFrames, value);
            hx_tables::release(&TableFrames, value);
            None
        };
        self.walk_through(range, enter, visit);
        unmapped
    }

    fn walk_through(
        &self,
        range: Range<UserAddr>,
        mut enter: impl FnMut(u64, &'static AtomicU64, u64, u64) -> Option<&'static Table>,
        mut visit: impl FnMut(u64, &'static AtomicU64),
    ) {
        if range.start < range.end {
            let range = range.start.0..range.end.0;
            walk_table(table(self.root), 3, range, &mut enter, &mut visit);
        }
    }

    /// Makes all processors that use the table forget all of it.
    fn flush_all(&self) {
        let mut flush = Flush::new(self);
        flush.count = SINGLE_FLUSHES + 1;
        flush.now();
    }

    fn is_active(&self) -> bool {
        cpu::this().smp.active_root() == self.root
    }

    fn flush_here(&self, at: u64) {
        if self.is_active() {
            tlb::flush_page(at);
        }
    }

    /// Gives `child` the pages of `range`, which the table that `entry` leads to has: the table itself, or
    /// its entries. Gives the number of pages, and whether one could be written.
    fn share_table(
        &self,
        child: &Self,
        (entry, value): (&'static AtomicU64, u64),
        range: Range<u64>,
    ) -> Result<(usize, bool), OutOfMemory> {
        if range.end - range.start == TABLE_SPAN {
            let pages = hx_tables::page_count(&TableFrames, value);
            if pages >= SHARED_FROM {
                let shared = child.directory_entry(range.start)?;
                let lost = hx_tables::share(&TableFrames, entry, shared, pages)
                    .map_err(|_| OutOfMemory)?;
                return Ok((pages, lost));
            }
        }
        let own = &self.own(entry, value, range.start)[index(range.start, 0)..];
        let own = &own[..((range.end - range.start) / FRAME_SIZE) as usize];
        Ok(share_entries(own, &child.leaf_table(range.start)?[index(range.start, 0)..]))
    }

    fn is_used_elsewhere(&self) -> bool {
        self.users.load(Ordering::SeqCst) & !smp::own_bit() != 0
    }

    /// [`PageTable::unmap`] of a long range of a table that other processors use: all entries are
    /// made useless, then flushed together, then the pages are given back.
    fn unmap_long(&self, range: Range<UserAddr>) -> usize {
        let mut flush = Flush::new(self);
        let mut unmapped = self.walk_to_unmap(range.clone(), |at, entry| {
            // The entry goes on owning its page.
            let old = entry.load(Ordering::Relaxed);
            if old & PRESENT != 0 {
                entry.swap(old & (ADDRESS | COUNTED) | PARKED, Ordering::AcqRel);
                flush.add(at);
            }
        });
        flush.now();
        self.walk(range, |_, entry| {
            let old = entry.swap(0, Ordering::AcqRel);
            drop(Page::from_raw(Frame((old & ADDRESS) / FRAME_SIZE)));
            unmapped += 1;
        });
        unmapped
    }
}

/// Whether a translation as `old` allows what `new` does not, or leads elsewhere.
fn is_stale(old: u64, new: u64) -> bool {
    let lost = old & !new & (PRESENT | WRITABLE) != 0;
    let is_other = (old ^ new) & ADDRESS != 0;
    old & PRESENT != 0 && (lost || is_other || new & !old & NO_EXECUTE != 0)
}

/// Stale translations of one table, flushed together.
struct Flush<'a> {
    table: &'a ProcessTable,
    pages: [u64; SINGLE_FLUSHES],
    count: usize,
}

impl<'a> Flush<'a> {
    fn new(table: &'a ProcessTable) -> Self {
        Self { table, pages: [0; SINGLE_FLUSHES], count: 0 }
    }

    fn add(&mut self, at: u64) {
        if let Some(page) = self.pages.get_mut(self.count) {
            *page = at;
        }
        self.count += 1;
    }

    fn now(&mut self) {
        if self.count == 0 {
            return;
        }
        let change = self.table.change();
        let pages = self.pages.get(..self.count);
        match pages {
            _ if !self.table.is_active() => {}
            Some(pages) => pages.iter().for_each(|page| tlb::flush_page(*page)),
            None => tlb::flush_loaded(),
        }
        self.table.flushed_here(change);
        if self.table.is_used_elsewhere() {
            smp::flush_others(&self.table.users, self.table.root, change, pages);
        }
        self.count = 0;
    }
}

/// What an entry says, without taking a reference to its page, in a table that `directory_entry` leads
/// to.
fn entry_of(value: u64, directory_entry: u64) -> ManuallyDrop<Entry> {
    // In a table that is shared, or was, the bits are good as far as the way there has them too.
    let common = !(WRITABLE | ACCESSED) | directory_entry;
    let value = if directory_entry & WRITABLE == 0 { value & common } else { value };
    ManuallyDrop::new(Entry {
        page: Page::from_raw(Frame((value & ADDRESS) / FRAME_SIZE)),
        protection: ProcessTable::protection(value),
        dirty: value & DIRTY != 0,
        accessed: value & ACCESSED != 0,
        sharers: hx_tables::sharers(&TableFrames, directory_entry),
    })
}

impl PageTable for ProcessTable {
    fn map(&self, at: UserAddr, page: Page, protection: Protection) -> Result<(), OutOfMemory> {
        let entry = self.leaf(at.0)?;
        debug_assert_eq!(entry.load(Ordering::Relaxed) & (PRESENT | PARKED), 0);
        entry.store(Self::owning(page, protection), Ordering::Release);
        Ok(())
    }

    fn map_missing(
        &self,
        at: UserAddr,
        pages: &mut [Option<Page>],
        protection: Protection,
    ) -> usize {
        let Ok(leaves) = self.leaf_table(at.0) else { return 0 };
        let mut count = 0;
        for (entry, slot) in leaves[index(at.0, 0)..].iter().zip(pages) {
            if entry.load(Ordering::Relaxed) & (PRESENT | PARKED) == 0
                && let Some(page) = slot.take()
            {
                entry.store(Self::owning(page, protection), Ordering::Release);
                count += 1;
            }
        }
        count
    }

    fn replace(
        &self,
        at: UserAddr,
        page: Page,
        protection: Protection,
    ) -> Result<Option<Page>, OutOfMemory> {
        let entry = self.leaf(at.0)?;
        let new = Self::owning(page, protection);
        let old = entry.swap(new, Ordering::AcqRel);
        if old & PRESENT != 0 {
            let mut flush = Flush::new(self);
            flush.add(at.0);
            flush.now();
        }
        let owned = old & (PRESENT | PARKED) != 0;
        Ok(owned.then(|| Page::from_raw(Frame((old & ADDRESS) / FRAME_SIZE))))
    }

    fn get(&self, at: UserAddr) -> Option<Entry> {
        let (leaves, directory_entry) = find_leaf_table(self.root, at.0)?;
        let value = leaves[index(at.0, 0)].load(Ordering::Relaxed);
        hx_tables::owns_page(value).then(|| Entry::clone(&entry_of(value, directory_entry)))
    }

    fn unmap(&self, range: Range<UserAddr>) -> usize {
        let len = (range.end.0 - range.start.0) as usize;
        if len > UNMAP_BATCH * PAGE_SIZE && self.is_used_elsewhere() {
            return self.unmap_long(range);
        }
        let mut unmapped = 0;
        let mut flush = Flush::new(self);
        // Entries whose pages are to be given back once no processor remembers them.
        let mut owned = [0; UNMAP_BATCH];
        let mut count = 0;
        let shared = self.walk_to_unmap(range, |at, entry| {
            let old = entry.swap(0, Ordering::AcqRel);
            if old & PRESENT != 0 {
                flush.add(at);
            }
            owned[count] = old;
            count += 1;
            unmapped += 1;
            if count == owned.len() {
                flush.now();
                owned.into_iter().for_each(release_owned);
                count = 0;
            }
        });
        flush.now();
        owned[..count].iter().copied().for_each(release_owned);
        unmapped + shared
    }

    fn protect(&self, range: Range<UserAddr>, change: &mut dyn FnMut(&Entry) -> Protection) {
        let mut flush = Flush::new(self);
        self.walk(range, |at, entry| {
            let mut old = entry.load(Ordering::Relaxed);
            let flags = Self::flags(change(&entry_of(old, WRITABLE)));
            // Processors set the two bits at any time.
            let new = loop {
                let new = old & (ADDRESS | ACCESSED | DIRTY | COUNTED) | flags;
                if new == old {
                    return;
                }
                match entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed) {
                    Ok(_) => break new,
                    Err(found) => old = found,
                }
            };
            if is_stale(old, new) {
                flush.add(at);
            } else if old & PRESENT != 0 {
                // What allows more needs no flush elsewhere: a fault there finds it resolved.
                self.flush_here(at);
            }
        });
        flush.now();
    }

    fn visit(&self, range: Range<UserAddr>, visit: &mut dyn FnMut(UserAddr, &Entry)) {
        let through = Cell::new(0);
        let enter = |_, _: &_, value, _| {
            through.set(value);
            Some(table(value & ADDRESS))
        };
        self.walk_through(range, enter, |at, entry| {
            visit(UserAddr(at), &entry_of(entry.load(Ordering::Relaxed), through.get()));
        });
    }

    fn share(&self, range: Range<UserAddr>, child: &dyn PageTable) -> Result<usize, OutOfMemory> {
        let child =
            child.as_any().downcast_ref::<Self>().expect("all page tables are of this type");
        let mut count = 0;
        let mut result = Ok(());
        let mut is_stale = false;
        let enter = |at, entry: &'static AtomicU64, value, len: u64| {
            if result.is_ok() {
                match self.share_table(child, (entry, value), at..at + len) {
                    Ok((shared, lost)) => {
                        count += shared;
                        is_stale |= lost;
                    }
                    Err(error) => result = Err(error),
                }
            }
            None
        };
        self.walk_through(range, enter, |_, _| {});
        if is_stale {
            // After a fork the processor changes tables anyway: what is flushed one by one is as good
            // as lost.
            self.flush_all();
        }
        result.map(|()| count)
    }

    fn relocate(&self, from: Range<UserAddr>, to: UserAddr) -> Result<(), OutOfMemory> {
        let mut flush = Flush::new(self);
        let mut result = Ok(());
        self.walk(from.start..from.end, |at, entry| {
            if result.is_ok() {
                match self.leaf(at - from.start.0 + to.0) {
                    Ok(target) => {
                        target.store(entry.swap(0, Ordering::AcqRel), Ordering::Release);
                        flush.add(at);
                    }
                    Err(error) => result = Err(error),
                }
            }
        });
        flush.now();
        result
    }

    fn activate(&self) {
        if !self.is_active() {
            // The order is what `smp::flush_others` and `pcid::Processor::enter` reckon with.
            cpu::this().smp.set_active_root(self.root);
            self.users.fetch_or(smp::own_bit(), Ordering::SeqCst);
            // The table has the kernel's half, and is freed only when it is not loaded anywhere (see
            // `drop`).
            if tlb::uses_pcids() {
                cpu::this().pcid.enter(&ThisProcessor, &self.space, self.own_root());
            } else {
                // SAFETY: as said above.
                unsafe { tlb::load(self.own_root()) };
            }
            cpu::this().smp.set_loaded_root(self.root);
        }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}

impl Drop for ProcessTable {
    fn drop(&mut self) {
        if self.is_active() {
            cpu::this().smp.set_active_root(kernel_root());
            load_kernel_root();
        }
        smp::leave_table(self.users.swap(0, Ordering::SeqCst), self.root);
        // Nobody has translations of it any more.
        free_table(self.root, 3);
        for phys in self.other_roots.drain(..) {
            frames::release_counted(Frame(phys / FRAME_SIZE));
        }
    }
}

/// Calls `visit` with each entry that owns a page in the lowest level below one table, for a range that
/// is not empty and within what the table maps. `enter` gets each present entry of the level above, with
/// the first address of the range that it maps, its value and the range's length there; it gives the
/// table to look through, if any.
fn walk_table(
    entries: &'static Table,
    depth: u32,
    range: Range<u64>,
    enter: &mut impl FnMut(u64, &'static AtomicU64, u64, u64) -> Option<&'static Table>,
    visit: &mut impl FnMut(u64, &'static AtomicU64),
) {
    let span = 1 << (12 + 9 * depth);
    let (first, last) = (index(range.start, depth), index(range.end - 1, depth));
    let first_at = range.start & !(span - 1);
    for (slot, entry) in occupied(&entries[first..=last]) {
        let at = first_at + slot as u64 * span;
        let value = entry.load(Ordering::Relaxed);
        if depth == 0 {
            if hx_tables::owns_page(value) {
                visit(at, entry);
            }
        } else if value & PRESENT != 0 {
            let within = at.max(range.start)..(at + span).min(range.end);
            let below = match depth {
                1 => enter(within.start, entry, value, within.end - within.start),
                _ => Some(table(value & ADDRESS)),
            };
            if let Some(below) = below {
                walk_table(below, depth - 1, within, enter, visit);
            }
        }
    }
}

/// Gives the pages of `own` to `new` as well, writable in neither. Gives their number, and whether one
/// was writable.
fn share_entries(own: &[AtomicU64], new: &[AtomicU64]) -> (usize, bool) {
    let (mut count, mut lost) = (0, false);
    for (own, new) in own.iter().zip(new) {
        let old = own.load(Ordering::Relaxed);
        if !hx_tables::owns_page(old) {
            continue;
        }
        if old & WRITABLE != 0 {
            own.fetch_and(!WRITABLE, Ordering::AcqRel);
            lost = true;
        }
        retain_owned(old);
        new.store(old & !(WRITABLE | ACCESSED | DIRTY), Ordering::Relaxed);
        count += 1;
    }
    (count, lost)
}

/// Entries that are not zero, and some of their neighbours, with their places: most tables are nearly
/// empty, and are looked through eight entries at a time.
fn occupied(entries: &'static [AtomicU64]) -> impl Iterator<Item = (usize, &'static AtomicU64)> {
    let (groups, rest) = entries.as_chunks::<8>();
    let rest_at = groups.len() * 8;
    let groups = groups.iter().enumerate().filter(|(_, group)| {
        group.iter().fold(0, |any, entry| any | entry.load(Ordering::Relaxed)) != 0
    });
    let of_groups = groups.flat_map(|(number, group)| {
        group.iter().enumerate().map(move |(within, entry)| (number * 8 + within, entry))
    });
    of_groups.chain(rest.iter().enumerate().map(move |(within, entry)| (rest_at + within, entry)))
}

/// Gives back a process' table that no processor uses, with all pages and tables below it.
fn free_table(phys: u64, level: u32) {
    let entries = if level == 3 { 256 } else { 512 };
    for (_, entry) in occupied(&table(phys)[..entries]) {
        let value = entry.load(Ordering::Relaxed);
        let frame = Frame((value & ADDRESS) / FRAME_SIZE);
        match value & (PRESENT | PARKED | COUNTED) {
            0 => {}
            _ if level == 1 && value & WRITABLE == 0 => hx_tables::release(&TableFrames, value),
            _ if level > 0 => free_table(value & ADDRESS, level - 1),
            owned if owned & COUNTED != 0 => frames::release_counted(frame),
            _ => frames::release(frame),
        }
    }
    frames::release_counted(Frame(phys / FRAME_SIZE));
}
