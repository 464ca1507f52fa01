//! Application memory: the only way by which this crate reads and writes it.
//!
//! Kernel and application share a privilege level, so the processor would let a system call that is
//! handed a kernel address write there. Every access here checks the range against [`USER_END`]
//! first, then copies with fault recovery: a page that is not there yet is faulted in as if the
//! application had touched it, and a bad address is `EFAULT`, never a crash.
//!
//! Accesses concern the *running* thread's address space, and may fault pages in: hold no lock of
//! this crate around them.

use alloc::{vec, vec::Vec};
use core::{fmt, marker::PhantomData};

use crate::{
    Errno,
    abi::UserAbi,
    page::{PAGE_SIZE, Page},
    platform::platform,
};

/// One past the application's highest address: Linux's `TASK_SIZE_MAX` with 4-level paging.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// An address that the application gave. Nothing has been checked of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct UserAddr(pub u64);

impl UserAddr {
    /// Whether this is NULL.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The address `bytes` further (wrapping: the access is checked).
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes as u64))
    }

    /// Whether `len` bytes from here lie in the application's half.
    ///
    /// # Errors
    /// `EFAULT` where they do not (`access_ok` in Linux).
    pub fn check(self, len: usize) -> Result<(), Errno> {
        match self.0.checked_add(len as u64) {
            Some(end) if end <= USER_END => Ok(()),
            _ => Err(Errno::EFAULT),
        }
    }
}

impl fmt::Debug for UserAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() { f.write_str("NULL") } else { write!(f, "{:#x}", self.0) }
    }
}

/// A typed address that the application gave.
pub struct UserPtr<T> {
    addr: UserAddr,
    pointee: PhantomData<fn() -> T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for UserPtr<T> {}

impl<T> From<UserAddr> for UserPtr<T> {
    fn from(addr: UserAddr) -> Self {
        Self { addr, pointee: PhantomData }
    }
}

impl<T> fmt::Debug for UserPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

impl<T> UserPtr<T> {
    /// NULL.
    pub const NULL: Self = Self { addr: UserAddr(0), pointee: PhantomData };

    /// The untyped address.
    #[must_use]
    pub fn addr(self) -> UserAddr {
        self.addr
    }

    /// Whether this is NULL.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.addr.is_null()
    }
}

impl<T: UserAbi> UserPtr<T> {
    /// Reads the value.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read(self) -> Result<T, Errno> {
        with_buffer(T::SIZE, |bytes| {
            read_bytes(self.addr, bytes)?;
            Ok(T::decode(bytes))
        })
    }

    /// Reads the value, or `None` through a NULL pointer.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn read_optional(self) -> Result<Option<T>, Errno> {
        if self.is_null() { Ok(None) } else { self.read().map(Some) }
    }

    /// Writes the value.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write(self, value: &T) -> Result<(), Errno> {
        with_buffer(T::SIZE, |bytes| {
            value.encode(bytes);
            write_bytes(self.addr, bytes)
        })
    }

    /// Writes the value unless the pointer is NULL.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write_optional(self, value: &T) -> Result<(), Errno> {
        if self.is_null() { Ok(()) } else { self.write(value) }
    }

    /// The pointer to element `index` of an array that starts here.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        self.addr.offset(index.wrapping_mul(T::SIZE)).into()
    }

    /// Reads `count` values.
    ///
    /// # Errors
    /// `EFAULT`; `ENOMEM` where the size overflows.
    pub fn read_array(self, count: usize) -> Result<Vec<T>, Errno> {
        self.addr.check(count.checked_mul(T::SIZE).ok_or(Errno::EFAULT)?)?;
        (0..count).map(|index| self.at(index).read()).collect()
    }
}

/// Runs `f` with `len` zeros, on the stack unless they are many.
#[inline]
pub(crate) fn with_buffer<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    // What is not needed is not zeroed: mostly the length is known where this is compiled.
    match len {
        0..=8 => f(&mut [0; 8][..len]),
        9..=16 => f(&mut [0; 16][..len]),
        17..=32 => f(&mut [0; 32][..len]),
        33..=64 => f(&mut [0; 64][..len]),
        65..=256 => f(&mut [0; 256][..len]),
        _ => f(&mut vec![0; len]),
    }
}

