//! A PC without firmware: PVH boot, APICs, virtio over MMIO, a serial port.

mod apic;
mod boot;
mod bulk;
pub mod clock;
pub mod cpu;
mod descriptors;
pub mod link;
pub mod network;
pub mod paging;
pub mod power;
pub mod sampling;
pub mod serial;
pub mod smp;
pub mod soft_tlb;
mod start_info;
mod tables;
pub mod timer;
mod tlb;
pub mod traps;
mod virtio;

use core::sync::atomic::{AtomicU64, Ordering};

use hx_syscalls::platform::Frame;
use hx_syscalls::sync::Once;
use start_info::BootInfo;

use crate::{
    memory::{
        PhysRange,
        frames::{self, FreshMemory},
    },
    sched::Provoked,
    stats::{self, Step},
};

/// What the start of the machine has found.
pub struct Boot {
    /// The boot archive (module 0).
    pub archive: Option<&'static [u8]>,
    /// The root image where it is not part of module 0.
    pub root: Option<&'static [u8]>,
}

/// Physical memory that holds files: the root image and module 0. Never allocated, never written.
struct Images {
    root: PhysRange,
    module: PhysRange,
}

static IMAGES: Once<Images> = Once::new();

/// Whether the frame belongs to the kernel's image or to files in memory rather than to the
/// allocator: such frames are neither counted nor freed.
pub fn is_image_frame(frame: Frame) -> bool {
    IMAGE_FRAMES.iter().any(|(first, count)| {
        frame.0.wrapping_sub(first.load(Ordering::Relaxed)) < count.load(Ordering::Relaxed)
    })
}

/// First frame and number of frames of root image, module and kernel.
static IMAGE_FRAMES: [(AtomicU64, AtomicU64); 3] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 3];

/// The frame at this page-aligned offset of the files in memory: the root image, then, from the next
/// page boundary on, module 0.
pub fn image_frame(offset: usize) -> Option<Frame> {
    let images = IMAGES.get()?;
    let mut offset = offset as u64;
    for image in [images.root, images.module] {
        let len = image.len().next_multiple_of(frames::FRAME_SIZE);
        if offset < len {
            let at = image.start + offset;
            let is_aligned = at.is_multiple_of(frames::FRAME_SIZE);
            return is_aligned.then_some(Frame(at / frames::FRAME_SIZE));
        }
        offset -= len;
    }
    None
}

/// Brings the first processor and its memory up. Runs on the boot stack and page tables.
///
/// # Errors
/// A line for the user where the machine cannot be used.
pub fn start(start_info: u64) -> Result<Boot, &'static str> {
    let info = BootInfo::read(start_info)?;
    let kernel = paging::kernel_range();
    let line = core::str::from_utf8(info.command_line).unwrap_or_default();
    let word = |key: &str| {
        let mut words = line.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let root = match word("root") {
        None => PhysRange::EMPTY,
        Some(value) => {
            let (start, len) = value.split_once(',').ok_or("root=ADDRESS,LENGTH is malformed")?;
            let start = number(start).ok_or("root= has a malformed address")?;
            let len = number(len).ok_or("root= has a malformed length")?;
            PhysRange::new(start, start.saturating_add(len))
        }
    };
    let module = info.module.unwrap_or(PhysRange::EMPTY);
    for image in [root, module] {
        let inside = |range: &PhysRange| range.start <= image.start && image.end <= range.end;
        if !image.is_empty() && !info.ram().iter().any(inside) {
            return Err("too little memory for the program's files: give the machine more with -m");
        }
    }
    let used = PhysRange::new(kernel.start, boot::area().end);
    if [root, module].iter().any(|image| image.overlaps(used)) || root.overlaps(module) {
        return Err("too little memory: kernel and files overlap, give the machine more with -m");
    }
    IMAGES.call_once(|| Images { root, module });
    for ((first, count), range) in IMAGE_FRAMES.iter().zip([root, module, kernel]) {
        let start = range.start / frames::FRAME_SIZE;
        first.store(start, Ordering::Relaxed);
        count.store(range.end.div_ceil(frames::FRAME_SIZE) - start, Ordering::Relaxed);
    }
    let fresh = match word("fresh") {
        Some("zero") => FreshMemory::Zeroed,
        _ => FreshMemory::Unknown,
    };
    let page =
        |range: PhysRange| PhysRange::new(range.start & !0xfff, (range.end + 0xfff) & !0xfff);
    let mut reserved = [page(used), page(root), page(module)];
    reserved.sort_unstable_by_key(|range| range.start);
    frames::init(info.ram(), &reserved, fresh)?;
    paging::init(info.ram()).map_err(|_| "too little memory for page tables")?;
    stats::done(Step::Memory);
    cpu::want_pcids(word("pcid"));
    cpu::init(0)?;
    soft_tlb::init();
    apic::init().map_err(|_| "too little memory for device mappings")?;
    match word("provoke") {
        Some("stack-overflow") => crate::sched::provoke(Provoked::StackOverflow),
        Some("panic") => crate::sched::provoke(Provoked::Panic),
        _ => {}
    }
    stats::done(Step::Processor);
    clock::init(word("tsc_khz").and_then(number));
    stats::done(Step::Clock);
    smp::expect(word("cpus").and_then(number).unwrap_or(1) as usize);
    for device in info.parameters("virtio_mmio.device") {
        virtio::found(device);
    }
    let slice = |range: PhysRange| {
        if range.is_empty() { None } else { paging::phys_slice(range) }
    };
    Ok(Boot { archive: slice(module), root: slice(root) })
}

/// Makes the memory that the boot's page tables and stack took ordinary RAM. To be called once, when the
/// first processor has left that stack.
pub fn give_back_boot_memory() {
    // A processor that has not come yet may come still, and begins with the boot's page tables.
    if smp::all_have_come() {
        frames::add(boot::area());
    }
}

/// A decimal or `0x` hexadecimal number.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
