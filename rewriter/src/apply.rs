//! Applying a plan: pages of text and of the stub area, one at a time and in any order.
//!
//! The kernel writes a page before anything executes it, so patched bytes never change under a
//! running processor. Every patch lies in one page and every page is written from the plan and its
//! own bytes alone; the order in which pages become executable does not matter. What is written
//! depends on the load bias and the stub area's address only through their difference, so a
//! patched page and a page of stubs may be shared by all address spaces that keep that difference.
//!
//! A patch is written only over the very bytes that were planned for. Text that was relocated,
//! changed by the program, or patched before is left as it is.

use crate::format::{
    INT3, JUMP_LEN, Number, PAGE_SIZE, Patch, Plan, SLOT_LEN, STUB_AREA_ALIGN, Stub,
};

/// Where a file's segments and its stub area are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    load_bias: u64,
    stub_base: u64,
}

impl Placement {
    /// What is added to a link-time address to give the run-time address.
    #[must_use]
    pub fn load_bias(&self) -> u64 {
        self.load_bias
    }

    /// Run-time address of the stub area.
    #[must_use]
    pub fn stub_base(&self) -> u64 {
        self.stub_base
    }
}

/// Why a stub area cannot be where it was asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The distance between load bias and stub area is not a multiple of [`STUB_AREA_ALIGN`].
    #[error("the stub area is not {STUB_AREA_ALIGN:#x}-aligned relative to the load bias")]
    Misaligned,
    /// The stub area is more than 2 GiB from the text or from the data that stubs refer to.
    #[error("the stub area is out of reach")]
    OutOfReach,
}

/// What [`Plan::patch_page`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageOutcome {
    /// Patches written.
    pub patched: usize,
    /// Patches not written because the page holds other bytes than were planned for (among them
    /// those patched before).
    pub skipped: usize,
}

impl Plan {
    /// Checks a stub area's address.
    ///
    /// `stub_base - load_bias` must be a multiple of [`STUB_AREA_ALIGN`], and the whole stub area
    /// within ±2 GiB of everything in [`Plan::reach`].
    ///
    /// # Errors
    /// [`PlacementError`]; the caller chooses another address, or leaves the file unpatched.
    pub fn place(&self, load_bias: u64, stub_base: u64) -> Result<Placement, PlacementError> {
        if !stub_base.wrapping_sub(load_bias).is_multiple_of(STUB_AREA_ALIGN) {
            return Err(PlacementError::Misaligned);
        }
        // The extremes of every displacement: from either end of the stubs to either end of the
        // reach. The margin covers the length of the instruction that holds the displacement.
        let limit = (1 << 31) - 64;
        let stub_end = stub_base
            .checked_add(u64::from(self.stub_area_len))
            .ok_or(PlacementError::OutOfReach)?;
        for address in [self.reach.0, self.reach.1] {
            let address = address.checked_add(load_bias).ok_or(PlacementError::OutOfReach)?;
            if address.abs_diff(stub_base) >= limit || address.abs_diff(stub_end) >= limit {
                return Err(PlacementError::OutOfReach);
            }
        }
        Ok(Placement { load_bias, stub_base })
    }

    /// Whether a patch lies in the whole pages `[address, address + len)`, run-time addresses: pages
    /// without one need no copy.
    #[must_use]
    pub fn has_patches(&self, placement: &Placement, address: u64, len: u64) -> bool {
        let start = address.wrapping_sub(placement.load_bias);
        self.patches_in(start, start.saturating_add(len)).next().is_some()
    }

    /// Patches `bytes`, the content of whole pages at run-time address `address`.
    ///
    /// Writing again what was written already changes nothing.
    pub fn patch_page(&self, placement: &Placement, address: u64, bytes: &mut [u8]) -> PageOutcome {
        let mut outcome = PageOutcome::default();
        let start = address.wrapping_sub(placement.load_bias);
        for patch in self.patches_in(start, start.saturating_add(bytes.len() as u64)) {
            match self.write_patch(placement, patch, start, bytes) {
                Some(()) => outcome.patched += 1,
                None => outcome.skipped += 1,
            }
        }
        outcome
    }

