//! The end of the machine.

use x86_64::instructions::{interrupts, port::Port};

/// QEMU's `isa-debug-exit`; a write of `n` ends QEMU with status `2n + 1`.
const DEBUG_EXIT: u16 = 0xf4;

/// Ends the virtual machine: by the debug port where there is one, else by a triple fault, which
/// resets, and so ends, a machine that was started with `-no-reboot` (or by Firecracker).
pub fn off() -> ! {
    end(0)
}

/// Ends the virtual machine before the console link was there, by
/// [`hx_abi::EARLY_EXIT`], so that `hermit-run` knows that the machine was too small to start.
pub fn off_early() -> ! {
    end(hx_abi::EARLY_EXIT)
}

fn end(code: u32) -> ! {
    interrupts::disable();
    // SAFETY: ends the machine, or does nothing where there is no such device.
    unsafe { Port::<u32>::new(DEBUG_EXIT).write(code) };
    let empty =
        x86_64::structures::DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() };
    // SAFETY: the triple fault is what is wanted.
    unsafe {
        x86_64::instructions::tables::lidt(&empty);
        core::arch::asm!("ud2", options(noreturn));
    }
}
