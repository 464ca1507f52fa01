//! `#!` lines, each also given to the host's Linux.

use crate::host::compile;
use hx_loader::{Script, ScriptError};
use linux_raw_sys::errno::ENOEXEC;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const PRINT_ARGUMENTS: &str = r#"
#include <stdio.h>
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) fwrite(argv[i], 1, __builtin_strlen(argv[i]) + 1, stdout);
}
"#;

type Expected<'a> = Result<(Vec<u8>, Option<&'a [u8]>), ScriptError>;

/// Checks the first line `#!` + `before` + interpreter + `after`, where the interpreter is a program
/// that prints its arguments, padded with `/` to `interpreter_len` bytes.
fn check(
    before: &[u8],
    interpreter_len: Option<usize>,
    after: &[u8],
    expected: Result<Option<&[u8]>, ScriptError>,
) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("arguments");
    compile(PRINT_ARGUMENTS, &["-static"], &program);
    let mut interpreter = program.to_str().unwrap().as_bytes().to_vec();
    if let Some(len) = interpreter_len {
        let padding = vec![b'/'; len - interpreter.len()];
        interpreter.splice(0..0, padding);
    }
    let line = [b"#!", before, &interpreter, after].concat();
    let expected: Expected<'_> = expected.map(|argument| (interpreter, argument));

    let parsed = Script::parse(&line).map(|script| script.expect("it starts with #!"));
    let parsed =
        parsed.as_ref().map(|script| (script.interpreter.clone(), script.argument.as_deref()));
    let name = String::from_utf8_lossy(&line).into_owned();
    assert_eq!(parsed.map_err(|error| *error), expected, "{name:?}");

    let script = directory.path().join("script");
    fs::write(&script, &line).unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let output = loop {
        match Command::new(&script).arg("last").output() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
            other => break other,
        }
    };
    match expected {
        Ok((interpreter, argument)) => {
            let script = script.to_str().unwrap().as_bytes();
            let arguments = [&interpreter[..]].into_iter().chain(argument).chain([script, b"last"]);
            let printed: Vec<u8> =
                arguments.flat_map(|argument| [argument, b"\0"].concat()).collect();
            assert_eq!(output.unwrap().stdout, printed, "{name:?}");
        }
        Err(error) => {
            assert_eq!(error.errno(), ENOEXEC);
            assert_eq!(output.unwrap_err().raw_os_error(), Some(ENOEXEC as i32), "{name:?}");
        }
    }
}

#[test]
fn spaces_and_arguments() {
    check(b"", None, b"\n", Ok(None));
    check(b"", None, b"", Ok(None));
    check(b" \t ", None, b" \t\n", Ok(None));
    check(b" ", None, b" -e\nmore\n", Ok(Some(b"-e")));
    check(b"", None, b"\t-a  b\tc \t\nmore", Ok(Some(b"-a  b\tc")));
    check(b"", None, b" one two", Ok(Some(b"one two")));
    check(b"", None, b"\0junk -x\n", Ok(None));
    check(b"", None, b" a\0b\n", Ok(Some(b"a")));
}

#[test]
fn long_lines() {
    // The line ends within the first 256 bytes or it does not: path, argument.
    check(b"", Some(253), b"\n", Ok(None));
    check(b"", Some(252), b" \n", Ok(None));
    check(b"", Some(254), b"\n", Err(ScriptError::InterpreterTruncated));
    check(b"", Some(300), b"\n", Err(ScriptError::InterpreterTruncated));
    check(b"", Some(254), b"", Err(ScriptError::InterpreterTruncated));
    check(b"", Some(253), b"", Ok(None));
    check(b"", Some(253), b" x\n", Ok(None));
    check(b"", Some(252), b" x\n", Ok(None));
    check(b"", Some(251), b" xy\n", Ok(Some(b"x")));
    check(b"", Some(200), &[b" ".as_slice(), &[b'x'; 100]].concat(), Ok(Some(&[b'x'; 52])));
    check(b"", Some(200), &[b" ".as_slice(), &[b' '; 100], b"x\n"].concat(), Ok(None));
}

#[test]
fn no_interpreter() {
    for line in [&b"#!\n"[..], b"#! \t\nsh", b"#!\t\t \n", &[&b"#!"[..], &[b' '; 300]].concat()] {
        assert_eq!(Script::parse(line), Err(ScriptError::NoInterpreter));
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, line).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let error = Command::new(&script).spawn().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ENOEXEC as i32), "{line:?}");
    }
}

#[test]
fn no_script() {
    for head in [&b""[..], b"#", b"# !/bin/sh\n", b"\x7fELF", b" #!/bin/sh\n"] {
        assert_eq!(Script::parse(head), Ok(None));
    }
}
