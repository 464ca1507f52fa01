//! The initial stack: against an independent reader, and byte for byte against the host's Linux.

use crate::host::compile;
use hx_loader::*;
use std::collections::HashMap;
use std::process::Command;

const PLACE: StackPlace = StackPlace { top: 0x7fff_ffff_f000, jitter: 0 };
const LIMIT: u64 = 8 << 20;

/// Memory from the stack pointer to the top, read as a program would.
struct Reader<'a> {
    base: u64,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn word(&self, address: u64) -> u64 {
        let offset = (address - self.base) as usize;
        u64::from_le_bytes(self.bytes[offset..offset + 8].try_into().unwrap())
    }

    fn string(&self, address: u64) -> Vec<u8> {
        let bytes = &self.bytes[(address - self.base) as usize..];
        bytes.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    /// Words from `address` up to a NULL; the address after it.
    fn list(&self, mut address: u64) -> (Vec<u64>, u64) {
        let mut words = vec![];
        while self.word(address) != 0 {
            words.push(self.word(address));
            address += 8;
        }
        (words, address + 8)
    }
}

/// What a C library's startup code finds.
struct Found {
    argc: u64,
    argv: Vec<u64>,
    env: Vec<u64>,
    auxv: Vec<(u64, u64)>,
    auxv_start: u64,
    auxv_end: u64,
}

fn read(reader: &Reader<'_>, stack_pointer: u64) -> Found {
    assert_eq!(stack_pointer % 16, 0);
    let argc = reader.word(stack_pointer);
    let (argv, next) = reader.list(stack_pointer + 8);
    let (env, auxv_start) = reader.list(next);
    let mut auxv = vec![];
    let mut address = auxv_start;
    loop {
        let entry = (reader.word(address), reader.word(address + 8));
        address += 16;
        auxv.push(entry);
        if entry.0 == 0 {
            break;
        }
    }
    Found { argc, argv, env, auxv, auxv_start, auxv_end: address }
}

fn aux_values() -> AuxValues {
    AuxValues {
        vdso: Some(0x7fff_f7fc_1000),
        min_signal_stack: 3632,
        hwcap: 0x1f8b_fbff,
        hwcap2: 2,
        program_headers: 0x40_0040,
        program_header_count: 9,
        interpreter_base: 0x7fff_f7fc_a000,
        entry: 0x40_1000,
        uid: 1,
        euid: 2,
        gid: 3,
        egid: 4,
        secure: true,
        rseq: Some((28, 32)),
    }
}

#[test]
fn an_independent_reader_finds_everything() {
    let argv: Vec<&[u8]> = vec![b"prog", b"", b"two words"];
    let env: Vec<&[u8]> = vec![b"HOME=/root", b"EMPTY="];
    let random = *b"0123456789abcdef";
    for jitter in [0, 1, 15, 16, 4711, 8191] {
        let place = StackPlace { jitter, ..PLACE };
        let arguments = Arguments::new(b"/bin/prog", &argv, &env, LIMIT).unwrap();
        let stack = InitialStack::build(&arguments, place, &random, &aux_values());
        let reader = Reader { base: stack.stack_pointer, bytes: &stack.bytes };
        assert_eq!(stack.stack_pointer + stack.bytes.len() as u64, place.top);
        let found = read(&reader, stack.stack_pointer);
        assert_eq!(found.argc, 3);
        let strings = |list: &[u64]| list.iter().map(|at| reader.string(*at)).collect::<Vec<_>>();
        assert_eq!(strings(&found.argv), argv);
        assert_eq!(strings(&found.env), env);

        let slice = |start: u64, end: u64| {
            &stack.bytes
                [(start - stack.stack_pointer) as usize..(end - stack.stack_pointer) as usize]
        };
        assert_eq!(slice(stack.arg_start, stack.arg_end), b"prog\0\0two words\0");
        assert_eq!(slice(stack.env_start, stack.env_end), b"HOME=/root\0EMPTY=\0");
        assert_eq!(slice(found.auxv_start, found.auxv_end), stack.auxv);

        let values: HashMap<u64, u64> = found.auxv.iter().copied().collect();
        assert_eq!(values.len(), found.auxv.len(), "no key occurs twice");
        assert_eq!(reader.string(values[&31]), b"/bin/prog", "AT_EXECFN");
        assert_eq!(reader.string(values[&15]), b"x86_64", "AT_PLATFORM");
        assert_eq!(slice(values[&25], values[&25] + 16), random, "AT_RANDOM");
        let numbers = [
            (33, 0x7fff_f7fc_1000),
            (51, 3632),
            (16, 0x1f8b_fbff),
            (6, 4096),
            (17, 100),
            (3, 0x40_0040),
            (4, 56),
            (5, 9),
            (7, 0x7fff_f7fc_a000),
            (8, 0),
            (9, 0x40_1000),
            (11, 1),
            (12, 2),
            (13, 3),
            (14, 4),
            (23, 1),
            (26, 2),
            (27, 28),
            (28, 32),
        ];
        for (key, value) in numbers {
            assert_eq!(values.get(&key), Some(&value), "auxv key {key}");
        }
        assert_eq!(values.len(), numbers.len() + 4);
    }
}

