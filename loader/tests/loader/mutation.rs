//! Whatever the bytes are: no panic, and no plan that reaches outside user space or the file.

use crate::fixture::*;
use hx_loader::*;
use proptest::prelude::*;

fn check_plan(plan: &ImagePlan, file_len: u64) {
    assert!(!plan.mappings.is_empty());
    assert!(plan.span.start.is_multiple_of(PAGE_SIZE) && plan.span.end.is_multiple_of(PAGE_SIZE));
    assert!(plan.span.start < plan.span.end && plan.span.end <= TASK_SIZE);
    assert!(plan.align.is_power_of_two() && plan.align >= PAGE_SIZE);
    assert!(plan.entry < TASK_SIZE);
    let mut end = plan.span.start;
    for mapping in &plan.mappings {
        let range = &mapping.range;
        assert!(range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE));
        assert!(range.start < range.end && range.end <= plan.span.end);
        assert!(range.start >= end, "overlap at {:#x}", range.start);
        end = range.end;
        if plan.kind == ImageKind::Fixed {
            assert!(range.start >= MMAP_MIN_ADDR);
        }
        if let Backing::File { offset, clear } = &mapping.backing {
            assert!(offset.is_multiple_of(PAGE_SIZE));
            let file_end = offset + (range.end - range.start);
            assert!(file_end <= file_len.next_multiple_of(PAGE_SIZE));
            if let Some(clear) = clear {
                assert!(mapping.protection.write);
                assert!(clear.start < clear.end && clear.end - clear.start < PAGE_SIZE);
                assert!(range.start <= clear.start && clear.end <= range.end);
            }
        }
    }
    let layout = Layout::new(Aslr::Disabled, 8 << 20);
    let bias = match layout.placement(plan) {
        Placement::Fixed { bias } => bias,
        Placement::MmapArea { len } => {
            plan.bias_in(layout.mmap_base.wrapping_sub(len)..layout.mmap_base)
        }
    };
    assert!(plan.kind == ImageKind::Relocatable || bias == 0);
    assert!(bias.is_multiple_of(plan.align));
    let _ = layout.brk_start(plan, bias);
}

fn check(bytes: &[u8]) {
    for role in [Role::Program, Role::Interpreter] {
        let Ok(elf) = Elf::parse(bytes, role) else { continue };
        let _ = (elf.relro(), elf.tls(), elf.property(), elf.stack_execution());
        if let Ok(plan) = elf.plan() {
            check_plan(&plan, bytes.len() as u64);
        }
    }
}

fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x8000_u64,
        (0..0x10_u64).prop_map(|pages| pages * PAGE_SIZE),
        (0..0x2000_u64).prop_map(|below| TASK_SIZE - below),
        (0..0x2000_u64).prop_map(|below| u64::MAX - below),
        (0..64_u32).prop_map(|shift| 1 << shift),
    ]
}

fn segment() -> impl Strategy<Value = Segment> {
    let numbers = (interesting(), interesting(), interesting(), interesting(), interesting());
    let p_type = prop_oneof![4 => Just(PT_LOAD), 1 => Just(PT_INTERP), 1 => Just(PT_TLS)];
    let congruent = any::<bool>();
    (p_type, 0..8_u32, numbers, congruent).prop_map(
        |(p_type, flags, (offset, vaddr, filesz, memsz, align), congruent)| {
            let offset =
                if congruent { ((offset % 0x3000) & !0xfff) | (vaddr & 0xfff) } else { offset };
            let filesz = if congruent { filesz % 0x1000 } else { filesz };
            Segment { p_type, flags, offset, vaddr, filesz, memsz, align }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        check(&bytes);
    }

    #[test]
    fn changed_bytes(
        e_type in prop_oneof![Just(ET_EXEC), Just(ET_DYN)],
        changes in prop::collection::vec((0..232_usize, any::<u8>()), 1..6),
        length in 0..0x2121_usize,
    ) {
        let mut bytes = ElfFile::with_interpreter(e_type, b"/lib/ld.so\0").bytes();
        for (offset, byte) in changes {
            bytes[offset] = byte;
        }
        check(&bytes);
        check(&bytes[..length]);
    }

    #[test]
    fn arbitrary_segments(
        e_type in prop_oneof![Just(ET_EXEC), Just(ET_DYN)],
        entry in interesting(),
        segments in prop::collection::vec(segment(), 0..8),
    ) {
        let file = ElfFile { segments, entry, ..ElfFile::valid(e_type) };
        check(&file.bytes());
    }

    #[test]
    fn nearby_segments(
        e_type in prop_oneof![Just(ET_EXEC), Just(ET_DYN)],
        segments in prop::collection::vec((0..0x8000_u64, 0..0x2800_u64, 0..0x2000_u64, 0..8_u32), 1..8),
    ) {
        // Segments that are right in themselves: only their places relative to each other vary.
        let segments: Vec<Segment> = segments
            .into_iter()
            .map(|(place, memsz, offset, flags)| {
                let vaddr = 0x40_0000 + place;
                load((offset & !0xfff) | (vaddr & 0xfff), vaddr, memsz.min(0x120), memsz, flags)
            })
            .collect();
        let file = ElfFile { segments: segments.clone(), ..ElfFile::valid(e_type) };
        let bytes = file.bytes();
        check(&bytes);
        let ranges = segments.iter().map(|segment| segment.vaddr..segment.vaddr + segment.memsz);
        let ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
        let overlap = ranges.iter().enumerate().any(|(index, a)| {
            ranges[..index].iter().any(|b| a.start < b.end && b.start < a.end)
        });
        match Elf::parse(&bytes[..], Role::Program).unwrap().plan() {
            Ok(plan) => {
                prop_assert!(!overlap);
                // Every byte of every segment is in some mapping.
                for range in ranges {
                    for address in [range.start, range.end - 1] {
                        let found = plan.mappings.iter().any(|m| m.range.contains(&address));
                        prop_assert!(found, "{address:#x} is not mapped");
                    }
                }
            }
            Err(ElfError::OverlappingSegments { .. }) => prop_assert!(overlap),
            Err(ElfError::NoLoadableSegment) => prop_assert!(ranges.is_empty()),
            Err(error) => prop_assert!(matches!(error, ElfError::SegmentTruncated { .. }), "{error}"),
        }
    }

    #[test]
    fn arbitrary_scripts(bytes in prop::collection::vec(prop_oneof![
        any::<u8>(), Just(b' '), Just(b'\t'), Just(b'\n'), Just(0), Just(b'x')
    ], 0..300)) {
        let _ = Script::parse(&bytes);
        let line = [b"#!".to_vec(), bytes].concat();
        if let Ok(script) = Script::parse(&line) {
            let script = script.unwrap();
            prop_assert!(script.interpreter.len() < 256);
            prop_assert!(!script.interpreter.iter().any(|byte| b" \t\n\0".contains(byte)));
            if let Some(argument) = script.argument {
                prop_assert!(!argument.is_empty() && argument.len() < 256);
                prop_assert!(!argument.iter().any(|byte| b"\n\0".contains(byte)));
                prop_assert!(!b" \t".contains(&argument[0]));
            }
        }
    }
}
