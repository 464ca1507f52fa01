//! The way back from patched to original addresses, and from overwritten ones into the stubs.
//!
//! Addresses here are run-time addresses. Both look-ups are binary searches and allocate nothing.

use alloc::vec::Vec;

use crate::{
    apply::Placement,
    format::{JUMP_LEN, Plan, SLOT_LEN, Site},
};

/// A stub and its site, for reports and debuggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StubPlace {
    /// Run-time address of its first byte.
    pub address: u64,
    /// Bytes.
    pub len: usize,
    /// The site, with its address in the file.
    pub site: Site,
}

impl Plan {
    /// The original instruction that the stub instruction at (or around) `address` stands for.
    ///
    /// The registers of a thread stopped there are those it would have at the original
    /// instruction, but for `rcx` once the stub has loaded it for the system call, which is about
    /// to overwrite it. A signal frame, a backtrace or a debugger shows the original address; a
    /// thread may also be resumed there: it re-enters the patch, or goes on in original code, or
    /// traps and is resumed by way of [`Plan::resume_address`].
    ///
    /// The padding that holds a long jump stands for the site that jumps there.
    ///
    /// `None` for an address that is its own original.
    #[must_use]
    pub fn original_address(&self, placement: &Placement, address: u64) -> Option<u64> {
        self.stub_origin(placement, address).or_else(|| self.hole_origin(placement, address))
    }

    fn hole_origin(&self, placement: &Placement, address: u64) -> Option<u64> {
        let address = address.wrapping_sub(placement.load_bias());
        // A hole is at most so far from its patch.
        let reach = u64::from(i8::MIN.unsigned_abs()) + JUMP_LEN as u64;
        let first =
            self.patches.partition_point(|patch| patch.address.saturating_add(reach) < address);
        let near = self.patches.get(first..)?.iter();
        let mut near = near.take_while(|patch| patch.address <= address.saturating_add(reach));
        let patch = near.find(|patch| {
            let hole = patch.hole.and_then(|by| patch.address.checked_add_signed(by.into()));
            hole.is_some_and(|hole| (hole..hole + JUMP_LEN as u64).contains(&address))
        })?;
        Some(patch.address.wrapping_add(placement.load_bias()))
    }

    fn stub_origin(&self, placement: &Placement, address: u64) -> Option<u64> {
        let offset = address.checked_sub(placement.stub_base())?;
        let offset = u32::try_from(offset).ok().filter(|offset| *offset < self.stub_area_len)?;
        let index = self.stubs.partition_point(|stub| stub.offset <= offset).checked_sub(1)?;
        let stub = self.stubs.get(index)?;
        let within = offset - stub.offset;
        if within >= u32::from(stub.len) {
            return None;
        }
        let steps = self.steps_of(stub);
        let step = steps.partition_point(|step| u32::from(step[0]) <= within).checked_sub(1)?;
        let original = stub.origin + u64::from(steps.get(step)?[1]);
        Some(original.wrapping_add(placement.load_bias()))
    }

    /// Where to go on after a trap at the overwritten instruction at `address`.
    ///
    /// The trap is a breakpoint (`int3`; the saved `rip` is one more than the address) or an
    /// invalid opcode (the saved `rip` is the address). `None` means that the trap is the
    /// program's own.
    #[must_use]
    pub fn resume_address(&self, placement: &Placement, address: u64) -> Option<u64> {
        let address = address.wrapping_sub(placement.load_bias());
        let index = self.resumes.binary_search_by_key(&address, |resume| resume.address).ok()?;
        let offset = u64::from(self.resumes.get(index)?.offset);
        Some(placement.stub_base().wrapping_add(offset))
    }

    /// Every stub with the site that it stands for, by address. Allocates.
    #[must_use]
    pub fn stubs(&self, placement: &Placement) -> Vec<StubPlace> {
        let sites = self.sites();
        let site_at = |address| {
            let found = sites.binary_search_by_key(&address, |site: &Site| site.address);
            found.ok().and_then(|index| sites.get(index)).copied()
        };
        let stubs = self.stubs.iter().filter_map(|stub| {
            // The call's own step, among those of instructions copied before and after it.
            let mut steps = self.steps_of(stub).iter();
            let site = steps.find_map(|step| site_at(stub.origin + u64::from(step[1])))?;
            let address = placement.stub_base().wrapping_add(stub.offset.into());
            Some(StubPlace { address, len: stub.len.into(), site })
        });
        stubs.collect()
    }

    /// Whether a run-time address lies in the stub area's code.
    #[must_use]
    pub fn is_stub_address(&self, placement: &Placement, address: u64) -> bool {
        let start = (self.slots.len() * SLOT_LEN) as u64;
        let offset = address.wrapping_sub(placement.stub_base());
        (start..u64::from(self.stub_area_len)).contains(&offset)
    }
}
