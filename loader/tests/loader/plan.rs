//! What a plan says of well-formed files with something special about them.

use crate::fixture::*;
use hx_loader::*;

fn plan(file: &ElfFile) -> ImagePlan {
    Elf::parse(&file.bytes()[..], Role::Program).unwrap().plan().unwrap()
}

fn with(e_type: u16, segments: Vec<Segment>) -> ElfFile {
    ElfFile { segments, ..ElfFile::valid(e_type) }
}

const READ_EXECUTE: Protection = Protection { read: true, write: false, execute: true };
const READ_WRITE: Protection = Protection { read: true, write: true, execute: false };
const READ: Protection = Protection { read: true, write: false, execute: false };

fn file(
    range: core::ops::Range<u64>,
    protection: Protection,
    offset: u64,
    clear: Option<core::ops::Range<u64>>,
) -> Mapping {
    Mapping { range, protection, backing: Backing::File { offset, clear } }
}

fn zero(range: core::ops::Range<u64>, protection: Protection) -> Mapping {
    Mapping { range, protection, backing: Backing::Zero }
}

#[test]
fn text_data_and_bss() {
    let plan = plan(&ElfFile::valid(ET_EXEC));
    assert_eq!(plan.kind, ImageKind::Fixed);
    assert_eq!(plan.entry, 0x40_1000);
    assert_eq!(plan.span, 0x40_0000..0x40_6000);
    assert_eq!(plan.code, 0x40_0000..0x40_1100);
    assert_eq!(plan.data, 0x40_3000..0x40_3120);
    assert_eq!((plan.program_headers, plan.program_header_count), (0x40_0040, 2));
    assert_eq!(plan.bias_for(0x5555_5555_4000), 0);
    assert_eq!(
        plan.mappings,
        [
            file(0x40_0000..0x40_2000, READ_EXECUTE, 0, None),
            file(0x40_3000..0x40_4000, READ_WRITE, 0x2000, Some(0x40_3120..0x40_4000)),
            zero(0x40_4000..0x40_6000, READ_WRITE),
        ]
    );
}

#[test]
fn a_later_segment_replaces_a_shared_page() {
    // As linked with -z noseparate-code and tight packing: text ends and data starts in one page.
    let text = load(0, 0x40_0000, 0x1800, 0x1800, R | X);
    let data = load(0x1800, 0x40_1800, 0x100, 0x200, R | W);
    let data_page = file(0x40_1000..0x40_2000, READ_WRITE, 0x1000, Some(0x40_1900..0x40_2000));
    let forwards = plan(&with(ET_EXEC, vec![text, data]));
    assert_eq!(forwards.mappings, [file(0x40_0000..0x40_1000, READ_EXECUTE, 0, None), data_page]);
    let backwards = plan(&with(ET_EXEC, vec![data, text]));
    assert_eq!(backwards.mappings, [file(0x40_0000..0x40_2000, READ_EXECUTE, 0, None)]);
}

#[test]
fn a_segment_in_a_hole_of_a_bss_page_splits_it() {
    let first = load(0, 0x40_0000, 0x800, 0x1800, R | W);
    let second = load(0x1900, 0x40_1900, 0x10, 0x10, R);
    let third = load(0, 0x40_3000, 0, 0x3000, R);
    let plan = plan(&with(ET_EXEC, vec![third, first, second]));
    assert_eq!(
        plan.mappings,
        [
            file(0x40_0000..0x40_1000, READ_WRITE, 0, Some(0x40_0800..0x40_1000)),
            file(0x40_1000..0x40_2000, READ, 0x1000, None),
            zero(0x40_3000..0x40_6000, READ_WRITE),
        ]
    );
}

#[test]
fn a_read_only_page_keeps_the_file_behind_its_end() {
    let plan = plan(&with(ET_EXEC, vec![load(0x1000, 0x40_1000, 0x20, 0x40, R)]));
    assert_eq!(plan.mappings, [file(0x40_1000..0x40_2000, READ, 0x1000, None)]);
}

