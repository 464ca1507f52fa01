use alloc::{borrow::ToOwned, boxed::Box, string::ToString, sync::Arc, vec, vec::Vec};
use std::fs;

use hx_abi::{
    config::{RunConfig, Stream},
    cpio,
};
use linux_raw_sys::general as linux;

use super::{Archive, BootError, boot};
use crate::{
    Errno,
    mm::Protection,
    platform::ThreadStart,
    task::{Thread, signal::SignalNumber},
    testing::{self, Machine, run_as, test_config},
    user::{UserAddr, UserPtr, read_bytes, read_c_string},
};

/// An archive of (path, mode, content).
fn archive(members: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, mode, data) in members {
        let metadata = cpio::Metadata { mode: *mode, nlink: 1, ..cpio::Metadata::default() };
        let at = bytes.len() as u64;
        bytes.extend(cpio::member_header(at, path.as_bytes(), &metadata, data.len() as u64));
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len() + cpio::padding(data.len() as u64), 0);
    }
    bytes.extend(cpio::trailer(bytes.len() as u64));
    bytes
}

struct Run {
    machine: Arc<Machine>,
    thread: Arc<Thread>,
    start: ThreadStart,
}

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.thread.process.replace_memory(None));
    }
}

fn run(config: RunConfig, members: &[(&str, u32, &[u8])]) -> Result<Run, BootError> {
    let machine = Machine::new();
    machine.make_current();
    let image: &'static [u8] = Box::leak(archive(members).into_boxed_slice());
    machine.set_image(image.to_owned());
    let (thread, start) = boot(config, &[Archive { bytes: image }])?;
    Ok(Run { machine, thread, start })
}

/// Arguments, environment, auxiliary vector.
type Stack = (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<(u64, u64)>);

impl Run {
    fn word(&self, at: u64) -> u64 {
        run_as(&self.thread, |_| UserPtr::<u64>::from(UserAddr(at)).read()).unwrap()
    }

    fn string(&self, at: u64) -> Vec<u8> {
        run_as(&self.thread, |_| read_c_string(UserAddr(at), 4096, Errno::E2BIG)).unwrap()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        run_as(&self.thread, |_| read_bytes(UserAddr(at), &mut bytes)).unwrap();
        bytes
    }

    /// argv, env, auxv as the program finds them.
    fn stack(&self) -> Stack {
        let mut at = self.start.regs.rsp;
        let mut next = || {
            at += 8;
            self.word(at - 8)
        };
        let argc = next();
        let argv = (0..argc).map(|_| self.string(next())).collect();
        assert_eq!(next(), 0);
        let mut env = Vec::new();
        loop {
            match next() {
                0 => break,
                at => env.push(self.string(at)),
            }
        }
        let mut auxv = Vec::new();
        loop {
            let (key, value) = (next(), next());
            auxv.push((key, value));
            if key == 0 {
                return (argv, env, auxv);
            }
        }
    }
}

fn aux(auxv: &[(u64, u64)], key: u32) -> u64 {
    auxv.iter().find(|(k, _)| *k == u64::from(key)).unwrap_or_else(|| panic!("no {key}")).1
}

const FILE: u32 = linux::S_IFREG | 0o755;

#[test]
fn a_machine_without_room_for_its_first_files_says_what_to_do() {
    let machine = Machine::new();
    machine.make_current();
    machine.set_total_frames(machine.frames_in_use() + 32);
    let image: &'static [u8] = Box::leak(archive(&[]).into_boxed_slice());
    machine.set_image(image.to_owned());
    let refused =
        boot(config("/program", &["program"]), &[Archive { bytes: image }]).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "the devices cannot be set up: it does not fit into memory: give it more with -m"
    );
}

fn config(program: &str, argv: &[&str]) -> RunConfig {
    RunConfig {
        program: program.into(),
        argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        env: vec![b"HOME=/root".to_vec()],
        ..test_config()
    }
}

