//! The processor: features, per-processor data, vector state, thread-local bases.
//!
//! A processor finds its own data at [`WINDOW`]: the same address for all, where each has a page of its
//! own ([`paging::add_processor`]). So FS and GS are the application's, whatever it does with them.

use alloc::{
    alloc::{Layout, alloc_zeroed, dealloc},
    sync::Arc,
};
use core::{
    arch::{asm, x86_64::__cpuid_count},
    cell::UnsafeCell,
    mem::{MaybeUninit, offset_of},
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use bitflags::bitflags;
use hx_syscalls::{page::OutOfMemory, platform::CpuInfo, sync::Once, task::Thread};
use x86_64::{
    VirtAddr,
    registers::{
        control::{Cr0, Cr0Flags, Cr4, Cr4Flags},
        model_specific::{Efer, EferFlags, FsBase, GsBase, LStar, Msr, SFMask},
        rflags::RFlags,
        segmentation::{FS, GS, Segment64},
        xcontrol::{XCr0, XCr0Flags},
    },
};

use super::{descriptors, paging, tlb, traps};
use crate::memory::frames::FRAME_SIZE;

/// What the entry code and the scheduler keep of a processor. Others know it by its address in the
/// direct map, which is its first word.
#[repr(C, align(4096))]
pub struct PerCpu {
    this: *const PerCpu,
    kernel_stack: u64,
    user_rsp: u64,
    /// The running thread, as [`hx_syscalls::Ctx`] has it.
    thread: AtomicPtr<Arc<Thread>>,
    /// Its [`Thread::return_work`].
    thread_work: AtomicPtr<AtomicBool>,
    /// [`CpuWork`] to be done before the application goes on.
    work: AtomicU8,
    /// Whether the call that came in last came by the `syscall` instruction: [`Self::take_trapped`].
    trapped: AtomicBool,
    /// Calls of the short way until one is measured.
    until_sample: AtomicU32,
    leaf_calls: AtomicU64,
    known_calls: AtomicU64,
    computed_calls: AtomicU64,
    trap_calls: AtomicU64,
    identity: Identity,
    leaf_word: u64,
    /// The scheduler's data.
    pub sched: crate::sched::PerCpu,
    /// The timer's.
    pub(super) timer: super::timer::PerCpu,
    /// What the processor tells others and is told by them.
    pub(super) smp: super::smp::PerCpu,
    /// What it may remember of which page tables, where it has PCIDs.
    pub(super) pcid: hx_tables::pcid::Processor,
    /// When it is to flush for TCG's sake.
    pub(super) soft_tlb: super::soft_tlb::PerCpu,
    /// Page faults that it has resolved.
    pub page_faults: AtomicU64,
    /// Number of the processor, from 0 without gaps.
    pub index: usize,
}

const _: () = assert!(size_of::<PerCpu>() == FRAME_SIZE as usize);

/// Where each processor finds its own [`PerCpu`]: an address behind the image, for a page of zeros as long as
/// the boot's page tables are loaded ([`super::boot`]). It is not the page that physically follows the image: the
/// two addresses of the data, here and in the direct map, would differ in their uppermost bits only, and each
/// use of one drive the other out of a direct-mapped TLB such as TCG's.
#[repr(C, align(4096))]
pub(super) struct Window(UnsafeCell<MaybeUninit<PerCpu>>);

// SAFETY: accessed by each processor's own entry code and `this` only, by address.
unsafe impl Sync for Window {}

#[expect(improper_ctypes, reason = "no other language has it")]
unsafe extern "C" {
    /// See [`Window`].
    #[link_name = "__cpu_window"]
    pub(super) static WINDOW: Window;
}

/// Processors there may be at most: affinity masks are of 64 bits.
pub const MAX_CPUS: usize = 64;

/// The data of all processors, by index.
static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];

/// How many processors take part.
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// The selector whose segment limit is a processor's number.
pub const NUMBER_SELECTOR: u16 = descriptors::CPU_SELECTOR;

/// How many processors take part.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Lets the first `count` processors take part.
pub(super) fn set_count(count: usize) {
    COUNT.store(count, Ordering::Release);
}

/// The data of processor `index`, once that has set itself up.
pub fn of(index: usize) -> Option<&'static PerCpu> {
    // SAFETY: null, or leaked by `init`.
    unsafe { CPUS.get(index)?.load(Ordering::Acquire).as_ref() }
}

/// Whether this processor has data of its own yet: [`this`] can be used.
pub fn is_set_up() -> bool {
    !own_data().is_null()
}

