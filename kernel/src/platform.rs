//! The kernel as the platform of the system calls.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use hx_abi::link::{Kind, MAX_PAYLOAD, Record, header};
use hx_syscalls::{
    Errno,
    mm::{CodePatcher, PageTable},
    net::{NETWORK_CALLS, device::NetworkDevice},
    page::OutOfMemory,
    parts::Part,
    platform::{BootStep, CpuInfo, Frame, MemoryInfo, Platform, ThreadHandle, ThreadStart, Vdso},
    task::{System, Thread},
    user::UserAddr,
};

use crate::{
    events,
    machine::{self, ProcessTable, clock, phys_to_virt},
    memory::{
        buffers,
        frames::{self, FRAME_SIZE, Purpose},
        heap,
    },
    random,
    rewrite::Rewriter,
    sched,
    stats::Step,
    vdso,
};

/// The one instance.
pub static KERNEL: Kernel = Kernel { realtime_offset_ns: AtomicU64::new(0) };

/// See the module.
pub struct Kernel {
    realtime_offset_ns: AtomicU64,
}

type OpenCard = fn() -> Option<Box<dyn NetworkDevice>>;

/// The network card's driver.
static PART_CARD: Part<OpenCard> = Part::new(NETWORK_CALLS, machine::network::open);

/// The bytes of part of a frame.
fn frame_at(frame: Frame, offset: usize) -> *mut u8 {
    phys_to_virt(frame.0 * FRAME_SIZE + offset as u64)
}

impl Platform for Kernel {
    fn monotonic_ns(&self) -> u64 {
        clock::now_ns()
    }

    fn realtime_offset_ns(&self) -> u64 {
        self.realtime_offset_ns.load(Ordering::Relaxed)
    }

    fn set_realtime_offset_ns(&self, offset: u64) {
        self.realtime_offset_ns.store(offset, Ordering::Relaxed);
        vdso::update(offset);
    }

    fn set_timer(&self, deadline_ns: Option<u64>) {
        events::set_system_timer(deadline_ns);
    }

    fn current_handle(&self) -> Arc<dyn ThreadHandle> {
        sched::current_handle()
    }

    fn park(&self, deadline_ns: Option<u64>) {
        sched::park(deadline_ns);
    }

    fn yield_now(&self) {
        sched::yield_now();
    }

    fn spawn(&self, thread: Arc<Thread>, start: ThreadStart) -> Result<(), Errno> {
        sched::spawn(thread, &start)
    }

    fn current_cpu(&self) -> usize {
        machine::this_cpu().index
    }

    fn tls_bases(&self) -> (u64, u64) {
        machine::segment_bases()
    }

    fn set_fs_base(&self, base: u64) {
        machine::set_fs_base(base);
    }

    fn set_gs_base(&self, base: u64) {
        machine::set_gs_base(base);
    }

    fn save_vector_state(&self, area: &mut [u8]) {
        sched::with_vector_state(|state| {
            let len = area.len().min(state.bytes().len());
            area[..len].copy_from_slice(&state.bytes()[..len]);
        });
    }

    fn load_vector_state(&self, area: &[u8]) -> bool {
        sched::with_vector_state(|state| state.set(area))
    }

    fn save_vector_state_to_user(&self, to: UserAddr) -> bool {
        // SAFETY: the range was checked to be the application's, and is aligned.
        unsafe { machine::save_vector_state_at(to.0) }
    }

    fn load_vector_state_from_user(&self, from: UserAddr) -> bool {
        // SAFETY: as in `save_vector_state_to_user`.
        unsafe { machine::load_vector_state_at(from.0) }
    }

    fn reset_vector_state(&self) {
        sched::with_vector_state(machine::VectorState::reset);
    }

    fn alloc_zeroed_frame(&self) -> Option<Frame> {
        frames::alloc_zeroed(Purpose::Application)
    }

    fn alloc_frame_copy(&self, from: Frame) -> Option<Frame> {
        let (frame, _) = frames::alloc_block(0, Purpose::Application)?;
        // SAFETY: the new frame is nobody else's, the old one is mapped like all memory.
        unsafe {
            frame_at(frame, 0).copy_from_nonoverlapping(frame_at(from, 0), FRAME_SIZE as usize);
        }
        Some(frame)
    }

    fn image_frame(&self, offset: usize) -> Option<Frame> {
        machine::image_frame(offset)
    }

    fn retain_frame(&self, frame: Frame) {
        frames::retain(frame);
    }

    fn release_frame(&self, frame: Frame) {
        frames::release(frame);
    }

    fn frame_refs(&self, frame: Frame) -> u32 {
        frames::ref_count(frame)
    }

