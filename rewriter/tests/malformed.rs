//! Damaged and hostile files: an error or a plan that changes nothing it should not, never a panic.

use hx_rewriter::{Plan, plan::plan};
use proptest::{collection::vec, prelude::*, sample::Index};

/// A small program with every table that the planner reads, if this machine has one.
fn seed() -> Vec<u8> {
    ["/lib64/ld-linux-x86-64.so.2", "/proc/self/exe"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .expect("a program to start from")
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    /// A word with a value that breaks arithmetic, at an aligned place.
    Word(Index, u64),
    /// The same, in the ELF header or a program header.
    Header(Index, u64),
    /// The same, in a section header.
    Section(Index, u64),
    /// One stretch copied over another.
    Copy(Index, Index, usize),
    Truncate(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let value = || {
        prop_oneof![
            Just(0),
            Just(1),
            Just(u64::MAX),
            Just(i64::MAX as u64),
            Just(u64::from(u32::MAX)),
            Just(0x1000),
            any::<u64>(),
            0..0x40_0000_u64,
        ]
    };
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        2 => (any::<Index>(), value()).prop_map(|(at, value)| Damage::Word(at, value)),
        4 => (any::<Index>(), value()).prop_map(|(at, value)| Damage::Header(at, value)),
        4 => (any::<Index>(), value()).prop_map(|(at, value)| Damage::Section(at, value)),
        2 => (any::<Index>(), any::<Index>(), 1..4096_usize)
            .prop_map(|(from, to, len)| Damage::Copy(from, to, len)),
        1 => any::<Index>().prop_map(Damage::Truncate),
    ]
}

fn write_word(file: &mut [u8], at: usize, value: u64) {
    let bytes = value.to_le_bytes();
    if let Some(field) = file.get_mut(at..) {
        let len = field.len().min(8);
        field[..len].copy_from_slice(&bytes[..len]);
    }
}

fn apply(file: &mut Vec<u8>, damage: &Damage) {
    if file.is_empty() {
        return;
    }
    let len = file.len();
    match damage {
        Damage::Byte(at, byte) => file[at.index(len)] = *byte,
        Damage::Word(at, value) => write_word(file, at.index(len) & !7, *value),
        // The fields start at multiples of four; most of the file header's are shorter.
        Damage::Header(at, value) => write_word(file, at.index(1024) & !3, *value),
        Damage::Section(at, value) => {
            let headers = file.get(40..48).map_or(0, |field| {
                u64::from_le_bytes(field.try_into().expect("eight bytes")) as usize
            });
            write_word(file, headers.saturating_add(at.index(2048) & !3), *value);
        }
        Damage::Copy(from, to, count) => {
            let (from, to) = (from.index(len), to.index(len));
            let count = (*count).min(len - from).min(len - to);
            file.copy_within(from..from + count, to);
        }
        Damage::Truncate(at) => file.truncate(at.index(len)),
    }
}

/// Plans `file` and uses the plan in every way there is.
fn exercise(file: &[u8]) {
    let Ok(planned) = plan(file) else { return };
    let plan = planned.plan;
    assert_eq!(Plan::decode(&plan.encode()).as_ref(), Ok(&plan));
    let (low, high) = plan.reach();
    let stubs = high.saturating_add(1 << 16) & !0xffff;
    let Ok(placement) = plan.place(0, stubs) else { return };
    for address in plan.sites().iter().map(|site| site.address).chain([low, high]) {
        let page = address / 4096 * 4096;
        let mut bytes = vec![0x90; 4096];
        plan.patch_page(&placement, page, &mut bytes);
        assert!(plan.resume_address(&placement, address).is_none_or(|at| at >= stubs));
    }
    let mut area = vec![0; plan.stub_area_len()];
    plan.write_stubs(&placement, 0, &mut area, |_| 0xffff_ffff_8000_0000);
    for offset in (0..area.len()).step_by(7) {
        if let Some(original) = plan.original_address(&placement, stubs + offset as u64) {
            assert!((low.saturating_sub(256)..high.saturating_add(256)).contains(&original));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_do_no_harm(damages in vec(damage(), 1..24)) {
        let mut file = seed();
        for damage in &damages {
            apply(&mut file, damage);
        }
        exercise(&file);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..2000)) {
        exercise(&bytes);
        let mut file = minimal(&bytes);
        exercise(&file);
        file.truncate(file.len() - bytes.len() / 2);
        exercise(&file);
    }

    /// Text made of the bytes that matter, so that sites are close and overlap.
    #[test]
    fn dense_text_does_no_harm(
        bytes in vec(proptest::sample::select(&[0x0f_u8, 0x05, 0xb8, 0x90, 0xc3, 0xeb, 0x00, 0x48, 0xe8, 0xcc][..]), 0..3000)
    ) {
        exercise(&minimal(&bytes));
    }
}

/// A program whose only segment is `text`, and its entry point the first byte of it.
fn minimal(text: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for (value, len) in [
        (2_u64, 2),
        (62, 2),
        (1, 4),
        (0x40_1000, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (64, 2),
        (0, 2),
        (0, 2),
        // PT_LOAD, readable and executable.
        (1, 4),
        (5, 4),
        (0x1000, 8),
        (0x40_1000, 8),
        (0x40_1000, 8),
        (text.len() as u64, 8),
        (text.len() as u64, 8),
        (4096, 8),
    ] {
        file.extend_from_slice(&value.to_le_bytes()[..len]);
    }
    file.resize(0x1000, 0);
    file.extend_from_slice(text);
    file
}

#[test]
fn minimal_programs_are_planned() {
    let planned = plan(&minimal(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3])).expect("a plan");
    assert_eq!(planned.report.patched, 1);
}

#[test]
fn plans_are_deterministic() {
    let file = seed();
    let first = plan(&file).expect("a plan").plan.encode();
    assert_eq!(first, plan(&file).expect("a plan").plan.encode());
}

#[test]
fn many_sites_are_planned() {
    // Sites as close as they can be.
    let text: Vec<u8> = [0x0f, 0x05, 0x48, 0x89, 0xc7].repeat(200_000);
    let planned = plan(&minimal(&text)).expect("a plan");
    assert_eq!(planned.report.found, 200_000);
}

/// `file` with a second, readable segment that holds `words`.
fn with_data(mut file: Vec<u8>, words: &[u64]) -> Vec<u8> {
    let offset = file.len().next_multiple_of(4096);
    let text_end = 0x40_1000 + (file.len() - 0x1000) as u64;
    let address = text_end.next_multiple_of(4096) + offset as u64 % 4096;
    file[56..58].copy_from_slice(&2_u16.to_le_bytes());
    let len = words.len() as u64 * 8;
    let mut header = [1_u32.to_le_bytes(), 4_u32.to_le_bytes()].concat();
    for word in [offset as u64, address, address, len, len, 4096] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    file[64 + 56..64 + 112].copy_from_slice(&header);
    file.resize(offset, 0);
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    file
}

#[test]
fn pointers_into_a_long_run_that_fails_are_given_up() {
    // Decoding from each pointer to the invalid end anew would take hours.
    let mut text = vec![0xc3];
    text.resize(1 << 20, 0x90);
    text.extend([0x0f, 0x05, 0x06]);
    let words: Vec<u64> = (0..1 << 18).map(|n| 0x40_1001 + n * 4).collect();
    let planned = plan(&with_data(minimal(&text), &words)).expect("a plan");
    assert_eq!(planned.report.found, 0);
}

#[test]
fn code_that_only_data_points_to_is_found() {
    let text = [0xc3, 0x90, 0x90, 0x90, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3];
    let planned = plan(&with_data(minimal(&text), &[0x40_1004])).expect("a plan");
    assert_eq!((planned.report.found, planned.report.patched), (1, 1));
    // Without a number, nothing but the pointer says that it is code.
    let text = [0xc3, 0x90, 0x90, 0x90, 0x48, 0x89, 0xc7, 0x90, 0x90, 0x0f, 0x05, 0xc3];
    let report = plan(&with_data(minimal(&text), &[0x40_1004])).expect("a plan").report;
    assert_eq!(report.left.get("unproven"), Some(&1));
}

#[test]
fn other_files_are_refused() {
    use hx_rewriter::plan::PlanError;
    assert_eq!(plan(b"").err(), Some(PlanError::NotElf));
    assert_eq!(plan(b"#!/bin/sh\n").err(), Some(PlanError::NotElf));
    let mut other = minimal(&[0xc3]);
    other[18] = 183;
    assert_eq!(plan(&other).err(), Some(PlanError::NotX86_64));
    let mut relocatable = minimal(&[0xc3]);
    relocatable[16] = 1;
    assert_eq!(plan(&relocatable).err(), Some(PlanError::NotX86_64));
    let mut header = minimal(&[0xc3]);
    header[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(plan(&header).err(), Some(PlanError::ProgramHeaders));
}

#[test]
fn writable_text_is_left() {
    let mut file = minimal(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    file[68] = 7;
    let report = plan(&file).expect("a plan").report;
    assert_eq!(report.left.get("writable"), Some(&1));
}