#[test]
fn an_empty_argv_becomes_one_empty_argument() {
    let none: [&[u8]; 0] = [];
    let arguments = Arguments::new(b"/bin/prog", &none, &none, LIMIT).unwrap();
    let stack = InitialStack::build(&arguments, PLACE, &[0; 16], &aux_values());
    let reader = Reader { base: stack.stack_pointer, bytes: &stack.bytes };
    let found = read(&reader, stack.stack_pointer);
    assert_eq!(found.argc, 1);
    assert_eq!(reader.string(found.argv[0]), b"");
    assert!(found.env.is_empty());
    assert_eq!(stack.arg_end - stack.arg_start, 1);
}

#[test]
fn without_vdso_and_rseq_their_entries_are_missing() {
    let argv = [b"x"];
    let arguments = Arguments::new(b"/x", &argv, &argv[..0], LIMIT).unwrap();
    let aux = AuxValues { vdso: None, rseq: None, ..aux_values() };
    let stack = InitialStack::build(&arguments, PLACE, &[0; 16], &aux);
    let keys: Vec<u8> = stack.auxv.chunks(16).map(|entry| entry[0]).collect();
    assert_eq!(keys, [51, 16, 6, 17, 3, 4, 5, 7, 8, 9, 11, 12, 13, 14, 23, 25, 26, 31, 15, 0]);
}

#[test]
fn limits() {
    let error = |argv: &[Vec<u8>], env: &[Vec<u8>], limit| {
        Arguments::new(b"/x", argv, env, limit).map(|_| ()).map_err(|error| (error, error.errno()))
    };
    let string = |len| vec![b'a'; len];
    // One string: 128 KiB with its NUL.
    assert_eq!(error(&[string(131_071)], &[], LIMIT), Ok(()));
    let too_long = ArgumentError::StringTooLong { length: 131_072 };
    assert_eq!(error(&[string(131_072)], &[], LIMIT), Err((too_long, 7)));
    assert_eq!(error(&[], &[string(131_072)], LIMIT), Err((too_long, 7)));
    // All together: a quarter of the stack limit, pointers and the path "/x" counted.
    let fits = |limit: u64, quarter: usize| {
        let strings = vec![string(65_535); 15];
        let used = 15 * 65_536 + 3 + 16 * 8;
        let last = quarter - used - 1;
        let total = |last| {
            let argv = [strings.clone(), vec![string(last)]].concat();
            error(&argv, &[], limit)
        };
        assert_eq!(total(last), Ok(()));
        let too_large = ArgumentError::TooLarge { limit: quarter as u64 };
        assert_eq!(total(last + 1), Err((too_large, 7)));
    };
    fits(4 << 20, 1 << 20);
    // At least 128 KiB, at most 6 MiB.
    assert_eq!(error(&[string(131_060)], &[], 0), Ok(()));
    assert_eq!(
        error(&[string(131_061)], &[], 0),
        Err((ArgumentError::TooLarge { limit: 131_072 }, 7))
    );
    let many = vec![string(131_000); 49];
    let too_large = ArgumentError::TooLarge { limit: 6 << 20 };
    assert_eq!(error(&many[..48], &[], u64::MAX), Ok(()));
    assert_eq!(error(&many, &[], u64::MAX), Err((too_large, 7)));
    // Pointers alone can be too many.
    assert_eq!(error(&vec![vec![]; 700_000], &[], u64::MAX), Err((too_large, 7)));
    assert_eq!(error(&[b"a\0b".to_vec()], &[], LIMIT), Err((ArgumentError::ContainsNul, 22)));
}

