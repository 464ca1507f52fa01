//! The way back from stubs: each instruction of a stub stands for one instruction of the original.

mod common;

use common::assemble;
use goblin::elf::Elf;
use hx_rewriter::{Placement, Plan, plan::plan};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

/// The stub area of `plan`, as it is at `placement`.
fn stub_area(plan: &Plan, placement: &Placement) -> Vec<u8> {
    let mut area = vec![0; plan.stub_area_len()];
    plan.write_stubs(placement, 0, &mut area, |_| 0);
    area
}

/// The instruction at link-time address `address` of `file`.
fn original(elf: &Elf<'_>, file: &[u8], address: u64) -> Instruction {
    let segment = elf
        .program_headers
        .iter()
        .find(|segment| segment.p_type == 1 && segment.vm_range().contains(&(address as usize)))
        .expect("an original address is in a segment");
    let offset = (address - segment.p_vaddr + segment.p_offset) as usize;
    let end = (offset + 15).min(file.len());
    Decoder::with_ip(64, &file[offset..end], address, DecoderOptions::NONE).decode()
}

/// Decodes every stub from its first byte to its last, and looks up each instruction on the way.
fn check(file: &[u8]) {
    let elf = Elf::parse(file).expect("an ELF file");
    let plan = plan(file).expect("a plan").plan;
    let stubs = plan.reach().1.next_multiple_of(1 << 16);
    let placement = plan.place(0, stubs).expect("near the text");
    let area = stub_area(&plan, &placement);
    let mut seen = 0;
    let mut at = 0;
    while at < area.len() {
        let address = stubs + at as u64;
        // Filler and slots stand for nothing.
        let Some(target) = plan.original_address(&placement, address) else {
            at += 1;
            continue;
        };
        let copy = Decoder::with_ip(64, &area[at..], address, DecoderOptions::NONE).decode();
        let original = original(&elf, file, target);
        assert!(!copy.is_invalid() && !original.is_invalid(), "{address:#x} for {target:#x}");
        let enters = copy.code() == Code::Lea_r64_m && copy.op0_register() == Register::RCX
            || copy.code() == Code::Jmp_rm64;
        if original.code() == Code::Syscall {
            assert!(enters, "{address:#x} for the site {target:#x}");
        } else if copy.mnemonic() != original.mnemonic() {
            // The end of a displacement: rcx is made good, or the original is jumped to.
            let goes_back =
                matches!(copy.code(), Code::Jmp_rel32_64) && copy.near_branch_target() == target;
            let makes_good =
                copy.code() == Code::Lea_r64_m && copy.ip_rel_memory_address() == target;
            assert!(goes_back || makes_good, "{address:#x} for {target:#x}");
        } else if original.is_ip_rel_memory_operand() {
            assert_eq!(copy.ip_rel_memory_address(), original.ip_rel_memory_address());
        } else if original.near_branch_target() != 0 {
            assert_eq!(copy.near_branch_target(), original.near_branch_target());
        }
        // An address inside the instruction is that instruction's.
        for inside in 1..copy.len() as u64 {
            assert_eq!(plan.original_address(&placement, address + inside), Some(target));
        }
        at += copy.len();
        seen += 1;
    }
    assert!(seen >= 2 * plan.sites().iter().filter(|s| !is_left(s)).count());
    assert!(plan.original_address(&placement, stubs - 1).is_none());
    assert!(plan.original_address(&placement, stubs + area.len() as u64).is_none());
}

fn is_left(site: &hx_rewriter::Site) -> bool {
    matches!(site.treatment, hx_rewriter::Treatment::Leave(_))
}

#[test]
fn every_stub_instruction_stands_for_an_original_one() {
    for path in [
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/usr/lib/x86_64-linux-musl/libc.so",
        "/bin/busybox",
    ] {
        if let Ok(file) = std::fs::read(path) {
            check(&file);
        }
    }
}

/// musl acts on a cancellation request only if the interrupted address is between `__cp_begin` and
/// `__cp_end` (src/thread/x86_64/syscall_cp.s). These are its instructions.
#[test]
fn cancellation_points_are_recognised_in_stubs() {
    let program = assemble(
        ".type blocks, @function
 blocks: run cp, 5
         ret
         .type cp, @function
     cp:
cp_begin:
         mov (%rsp), %eax
         test %eax, %eax
         jz done
         mov %rdi, %r11
         mov %rsi, %rax
         mov $102, %al
         movzx %al, %eax
         mov %rdx, %rdi
         mov %rcx, %rsi
         mov %r8, %rdx
         mov %r9, %r10
         mov 8(%rsp), %r8
         mov 16(%rsp), %r9
         mov %r11, 8(%rsp)
         syscall
 cp_end: jmp done
         .size cp, . - cp",
    );
    assert_eq!(program.site("cp").kind, "replace-instruction");
    program.check();
    let stubs = program.plan.reach().1.next_multiple_of(1 << 16);
    let placement = program.plan.place(0, stubs).expect("near the text");
    let (begin, end) = (
        common::symbol(&program.original, "cp_begin").0,
        common::symbol(&program.original, "cp_end").0,
    );
    let jump = begin..end;
    let mut inside = 0;
    for offset in 0..program.plan.stub_area_len() as u64 {
        match program.plan.original_address(&placement, stubs + offset) {
            Some(address) if jump.contains(&address) => inside += 1,
            // The return address, which musl takes for "the call has been made", is in the text.
            Some(address) => assert_ne!(address, end),
            None => {}
        }
    }
    assert!(inside > 0);
}
