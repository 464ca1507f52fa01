//! A program of 100 MiB: its pages are mapped from the image, and none is copied. And how small an image
//! can be.

use std::{fs, path::PathBuf, process::Command};

use hx_tests::{build_folder, expected::ExpectedFailures};
use libtest_mimic::Trial;

use crate::host::{Task, compare, compare_for};

/// Read-only data of the program and of its library: one in the fifty pages of each is touched, or
/// each one.
const HALF: usize = 50 << 20;

/// Beside the image. It holds a tenth of it.
const MEMORY: &str = "12M";

const LIBRARY: &str = r#"
__asm__(".section .rodata\n.balign 4096\n.globl bytes_of_NAME\nbytes_of_NAME:\n"
        ".set n, 0\n.rept SIZE / 4096\n.long n\n.fill 4092, 1, 7\n.set n, n + 1\n.endr\n.previous");
extern const unsigned bytes_of_NAME[];
unsigned long sum_of_NAME(unsigned step) {
    unsigned long sum = 0;
    for (unsigned page = 0; page < SIZE / 4096; page += step) sum += bytes_of_NAME[page * 1024ul];
    return sum;
}
"#;

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
unsigned long sum_of_program(unsigned), sum_of_library(unsigned);
int main(int argc, char **argv) {
    unsigned step = atoi(argv[1]);
    printf("%lu %lu\n", sum_of_program(step), sum_of_library(step));
}
"#;

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let cases = [("some-pages", "50"), ("all-pages", "1")];
    let trial = |(name, step)| expected.trial(format!("large::{name}"), move || run(step));
    let mut trials: Vec<Trial> = cases.into_iter().map(trial).collect();
    trials.push(expected.trial("large::static-image".to_owned(), static_image));
    trials
}

/// A static program comes alone, without glibc's package.
fn static_image() -> Result<(), String> {
    let busybox = "/bin/busybox";
    let size = fs::metadata(busybox).map_err(|error| format!("{busybox}: {error}"))?.len() as usize;
    let image = compare_for(&Task::new([busybox, "true"]), "image_bytes")?.ok_or("no size")?;
    if image < 2 * size { Ok(()) } else { Err(format!("{image} bytes for a program of {size}")) }
}

/// It must run as natively. What is clean is given back by nobody, so that pages that were copied
/// would not find room.
fn run(step: &str) -> Result<(), String> {
    let program = build()?;
    let mut task = Task::new([program.as_os_str(), step.as_ref()]);
    task.options = ["--memory", MEMORY].map(str::to_owned).to_vec();
    compare(&task)
}

/// The program, with its library beside it.
fn build() -> Result<PathBuf, String> {
    // Tests run side by side; each builds its own.
    let folder = build_folder().join(format!("large-{:?}", std::thread::current().id()));
    fs::create_dir_all(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let source = |name: &str| LIBRARY.replace("NAME", name).replace("SIZE", &HALF.to_string());
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| format!("{path:?}: {error}")).map(|()| path)
    };
    let main = write("main.c", &(PROGRAM.to_owned() + &source("program")))?;
    let library = write("library.c", &source("library"))?;
    let (shared, program) = (folder.join("liblarge.so"), folder.join("large"));
    let gcc = |command: &mut Command| {
        let output =
            command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
    };
    gcc(Command::new("gcc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&shared).arg(&library))?;
    let mut link = Command::new("gcc");
    link.args(["-O1", "-Wl,-rpath,$ORIGIN", "-o"]).arg(&program).arg(&main).arg(&shared);
    gcc(&mut link)?;
    Ok(program)
}
