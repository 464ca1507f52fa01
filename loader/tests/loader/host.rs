//! Real programs: what the plan says is what the host's Linux maps.

use hx_loader::*;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles a C program with the host's gcc, which these tests need.
pub(crate) fn compile(source: &str, options: &[&str], output: &Path) {
    compile_with("gcc", source, options, output);
}

fn compile_with(compiler: &str, source: &str, options: &[&str], output: &Path) {
    let source_path = output.with_extension("c");
    fs::write(&source_path, source).unwrap();
    let status =
        Command::new(compiler).args(options).arg("-o").arg(output).arg(&source_path).status();
    let status = status.unwrap_or_else(|error| panic!("{compiler} is needed: {error}"));
    assert!(status.success(), "{compiler} {options:?} failed");
}

fn plan_of(path: &Path, role: Role) -> ImagePlan {
    let bytes = fs::read(path).unwrap();
    Elf::parse(&bytes[..], role).unwrap().plan().unwrap()
}

/// Prints its memory map, and the start of its heap.
const PRINT_MAPS: &str = r#"
#include <stdio.h>
#include <unistd.h>
#ifdef ALIGNED
__attribute__((aligned(0x200000))) char aligned[16] = {1};
#endif
char bss[100000];
int main(void) {
    char line[4096];
    FILE *file = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, file)) fputs(line, stdout);
    file = fopen("/proc/self/stat", "r");
    fputs(fgets(line, sizeof line, file), stdout);
    bss[50000] = 1;
}
"#;

/// A line of `/proc/self/maps`.
struct Line {
    range: Range<u64>,
    protection: String,
    offset: u64,
    name: String,
}

struct NativeRun {
    lines: Vec<Line>,
    /// Fields of `/proc/self/stat`, the first being number 3 (state).
    stat: Vec<String>,
}

impl NativeRun {
    /// Runs a program that prints `/proc/self/maps` (and `/proc/self/stat`) without ASLR.
    fn new(program: &Path, arguments: &[&str]) -> Self {
        let output =
            Command::new("setarch").arg("-R").arg(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (stat, maps): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.contains(") "));
        let stat =
            stat.first().and_then(|stat| stat.rsplit_once(") ")).map_or("", |(_, rest)| rest);
        let lines = maps.iter().map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let mut field = || fields.next().unwrap_or_default();
            let number = |digits| u64::from_str_radix(digits, 16).unwrap();
            let (start, end) = field().split_once('-').unwrap();
            let (protection, offset) = (field().to_owned(), number(field()));
            let (_, _, name) = (field(), field(), field().to_owned());
            Line { range: number(start)..number(end), protection, offset, name }
        });
        Self { lines: lines.collect(), stat: stat.split(' ').map(str::to_owned).collect() }
    }

    fn at(&self, address: u64) -> &Line {
        let line = self.lines.iter().find(|line| line.range.contains(&address));
        line.unwrap_or_else(|| panic!("{address:#x} is not mapped natively"))
    }

    fn named(&self, name: &str) -> &Line {
        let line = self.lines.iter().find(|line| line.name == name);
        line.unwrap_or_else(|| panic!("{name} is not mapped natively"))
    }

    /// Field of `/proc/self/stat` by its number in `man 5 proc`.
    fn stat(&self, field: usize) -> u64 {
        self.stat[field - 3].parse().unwrap()
    }
}

/// Compares each page of the plan, loaded at `bias`, with the native map.
fn assert_same_pages(plan: &ImagePlan, elf: &Elf, bias: u64, path: &Path, native: &NativeRun) {
    let name = fs::canonicalize(path).unwrap().to_str().unwrap().to_owned();
    let relro = elf.relro().unwrap_or(0..0);
    for mapping in &plan.mappings {
        for page in mapping.range.clone().step_by(PAGE_SIZE as usize) {
            let address = page.wrapping_add(bias);
            let line = native.at(address);
            match &mapping.backing {
                Backing::File { offset, .. } => {
                    assert_eq!(line.name, name, "{page:#x}");
                    let native_offset = line.offset + (address - line.range.start);
                    assert_eq!(offset + (page - mapping.range.start), native_offset, "{page:#x}");
                }
                Backing::Zero => assert_ne!(line.name, name, "{page:#x}"),
            }
            // The C library has made these pages read-only by now.
            let relro_end = relro.end & !(PAGE_SIZE - 1);
            if !(relro.start & !(PAGE_SIZE - 1)..relro_end).contains(&page) {
                let bit = |set, letter| if set { letter } else { '-' };
                let Protection { read, write, execute } = mapping.protection;
                let expected = [bit(read, 'r'), bit(write, 'w'), bit(execute, 'x'), 'p'];
                assert_eq!(line.protection, String::from_iter(expected), "{page:#x}");
            }
        }
    }
    // Nothing else of the file is mapped.
    let native_len: u64 = native
        .lines
        .iter()
        .filter(|line| line.name == name)
        .map(|line| line.range.end - line.range.start)
        .sum();
    let planned_len: u64 = plan
        .mappings
        .iter()
        .filter(|mapping| matches!(mapping.backing, Backing::File { .. }))
        .map(|mapping| mapping.range.end - mapping.range.start)
        .sum();
    assert_eq!(native_len, planned_len);
}

