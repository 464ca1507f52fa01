//! `--profile`: from the guest's samples to a flame graph, folded stacks or `perf script`'s text.
//!
//! A sample holds the kernel's frames as addresses, and of the application three registers and what lay on
//! its stack ([`hx_abi::profile`]). What the addresses mean at that moment follows from the records of code
//! that was mapped and of processes that were made, which have the time too. The application's frames are
//! found with the unwind tables that every object has ([`object`]), and by frame pointers where there
//! are none. An address in a stub stands for the system call site that the stub is for.

mod object;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    rc::Rc,
};

use hx_abi::{ROOT_IMAGE_ADDR, config::PLAN_DIR, cpio, link::MappedCode, profile::Sample};
use hx_rewriter::{Placement, Plan};

use self::object::{Object, Registers, Stack};
use crate::{
    error::{Error, Result},
    machine::RootImage,
};

/// Frames of the application that are looked for at most.
const MOST_FRAMES: usize = 200;

/// What the guest has told.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Where the processors were.
    pub(crate) samples: Vec<Sample>,
    /// Code that was mapped.
    pub(crate) code: Vec<MappedCode>,
    /// When processes were made, by whom, and which.
    pub(crate) forks: Vec<(u64, i32, i32)>,
    /// Samples that there was no room for.
    pub(crate) lost: u64,
}

/// A stretch of code in a process.
#[derive(Clone)]
struct Region {
    code: Rc<MappedCode>,
    object: Rc<Object>,
    stubs: Option<(Rc<Plan>, Placement)>,
}

/// A process at some moment.
#[derive(Clone, Default)]
struct Process {
    name: String,
    /// Nothing of it has run since `execve` mapped something.
    is_starting: bool,
    regions: Vec<Region>,
}

/// One frame, for all outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frame {
    address: u64,
    /// The function.
    name: String,
    /// Bytes from the function's start.
    offset: u64,
    /// The file that it is in.
    file: Rc<str>,
}

/// A sample with its frames, innermost first.
struct Stacked<'a> {
    sample: &'a Sample,
    process: String,
    frames: Vec<Frame>,
}

/// The formats of the output, by the end of the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A flame graph.
    Svg,
    /// A line for each stack: its frames from the outermost on, and how often it was seen.
    Folded,
    /// As `perf script` prints it.
    Perf,
}

impl Format {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|end| end.to_str()) {
            Some("folded") => Self::Folded,
            Some("perf") => Self::Perf,
            _ => Self::Svg,
        }
    }
}

/// Writes the profile to each of `paths`.
///
/// # Errors
/// Where a file cannot be read or written.
pub(crate) fn write(
    recording: &Recording,
    paths: &[PathBuf],
    archives: &Archives,
    kernel: &Path,
    tsc_khz: Option<u64>,
) -> Result<()> {
    let kernel = fs::read(kernel).map_err(|error| Error::file("cannot read", kernel, error))?;
    let kernel = Object::new("[kernel]".into(), kernel);
    let stacked = Replay::new(archives, &kernel).run(recording);
    let folded = folded(&stacked);
    for path in paths {
        let failed = |error: io::Error| Error::file("cannot write", path, error);
        match Format::of(path) {
            Format::Svg => {
                let mut options = inferno::flamegraph::Options::default();
                options.title = "hermit-run --profile".into();
                options.subtitle = Some(format!("{} samples", stacked.len()));
                options.count_name = "samples".into();
                // A program that ends before the first sample has an empty graph, not an error.
                let text = if folded.is_empty() { "nothing 1\n" } else { &folded };
                let file = File::create(path).map_err(failed)?;
                let drawn = inferno::flamegraph::from_lines(&mut options, text.lines(), file);
                drawn.map_err(|error| failed(io::Error::other(error.to_string())))?;
            }
            Format::Folded => fs::write(path, &folded).map_err(failed)?,
            Format::Perf => fs::write(path, perf_script(&stacked, tsc_khz)).map_err(failed)?,
        }
    }
    Ok(())
}

