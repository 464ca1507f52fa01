//! hermit-run from the outside: its messages, and a whole run against a fake QEMU.
//!
//! This program is both the tests and the fake: where its arguments are QEMU's, it plays the guest.
//! It reads the boot archive and the root image as a kernel would, and does what the program's
//! arguments say (see [`guest`]).

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, fs::PermissionsExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Output, Stdio},
};

use hx_abi::{
    config::{CONFIG_PATH, RunConfig},
    cpio,
    link::{self, Decoder, Event, Exit, Kind, Record, Stats},
};
use libtest_mimic::{Arguments, Failed, Trial};

#[path = "cli/network.rs"]
mod network;

fn main() -> ExitCode {
    if env::args().any(|argument| argument == "-initrd") {
        guest();
        return ExitCode::SUCCESS;
    }
    // Nor does the machine that measures the time stamp counter have anything to say.
    if env::args().any(|argument| argument.starts_with("isa-debugcon")) {
        return ExitCode::SUCCESS;
    }
    let test = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok::<(), Failed>(())
        })
    };
    let tests = vec![
        test("bad_programs_are_one_line_each", bad_programs_are_one_line_each),
        test("bad_options_are_one_line_each", bad_options_are_one_line_each),
        test("the_status_is_the_programs", the_status_is_the_programs),
        test("streams_are_byte_for_byte", streams_are_byte_for_byte),
        test("input_that_is_not_read_is_left", input_that_is_not_read_is_left_to_others),
        test("the_guest_gets_what_was_asked_for", the_guest_gets_what_was_asked_for),
        test("settings_come_from_line_environment_and_file", settings_have_a_precedence),
        test("volumes_are_copied", volumes_are_copied),
        test("a_rootfs_is_the_root", a_rootfs_is_the_root),
        test("signals_reach_the_guest", signals_reach_the_guest),
        test("a_reader_that_leaves_ends_the_program", a_reader_that_leaves_ends_the_program),
        test("a_machine_that_dies_is_told", a_machine_that_dies_is_told),
        test("an_image_that_cannot_be_mapped_is_copied", images_may_be_copied),
        test("qemu_does_not_outlive_hermit_run", qemu_does_not_outlive_hermit_run),
        test("the_terminal_is_raw_and_restored", the_terminal_is_raw_and_restored),
        test("links_stay_and_argv0_is_as_typed", links_stay_and_argv0_is_as_typed),
        test("a_dry_run_prints_and_does_not_run", a_dry_run_prints_and_does_not_run),
        test("observations_are_reported", observations_are_reported),
        test("network::bad_options_are_one_line_each", network::bad_options_are_one_line_each),
        test("network::a_taken_port_is_one_line", network::a_taken_port_is_one_line),
        test("network::ports_reach_the_machine", network::ports_and_packets_reach_the_machine),
        test("network::the_guest_knows_its_network", network::the_guest_knows_its_network),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

// ---- The fake guest ----

struct Guest {
    link: UnixStream,
    decoder: Decoder,
    config: RunConfig,
    /// Members of the root image, then of the boot archive.
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

fn option(name: &str) -> String {
    env::args().skip_while(|argument| argument != name).nth(1).unwrap()
}

fn members(archive: &[u8], files: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for entry in cpio::Reader::new(archive) {
        let entry = entry.unwrap();
        let path = String::from_utf8(entry.path.to_vec()).unwrap();
        files.insert(path, (entry.metadata.mode, entry.data.to_vec()));
    }
}

/// Members of the root image where it is the guest's memory.
fn mapped_members(files: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    let memory = option("-object");
    let image = memory.split("mem-path=").nth(1).unwrap().replace(",,", ",");
    let place = option("-append");
    let place = place.split(' ').find_map(|word| word.strip_prefix("root=")).unwrap();
    let place = place.split_once(',').unwrap();
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    let image = fs::File::open(image).unwrap();
    let size = memory.split("size=").nth(1).unwrap().split('K').next().unwrap();
    let size = size.parse::<u64>().unwrap() << 10;
    assert!(image.metadata().unwrap().len() >= size, "RAM is larger than the file");
    assert!(number(place.0) + number(place.1) <= size, "the image does not fit into RAM");
    let mut root = vec![0; number(place.1) as usize];
    image.read_exact_at(&mut root, number(place.0)).unwrap();
    members(&root, files);
}

/// Plays the guest: the program's first argument is a command.
fn guest() {
    if env::var_os("FAKE_WITHOUT_MAPPING").is_some() && env::args().any(|a| a == "-object") {
        eprintln!("qemu: unable to map backing store for guest RAM: Cannot allocate memory");
        std::process::exit(1);
    }
    let mut files = BTreeMap::new();
    if env::args().any(|argument| argument == "-object") {
        mapped_members(&mut files);
    }
    members(&fs::read(option("-initrd")).unwrap(), &mut files);
    let config = RunConfig::decode(&files[CONFIG_PATH].1).unwrap();
    let link = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut guest = Guest { link, decoder: Decoder::new(), config, files };
    guest.record(&Record::Started);
    guest.run();
}

impl Guest {
    fn record(&mut self, record: &Record) {
        let _ = self.link.write_all(&record.to_frame());
    }

    fn put(&mut self, kind: Kind, bytes: &[u8]) {
        for piece in bytes.chunks(link::MAX_PAYLOAD) {
            let _ = self.link.write_all(&link::header(kind, piece.len()));
            let _ = self.link.write_all(piece);
        }
    }

    fn exit(&mut self, exit: Exit) {
        self.record(&Record::Exit(exit));
        self.sleep();
    }

    /// Until hermit-run kills this process.
    fn sleep(&self) -> ! {
        loop {
            std::thread::park();
        }
    }

    fn next(&mut self) -> (Kind, Vec<u8>) {
        loop {
            if let Some((kind, payload)) = self.decoder.next_frame().unwrap() {
                return (kind, payload.to_vec());
            }
            let mut buffer = vec![0; 65536];
            let count = self.link.read(&mut buffer).unwrap();
            assert!(count > 0);
            self.decoder.push(&buffer[..count]);
        }
    }

    fn argument(&self, index: usize) -> String {
        String::from_utf8(self.config.argv.get(index).cloned().unwrap_or_default()).unwrap()
    }

    fn run(&mut self) {
        match self.argument(1).as_str() {
            "status" => {
                let status = self.argument(2).parse().unwrap();
                self.exit(Exit::Status(status));
            }
            "signal" => {
                let signal = self.argument(2).parse().unwrap();
                self.exit(Exit::Signal { signal, core: false });
            }
            "fatal" => {
                self.record(&Record::Fatal(self.argument(2)));
                self.sleep();
            }
            "complain" => {
                let _ = writeln!(io::stderr(), "{}", self.argument(2));
                std::process::exit(1);
            }
            "die" => {
                let _ = writeln!(io::stderr(), "qemu: something broke");
                std::process::exit(3);
            }
            "cat" => {
                self.record(&Record::StdinCredit(link::STDIN_WINDOW as u32));
                loop {
                    let (kind, bytes) = self.next();
                    assert_eq!(kind, Kind::Stdin);
                    if bytes.is_empty() {
                        self.put(Kind::Stderr, b"end\n");
                        return self.exit(Exit::Status(0));
                    }
                    self.record(&Record::StdinCredit(bytes.len() as u32));
                    self.put(Kind::Stdout, &bytes);
                }
            }
            "describe" => {
                let mut config = self.config.clone();
                config.random_seed = [0; 32];
                config.realtime_ns = 0;
                let mut text = format!("program {}\n", String::from_utf8_lossy(&config.program));
                for word in &config.argv {
                    text += &format!("argv {}\n", String::from_utf8_lossy(word));
                }
                for variable in &config.env {
                    text += &format!("env {}\n", String::from_utf8_lossy(variable));
                }
                text += &format!("cwd {}\n", String::from_utf8_lossy(&config.cwd));
                text += &format!("user {}:{}\n", config.uid, config.gid);
                text += &format!("host {}\n", config.hostname);
                text += &format!("streams {:?}\n", config.streams);
                text += &format!("window {}x{}\n", config.window.rows, config.window.columns);
                text += &format!("aslr {} rewrite {}\n", config.aslr, config.rewrite);
                if let Some(network) = &config.network {
                    text += &format!("net {:?} by {:?}\n", network.addresses, network.gateways);
                }
                for path in &config.read_only {
                    text += &format!("ro {}\n", String::from_utf8_lossy(path));
                }
                self.put(Kind::Stdout, text.as_bytes());
                self.exit(Exit::Status(0));
            }
            "files" => {
                let mut text = String::new();
                for (path, (mode, data)) in &self.files {
                    let data = if data.len() < 80 { data } else { &b"..."[..] };
                    text += &format!("{mode:o} {path} {}\n", String::from_utf8_lossy(data).trim());
                }
                self.put(Kind::Stdout, text.as_bytes());
                self.exit(Exit::Status(0));
            }
            "wait" => {
                self.put(Kind::Stdout, b"ready\n");
                loop {
                    let (kind, payload) = self.next();
                    if kind != Kind::Event {
                        continue;
                    }
                    let Event::Signal(signal) = Event::decode(&payload).unwrap() else { continue };
                    self.put(Kind::Stdout, format!("signal {signal}\n").as_bytes());
                    return self.exit(Exit::Signal { signal, core: false });
                }
            }
            "ignore" => {
                self.put(Kind::Stdout, format!("ready {}\n", std::process::id()).as_bytes());
                self.sleep();
            }
            "yes" => {
                self.link.set_nonblocking(false).unwrap();
                let mut reader = self.link.try_clone().unwrap();
                let writer = std::thread::spawn({
                    let mut link = self.link.try_clone().unwrap();
                    move || {
                        let mut frame = link::header(Kind::Stdout, 2).to_vec();
                        frame.extend_from_slice(b"y\n");
                        while link.write_all(&frame).is_ok() {}
                    }
                });
                let mut buffer = [0; 4096];
                loop {
                    let count = reader.read(&mut buffer).unwrap();
                    self.decoder.push(&buffer[..count]);
                    while let Some((kind, payload)) = self.decoder.next_frame().unwrap() {
                        if kind == Kind::Event && Event::decode(payload) == Ok(Event::Signal(13)) {
                            // Between two frames of the other thread: a frame is one write.
                            let exit = Exit::Signal { signal: 13, core: false };
                            let _ = reader.write_all(&Record::Exit(exit).to_frame());
                            let _ = writer.join();
                            return;
                        }
                    }
                }
            }
            "observe" => {
                self.record(&Record::MissingFile(b"/etc/absent".to_vec()));
                self.record(&Record::Trace("openat(...) = -1 ENOENT".into()));
                let counters = vec![("system calls".to_owned(), 42)];
                self.record(&Record::Stats(Stats { counters }));
                self.exit(Exit::Status(0));
            }
            other => panic!("the fake guest does not know {other:?}"),
        }
    }
}

// ---- The tests ----

/// A directory of its own, with a program in it, as cache and current directory.
struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { dir: tempfile::tempdir().unwrap() };
        room.file("prog", &tiny_elf(), 0o755);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// hermit-run in this room, with this program as QEMU.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermit-run"));
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("HERMIX_QEMU", env::current_exe().unwrap())
            .env("HERMIX_KERNEL", self.path("prog"))
            .env("HERMIX_ACCEL", "tcg")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Standard output of a run that must end well.
    fn output(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The run must end with this status and one line that holds all of `parts`.
    fn fails(&self, arguments: &[&str], status: i32, parts: &[&str]) {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("hermit-run: "), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
        for part in parts {
            assert!(stderr.contains(part), "{arguments:?}: {part:?} is not in: {stderr}");
        }
    }
}

/// The smallest program: one segment that holds the headers.
fn tiny_elf() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    elf.extend([0x40_0000u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1u32, 5].iter().flat_map(|half| half.to_le_bytes()));
    let segment = [0u64, 0x40_0000, 0x40_0000, 120, 120, 4096];
    elf.extend(segment.iter().flat_map(|word| word.to_le_bytes()));
    elf
}

fn bad_programs_are_one_line_each() {
    let room = Room::new();
    let elf = tiny_elf();
    let with = |at: usize, bytes: &[u8]| {
        let mut elf = elf.clone();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        elf
    };
    room.file("truncated", &fs::read("/bin/sh").unwrap()[..5000], 0o755);
    room.file("header", &elf[..40], 0o755);
    room.file("arm", &with(18, &[183, 0]), 0o755);
    room.file("small", &with(4, &[1]), 0o755);
    room.file("object", &with(16, &[1, 0]), 0o755);
    room.file("text", b"echo hello\n", 0o755);
    room.file("empty", b"", 0o755);
    room.file("closed", &elf, 0o644);
    room.file("a", format!("#!{}\n", room.path("b").display()).as_bytes(), 0o755);
    room.file("b", format!("#!{}\n", room.path("a").display()).as_bytes(), 0o755);
    room.file("orphan", b"#!/no/such/interpreter\n", 0o755);
    room.file("nameless", b"#!  \n", 0o755);
    fs::create_dir(room.path("dir")).unwrap();
    for (program, status, parts) in [
        ("./truncated", 126, &["truncated", "cut short", "copy or build"][..]),
        ("./header", 126, &["header", "cut short"]),
        ("./arm", 126, &["arm", "another machine", "AARCH64", "x86"]),
        ("./small", 126, &["small", "32-bit"]),
        ("./object", 126, &["object", "not linked"]),
        ("./text", 126, &["text", "neither an ELF program nor a script", "/bin/sh"]),
        ("./empty", 126, &["empty", "neither an ELF program nor a script"]),
        ("./closed", 126, &["closed", "not executable", "chmod +x"]),
        ("./dir", 126, &["dir", "is a directory"]),
        ("/dev/null", 126, &["/dev/null", "not a regular file"]),
        ("./a", 126, &["never leads to a program"]),
        ("./nameless", 126, &["nameless", "#!"]),
        ("./orphan", 127, &["orphan", "/no/such/interpreter", "not found"]),
        ("./missing", 127, &["./missing", "no such program"]),
        ("missing", 127, &["missing", "no such program", "PATH"]),
        ("prog", 127, &["prog", "./prog"]),
        ("./prog/x", 127, &["prog/x"]),
        ("", 127, &["no such program"]),
    ] {
        room.fails(&[program], status, parts);
    }
    let compile = |arguments: &[&str]| {
        let status = Command::new("cc").args(arguments).current_dir(room.dir.path()).status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    room.file("empty.c", b"", 0o644);
    room.file("main.c", b"int main(void) { return 0; }", 0o644);
    compile(&["-shared", "-o", "libgone.so", "empty.c"]);
    compile(&["-o", "needy", "main.c", "-Wl,--no-as-needed", "-L.", "-lgone"]);
    room.fails(&["./needy"], 126, &["needy", "libgone.so", "not found", "LD_LIBRARY_PATH"]);
    compile(&["-o", "odd", "main.c", "-Wl,--dynamic-linker=/lib/ld-odd.so"]);
    for line in
        ["-v", "--kernel", "--config"].map(|name| room.run(&[name, "/no/such:/x", "./prog"]))
    {
        // Words for people, without numbers.
        assert!(!String::from_utf8_lossy(&line.stderr).contains("os error"), "{line:?}");
    }
    room.fails(&["./odd"], 127, &["odd", "/lib/ld-odd.so", "not found"]);
}

fn bad_options_are_one_line_each() {
    let room = Room::new();
    for (arguments, parts) in [
        (&["-m", "2M", "./prog"][..], &["-m 2M", "too little memory", "4M"][..]),
        (&["-m", "lots", "./prog"], &["-m lots", "64M"]),
        (&["-v", "/tmp", "./prog"], &["-v /tmp", "HOST:GUEST"]),
        (&["-v", "/no/such:/x", "./prog", "status", "0"], &["/no/such"]),
        (&["--rootfs", "/no/such", "./prog"], &["--rootfs", "/no/such"]),
        (&["--kernel", "/no/such", "./prog"], &["/no/such", "no kernel"]),
        (&["--qemu", "no-such-qemu", "./prog"], &["no-such-qemu", "apt-get install qemu"]),
        (&["--env-file", "/no/such", "./prog"], &["/no/such"]),
        (&["--config", "/no/such", "./prog"], &["/no/such"]),
        (&["-u", "nobody-known", "./prog"], &["-u nobody-known"]),
        (&["--cpus", "0", "./prog"], &["--cpus 0"]),
        (&["--package", "no-such-package", "./prog"], &["no-such-package", "apt-get install"]),
    ] {
        room.fails(arguments, 125, parts);
    }
    room.file("hermit.toml", b"memory = 5\n", 0o644);
    room.fails(&["./prog"], 125, &["hermit.toml", "line 1"]);
}

fn the_status_is_the_programs() {
    let room = Room::new();
    for status in ["0", "7", "255"] {
        let output = room.run(&["./prog", "status", status]);
        assert_eq!(output.status.code(), Some(status.parse().unwrap()));
        assert!(output.stderr.is_empty());
    }
    let output = room.run(&["./prog", "signal", "11"]);
    assert_eq!((output.status.code(), output.stderr), (Some(139), Vec::new()));
    room.fails(&["./prog", "fatal", "out of luck"], 125, &["out of luck"]);
}

fn streams_are_byte_for_byte() {
    let room = Room::new();
    let input: Vec<u8> = (0..300_000u32).map(|n| ((n * 7919) >> 5) as u8).collect();
    let mut command = room.command();
    command.args(["./prog", "cat"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn({
        let input = input.clone();
        move || stdin.write_all(&input).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
    assert_eq!(output.stderr, b"end\n");
}

fn input_that_is_not_read_is_left_to_others() {
    let room = Room::new();
    let script = "while read line; do $0 ./prog status 0; echo $line; done";
    let mut command = room.command();
    let hermit_run = command.get_program().to_owned();
    let envs: Vec<_> =
        command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    room.file("lines", b"one\ntwo\nthree\n", 0o644);
    command = Command::new("sh");
    command.args(["-c", script]).arg(hermit_run).envs(envs).current_dir(room.dir.path());
    let output = command.stdin(fs::File::open(room.path("lines")).unwrap()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "one\ntwo\nthree\n");
}

fn the_guest_gets_what_was_asked_for() {
    let room = Room::new();
    room.file("vars", b"A=file\nB=file\n# C=no\n", 0o644);
    let text = room.output(&[
        "-e",
        "B=line",
        "--env-file",
        "vars",
        "-e",
        "PATH=/mine",
        "-w",
        "/x/../y",
        "-u",
        "12:34",
        "--hostname",
        "box",
        "--no-aslr",
        "./prog",
        "describe",
        "-m",
        "--",
        "",
    ]);
    let program = fs::canonicalize(room.path("prog")).unwrap();
    let expected = format!(
        "program {}\nargv ./prog\nargv describe\nargv -m\nargv --\nargv \nenv HOSTNAME=box\n\
         env HOME=/\nenv A=file\nenv B=line\nenv PATH=/mine\ncwd /y\nuser 12:34\nhost box\n\
         streams [Null, Pipe, Pipe]\nwindow 0x0\naslr false rewrite true\n\
         net [(10.0.2.15, 24), (fec0::15, 64)] by [10.0.2.2, fec0::2]\n",
        program.display()
    );
    assert_eq!(text, expected);
    let text = room.output(&["-u", "nobody", "./prog", "describe"]);
    assert!(text.contains("user 65534:65534"), "{text}");
    let path = "env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
    assert!(text.contains(path) && text.contains("aslr true"), "{text}");
}

fn settings_have_a_precedence() {
    let room = Room::new();
    let toml =
        b"hostname = \"from-file\"\nworkdir = \"/from-file\"\nuser = \"70001\"\nenv = [\"V=file\"]\n";
    room.file("hermit.toml", toml, 0o644);
    let mut command = room.command();
    command.env("HERMIX_WORKDIR", "/from-environment").env("HERMIX_USER", "70002");
    command.env("HERMIX_ENV", "V=environment\nW=two words\n");
    let output = command.args(["-u", "70003", "./prog", "describe"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "host from-file",
        "cwd /from-environment",
        "user 70003:0",
        "env V=environment",
        "env W=two words",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
}

fn volumes_are_copied() {
    let room = Room::new();
    room.file("data/one", b"1", 0o644);
    room.file("data/deep/two", b"2", 0o600);
    room.file("single", b"s", 0o644);
    let volumes = ["-v", "./data:/mnt/data:ro", "-v", "single:/etc/single"];
    let text = room.output(&[&volumes[..], &["./prog", "files"]].concat());
    for line in [
        "40755 mnt/data ",
        "100644 mnt/data/one 1",
        "100600 mnt/data/deep/two 2",
        "100644 etc/single s",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let text = room.output(&[&volumes[..], &["./prog", "describe"]].concat());
    assert!(text.contains("\nro /mnt/data\n") && !text.contains("ro /etc"), "{text}");
    // The next run sees what the host's file is then.
    room.file("single", b"t", 0o644);
    let text = room.output(&[&volumes[..], &["./prog", "files"]].concat());
    assert!(text.contains("100644 etc/single t\n"), "{text}");
}

fn a_rootfs_is_the_root() {
    let room = Room::new();
    room.file("root/usr/bin/tool", &tiny_elf(), 0o755);
    room.file("root/etc/passwd", b"me:x:7:8::/home/me:/bin/sh\n", 0o644);
    std::os::unix::fs::symlink("usr/bin", room.path("root/bin")).unwrap();
    let text = room.output(&["--rootfs", "root", "-u", "me", "/bin/tool", "describe"]);
    for line in ["program /bin/tool", "user 7:8", "env HOME=/home/me"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    let text = room.output(&["--rootfs", "root", "tool", "files"]);
    assert!(text.contains("100644 etc/passwd me:x:7:8"), "{text}");
    assert!(text.contains("120777 bin usr/bin\n"), "{text}");
    assert!(text.contains("100644 etc/hosts "), "{text}");
    // A new file is seen at once.
    room.file("root/etc/new", b"n", 0o644);
    let text = room.output(&["--rootfs", "root", "tool", "files"]);
    assert!(text.contains("100644 etc/new n\n"), "{text}");
    // The same from an archive.
    let list = Command::new("sh")
        .args(["-c", "cd root && find . | busybox cpio -o -H newc > ../root.cpio 2>/dev/null"])
        .current_dir(room.dir.path())
        .status();
    assert!(list.unwrap().success());
    let text = room.output(&["--rootfs", "root.cpio", "/bin/tool", "files"]);
    assert!(text.contains("100644 etc/new n\n"), "{text}");
    // A program of the host beside a root file system that does not have it.
    let text = room.output(&["--rootfs", "root", "./prog", "files"]);
    let program = fs::canonicalize(room.path("prog")).unwrap();
    let line = format!("100755 {} ", program.strip_prefix("/").unwrap().display());
    assert!(text.contains(&line), "{line}: {text}");
    room.file("bad.cpio", b"070701 this is none", 0o644);
    room.fails(&["--rootfs", "bad.cpio", "./prog"], 125, &["bad.cpio", "damaged"]);
}

/// Starts a run and waits for the first line of its output.
fn started(mut command: Command) -> (Child, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    (child, String::from_utf8(line).unwrap())
}

fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn signals_reach_the_guest() {
    use rustix::process::Signal;
    let room = Room::new();
    for (signal, number) in
        [(Signal::TERM, 15), (Signal::INT, 2), (Signal::HUP, 1), (Signal::USR1, 10)]
    {
        let mut command = room.command();
        command.args(["./prog", "wait"]);
        let (child, line) = started(command);
        assert_eq!(line, "ready");
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + number));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("signal {number}\n"));
    }
    // A guest that does not react: the third one ends it.
    let mut command = room.command();
    command.args(["./prog", "ignore"]);
    let (mut child, _) = started(command);
    let mut sent = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if sent < 1000 {
            send(&child, Signal::TERM);
            sent += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(128 + 15));
    assert!(sent >= 3);
}

fn a_reader_that_leaves_ends_the_program() {
    let room = Room::new();
    let mut command = room.command();
    command.args(["./prog", "yes"]);
    let (mut child, line) = started(command);
    assert_eq!(line, "y");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 13), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

fn a_machine_that_dies_is_told() {
    let room = Room::new();
    room.fails(&["./prog", "die"], 125, &["something broke", "--kernel-log"]);
    // A real QEMU that finds no kernel in the file.
    let mut command = room.command();
    command.env("HERMIX_QEMU", "qemu-system-x86_64").args(["./prog", "status", "0"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

fn images_may_be_copied() {
    let room = Room::new();
    let files = |without: &[&str]| {
        let mut command = room.command();
        command.args(["-v", "prog:/volume", "./prog", "files"]);
        command.envs(without.iter().map(|name| (name, "1")));
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""));
        let text = String::from_utf8(output.stdout).unwrap();
        let shown = text.lines().filter(|line| !line.contains(CONFIG_PATH));
        shown.map(str::to_owned).collect::<Vec<_>>()
    };
    let mapped = files(&[]);
    assert!(mapped.iter().any(|line| line.starts_with("100755 volume ")));
    assert_eq!(files(&["FAKE_WITHOUT_MAPPING"]), mapped);
}

fn qemu_does_not_outlive_hermit_run() {
    let room = Room::new();
    let mut command = room.command();
    command.args(["./prog", "ignore"]);
    let (mut child, line) = started(command);
    let pid = line.strip_prefix("ready ").unwrap();
    let process = Path::new("/proc").join(pid);
    assert!(process.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let is_alive = || {
        let state = fs::read_to_string(process.join("stat")).unwrap_or_default();
        // An orphan that nobody has waited for yet is dead all the same.
        !state.is_empty() && !state.contains(") Z ")
    };
    for _ in 0..1000 {
        if !is_alive() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("process {pid} is still there");
}

fn the_terminal_is_raw_and_restored() {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::Signal,
        pty,
        termios::{self, LocalModes, OptionalActions},
    };
    let room = Room::new();
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let name = pty::ptsname(&master, Vec::new()).unwrap();
    let open = || -> OwnedFd {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap()
    };
    let terminal = open();
    let size = termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    termios::tcsetwinsize(&terminal, size).unwrap();
    let is_raw = || {
        let modes = termios::tcgetattr(&terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    };
    let mut master = fs::File::from(master);
    let mut typist = master.try_clone().unwrap();
    let mut until = |text: &str| {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            // The test holds the terminal open itself, so that it never ends.
            let mut fds = [PollFd::new(&master, PollFlags::IN)];
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "nothing after {seen:?}");
            match master.read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                end => panic!("{end:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
        String::from_utf8(seen).unwrap()
    };
    let run = |arguments: &[&str]| {
        let mut command = room.command();
        command.args(arguments).env("TERM", "vt100").process_group(0);
        command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap()
    };
    assert!(!is_raw());
    let mut child = run(&["./prog", "describe"]);
    let text = until("rewrite");
    assert!(text.contains("streams [Terminal, Terminal, Terminal]"), "{text}");
    assert!(text.contains("window 24x80") && text.contains("env TERM=vt100"), "{text}");
    child.wait().unwrap();
    assert!(!is_raw());
    let mut child = run(&["./prog", "wait"]);
    until("ready");
    assert!(is_raw());
    send(&child, Signal::TERM);
    child.wait().unwrap();
    assert!(!is_raw());
    // A guest that hangs: Ctrl-\ five times.
    let mut child = run(&["./prog", "ignore"]);
    until("ready");
    typist.write_all(&[0x1c; 4]).unwrap();
    typist.write_all(b"x").unwrap();
    typist.write_all(&[0x1c; 5]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 3));
    assert!(!is_raw());
    // One whose machine dies.
    let mut child = run(&["./prog", "die"]);
    child.wait().unwrap();
    assert!(!is_raw());
    // With standard output elsewhere, the host's line discipline stays.
    let mut command = room.command();
    command.args(["./prog", "wait"]).stdin(open());
    let (mut child, _) = started(command);
    assert!(!is_raw());
    send(&child, Signal::TERM);
    child.wait().unwrap();
    let unchanged = termios::tcgetattr(&terminal).unwrap();
    termios::tcsetattr(&terminal, OptionalActions::Now, &unchanged).unwrap();
    let text = room.output(&["./prog", "describe"]);
    assert!(text.contains("streams [Null, Pipe, Pipe]"), "{text}");
}

fn links_stay_and_argv0_is_as_typed() {
    let room = Room::new();
    std::os::unix::fs::symlink("prog", room.path("alias")).unwrap();
    let mut command = room.command();
    command.env("PATH", room.path("")).env("HERMIX_QEMU", env::current_exe().unwrap());
    let output = command.args(["alias", "describe"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let program = room.path("alias");
    assert!(text.contains(&format!("program {}\nargv alias\n", program.display())), "{text}");
    let text = room.output(&["./alias", "files"]);
    let name = program.strip_prefix("/").unwrap().display();
    assert!(text.contains(&format!("120777 {name} prog\n")), "{text}");
}

fn a_dry_run_prints_and_does_not_run() {
    let room = Room::new();
    let text = room.output(&["--dry-run", "-m", "32M", "./prog", "status", "9"]);
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("-M microvm") && text.contains("memory-backend-file"), "{text}");
}

fn observations_are_reported() {
    let room = Room::new();
    let output = room.run(&[
        "--stats",
        "--missing-files",
        "--strace=trace",
        "--json",
        "result",
        "./prog",
        "observe",
    ]);
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("not found: /etc/absent\n"), "{stderr}");
    assert!(stderr.contains("42 system calls\n"), "{stderr}");
    let trace = fs::read_to_string(room.path("trace")).unwrap();
    assert_eq!(trace, "openat(...) = -1 ENOENT\n");
    let json = fs::read(room.path("result")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["status"], 0);
    assert_eq!(json["accel"], "tcg");
    assert_eq!(json["stats"]["system calls"], 42);
    assert_eq!(json["missing_files"][0], "/etc/absent");
    let output = room.run(&["--json", "result", "./prog", "signal", "9"]);
    assert_eq!(output.status.code(), Some(137));
    let json = fs::read(room.path("result")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((json["status"].as_u64(), json["signal"].as_u64()), (Some(137), Some(9)));
}
