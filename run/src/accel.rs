//! Does KVM work here? Asked once per boot of the host, with a virtual machine.
//!
//! `/dev/kvm` can exist and still not run code at CPL 0 as it should: on some nested clouds such a
//! guest crawls, or dies at its first SSE instruction. So the probe is a guest of a few dozen bytes
//! that counts down from a million, enters long mode, does one SSE operation, and says so. It takes
//! milliseconds where KVM works; where it has not answered within [`TIMEOUT`], it does not.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::{
    cache::Cache,
    error::{Result, reason, say},
    machine::{Engine, Probe},
    settings::Verbosity,
};

/// A working KVM needs about a twentieth of this, most of it for QEMU's own start.
const TIMEOUT: Duration = Duration::from_secs(1);

/// File of the cache that holds the last verdict.
const VERDICT: &str = "accel";

/// What the probe writes to the isa-debug-exit port, and the status that QEMU makes of it.
const ANSWER: u8 = 0x2a;
const ANSWER_STATUS: i32 = (ANSWER as i32) << 1 | 1;

/// What was found out, and under which circumstances.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    boot_id: String,
    qemu: std::path::PathBuf,
    /// Whether this user may open `/dev/kvm`: that may change without a reboot.
    may_open: bool,
    /// Why not; `None` where KVM works.
    obstacle: Option<String>,
}

/// Chooses for `--accel auto`. Says so on standard error where it finds out that KVM does not work,
/// and repeats it only on request, so that the standard error of a run is the program's.
///
/// # Errors
/// Where the probe cannot be started at all.
pub(crate) fn choose(qemu: &Path, cache: Option<&Cache>, verbosity: Verbosity) -> Result<Engine> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let may_open = rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK);
    let known = cache.and_then(|cache| {
        let bytes = fs::read(cache.path(VERDICT)).ok()?;
        let verdict: Verdict = postcard::from_bytes(&bytes).ok()?;
        let is_same = verdict.boot_id == boot_id
            && verdict.qemu == qemu
            && verdict.may_open == may_open.is_ok();
        is_same.then_some(verdict)
    });
    let is_news = known.is_none();
    let verdict = match known {
        Some(verdict) => verdict,
        None => {
            let obstacle = match may_open {
                Err(error) => Some(format!("/dev/kvm: {}", reason(&error.into()))),
                Ok(()) => probe(qemu, Engine::Kvm)?,
            };
            let may_open = may_open.is_ok();
            let verdict = Verdict { boot_id, qemu: qemu.into(), may_open, obstacle };
            if let (Some(cache), Ok(bytes)) = (cache, postcard::to_stdvec(&verdict)) {
                // Not being able to remember it is no reason not to run.
                let _ = cache.write(&cache.path(VERDICT), &bytes);
            }
            verdict
        }
    };
    let Some(obstacle) = verdict.obstacle else { return Ok(Engine::Kvm) };
    if verbosity == Verbosity::Verbose || (is_news && verbosity > Verbosity::Quiet) {
        say(&format!("KVM does not work here ({obstacle}); emulating the CPU, which is slower"));
    }
    Ok(Engine::Tcg)
}

