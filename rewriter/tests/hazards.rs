//! Hand-written code for each thing that can go wrong when a `syscall` is rewritten.
//!
//! Each fixture says what the planner must make of it, and runs natively before and after
//! patching, entered at each of its interesting instructions, with the same result.

mod common;

use common::assemble;

/// A function `name` with `body`, and runs that enter it at `entries`.
fn fixture(name: &str, body: &str, entries: &[&str]) -> common::Program {
    let runs: String = entries
        .iter()
        .enumerate()
        .map(|(n, entry)| format!("run {entry}, {}\n", 0x1234_5678 + 77 * n))
        .collect();
    assemble(&format!(
        ".type blocks, @function\nblocks:\n{runs}ret\n.skip 200, 0xf4\n.balign 64\n.type {name}, @function\n{name}:\n{body}\n.size {name}, . - {name}\n"
    ))
}

/// Names of treatments that displace whole instructions.
const DISPLACED: [&str; 2] = ["displace-forward", "displace-backward"];

#[test]
fn the_mov_is_replaced() {
    let program = fixture("f", "mov $110, %eax\nsyscall\njmp done", &["f"]);
    assert_eq!(program.site("f").kind, "replace-mov");
    assert_eq!(program.site("f").number, Some(110));
    program.check();
}

#[test]
fn instructions_between_mov_and_syscall_still_run() {
    let program = fixture(
        "f",
        "mov $102, %eax
         lea data(%rip), %r12
         mov data + 8(%rip), %r13
         mov %rsi, -8(%rsp)
         cmp %rsi, %r13
         je 1f
         xor %edi, %edi
         syscall
      1: jmp done",
        &["f"],
    );
    assert_eq!(program.site("f").kind, "replace-mov");
    program.check();
}

#[test]
fn a_syscall_with_a_prefix_stays() {
    // Found by fuzzing: its end was taken to be two bytes behind its start.
    let program = fixture("f", "mov $110, %eax\n.byte 0x26\nsyscall\njmp done", &["f"]);
    assert!(program.sites("f").is_empty());
    program.check();
}

#[test]
fn a_mov_of_seven_bytes_is_replaced() {
    let program = fixture("f", "mov $102, %rax\nxor %edi, %edi\nsyscall\njmp done", &["f"]);
    assert_eq!(program.site("f").kind, "replace-mov");
    program.check();
}

#[test]
fn numbers_are_found_however_they_are_set() {
    for (set, number) in [
        ("xor %eax, %eax", Some(0)),
        ("push $24\npop %rax", Some(24)),
        ("mov $24, %r9d\nmov %r9, %rax", Some(24)),
        ("movabs $0x100000018, %rax", Some(24)),
        ("mov $24, %eax\nmov $1, %al", None),
        ("mov $24, %eax\nmov data(%rip), %eax", None),
        ("mov $24, %eax\ncmove %ecx, %eax", None),
        ("mov $24, %eax\nxchg %eax, %edx", None),
        ("mov $24, %eax\ncpuid", None),
    ] {
        let body = format!("lea data(%rip), %r12\n{set}\nmov $-1, %edi\nsyscall\njmp done");
        let program = fixture("f", &body, &["f"]);
        assert_eq!(program.site("f").number, number, "{set}");
        if !set.contains("cpuid") {
            program.check();
        }
    }
}

/// The number must not be believed where the instruction that sets it is not part of the stub.
#[test]
fn a_number_set_before_the_patch_is_not_taken_for_granted() {
    let program = fixture(
        "f",
        "test $1, %sil
         je 1f
         mov $110, %eax
         jmp 2f
      1: mov $102, %eax
      2: mov $5, %edi
         syscall
         jmp done",
        &["f"; 6],
    );
    let site = program.site("f");
    assert_eq!((site.kind, site.number), ("replace-instruction", Some(102)));
    program.check();
}

#[test]
fn a_jump_onto_the_syscall_still_works() {
    let program = fixture(
        "f",
        "mov $110, %eax
         test $1, %sil
         jne site
         mov $102, %eax
         mov %r8, %r9
   site: syscall
         jmp done",
        &["f", "site"],
    );
    assert_eq!(program.site("f").reason, None);
    program.check();
}

