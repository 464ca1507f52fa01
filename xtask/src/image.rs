//! What the linked kernel must not contain.
//!
//! The kernel shares the CPU's registers and privilege level with the application, so three rules
//! hold for every instruction of the image, whoever compiled it:
//!
//! * no instruction touches vector or x87 registers: a system call preserves them by never using
//!   them;
//! * the instructions that save, restore or reset that state, and those that need privilege, occur
//!   only in `hx_kernel::machine`;
//! * no segment is both writable and executable.
//!
//! An instruction belongs to `machine` if its function does, if it was inlined from there (the
//! line tables tell), or if it stands below a label of assembly code in `kernel/src/machine`.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic};
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, SectionKind, SegmentFlags, SymbolKind,
    elf::{PF_W, PF_X},
};

use crate::{kernel_image, repository};

/// The part of the kernel that may use the machine's own instructions.
const MACHINE: &str = "hx_kernel::machine::";
/// Where it is written.
const MACHINE_FOLDER: &str = "kernel/src/machine/";

/// Why an instruction is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Uses vector, mask or x87 registers as operands: allowed nowhere.
    Vector,
    /// Saves, restores or resets the state of the vector units: `machine` only.
    VectorState,
    /// Needs CPL 0, or I/O privilege, or does something else there than at CPL 3: `machine` only.
    Privileged,
    /// Not an instruction.
    Undecodable,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vector => "vector or x87 instruction",
            Self::VectorState => "vector state instruction outside machine/",
            Self::Privileged => "privileged instruction outside machine/",
            Self::Undecodable => "bytes that are no instruction",
        })
    }
}

/// One instruction that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    address: u64,
    instruction: String,
    class: Class,
}

/// The restricted class of an instruction, if it has one.
fn classify(instruction: &Instruction) -> Option<Class> {
    use Mnemonic::*;
    if instruction.is_invalid() {
        return Some(Class::Undecodable);
    }
    match instruction.mnemonic() {
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Xsave | Xsave64 | Xsavec | Xsavec64
        | Xsaveopt | Xsaveopt64 | Xsaves | Xsaves64 | Xrstor | Xrstor64 | Xrstors | Xrstors64
        | Ldmxcsr | Stmxcsr | Vldmxcsr | Vstmxcsr | Fninit | Fldcw | Fnstcw | Fnclex | Emms
        | Vzeroall | Vzeroupper | Xgetbv => return Some(Class::VectorState),
        Iret | Iretd | Iretq | Sysret | Sysretq | Sysexit | Sysexitq => {
            return Some(Class::Privileged);
        }
        // Long no-ops have operands that are not accessed; `wait` belongs to no unit.
        Nop => return None,
        _ => {}
    }
    let vector_operand = (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_register(operand);
        register.is_vector_register() || register.is_mm() || register.is_st() || register.is_k()
    });
    let x87 = instruction.cpuid_features().iter().any(|feature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
    });
    if vector_operand || x87 {
        Some(Class::Vector)
    } else if instruction.is_privileged() {
        Some(Class::Privileged)
    } else {
        None
    }
}

/// Applies the rules to straight code of one function at `address`.
fn check_code(
    code: &[u8],
    address: u64,
    bitness: u32,
    mut in_machine: impl FnMut(u64) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for instruction in Decoder::with_ip(bitness, code, address, DecoderOptions::NONE) {
        let Some(class) = classify(&instruction) else { continue };
        let address = instruction.ip();
        if class == Class::Vector || !in_machine(address) {
            findings.push(Finding { address, instruction: instruction.to_string(), class });
        }
    }
    findings
}

/// Whether a demangled path names something in `machine`: a function, a closure in one, or a
/// method of one of its types.
fn is_machine_path(path: &str) -> bool {
    path.trim_start_matches(['<', '&', '*']).starts_with(MACHINE)
}

/// The labels that assembly code in `kernel/src/machine` defines, and the width of code, 32 or 64
/// bits, that they stand before.
fn assembly_labels(source: &str) -> Vec<(&str, u32)> {
    let mut bitness = 64;
    let mut labels = Vec::new();
    for line in source.lines().map(str::trim) {
        match line {
            ".code16" => bitness = 16,
            ".code32" => bitness = 32,
            ".code64" => bitness = 64,
            _ => {}
        }
        let Some((label, _)) = line.split_once(':') else { continue };
        let mut characters = label.chars();
        let starts_well = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if starts_well && characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            labels.push((label, bitness));
        }
    }
    labels
}

fn machine_labels(folder: &Path, labels: &mut BTreeMap<String, u32>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {folder:?}"))? {
        let path = entry?.path();
        if path.is_dir() {
            machine_labels(&path, labels)?;
        } else {
            let source = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
            let found = assembly_labels(&source);
            labels.extend(found.into_iter().map(|(label, bits)| (label.to_owned(), bits)));
        }
    }
    Ok(())
}

/// Start of a function or of labelled assembly code.
struct Symbol {
    name: String,
    size: u64,
}

