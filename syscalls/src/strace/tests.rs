//! The lines expected here are strace(1)'s own, of the same calls.

use alloc::{string::String, vec::Vec};

use hx_abi::{config::RunConfig, link::Record};
use linux_raw_sys::general as linux;

use crate::{
    task::{
        return_to_user,
        signal::{SigInfo, SignalNumber},
    },
    testing::{TestProcess, run_as, test_config},
};

fn traced() -> TestProcess {
    TestProcess::configured(RunConfig { strace: true, ..test_config() })
}

fn lines(process: &TestProcess) -> Vec<String> {
    let records = process.machine.take_records().into_iter();
    records
        .filter_map(|record| match record {
            Record::Trace(line) => Some(line),
            _ => None,
        })
        .collect()
}

/// The line of one call.
fn line(process: &TestProcess, number: u32, arguments: &[u64]) -> String {
    let _ = process.call(number, arguments);
    let mut lines = lines(process);
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

#[test]
fn results_are_aligned_and_errors_named() {
    let process = traced();
    let path = process.put_str("/nonexistent");
    let at_cwd = linux::AT_FDCWD as u64;
    assert_eq!(
        line(&process, linux::__NR_openat, &[at_cwd, path.0, linux::O_CLOEXEC.into(), 0]),
        r#"openat(AT_FDCWD, "/nonexistent", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)"#
    );
    assert_eq!(
        line(&process, linux::__NR_close, &[99]),
        "close(99)                               = -1 EBADF (Bad file descriptor)"
    );
    assert_eq!(
        line(&process, linux::__NR_access, &[path.0, linux::R_OK.into()]),
        r#"access("/nonexistent", R_OK)            = -1 ENOENT (No such file or directory)"#
    );
    assert_eq!(
        line(&process, linux::__NR_getpid, &[]),
        "getpid()                                = 1"
    );
    assert_eq!(
        line(&process, 999, &[1, 2]),
        "syscall_0x3e7(0x1, 0x2, 0, 0, 0, 0)     = -1 ENOSYS (Function not implemented)"
            .replace("0, 0, 0, 0)     ", "0x0, 0x0, 0x0, 0x0) ")
    );
}

#[test]
fn memory_calls_show_protections_and_addresses() {
    let process = traced();
    let prot = u64::from(linux::PROT_READ | linux::PROT_WRITE);
    let flags = u64::from(linux::MAP_PRIVATE | linux::MAP_ANONYMOUS);
    let shown = line(&process, linux::__NR_mmap, &[0, 8192, prot, flags, u64::MAX, 0]);
    let head = "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x";
    assert!(shown.starts_with(head), "{shown}");
    assert!(line(&process, linux::__NR_brk, &[0]).starts_with("brk(NULL) "));
    let at = process.alloc(4096);
    lines(&process);
    let shown = line(&process, linux::__NR_mprotect, &[at.0, 4096, 0]);
    assert_eq!(shown, alloc::format!("mprotect({:#x}, 4096, PROT_NONE) = 0", at.0));
}

#[test]
fn what_the_call_fills_in_is_shown_afterwards() {
    let process = traced();
    process.machine.use_virtual_clock(1_500_000_000);
    let at = process.alloc(64);
    lines(&process);
    assert_eq!(
        line(&process, linux::__NR_clock_gettime, &[1, at.0]),
        "clock_gettime(CLOCK_MONOTONIC, {tv_sec=1, tv_nsec=500000000}) = 0"
    );
    assert_eq!(
        line(&process, linux::__NR_prlimit64, &[0, linux::RLIMIT_STACK.into(), 0, at.0]),
        "prlimit64(0, RLIMIT_STACK, NULL, {rlim_cur=8192*1024, rlim_max=RLIM64_INFINITY}) = 0"
    );
    let action = [4096u64, linux::SA_RESTORER.into(), 8192, 1 << 1];
    process.write(at, &action);
    assert_eq!(
        line(&process, linux::__NR_rt_sigaction, &[2, at.0, 0, 8]),
        "rt_sigaction(SIGINT, {sa_handler=0x1000, sa_mask=[INT], sa_flags=SA_RESTORER, \
         sa_restorer=0x2000}, NULL, 8) = 0"
    );
    process.write(at, &(!0u64 << 1));
    assert_eq!(
        line(&process, linux::__NR_rt_sigprocmask, &[linux::SIG_BLOCK.into(), at.0, at.0, 8]),
        "rt_sigprocmask(SIG_BLOCK, ~[HUP], [], 8) = 0"
    );
}

#[test]
fn strings_are_quoted_as_in_c_and_cut() {
    use super::arguments::{Ending, quote};
    assert_eq!(quote(b"a\"b\\\n\t", Ending::Whole), r#""a\"b\\\n\t""#);
    assert_eq!(quote(b"\x7fELF\x02\x01\0\x001", Ending::Cut), r#""\177ELF\2\1\0\0001"..."#);
}

#[test]
fn signals_and_the_end_are_shown() {
    let process = traced();
    process.thread.send(SigInfo::user(SignalNumber::SIGTERM, 7, 1000));
    run_as(&process.thread, |ctx| return_to_user(ctx, None));
    assert_eq!(
        lines(&process),
        [
            "--- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=7, si_uid=1000} ---",
            "+++ killed by SIGTERM +++",
        ]
    );
}

#[test]
fn exit_is_shown_although_it_does_not_return() {
    let process = traced();
    assert_eq!(
        line(&process, linux::__NR_exit_group, &[3]),
        "exit_group(3)                           = ?"
    );
}
