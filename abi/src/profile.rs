//! Samples of a profile ([`crate::link::Kind::Samples`]).
//!
//! A payload holds whole samples, one after the other, in little-endian words of eight bytes:
//!
//! | word | what |
//! |---|---|
//! | 0 | how many words the sample has, this one included |
//! | 1 | the time stamp counter |
//! | 2 | the process (upper half) and the thread (lower half) |
//! | 3 | the processor (lowest byte), how many kernel frames follow (next byte) |
//! | 4, 5, 6 | the application's instruction pointer, stack pointer and frame pointer; 0 where it has none |
//! | 7 … | the kernel's frames, innermost first: an instruction pointer, then return addresses |
//! | … | what is on the application's stack, from the stack pointer on |

use alloc::vec::Vec;

/// Words before a sample's frames.
pub const HEADER_WORDS: usize = 7;

/// Bytes of the application's stack that a sample holds at most.
pub const STACK_LEN: usize = 8 << 10;

/// Frames of the kernel that a sample holds at most.
pub const MOST_FRAMES: usize = 48;

/// The largest sample in words.
pub const MOST_WORDS: usize = HEADER_WORDS + MOST_FRAMES + STACK_LEN / 8;

/// Where a processor was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The time stamp counter.
    pub tsc: u64,
    /// The process that ran.
    pub pid: u32,
    /// The thread that ran.
    pub tid: u32,
    /// The processor.
    pub cpu: u8,
    /// The kernel's frames, innermost first; none where the application ran.
    pub kernel: Vec<u64>,
    /// The application's instruction pointer; 0 where no application was being served.
    pub rip: u64,
    /// Its stack pointer.
    pub rsp: u64,
    /// Its frame pointer register.
    pub rbp: u64,
    /// What lies on its stack, from `rsp` on.
    pub stack: Vec<u64>,
}

/// Decodes a payload; what is malformed at its end is left out.
#[must_use]
pub fn decode(payload: &[u8]) -> Vec<Sample> {
    let (words, _) = payload.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let mut rest = words.as_slice();
    let mut samples = Vec::new();
    while let Some(len) = rest.first().and_then(|len| usize::try_from(*len).ok())
        && len >= HEADER_WORDS
        && let Some((sample, later)) = rest.split_at_checked(len)
    {
        rest = later;
        let frames = (sample[3] >> 8 & 0xff) as usize;
        let Some((kernel, stack)) = sample[HEADER_WORDS..].split_at_checked(frames) else { break };
        samples.push(Sample {
            tsc: sample[1],
            pid: (sample[2] >> 32) as u32,
            tid: sample[2] as u32,
            cpu: sample[3] as u8,
            rip: sample[4],
            rsp: sample[5],
            rbp: sample[6],
            kernel: kernel.to_vec(),
            stack: stack.to_vec(),
        });
    }
    samples
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn samples_follow_each_other() {
        let first = [9, 5, 7 << 32 | 8, 2 << 8 | 1, 10, 11, 12, u64::MAX, 3];
        let second = [8, 6, 7 << 32 | 7, 0, 13, 14, 15, 16];
        let samples = decode(&bytes(&[&first[..], &second].concat()));
        assert_eq!(samples.len(), 2);
        let Sample { tsc, pid, tid, cpu, kernel, rip, rsp, rbp, stack } = samples[0].clone();
        assert_eq!((tsc, pid, tid, cpu, rip, rsp, rbp), (5, 7, 8, 1, 10, 11, 12));
        assert_eq!((kernel, stack), (vec![u64::MAX, 3], vec![]));
        assert_eq!((samples[1].kernel.len(), &samples[1].stack[..]), (0, &[16][..]));
    }

    #[test]
    fn damaged_samples_are_left_out() {
        let good = [7, 5, 7 << 32, 0, 10, 11, 12];
        for end in [&[0u64; 7][..], &[8, 0, 0], &[7, 0, 0, 1 << 8, 0, 0, 0], &[u64::MAX]] {
            assert_eq!(decode(&bytes(&[&good[..], end].concat())).len(), 1);
        }
        assert!(decode(&[1, 2, 3]).is_empty());
    }
}
