//! Attributes that cannot be changed (`man 2 ioctl_tty`, `TIOCSLCKTRMIOS`).

use linux_raw_sys::general as linux;

use super::discipline::Termios;

/// A bit that is set here, or a character that is not zero, stays as it is.
#[derive(Clone, Copy)]
pub(super) struct Locked(pub(super) linux::termios);

impl Default for Locked {
    fn default() -> Self {
        let (c_iflag, c_oflag, c_cflag, c_lflag) = (0, 0, 0, 0);
        Self(linux::termios { c_iflag, c_oflag, c_cflag, c_lflag, c_line: 0, c_cc: [0; 19] })
    }
}

impl Locked {
    /// Lets `new`, which is to take the place of `old`, differ only in what is not locked.
    pub(super) fn keep(&self, old: &Termios, new: &mut Termios) {
        let bits = |old: u32, new: &mut u32, locked: u32| *new = *new & !locked | old & locked;
        bits(old.c_iflag, &mut new.c_iflag, self.0.c_iflag);
        bits(old.c_oflag, &mut new.c_oflag, self.0.c_oflag);
        bits(old.c_cflag, &mut new.c_cflag, self.0.c_cflag);
        bits(old.c_lflag, &mut new.c_lflag, self.0.c_lflag);
        let byte = |old: u8, new: &mut u8, locked: u8| {
            if locked != 0 {
                *new = old;
            }
        };
        byte(old.c_line, &mut new.c_line, self.0.c_line);
        for (at, locked) in self.0.c_cc.into_iter().enumerate() {
            byte(old.c_cc[at], &mut new.c_cc[at], locked);
        }
    }
}