/// Reads `out.len()` bytes at `from`.
///
/// # Errors
/// `EFAULT` where not all of them could be read.
pub fn read_bytes(from: UserAddr, out: &mut [u8]) -> Result<(), Errno> {
    from.check(out.len())?;
    let len = out.len();
    if platform().copy_from_user(from, out) == len { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Writes `bytes` at `to`.
///
/// # Errors
/// `EFAULT` where not all of them could be written.
pub fn write_bytes(to: UserAddr, bytes: &[u8]) -> Result<(), Errno> {
    to.check(bytes.len())?;
    if platform().copy_to_user(to, bytes) == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Zeros `len` bytes at `to`.
///
/// # Errors
/// `EFAULT` where not all of them could be written.
pub fn zero_bytes(to: UserAddr, len: usize) -> Result<(), Errno> {
    to.check(len)?;
    if platform().zero_user(to, len) == len { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Reads a NUL-terminated string of at most `limit` bytes, the NUL included.
///
/// # Errors
/// `EFAULT`; `too_long` where there is no NUL within `limit`.
pub fn read_c_string(from: UserAddr, limit: usize, too_long: Errno) -> Result<Vec<u8>, Errno> {
    let mut string = Vec::new();
    let mut chunk = [0; 256];
    loop {
        let at = from.offset(string.len());
        // Up to the end of the page: the next one may not be there.
        let in_page = PAGE_SIZE - at.0 as usize % PAGE_SIZE;
        let len = in_page.min(chunk.len()).min(limit - string.len());
        if len == 0 {
            return Err(too_long);
        }
        read_bytes(at, &mut chunk[..len])?;
        if let Some(end) = chunk[..len].iter().position(|byte| *byte == 0) {
            string.extend_from_slice(&chunk[..end]);
            return Ok(string);
        }
        string.extend_from_slice(&chunk[..len]);
    }
}

/// The longest path, its NUL included.
pub const PATH_MAX: usize = linux_raw_sys::general::PATH_MAX as usize;

/// Reads a path.
///
/// # Errors
/// `EFAULT`, `ENAMETOOLONG`.
pub fn read_path(from: UserAddr) -> Result<Vec<u8>, Errno> {
    read_c_string(from, PATH_MAX, Errno::ENAMETOOLONG)
}

/// Where a read puts its bytes: application memory, or the kernel's own.
pub trait Sink {
    /// How many more bytes are wanted.
    fn remaining(&self) -> usize;

    /// Takes all of `bytes`, or as many as are wanted; gives how many.
    ///
    /// # Errors
    /// `EFAULT` where nothing could be put. After a fault part of the way the short count is given
    /// (and the next call fails).
    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno>;

    /// As [`Self::put`], from part of a page.
    ///
    /// # Errors
    /// As [`Self::put`].
    fn put_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        let mut buffer = [0; 512];
        let mut done = 0;
        while done < len && self.remaining() > 0 {
            let piece = (len - done).min(buffer.len());
            page.read(offset + done, &mut buffer[..piece]);
            match self.put(&buffer[..piece]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// As [`Self::put`], zeros.
    ///
    /// # Errors
    /// As [`Self::put`].
    fn put_zeros(&mut self, len: usize) -> Result<usize, Errno> {
        const ZEROS: [u8; 512] = [0; 512];
        let mut done = 0;
        while done < len && self.remaining() > 0 {
            match self.put(&ZEROS[..(len - done).min(ZEROS.len())]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

/// Where a write takes its bytes from.
pub trait Source {
    /// How many more bytes there are.
    fn remaining(&self) -> usize;

    /// Fills `out`, or as much of it as there are bytes for; gives how many.
    ///
    /// # Errors
    /// `EFAULT` where nothing could be taken.
    fn take(&mut self, out: &mut [u8]) -> Result<usize, Errno>;

    /// As [`Self::take`], into part of a page.
    ///
    /// # Errors
    /// As [`Self::take`].
    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        let mut buffer = [0; 512];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(buffer.len());
            match self.take(&mut buffer[..piece]) {
                Ok(0) => break,
                Ok(count) => {
                    page.write(offset + done, &buffer[..count]);
                    done += count;
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

/// A list of buffers in application memory (`struct iovec[]`), as [`Sink`] and as [`Source`].
#[derive(Debug)]
pub struct UserBuffers {
    current: (UserAddr, usize),
    /// What follows `current`; one buffer alone takes no allocation.
    rest: vec::IntoIter<(UserAddr, usize)>,
    remaining: usize,
}

/// The most that one read or write transfers (`MAX_RW_COUNT`, `man 2 read`).
pub const MAX_RW_COUNT: usize = 0x7fff_f000;

impl UserBuffers {
    /// One buffer.
    ///
    /// # Errors
    /// `EFAULT` where it is not in the application's half.
    pub fn single(addr: UserAddr, len: usize) -> Result<Self, Errno> {
        addr.check(len)?;
        let len = len.min(MAX_RW_COUNT);
        Ok(Self { current: (addr, len), rest: Vec::new().into_iter(), remaining: len })
    }

    /// The buffers of an `iovec` array.
    ///
    /// # Errors
    /// `EINVAL` for more than `UIO_MAXIOV` or a total over `SSIZE_MAX`, `EFAULT`.
    pub fn from_iovec(
        iov: UserPtr<linux_raw_sys::general::iovec>,
        count: usize,
    ) -> Result<Self, Errno> {
        if count > linux_raw_sys::general::UIO_MAXIOV as usize {
            return Err(Errno::EINVAL);
        }
        let mut segments = Vec::with_capacity(count);
        let mut total = 0usize;
        for index in 0..count {
            let base: UserPtr<u64> = iov.addr().offset(index * 16).into();
            let (addr, len) = (UserAddr(base.read()?), base.at(1).read()? as usize);
            if len > isize::MAX as usize {
                return Err(Errno::EINVAL);
            }
            addr.check(len)?;
            // Linux shortens what is over the limit rather than refusing it.
            let len = len.min(MAX_RW_COUNT - total);
            total += len;
            segments.push((addr, len));
        }
        let mut rest = segments.into_iter();
        let current = rest.next().unwrap_or_default();
        Ok(Self { current, rest, remaining: total })
    }

    /// Runs `copy` over pieces of at most `len` bytes in all; `copy` gives how many bytes it
    /// managed at an address.
    fn advance(
        &mut self,
        len: usize,
        mut copy: impl FnMut(UserAddr, usize, usize) -> usize,
    ) -> Result<usize, Errno> {
        let (addr, left) = self.current;
        if len <= left {
            // Mostly there is one buffer.
            let copied = copy(addr, 0, len);
            self.current = (addr.offset(copied), left - copied);
            self.remaining -= copied;
            return if copied == 0 && len > 0 { Err(Errno::EFAULT) } else { Ok(copied) };
        }
        let mut done = 0;
        while done < len && self.remaining > 0 {
            let (addr, left) = self.current;
            if left == 0 {
                match self.rest.next() {
                    Some(next) => self.current = next,
                    None => break,
                }
                continue;
            }
            let piece = left.min(len - done);
            let copied = copy(addr, done, piece);
            self.current = (addr.offset(copied), left - copied);
            self.remaining -= copied;
            done += copied;
            if copied < piece {
                return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
            }
        }
        Ok(done)
    }
}

impl Sink for UserBuffers {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        self.advance(bytes.len(), |to, done, len| {
            platform().copy_to_user(to, &bytes[done..done + len])
        })
    }

    fn put_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        self.advance(len, |to, done, len| page.copy_to_user(offset + done, to, len))
    }

    fn put_zeros(&mut self, len: usize) -> Result<usize, Errno> {
        self.advance(len, |to, _, len| platform().zero_user(to, len))
    }
}

impl Source for UserBuffers {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn take(&mut self, out: &mut [u8]) -> Result<usize, Errno> {
        self.advance(out.len(), |from, done, len| {
            platform().copy_from_user(from, &mut out[done..done + len])
        })
    }

    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        self.advance(len, |from, done, len| page.copy_from_user(offset + done, from, len))
    }
}

/// The kernel's own bytes as [`Source`].
impl Source for &[u8] {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn take(&mut self, out: &mut [u8]) -> Result<usize, Errno> {
        let len = out.len().min(self.len());
        let (head, rest) = self.split_at(len);
        out[..len].copy_from_slice(head);
        *self = rest;
        Ok(len)
    }
}

/// A buffer of the kernel's own as [`Sink`].
#[derive(Debug)]
pub struct KernelBuffer {
    /// What has been put so far.
    pub bytes: Vec<u8>,
    limit: usize,
}

impl KernelBuffer {
    /// Wants up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }
}

impl Sink for KernelBuffer {
    fn remaining(&self) -> usize {
        self.limit - self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let len = bytes.len().min(self.remaining());
        self.bytes.extend_from_slice(&bytes[..len]);
        Ok(len)
    }
}

/// A slice of the kernel's own as [`Sink`].
#[derive(Debug)]
pub struct SliceSink<'a> {
    /// What is to be filled.
    pub bytes: &'a mut [u8],
    /// How much of it has been.
    pub filled: usize,
}

impl<'a> SliceSink<'a> {
    /// Wants to fill `bytes`.
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, filled: 0 }
    }
}

impl Sink for SliceSink<'_> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.filled
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let len = bytes.len().min(self.remaining());
        self.bytes[self.filled..self.filled + len].copy_from_slice(&bytes[..len]);
        self.filled += len;
        Ok(len)
    }

    fn put_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        let len = len.min(self.remaining());
        page.read(offset, &mut self.bytes[self.filled..self.filled + len]);
        self.filled += len;
        Ok(len)
    }
}