/// All processors that take part.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..count()).filter_map(of)
}

/// Offset of the running thread's kernel stack top.
pub const KERNEL_STACK_OFFSET: usize = offset_of!(PerCpu, kernel_stack);
/// Offset of the entry code's scratch word.
pub const USER_RSP_OFFSET: usize = offset_of!(PerCpu, user_rsp);

/// Offset of the running thread.
pub const THREAD_OFFSET: usize = offset_of!(PerCpu, thread);
/// Offset of the address of its byte of return work.
pub const THREAD_WORK_OFFSET: usize = offset_of!(PerCpu, thread_work);
/// Offset of the processor's work.
pub const WORK_OFFSET: usize = offset_of!(PerCpu, work);
/// Offset of the flag for calls by the `syscall` instruction.
pub const TRAPPED_OFFSET: usize = offset_of!(PerCpu, trapped);
/// Offset of the countdown to a measured call.
pub const UNTIL_SAMPLE_OFFSET: usize = offset_of!(PerCpu, until_sample);

/// Offset of the count of calls that a leaf entry has answered.
pub const LEAF_CALLS_OFFSET: usize = offset_of!(PerCpu, leaf_calls);
/// Offset of the count of calls from rewritten sites that know their number.
pub const KNOWN_CALLS_OFFSET: usize = offset_of!(PerCpu, known_calls);
/// Offset of the count of calls from other rewritten sites.
pub const COMPUTED_CALLS_OFFSET: usize = offset_of!(PerCpu, computed_calls);
/// Offset of the count of calls that came by the `syscall` instruction.
pub const TRAP_CALLS_OFFSET: usize = offset_of!(PerCpu, trap_calls);

/// Offset of the end of the leaf entries' stack, which is one word.
pub const LEAF_STACK_OFFSET: usize = offset_of!(PerCpu, leaf_word) + size_of::<u64>();
/// Offset of the running thread's [`Identity`].
pub const IDENTITY_OFFSET: usize = offset_of!(PerCpu, identity);

/// What the leaf entries answer of the running thread, in their order.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Identity {
    words: [AtomicU64; 4],
}

/// The seven values of an [`Identity`], two in each word: the first below.
pub type IdentityWords = [u64; 4];

/// Packs the values of an [`Identity`].
pub fn identity_words(values: [u32; 7]) -> IdentityWords {
    let value = |index: usize| u64::from(values.get(index).copied().unwrap_or_default());
    core::array::from_fn(|word| value(2 * word) | value(2 * word + 1) << 32)
}

impl PerCpu {
    /// Notes process, thread and parent process id, and the real and effective user and group id of
    /// the thread that is about to run.
    pub fn set_identity(&self, words: &IdentityWords) {
        for (slot, word) in self.identity.words.iter().zip(words) {
            slot.store(*word, Ordering::Relaxed);
        }
    }

    /// Notes the thread that is about to run.
    pub fn set_thread(&self, thread: &Arc<Thread>) {
        self.thread.store(core::ptr::from_ref(thread).cast_mut(), Ordering::Relaxed);
        let work = core::ptr::from_ref(thread.return_work()).cast_mut();
        self.thread_work.store(work, Ordering::Relaxed);
    }

    /// Notes that there is something to be done on this processor before the application goes on.
    pub fn note_work(&self, work: CpuWork) {
        self.work.fetch_or(work.bits(), Ordering::Relaxed);
    }

    /// Whether `work` has been noted; it is not any more.
    pub fn take_work(&self, work: CpuWork) -> bool {
        self.has_work(work)
            && self.work.fetch_and(!work.bits(), Ordering::Relaxed) & work.bits() != 0
    }

    /// Whether `work` has been noted.
    pub fn has_work(&self, work: CpuWork) -> bool {
        self.work.load(Ordering::Relaxed) & work.bits() != 0
    }

    /// Whether the call that has just come in is one to be measured: the countdown is then at its
    /// end, and begins anew.
    pub fn take_sample(&self) -> bool {
        let is_due = self.until_sample.load(Ordering::Relaxed) == 0;
        if is_due {
            self.until_sample.store(traps::SAMPLE_PERIOD, Ordering::Relaxed);
        }
        is_due
    }

    /// Whether the call that has just come in came by the `syscall` instruction. To be asked of every
    /// call, if of any: the flag is only taken back here.
    pub fn take_trapped(&self) -> bool {
        self.trapped.swap(false, Ordering::Relaxed)
    }

