//! The files that the real programs work on: written once, so that the image that holds them is
//! built once, and copied for each native run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use hx_tests::build_folder;

/// A short text with letters beyond ASCII.
pub(crate) const TEXT: &str =
    "the quick brown fox\njumps over\nthe lazy dog\nzwölf Boxkämpfer jagen Viktor\n";

/// Counts up whenever the files below change.
const VERSION: &str = "1";

/// Made by a shell from the other files.
const ARCHIVES: &str = "
    tar -cf archive.tar --sort=name --mtime=@0 --owner=0 --group=0 tree
    gzip -nk text; bzip2 -k text; xz -k text; lzma -k text
    printf '%s\\n' tree/root.txt text | cpio -o --reproducible -H newc >archive.cpio 2>/dev/null
    python3 -c \"import zipfile; z = zipfile.ZipFile('archive.zip', 'w'); \
        z.writestr(zipfile.ZipInfo('inside.txt'), 'inside')\"
    gcc -c -x c /dev/null -o object.o; ar rcD archive.a object.o
    printf 'begin 644 decoded\\n#86)C\\n`\\nend\\n' >uuencoded
    printf 'a\\tb\\r\\nc\\r\\n' >dos
    printf '\\101\\000\\001binary text here\\000\\377' >binary
    printf '%s\\n' '--- text' '+++ text' '@@ -1,2 +1,2 @@' '-the quick brown fox' '+the slow fox' \
        ' jumps over' >patch
    find . -exec touch -h -d @1700000000 {} +
";

/// The folder with the files.
pub(crate) fn folder() -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = build_folder().join(format!("files-{VERSION}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = build_folder().join("files-partial");
    make(&partial).map_err(|error| format!("{}: {error}", partial.display()))?;
    fs::rename(&partial, &folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

fn make(folder: &Path) -> Result<(), String> {
    let _ = fs::remove_dir_all(folder);
    for (name, contents) in files() {
        let path = folder.join(name);
        let parent = path.parent().map_or(Ok(()), fs::create_dir_all);
        parent.and_then(|()| fs::write(&path, contents)).map_err(|error| error.to_string())?;
    }
    let mut shell = Command::new("/bin/sh");
    shell.args(["-ec", ARCHIVES]).current_dir(folder).stdout(Stdio::null());
    let done = shell.output().map_err(|error| error.to_string())?;
    if done.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut state = 1u64;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let words = ["fox", "dogs", "jumped", "over", "lazy", "walked", "cats", "tree", "leaf"];
    let word_list: String =
        (0..500).map(|_| format!("{}\n", words[next() as usize % words.len()])).collect();
    let numbers: String = (0..500).map(|i| format!("{i} {}\n", next() % 1000)).collect();
    let large: String = (0..20_000).map(|_| format!("{:x}\n", next())).collect();
    let json = r#"{"items": [{"name": "a", "n": 1}, {"name": "b", "n": 2}, {"name": "c", "n": 3.5}, {"name": "b", "n": 9}]}"#;
    vec![
        ("text", TEXT.as_bytes().to_vec()),
        ("words", word_list.into_bytes()),
        ("numbers", numbers.into_bytes()),
        ("large", large.into_bytes()),
        ("data.json", json.as_bytes().to_vec()),
        ("tree/a/b/leaf.txt", b"a leaf\n".to_vec()),
        ("tree/a/empty", Vec::new()),
        ("tree/c/data.bin", (0..=255).collect()),
        ("tree/root.txt", b"root\n".to_vec()),
    ]
}