    fn read_frame(&self, frame: Frame, offset: usize, out: &mut [u8]) {
        // SAFETY: the range lies within the frame. The application may write to it meanwhile; then
        // the bytes are whatever it wrote, as on any machine.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(frame_at(frame, offset), out.len()) };
    }

    fn write_frame(&self, frame: Frame, offset: usize, bytes: &[u8]) {
        // SAFETY: as in `read_frame`.
        unsafe { frame_at(frame, offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn zero_frame(&self, frame: Frame, offset: usize, len: usize) {
        // SAFETY: as in `read_frame`.
        unsafe { frame_at(frame, offset).write_bytes(0, len) };
    }

    fn memory_info(&self) -> MemoryInfo {
        frames::info()
    }

    fn code_patcher(&self, system: &Arc<System>) -> Option<Arc<dyn CodePatcher>> {
        let patcher: Arc<dyn CodePatcher> = Rewriter::new(system);
        (system.config.rewrite || system.config.profile).then_some(patcher)
    }

    fn new_page_table(&self) -> Result<Box<dyn PageTable>, OutOfMemory> {
        Ok(Box::new(ProcessTable::new()?))
    }

    fn copy_from_user(&self, from: UserAddr, out: &mut [u8]) -> usize {
        // SAFETY: `out` is the kernel's, and the range was checked to be the application's.
        unsafe { machine::copy_user(out.as_mut_ptr(), from.0 as *const u8, out.len()) }
    }

    fn copy_to_user(&self, to: UserAddr, bytes: &[u8]) -> usize {
        // SAFETY: as in `copy_from_user`.
        unsafe { machine::copy_user(to.0 as *mut u8, bytes.as_ptr(), bytes.len()) }
    }

    fn zero_user(&self, to: UserAddr, len: usize) -> usize {
        // SAFETY: the range was checked to be the application's.
        unsafe { machine::zero_user(to.0, len) }
    }

    fn copy_frame_to_user(&self, frame: Frame, offset: usize, to: UserAddr, len: usize) -> usize {
        // SAFETY: the range lies within the frame, the other was checked to be the application's.
        unsafe { machine::copy_user(to.0 as *mut u8, frame_at(frame, offset), len) }
    }

    fn copy_frame_from_user(
        &self,
        frame: Frame,
        offset: usize,
        from: UserAddr,
        len: usize,
    ) -> usize {
        // SAFETY: as in `copy_frame_to_user`.
        unsafe { machine::copy_user(frame_at(frame, offset), from.0 as *const u8, len) }
    }

    fn compare_exchange_user_u32(&self, at: UserAddr, expected: u32, new: u32) -> Option<u32> {
        // SAFETY: the address was checked to be the application's, and aligned.
        unsafe { machine::compare_exchange_user(at.0, expected, new) }
    }

    fn load_user_u32(&self, at: UserAddr) -> Option<u32> {
        // SAFETY: as in `compare_exchange_user_u32`.
        unsafe { machine::load_user(at.0) }
    }

    fn new_buffer(&self, len: usize) -> Option<Vec<u8>> {
        if len < FRAME_SIZE as usize {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(len).ok()?;
            buffer.resize(len, 0);
            return Some(buffer);
        }
        heap::new_buffer(len)
    }

    fn fill_buffer(&self, addresses: Range<usize>) -> Result<(), OutOfMemory> {
        if buffers::contains(addresses.start as u64) { buffers::fill(addresses) } else { Ok(()) }
    }

    fn empty_buffer(&self, addresses: Range<usize>) {
        if buffers::contains(addresses.start as u64) {
            buffers::empty(addresses);
        }
    }

    fn network_device(&self) -> Option<Box<dyn NetworkDevice>> {
        PART_CARD.get()?()
    }

    fn fill_random(&self, out: &mut [u8]) {
        random::fill(out);
    }

    fn begin_spin(&self) {
        machine::enter_idle();
    }

    fn end_spin(&self) {
        machine::leave_idle();
    }

    fn memory_barrier(&self) {
        machine::memory_barrier();
    }

    fn cpu_info(&self) -> CpuInfo {
        machine::cpu_info(machine::cpu_count(), clock::tsc_khz())
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        machine::cpuid(leaf, subleaf)
    }

    fn vdso(&self) -> Option<Vdso> {
        Some(vdso::image())
    }

    fn console_write(&self, stream: Kind, bytes: &[u8]) {
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            machine::link::transmit(&header(stream, chunk.len()), chunk);
        }
    }

    fn boot_step(&self, done: BootStep) {
        crate::stats::done(match done {
            BootStep::Files => Step::Files,
            BootStep::Mounts => Step::Mounts,
        });
    }

    fn send_record(&self, record: &Record) {
        machine::link::transmit(&record.to_frame(), &[]);
    }
}
