//! The first serial port: kernel messages, where `hermit-run --kernel-log` asks for them.

use core::fmt;

use x86_64::instructions::port::Port;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;

/// Writes to the port, waiting for room. Without a port at that address bytes go nowhere.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let (mut data, mut status) = (Port::<u8>::new(DATA), Port::<u8>::new(LINE_STATUS));
        for byte in text.bytes() {
            // SAFETY: the port is COM1's by PC convention; nothing else lives there. An absent
            // device reads as all ones, which counts as room.
            unsafe {
                while status.read() & TRANSMIT_EMPTY == 0 {
                    core::hint::spin_loop();
                }
                data.write(byte);
            }
        }
        Ok(())
    }
}