/// Runs a program that prints its maps natively, and compares everything with what we would do.
fn assert_loads_like_linux(program: &Path, arguments: &[&str]) {
    let program = &fs::canonicalize(program).unwrap();
    let native = NativeRun::new(program, arguments);
    let bytes = fs::read(program).unwrap();
    let elf = Elf::parse(&bytes[..], Role::Program).unwrap();
    let plan = elf.plan().unwrap();
    let layout = Layout::new(Aslr::Disabled, 8 << 20);
    assert_eq!(native.named("[stack]").range.end, layout.stack_top);
    // With nothing in its way, the first thing in the memory-map area ends where the area ends.
    let bias = match layout.placement(&plan) {
        Placement::Fixed { bias } => bias,
        Placement::MmapArea { len } => plan.bias_in(layout.mmap_base - len..layout.mmap_base),
    };
    assert_same_pages(&plan, &elf, bias, program, &native);
    let brk = layout.brk_start(&plan, bias);
    assert_eq!(native.named("[heap]").range.start, brk);
    if native.stat.len() > 40 {
        assert_eq!(native.stat(26), plan.code.start.wrapping_add(bias), "start_code");
        assert_eq!(native.stat(27), plan.code.end.wrapping_add(bias), "end_code");
        assert_eq!(native.stat(45), plan.data.start.wrapping_add(bias), "start_data");
        assert_eq!(native.stat(46), plan.data.end.wrapping_add(bias), "end_data");
        assert_eq!(native.stat(47), brk, "start_brk");
    }
    if let Some(interpreter) = elf.interpreter() {
        let interpreter = PathBuf::from(str::from_utf8(interpreter).unwrap());
        let bytes = fs::read(&interpreter).unwrap();
        let elf = Elf::parse(&bytes[..], Role::Interpreter).unwrap();
        let plan = elf.plan().unwrap();
        let Placement::MmapArea { len } = layout.placement(&plan) else {
            panic!("{interpreter:?} is not placed in the memory-map area")
        };
        let bias = plan.bias_in(layout.mmap_base - len..layout.mmap_base);
        assert_same_pages(&plan, &elf, bias, &interpreter, &native);
    }
}

#[test]
fn compiled_programs_load_like_linux() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    for options in [
        &["-static", "-no-pie"][..],
        &["-static-pie"],
        &["-pie"],
        &["-no-pie"],
        &["-pie", "-DALIGNED"],
        &["-no-pie", "-DALIGNED"],
        &["-pie", "-Wl,-z,noseparate-code"],
        &["-no-pie", "-static", "-Wl,-z,noseparate-code"],
        &["-pie", "-Wl,-z,norelro"],
        &["-pie", "-Wl,-z,max-page-size=0x200000"],
    ] {
        println!("gcc {options:?}");
        compile(PRINT_MAPS, options, &program);
        assert_loads_like_linux(&program, &[]);
    }
    for options in [&["-static"][..], &["-static-pie"], &[]] {
        println!("musl-gcc {options:?}");
        compile_with("musl-gcc", PRINT_MAPS, options, &program);
        assert_loads_like_linux(&program, &[]);
    }
}

#[test]
fn the_hosts_programs_load_like_linux() {
    assert_loads_like_linux(Path::new("/bin/cat"), &["/proc/self/maps"]);
    assert_loads_like_linux(
        Path::new("/bin/busybox"),
        &["cat", "/proc/self/maps", "/proc/self/stat"],
    );
}

#[test]
fn kinds_of_programs() {
    let busybox = plan_of(Path::new("/bin/busybox"), Role::Program);
    assert_eq!((busybox.kind, busybox.interpreter.as_deref()), (ImageKind::Fixed, None));
    assert_eq!(busybox.stack_execution, StackExecution::NotExecutable);
    let ls = plan_of(Path::new("/bin/ls"), Role::Program);
    assert_eq!(ls.kind, ImageKind::Relocatable);
    assert_eq!(ls.interpreter.as_deref(), Some(&b"/lib64/ld-linux-x86-64.so.2"[..]));
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    compile("int main(void) {}", &["-z", "execstack"], &program);
    assert_eq!(plan_of(&program, Role::Program).stack_execution, StackExecution::Executable);
    compile("_Thread_local int x = 1; int main(void) { return x; }", &["-static"], &program);
    let bytes = fs::read(&program).unwrap();
    assert!(Elf::parse(&bytes[..], Role::Program).unwrap().tls().is_some());
    compile_with("musl-gcc", "int main(void) {}", &[], &program);
    let interpreter = plan_of(&program, Role::Program).interpreter;
    assert_eq!(interpreter.as_deref(), Some(&b"/lib/ld-musl-x86_64.so.1"[..]));
}

#[test]
fn what_is_no_program_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("object");
    compile("int main(void) {}", &["-c"], &object);
    let bytes = fs::read(&object).unwrap();
    assert_eq!(
        Elf::parse(&bytes[..], Role::Program).unwrap_err(),
        ElfError::WrongType { e_type: 1 }
    );
    let text = fs::read("/etc/passwd").unwrap();
    assert_eq!(Elf::parse(&text[..], Role::Program).unwrap_err(), ElfError::BadMagic);
}
