//! The vDSO as programs see it: one page of data, one of code, both part of the kernel's image.

use hx_syscalls::platform::{Frame, Vdso};
use hx_syscalls::sync::{Mutex, Once};
use hx_vdso::{IMAGE, TimeParameters, TimeSource, VvarPage};

use crate::{
    machine::{self, clock, virt_to_phys},
    memory::frames::FRAME_SIZE,
};

const _: () = assert!(hx_vdso::IMAGE_PAGES == 1);

/// The code, on a page of its own.
#[repr(C, align(4096))]
struct Text([u8; FRAME_SIZE as usize]);

static TEXT: Text = {
    let mut text = [0; FRAME_SIZE as usize];
    let mut index = 0;
    while index < IMAGE.len() {
        text[index] = IMAGE[index];
        index += 1;
    }
    Text(text)
};

static DATA: VvarPage = VvarPage::new();
/// Serialises updates of [`DATA`].
static UPDATE: Mutex<()> = Mutex::new(());

/// Tells programs how to compute the time.
pub fn update(realtime_offset_ns: u64) {
    let _updating = UPDATE.lock();
    DATA.set_cpu_selector(machine::NUMBER_SELECTOR);
    DATA.update(&TimeParameters {
        source: TimeSource::Tsc,
        tsc_base: clock::base(),
        scale: clock::scale(),
        monotonic_ns: 0,
        realtime_offset_ns,
        boottime_offset_ns: 0,
        tai_offset_ns: 0,
        coarse_resolution_ns: COARSE_RESOLUTION_NS,
    });
}

/// What `clock_getres` says of the coarse clocks: Linux's with 250 ticks a second.
const COARSE_RESOLUTION_NS: u32 = 4_000_000;

/// What is mapped into a process.
pub fn image() -> Vdso {
    static FRAMES: Once<[Frame; 2]> = Once::new();
    let frame = |address: u64| Frame(virt_to_phys(address) / FRAME_SIZE);
    let frames =
        FRAMES.call_once(|| [frame((&raw const DATA) as u64), frame((&raw const TEXT) as u64)]);
    Vdso { data: &frames[..1], text: &frames[1..], len: IMAGE.len() }
}
