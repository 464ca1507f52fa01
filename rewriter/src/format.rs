//! The patch plan: what the planner decided, in the form in which it is cached and shipped.
//!
//! A plan is immutable once built. Its fields are private so that the invariants that
//! [`Plan::decode`] checks (tables sorted, references inside their tables, no patch across a page)
//! hold for every plan that exists: [`crate::apply`] and [`crate::lookup`] rely on them.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Version of the encoding. A plan of any other version does not decode: it is made anew.
pub const VERSION: u16 = 3;

/// First bytes of an encoded plan.
const MAGIC: [u8; 4] = *b"HXRP";

/// Bytes of a page; no patch crosses a multiple of it.
pub const PAGE_SIZE: u64 = 4096;

/// Required alignment of the distance between load bias and stub area.
///
/// Where a patch displaces whole instructions, low bytes of its jump's displacement double as
/// trapping opcodes, so those bits must be known when planning.
pub const STUB_AREA_ALIGN: u64 = 64 << 10;

/// Bytes of `jmp rel32`.
pub(crate) const JUMP_LEN: usize = 5;

/// Bytes of an entry slot, the absolute address of a kernel entry.
pub(crate) const SLOT_LEN: usize = 8;

/// The filler between and after patched instructions: `int3`.
pub(crate) const INT3: u8 = 0xcc;

/// The number of the system call that a site makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Number {
    /// Loaded as a constant on the way to the site.
    Known(u32),
    /// Not a constant, or set elsewhere.
    Computed,
}

/// What happens to a site, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Treatment {
    /// The `mov` that loads the number becomes the jump; `0f 05` stays in place.
    ReplaceMov,
    /// Another instruction of five bytes or more on the straight way to the site becomes the jump;
    /// `0f 05` stays in place.
    ReplaceInstruction,
    /// `0f 05` becomes a two-byte jump to padding between functions, which holds the long jump.
    ShortJump,
    /// The jump covers `syscall` and whole instructions after it.
    DisplaceForward,
    /// The jump covers whole instructions before `syscall`, and `syscall`.
    DisplaceBackward,
    /// The `syscall` instruction stays and enters through LSTAR.
    Leave(Reason),
}

/// Why a site is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// Unwinders recognise a signal restorer by its bytes (`mov $15, %rax; syscall`).
    SignalRestorer,
    /// Another flow of control decodes the same bytes differently, or ends in an invalid
    /// instruction: not proven to be code.
    Unproven,
    /// The file asks for relocations inside these bytes.
    Relocated,
    /// No instruction is long enough, no padding near enough, and what is around the site cannot
    /// be displaced.
    NoRoom,
    /// The only patches possible would cross a page boundary.
    PageBoundary,
    /// The page is writable as well as executable: the program may change it at any time.
    Writable,
}

/// One `syscall` instruction that control-flow recovery reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Link-time address of `0f 05`.
    pub address: u64,
    /// The system call's number, as far as it is known.
    pub number: Number,
    /// What is done about it.
    pub treatment: Treatment,
    /// Whether known code jumps to between the patched instruction and `syscall`; that way enters
    /// through LSTAR.
    pub bypass: bool,
}

/// Bytes of text to overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Link-time address of the first byte written.
    pub(crate) address: u64,
    /// Offset of the stub.
    pub(crate) stub: u32,
    /// Start, in [`Plan::originals`], of the bytes that the page must hold.
    pub(crate) original: u32,
    /// How many of them, from `address` on: at least `len`.
    pub(crate) original_len: u8,
    /// Bytes written: the jump, then [`INT3`].
    pub(crate) len: u8,
    /// Where the jump is a short one: distance from `address` to the padding that holds the long
    /// jump. The padding's [`JUMP_LEN`] bytes follow the others in [`Plan::originals`].
    pub(crate) hole: Option<i8>,
}

/// One stub's code and its notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stub {
    /// Offset in the stub area.
    pub(crate) offset: u32,
    /// Start in [`Plan::code`].
    pub(crate) code: u32,
    /// Start in [`Plan::fixups`].
    pub(crate) fixup: u32,
    /// Start in [`Plan::steps`], in entries of [`STEP_LEN`] bytes.
    pub(crate) step: u32,
    /// Link-time address to which the steps' distances are added.
    pub(crate) origin: u64,
    /// Bytes of code.
    pub(crate) len: u8,
    /// Entries in [`Plan::fixups`]: positions of 32-bit displacements that refer to the module.
    pub(crate) fixups: u8,
    /// Entries in [`Plan::steps`].
    pub(crate) steps: u8,
}

