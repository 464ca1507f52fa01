//! Assembles and links the vDSO with the binutils, the same for every target.

use std::env;
use std::mem::offset_of;
use std::path::PathBuf;
use std::process::Command;

#[allow(dead_code, unreachable_pub, reason = "only the layout of the page is of use here")]
#[path = "src/vvar.rs"]
mod vvar;

use linux_raw_sys::general::{
    __NR_clock_getres, __NR_clock_gettime, __NR_getcpu, __NR_gettimeofday, __NR_time,
    CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME, CLOCK_REALTIME_COARSE,
};
use vvar::VvarPage;

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| {
        panic!("{command:?} cannot be run: {error}; the package binutils has it")
    });
    assert!(status.success(), "{command:?} failed");
}

fn main() {
    for input in ["build.rs", "src/vdso.s", "src/vdso.lds", "src/vvar.rs"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let symbols = [
        ("VVAR_SIZE", vvar::PAGE_SIZE),
        ("CLOCKS", vvar::CLOCKS),
        ("SEQUENCE", offset_of!(VvarPage, sequence)),
        ("CLOCK_MASK", offset_of!(VvarPage, clocks)),
        ("TSC_BASE", offset_of!(VvarPage, tsc_base)),
        ("MULTIPLIER", offset_of!(VvarPage, multiplier)),
        ("SHIFT", offset_of!(VvarPage, shift)),
        ("COARSE_RESOLUTION", offset_of!(VvarPage, coarse_resolution_ns)),
        ("MONOTONIC", offset_of!(VvarPage, monotonic_ns)),
        ("OFFSETS", offset_of!(VvarPage, offset_ns)),
        ("CPU_SELECTOR", offset_of!(VvarPage, cpu_selector)),
        ("CLOCK_REALTIME", CLOCK_REALTIME as usize),
        ("CLOCK_REALTIME_COARSE", CLOCK_REALTIME_COARSE as usize),
        ("CLOCK_MONOTONIC_COARSE", CLOCK_MONOTONIC_COARSE as usize),
        ("NR_clock_gettime", __NR_clock_gettime as usize),
        ("NR_clock_getres", __NR_clock_getres as usize),
        ("NR_gettimeofday", __NR_gettimeofday as usize),
        ("NR_time", __NR_time as usize),
        ("NR_getcpu", __NR_getcpu as usize),
    ];
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("vdso.o");
    let mut assembler = Command::new("as");
    assembler.args(["--64", "--fatal-warnings"]);
    for (name, value) in symbols {
        assembler.arg("--defsym").arg(format!("{name}={value}"));
    }
    run(assembler.arg("-o").arg(&object).arg("src/vdso.s"));
    run(Command::new("ld")
        .args(["-m", "elf_x86_64", "-shared", "-soname", "linux-vdso.so.1", "--strip-all"])
        .args(["-Bsymbolic", "--hash-style=both", "--eh-frame-hdr", "--build-id=sha1"])
        .args(["--no-undefined", "--fatal-warnings"])
        .args(["-z", "max-page-size=4096", "-z", "norelro", "-T", "src/vdso.lds"])
        .arg("-o")
        .arg(out.join("vdso.so"))
        .arg(&object));
}