#[test]
fn data_that_fills_its_last_page_needs_no_clearing() {
    let plan = plan(&with(ET_EXEC, vec![load(0, 0x40_0000, 0x1000, 0x1001, R | W)]));
    assert_eq!(
        plan.mappings,
        [file(0x40_0000..0x40_1000, READ_WRITE, 0, None), zero(0x40_1000..0x40_2000, READ_WRITE),]
    );
}

#[test]
fn protections() {
    for (flags, bits) in [(0, 0), (R, 1), (W, 2), (X, 4), (R | W | X, 7)] {
        let plan = plan(&with(ET_EXEC, vec![load(0, 0x40_0000, 0x100, 0x100, flags)]));
        assert_eq!(plan.mappings[0].protection.bits(), bits);
    }
}

#[test]
fn alignment_above_a_page() {
    let mut file = ElfFile::with_interpreter(ET_DYN, b"/lib/ld.so\0");
    file.segments[2].align = 0x20_0000;
    let plan = plan(&file);
    assert_eq!(plan.align, 0x20_0000);
    let layout = Layout::new(Aslr::Disabled, 8 << 20);
    assert_eq!(layout.placement(&plan), Placement::Fixed { bias: 0x5555_5540_0000 });
    // The same as a static-pie goes to the memory-map area, with room to align it.
    let plan = ImagePlan { interpreter: None, ..plan };
    let len = 0x6000 + 0x1f_f000;
    assert_eq!(layout.placement(&plan), Placement::MmapArea { len });
    for base in [0x7fff_f000_0000_u64, 0x7fff_f000_1000, 0x7fff_f01f_f000, 0x7fff_f012_3000] {
        let bias = plan.bias_in(base..base + len);
        assert_eq!(bias % 0x20_0000, 0);
        assert!(bias >= base && bias + 0x6000 <= base + len, "{base:#x} {bias:#x}");
    }
}

#[test]
fn an_image_linked_away_from_zero_is_moved_as_a_whole() {
    let mut file = ElfFile::with_interpreter(ET_DYN, b"/lib/ld.so\0");
    for segment in &mut file.segments {
        segment.vaddr += 0x7000_0000_0000;
    }
    file.entry += 0x7000_0000_0000;
    let plan = plan(&file);
    let layout = Layout::new(Aslr::Disabled, 8 << 20);
    let Placement::Fixed { bias } = layout.placement(&plan) else { panic!("not fixed") };
    assert_eq!(plan.span.start.wrapping_add(bias), 0x5555_5555_4000);
    assert_eq!(plan.entry.wrapping_add(bias), 0x5555_5555_5000);
    assert_eq!(plan.program_headers.wrapping_add(bias), 0x5555_5555_4040);
    assert_eq!(layout.brk_start(&plan, bias), 0x5555_5555_a000);
}

#[test]
fn headers_outside_every_segment_have_no_address() {
    let plan = plan(&with(ET_EXEC, vec![load(0x1000, 0x40_1000, 0x100, 0x100, R | X)]));
    assert_eq!(plan.program_headers, 0);
}

#[test]
fn notes_for_the_c_library() {
    let mut file = ElfFile::valid(ET_DYN);
    let elf = |file: &ElfFile| Elf::parse(&file.bytes()[..], Role::Program).unwrap();
    assert_eq!(elf(&file).stack_execution(), StackExecution::Default);
    assert_eq!((elf(&file).relro(), elf(&file).tls(), elf(&file).property()), (None, None, None));
    file.segments.extend([
        Segment { p_type: PT_GNU_STACK, ..load(0, 0, 0, 0, R | W | X) },
        Segment { p_type: PT_GNU_RELRO, ..load(0x2000, 0x3000, 0x100, 0x1000, R) },
        Segment { p_type: PT_TLS, ..load(0x2000, 0x3000, 0x10, 0x20, R) },
    ]);
    assert_eq!(elf(&file).stack_execution(), StackExecution::Executable);
    assert_eq!(elf(&file).relro(), Some(0x3000..0x4000));
    assert_eq!(elf(&file).tls(), Some(0x3000..0x3020));
    file.segments[2].flags = R | W;
    assert_eq!(elf(&file).stack_execution(), StackExecution::NotExecutable);
}