/// Bytes of a step: position in the stub, then distance from the stub's origin.
pub(crate) const STEP_LEN: usize = 2;

/// Where to go on when an overwritten instruction is jumped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    /// Link-time address of the overwritten instruction.
    pub(crate) address: u64,
    /// Offset in the stub area of its copy.
    pub(crate) offset: u32,
}

/// A stretch of the file that is loaded as code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Text {
    /// Link-time address.
    pub(crate) address: u64,
    /// Offset in the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// What to patch in one ELF file and which stubs it needs.
///
/// Equal files give equal plans, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Bytes of the stub area.
    pub(crate) stub_area_len: u32,
    /// Lowest and highest link-time address that a stub or a patch refers to.
    pub(crate) reach: (u64, u64),
    /// The executable segments, by address.
    pub(crate) text: Vec<Text>,
    /// Entries that the stubs jump through, at the start of the stub area.
    #[serde(with = "records")]
    pub(crate) slots: Vec<Number>,
    /// By address; encoded, since applying does not need them.
    #[serde(with = "serde_bytes")]
    pub(crate) sites: Vec<u8>,
    /// By address; no two overlap.
    #[serde(with = "records")]
    pub(crate) patches: Vec<Patch>,
    /// By offset; no two overlap.
    #[serde(with = "records")]
    pub(crate) stubs: Vec<Stub>,
    /// By address.
    #[serde(with = "records")]
    pub(crate) resumes: Vec<Resume>,
    /// The stubs' code. Displacements into the module are those for a stub area at link-time
    /// address 0.
    #[serde(with = "serde_bytes")]
    pub(crate) code: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) fixups: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) steps: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) originals: Vec<u8>,
}

/// Why bytes are not a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They do not start as a plan does.
    #[error("not a patch plan")]
    Magic,
    /// They are one, of another version.
    #[error("a patch plan of version {0}, not {VERSION}")]
    Version(u16),
    /// They end too early or encode something else.
    #[error("a damaged patch plan")]
    Encoding,
    /// They decode, but contradict themselves.
    #[error("a patch plan that contradicts itself: {0}")]
    Invalid(&'static str),
}

