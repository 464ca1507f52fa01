//! Assembles programs, patches them as the kernel would, and runs both.
//!
//! Original and patched program run natively, as processes of the host: the processor is the
//! reference, and no emulator's mistakes come between.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use goblin::elf::{Elf, program_header::PF_X};
use hx_rewriter::{
    Number, Plan,
    plan::{Planned, Report, plan},
};

/// A program and its plan.
pub(crate) struct Program {
    pub(crate) original: Vec<u8>,
    pub(crate) plan: Plan,
    pub(crate) report: Report,
    directory: tempfile::TempDir,
}

/// Assembles and links `source`, which must define the function `blocks`, behind the harness.
pub(crate) fn assemble(source: &str) -> Program {
    let harness = include_str!("harness.s");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("test.s"), format!("{harness}\n{source}\n")).expect("the source is written");
    tool(Command::new("as").arg("-o").arg(path("test.o")).arg(path("test.s")));
    tool(
        Command::new("ld")
            .args(["--no-warn-rwx-segments", "-static", "-o"])
            .arg(path("test"))
            .arg(path("test.o")),
    );
    let original = fs::read(path("test")).expect("the linked program");
    let Planned { plan, report } = plan(&original).expect("a plan");
    Program { original, plan, report, directory }
}

/// A shared object of `source`, with relocations in its text where it asks for them.
pub(crate) fn shared_object(source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("shared.s"), source).expect("the source is written");
    tool(Command::new("as").arg("-o").arg(path("shared.o")).arg(path("shared.s")));
    let mut link = Command::new("ld");
    tool(link.args(["-shared", "-z", "notext", "-o"]).arg(path("shared")).arg(path("shared.o")));
    fs::read(path("shared")).expect("the shared object")
}

/// The machine code of `source`, which must be position independent.
pub(crate) fn flat(source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("flat.s"), source).expect("the source is written");
    tool(Command::new("as").arg("-o").arg(path("flat.o")).arg(path("flat.s")));
    let mut copy = Command::new("objcopy");
    tool(copy.args(["-O", "binary", "-j", ".text"]).arg(path("flat.o")).arg(path("flat")));
    fs::read(path("flat")).expect("the machine code")
}

fn tool(command: &mut Command) {
    let output = command.output().expect("binutils are installed");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {messages}");
}

impl Program {
    /// The report on the only site in the function `name`.
    pub(crate) fn site(&self, name: &str) -> hx_rewriter::plan::SiteReport {
        let sites = self.sites(name);
        assert_eq!(sites.len(), 1, "sites in {name}");
        sites[0].clone()
    }

    /// The reports on the sites in the function `name`, from its label to the next `.size`.
    pub(crate) fn sites(&self, name: &str) -> Vec<hx_rewriter::plan::SiteReport> {
        let (start, size) = symbol(&self.original, name);
        let range = start..start + size;
        assert!(size > 0, "{name} has a size");
        self.report.sites.iter().filter(|site| range.contains(&site.address)).cloned().collect()
    }

    /// The program with its plan applied and its stubs filled in.
    pub(crate) fn patched(&self) -> Vec<u8> {
        let mut file = self.original.clone();
        let elf = Elf::parse(&self.original).expect("the linker's output");
        let (stubs, offset, room) = section(&elf, "stubs");
        let placement = self.plan.place(0, stubs).expect("the harness aligns the stubs");
        let len = self.plan.stub_area_len();
        let (entry, _) = symbol(&self.original, "kernel_entry");
        // An entry for a number believes it: if the planner was wrong, the wrong call is made.
        let mut thunks = Vec::new();
        self.plan.write_stubs(&placement, 0, &mut file[offset..offset + len], |number| {
            let Number::Known(number) = number else { return entry };
            let thunk = stubs + (len + thunks.len()) as u64;
            thunks.push(0xb8);
            thunks.extend_from_slice(&number.to_le_bytes());
            thunks.push(0xe9);
            thunks.extend_from_slice(&(entry.wrapping_sub(thunk + 10) as u32).to_le_bytes());
            thunk
        });
        assert!(len + thunks.len() <= room);
        file[offset + len..offset + len + thunks.len()].copy_from_slice(&thunks);
        patch_segments(&elf, &self.plan, &placement, &mut file);

        let (_, offset, room) = section(&elf, "resumptions");
        let mut table = Vec::new();
        for address in
            elf.program_headers.iter().filter(|p| p.p_flags & PF_X != 0).flat_map(|p| p.vm_range())
        {
            if let Some(resume) = self.plan.resume_address(&placement, address as u64) {
                table.extend_from_slice(&(address as u64).to_le_bytes());
                table.extend_from_slice(&resume.to_le_bytes());
            }
        }
        assert!(table.len() < room);
        file[offset..offset + table.len()].copy_from_slice(&table);
        file
    }