/// The files of the guest, as far as hermit-run has given them to it.
pub(crate) struct Archives {
    bytes: Vec<Vec<u8>>,
}

impl Archives {
    /// Of the root image and the boot archive, whose files come first.
    ///
    /// # Errors
    /// Where the image cannot be read.
    pub(crate) fn new(root: &RootImage, boot: &[u8]) -> Result<Self> {
        let failed = |error| Error::file("cannot read", &root.path, error);
        let mut archive = Vec::new();
        let mut file = File::open(&root.path).map_err(failed)?;
        file.seek(SeekFrom::Start(ROOT_IMAGE_ADDR)).map_err(failed)?;
        file.take(root.len).read_to_end(&mut archive).map_err(failed)?;
        Ok(Self { bytes: vec![boot.to_vec(), archive] })
    }

    /// Where each member is, by its name without the slash that paths begin with.
    fn members(&self) -> HashMap<&[u8], &[u8]> {
        let mut members = HashMap::new();
        for bytes in self.bytes.iter().rev() {
            let all = cpio::Reader::new(bytes).map_while(std::result::Result::ok);
            members.extend(all.map(|member| (member.path, member.data)));
        }
        members
    }
}

/// Goes through what was recorded, in the order in which it happened.
struct Replay<'a> {
    members: HashMap<&'a [u8], &'a [u8]>,
    kernel: &'a Object,
    objects: HashMap<Vec<u8>, Rc<Object>>,
    plans: HashMap<Vec<u8>, Option<Rc<Plan>>>,
    processes: BTreeMap<u32, Process>,
}

enum Event<'a> {
    Code(&'a MappedCode),
    Fork(i32, i32),
    Sample(&'a Sample),
}

impl<'a> Replay<'a> {
    fn new(archives: &'a Archives, kernel: &'a Object) -> Self {
        Self {
            members: archives.members(),
            kernel,
            objects: HashMap::new(),
            plans: HashMap::new(),
            processes: BTreeMap::new(),
        }
    }

    fn run(mut self, recording: &'a Recording) -> Vec<Stacked<'a>> {
        let code = recording.code.iter().map(|code| (code.tsc, Event::Code(code)));
        let forks = recording.forks.iter();
        let forks = forks.map(|(tsc, parent, child)| (*tsc, Event::Fork(*parent, *child)));
        let samples = recording.samples.iter().map(|sample| (sample.tsc, Event::Sample(sample)));
        let mut events: Vec<_> = code.chain(forks).chain(samples).collect();
        events.sort_by_key(|(tsc, _)| *tsc);
        let mut stacked = Vec::new();
        for (_, event) in events {
            match event {
                Event::Code(code) => self.mapped(code),
                Event::Fork(parent, child) => {
                    let copy = self.processes.get(&(parent as u32)).cloned().unwrap_or_default();
                    self.processes.insert(child as u32, copy);
                }
                Event::Sample(sample) => {
                    if let Some(process) = self.processes.get_mut(&sample.pid) {
                        process.is_starting &= sample.rip == 0 || !sample.kernel.is_empty();
                    }
                    stacked.push(self.stack_of(sample));
                }
            }
        }
        stacked
    }

    fn mapped(&mut self, code: &MappedCode) {
        let name = code.path.strip_prefix(b"/").unwrap_or(&code.path);
        let object = self.objects.entry(code.path.clone()).or_insert_with(|| {
            let bytes = self.members.get(name).map(|bytes| bytes.to_vec()).unwrap_or_default();
            Rc::new(Object::new(String::from_utf8_lossy(&code.path).into(), bytes))
        });
        let plan = self.plans.entry(code.path.clone()).or_insert_with(|| {
            let member = [PLAN_DIR.as_bytes(), &code.path].concat();
            Some(Rc::new(Plan::decode(self.members.get(&member[..])?).ok()?))
        });
        let stubs = code.placed.zip(plan.clone()).and_then(|(placed, plan)| {
            let placement = plan.place(placed.load_bias, placed.stubs?).ok()?;
            Some((plan, placement))
        });
        let process = self.processes.entry(code.pid as u32).or_default();
        // The program is mapped before its interpreter, which comes at once.
        if code.by_exec && !process.is_starting {
            let path = String::from_utf8_lossy(&code.path);
            process.name = path.rsplit('/').next().unwrap_or_default().to_owned();
            process.regions.clear();
        }
        process.is_starting = code.by_exec;
        let region = Region { code: Rc::new(code.clone()), object: object.clone(), stubs };
        process.regions.retain(|old| old.code.end <= code.start || code.end <= old.code.start);
        process.regions.push(region);
    }

    fn stack_of<'s>(&self, sample: &'s Sample) -> Stacked<'s> {
        let mut frames: Vec<Frame> = sample
            .kernel
            .iter()
            .enumerate()
            .map(|(depth, address)| frame(self.kernel, *address, *address, depth > 0))
            .collect();
        let nobody = Process::default();
        let process = self.processes.get(&sample.pid).unwrap_or(&nobody);
        process.unwind(sample, &mut frames);
        let name = if process.name.is_empty() { "-".into() } else { process.name.clone() };
        Stacked { sample, process: name, frames }
    }
}