impl Plan {
    /// The bytes to cache and ship. Deterministic.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.code.len() * 2);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        postcard::to_extend(self, out).expect("encoding into memory has no failure case")
    }

    /// Reads a plan back.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`Plan::encode`] would not have written. A plan that
    /// decodes can be applied without panic to any page, whoever wrote it; whether it fits the
    /// file is checked byte by byte as it is applied.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(DecodeError::Magic)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(DecodeError::Encoding)?;
        let version = u16::from_le_bytes(*version);
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (plan, rest): (Self, _) =
            postcard::take_from_bytes(rest).map_err(|_| DecodeError::Encoding)?;
        if !rest.is_empty() {
            return Err(DecodeError::Encoding);
        }
        plan.validate()?;
        Ok(plan)
    }

    /// Bytes of the stub area, to be mapped readable and executable at the address that
    /// [`Plan::place`] was given. Zero where the file has nothing to patch.
    #[must_use]
    pub fn stub_area_len(&self) -> usize {
        self.stub_area_len as usize
    }

    /// Lowest and highest link-time address that patches and stubs refer to: what the stub area
    /// must lie within 2 GiB of.
    #[must_use]
    pub fn reach(&self) -> (u64, u64) {
        self.reach
    }

    /// The load bias of a mapping that shows the code at `file_offset` at run-time address
    /// `address`. `None` where no executable segment holds that part of the file.
    #[must_use]
    pub fn load_bias(&self, file_offset: u64, address: u64) -> Option<u64> {
        let page = file_offset / PAGE_SIZE * PAGE_SIZE;
        let text = self.text.iter().find(|text| {
            let start = text.offset / PAGE_SIZE * PAGE_SIZE;
            text.offset.checked_add(text.len).is_some_and(|end| (start..end).contains(&page))
        })?;
        let link_time = text.address.wrapping_add(file_offset).wrapping_sub(text.offset);
        Some(address.wrapping_sub(link_time))
    }

    /// Every site that was found, by address. Decoded each time.
    #[must_use]
    pub fn sites(&self) -> Vec<Site> {
        postcard::from_bytes(&self.sites).unwrap_or_default()
    }

    /// The encoding of [`Plan::sites`].
    #[cfg(any(test, feature = "plan", feature = "plan-guest"))]
    pub(crate) fn encode_sites(sites: &[Site]) -> Vec<u8> {
        postcard::to_allocvec(sites).expect("encoding into memory has no failure case")
    }

    /// How many stretches of text are overwritten.
    #[must_use]
    pub fn patch_count(&self) -> usize {
        self.patches.len()
    }

    /// The invariants that applying relies on.
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        let check =
            |holds: bool, what| if holds { Ok(()) } else { Err(DecodeError::Invalid(what)) };
        check(self.reach.0 <= self.reach.1, "reach")?;
        check(self.resumes.is_sorted_by(|a, b| a.address < b.address), "order of resumptions")?;
        let slots_end = self.slots.len().saturating_mul(SLOT_LEN);
        check(slots_end <= self.stub_area_len(), "slots")?;
        check(self.fixups.len() <= self.code.len(), "fix-ups")?;

        let fits = |start: u32, len: u8, table| start as usize + usize::from(len) <= table;
        let steps = self.steps.len() / STEP_LEN;
        let mut end = slots_end as u64;
        for stub in &self.stubs {
            check(u64::from(stub.offset) >= end, "overlapping stubs")?;
            end = u64::from(stub.offset) + u64::from(stub.len);
            check(stub.origin <= u64::MAX - 255, "origin of a stub")?;
            check(fits(stub.code, stub.len, self.code.len()), "code of a stub")?;
            check(fits(stub.fixup, stub.fixups, self.fixups.len()), "fix-ups of a stub")?;
            let mut fixups = self.fixups_of(stub).iter();
            check(fixups.all(|&at| u32::from(at) + 4 <= stub.len.into()), "fix-up")?;
            check(fits(stub.step, stub.steps, steps), "steps of a stub")?;
            check(self.steps_of(stub).is_sorted_by(|a, b| a[0] < b[0]), "order of steps")?;
        }
        check(end <= u64::from(self.stub_area_len), "stub area")?;

        let mut end = 0;
        for patch in &self.patches {
            let (low, high) = patch.extent().ok_or(DecodeError::Invalid("patch address"))?;
            check(low / PAGE_SIZE == (high - 1) / PAGE_SIZE, "a patch across pages")?;
            check(patch.address >= end, "overlapping patches")?;
            end = patch.address + u64::from(patch.len);
            let short = patch.hole.is_some();
            let least = if short { 2 } else { JUMP_LEN };
            check(
                usize::from(patch.len) >= least && patch.original_len >= patch.len,
                "patch length",
            )?;
            check(self.original_of(patch).is_some(), "original bytes")?;
            check(patch.stub < self.stub_area_len, "target of a patch")?;
            check(low >= self.reach.0 && high <= self.reach.1, "reach of a patch")?;
        }
        check(self.resumes.iter().all(|resume| resume.offset < self.stub_area_len), "resumption")
    }

    pub(crate) fn code_of(&self, stub: &Stub) -> &[u8] {
        slice(&self.code, stub.code as usize, usize::from(stub.len))
    }

    pub(crate) fn fixups_of(&self, stub: &Stub) -> &[u8] {
        slice(&self.fixups, stub.fixup as usize, usize::from(stub.fixups))
    }

    pub(crate) fn steps_of(&self, stub: &Stub) -> &[[u8; STEP_LEN]] {
        let (steps, _) = self.steps.as_chunks::<STEP_LEN>();
        steps
            .get(stub.step as usize..)
            .and_then(|s| s.get(..usize::from(stub.steps)))
            .unwrap_or(&[])
    }

    /// The bytes that the page must hold: from the patch's address on, and in its hole.
    pub(crate) fn original_of(&self, patch: &Patch) -> Option<(&[u8], &[u8])> {
        let bytes = self.originals.get(patch.original as usize..)?;
        let (at, rest) = bytes.split_at_checked(usize::from(patch.original_len))?;
        let hole = if patch.hole.is_some() { rest.get(..JUMP_LEN)? } else { &[] };
        Some((at, hole))
    }
}

