//! Where things go in a fresh address space, as Linux's `arch/x86/mm/mmap.c` and
//! `fs/binfmt_elf.c` choose it.
//!
//! From the bottom: a fixed image where it is linked, or a position-independent one at two thirds of
//! user space; its heap; the memory-map area, which grows down from [`Layout::mmap_base`] and holds
//! the interpreter, static-pie programs and the vDSO; a gap for the stack to grow into; the stack.

use crate::{ImageKind, ImagePlan, PAGE_SIZE, Role, TASK_SIZE, page_end, page_start};

/// `ELF_ET_DYN_BASE`: where position-independent programs with an interpreter start.
const ET_DYN_BASE: u64 = TASK_SIZE / 3 * 2;
/// `mmap_rnd_bits`: pages by which images and the memory-map area move.
const MMAP_RANDOM_BITS: u32 = 28;
/// `__STACK_RND_MASK`: pages by which the stack moves.
const STACK_RANDOM_PAGES: u64 = 0x3f_ffff;
/// `stack_guard_gap` in bytes.
const STACK_GUARD_GAP: u64 = 256 * PAGE_SIZE;
/// Least distance of the memory-map area from the top, in bytes.
const MIN_GAP: u64 = 128 << 20;
/// Greatest distance of the memory-map area from the top, in bytes.
const MAX_GAP: u64 = TASK_SIZE / 6 * 5;
/// Range of the heap's random offset in bytes, as in `arch_randomize_brk`.
const BRK_RANDOM_RANGE: u64 = 1 << 30;
/// Range of `arch_align_stack` in bytes.
const STACK_JITTER_RANGE: u64 = 8192;

/// Address space layout randomisation.
pub enum Aslr<'a> {
    /// The same addresses each time, those of `setarch -R`.
    Disabled,
    /// Random addresses. The function returns 64 uniformly distributed bits at each call.
    Random(&'a mut dyn FnMut() -> u64),
}

impl Aslr<'_> {
    fn is_random(&self) -> bool {
        matches!(self, Self::Random(_))
    }

    /// A number below `bound`; 0 without randomisation. The bounds are powers of two.
    fn below(&mut self, bound: u64) -> u64 {
        match self {
            Self::Disabled => 0,
            Self::Random(next) => next() % bound,
        }
    }

    fn pages_below(&mut self, bound: u64) -> u64 {
        self.below(bound) * PAGE_SIZE
    }
}

/// Where an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At exactly this load bias (0 for `ET_EXEC`). Where something is in the way, `execve` fails
    /// with `EEXIST`, or `ENOMEM` past the end of user space.
    Fixed {
        /// The load bias.
        bias: u64,
    },
    /// In the memory-map area, in the highest free range below [`Layout::mmap_base`]. The load bias
    /// follows from the range: [`ImagePlan::bias_in`].
    MmapArea {
        /// Length to look for, in bytes: the image, and the slack to align it.
        len: u64,
    },
}

/// The addresses chosen for one `execve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// End of the stack's mapping, page-aligned, at most [`TASK_SIZE`].
    pub stack_top: u64,
    /// Bytes below 8 KiB by which the stack pointer moves further, for
    /// [`StackPlace`](crate::StackPlace).
    pub stack_jitter: u64,
    /// End of the memory-map area, page-aligned. Mappings are placed top-down from here.
    pub mmap_base: u64,
    /// Lowest address for a position-independent program with an interpreter, page-aligned.
    pub pie_base: u64,
    /// Bytes between the heap's start and the first place for it, page-aligned.
    pub brk_offset: u64,
    /// Pages kept free between bss and a heap that follows it, in bytes.
    pub brk_gap: u64,
}

impl Layout {
    /// Chooses a layout.
    ///
    /// `stack_limit` is the soft `RLIMIT_STACK` in bytes, `u64::MAX` for no limit: the gap below the
    /// stack depends on it.
    #[must_use]
    pub fn new(mut aslr: Aslr<'_>, stack_limit: u64) -> Self {
        let stack_top = TASK_SIZE - aslr.pages_below(STACK_RANDOM_PAGES + 1);
        let stack_jitter = aslr.below(STACK_JITTER_RANGE);
        let max_random = if aslr.is_random() { STACK_RANDOM_PAGES * PAGE_SIZE } else { 0 };
        let pad = max_random + STACK_GUARD_GAP;
        // Values close to RLIM_INFINITY would overflow; they are clamped anyway.
        let gap = stack_limit.checked_add(pad).unwrap_or(stack_limit).clamp(MIN_GAP, MAX_GAP);
        let mmap_random = aslr.pages_below(1 << MMAP_RANDOM_BITS);
        let mmap_base = TASK_SIZE - gap - mmap_random;
        Self {
            stack_top,
            stack_jitter,
            mmap_base: page_end(mmap_base).unwrap_or(mmap_base),
            pie_base: page_start(ET_DYN_BASE + aslr.pages_below(1 << MMAP_RANDOM_BITS)),
            brk_offset: aslr.pages_below(BRK_RANDOM_RANGE / PAGE_SIZE),
            brk_gap: if aslr.is_random() { PAGE_SIZE } else { 0 },
        }
    }

