//! `--rewrite-report` and `--rewrite-map`: what rewriting did in a run.
//!
//! The guest says which files' code it has made executable, and where ([`Code`]). What was planned
//! for them is in the root image, so that the report tells of the plans that were applied, whatever
//! has become of the host's files since.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::{self, Write as _},
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use hx_abi::{ROOT_IMAGE_ADDR, config::PLAN_DIR, cpio, link::Code};
use hx_rewriter::{Number, Plan, StubPlace, Treatment};
use serde::Serialize;

use crate::{
    console::Outcome,
    error::{Error, Result},
    machine::RootImage,
};

/// The guest's counters of system calls, by the way that the calls took: their names in `--stats`
/// and here.
const WAYS: [(&str, &str); 4] = [
    ("  of these answered by a leaf entry", "leaf"),
    ("  of these with a known number", "known_number"),
    ("  of these with the number in rax", "number_in_rax"),
    ("system calls by the syscall instruction", "lstar"),
];

/// What rewriting did in a run.
#[derive(Debug, Serialize)]
pub(crate) struct Rewriting {
    /// By path in the guest.
    files: BTreeMap<String, FileReport>,
    /// System calls by way: `leaf`, `known_number`, `number_in_rax`, `lstar`.
    calls: BTreeMap<&'static str, u64>,
    #[serde(skip)]
    stubs: Vec<Stub>,
}

/// What was done with one file's sites.
#[derive(Debug, Default, Serialize)]
struct FileReport {
    /// How many processes or times its code was mapped, other than by fork.
    mapped: usize,
    /// Whether there is a plan. There is none where no site was found, or no room for a patch, or
    /// where the file could not be read as ELF; then it runs as it is.
    planned: bool,
    /// How many times no room for stubs was found near the code.
    without_room: usize,
    /// Sites found.
    sites: usize,
    /// Sites that are rewritten.
    patched: usize,
    /// Sites by kind of patch.
    kinds: BTreeMap<&'static str, usize>,
    /// The sites that are left.
    left: Vec<Left>,
}

/// A site that is left.
#[derive(Debug, Serialize)]
struct Left {
    /// Its address in the file.
    address: u64,
    /// Why.
    reason: &'static str,
}

/// A stub, for the map.
#[derive(Debug)]
struct Stub {
    pid: i32,
    place: StubPlace,
    /// Run-time address of the site.
    site: u64,
    path: String,
}

impl Rewriting {
    /// Puts together what the guest has said and what the image holds.
    ///
    /// # Errors
    /// Where the image cannot be read.
    pub(crate) fn new(root: &RootImage, outcome: &Outcome) -> Result<Self> {
        let mut plans = BTreeMap::new();
        if outcome.code.iter().any(|code| code.placed.is_some()) {
            let failed = |error| Error::file("cannot read", &root.path, error);
            let mut archive = Vec::new();
            let mut file = File::open(&root.path).map_err(failed)?;
            file.seek(SeekFrom::Start(ROOT_IMAGE_ADDR)).map_err(failed)?;
            file.take(root.len).read_to_end(&mut archive).map_err(failed)?;
            plans = plans_of(&archive);
        }
        let counters = outcome.stats.iter().flat_map(|stats| &stats.counters);
        let counters: BTreeMap<&str, u64> =
            counters.map(|(name, value)| (name.as_str(), *value)).collect();
        let ways = WAYS.iter().filter_map(|(name, way)| Some((*way, *counters.get(name)?)));
        let mut this = Self { files: BTreeMap::new(), calls: ways.collect(), stubs: Vec::new() };
        for code in &outcome.code {
            this.add(code, plans.get(&code.path));
        }
        Ok(this)
    }

    fn add(&mut self, code: &Code, plan: Option<&Plan>) {
        let path = String::from_utf8_lossy(&code.path).into_owned();
        let file = match self.files.entry(path.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(plan.map(FileReport::of).unwrap_or_default()),
        };
        file.mapped += 1;
        let (Some(placed), Some(plan)) = (code.placed, plan) else { return };
        let placement = placed.stubs.and_then(|at| plan.place(placed.load_bias, at).ok());
        let Some(placement) = placement else {
            file.without_room += 1;
            return;
        };
        for stub in plan.stubs(&placement) {
            let site = stub.site.address.wrapping_add(placed.load_bias);
            self.stubs.push(Stub { pid: code.pid, place: stub, site, path: path.clone() });
        }
    }

    /// A line for each stub: `PID START END SITE NUMBER PATH+ADDRESS`, numbers but the first and the
    /// call's in hexadecimal, END exclusive, `-` for a number that is not known.
    pub(crate) fn stub_map(&self) -> String {
        let mut text = String::new();
        for Stub { pid, place: StubPlace { address, len, site: in_file }, site, path } in
            &self.stubs
        {
            let end = address + *len as u64;
            let number = match in_file.number {
                Number::Known(number) => number.to_string(),
                Number::Computed => "-".into(),
            };
            let in_file = in_file.address;
            let _ =
                writeln!(text, "{pid} {address:x} {end:x} {site:x} {number} {path}+{in_file:x}");
        }
        text
    }
}