/// The frame at `address`, which is `in_file` in the object's own terms. A return address stands for the
/// call before it.
fn frame(object: &Object, address: u64, in_file: u64, is_return: bool) -> Frame {
    let at = in_file.saturating_sub(u64::from(is_return));
    let (name, start) = object.function(at);
    Frame { address, name, offset: in_file - start, file: object.name.clone() }
}

impl Process {
    fn region(&self, address: u64) -> Option<&Region> {
        let mut regions = self.regions.iter();
        regions.rfind(|region| (region.code.start..region.code.end).contains(&address))
    }

    /// The address that `address` stands for: where it is in a stub, that of the site.
    fn original(&self, address: u64) -> u64 {
        let of = |region: &Region| {
            let (plan, placement) = region.stubs.as_ref()?;
            plan.original_address(placement, address)
        };
        self.regions.iter().rev().find_map(of).unwrap_or(address)
    }

    /// Adds the application's frames.
    fn unwind(&self, sample: &Sample, frames: &mut Vec<Frame>) {
        if sample.rip == 0 {
            return;
        }
        let stack = Stack { at: sample.rsp, words: &sample.stack };
        let ip = self.original(sample.rip);
        let mut registers = Registers { ip, sp: sample.rsp, bp: sample.rbp };
        for depth in 0..MOST_FRAMES {
            let at = registers.ip;
            let Some(region) = self.region(at) else {
                if depth == 0 {
                    let file: Rc<str> = "[unknown]".into();
                    frames.push(Frame { address: at, name: file.to_string(), offset: 0, file });
                    // Code without a file, such as the vDSO's: perhaps it has pushed nothing.
                    if let Some(caller) = stack.word(registers.sp)
                        && self.region(caller).is_some()
                    {
                        registers = Registers { ip: caller, sp: registers.sp + 8, ..registers };
                        continue;
                    }
                }
                return;
            };
            let Some(in_file) = region.object.in_file(at - region.code.start + region.code.offset)
            else {
                return;
            };
            // What a system call interrupts has not returned: its address is the next instruction's.
            frames.push(frame(&region.object, at, in_file, depth > 0));
            let caller = match region.object.caller(in_file, depth > 0, &registers, &stack) {
                Some(caller) => caller,
                None => return,
            };
            if caller.ip == 0 || caller.sp <= registers.sp {
                return;
            }
            registers = Registers { ip: self.original(caller.ip), ..caller };
        }
    }
}

/// A stack as one line, outermost first.
fn folded(stacked: &[Stacked<'_>]) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for one in stacked {
        let mut line = one.process.replace(';', ":");
        for frame in one.frames.iter().rev() {
            // What separates frames does not occur in their names.
            let _ = write!(line, ";{}", frame.name.replace(';', ":"));
            if &*frame.file == "[kernel]" {
                line += "_[k]";
            }
        }
        *counts.entry(line).or_default() += 1;
    }
    counts.iter().map(|(line, count)| format!("{line} {count}\n")).collect()
}