#[test]
fn a_static_program_is_loaded_as_it_was_linked() {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed for the tests");
    let run = run(config("/bin/sh", &["sh", "-c", "true"]), &[("bin/sh", FILE, &busybox)]).unwrap();
    let (argv, env, auxv) = run.stack();
    assert_eq!(argv, [b"sh".to_vec(), b"-c".to_vec(), b"true".to_vec()]);
    assert_eq!(env, [b"HOME=/root".to_vec()]);
    let elf = hx_loader::Elf::parse(&busybox[..], hx_loader::Role::Program).unwrap();
    let plan = elf.plan().unwrap();
    let bias = aux(&auxv, linux_raw_sys::auxvec::AT_ENTRY).wrapping_sub(plan.entry);
    assert_eq!(run.start.regs.rip, plan.entry.wrapping_add(bias));
    assert_eq!(aux(&auxv, linux_raw_sys::auxvec::AT_BASE), 0);
    let execfn = aux(&auxv, linux_raw_sys::auxvec::AT_EXECFN);
    assert_eq!(run.string(execfn), b"/bin/sh");
    assert_eq!(run.thread.comm(), b"sh");
    // Each mapping shows the file, and zeros beyond it.
    for mapping in &plan.mappings {
        let start = mapping.range.start.wrapping_add(bias);
        let len = (mapping.range.end - mapping.range.start) as usize;
        let seen = run.bytes(start, len);
        let mut expected = vec![0; len];
        if let hx_loader::Backing::File { offset, clear } = &mapping.backing {
            let from = &busybox[*offset as usize..];
            let count = len.min(from.len());
            expected[..count].copy_from_slice(&from[..count]);
            if let Some(clear) = clear {
                let at = (clear.start - mapping.range.start) as usize;
                expected[at..at + (clear.end - clear.start) as usize].fill(0);
            }
        }
        assert!(seen == expected, "{:#x?}", mapping.range);
        let area = run.thread.mm().area_at(UserAddr(start)).unwrap();
        assert_eq!(area.protection, Protection::from_bits_truncate(mapping.protection.bits()));
    }
}

#[test]
fn a_dynamic_program_starts_in_its_interpreter() {
    let ls = fs::read("/bin/ls").unwrap();
    let linker = fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
    let members: &[(&str, u32, &[u8])] =
        &[("bin/ls", FILE, &ls), ("lib64/ld-linux-x86-64.so.2", FILE, &linker)];
    let run = run(config("/bin/ls", &["ls"]), members).unwrap();
    let (_, _, auxv) = run.stack();
    let base = aux(&auxv, linux_raw_sys::auxvec::AT_BASE);
    assert_eq!(run.bytes(base, 4), b"\x7fELF");
    let linker = hx_loader::Elf::parse(&linker[..], hx_loader::Role::Interpreter).unwrap();
    assert_eq!(run.start.regs.rip, base + linker.plan().unwrap().entry);
    // Without randomisation, where `setarch -R` puts it.
    let entry = aux(&auxv, linux_raw_sys::auxvec::AT_ENTRY);
    assert_eq!(entry & !0xf_ffff, 0x5555_5550_0000);
    assert_eq!(run.thread.process.program.lock().path, b"/bin/ls");
    let limit = run.start.regs.rsp;
    assert!((0x7fff_0000_0000..0x7fff_ffff_f000).contains(&limit));
    assert_eq!(limit % 16, 0);
}

#[test]
fn scripts_run_through_their_interpreters() {
    let busybox = fs::read("/bin/busybox").unwrap();
    let members: &[(&str, u32, &[u8])] = &[
        ("bin/sh", FILE, &busybox),
        ("first", FILE, b"#! /bin/sh -e -x \necho\n"),
        ("second", FILE, b"#!/first\n"),
    ];
    let run = run(config("/second", &["name", "argument"]), members).unwrap();
    let (argv, _, auxv) = run.stack();
    let expected: [&[u8]; 5] = [b"/bin/sh", b"-e -x", b"/first", b"/second", b"argument"];
    assert_eq!(argv, expected.map(<[u8]>::to_vec));
    let execfn = aux(&auxv, linux_raw_sys::auxvec::AT_EXECFN);
    assert_eq!(run.string(execfn), b"/second");
    assert_eq!(run.thread.comm(), b"second");
    assert_eq!(run.thread.process.program.lock().path, b"/bin/sh");
}