    /// Writes the part of the stub area from `offset` on into `out`.
    ///
    /// `entry` gives the absolute address of the kernel entry for a system call number, or of the
    /// entry that takes the number from `rax`. It is asked once for each slot that lies in the
    /// part written.
    pub fn write_stubs(
        &self,
        placement: &Placement,
        offset: usize,
        out: &mut [u8],
        mut entry: impl FnMut(Number) -> u64,
    ) {
        let end = offset.saturating_add(out.len());
        let slots = offset / SLOT_LEN..end.div_ceil(SLOT_LEN).min(self.slots.len());
        // Up to here `out` is written.
        let mut written = offset;
        for slot in slots {
            if let Some(&number) = self.slots.get(slot) {
                overlay(out, offset, slot * SLOT_LEN, &entry(number).to_le_bytes());
                written = (slot + 1) * SLOT_LEN;
            }
        }
        let distance = placement.load_bias.wrapping_sub(placement.stub_base) as u32;
        let first =
            self.stubs.partition_point(|s| s.offset as usize + usize::from(s.len) <= offset);
        for stub in self.stubs.iter().skip(first).take_while(|s| (s.offset as usize) < end) {
            let at = stub.offset as usize;
            trap(out, offset, written, at);
            written = at + usize::from(stub.len);
            // All but the first and the last lie in the part written as a whole.
            match at.checked_sub(offset).and_then(|at| out.get_mut(at..at + usize::from(stub.len)))
            {
                Some(whole) => self.write_stub(stub, distance, whole),
                None => self.write_part(stub, distance, offset, out),
            }
        }
        trap(out, offset, written, end);
    }

    /// Writes the part of a stub that falls into `out`, which starts at `offset`.
    #[cold]
    fn write_part(&self, stub: &Stub, distance: u32, offset: usize, out: &mut [u8]) {
        let mut bytes = [0; u8::MAX as usize];
        let bytes = &mut bytes[..stub.len.into()];
        self.write_stub(stub, distance, bytes);
        overlay(out, offset, stub.offset as usize, bytes);
    }

    /// Writes one stub's code into `out`, which is as long. `distance` is from the stub area to the
    /// load bias.
    fn write_stub(&self, stub: &Stub, distance: u32, out: &mut [u8]) {
        let code = self.code_of(stub);
        if code.len() == out.len() {
            out.copy_from_slice(code);
        }
        for &at in self.fixups_of(stub) {
            let field = out.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut::<4>);
            if let Some(field) = field {
                *field = u32::from_le_bytes(*field).wrapping_add(distance).to_le_bytes();
            }
        }
    }

    /// Patches of the pages that the link-time range lies in.
    fn patches_in(&self, start: u64, end: u64) -> impl Iterator<Item = &Patch> {
        let first_page = start / PAGE_SIZE * PAGE_SIZE;
        let first = self.patches.partition_point(|patch| patch.address < first_page);
        self.patches.iter().skip(first).take_while(move |patch| patch.address < end)
    }

    fn write_patch(
        &self,
        placement: &Placement,
        patch: &Patch,
        start: u64,
        bytes: &mut [u8],
    ) -> Option<()> {
        let (expected, expected_hole) = self.original_of(patch)?;
        let at = usize::try_from(patch.address.checked_sub(start)?).ok()?;
        // Bytes of the copied instructions that lie in the next page are taken on trust.
        let present = bytes.get(at..)?;
        let compared = expected.len().min(present.len());
        if present.get(..compared) != expected.get(..compared) {
            return None;
        }
        let jump_from = |address: u64| {
            let target = placement.stub_base.wrapping_add(u64::from(patch.stub));
            let next = address.wrapping_add(placement.load_bias).wrapping_add(JUMP_LEN as u64);
            let displacement = (target.wrapping_sub(next) as u32).to_le_bytes();
            let mut jump = [0xe9, 0, 0, 0, 0];
            jump[1..].copy_from_slice(&displacement);
            jump
        };
        if let Some(distance) = patch.hole {
            let hole_address = patch.address.checked_add_signed(i64::from(distance))?;
            let hole = bytes.get_mut(usize::try_from(hole_address.checked_sub(start)?).ok()?..)?;
            let hole = hole.get_mut(..JUMP_LEN)?;
            if hole != expected_hole {
                return None;
            }
            hole.copy_from_slice(&jump_from(hole_address));
            let written = bytes.get_mut(at..at + usize::from(patch.len))?;
            written.fill(INT3);
            written.get_mut(..2)?.copy_from_slice(&[0xeb, distance.wrapping_sub(2) as u8]);
        } else {
            let written = bytes.get_mut(at..at + usize::from(patch.len))?;
            let (jump, rest) = written.split_first_chunk_mut::<JUMP_LEN>()?;
            *jump = jump_from(patch.address);
            for byte in rest {
                *byte = INT3;
            }
        }
        Some(())
    }
}