/// A table's entry, encoded in a fixed number of bytes: a plan is decoded in the guest at the start
/// of a program, and this takes a few instructions an entry.
trait Record: Sized {
    /// Bytes of an entry.
    const LEN: usize;
    /// Appends exactly [`Record::LEN`] bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// Takes what [`Record::write`] wrote.
    fn read(bytes: &mut Fields<'_>) -> Option<Self>;
}

/// Little-endian integers, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }
}

impl Record for Number {
    const LEN: usize = 1 + 4;

    fn write(&self, out: &mut Vec<u8>) {
        let (is_known, number) = match self {
            Self::Known(number) => (1, *number),
            Self::Computed => (0, 0),
        };
        out.push(is_known);
        out.extend_from_slice(&number.to_le_bytes());
    }

    fn read(bytes: &mut Fields<'_>) -> Option<Self> {
        match (bytes.u8()?, bytes.u32()?) {
            (1, number) => Some(Self::Known(number)),
            (0, 0) => Some(Self::Computed),
            _ => None,
        }
    }
}

impl Record for Patch {
    const LEN: usize = 8 + 4 + 4 + 3;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.address.to_le_bytes());
        out.extend_from_slice(&self.stub.to_le_bytes());
        out.extend_from_slice(&self.original.to_le_bytes());
        // A hole is never at the patch itself: no distance is zero.
        out.extend_from_slice(&[self.original_len, self.len, self.hole.unwrap_or(0) as u8]);
    }

    fn read(bytes: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            address: bytes.u64()?,
            stub: bytes.u32()?,
            original: bytes.u32()?,
            original_len: bytes.u8()?,
            len: bytes.u8()?,
            hole: Some(bytes.u8()? as i8).filter(|&distance| distance != 0),
        })
    }
}

impl Record for Stub {
    const LEN: usize = 4 * 4 + 8 + 3;

    fn write(&self, out: &mut Vec<u8>) {
        for field in [self.offset, self.code, self.fixup, self.step] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.origin.to_le_bytes());
        out.extend_from_slice(&[self.len, self.fixups, self.steps]);
    }

    fn read(bytes: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            offset: bytes.u32()?,
            code: bytes.u32()?,
            fixup: bytes.u32()?,
            step: bytes.u32()?,
            origin: bytes.u64()?,
            len: bytes.u8()?,
            fixups: bytes.u8()?,
            steps: bytes.u8()?,
        })
    }
}

impl Record for Resume {
    const LEN: usize = 8 + 4;

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.address.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
    }

    fn read(bytes: &mut Fields<'_>) -> Option<Self> {
        Some(Self { address: bytes.u64()?, offset: bytes.u32()? })
    }
}

/// A table of [`Record`]s as one string of bytes.
mod records {
    use alloc::vec::Vec;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use serde_bytes::Bytes;

    use super::{Fields, Record};

    pub(super) fn serialize<T: Record, S: Serializer>(
        table: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(table.len() * T::LEN);
        for record in table {
            record.write(&mut bytes);
        }
        serializer.serialize_bytes(&bytes)
    }

    pub(super) fn deserialize<'de, T: Record, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let bytes = <&Bytes>::deserialize(deserializer)?;
        let records = bytes.chunks_exact(T::LEN);
        if !records.remainder().is_empty() {
            return Err(D::Error::custom("a table that is cut short"));
        }
        let mut table = Vec::with_capacity(records.len());
        for record in records {
            let record = T::read(&mut Fields(record));
            table.push(record.ok_or_else(|| D::Error::custom("a damaged record"))?);
        }
        Ok(table)
    }
}

impl Patch {
    /// Link-time addresses of the first byte written and of the one after the last, hole included.
    pub(crate) fn extent(&self) -> Option<(u64, u64)> {
        let end = self.address.checked_add(u64::from(self.len))?;
        match self.hole {
            None => Some((self.address, end)),
            Some(distance) => {
                let hole = self.address.checked_add_signed(i64::from(distance))?;
                let hole_end = hole.checked_add(JUMP_LEN as u64)?;
                (hole_end <= self.address || hole >= end)
                    .then(|| (hole.min(self.address), hole_end.max(end)))
            }
        }
    }
}

fn slice(bytes: &[u8], start: usize, len: usize) -> &[u8] {
    bytes.get(start..).and_then(|rest| rest.get(..len)).unwrap_or(&[])
}
