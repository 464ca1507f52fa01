//! The kernel's own end: a message with a backtrace, for `hermit-run` to put names to.

use core::{
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicUsize, Ordering},
};

use hx_abi::link::fatal_frame;
use hx_syscalls::task::UserRegs;

use crate::{
    machine::{self, KERNEL_BASE},
    memory::heap,
};

const OUT_OF_MEMORY: &str = "kernel out of memory: give the virtual machine more with -m";

/// Text of limited length, on the stack: the heap may be what has run out.
struct Text {
    bytes: [u8; 1536],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 1536], len: 0 }
    }

    fn as_str(&self) -> &str {
        match core::str::from_utf8(&self.bytes[..self.len]) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// The processor that panics, once one does.
static PANICKING: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = usize::MAX;

/// Makes this processor the one that panics; ends it where another one is at it already.
fn begin(what: &dyn fmt::Display) {
    // Before the processors are set up there is one.
    let own = if machine::is_set_up() { machine::this_cpu().index } else { 0 };
    match PANICKING.compare_exchange(NOBODY, own, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {
            if machine::is_set_up() {
                machine::stop_others();
            }
        }
        Err(other) if other == own => {
            let _ = writeln!(machine::Serial, "panic while panicking: {what}");
            machine::power_off();
        }
        Err(_) => loop {
            hx_syscalls::sync::relax();
        },
    }
}

/// Return addresses on the stack whose frame pointer is `rbp`, innermost first.
fn backtrace(rbp: u64, text: &mut Text) {
    let addresses = machine::ReturnAddresses { rbp }.take(40);
    for address in addresses.take_while(|address| *address >= KERNEL_BASE) {
        let _ = write!(text, "\n  at [<{address:016x}>]");
    }
}

/// An exception in the kernel that nothing recovers.
pub fn fatal_exception(vector: u8, error: u64, address: u64, regs: &UserRegs) -> ! {
    let what = match vector {
        14 if crate::memory::stack::is_guard(address) => "kernel stack overflow",
        14 => "page fault",
        13 => "general protection fault",
        8 => "double fault",
        6 if cfg!(feature = "parts") => "a panic, or an invalid instruction",
        6 => "invalid instruction",
        18 => "machine check",
        _ => "exception",
    };
    begin(&what);
    let mut text = Text::new();
    // Where panics are such instructions, a heap without memory ends so too.
    if cfg!(feature = "parts") && vector == 6 && heap::has_failed() {
        let _ = text.write_str(OUT_OF_MEMORY);
        last_words(&text)
    }
    let _ = write!(
        text,
        "kernel panic: {what} (vector {vector}, error {error:#x}, address {address:#x})\n  at [<{:016x}>]",
        regs.rip
    );
    backtrace(regs.rbp, &mut text);
    last_words(&text)
}

fn last_words(text: &Text) -> ! {
    let text = text.as_str();
    let _ = writeln!(machine::Serial, "{text}");
    let mut frame = [0; 1600];
    // SAFETY: nothing else runs any more on this machine.
    unsafe { machine::link::transmit_last(fatal_frame(text, &mut frame)) };
    machine::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if cfg!(feature = "parts") {
        // With the reasons of panics go 44 KiB: their texts, and all code that formats them.
        begin(&"panic");
        let mut text = Text::new();
        if heap::has_failed() {
            // Where it was noticed is no help to the user.
            let _ = text.write_str(OUT_OF_MEMORY);
        } else {
            let _ = text.write_str("kernel panic");
            backtrace(machine::frame_pointer(), &mut text);
        }
        last_words(&text)
    }
    begin(info);
    let mut text = Text::new();
    let _ = write!(text, "{}", info.message());
    // As `alloc` words it. Neither the place nor the size is any help to the user.
    if text.as_str().starts_with("memory allocation of ") {
        text = Text::new();
        let _ = text.write_str(OUT_OF_MEMORY);
    } else {
        text = Text::new();
        let _ = write!(text, "kernel panic: {info}");
        backtrace(machine::frame_pointer(), &mut text);
    }
    last_words(&text)
}