#[test]
fn a_loop_back_to_the_syscall_still_works() {
    let program = fixture(
        "f",
        "mov $3, %r12d
         mov $102, %eax
   site: syscall
         dec %r12d
         mov $110, %rax
         jne site
         jmp done",
        &["f"],
    );
    assert_eq!(program.site("f").reason, None);
    program.check();
}

/// No instruction of five bytes, no padding in reach: the `syscall` itself is displaced, with the
/// instruction after it, and code that jumps there unseen is resumed in the stub.
#[test]
fn unseen_jumps_into_displaced_bytes_are_resumed() {
    let program = fixture(
        "f",
        "call g
         syscall
  inner: lea 1(%rsi), %rsi
  after: mov %rsi, %r8
         jmp done
         .skip 200, 0xf4
         .type g, @function
      g: mov %rbx, %rax
         mov $102, %al
         movzx %al, %eax
         ret
         .size g, . - g",
        &["f", "inner", "after"],
    );
    assert_eq!(program.site("f").kind, "displace-forward");
    program.check();
}

#[test]
fn unseen_jumps_into_bytes_displaced_backward_are_resumed() {
    let program = fixture(
        "f",
        "call g
         xor %edi, %edi
  inner: mov %rsi, %rdx
   site: syscall
   next: call g
         jmp done
         .skip 200, 0xf4
         .type g, @function
      g: mov $102, %al
         movzx %al, %eax
         ret
         .size g, . - g",
        &["f", "inner", "site"],
    );
    assert_eq!(program.site("f").kind, "displace-backward");
    program.check();
}

#[test]
fn a_known_jump_into_the_bytes_after_the_site_forbids_displacing_them() {
    let program = fixture(
        "f",
        "call g
         syscall
  inner: inc %rsi
         cmp $64, %sil
         jb inner
         jmp done
         .skip 200, 0xf4
         .type g, @function
      g: mov $102, %al
         movzx %al, %eax
         ret
         .size g, . - g",
        &["f"],
    );
    assert_eq!(program.site("f").reason, Some("no-room"));
    program.check();
}

#[test]
fn a_jump_table_into_the_bytes_after_the_site_forbids_displacing_them() {
    let program = fixture(
        "f",
        "and $3, %esi
         call g
         cmp $3, %esi
         ja done
         lea table(%rip), %rdx
         movslq (%rdx,%rsi,4), %rdi
         add %rdx, %rdi
         jmp *%rdi
      0: syscall
      1: inc %r8
      2: inc %r9
      3: nop
         jmp done
         .skip 200, 0xf4
         .type g, @function
      g: mov $102, %al
         movzx %al, %eax
         ret
         .size g, . - g
         .section .rodata
         .balign 4
  table: .long 0b - table, 1b - table, 2b - table, 3b - table
         .text",
        &["f"; 8],
    );
    assert_eq!(program.site("f").reason, Some("no-room"));
    program.check();
}

#[test]
fn a_site_reached_only_through_a_jump_table_is_found() {
    for jump in [
        "lea table(%rip), %rdx\nmovslq (%rdx,%rsi,4), %rdi\nadd %rdx, %rdi\nnotrack jmp *%rdi",
        "jmp *absolute(,%rsi,8)",
        "mov absolute(,%rsi,8), %rdi\njmp *%rdi",
    ] {
        let body = format!(
            "and $1, %esi
             cmp $1, %esi
             ja done
             {jump}
          0: mov $102, %eax
             syscall
             jmp done
          1: mov $110, %eax
             syscall
             jmp done
             .section .rodata
             .balign 8
   absolute: .quad 0b, 1b
      table: .long 0b - table, 1b - table
             .text"
        );
        let program = fixture("f", &body, &["f"; 6]);
        let numbers: Vec<_> = program.sites("f").iter().map(|site| site.number).collect();
        assert_eq!(numbers, [Some(102), Some(110)], "{jump}");
        program.check();
    }
}

#[test]
fn the_base_of_a_jump_table_may_be_set_before_a_loop() {
    let body = "push %r12
             lea table(%rip), %r12
             jmp 3f
          4: xor $1, %esi
          3: and $1, %esi
             mov %esi, %edx
             mov %esi, %ecx
             and $8, %ecx
             jne 4b
             movslq (%r12,%rdx,4), %rdi
             add %r12, %rdi
             notrack jmp *%rdi
          0: mov $102, %eax
             syscall
             jmp 5f
          1: mov $110, %eax
             syscall
          5: pop %r12
             jmp done
             .section .rodata
             .balign 4
      table: .long 0b - table, 1b - table
             .text";
    let program = fixture("f", body, &["f"; 6]);
    let numbers: Vec<_> = program.sites("f").iter().map(|site| site.number).collect();
    assert_eq!(numbers, [Some(102), Some(110)]);
    program.check();
    // Something else may be there.
    let other =
        body.replace("4: xor $1, %esi", "4: mov %rsi, %r12").replace("jne 4b", "jne 4b\nnop");
    let program = fixture("f", &other, &["f"; 6]);
    assert!(program.sites("f").is_empty());
}