/// All plans of an image, by the path in the guest of the file that each is for.
fn plans_of(archive: &[u8]) -> BTreeMap<Vec<u8>, Plan> {
    let members = cpio::Reader::new(archive).map_while(std::result::Result::ok);
    let plans = members.filter_map(|member| {
        let path = member.path.strip_prefix(PLAN_DIR.as_bytes())?;
        Some((path.to_vec(), Plan::decode(member.data).ok()?))
    });
    plans.collect()
}

impl FileReport {
    fn of(plan: &Plan) -> Self {
        let sites = plan.sites();
        let mut report = Self { planned: true, sites: sites.len(), ..Self::default() };
        for site in sites {
            match site.treatment {
                Treatment::Leave(reason) => {
                    report.left.push(Left { address: site.address, reason: reason.name() });
                }
                treatment => {
                    report.patched += 1;
                    *report.kinds.entry(treatment.name()).or_default() += 1;
                }
            }
        }
        report
    }
}

impl fmt::Display for Rewriting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, file) in &self.files {
            let path = Path::new(path).display();
            if !file.planned {
                writeln!(f, "hermit-run: {path}: nothing to rewrite was found")?;
                continue;
            }
            write!(f, "hermit-run: {path}: {} sites, {} rewritten", file.sites, file.patched)?;
            for (kind, count) in &file.kinds {
                write!(f, ", {kind} {count}")?;
            }
            writeln!(f)?;
            for left in &file.left {
                writeln!(f, "hermit-run:   left: {:#x} {}", left.address, left.reason)?;
            }
            if file.without_room > 0 {
                writeln!(f, "hermit-run:   no room for stubs: {} times", file.without_room)?;
            }
        }
        let calls = |way: &str| self.calls.get(way).copied().unwrap_or(0);
        let rewritten: u64 = self.calls.values().sum::<u64>() - calls("lstar");
        let share = rewritten as f64 * 100.0 / (rewritten + calls("lstar")).max(1) as f64;
        writeln!(
            f,
            "hermit-run: system calls: {rewritten} from rewritten sites ({share:.2} %): {} known \
             number, {} number in rax, {} leaf; {} LSTAR",
            calls("known_number"),
            calls("number_in_rax"),
            calls("leaf"),
            calls("lstar")
        )
    }
}

#[cfg(test)]
mod tests {
    use hx_abi::link::{PlacedCode, Stats};

    use super::*;

    /// A program of one site: `mov $39, %eax; syscall; ret`.
    fn outcome(code: &[Code]) -> Outcome {
        let counters = WAYS.iter().zip(1..).map(|((name, _), value)| ((*name).into(), value));
        let stats = Some(Stats { counters: counters.collect() });
        Outcome { stats, code: code.to_vec(), ..Outcome::default() }
    }

    #[test]
    fn a_file_without_plan_and_the_ways_are_told() {
        let code = Code { pid: 1, path: b"/bin/x".to_vec(), placed: None };
        let root = RootImage { path: "/nowhere".into(), len: 0 };
        let rewriting = Rewriting::new(&root, &outcome(&[code])).unwrap();
        let text = rewriting.to_string();
        assert!(text.contains("/bin/x: nothing to rewrite"), "{text}");
        assert!(text.contains("6 from rewritten sites (60.00 %)"), "{text}");
        assert!(text.contains("2 known number, 3 number in rax, 1 leaf; 4 LSTAR"), "{text}");
        assert_eq!(rewriting.stub_map(), "");
    }

    #[test]
    fn the_map_names_each_site() {
        let file = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
        let plan = hx_rewriter::plan::plan(&file).unwrap().plan;
        let bias = 0x7f00_0000_0000;
        let stubs = (bias + plan.reach().1).next_multiple_of(1 << 16);
        let placed = Some(PlacedCode { load_bias: bias, stubs: Some(stubs) });
        let code = Code { pid: 7, path: b"/libc".to_vec(), placed };
        let mut rewriting =
            Rewriting { files: BTreeMap::new(), calls: BTreeMap::new(), stubs: Vec::new() };
        rewriting.add(&code, Some(&plan));
        let patched =
            plan.sites().into_iter().filter(|site| !matches!(site.treatment, Treatment::Leave(_)));
        let patched: Vec<u64> = patched.map(|site| site.address).collect();
        assert_eq!(rewriting.files["/libc"].patched, patched.len());
        let map = rewriting.stub_map();
        let mut mapped = Vec::new();
        for line in map.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let hex = |word: &str| u64::from_str_radix(word, 16).unwrap();
            let in_file = hex(words[5].strip_prefix("/libc+").unwrap());
            assert_eq!((words[0], hex(words[3])), ("7", bias + in_file));
            let placement = plan.place(bias, stubs).unwrap();
            // The last instruction of a stub that displaces none behind the call is the call's.
            let original = plan.original_address(&placement, hex(words[1])).unwrap();
            assert!(original.abs_diff(bias + in_file) < 256, "{line}");
            mapped.push(in_file);
        }
        // A site that is reached in two ways may have two stubs.
        mapped.sort_unstable();
        mapped.dedup();
        assert_eq!(mapped, patched);
    }
}
