//! What the system calls ask of the machine.
//!
//! The kernel registers its implementation once with [`set_platform`]; on the host
//! [`crate::testing`] does.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::ops::Range;

use crate::{
    Errno,
    mm::{CodePatcher, PageTable},
    net::device::NetworkDevice,
    page::OutOfMemory,
    sync::Once,
    task::{System, Thread, UserRegs},
    user::UserAddr,
};

/// Number of a 4 KiB frame of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u64);

/// A thread as the scheduler knows it.
///
/// Parking works as in `std::thread`: one token a thread; [`Platform::park`] consumes it or blocks
/// until it is there, and may also return for no reason.
pub trait ThreadHandle: Send + Sync {
    /// Makes the token available, and the thread runnable where it is parked. May be called from
    /// any thread, with locks held.
    fn unpark(&self);

    /// As [`Self::unpark`]; where the thread runs in the application on another processor, it is made
    /// to pass through the kernel as well, and so to look at its signals.
    fn interrupt(&self) {
        self.unpark();
    }

    /// Processor time that the thread has used, in nanoseconds: in the application, and in the
    /// kernel on its behalf.
    fn cpu_time_ns(&self) -> CpuTime;

    /// Whether this is the running thread.
    fn is_current(&self) -> bool;

    /// The thread is to be scheduled in another way from now on.
    fn scheduling_changed(&self, _new: crate::task::sched::Scheduling) {}
}

/// Processor time in nanoseconds, as `man 2 times` divides it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Executing application code.
    pub user_ns: u64,
    /// In the kernel on the application's behalf.
    pub system_ns: u64,
}

/// Nanoseconds in a clock tick (`sysconf(_SC_CLK_TCK)` is 100).
pub const TICK_NS: u64 = 10_000_000;

impl CpuTime {
    /// User and system time in clock ticks.
    #[must_use]
    pub fn ticks(self) -> (i64, i64) {
        ((self.user_ns / TICK_NS) as i64, (self.system_ns / TICK_NS) as i64)
    }

    /// Both together.
    #[must_use]
    pub fn total_ns(self) -> u64 {
        self.user_ns + self.system_ns
    }
}

/// Physical memory, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// All that the machine has for kernel and program.
    pub total_frames: u64,
    /// What is free now.
    pub free_frames: u64,
}

/// Facts of the processor that programs are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuInfo {
    /// Number of processors.
    pub count: usize,
    /// `AT_HWCAP`: CPUID.1:EDX.
    pub hwcap: u64,
    /// `AT_HWCAP2`: bit 1 where FSGSBASE may be used (`man 3 getauxval`).
    pub hwcap2: u64,
    /// Bytes of the XSAVE area in the layout that signal frames use (CPUID.0xD:EBX), at least 512.
    pub xsave_size: usize,
    /// XCR0, the state components enabled; 0 without XSAVE.
    pub xfeatures: u64,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u64,
}

/// The start state of a thread of the application.
#[derive(Clone, Copy, Debug)]
pub struct ThreadStart {
    /// Its registers.
    pub regs: UserRegs,
    /// Base of FS: thread-local storage.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// Whether the thread starts with a copy of the calling thread's vector state (fork, clone) or
    /// with the initial one (execve).
    pub vector_state: VectorState,
}

/// See [`ThreadStart::vector_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorState {
    /// As after reset, per the System V ABI.
    Initial,
    /// A copy of the calling thread's.
    Inherited,
}

/// The machine, as the system calls see it.
pub trait Platform: Sync {
    // Time.

    /// Nanoseconds since boot, never going back (`CLOCK_MONOTONIC`).
    fn monotonic_ns(&self) -> u64;
    /// Nanoseconds between the epoch and boot: `CLOCK_REALTIME` is this plus
    /// [`Self::monotonic_ns`].
    fn realtime_offset_ns(&self) -> u64;
    /// Sets what [`Self::realtime_offset_ns`] gives (`man 2 clock_settime`), the vDSO included.
    fn set_realtime_offset_ns(&self, offset: u64);

    // Threads.

