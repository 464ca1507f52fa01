#![no_std]
#![no_main]
//! The Hermix kernel.

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