#[test]
fn what_cannot_be_run_is_told_in_a_line() {
    let busybox = fs::read("/bin/busybox").unwrap();
    let ls = fs::read("/bin/ls").unwrap();
    let mut arm = busybox.clone();
    arm[18] = 40;
    let members: &[(&str, u32, &[u8])] = &[
        ("text", FILE, b"hello"),
        ("plain", linux::S_IFREG | 0o644, &busybox),
        ("dir", linux::S_IFDIR | 0o755, b""),
        ("arm", FILE, &arm),
        ("cut", FILE, &busybox[..1000]),
        ("dynamic", FILE, &ls),
        ("loop", FILE, b"#!/loop\n"),
        ("nothing", FILE, b"#!/none\n"),
    ];
    for (program, part) in [
        ("/missing", "no such file"),
        ("/text", "no ELF file"),
        ("/plain", "permission denied"),
        ("/dir", "permission denied"),
        ("/arm", "another machine"),
        ("/cut", "cut short"),
        ("/dynamic", "/lib64/ld-linux-x86-64.so.2: no such file"),
        ("/loop", "too many"),
        ("/nothing", "/none: no such file"),
        ("/text/x", "not a directory"),
    ] {
        let error = run(config(program, &["x"]), members).err().expect(program).to_string();
        assert!(error.starts_with(program), "{error}");
        assert!(error.contains(part), "{program}: {error}");
        assert!(!error.contains('\n'));
    }
    let cwd = RunConfig { cwd: b"/text/below".to_vec(), ..config("/text", &["x"]) };
    let error = run(cwd, members).err().unwrap().to_string();
    assert!(error.contains("working directory /text/below"), "{error}");
}

#[test]
fn a_working_directory_that_is_missing_is_made() {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed for the tests");
    let cwd = RunConfig { cwd: b"/work/here".to_vec(), uid: 1000, ..config("/sh", &["sh"]) };
    let run = run(cwd, &[("sh", FILE, &busybox)]).unwrap();
    let fs = run.thread.fs();
    let cwd = fs.cwd();
    assert_eq!(cwd.absolute(None).unwrap(), b"/work/here");
    let metadata = cwd.inode().metadata();
    assert_eq!((metadata.mode, metadata.uid), (linux::S_IFDIR | 0o755, 0));
}

#[test]
fn a_running_program_cannot_be_written_and_execve_replaces_it() {
    let busybox = fs::read("/bin/busybox").unwrap();
    let members: &[(&str, u32, &[u8])] =
        &[("bin/a", FILE, &busybox), ("bin/b", FILE, &busybox), ("text", FILE, b"no program")];
    let streams = RunConfig { streams: [Stream::Pipe; 3], ..config("/bin/a", &["a"]) };
    let run = run(streams, members).unwrap();
    let inode = |path: &[u8]| run.thread.process.system.vfs.resolve(path).unwrap().inode().clone();
    let is_busy = |path: &[u8]| {
        let inode = inode(path);
        let state = inode.state().unwrap();
        let denied = state.get_write_access() == Err(Errno::ETXTBSY);
        if !denied {
            state.put_write_access();
        }
        denied
    };
    assert!(is_busy(b"/bin/a"));
    let former = Arc::as_ptr(&run.thread.mm());
    let put = |bytes: &[u8]| run_as(&run.thread, |_| testing::user_put(bytes));
    let exec = |path: &[u8]| {
        let path = put(path);
        let argument = put(b"new\0");
        let argv = put(&[argument.0.to_ne_bytes(), 0u64.to_ne_bytes()].concat());
        testing::call_as(&run.thread, linux::__NR_execve, &[path.0, argv.0, 0])
    };
    assert_eq!(exec(b"/text\0"), Err(Errno::ENOEXEC));
    assert_eq!(exec(b"/none\0"), Err(Errno::ENOENT));
    assert_eq!(exec(b"/bin\0"), Err(Errno::EACCES));
    assert_eq!(Arc::as_ptr(&run.thread.mm()), former, "nothing happened so far");
    let process = &run.thread.process;
    let ignore = crate::task::signal::SignalAction {
        handler: crate::task::signal::Handler::IGNORE,
        ..Default::default()
    };
    let catch = crate::task::signal::SignalAction {
        handler: crate::task::signal::Handler::at(UserAddr(4096)),
        ..Default::default()
    };
    process.set_action(SignalNumber::SIGUSR1, &ignore, None);
    process.set_action(SignalNumber::SIGUSR2, &catch, None);
    assert_eq!(exec(b"/bin/b\0"), Ok(0));
    assert!(!is_busy(b"/bin/a") && is_busy(b"/bin/b"));
    assert_eq!(run.thread.comm(), b"b");
    assert_eq!(process.action(SignalNumber::SIGUSR1), ignore);
    assert_eq!(process.action(SignalNumber::SIGUSR2), Default::default());
    let _ = &run.machine;
}
