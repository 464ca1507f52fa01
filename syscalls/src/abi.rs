//! Linux's structs as bytes in application memory.
//!
//! The structs themselves come from `linux-raw-sys`; [`user_struct!`] lists a struct's fields once
//! and takes their places from the struct's own layout, so that no offset is typed by hand, padding
//! is always zero, and no `unsafe` is needed.

/// A value with a fixed layout in application memory.
pub trait UserAbi: Sized {
    /// Bytes it takes.
    const SIZE: usize;
    /// Writes it to `out`, of [`Self::SIZE`] bytes, zeroed before.
    fn encode(&self, out: &mut [u8]);
    /// Reads it from `bytes`, of [`Self::SIZE`] bytes.
    fn decode(bytes: &[u8]) -> Self;
}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl UserAbi for $integer {
            const SIZE: usize = size_of::<$integer>();
            #[inline]
            fn encode(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_ne_bytes());
            }
            #[inline]
            fn decode(bytes: &[u8]) -> Self {
                let mut value = [0; size_of::<$integer>()];
                value.copy_from_slice(bytes);
                <$integer>::from_ne_bytes(value)
            }
        }
    )*};
}

integers!(u8, i8, u16, i16, u32, i32, u64, i64, usize, isize);

impl<T: UserAbi + Copy + Default, const N: usize> UserAbi for [T; N] {
    const SIZE: usize = T::SIZE * N;
    #[inline]
    fn encode(&self, out: &mut [u8]) {
        for (value, out) in self.iter().zip(out.chunks_exact_mut(T::SIZE)) {
            value.encode(out);
        }
    }
    #[inline]
    fn decode(bytes: &[u8]) -> Self {
        let mut values = [T::default(); N];
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(T::SIZE)) {
            *value = T::decode(bytes);
        }
        values
    }
}

/// Implements [`UserAbi`] for a plain struct of `linux-raw-sys` by naming all its fields; fields
/// after `..` are padding: written as zero, ignored when read, and set by the given expression.
///
/// ```ignore
/// user_struct!(linux_raw_sys::general::__kernel_timespec { tv_sec, tv_nsec });
/// ```
#[macro_export]
macro_rules! user_struct {
    ($type:path { $($field:ident),* $(,)? $(.. $($pad:ident : $value:expr),*)? }) => {
        impl $crate::abi::UserAbi for $type {
            const SIZE: usize = size_of::<$type>();
            #[inline]
            fn encode(&self, out: &mut [u8]) {
                $({
                    let at = core::mem::offset_of!($type, $field);
                    let size = $crate::abi::size_of_field(&self.$field);
                    $crate::abi::UserAbi::encode(&self.$field, &mut out[at..at + size]);
                })*
            }
            #[inline]
            fn decode(bytes: &[u8]) -> Self {
                Self {
                    $($field: $crate::abi::decode_at(bytes, core::mem::offset_of!($type, $field)),)*
                    $($($pad: $value,)*)?
                }
            }
        }
    };
}

/// [`UserAbi::SIZE`] of a field, by inference.
#[must_use]
#[inline]
pub fn size_of_field<T: UserAbi>(_: &T) -> usize {
    T::SIZE
}

/// Decodes the field at offset `at`.
#[must_use]
#[inline]
pub fn decode_at<T: UserAbi>(bytes: &[u8], at: usize) -> T {
    T::decode(&bytes[at..at + T::SIZE])
}

user_struct!(linux_raw_sys::general::__kernel_timespec { tv_sec, tv_nsec });
user_struct!(linux_raw_sys::general::__kernel_old_timeval { tv_sec, tv_usec });
