//! What hermit-run says of programs that cannot run: one line on standard error, nothing on
//! standard output, not zero, and soon.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use hx_tests::{build_folder, expected::ExpectedFailures, outcome::Outcome};
use libtest_mimic::Trial;

use crate::host::{Task, hermix};

type Check = fn() -> Result<(), String>;

/// Longest time until the line appears.
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let cases: &[(&str, Check)] = &[
        ("truncated-elf", || refused(&elf("truncated", |bytes| bytes.truncate(100))?, "truncated")),
        ("cut-off-segments", || refused(&elf("cut", |bytes| bytes.truncate(5000))?, "cut")),
        ("arm-elf", || refused(&elf("arm", |bytes| bytes[18] = 183)?, "arm")),
        ("32-bit-elf", || refused(&elf("32-bit", |bytes| bytes[4] = 1)?, "32-bit")),
        ("big-endian-elf", || refused(&elf("big-endian", |bytes| bytes[5] = 2)?, "big-endian")),
        ("object-file", || refused(&elf("object", |bytes| bytes[16] = 1)?, "object")),
        ("directory", || refused(&Task::new(["/usr"]), "/usr")),
        ("text-file", || refused(&executable("text", b"just text\n")?, "text")),
        ("empty-file", || refused(&executable("empty", b"")?, "empty")),
        ("no-such-file", || refused(&Task::new(["/no/such/program"]), "/no/such/program")),
        ("no-such-command", || refused(&Task::new(["no-such-command"]), "no-such-command")),
        ("not-executable", not_executable),
        ("no-interpreter", || {
            refused(&executable("script", b"#!/no/interpreter\n")?, "/no/interpreter")
        }),
        ("missing-library", missing_library),
        ("too-little-memory", || {
            let mut task = Task::new(["/bin/busybox", "true"]);
            task.options = ["-m", "2M"].map(str::to_owned).to_vec();
            refused(&task, "2M")
        }),
        ("too-little-memory-for-names", || too_little_memory_for_names(&[])),
        ("too-little-memory-for-names-specialised", || {
            too_little_memory_for_names(&["--specialise"])
        }),
        ("nonsense-memory", || {
            let mut task = Task::new(["/bin/busybox", "true"]);
            task.options = ["-m", "lots"].map(str::to_owned).to_vec();
            refused(&task, "lots")
        }),
        ("missing-volume", || {
            let mut task = Task::new(["/bin/busybox", "true"]);
            task.options = ["-v", "/no/such/folder:/data"].map(str::to_owned).to_vec();
            refused(&task, "/no/such/folder")
        }),
    ];
    let ends: [(&str, Check); 3] = [
        ("kernel-stack-overflow", || kernel_ends("stack-overflow", "kernel stack overflow", &[])),
        ("kernel-panic", || kernel_ends("panic", "kernel panic", &[])),
        // Such a kernel has no reasons, but all the names.
        ("kernel-panic-specialised", || kernel_ends("panic", "hx_kernel::", &["--specialise"])),
    ];
    let cases = cases.iter().chain(&ends);
    cases.map(|(name, body)| expected.trial(format!("bad-input::{name}"), *body)).collect()
}

/// The kernel ends with a message, which holds `says`, where it panics or runs out of stack, however little of
/// that is left to say it.
fn kernel_ends(provoked: &str, says: &str, options: &[&str]) -> Result<(), String> {
    let script = format!(
        "#!/bin/sh\nfor word; do shift\ncase $word in fresh=*) \
         word=\"provoke={provoked} $word\";; esac\n\
         set -- \"$@\" \"$word\"; done\nexec qemu-system-x86_64 \"$@\"\n"
    );
    let name = format!("qemu-with-{provoked}{}", options.concat());
    let qemu = executable(&name, script.as_bytes())?.command.remove(0);
    let mut task = Task::new(["/bin/busybox", "true"]);
    task.options = vec!["--qemu".into(), qemu.to_string_lossy().into_owned()];
    task.options.extend(options.iter().map(|option| (*option).to_owned()));
    let outcome = hermix(&task)?;
    let text = String::from_utf8_lossy(&outcome.stderr);
    if outcome.status == 125 && text.contains("kernel ") && text.contains(says) {
        Ok(())
    } else {
        Err(outcome.show())
    }
}

/// The kernel's heap, which holds the names of the program's files, is not enough.
fn too_little_memory_for_names(options: &[&str]) -> Result<(), String> {
    let folder = build_folder().join("bad-input/many-files");
    fs::create_dir_all(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    for number in 0..4_000 {
        let path = folder.join(number.to_string());
        fs::write(&path, "").map_err(|error| format!("{path:?}: {error}"))?;
    }
    let mut task = Task::new(["/bin/busybox", "ls", "/many"]);
    task.options = vec!["-v".into(), format!("{}:/many", folder.display())];
    task.options.extend(["-m", "4M"].iter().chain(options).map(|option| (*option).to_owned()));
    // The image is built first.
    refused_within(Duration::from_secs(30), &task, "-m")
}

/// The run must fail before the limit with one line that holds `word`.
fn refused(task: &Task, word: &str) -> Result<(), String> {
    refused_within(LIMIT, task, word)
}

fn refused_within(limit: Duration, task: &Task, word: &str) -> Result<(), String> {
    let mut task = task.clone();
    task.timeout = limit;
    let outcome = hermix(&task)?;
    let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let one_line = text.lines().count() == 1 && text.ends_with('\n');
    let right = outcome.status != 0 && outcome.stdout.is_empty() && one_line && text.contains(word);
    if right { Ok(()) } else { Err(wrong(&outcome, word)) }
}

fn wrong(outcome: &Outcome, word: &str) -> String {
    format!("not one line with {word:?}:\n{}", outcome.show())
}

/// A file that may be executed.
fn executable(name: &str, contents: &[u8]) -> Result<Task, String> {
    use std::os::unix::fs::PermissionsExt;
    let folder = build_folder().join("bad-input");
    let path = folder.join(name);
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, contents))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .map_err(|error| format!("{path:?}: {error}"))?;
    Ok(Task::new([path]))
}

/// A damaged copy of a good program.
fn elf(name: &str, damage: impl FnOnce(&mut Vec<u8>)) -> Result<Task, String> {
    let mut bytes = fs::read("/bin/busybox").map_err(|error| format!("/bin/busybox: {error}"))?;
    damage(&mut bytes);
    executable(name, &bytes)
}

fn not_executable() -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let task = executable("not-executable", b"#!/bin/sh\n")?;
    let path = PathBuf::from(&task.command[0]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        .map_err(|error| format!("{path:?}: {error}"))?;
    refused(&task, "not-executable")
}

/// A program whose library was removed: the line names the library and who needs it.
fn missing_library() -> Result<(), String> {
    let folder = build_folder().join("bad-input");
    let script = "
        printf 'int gone(void) { return 1; }' | gcc -shared -fPIC -x c - -o libgone.so
        printf 'int gone(void); int main(void) { return gone(); }' \
            | gcc -x c - -x none -L. -lgone -o needs-library
        rm libgone.so";
    let mut shell = Command::new("/bin/sh");
    fs::create_dir_all(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let built = shell.args(["-ec", script]).current_dir(&folder).output();
    let built = built.map_err(|error| format!("cannot start {shell:?}: {error}"))?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into_owned());
    }
    let task = Task::new([folder.join("needs-library")]);
    refused(&task, "libgone.so")?;
    refused(&task, "needs-library")
}
