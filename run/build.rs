//! Assembles the program that `--init` starts first.

use std::{env, path::PathBuf, process::Command};

const SOURCE: &str = "init/init.s";

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| {
        panic!("{command:?} cannot be run: {error}; the package binutils has it")
    });
    assert!(status.success(), "{command:?} failed");
}

fn main() {
    for input in ["build.rs", SOURCE] {
        println!("cargo::rerun-if-changed={input}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("init.o");
    run(Command::new("as").args(["--64", "--fatal-warnings", SOURCE, "-o"]).arg(&object));
    run(Command::new("ld")
        .args(["-m", "elf_x86_64", "-static", "-z", "noexecstack", "--strip-all", "-o"])
        .arg(out.join("hermix-init"))
        .arg(&object));
}