/// Runs the probe; `None` where it answered.
fn probe(qemu: &Path, engine: Engine) -> Result<Option<String>> {
    let mut probe = Probe::start(qemu, engine, &guest())?;
    let begin = Instant::now();
    while begin.elapsed() < TIMEOUT {
        if let Some(status) = probe.try_wait()? {
            return Ok(match status.code() {
                Some(ANSWER_STATUS) => None,
                _ => Some(probe.complaint().unwrap_or_else(|| "a test guest crashed".into())),
            });
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(Some("a test guest did not get through".into()))
}

/// Physical address of the probe, and of its page tables behind it.
pub(crate) const BASE: u32 = 1 << 20;
const TABLES: u32 = BASE + 0x1000;

/// The probe: an ELF64 file with one segment and a PVH note (Xen's `public/arch-x86/hvm/start_info.h`).
/// QEMU starts it in 32-bit protected mode without paging (Xen's `docs/misc/pvh.pandoc`).
fn guest() -> Vec<u8> {
    let mut code = Code::default();
    // A million steps at CPL 0.
    code.put(&[0xb9]); // mov ecx, 1000000
    code.put(&1_000_000u32.to_le_bytes());
    code.put(&[0x49, 0x75, 0xfd]); // dec ecx; jnz to the dec
    // Page tables: 1 GiB mapped to itself by 2 MiB pages, of which one is enough.
    for (at, value) in [
        (TABLES, (TABLES + 0x1000) | 3),
        (TABLES + 0x1000, (TABLES + 0x2000) | 3),
        (TABLES + 0x2000, 0x83),
    ] {
        code.put(&[0xc7, 0x05]); // mov dword [at], value
        code.put(&at.to_le_bytes());
        code.put(&value.to_le_bytes());
    }
    code.put(&[0xb8]); // mov eax, TABLES
    code.put(&TABLES.to_le_bytes());
    code.put(&[0x0f, 0x22, 0xd8]); // mov cr3, eax
    code.put(&[0xb8, 0x20, 0x06, 0x00, 0x00]); // mov eax, CR4.PAE | OSFXSR | OSXMMEXCPT
    code.put(&[0x0f, 0x22, 0xe0]); // mov cr4, eax
    code.put(&[0xb9, 0x80, 0x00, 0x00, 0xc0]); // mov ecx, IA32_EFER
    code.put(&[0xb8, 0x00, 0x01, 0x00, 0x00, 0x31, 0xd2]); // mov eax, LME; xor edx, edx
    code.put(&[0x0f, 0x30]); // wrmsr
    code.put(&[0xb8, 0x13, 0x00, 0x00, 0x80]); // mov eax, CR0.PG | ET | MP | PE
    code.put(&[0x0f, 0x22, 0xc0]); // mov cr0, eax
    let pointer = code.hole(&[0x0f, 0x01, 0x15]); // lgdt [pointer]
    let target = code.hole(&[0xea]); // ljmp 8:target
    code.put(&[0x08, 0x00]);
    code.fill(target);
    // 64-bit from here.
    code.put(&[0x0f, 0x57, 0xc0]); // xorps xmm0, xmm0
    code.put(&[0xb0, ANSWER, 0xe6, 0xf4]); // mov al, ANSWER; out 0xf4, al
    code.put(&[0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code.fill(pointer);
    let table = BASE + code.bytes.len() as u32 + 6;
    code.put(&15u16.to_le_bytes());
    code.put(&table.to_le_bytes());
    code.put(&0u64.to_le_bytes());
    code.put(&0x0020_9a00_0000_0000_u64.to_le_bytes()); // 64-bit code, present, CPL 0
    elf(&code.bytes)
}

/// Machine code with addresses that are not known yet.
#[derive(Default)]
pub(crate) struct Code {
    bytes: Vec<u8>,
}

impl Code {
    /// Adds instructions.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The code so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes so far: where the next instruction will be.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// A jump with an 8-bit displacement to an instruction not far before.
    pub(crate) fn jump_back(&mut self, opcode: u8, to: usize) {
        let distance = self.bytes.len() + 2 - to;
        self.put(&[opcode, (distance as u8).wrapping_neg()]);
    }

    /// An instruction that ends with a 32-bit address; returns where it is.
    fn hole(&mut self, opcode: &[u8]) -> usize {
        self.put(opcode);
        self.put(&[0; 4]);
        self.bytes.len() - 4
    }

    /// Puts the current address into the hole.
    fn fill(&mut self, hole: usize) {
        let address = BASE + self.bytes.len() as u32;
        self.bytes[hole..hole + 4].copy_from_slice(&address.to_le_bytes());
    }
}

/// An ELF64 file that is started at [`BASE`], with its code there.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE_LEN: u64 = 24;
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + NOTE_LEN;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    let mut word = |bytes: &[u8]| file.extend_from_slice(bytes);
    for half in [2u16, 62] {
        word(&half.to_le_bytes()); // ET_EXEC, EM_X86_64
    }
    word(&1u32.to_le_bytes());
    for long in [u64::from(BASE), HEADER, 0] {
        word(&long.to_le_bytes()); // e_entry, e_phoff, e_shoff
    }
    word(&0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        word(&half.to_le_bytes());
    }
    let (len, base) = (code.len() as u64, u64::from(BASE));
    for (kind, flags, at, address, size, align) in
        [(1u32, 7u32, code_at, base, len, 1u64), (4, 4, note_at, 0, NOTE_LEN, 4)]
    {
        word(&kind.to_le_bytes());
        word(&flags.to_le_bytes());
        for long in [at, address, address, size, size, align] {
            word(&long.to_le_bytes());
        }
    }
    for field in [4u32, 8, 18] {
        word(&field.to_le_bytes()); // name and descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    }
    word(b"Xen\0");
    word(&base.to_le_bytes());
    word(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_a_program_that_answers() {
        let qemu = crate::machine::find_qemu(Path::new("qemu-system-x86_64")).unwrap();
        // TCG does everything right, so that a failure under KVM is KVM's.
        assert_eq!(probe(&qemu, Engine::Tcg).unwrap(), None);
    }

    #[test]
    fn a_verdict_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().into()).unwrap();
        let qemu = crate::machine::find_qemu(Path::new("qemu-system-x86_64")).unwrap();
        let first = choose(&qemu, Some(&cache), Verbosity::Quiet).unwrap();
        let path = cache.path(VERDICT);
        let mut verdict: Verdict = postcard::from_bytes(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(verdict.obstacle.is_none(), first == Engine::Kvm);
        // The opposite, to see that it is not asked for again.
        let (obstacle, opposite) = match first {
            Engine::Kvm => (Some("x".into()), Engine::Tcg),
            Engine::Tcg => (None, Engine::Kvm),
        };
        verdict.obstacle = obstacle;
        fs::write(&path, postcard::to_stdvec(&verdict).unwrap()).unwrap();
        assert_eq!(choose(&qemu, Some(&cache), Verbosity::Quiet).unwrap(), opposite);
        // Another boot is another question.
        verdict.boot_id = "another".into();
        fs::write(&path, postcard::to_stdvec(&verdict).unwrap()).unwrap();
        assert_eq!(choose(&qemu, Some(&cache), Verbosity::Quiet).unwrap(), first);
    }
}