/// Segments, as (address, `p_flags`), that are writable and executable at once.
fn writable_code(segments: impl Iterator<Item = (u64, u32)>) -> Vec<u64> {
    let both = PF_W.0 | PF_X.0;
    segments.filter(|(_, flags)| flags & both == both).map(|(address, _)| address).collect()
}

/// Checks the kernel that was built last.
///
/// # Errors
/// Each broken rule, one per line, or what is wrong with the file.
pub(crate) fn check() -> Result<()> {
    let path = kernel_image();
    let bytes = fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{path:?} is no ELF file"))?;
    let lines = addr2line::Loader::new(&path)
        .map_err(|error| anyhow::anyhow!("no line tables in {path:?}: {error}"))?;
    let mut labels = BTreeMap::new();
    machine_labels(&repository().join(MACHINE_FOLDER), &mut labels)?;

    let mut problems = Vec::new();
    let flags = file.segments().map(|segment| match segment.flags() {
        SegmentFlags::Elf { p_flags, .. } => (segment.address(), p_flags.0),
        _ => (segment.address(), 0),
    });
    for address in writable_code(flags) {
        problems.push(format!("{address:#x}: a segment that is writable and executable"));
    }

    // Of several symbols at one address, the one that has a size says most, then a label of ours.
    let mut symbols: BTreeMap<u64, Symbol> = BTreeMap::new();
    for symbol in file.symbols() {
        let is_code = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown);
        let (Ok(name), true) = (symbol.name(), is_code && symbol.is_definition()) else { continue };
        let known = symbols
            .get(&symbol.address())
            .is_some_and(|known| known.size > 0 || labels.contains_key(&known.name));
        if !known && !name.is_empty() {
            let symbol = (symbol.address(), Symbol { name: name.to_owned(), size: symbol.size() });
            symbols.insert(symbol.0, symbol.1);
        }
    }

    let mut instructions_from = 0;
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let data = section.data()?;
        let end = section.address() + section.size();
        let mut starts: Vec<u64> =
            symbols.range(section.address()..end).map(|(address, _)| *address).collect();
        ensure!(
            starts.first() == Some(&section.address()),
            "section {} of the kernel begins with code that no symbol names",
            section.name()?
        );
        starts.push(end);
        for range in starts.windows(2) {
            let (start, mut stop) = (range[0], range[1]);
            let symbol = &symbols[&start];
            if symbol.size > 0 {
                // What follows is padding.
                stop = stop.min(start + symbol.size);
            }
            let path = format!("{:#}", rustc_demangle::demangle(&symbol.name));
            let assembly = labels.get(&symbol.name);
            let code = usize::try_from(start - section.address())
                .ok()
                .zip(usize::try_from(stop - section.address()).ok());
            let code = code.and_then(|(from, to)| data.get(from..to));
            let code = code.with_context(|| format!("{path} reaches beyond its section"))?;
            instructions_from += 1;
            let findings = check_code(code, start, assembly.copied().unwrap_or(64), |address| {
                assembly.is_some() || is_machine_path(&path) || written_in_machine(&lines, address)
            });
            problems.extend(findings.into_iter().map(|finding| {
                format!(
                    "{:#x}: {}: {} in {path}",
                    finding.address, finding.class, finding.instruction
                )
            }));
        }
    }
    ensure!(instructions_from > 0, "{path:?} holds no code");
    if !problems.is_empty() {
        bail!("the kernel breaks its rules:\n{}", problems.join("\n"));
    }
    println!("kernel image: {instructions_from} functions keep the rules");
    Ok(())
}

/// Whether the code at `address`, or something that it was inlined into, was written in `machine`.
/// (These line tables name functions without their paths, so the file decides.)
fn written_in_machine(lines: &addr2line::Loader, address: u64) -> bool {
    let Ok(mut frames) = lines.find_frames(address) else { return false };
    while let Ok(Some(frame)) = frames.next() {
        let file = frame.location.as_ref().and_then(|location| location.file);
        if file.is_some_and(is_machine_file) {
            return true;
        }
    }
    false
}