#[test]
fn immediates_and_data_in_text_are_no_sites() {
    let program = fixture(
        "f",
        "mov $0x050f, %r8d
         movabs $0x050f050f050f050f, %r9
         mov 1f(%rip), %r10
         jmp 2f
         .balign 16
      1: .byte 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3
         .byte 0x0f, 0x05, 0x06, 0x0f, 0x05, 0x0f, 0x05, 0x0f
      2: mov $102, %eax
         syscall
         jmp done",
        &["f"],
    );
    assert_eq!(program.site("f").number, Some(102));
    assert!(!program.report.unreached.is_empty(), "the data is listed");
    program.check();
}

/// A pointer to data is not taken for a pointer to code, even where the data decodes.
#[test]
fn data_whose_address_is_taken_is_not_patched() {
    let program = fixture(
        "f",
        "lea data_in_text(%rip), %r11
         mov 8(%r11), %r12
         mov (%r11), %r11
         jmp done
         .size f, . - f
         .balign 16
data_in_text:
         .byte 0x48, 0x89, 0xf2, 0x48, 0x89, 0xd0, 0x0f, 0x05
         .byte 0x48, 0x89, 0xf2, 0x48, 0x89, 0xd0, 0x90, 0xc3
         .balign 16",
        &["f"],
    );
    let (patched, original) = (program.patched(), &program.original);
    let needle = [0x48, 0x89, 0xf2, 0x48, 0x89, 0xd0, 0x0f, 0x05];
    let at = original.windows(8).position(|bytes| bytes == needle).expect("the data");
    assert_eq!(patched[at..at + 16], original[at..at + 16]);
    program.check();
}

#[test]
fn a_site_that_ends_its_function_is_patched_or_left() {
    // Padding after the function: a short jump. None: nothing to displace.
    for (end, kind) in [(".balign 16, 0x90", "short-jump"), (".byte 0x06", "leave")] {
        let body = format!(
            "push $done
             call g
             .byte 0x0f, 0x1f, 0x40, 0x00, 0x0f, 0x1f, 0x40, 0x00
             syscall
             ret
             .size f, . - f
             {end}
             .skip 200, 0xf4
             .type g, @function
          g: mov $102, %al
             movzx %al, %eax
             ret
             .size g, . - g"
        );
        let program = fixture("f", &body, &["f"]);
        assert_eq!(program.site("f").kind, kind, "{end}");
        program.check();
    }
}

#[test]
fn patches_keep_to_one_page() {
    // The `mov` starts at every distance from the end of a page.
    for distance in 0..10 {
        let body = format!(
            "jmp 1f
             .balign 4096
             .skip 4096 - {distance}
          1: mov $102, %eax
             syscall
             jmp done"
        );
        let program = fixture("f", &body, &["f"]);
        let kind = program.site("f").kind;
        assert_eq!(kind == "replace-mov", !(1..5).contains(&distance), "{distance}: {kind}");
        program.check();
    }
}

#[test]
fn a_site_at_the_end_of_its_section_is_patched() {
    let program = assemble(
        ".type blocks, @function
 blocks: run f, 1
         ret
         .section last, \"ax\"
         .type f, @function
      f: mov $60, %eax
         test %rdi, %rdi
         jne done
         mov $60, %eax
         syscall
         .size f, . - f
         .text",
    );
    assert_eq!(program.site("f").kind, "replace-mov");
    program.check();
}

#[test]
fn short_branches_and_rip_relative_operands_are_relocated() {
    // Eight conditions, each copied into the stub as a long branch.
    for condition in
        ["o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"]
    {
        let body = format!(
            "mov $102, %eax
             j{condition} 1f
             cmpq $7, data + 48(%rip)
             j{condition} 1f
             movl $0x12345678, data + 16(%rip)
             mov data + 16(%rip), %r12
             movb $1, data + 24(%rip)
             pshufd $0x1b, data(%rip), %xmm3
             syscall
             inc %r15
          1: jmp done"
        );
        let program = fixture("f", &body, &["f"; 12]);
        assert_eq!(program.site("f").kind, "replace-mov");
        program.check();
    }
}