    /// The application's stack pointer, as the entry code has noted it last.
    pub(super) fn user_rsp(&self) -> u64 {
        // SAFETY: the entry code of this processor writes the word, and is not running now.
        unsafe { (&raw const self.user_rsp).read_volatile() }
    }

    /// Top of the stack on which this processor enters the kernel.
    pub(super) fn kernel_stack(&self) -> u64 {
        // SAFETY: this processor writes the word, and is not doing so now.
        unsafe { (&raw const self.kernel_stack).read_volatile() }
    }

    /// What leaf entry number `index` answers.
    pub fn identity(&self, index: usize) -> u32 {
        (self.identity.words[index / 2].load(Ordering::Relaxed) >> (32 * (index % 2))) as u32
    }

    /// System calls so far, by the way that they took.
    pub fn call_counts(&self) -> CallCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CallCounts {
            leaf: count(&self.leaf_calls),
            known: count(&self.known_calls),
            computed: count(&self.computed_calls),
            trapped: count(&self.trap_calls),
        }
    }
}

bitflags! {
    /// What a processor has to do before it goes back to the application.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CpuWork: u8 {
        /// An interrupt came, and what it announces is still to be looked at.
        const INTERRUPTED = 1;
        /// What the timer is set for may have changed.
        const TIMER = 1 << 1;
        /// A thread has become ready that the running one has to make way for.
        const PREEMPTED = 1 << 2;
    }
}

/// Numbers of system calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallCounts {
    /// Answered by a leaf entry.
    pub leaf: u64,
    /// Others from rewritten sites that know the call's number.
    pub known: u64,
    /// From rewritten sites that find the number in rax.
    pub computed: u64,
    /// By the `syscall` instruction.
    pub trapped: u64,
}

impl core::iter::Sum for CallCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, one| Self {
            leaf: sum.leaf + one.leaf,
            known: sum.known + one.known,
            computed: sum.computed + one.computed,
            trapped: sum.trapped + one.trapped,
        })
    }
}

/// What the processor can do, found at boot.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// RDRAND.
    pub rdrand: bool,
    /// State components enabled in XCR0.
    pub xfeatures: u64,
    /// Bytes of the XSAVE area for them.
    pub xsave_size: usize,
    /// CPUID.1:EDX.
    pub leaf1_edx: u32,
    /// Under a hypervisor.
    pub hypervisor: bool,
}

/// What the CPUID instruction gives for a leaf: eax, ebx, ecx, edx.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let found = __cpuid_count(leaf, subleaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// Whether PCIDs are to be used where the processor has them.
static WANTS_PCIDS: AtomicBool = AtomicBool::new(false);

/// Takes over the word `pcid=` of the command line: PCIDs are used only with `on`.
pub(super) fn want_pcids(word: Option<&str>) {
    WANTS_PCIDS.store(word == Some("on"), Ordering::Relaxed);
}

static FEATURES: Once<Features> = Once::new();

// Those that a switch between threads asks for: RDFSBASE and its relatives are enabled; XSAVEOPT.
static HAS_FSGSBASE: AtomicBool = AtomicBool::new(false);
static HAS_XSAVEOPT: AtomicBool = AtomicBool::new(false);

fn has(feature: &AtomicBool) -> bool {
    feature.load(Ordering::Relaxed)
}

/// The features, once [`init`] has run.
pub fn features() -> &'static Features {
    FEATURES.get().expect("cpu::init comes first")
}

