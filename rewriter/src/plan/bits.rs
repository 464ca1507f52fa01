//! A set of indices with the few operations that decoding needs to be fast.

use alloc::{vec, vec::Vec};

/// One bit for each byte of text.
#[derive(Debug)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// `len` bits, all clear. One word more than needed lets a range straddle the end.
    pub(super) fn new(len: usize) -> Self {
        Self(vec![0; len / 64 + 2])
    }

    pub(super) fn get(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    pub(super) fn set(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// The bits from `start` on, `len` (at most 64) of them, the lowest being `start`.
    fn window(&self, start: usize, len: usize) -> u64 {
        let word = |index: usize| self.0.get(index).copied().unwrap_or(0);
        let shift = start % 64;
        let low = word(start / 64) >> shift;
        let high = if shift == 0 { 0 } else { word(start / 64 + 1) << (64 - shift) };
        (low | high) & mask(len)
    }

    /// Whether any of `len` (at most 64) bits from `start` on is set.
    pub(super) fn any(&self, start: usize, len: usize) -> bool {
        self.window(start, len) != 0
    }

    /// Sets `len` (at most 64) bits from `start` on.
    pub(super) fn set_range(&mut self, start: usize, len: usize) {
        self.update(start, len, |word, mask| word | mask);
    }

    /// Sets any number of bits from `start` on.
    pub(super) fn set_long_range(&mut self, start: usize, len: usize) {
        for done in (0..len).step_by(64) {
            self.set_range(start + done, (len - done).min(64));
        }
    }

    /// Clears `len` (at most 64) bits from `start` on.
    pub(super) fn clear_range(&mut self, start: usize, len: usize) {
        self.update(start, len, |word, mask| word & !mask);
    }

    fn update(&mut self, start: usize, len: usize, combine: fn(u64, u64) -> u64) {
        let bits = u128::from(mask(len)) << (start % 64);
        for (word, bits) in
            self.0.iter_mut().skip(start / 64).zip([bits as u64, (bits >> 64) as u64])
        {
            *word = combine(*word, bits);
        }
    }

    /// How many bits are set in both or either.
    pub(super) fn count_union(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).map(|(a, b)| (a | b).count_ones() as usize).sum()
    }

    /// The set bits, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(n, &word)| {
            core::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|rest| *rest != 0)
                .map(move |rest| n * 64 + rest.trailing_zeros() as usize)
        })
    }

    /// The nearest set bit below `index`, no more than `reach` (at most 63) away.
    pub(super) fn previous(&self, index: usize, reach: usize) -> Option<usize> {
        let start = index.saturating_sub(reach);
        let window = self.window(start, index - start);
        (window != 0).then(|| start + 63 - window.leading_zeros() as usize)
    }
}

fn mask(len: usize) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_straddle_words() {
        let mut bits = Bits::new(200);
        for (start, len) in [(0, 1), (60, 8), (63, 1), (64, 64), (190, 14), (100, 0)] {
            bits.set_range(start, len);
            for index in 0..200 {
                assert_eq!(bits.get(index), (start..start + len).contains(&index), "{index}");
            }
            assert!(len == 0 || bits.any(start + len - 1, 3));
            assert!(!bits.any(start + len, 5));
            bits.clear_range(start, len);
            assert!((0..4).all(|word| !bits.any(word * 64, 64)));
        }
    }

    #[test]
    fn the_previous_bit_is_found() {
        let mut bits = Bits::new(200);
        bits.set(62);
        bits.set(70);
        assert_eq!(bits.previous(70, 15), Some(62));
        assert_eq!(bits.previous(71, 15), Some(70));
        assert_eq!(bits.previous(62, 15), None);
        assert_eq!(bits.previous(86, 15), None);
        assert_eq!(bits.previous(85, 15), Some(70));
        assert_eq!(bits.previous(0, 15), None);
    }
}