#[test]
fn loops_and_calls_are_not_copied() {
    for barrier in ["jrcxz 1f", "loop 1f", "call g", "int3", "xbegin 1f"] {
        let body = format!(
            "jmp 2f
             .type g, @function
          g: ret
             .size g, . - g
          2: mov $102, %eax
             jmp 3f
             {barrier}
          3: syscall
          1: jmp done"
        );
        let program = fixture("f", &body, &["f"]);
        assert_ne!(program.site("f").kind, "replace-mov", "{barrier}");
        program.check();
    }
}

#[test]
fn the_red_zone_and_vector_registers_survive() {
    let program = fixture(
        "f",
        "mov %rsi, -8(%rsp)
         mov %rdi, -128(%rsp)
         pxor %xmm7, %xmm7
         mov $110, %eax
         movups %xmm7, -64(%rsp)
         syscall
         mov -128(%rsp), %r14
         movups -64(%rsp), %xmm8
         jmp done",
        &["f"],
    );
    program.check();
}

/// As `longjmp` does: the address is known to nobody but the program.
#[test]
fn a_site_reached_by_longjmp_works() {
    let program = fixture(
        "f",
        "call 1f
      1: pop %r12
         add $site - 1b, %r12
         mov $102, %eax
         jmp *%r12
         mov $110, %eax
         mov %rsi, %rdi
   site: syscall
         mov %rax, %r13
         jmp done",
        &["f"],
    );
    assert_eq!(program.sites("f").len(), 0, "nothing says that this is code");
    program.check();
}

#[test]
fn the_return_address_is_what_syscall_leaves() {
    // With the next instruction displaced into the stub.
    let program = fixture(
        "f",
        "call g
         syscall
         lea (%rcx,%rsi), %rsi
         mov %rcx, %r12
         jmp done
         .skip 200, 0xf4
         .type g, @function
      g: mov $102, %al
         movzx %al, %eax
         ret
         .size g, . - g",
        &["f"],
    );
    assert!(DISPLACED.contains(&program.site("f").kind));
    program.check();
}

#[test]
fn a_restorer_that_only_its_bytes_identify_is_left() {
    // With unwind tables in the file, though none for this function.
    let program = fixture(
        "f",
        "mov $15, %rax
         syscall
         .size f, . - f
         .type h, @function
      h: .cfi_startproc
         ret
         .cfi_endproc
         .size h, . - h",
        &["done"],
    );
    assert_eq!(program.site("f").reason, Some("signal-restorer"));
    // Without, there is no unwinder that could look at it.
    let program = fixture("f", "mov $15, %rax\nsyscall", &["done"]);
    assert_eq!(program.site("f").kind, "replace-mov");
}

#[test]
fn bytes_that_are_two_instructions_are_not_displaced() {
    // The jump over the lock prefix lands inside an instruction.
    let program = fixture(
        "f",
        "call g
         test $1, %sil
         je 1f
         .byte 0xf0
      1: addq $1, -8(%rsp)
         syscall
         lock addq $1, -8(%rsp)
         jmp done
         .skip 200, 0xf4
         .type g, @function
      g: mov $102, %al
         movzx %al, %eax
         ret
         .size g, . - g",
        &["f"; 4],
    );
    program.check();
}

/// The dynamic linker writes an address into the text: what is copied now is not what will run.
#[test]
fn relocated_instructions_are_neither_replaced_nor_copied() {
    let source = |load: &str| {
        format!(
            ".globl f
             .type f, @function
          f: mov $39, %eax
             {load}
             syscall
             ret
             .size f, . - f
             .skip 200, 0xf4"
        )
    };
    for (load, kind) in [
        ("movabs $0x123456789, %rdi", "replace-mov"),
        // The instruction with the address is passed over, and so is the number before it.
        ("movabs $f, %rdi", "leave"),
    ] {
        let file = common::shared_object(&source(load));
        let report = hx_rewriter::plan::plan(&file).expect("a plan").report;
        assert_eq!(report.sites.len(), 1, "{load}");
        assert_eq!(report.sites[0].kind, kind, "{load}");
    }
}