/// Sets this processor up: control registers, descriptors, the `syscall` instruction, its own data.
/// All are taken to be like the first.
///
/// # Errors
/// A message where it lacks something needed.
pub fn init(index: usize) -> Result<(), &'static str> {
    let leaf1 = __cpuid_count(1, 0);
    if leaf1.ecx & 1 << 26 == 0 {
        return Err("the processor has no XSAVE");
    }
    let apic_id = leaf1.ebx >> 24;
    super::bulk::init();
    let max_leaf = __cpuid_count(0, 0).eax;
    let leaf7 = if max_leaf >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
    let fsgsbase = leaf7 & 1 != 0;
    // SAFETY: bits of features that the processor reports, or that every x86-64 has.
    unsafe {
        let mut cr4 = Cr4::read();
        cr4 |= Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE | Cr4Flags::OSXSAVE;
        cr4.set(Cr4Flags::FSGSBASE, fsgsbase);
        // CR4.UMIP is left off: it binds CPL 3 only.
        Cr4::write(cr4);
        Cr0::write(
            (Cr0::read() - Cr0Flags::EMULATE_COPROCESSOR - Cr0Flags::TASK_SWITCHED)
                | Cr0Flags::MONITOR_COPROCESSOR
                | Cr0Flags::NUMERIC_ERROR
                | Cr0Flags::WRITE_PROTECT,
        );
    }
    let supported = __cpuid_count(0xd, 0);
    let supported = u64::from(supported.edx) << 32 | u64::from(supported.eax);
    // x87, SSE, AVX and AVX-512. MPX is gone, PKRU is not virtualised for the program, AMX asks for
    // the arch_prctl permission protocol.
    let wanted = XCr0Flags::X87
        | XCr0Flags::SSE
        | XCr0Flags::AVX
        | XCr0Flags::OPMASK
        | XCr0Flags::ZMM_HI256
        | XCr0Flags::HI16_ZMM;
    let enabled = wanted & XCr0Flags::from_bits_truncate(supported);
    // SAFETY: a subset of what is supported, x87 included.
    unsafe { XCr0::write(enabled) };
    // Queried after XCR0 is set: EBX depends on it.
    let xsave_size = __cpuid_count(0xd, 0).ebx as usize;
    HAS_FSGSBASE.store(fsgsbase, Ordering::Relaxed);
    HAS_XSAVEOPT.store(__cpuid_count(0xd, 1).eax & 1 != 0, Ordering::Relaxed);
    FEATURES.call_once(|| Features {
        rdrand: leaf1.ecx & 1 << 30 != 0,
        xfeatures: enabled.bits(),
        xsave_size,
        leaf1_edx: leaf1.edx,
        hypervisor: leaf1.ecx & 1 << 31 != 0,
    });

    tlb::init(index, leaf1.ecx, WANTS_PCIDS.load(Ordering::Relaxed))?;
    descriptors::Descriptors::install(index);
    let per_cpu = paging::window_of(index).ok_or("the processor has no data")?.cast::<PerCpu>();
    let data = PerCpu {
        this: per_cpu,
        kernel_stack: 0,
        user_rsp: 0,
        thread: AtomicPtr::default(),
        thread_work: AtomicPtr::default(),
        work: AtomicU8::new(CpuWork::TIMER.bits()),
        trapped: AtomicBool::new(false),
        until_sample: AtomicU32::new(traps::SAMPLE_PERIOD),
        leaf_calls: AtomicU64::new(0),
        known_calls: AtomicU64::new(0),
        computed_calls: AtomicU64::new(0),
        trap_calls: AtomicU64::new(0),
        identity: Identity::default(),
        leaf_word: 0,
        sched: crate::sched::PerCpu::default(),
        timer: super::timer::PerCpu::default(),
        smp: super::smp::PerCpu::new(apic_id),
        pcid: hx_tables::pcid::Processor::default(),
        soft_tlb: super::soft_tlb::PerCpu::default(),
        page_faults: AtomicU64::new(0),
        index,
    };
    // SAFETY: the page is this processor's alone, of a `PerCpu`'s size, and stays for ever.
    unsafe { per_cpu.write(data) };
    let slot = CPUS.get(index).ok_or("more processors than 64")?;
    slot.store(per_cpu, Ordering::Release);
    LStar::write(VirtAddr::new(traps::syscall_entry as *const () as u64));
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::TRAP_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::ALIGNMENT_CHECK
            | RFlags::NESTED_TASK,
    );
    // STAR, by hand: the crate's type insists on a SYSRET to CPL 3, which never happens here.
    const IA32_STAR: u32 = 0xc000_0081;
    // SAFETY: the selectors are those of the table loaded above; EFER.SCE only enables `syscall`.
    unsafe {
        Msr::new(IA32_STAR).write(u64::from(descriptors::CODE_SELECTOR) << 32);
        Efer::update(|flags| flags.insert(EferFlags::SYSTEM_CALL_EXTENSIONS));
    }
    Ok(())
}

/// `HWCAP2_FSGSBASE` of `asm/hwcap2.h`.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Facts of the processor for programs.
pub fn info(count: usize, tsc_khz: u64) -> CpuInfo {
    let features = features();
    CpuInfo {
        count,
        hwcap: u64::from(features.leaf1_edx),
        hwcap2: if has(&HAS_FSGSBASE) { HWCAP2_FSGSBASE } else { 0 },
        xsave_size: features.xsave_size,
        xfeatures: features.xfeatures,
        tsc_khz,
    }
}