    /// The running thread's handle.
    fn current_handle(&self) -> Arc<dyn ThreadHandle>;
    /// Blocks the running thread until its token is there or [`Self::monotonic_ns`] reaches
    /// `deadline_ns`.
    fn park(&self, deadline_ns: Option<u64>);
    /// Lets other runnable threads run.
    fn yield_now(&self);
    /// Asks for a call of [`crate::time::TimerQueue::due`] as soon as [`Self::monotonic_ns`] has
    /// reached `deadline_ns`; replaces what was asked for before, `None` withdraws it. May be called
    /// from any thread, with locks held.
    fn set_timer(&self, _deadline_ns: Option<u64>) {}
    /// Starts `thread`; its handle is stored in it before it runs.
    ///
    /// # Errors
    /// `EAGAIN` or `ENOMEM` where there is no memory for it.
    fn spawn(&self, thread: Arc<Thread>, start: ThreadStart) -> Result<(), Errno>;
    /// Processor that the running thread is on.
    fn current_cpu(&self) -> usize;

    /// The processor begins to wait for a lock: until [`Self::end_spin`] it touches no application
    /// memory, and whoever changes page tables need not wait for it.
    fn begin_spin(&self) {}
    /// See [`Self::begin_spin`].
    fn end_spin(&self) {}

    // The running thread's registers that the trap frame does not hold.

    /// Base of FS and GS.
    fn tls_bases(&self) -> (u64, u64);
    /// Sets the base of FS. The address has been checked to be canonical.
    fn set_fs_base(&self, base: u64);
    /// Sets the application's base of GS. The address has been checked to be canonical.
    fn set_gs_base(&self, base: u64);
    /// Copies the vector state into `area` (of [`CpuInfo::xsave_size`] bytes), in the standard
    /// XSAVE format (Intel SDM vol. 1 §13.4).
    fn save_vector_state(&self, area: &mut [u8]);
    /// Loads the vector state; an area with reserved bits set gives `EINVAL`-like `false`.
    fn load_vector_state(&self, area: &[u8]) -> bool;
    /// [`Self::save_vector_state`] right into application memory: [`CpuInfo::xsave_size`] bytes at a
    /// multiple of 64, whose XSAVE header is zero. `false` where they cannot be written. The bytes
    /// 464 to 511, which are software's, stay as they are.
    fn save_vector_state_to_user(&self, to: UserAddr) -> bool;
    /// [`Self::load_vector_state`] right from application memory, at a multiple of 64. `false` where
    /// it cannot be read or is refused; the vector state may be anything then.
    fn load_vector_state_from_user(&self, from: UserAddr) -> bool;
    /// Resets the vector state to the initial one (execve).
    fn reset_vector_state(&self);

    // Physical memory. Frames of the root image are neither counted nor freed, see
    // `Page::of_image`.

    /// A zeroed frame with one reference.
    fn alloc_zeroed_frame(&self) -> Option<Frame>;
    /// A frame with one reference and the content of `from`.
    fn alloc_frame_copy(&self, from: Frame) -> Option<Frame>;
    /// The frame at this (page-aligned) offset of the root image.
    fn image_frame(&self, offset: usize) -> Option<Frame>;
    /// Adds a reference.
    fn retain_frame(&self, frame: Frame);
    /// Takes a reference away; the last one frees the frame.
    fn release_frame(&self, frame: Frame);
    /// Number of references (`u32::MAX` for frames of the root image).
    fn frame_refs(&self, frame: Frame) -> u32;
    /// Copies out of a frame; the range lies within it.
    fn read_frame(&self, frame: Frame, offset: usize, out: &mut [u8]);
    /// Copies into a frame; the range lies within it.
    fn write_frame(&self, frame: Frame, offset: usize, bytes: &[u8]);
    /// Zeros part of a frame; the range lies within it.
    fn zero_frame(&self, frame: Frame, offset: usize, len: usize);
    /// Memory in use and free.
    fn memory_info(&self) -> MemoryInfo;

    // Buffers of the kernel's own.

