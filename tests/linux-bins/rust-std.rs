//! Rust's standard library: collections, files, environment, time, panics and threads' main.
use std::{collections::BTreeMap, env, fs, io::{self, BufRead, Read, Seek, SeekFrom, Write}, panic, path::Path, process, time::{Duration, Instant, SystemTime}};

fn main() {
    println!("hello from Rust");
    let mut map = BTreeMap::new();
    for word in "the quick brown fox jumps over the lazy dog the end".split(' ') { *map.entry(word).or_insert(0) += 1; }
    println!("{map:?}");
    fs::create_dir_all("a/b/c").unwrap();
    fs::write("a/b/file", vec![7u8; 100_000]).unwrap();
    let mut file = fs::OpenOptions::new().read(true).write(true).open("a/b/file").unwrap();
    file.seek(SeekFrom::Start(50_000)).unwrap();
    file.write_all(b"middle").unwrap();
    file.set_len(60_000).unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(50_000)).unwrap();
    Read::by_ref(&mut file).take(6).read_to_string(&mut text).unwrap();
    println!("{text} {}", file.metadata().unwrap().len());
    fs::copy("a/b/file", "a/copy").unwrap();
    fs::rename("a/copy", "a/moved").unwrap();
    std::os::unix::fs::symlink("moved", "a/link").unwrap();
    let mut names: Vec<_> = fs::read_dir("a").unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    println!("{names:?} {:?}", fs::read_link("a/link").unwrap());
    println!("{:?}", fs::read("none").unwrap_err().kind());
    println!("{:?}", fs::remove_dir("a").unwrap_err().raw_os_error());
    fs::remove_dir_all("a").unwrap();
    println!("{}", Path::new("a").exists());
    println!("{:?} {}", env::var("LANG"), env::args().count());
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    println!("{}", start.elapsed() >= Duration::from_millis(20));
    println!("{}", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() > 1_600_000_000);
    panic::set_hook(Box::new(|_| eprintln!("panic hook")));
    println!("{}", panic::catch_unwind(|| panic!("caught")).is_err());
    println!("{}", panic::catch_unwind(|| { let v = vec![1]; let i = v.len(); v[i] }).is_err());
    let mut line = String::new();
    println!("{}", io::stdin().lock().read_line(&mut line).unwrap());
    let total: f64 = (1..1000).map(|n| 1.0 / f64::from(n)).sum();
    println!("{total:.12}");
    process::exit(42);
}