/// This processor's data.
pub fn this() -> &'static PerCpu {
    // SAFETY: from `init` on the window has a `PerCpu` that stays.
    unsafe { &*own_data() }
}

/// The first word of the window: the address of the `PerCpu` there, null before [`init`].
fn own_data() -> *const PerCpu {
    let this: *const PerCpu;
    // SAFETY: reads a word that is mapped from the start.
    unsafe {
        asm!("mov {}, [rip + {window}]", out(reg) this, window = sym WINDOW,
            options(nostack, preserves_flags, pure, readonly));
    }
    this
}

/// Whether `rsp` is on the leaf entries' stack.
pub(super) fn is_leaf_stack(rsp: u64) -> bool {
    let end = (&raw const WINDOW) as u64 + LEAF_STACK_OFFSET as u64;
    rsp == end || rsp == end - 8
}

/// Sets the kernel stack on which this processor enters the kernel.
pub fn set_kernel_stack(top: u64) {
    // SAFETY: writes this processor's own word, which only the entry code reads.
    unsafe {
        asm!(
            "mov [rip + {window} + {offset}], {top}",
            window = sym WINDOW,
            offset = const KERNEL_STACK_OFFSET,
            top = in(reg) top,
            options(nostack, preserves_flags)
        );
    }
}

/// Sets the application's FS base, a canonical address.
pub fn set_fs_base(base: u64) {
    let base = VirtAddr::new_truncate(base);
    if has(&HAS_FSGSBASE) {
        // SAFETY: FS is the application's.
        unsafe { FS::write_base(base) };
    } else {
        FsBase::write(base);
    }
}

/// Sets the application's GS base, a canonical address.
pub fn set_gs_base(base: u64) {
    let base = VirtAddr::new_truncate(base);
    if has(&HAS_FSGSBASE) {
        // SAFETY: GS is the application's.
        unsafe { GS::write_base(base) };
    } else {
        GsBase::write(base);
    }
}

/// The application's FS and GS base.
pub fn segment_bases() -> (u64, u64) {
    if has(&HAS_FSGSBASE) {
        // SAFETY: CR4.FSGSBASE is set where the feature is there.
        (FS::read_base().as_u64(), GS::read_base().as_u64())
    } else {
        (FsBase::read().as_u64(), GsBase::read().as_u64())
    }
}

/// Sets the application's FS and GS base, canonical addresses.
pub fn set_segment_bases(fs: u64, gs: u64) {
    let (fs, gs) = (VirtAddr::new_truncate(fs), VirtAddr::new_truncate(gs));
    if has(&HAS_FSGSBASE) {
        // SAFETY: FS and GS are the application's.
        unsafe {
            FS::write_base(fs);
            GS::write_base(gs);
        }
    } else {
        FsBase::write(fs);
        GsBase::write(gs);
    }
}

/// A thread's vector state: an XSAVE area.
pub struct VectorState {
    area: NonNull<u8>,
}

// SAFETY: plain memory, accessed through its owner.
unsafe impl Send for VectorState {}
// SAFETY: `&VectorState` gives no access.
unsafe impl Sync for VectorState {}

/// Offset of MXCSR in the area, and its initial value (Intel SDM vol. 1 §10.2.3).
const MXCSR_OFFSET: usize = 24;
const MXCSR_INITIAL: u32 = 0x1f80;
/// Offset of the x87 control word's initial value is 0.
const FCW_INITIAL: u16 = 0x37f;
/// Offset of the XSAVE header.
const HEADER_OFFSET: usize = 512;

impl VectorState {
    fn layout() -> Layout {
        Layout::from_size_align(features().xsave_size.max(576), 64).expect("a constant alignment")
    }

