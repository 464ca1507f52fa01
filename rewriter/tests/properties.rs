//! Random code around a `syscall`, run natively before and after patching.
//!
//! Each block is entered at *every* one of its instructions by a jump that the planner cannot see,
//! so that whatever it decided to overwrite is jumped into as well.

mod common;

use std::fmt::Write as _;

use common::assemble;
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};

/// Instructions of every length and kind that a stub may have to copy.
const INSTRUCTIONS: [&str; 44] = [
    "nop",
    "inc %esi",
    "mov %rsi, %rdi",
    "mov %edi, %edx",
    "mov %r8, %r9",
    "xor %edi, %edi",
    "xor %r10d, %r10d",
    "push %rbx\npop %r12",
    "lea 1(%rsi), %rsi",
    "lea data(%rip), %r12",
    "mov data + 8(%rip), %rdx",
    "mov %rdx, data + 16(%rip)",
    "movl $0x12345678, data + 24(%rip)",
    "movb $7, data + 32(%rip)",
    "addq $1000, data + 40(%rip)",
    "cmpq $2, data + 8(%rip)",
    "lock xadd %r13, data + 48(%rip)",
    "movabs $0x1122334455667788, %r14",
    "mov $0x050f, %r14d",
    "mov %rsi, -8(%rsp)",
    "mov -16(%rsp), %r15",
    "mov %rdx, -128(%rsp)",
    "cmp %rsi, %rdi",
    "test %rdi, %rdi",
    "cmp $-4095, %rax",
    "add $3, %r9",
    "adc %r9, %r15",
    "sbb %ebx, %ebx",
    "setb %r11b",
    "cmovb %rsi, %rdi",
    "std",
    "cld",
    "cmc",
    "shl $3, %r8",
    "bswap %rdx",
    "movups -64(%rsp), %xmm3",
    "movups %xmm4, -64(%rsp)",
    "paddd data(%rip), %xmm5",
    "pshufd $0x1b, data(%rip), %xmm6",
    "pxor %xmm1, %xmm1",
    "movq %rsi, %xmm2",
    "mov %rax, %rbp",
    "xchg %rbx, %rbp",
    "mov %cl, %ch",
];

/// Ways to load a number, of calls whose result does not depend on when they are made: getuid,
/// getppid, getgid, and one that Linux does not have.
const NUMBERS: [&str; 8] = [
    "mov $102, %eax",
    "mov $110, %rax",
    "push $104\npop %rax",
    "mov $102, %al\nmovzx %al, %eax",
    "xor %eax, %eax\nmov $110, %al",
    "mov $9999, %r8d\nmov %r8, %rax",
    "lea 102, %eax",
    "movabs $110, %rax",
];

/// What leads on from one instruction to another than the next.
const BRANCHES: [&str; 6] = ["je", "jb", "jns", "jg", "jo", "jmp"];

#[derive(Clone, Debug)]
enum Item {
    Instruction(&'static str),
    Number(&'static str),
    /// A branch to a later item: so many on.
    Branch(&'static str, usize),
    Syscall,
}

#[derive(Clone, Debug)]
struct Block {
    items: Vec<Item>,
    /// What follows the block: padding in reach of a short jump, or nothing of use.
    tail: &'static str,
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        10 => select(&INSTRUCTIONS[..]).prop_map(Item::Instruction),
        1 => (select(&BRANCHES[..]), 1..4_usize).prop_map(|(branch, by)| Item::Branch(branch, by)),
    ]
}

fn block() -> impl Strategy<Value = Block> {
    let number = select(&NUMBERS[..]).prop_map(Item::Number);
    let between = vec(item(), 0..4);
    let tail = select(&[".skip 160, 0xf4", ".balign 16, 0x90", ".balign 16"][..]);
    (vec(item(), 0..4), number, between, vec(item(), 0..4), tail).prop_map(
        |(before, number, between, after, tail)| {
            let mut items = before;
            items.push(number);
            items.extend(between);
            items.push(Item::Syscall);
            items.extend(after);
            Block { items, tail }
        },
    )
}

/// Source of the blocks, and of runs that enter each at each instruction.
///
/// A number is set before each run, so that an entry behind the block's own still makes a call
/// whose result is known.
fn source(blocks: &[Block]) -> String {
    let mut code = String::new();
    let mut runs = String::from(".type blocks, @function\nblocks:\n");
    for (b, block) in blocks.iter().enumerate() {
        writeln!(code, ".skip 160, 0xf4\n.balign 16\n.type b{b}, @function\nb{b}:").unwrap();
        let last = block.items.len();
        for (n, item) in block.items.iter().enumerate() {
            writeln!(code, "b{b}_{n}:").unwrap();
            match item {
                Item::Instruction(text) | Item::Number(text) => writeln!(code, "{text}"),
                Item::Branch(branch, by) => {
                    writeln!(code, "{branch} b{b}_{}", (n + by).min(last))
                }
                Item::Syscall => writeln!(code, "syscall"),
            }
            .unwrap();
            // What a stray entry would ask of the kernel is not for a test to do.
            if sets_number_before(block, n) {
                writeln!(runs, "run b{b}_{n}, {}", 1000 * b + 17 * n).unwrap();
            } else {
                writeln!(runs, "run enter{b}_{n}, {}", 1000 * b + 17 * n).unwrap();
                writeln!(runs, ".subsection 1\nenter{b}_{n}: mov $102, %eax").unwrap();
                writeln!(runs, "movabs $(b{b}_{n} + MASK), %rbx\nmovabs $MASK, %r11").unwrap();
                writeln!(runs, "sub %r11, %rbx\njmp *%rbx\n.subsection 0").unwrap();
            }
        }
        writeln!(code, "b{b}_{last}: jmp done\n.size b{b}, . - b{b}\n{}", block.tail).unwrap();
    }
    runs + "ret\n" + &code
}

/// Whether a block that is entered at item `n` loads a number before its `syscall` whichever way
/// its branches go.
fn sets_number_before(block: &Block, n: usize) -> bool {
    let number = block.items.iter().position(|item| matches!(item, Item::Number(_)));
    let number = number.expect("a block has a number");
    // A branch from before the number may lead past it.
    n <= number
        && block.items[n..number].iter().enumerate().all(|(at, item)| match item {
            Item::Branch(_, by) => n + at + by <= number,
            _ => true,
        })
}

#[test]
fn patched_blocks_do_what_the_originals_do() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 60, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let mut kinds = std::collections::BTreeMap::new();
    let seen = std::cell::RefCell::new(&mut kinds);
    runner
        .run(&vec(block(), 1..48), |blocks| {
            let program = assemble(&source(&blocks));
            program.check();
            for site in &program.report.sites {
                *seen.borrow_mut().entry(site.kind).or_insert(0) += 1;
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    // The blocks are varied enough to say something about every kind of patch.
    for kind in [
        "replace-mov",
        "replace-instruction",
        "short-jump",
        "displace-forward",
        "displace-backward",
    ] {
        assert!(kinds.contains_key(kind), "{kind} in {kinds:?}");
    }
}