/// Makes the bytes from `start` to `end`, offsets as that of `out` is `offset`, trap.
fn trap(out: &mut [u8], offset: usize, start: usize, end: usize) {
    let range = start.saturating_sub(offset)..end.saturating_sub(offset).min(out.len());
    for byte in out.get_mut(range).unwrap_or_default() {
        *byte = INT3;
    }
}

/// Copies the part of `bytes`, which start at offset `at`, that falls into `out`, which starts at
/// offset `offset`.
fn overlay(out: &mut [u8], offset: usize, at: usize, bytes: &[u8]) {
    let (skip, to) = if at < offset { (offset - at, 0) } else { (0, at - offset) };
    let (Some(from), Some(to)) = (bytes.get(skip..), out.get_mut(to..)) else { return };
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::*;
    use crate::format::{DecodeError, Resume, Site, Stub, Text, Treatment};

    /// `mov eax, 39; syscall` at 0x1ffc (so `syscall` is on the next page), the `mov` replaced, and
    /// a `syscall` at 0x2010 that jumps to padding at 0x2020.
    fn plan() -> Plan {
        let plan = Plan {
            stub_area_len: 64,
            reach: (0x1000, 0x2100),
            text: vec![Text { address: 0x1000, offset: 0, len: 0x1100 }],
            slots: vec![Number::Known(39), Number::Computed],
            sites: Plan::encode_sites(&[Site {
                address: 0x2000,
                number: Number::Known(39),
                treatment: Treatment::ReplaceMov,
                bypass: false,
            }]),
            patches: vec![
                Patch {
                    address: 0x1ffb,
                    stub: 16,
                    original: 0,
                    original_len: 7,
                    len: 5,
                    hole: None,
                },
                Patch {
                    address: 0x2010,
                    stub: 34,
                    original: 7,
                    original_len: 2,
                    len: 2,
                    hole: Some(0x10),
                },
            ],
            stubs: vec![
                Stub {
                    offset: 16,
                    code: 0,
                    fixup: 0,
                    step: 0,
                    origin: 0x1ffb,
                    len: 18,
                    fixups: 1,
                    steps: 2,
                },
                Stub {
                    offset: 34,
                    code: 18,
                    fixup: 1,
                    step: 2,
                    origin: 0x2010,
                    len: 13,
                    fixups: 1,
                    steps: 1,
                },
            ],
            resumes: vec![Resume { address: 0x2040, offset: 20 }],
            code: [
                &[0xb8, 39, 0, 0, 0, 0x48, 0x8d, 0x0d][..],
                // The return address 0x2002 as seen from offset 16 + 12.
                &(0x2002_i32 - 28).to_le_bytes(),
                &[0xff, 0x25],
                &(-34_i32).to_le_bytes(),
                &[0x48, 0x8d, 0x0d],
                &(0x2012_i32 - 41).to_le_bytes(),
                &[0xff, 0x25],
                &(8 - 47_i32).to_le_bytes(),
            ]
            .concat(),
            fixups: vec![8, 3],
            steps: vec![0, 0, 5, 5, 0, 0],
            originals: vec![
                0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x05, 0x90, 0x90, 0x90, 0x90, 0x90,
            ],
        };
        plan.validate().unwrap();
        plan
    }

    fn text() -> Vec<u8> {
        let mut text = vec![0x90; 0x2000];
        text[0xffb..0x1002].copy_from_slice(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05]);
        text[0x1010..0x1012].copy_from_slice(&[0x0f, 0x05]);
        text
    }

    const BIAS: u64 = 0x7fff_0000_0000;
    const STUBS: u64 = BIAS + 0x10_0000;

    fn target(text: &[u8], at: usize) -> u64 {
        let field = text[at + 1..at + 5].try_into().unwrap();
        (BIAS + 0x1000 + at as u64 + 5).wrapping_add_signed(i32::from_le_bytes(field).into())
    }

    #[test]
    fn pages_are_patched_in_any_order_and_only_once() {
        let plan = plan();
        let placement = plan.place(BIAS, STUBS).unwrap();
        let mut forwards = text();
        let mut backwards = text();
        let page = |n: usize| n * 4096..(n + 1) * 4096;
        for n in [0, 1] {
            let address = BIAS + 0x1000 + n as u64 * 4096;
            let outcome = plan.patch_page(&placement, address, &mut forwards[page(n)]);
            assert_eq!(outcome, PageOutcome { patched: 1, skipped: 0 });
        }
        for n in [1, 0, 1] {
            let address = BIAS + 0x1000 + n as u64 * 4096;
            plan.patch_page(&placement, address, &mut backwards[page(n)]);
        }
        assert_eq!(forwards, backwards);
        let mut at_once = text();
        plan.patch_page(&placement, BIAS + 0x1000, &mut at_once);
        assert_eq!(forwards, at_once);

        assert_eq!(forwards[0xffb], 0xe9);
        assert_eq!(target(&forwards, 0xffb), STUBS + 16);
        assert_eq!(forwards[0x1000..0x1002], [0x0f, 0x05]);
        assert_eq!(forwards[0x1010..0x1012], [0xeb, 0x0e]);
        assert_eq!(target(&forwards, 0x1020), STUBS + 34);
        let original = text();
        for rest in [0..0xffb, 0x1000..0x1010, 0x1012..0x1020, 0x1025..0x2000] {
            assert_eq!(forwards[rest.clone()], original[rest]);
        }
    }

    #[test]
    fn other_bytes_than_planned_for_are_left_alone() {
        let plan = plan();
        let placement = plan.place(BIAS, STUBS).unwrap();
        for at in [0xffb, 0xfff, 0x1000, 0x1001, 0x1010, 0x1020, 0x1024] {
            let mut changed = text();
            changed[at] ^= 1;
            let before = changed.clone();
            let outcome = plan.patch_page(&placement, BIAS + 0x1000, &mut changed);
            assert_eq!(outcome, PageOutcome { patched: 1, skipped: 1 }, "byte {at:#x}");
            let untouched = if at < 0x1010 { 0..0x1010 } else { 0x1010..0x2000 };
            assert_eq!(changed[untouched.clone()], before[untouched]);
        }
    }

    #[test]
    fn stubs_are_the_same_written_in_any_pieces() {
        let plan = plan();
        let placement = plan.place(BIAS, STUBS).unwrap();
        let entry = |number| match number {
            Number::Known(n) => 0xffff_ffff_8000_0000 + u64::from(n),
            Number::Computed => 0xffff_ffff_8100_0000,
        };
        let mut whole = [0; 64];
        plan.write_stubs(&placement, 0, &mut whole, entry);
        for step in 1..64 {
            let mut pieces = [0; 64];
            for (n, piece) in pieces.chunks_mut(step).enumerate() {
                plan.write_stubs(&placement, n * step, piece, entry);
            }
            assert_eq!(whole, pieces, "pieces of {step}");
        }
        assert_eq!(whole[..8], 0xffff_ffff_8000_0027_u64.to_le_bytes());
        let lea = i32::from_le_bytes(whole[24..28].try_into().unwrap());
        assert_eq!((STUBS + 28).wrapping_add_signed(lea.into()), BIAS + 0x2002);
        assert_eq!(whole[63], INT3);
    }

    #[test]
    fn addresses_map_back_and_forth() {
        let plan = plan();
        let placement = plan.place(BIAS, STUBS).unwrap();
        let original = |offset| plan.original_address(&placement, STUBS + offset);
        assert_eq!(original(15), None);
        assert_eq!(original(16), Some(BIAS + 0x1ffb));
        assert_eq!(original(20), Some(BIAS + 0x1ffb));
        assert_eq!(original(21), Some(BIAS + 0x2000));
        assert_eq!(original(33), Some(BIAS + 0x2000));
        assert_eq!(original(34), Some(BIAS + 0x2010));
        assert_eq!(original(47), None);
        let in_text = |address| plan.original_address(&placement, BIAS + address);
        assert_eq!(in_text(0x2020), Some(BIAS + 0x2010));
        assert_eq!(in_text(0x2024), Some(BIAS + 0x2010));
        for own in [0x1ffb, 0x2000, 0x2010, 0x201f, 0x2025, u64::MAX - BIAS] {
            assert_eq!(in_text(own), None);
        }
        assert_eq!(plan.original_address(&placement, STUBS - 1), None);
        assert_eq!(plan.resume_address(&placement, BIAS + 0x2040), Some(STUBS + 20));
        assert_eq!(plan.resume_address(&placement, BIAS + 0x2041), None);
    }

    #[test]
    fn places_out_of_reach_are_refused() {
        let plan = plan();
        assert_eq!(plan.place(BIAS, BIAS + 0x1000), Err(PlacementError::Misaligned));
        assert_eq!(plan.place(BIAS, BIAS + (1 << 31) + 0x1_0000), Err(PlacementError::OutOfReach));
        assert_eq!(plan.place(BIAS, BIAS - (1 << 31)), Err(PlacementError::OutOfReach));
        assert_eq!(plan.place(u64::MAX, u64::MAX), Err(PlacementError::OutOfReach));
        assert!(plan.place(BIAS, BIAS - (1 << 30)).is_ok());
    }

    #[test]
    fn damaged_plans_do_not_decode_or_do_not_panic() {
        let plan = plan();
        let encoded = plan.encode();
        assert_eq!(Plan::decode(&encoded), Ok(plan));
        assert_eq!(Plan::decode(b"HXR"), Err(DecodeError::Magic));
        assert_eq!(Plan::decode(b"HXRP\xff\0"), Err(DecodeError::Version(255)));
        for len in 0..encoded.len() {
            assert!(Plan::decode(&encoded[..len]).is_err(), "{len} bytes");
        }
        for at in 6..encoded.len() {
            for bit in 0..8 {
                let mut damaged = encoded.clone();
                damaged[at] ^= 1 << bit;
                let Ok(plan) = Plan::decode(&damaged) else { continue };
                let Ok(placement) = plan.place(BIAS, STUBS) else { continue };
                plan.patch_page(&placement, BIAS + 0x1000, &mut text());
                plan.write_stubs(&placement, 0, &mut [0; 100], |_| 0);
                let _ = plan.original_address(&placement, STUBS + 20);
            }
        }
    }
}