    /// The initial state.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Self, OutOfMemory> {
        // SAFETY: the layout is not empty.
        let area = NonNull::new(unsafe { alloc_zeroed(Self::layout()) }).ok_or(OutOfMemory)?;
        // SAFETY: the offsets lie within the area. With a zero header XRSTOR initialises all
        // components but takes MXCSR from the area.
        unsafe {
            area.cast::<u16>().write(FCW_INITIAL);
            area.byte_add(MXCSR_OFFSET).cast::<u32>().write(MXCSR_INITIAL);
        }
        Ok(Self { area })
    }

    /// Saves the processor's state here.
    pub fn save(&mut self) {
        let (low, high) = (u32::MAX, u32::MAX);
        // SAFETY: the area is large enough for all enabled components and 64-byte aligned.
        unsafe {
            if has(&HAS_XSAVEOPT) {
                asm!("xsaveopt64 [{}]", in(reg) self.area.as_ptr(), in("eax") low, in("edx") high,
                    options(nostack, preserves_flags));
            } else {
                asm!("xsave64 [{}]", in(reg) self.area.as_ptr(), in("eax") low, in("edx") high,
                    options(nostack, preserves_flags));
            }
        }
    }

    /// Loads the processor's state from here.
    pub fn load(&self) {
        // SAFETY: the area was written by `save`, `new` or a checked `set`, so that no reserved bit
        // is set.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) self.area.as_ptr(), in("eax") u32::MAX,
                in("edx") u32::MAX, options(nostack, preserves_flags));
        }
    }

    /// Back to the initial state.
    pub fn reset(&mut self) {
        // SAFETY: the area has this size, and is exclusively borrowed; see `new`.
        unsafe {
            self.area.as_ptr().write_bytes(0, features().xsave_size);
            self.area.cast::<u16>().write(FCW_INITIAL);
            self.area.byte_add(MXCSR_OFFSET).cast::<u32>().write(MXCSR_INITIAL);
        }
    }

    /// The x87 status and control word and MXCSR.
    pub fn float_status(&self) -> (u16, u16, u32) {
        // SAFETY: within the area's legacy region.
        unsafe {
            let control = self.area.cast::<u16>().read();
            let status = self.area.byte_add(2).cast::<u16>().read();
            (status, control, self.area.byte_add(MXCSR_OFFSET).cast::<u32>().read())
        }
    }

    /// The area's bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the area has this size, and is not written while borrowed.
        unsafe { core::slice::from_raw_parts(self.area.as_ptr(), features().xsave_size) }
    }

    /// Takes over an area that the application has had in its hands; `false`, with nothing changed,
    /// where XRSTOR would fault on it.
    pub fn set(&mut self, bytes: &[u8]) -> bool {
        let size = features().xsave_size;
        if bytes.len() < size {
            return false;
        }
        let word = |at: usize| {
            let mut value = [0; 8];
            value.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(value)
        };
        let mxcsr_mask = 0xffff;
        let mxcsr = word(MXCSR_OFFSET) as u32;
        // Intel SDM vol. 1 §13.8.1: no unsupported component, no compaction, reserved bytes zero.
        if word(HEADER_OFFSET) & !features().xfeatures != 0
            || (1..8).any(|index| word(HEADER_OFFSET + index * 8) != 0)
            || mxcsr & !mxcsr_mask != 0
        {
            return false;
        }
        // SAFETY: the area has `size` bytes, and is exclusively borrowed.
        unsafe { self.area.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), size) };
        true
    }
}

impl Drop for VectorState {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.area.as_ptr(), Self::layout()) };
    }
}

/// The frame pointer of the caller.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let rbp;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nostack, nomem, preserves_flags)) };
    rbp
}

/// The return addresses of a kernel stack, innermost first: the words above its frame pointers.
pub struct ReturnAddresses {
    /// The frame pointer of the next one. In the end it is what the register held where the kernel was
    /// entered, the application's, or 0 where the frames do not lie one above the other.
    pub rbp: u64,
}

impl Iterator for ReturnAddresses {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // Frames lie on kernel stacks or the boot stack.
        if self.rbp < super::paging::KERNEL_HALF
            || !self.rbp.is_multiple_of(8)
            || !super::paging::is_mapped_stack(self.rbp)
        {
            return None;
        }
        // SAFETY: the address lies on a mapped kernel stack; with frame pointers forced, the saved rbp and
        // the return address are there, and whatever else it is, it can be read.
        let [next, address] = unsafe { *(self.rbp as *const [u64; 2]) };
        let is_below = next >= super::paging::KERNEL_HALF && next <= self.rbp;
        self.rbp = if is_below { 0 } else { next };
        Some(address)
    }
}

/// A random number of the processor's, if it has any to give.
pub fn rdrand() -> Option<u64> {
    if !features().rdrand {
        return None;
    }
    let (value, ok): (u64, u8);
    // SAFETY: the feature is there.
    unsafe { asm!("rdrand {}; setc {}", out(reg) value, out(reg_byte) ok, options(nostack)) };
    (ok == 1).then_some(value)
}

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits for an interrupt with interrupts on, and turns them off again. One that is pending already
/// ends the wait at once, even where a non-maskable interrupt comes between.
pub fn wait_for_interrupt() {
    // SAFETY: the kernel runs on a kernel stack here, and holds no lock while it idles.
    unsafe { traps::wait_for_interrupt() };
}
