//! What control-flow recovery knows about a file, for analyses other than planning.

use alloc::vec::Vec;
use iced_x86::{Code as Opcode, Decoder, DecoderOptions, Instruction};

use super::{
    PlanError,
    flow::{Flow, MAX_INSTRUCTION},
    image::{Image, Region, region_of},
};

/// The code of one ELF file. All addresses are link-time addresses.
pub struct Code<'i, 'a> {
    image: &'i Image<'a>,
    flow: Flow<'i, 'a>,
}

/// Recovers the control flow of an ELF file and shows it to `examine`.
///
/// # Errors
/// [`PlanError`] where there is no plan either.
pub fn recover<R>(elf: &[u8], examine: impl FnOnce(&Code<'_, '_>) -> R) -> Result<R, PlanError> {
    let image = Image::parse(elf)?;
    let flow = Flow::explore(&image);
    Ok(examine(&Code { image: &image, flow }))
}

impl<'a> Code<'_, 'a> {
    /// The executable stretches (sections, or segments where there are none) and their bytes, by
    /// address.
    pub fn regions(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.image.regions.iter().map(|region| (region.address, region.bytes))
    }

    /// Whether `address` lies in an executable stretch.
    #[must_use]
    pub fn is_text(&self, address: u64) -> bool {
        region_of(&self.image.regions, address).is_some()
    }

    /// The bytes of the file that are loaded at `address`, as far as they go.
    #[must_use]
    pub fn read(&self, address: u64) -> Option<&'a [u8]> {
        self.image.read(address)
    }

    /// The loaded segments: address and bytes that the file holds.
    pub fn segments(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.image.segments()
    }

    /// Whether the file is linked for a fixed address.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.image.fixed
    }

    /// Whether the file has Go's table of functions.
    #[must_use]
    pub fn is_go(&self) -> bool {
        self.image.go
    }

    /// Addresses at which functions start: those that the file names and those that are called.
    #[must_use]
    pub fn entries(&self) -> Vec<u64> {
        self.flow.entries()
    }

    /// Address ranges of the functions that the file describes, sorted.
    #[must_use]
    pub fn functions(&self) -> &[(u64, u64)] {
        &self.image.functions
    }

    /// Addresses in text that relocations or data words hold, sorted.
    #[must_use]
    pub fn pointers(&self) -> &[u64] {
        &self.image.pointers
    }

    /// Whether an instruction is known to start at `address`.
    #[must_use]
    pub fn is_start(&self, address: u64) -> bool {
        self.flow.is_start(address)
    }

    /// Whether the byte at `address` is part of a known instruction.
    #[must_use]
    pub fn is_instruction(&self, address: u64) -> bool {
        self.flow.is_instruction(address)
    }

    /// Whether known code jumps, or a pointer leads, to `address`.
    #[must_use]
    pub fn is_target(&self, address: u64) -> bool {
        self.flow.is_target(address)
    }

    /// Whether a function that the file describes ends before `address`, so that a call there does
    /// not return.
    #[must_use]
    pub fn is_end(&self, address: u64) -> bool {
        self.flow.is_end(address)
    }

    /// Where the indirect jump at `address` goes, if it is by a jump table that was recognised.
    #[must_use]
    pub fn jump_table(&self, address: u64) -> Option<&[u64]> {
        self.flow.table(address)
    }

    /// Decodes at `address`, known or not; `None` for what is no valid instruction.
    #[must_use]
    pub fn decode(&self, address: u64) -> Option<Instruction> {
        let Region { address: start, bytes, .. } = *region_of(&self.image.regions, address)?;
        let bytes = bytes.get((address - start) as usize..)?;
        let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION)];
        let decoded = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        (decoded.code() != Opcode::INVALID).then_some(decoded)
    }

    /// Shows every known instruction, by address. Where two readings of the same bytes are known,
    /// both are shown.
    pub fn each_instruction(&self, mut show: impl FnMut(&Instruction)) {
        let mut instruction = Instruction::default();
        let mut current: Option<(Region<'_>, Decoder<'_>)> = None;
        for address in self.flow.start_addresses() {
            if current.as_ref().is_none_or(|(region, _)| address >= region.end()) {
                current = region_of(&self.image.regions, address).map(|&region| {
                    let decoder =
                        Decoder::with_ip(64, region.bytes, region.address, DecoderOptions::NONE);
                    (region, decoder)
                });
            }
            let Some((region, decoder)) = &mut current else { continue };
            if decoder.try_set_position((address - region.address) as usize).is_ok() {
                decoder.set_ip(address);
                decoder.decode_out(&mut instruction);
                if instruction.code() != Opcode::INVALID {
                    show(&instruction);
                }
            }
        }
    }
}