    /// Runs the original and the patched program and checks that they cannot be told apart.
    pub(crate) fn check(&self) {
        let original = self.run("original", &self.original);
        assert!(original.status.success(), "original: {:?}", original.status);
        let patched = self.run("patched", &self.patched());
        assert_eq!(original.status, patched.status, "patched");
        let runs = original.stdout.chunks(DUMP_LEN).zip(patched.stdout.chunks(DUMP_LEN));
        for (n, (before, after)) in runs.enumerate() {
            let Some(at) = before.iter().zip(after).position(|(a, b)| a != b) else { continue };
            let word = at / 8 * 8;
            panic!(
                "run {n} differs in {}: {:02x?} became {:02x?}\n{}",
                REGISTERS.get(word / 8).copied().unwrap_or("vector registers or stack"),
                &before[word..word + 8],
                &after[word..word + 8],
                self.report.sites.iter().map(|s| s.line() + "\n").collect::<String>(),
            );
        }
        assert_eq!(original.stdout.len(), patched.stdout.len());
        assert!(!original.stdout.is_empty());
    }

    fn run(&self, name: &str, bytes: &[u8]) -> Output {
        run(&executable(self.directory.path(), name, bytes), &[])
    }
}

/// Bytes that the harness writes for each run: registers, flags, vector registers, stack.
const DUMP_LEN: usize = 136 + 256 + 1024;

const REGISTERS: [&str; 17] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rflags",
];

/// Applies `plan` to the executable segments of `file`, page by page as they would be mapped.
pub(crate) fn patch_segments(
    elf: &Elf<'_>,
    plan: &Plan,
    placement: &hx_rewriter::Placement,
    file: &mut [u8],
) {
    for segment in elf.program_headers.iter().filter(|p| p.p_flags & PF_X != 0) {
        let bytes = &mut file[segment.file_range()];
        let mut address = segment.p_vaddr;
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = (4096 - address % 4096).min(rest.len() as u64) as usize;
            let (page, next) = rest.split_at_mut(len);
            plan.patch_page(placement, placement.load_bias() + address, page);
            address += len as u64;
            rest = next;
        }
    }
}

/// Writes an executable file.
pub(crate) fn executable(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let path = directory.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::write(&path, bytes).expect("the program is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("and made executable");
    path
}

/// Runs a program; a fork of another test may still hold the file open for writing.
pub(crate) fn run(path: &Path, arguments: &[&str]) -> Output {
    loop {
        let output = Command::new(path).args(arguments).stdin(Stdio::null()).output();
        match output {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::yield_now();
            }
            output => return output.expect("the program starts"),
        }
    }
}

pub(crate) fn symbol(file: &[u8], name: &str) -> (u64, u64) {
    let elf = Elf::parse(file).expect("the linker's output");
    elf.syms
        .iter()
        .find(|symbol| elf.strtab.get_at(symbol.st_name) == Some(name))
        .map(|symbol| (symbol.st_value, symbol.st_size))
        .unwrap_or_else(|| panic!("no symbol {name}"))
}

/// Address, file offset and length of a section.
fn section(elf: &Elf<'_>, name: &str) -> (u64, usize, usize) {
    elf.section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(name))
        .map(|s| (s.sh_addr, s.sh_offset as usize, s.sh_size as usize))
        .unwrap_or_else(|| panic!("no section {name}"))
}