fn is_machine_file(file: &str) -> bool {
    file.starts_with(MACHINE_FOLDER) || file.contains(&format!("/{MACHINE_FOLDER}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(code: &[u8]) -> Vec<Class> {
        check_code(code, 0x1000, 64, |_| false).into_iter().map(|finding| finding.class).collect()
    }

    #[test]
    fn vector_instructions_are_found_wherever_they_are() {
        let code = [
            0x48,
            0x89,
            0xc8, // mov rax, rcx
            0x66,
            0x0f,
            0xef,
            0xc0, // pxor xmm0, xmm0
            0xc5,
            0xfd,
            0xef,
            0xc0, // vpxor ymm0, ymm0, ymm0
            0x62,
            0xf1,
            0xfd,
            0x48,
            0xef,
            0xc0, // vpxorq zmm0, zmm0, zmm0
            0x0f,
            0x77 - 0x08,
            0xc1, // movq mm0, mm1
            0xd9,
            0xe8, // fld1
            0xdd,
            0x00, // fld qword [rax]
            0xf2,
            0x0f,
            0x10,
            0x07, // movsd xmm0, [rdi]
            0xc3, // ret
        ];
        assert_eq!(classes(&code), [Class::Vector; 7]);
        let in_machine = check_code(&code, 0x1000, 64, |_| true);
        assert_eq!(in_machine.len(), 7);
        assert_eq!(in_machine[0].address, 0x1003);
        assert_eq!(in_machine[0].instruction, "pxor xmm0,xmm0");
    }

    #[test]
    fn state_and_privileged_instructions_belong_to_the_machine() {
        let state: [&[u8]; 5] = [
            &[0x0f, 0xae, 0x00],       // fxsave [rax]
            &[0x48, 0x0f, 0xae, 0x28], // xrstor64 [rax]
            &[0x0f, 0xc7, 0x20],       // xsavec [rax]
            &[0xdb, 0xe3],             // fninit
            &[0x0f, 0xae, 0x10],       // ldmxcsr [rax]
        ];
        let privileged: [&[u8]; 15] = [
            &[0xfa],             // cli
            &[0xfb],             // sti
            &[0xf4],             // hlt
            &[0x0f, 0x30],       // wrmsr
            &[0x0f, 0x32],       // rdmsr
            &[0x0f, 0x01, 0x38], // invlpg [rax]
            &[0x0f, 0x22, 0xd8], // mov cr3, rax
            &[0x0f, 0x20, 0xd0], // mov rax, cr2
            &[0x0f, 0x23, 0xf8], // mov dr7, rax
            &[0xec],             // in al, dx
            &[0xe6, 0xf4],       // out 0xf4, al
            &[0x48, 0xcf],       // iretq
            &[0x0f, 0x01, 0x10], // lgdt [rax]
            &[0x0f, 0x00, 0xd8], // ltr ax
            &[0x0f, 0x01, 0xf8], // swapgs
        ];
        for (codes, class) in
            [(&state[..], Class::VectorState), (&privileged[..], Class::Privileged)]
        {
            for code in codes {
                assert_eq!(classes(code), [class], "{code:02x?}");
                assert_eq!(check_code(code, 0, 64, |_| true), [], "{code:02x?}");
            }
        }
    }

    #[test]
    fn ordinary_code_passes() {
        let code = [
            0x55, // push rbp
            0x48, 0x89, 0xe5, // mov rbp, rsp
            0xf3, 0x48, 0xab, // rep stosq
            0x0f, 0x31, // rdtsc
            0x48, 0x0f, 0xc7, 0x0f, // cmpxchg16b [rdi]
            0xc4, 0xe2, 0xf8, 0xf2, 0xc1, // andn rax, rax, rcx: VEX, but general registers
            0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, // nop word [rax+rax]
            0xf3, 0x90, // pause
            0x0f, 0x0b, // ud2
            0x0f, 0x05, // syscall
            0x5d, 0xc3, // pop rbp; ret
        ];
        assert_eq!(classes(&code), []);
        assert_eq!(classes(&[0x06]), [Class::Undecodable]);
    }

    #[test]
    fn only_paths_of_the_machine_count_as_its_own() {
        assert!(is_machine_path("hx_kernel::machine::pc::halt"));
        assert!(is_machine_path("<hx_kernel::machine::pc::Pc as hx_syscalls::Platform>::park"));
        assert!(is_machine_path("hx_kernel::machine::pc::boot::{closure#0}"));
        assert!(!is_machine_path("hx_kernel::memory::map"));
        assert!(!is_machine_path("hx_kernel::machinery::map"));
        assert!(!is_machine_path("core::ptr::drop_in_place::<hx_kernel::machine::pc::Pc>"));
    }

    #[test]
    fn only_files_of_the_machine_count_as_its_own() {
        assert!(is_machine_file("/work/kernel/src/machine/pc/cpu.rs"));
        assert!(is_machine_file("kernel/src/machine/mod.rs"));
        assert!(!is_machine_file("/work/kernel/src/sched.rs"));
        assert!(!is_machine_file("/work/kernel/src/machine.rs"));
    }

    #[test]
    fn labels_come_with_their_width() {
        let source = "global_asm!(r#\"\n  .code32\npvh_start:\n2:  mov eax, 1\n\t.code64\n\
                      _long_mode: xor eax, eax\n mov rax, fs:[0]\n\"#); // path::to: x";
        assert_eq!(assembly_labels(source), [("pvh_start", 32), ("_long_mode", 64)]);
    }

    #[test]
    fn code_segments_are_read_only() {
        let (r, w, x) = (4, 2, 1);
        let segments = [(0x1000, r | x), (0x2000, r | w), (0x3000, r | w | x), (0x4000, w | x)];
        assert_eq!(writable_code(segments.into_iter()), [0x3000, 0x4000]);
    }
}