fn perf_script(stacked: &[Stacked<'_>], tsc_khz: Option<u64>) -> String {
    let first = stacked.first().map_or(0, |one| one.sample.tsc);
    let khz = tsc_khz.unwrap_or(1_000_000) as f64;
    let mut text = String::new();
    for Stacked { sample, process, frames } in stacked {
        let seconds = (sample.tsc - first) as f64 / khz / 1e3;
        let Sample { pid, tid, cpu, .. } = sample;
        let _ = writeln!(text, "{process} {pid}/{tid} [{cpu:03}] {seconds:.6}: 1 cycles:");
        for Frame { address, name, offset, file } in frames {
            let _ = writeln!(text, "\t{address:16x} {name}+{offset:#x} ({file})");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one<'a>(sample: &'a Sample, names: &[(&str, &str)]) -> Stacked<'a> {
        let frame = |(name, file): &(&str, &str)| Frame {
            address: 0x1000,
            name: (*name).into(),
            offset: 4,
            file: (*file).into(),
        };
        Stacked { sample, process: "sh".into(), frames: names.iter().map(frame).collect() }
    }

    #[test]
    fn stacks_are_folded_and_counted() {
        let sample = Sample::default();
        let both = [("read", "[kernel]"), ("main;x", "/bin/sh")];
        let all = [one(&sample, &both), one(&sample, &both), one(&sample, &both[1..])];
        assert_eq!(folded(&all), "sh;main:x 1\nsh;main:x;read_[k] 2\n");
    }

    #[test]
    fn perf_scripts_have_a_paragraph_for_each_sample() {
        let sample = Sample { pid: 3, tid: 4, cpu: 1, tsc: 5, ..Sample::default() };
        let text = perf_script(&[one(&sample, &[("main", "/bin/sh")])], Some(1_000_000));
        assert_eq!(
            text,
            "sh 3/4 [001] 0.000000: 1 cycles:\n\t            1000 main+0x4 (/bin/sh)\n\n"
        );
    }

    #[test]
    fn the_end_of_the_name_is_the_format() {
        let of = |name: &str| Format::of(Path::new(name));
        assert_eq!(
            (of("a.svg"), of("a"), of("a.folded")),
            (Format::Svg, Format::Svg, Format::Folded)
        );
        assert_eq!(of("x/a.perf"), Format::Perf);
    }

    /// Frames of code that does not run: the C library's own, from a stack made by hand.
    #[test]
    fn callers_are_found_by_unwind_tables() {
        let path = "/lib/x86_64-linux-gnu/libc.so.6";
        let object = Rc::new(Object::new(path.into(), fs::read(path).unwrap()));
        let (start, offset) = object.code_range().unwrap();
        let base = 0x7f00_0000_0000;
        let code = MappedCode {
            tsc: 0,
            pid: 1,
            path: path.into(),
            start: base + start,
            end: base + start + (1 << 20),
            offset,
            by_exec: true,
            placed: None,
        };
        let region = Region { code: Rc::new(code), object: object.clone(), stubs: None };
        let process = Process { regions: vec![region], ..Process::default() };
        // At the first instruction of a function the return address is on top of the stack.
        let getpid = base + object.address_of("getpid").unwrap();
        let abs = base + object.address_of("abs").unwrap();
        let sample =
            Sample { rip: getpid, rsp: 0x7ffc_0000, stack: vec![abs + 1, 0], ..Sample::default() };
        let mut frames = Vec::new();
        process.unwind(&sample, &mut frames);
        let names: Vec<&str> = frames.iter().map(|frame| frame.name.as_str()).collect();
        assert!(names[0].ends_with("getpid") && names[1] == "abs", "{frames:?}");
        assert_eq!((names.len(), frames[1].offset), (2, 1));
    }
}
