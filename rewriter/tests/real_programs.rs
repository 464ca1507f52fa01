//! Whole programs, patched and run natively beside the originals.
//!
//! A segment for the stubs, and an entry that makes the real system call, are added to statically
//! linked programs of the distribution. Without those programs there is nothing to compare.

mod common;

use std::path::Path;

use common::{executable, flat, patch_segments, run};
use goblin::elf::{Elf, program_header::PT_NOTE};
use hx_rewriter::plan::plan;

/// Where the added segment goes: below where programs are linked.
const STUBS: u64 = 0x20_0000;

/// `file`, patched, with a segment for stubs and entry in place of a note.
fn patched(file: &[u8]) -> Vec<u8> {
    let planned = plan(file).expect("a plan");
    let plan = planned.plan;
    let elf = Elf::parse(file).expect("an ELF file");
    let placement = plan.place(0, STUBS).expect("the program is linked nearby");
    let mut out = file.to_vec();
    patch_segments(&elf, &plan, &placement, &mut out);

    out.resize(out.len().next_multiple_of(4096), 0);
    let offset = out.len();
    let mut segment = vec![0; plan.stub_area_len()];
    let entry = STUBS + plan.stub_area_len() as u64;
    plan.write_stubs(&placement, 0, &mut segment, |_| entry);
    segment.extend(flat(include_str!("common/entry.s")));
    out.extend(&segment);
    let index = elf.program_headers.iter().position(|p| p.p_type == PT_NOTE).expect("a note");
    let at = elf.header.e_phoff as usize + index * 56;
    let (kind, flags) = (1_u32, 5_u32);
    let len = segment.len() as u64;
    let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    for word in [offset as u64, STUBS, STUBS, len, len, 4096] {
        header.extend(word.to_le_bytes());
    }
    out[at..at + 56].copy_from_slice(&header);
    out
}

/// Runs `program` with each of `commands` before and after patching.
fn compare(program: &str, commands: &[&[&str]]) {
    let Ok(original) = std::fs::read(program) else {
        eprintln!("{program} is not installed: nothing compared");
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).expect("a name");
    let patched = executable(directory.path(), name, &patched(&original));
    // Messages name the program as it was called: call both by the same name.
    let unpatched = executable(directory.path(), name, &original);
    for arguments in commands {
        let before = run(&unpatched, arguments);
        let after = run(&patched, arguments);
        assert_eq!(before.status, after.status, "{program} {arguments:?}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&before.stdout), text(&after.stdout), "{program} {arguments:?}");
        assert!(before.stderr.is_empty() == after.stderr.is_empty(), "{program} {arguments:?}");
    }
}

#[test]
fn busybox() {
    compare(
        "/bin/busybox",
        &[
            &["echo", "hello"],
            &["cat", "/etc/passwd"],
            &["ls", "-la", "/usr/lib"],
            &["find", "/etc", "-maxdepth", "2", "-type", "f"],
            &["sha256sum", "/bin/busybox"],
            &["awk", "BEGIN { for (i = 0; i < 10; i++) print i * i }"],
            &["sort", "-r", "/etc/passwd"],
            &["cat", "/does/not/exist"],
            &["sh", "-c", "for i in 1 2 3; do echo $i; done | tr 1-3 a-c; exit 7"],
            &["sh", "-c", "x=$(id -u; echo sub | sed s/sub/shell/); echo $x; kill -TERM $$"],
            &["usleep", "1000"],
        ],
    );
}

#[test]
fn bash() {
    compare(
        "/bin/bash-static",
        &[
            &["-c", "echo hello"],
            &["-c", "for ((i = 0; i < 50; i++)); do echo $((i * i)); done"],
            &["-c", "trap 'echo caught' USR1; kill -USR1 $$; echo after"],
            &["-c", "(exit 3); echo $?; echo a | while read x; do echo \"<$x>\"; done"],
            &["-c", "x=$(echo sub; (echo deeper)); echo \"$x\"; [[ -f /etc/passwd ]] && echo yes"],
            &["-c", "cd /usr && pwd && umask && ulimit -n && type cd"],
            &["-c", "sleep 0.01 & wait; echo $?"],
        ],
    );
}