    /// Where the image of `plan` goes.
    ///
    /// A position-independent program without an interpreter (static-pie, or `ld.so` run by hand)
    /// goes to the memory-map area, to be out of the way of a program that it may load itself.
    #[must_use]
    pub fn placement(&self, plan: &ImagePlan) -> Placement {
        match plan.kind {
            ImageKind::Fixed => Placement::Fixed { bias: 0 },
            ImageKind::Relocatable if plan.has_interpreter() => {
                Placement::Fixed { bias: plan.bias_for(self.pie_base) }
            }
            ImageKind::Relocatable => {
                Placement::MmapArea { len: plan.span_len().saturating_add(plan.align - PAGE_SIZE) }
            }
        }
    }

    /// Where the heap of the program `plan`, loaded at `bias`, starts (`start_brk`). Page-aligned.
    #[must_use]
    pub fn brk_start(&self, plan: &ImagePlan, bias: u64) -> u64 {
        // In the memory-map area there is no room to grow into.
        let is_in_mmap_area = plan.kind == ImageKind::Relocatable
            && plan.role == Role::Program
            && !plan.has_interpreter();
        if is_in_mmap_area {
            page_end(ET_DYN_BASE).unwrap_or(ET_DYN_BASE) + self.brk_offset
        } else {
            plan.span.end.wrapping_add(bias) + self.brk_gap + self.brk_offset
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK_LIMIT: u64 = 8 << 20;

    #[test]
    fn without_randomisation_addresses_are_those_of_setarch() {
        let layout = Layout::new(Aslr::Disabled, STACK_LIMIT);
        assert_eq!(layout.stack_top, 0x7fff_ffff_f000);
        assert_eq!(layout.mmap_base, 0x7fff_f7ff_f000);
        assert_eq!(layout.pie_base, 0x5555_5555_4000);
        assert_eq!((layout.brk_offset, layout.brk_gap, layout.stack_jitter), (0, 0, 0));
    }

    #[test]
    fn a_large_stack_limit_moves_the_memory_map_area_down() {
        let base = |limit| Layout::new(Aslr::Disabled, limit).mmap_base;
        assert_eq!(base(1 << 30), TASK_SIZE - (1 << 30) - STACK_GUARD_GAP);
        assert_eq!(base(u64::MAX), page_end(TASK_SIZE - MAX_GAP).unwrap());
        assert_eq!(base(0), base(STACK_LIMIT));
    }

    #[test]
    fn random_layouts_stay_apart_and_in_bounds() {
        for value in [0, 1, 0x1234_5678_9abc_def0, 0x5555_5555_5555_5555, u64::MAX] {
            let mut next = || value;
            let layout = Layout::new(Aslr::Random(&mut next), STACK_LIMIT);
            assert!(layout.stack_top <= TASK_SIZE && layout.stack_top.is_multiple_of(PAGE_SIZE));
            assert!(layout.mmap_base + STACK_LIMIT + STACK_GUARD_GAP <= layout.stack_top);
            assert!(layout.mmap_base.is_multiple_of(PAGE_SIZE));
            assert!((0x5555_5555_4000..0x6555_5555_5000).contains(&layout.pie_base));
            assert!(layout.pie_base.is_multiple_of(PAGE_SIZE));
            assert!(
                layout.brk_offset < BRK_RANDOM_RANGE && layout.brk_offset.is_multiple_of(PAGE_SIZE)
            );
            assert!(layout.stack_jitter < STACK_JITTER_RANGE);
        }
    }

    #[test]
    fn randomness_reaches_every_part() {
        let mut state = 0_u64;
        let mut layouts = (0..2).map(|_| {
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                state >> 16
            };
            Layout::new(Aslr::Random(&mut next), STACK_LIMIT)
        });
        let (a, b) = (layouts.next().unwrap(), layouts.next().unwrap());
        assert_ne!(a.stack_top, b.stack_top);
        assert_ne!(a.stack_jitter, b.stack_jitter);
        assert_ne!(a.mmap_base, b.mmap_base);
        assert_ne!(a.pie_base, b.pie_base);
        assert_ne!(a.brk_offset, b.brk_offset);
    }
}
