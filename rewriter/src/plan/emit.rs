//! The stubs' machine code.
//!
//! A stub's last instructions before the kernel are always the same two, `lea` of the address to
//! go on at into `rcx` and a jump through a slot. Neither touches flags or memory that the
//! application can see.

use alloc::vec::Vec;
use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction};

use crate::format::Number;

/// What must hold for the address of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Constraint {
    /// Nothing.
    None,
    /// The byte at this distance (1 or 2) from the start of the patch, a byte of the jump's
    /// displacement, must trap when executed.
    TrapAt(u8),
}

/// Bytes that trap when they are executed as the first of an instruction, alone and whatever
/// follows: invalid in 64-bit mode (SDM vol. 2, appendix A), and `int3`.
pub(super) const TRAPS: [u8; 16] = [
    0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0xcc, 0xce, 0xd6,
];

/// One stub, position independent but for its fix-ups.
#[derive(Debug, Default)]
pub(super) struct StubCode {
    /// Link-time address to which steps are relative.
    pub(super) origin: u64,
    pub(super) code: Vec<u8>,
    /// Positions of 32-bit displacements, with the link-time address that each leads to and the
    /// position that it counts from.
    pub(super) fixups: Vec<Fixup>,
    /// Position in the stub, original address.
    pub(super) steps: Vec<(u8, u64)>,
    /// Overwritten address, position in the stub.
    pub(super) resumes: Vec<(u64, u8)>,
    /// Position of the slot's displacement.
    pub(super) slot: usize,
    pub(super) number: Option<Number>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fixup {
    pub(super) at: usize,
    pub(super) target: u64,
    pub(super) next: usize,
}

/// Writes one stub.
pub(super) struct Emitter {
    stub: StubCode,
}

impl Emitter {
    pub(super) fn new(origin: u64) -> Self {
        Self { stub: StubCode { origin, ..StubCode::default() } }
    }

    /// Notes that from here on the stub does what the original does from `address` on.
    fn step(&mut self, address: u64) {
        self.stub.steps.push((self.stub.code.len() as u8, address));
    }

    /// Notes that whoever jumps to the overwritten `address` goes on here.
    pub(super) fn resume_here(&mut self, address: u64) {
        self.stub.resumes.push((address, self.stub.code.len() as u8));
    }

    fn displacement(&mut self, target: u64, trailing: usize) {
        let at = self.stub.code.len();
        self.stub.fixups.push(Fixup { at, target, next: at + 4 + trailing });
        self.stub.code.extend_from_slice(&[0; 4]);
    }

    /// A copy of an instruction, which [`super::choose`] knows can be copied.
    pub(super) fn copy(&mut self, instruction: &Instruction, bytes: &[u8]) {
        self.step(instruction.ip());
        match instruction.flow_control() {
            FlowControl::ConditionalBranch => {
                let condition = instruction.condition_code() as u8;
                self.stub.code.extend_from_slice(&[0x0f, 0x80 | condition_bits(condition)]);
                self.displacement(instruction.near_branch_target(), 0);
            }
            FlowControl::UnconditionalBranch => {
                self.stub.code.push(0xe9);
                self.displacement(instruction.near_branch_target(), 0);
            }
            _ if instruction.is_ip_rel_memory_operand() => {
                let offsets = constant_offsets(bytes, instruction);
                let at = offsets.displacement_offset();
                self.stub.code.extend_from_slice(&bytes[..at]);
                self.displacement(instruction.ip_rel_memory_address(), bytes.len() - at - 4);
                self.stub.code.extend_from_slice(&bytes[at + 4..]);
            }
            _ => self.stub.code.extend_from_slice(bytes),
        }
    }

    /// Goes to the kernel, which goes on at `back`.
    pub(super) fn enter_kernel(&mut self, site: u64, number: Number, back: u64) {
        self.step(site);
        self.stub.code.extend_from_slice(&[0x48, 0x8d, 0x0d]);
        self.displacement(back, 0);
        self.jump_to_slot(number);
    }

    /// Goes to the kernel, which goes on behind this, in the stub. There, `rcx` becomes what
    /// `syscall` leaves in it.
    pub(super) fn enter_kernel_and_continue(&mut self, site: u64, number: Number, back: u64) {
        const SLOT_JUMP_LEN: u8 = 6;
        self.step(site);
        self.stub.code.extend_from_slice(&[0x48, 0x8d, 0x0d, SLOT_JUMP_LEN, 0, 0, 0]);
        self.jump_to_slot(number);
        self.step(back);
        self.stub.code.extend_from_slice(&[0x48, 0x8d, 0x0d]);
        self.displacement(back, 0);
    }

    fn jump_to_slot(&mut self, number: Number) {
        self.stub.code.extend_from_slice(&[0xff, 0x25]);
        self.stub.slot = self.stub.code.len();
        self.stub.number = Some(number);
        self.stub.code.extend_from_slice(&[0; 4]);
    }

    /// Goes on in original code.
    pub(super) fn jump_back(&mut self, address: u64) {
        self.step(address);
        self.stub.code.push(0xe9);
        self.displacement(address, 0);
    }

    pub(super) fn finish(self) -> StubCode {
        self.stub
    }
}

/// The low four bits of a conditional jump's opcode for iced's condition code (1 is `o`).
fn condition_bits(condition: u8) -> u8 {
    condition.wrapping_sub(1) & 15
}

fn constant_offsets(bytes: &[u8], instruction: &Instruction) -> ConstantOffsets {
    let mut decoder = Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::NONE);
    let decoded = decoder.decode();
    debug_assert_eq!(decoded.code(), instruction.code());
    debug_assert_ne!(decoded.code(), Code::INVALID);
    decoder.get_constant_offsets(&decoded)
}