    /// `len` bytes of any content for a buffer that is made before it is used. There may be no memory behind
    /// them but from [`Self::fill_buffer`] to [`Self::empty_buffer`]: they must not be touched otherwise, and the
    /// vector must not grow. Dropped, it gives back everything.
    fn new_buffer(&self, len: usize) -> Option<Vec<u8>> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).ok()?;
        buffer.resize(len, 0);
        Some(buffer)
    }
    /// Puts memory behind a buffer of [`Self::new_buffer`]'s, of which these are the addresses: it holds
    /// anything then.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is none behind it.
    fn fill_buffer(&self, _addresses: Range<usize>) -> Result<(), OutOfMemory> {
        Ok(())
    }
    /// Takes the memory of [`Self::fill_buffer`] away, and the content with it.
    fn empty_buffer(&self, _addresses: Range<usize>) {}

    // Address spaces and application memory. The ranges have been checked to lie in the
    // application's half; the result is the number of bytes copied before a fault that
    // `AddressSpace::handle_fault` could not resolve.

    /// What replaces code in a new address space as it is mapped, if anything does.
    fn code_patcher(&self, _system: &Arc<System>) -> Option<Arc<dyn CodePatcher>> {
        None
    }

    /// An empty page table (the kernel half is in it).
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn new_page_table(&self) -> Result<Box<dyn PageTable>, OutOfMemory>;
    /// Reads the running thread's application memory.
    fn copy_from_user(&self, from: UserAddr, out: &mut [u8]) -> usize;
    /// Writes the running thread's application memory.
    fn copy_to_user(&self, to: UserAddr, bytes: &[u8]) -> usize;
    /// Zeros the running thread's application memory.
    fn zero_user(&self, to: UserAddr, len: usize) -> usize;
    /// Copies from a frame to application memory.
    fn copy_frame_to_user(&self, frame: Frame, offset: usize, to: UserAddr, len: usize) -> usize;
    /// Copies from application memory to a frame.
    fn copy_frame_from_user(
        &self,
        frame: Frame,
        offset: usize,
        from: UserAddr,
        len: usize,
    ) -> usize;
    /// Atomically replaces the aligned 32-bit word at `at` by `new` if it is `expected`; gives the
    /// value found, or `None` on a fault (futexes: `man 2 futex`).
    fn compare_exchange_user_u32(&self, at: UserAddr, expected: u32, new: u32) -> Option<u32>;
    /// Atomically reads the aligned 32-bit word at `at`.
    fn load_user_u32(&self, at: UserAddr) -> Option<u32>;

    // The rest.

    /// The network card, where there is one: asked for once, when the network is first used.
    fn network_device(&self) -> Option<Box<dyn NetworkDevice>> {
        None
    }
    /// Fills `out` with random bytes fit for cryptography.
    fn fill_random(&self, out: &mut [u8]);
    /// Makes every processor that runs the application pass a full memory barrier, and its
    /// instruction fetch see what was written before (`man 2 membarrier`).
    fn memory_barrier(&self) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
    /// Facts of the processor.
    fn cpu_info(&self) -> CpuInfo;
    /// What the CPUID instruction gives for a leaf: eax, ebx, ecx, edx.
    fn cpuid(&self, _leaf: u32, _subleaf: u32) -> [u32; 4] {
        [0; 4]
    }
    /// Content of the vDSO image (an ELF file) to be mapped, if the machine has one, and the pages
    /// of data that precede it.
    fn vdso(&self) -> Option<Vdso>;
    /// Writes to `hermit-run`'s standard output or error (the only kinds passed here), blocking
    /// until the bytes are on their way.
    fn console_write(&self, stream: hx_abi::link::Kind, bytes: &[u8]);
    /// Sends a record to `hermit-run`.
    fn send_record(&self, record: &hx_abi::link::Record);
    /// A step of [`crate::boot::boot`] is done: for who times the start.
    fn boot_step(&self, _done: BootStep) {}
}

/// A step of [`crate::boot::boot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootStep {
    /// The files of the image are in the file system.
    Files,
    /// So are the devices and the standard streams.
    Mounts,
}

/// The vDSO: `data` is mapped read-only directly below `text`, which is mapped executable.
#[derive(Clone, Copy, Debug)]
pub struct Vdso {
    /// Frames of the data pages.
    pub data: &'static [Frame],
    /// Frames of the image.
    pub text: &'static [Frame],
    /// Offset of the `__vdso_rt_sigreturn`-free ELF header in `text` is always 0; this is the
    /// image's length in bytes.
    pub len: usize,
}

static PLATFORM: Once<&'static dyn Platform> = Once::new();

/// Registers the platform, once, before anything else of this crate is used.
pub fn set_platform(platform: &'static dyn Platform) {
    PLATFORM.call_once(|| platform);
}

/// The registered platform.
///
/// # Panics
/// Where none has been registered.
#[must_use]
pub fn platform() -> &'static dyn Platform {
    *PLATFORM.get().expect("set_platform comes first")
}