/// Writes its whole stack, from the initial stack pointer to the top without randomisation, and
/// before it the stack pointer.
const DUMP_STACK: &str = r#"
__asm__(".globl _start\n_start: mov %rsp, %rdi\n call dump\n");
static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}
void dump(unsigned long stack_pointer) {
    unsigned long top = 0x7ffffffff000;
    call(1, 1, (long)&stack_pointer, 8);
    for (unsigned long at = stack_pointer; at < top;)
        at += call(1, 1, at, top - at);
    call(231, 0, 0, 0);
}
"#;

#[test]
fn byte_for_byte_as_the_hosts_linux_writes_it() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("dump");
    let options = ["-nostdlib", "-static", "-O1", "-fno-stack-protector", "-fcf-protection=none"];
    compile(DUMP_STACK, &options, &program);
    let path = program.to_str().unwrap().as_bytes();
    for arguments in [vec![], vec!["a"], vec!["one", "", "three words"], vec!["x"; 100]] {
        let mut command = Command::new("setarch");
        command.arg("-R").arg(&program).args(&arguments).env_clear();
        let mut env: Vec<&[u8]> = vec![];
        if arguments.len() != 1 {
            command.env("HOME", "/nowhere");
            env.push(b"HOME=/nowhere");
        }
        let dump = command.output().unwrap();
        assert!(dump.status.success());
        let (stack_pointer, native) = dump.stdout.split_first_chunk::<8>().unwrap();
        let stack_pointer = u64::from_le_bytes(*stack_pointer);

        // Take the values that are the machine's from the dump, build the rest.
        let reader = Reader { base: stack_pointer, bytes: native };
        let found = read(&reader, stack_pointer);
        let values: HashMap<u64, u64> = found.auxv.iter().copied().collect();
        let value = |key| values[&key];
        let random_offset = (value(25) - stack_pointer) as usize;
        let random: [u8; 16] = native[random_offset..random_offset + 16].try_into().unwrap();
        let elf_bytes = std::fs::read(&program).unwrap();
        let plan = Elf::parse(&elf_bytes[..], Role::Program).unwrap().plan().unwrap();
        let aux = AuxValues {
            vdso: values.get(&33).copied(),
            min_signal_stack: value(51),
            hwcap: value(16),
            hwcap2: value(26),
            program_headers: plan.program_headers,
            program_header_count: plan.program_header_count,
            interpreter_base: 0,
            entry: plan.entry,
            uid: value(11) as u32,
            euid: value(12) as u32,
            gid: value(13) as u32,
            egid: value(14) as u32,
            secure: value(23) != 0,
            rseq: values.get(&27).map(|size| (*size, value(28))),
        };
        let argv = [path].into_iter().chain(arguments.iter().map(|argument| argument.as_bytes()));
        let argv: Vec<&[u8]> = argv.collect();
        let arguments = Arguments::new(path, &argv, &env, LIMIT).unwrap();
        let stack = InitialStack::build(&arguments, PLACE, &random, &aux);
        assert_eq!(stack.stack_pointer, stack_pointer);
        assert_eq!(
            read(&Reader { base: stack_pointer, bytes: &stack.bytes }, stack_pointer).auxv,
            found.auxv
        );
        assert!(stack.bytes == native, "the stacks differ");
    }
}
