//! Rewriting in the guest: applying the plans that come with the root image.
//!
//! When a range of a private file mapping becomes executable, the file's plan is looked up by its
//! path, a place for its stubs is found near by, and the stubs are mapped there. Pages of the range
//! are patched as they are mapped, in a private copy each. A file without a plan, or without room for
//! stubs within reach, keeps its `syscall` instructions.
//!
//! [`Rewriter`] is one process' state: which plans are placed where. `fork` copies it. Patched pages
//! and stubs are shared between relatives like any other page. A plan is decoded once, and kept.

use alloc::{
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::ops::Range;

use hx_abi::link::{Code, MappedCode, PlacedCode, Record};
use hx_rewriter::{Number, Placement, Plan, format::STUB_AREA_ALIGN};
use hx_syscalls::sync::{Mutex, RwLock};
use hx_syscalls::{
    fs::FileDescription,
    map::Map,
    mm::{
        AddressSpace, CodePage, CodePatcher, CodeRange, Fault, MapRequest, Mapping, Place,
        Protection,
    },
    page::{OutOfMemory, PAGE_SIZE, Page},
    platform::Platform,
    task::System,
    user::UserAddr,
};

use crate::{machine, platform::KERNEL, sched};

/// Decoded plans by the file's path; `None` for a file without a usable one.
static PLANS: Mutex<Map<Vec<u8>, Option<Arc<Plan>>>> = Mutex::new(Map::new());

/// Patched pages of the root image, which never change: what is written depends on the plan and on how
/// far the stubs are from the code, not on where that is.
static PATCHED: Mutex<Map<PatchedKey, Page>> = Mutex::new(Map::new());

/// The plan, which is in [`PLANS`] and so lasts, the original page, and the distance.
type PatchedKey = (usize, u64, u64);

/// At most one frame in so many of the machine is kept in [`PATCHED`].
const PATCHED_SHARE: u64 = 128;

/// Stub areas of late, the oldest first: they depend on the same.
static STUB_AREAS: Mutex<Vec<Arc<StubArea>>> = Mutex::new(Vec::new());

/// How many stub areas are kept that nobody uses.
const STUB_AREAS_KEPT: usize = 16;

/// How far the stubs are from the code.
fn distance(placement: &Placement) -> u64 {
    placement.load_bias().wrapping_sub(placement.stub_base())
}

/// One mapped stretch of code with a plan.
#[derive(Clone)]
struct Module {
    plan: Arc<Plan>,
    placement: Placement,
    code: Range<u64>,
    mapping: Arc<dyn Mapping>,
    stubs: Range<u64>,
    /// The plan is one of [`PLANS`].
    has_lasting_plan: bool,
}

impl Module {
    /// Where [`PATCHED`] has the patched copy of a page, if that may be kept.
    fn patched_key(&self, original: &Page) -> Option<PatchedKey> {
        let frame = original.frame();
        let lasts = self.has_lasting_plan && machine::is_image_frame(frame);
        let plan = Arc::as_ptr(&self.plan) as usize;
        lasts.then(|| (plan, frame.0, distance(&self.placement)))
    }
}

/// A process' patched code.
pub struct Rewriter {
    system: Weak<System>,
    leaves: Leaves,
    /// Otherwise it only tells of code, for the profiler.
    is_on: bool,
    modules: RwLock<Vec<Module>>,
}

/// The stub area of one module: pages written when they are first touched.
struct StubArea {
    plan: Arc<Plan>,
    placement: Placement,
    leaves: Leaves,
    pages: Mutex<Map<u64, Page>>,
}

impl StubArea {
    /// One that is there already, or a new one.
    fn of(plan: &Arc<Plan>, placement: Placement, leaves: Leaves) -> Arc<Self> {
        let mut areas = STUB_AREAS.lock();
        let same = |area: &&Arc<Self>| {
            Arc::ptr_eq(&area.plan, plan)
                && distance(&area.placement) == distance(&placement)
                && area.leaves == leaves
        };
        if let Some(area) = areas.iter().find(same) {
            return area.clone();
        }
        let (plan, pages) = (plan.clone(), Mutex::new(Map::new()));
        let area = Arc::new(Self { plan, placement, leaves, pages });
        if areas.len() == STUB_AREAS_KEPT {
            areas.remove(0);
        }
        areas.push(area.clone());
        area
    }
}

impl Mapping for StubArea {
    fn page(&self, index: u64) -> Result<Page, Fault> {
        let mut pages = self.pages.lock();
        if let Some(page) = pages.get(&index) {
            return Ok(page.clone());
        }
        let offset = index as usize * PAGE_SIZE;
        if offset >= self.plan.stub_area_len() {
            return Err(Fault::PastEnd);
        }
        let page = Page::zeroed()?;
        let mut bytes = vec![0; PAGE_SIZE];
        let entry = |number| entry_for(number, self.leaves);
        self.plan.write_stubs(&self.placement, offset, &mut bytes, entry);
        page.write(0, &bytes);
        pages.insert(index, page.clone());
        Ok(page)
    }

    fn page_for_write(&self, _index: u64) -> Result<Page, Fault> {
        Err(Fault::NotAllowed)
    }
}

/// Whether calls that have a leaf entry use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// They do.
    Direct,
    /// All calls go through the dispatcher, which `--strace` and `--rewrite-check` watch.
    Dispatched,
}

/// Where a stub enters the kernel.
fn entry_for(number: Number, leaves: Leaves) -> u64 {
    match number {
        Number::Known(number) => match machine::leaf_entry(number) {
            Some(leaf) if leaves == Leaves::Direct => leaf,
            _ => machine::stub_entry(Some(number)),
        },
        Number::Computed => machine::stub_entry(None),
    }
}

impl Rewriter {
    /// For a process that has no code yet.
    pub fn new(system: &Arc<System>) -> Arc<Self> {
        let config = &system.config;
        let is_watched = config.strace || config.syscall_summary || config.rewrite_check;
        let leaves = if is_watched { Leaves::Dispatched } else { Leaves::Direct };
        Arc::new(Self {
            system: Arc::downgrade(system),
            leaves,
            is_on: config.rewrite,
            modules: RwLock::new(Vec::new()),
        })
    }

    fn plan_for(&self, file: &FileDescription) -> Option<Arc<Plan>> {
        if !self.is_on {
            return None;
        }
        let path = file.path()?.absolute(None)?;
        if let Some(known) = PLANS.lock().get(&path) {
            return known.clone();
        }
        let member = [b"plans", &path[..]].concat();
        let encoded = self.system.upgrade()?.vfs.hidden_member(&member);
        let plan = encoded.and_then(|member| match Plan::decode(member.data) {
            Ok(plan) => Some(Arc::new(plan)),
            Err(error) => {
                log::warn!("the plan of {} is unusable: {error}", path.escape_ascii());
                None
            }
        });
        PLANS.lock().insert(path, plan.clone());
        plan
    }

    /// Tells `--rewrite-report` of code that has become executable.
    fn report(&self, code: &CodeRange, placed: Option<PlacedCode>) {
        let is_wanted = self.system.upgrade().is_some_and(|system| system.config.rewrite_report);
        let path = code.file.as_deref().and_then(|file| file.path()?.absolute(None));
        if let (true, Some(path)) = (is_wanted, path) {
            // The first program is mapped before there is a thread.
            let pid = sched::current_thread().map_or(1, |thread| thread.process.pid);
            KERNEL.send_record(&Record::Code(Code { pid, path, placed }));
        }
    }

    /// What `f` makes of the module whose code the page is of, where there is something to patch in it.
    fn with_module<R>(&self, page: &CodePage<'_>, f: impl FnOnce(&Module) -> R) -> Option<R> {
        let modules = self.modules.read();
        // The latest mapping of an address is the one that counts.
        let module = modules.iter().rev().find(|module| {
            module.code.contains(&page.at.0) && Arc::ptr_eq(&module.mapping, page.mapping)
        })?;
        module.plan.has_patches(&module.placement, page.at.0, PAGE_SIZE as u64).then(|| f(module))
    }
}

/// Planning in the guest: files that no plan was made for on the host, such as those of a volume, or
/// that the program has made itself.
#[cfg(feature = "rewriter-guest")]
mod guest {
    use super::*;

    /// What a file was when it was planned: it may have been replaced or written since.
    type Version = (u64, i64, u32);

    /// Plans by path; `None` for a file without anything to patch.
    static PLANNED: Mutex<Map<Vec<u8>, (Version, Option<Arc<Plan>>)>> = Mutex::new(Map::new());

    /// The largest file that is planned: planning takes a few times as much memory.
    const MOST: u64 = 64 << 20;

    /// The plan of the file whose code this is.
    pub(super) fn plan_for(code: &CodeRange) -> Option<Arc<Plan>> {
        let file = code.file.as_deref()?;
        let path = file.path()?.absolute(None)?;
        let metadata = file.metadata();
        let version = (metadata.size, metadata.mtime.sec, metadata.mtime.nsec);
        if let Some((of, plan)) = PLANNED.lock().get(&path)
            && *of == version
        {
            return plan.clone();
        }
        let plan = (metadata.size <= MOST).then(|| read(code, metadata.size as usize)).flatten();
        let plan = plan.and_then(|elf| hx_rewriter::plan::plan(&elf).ok());
        let plan = plan.map(|planned| Arc::new(planned.plan));
        log::info!("planned {} in the guest", path.escape_ascii());
        PLANNED.lock().insert(path, (version, plan.clone()));
        plan
    }

    /// The whole file, by its pages.
    fn read(code: &CodeRange, len: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        bytes.resize(len, 0);
        for (index, part) in (0..).zip(bytes.chunks_mut(PAGE_SIZE)) {
            code.mapping.page(index).ok()?.read(0, part);
        }
        // A file without the instruction needs no plan.
        let has_call = bytes.windows(2).any(|pair| pair == [0x0f, 0x05]);
        has_call.then_some(bytes)
    }
}

/// Tells `--profile` of code that has become executable.
fn tell_profiler(space: &AddressSpace, code: &CodeRange, placed: Option<PlacedCode>) {
    let path = || code.file.as_deref()?.path()?.absolute(None);
    if crate::profile::is_on()
        && let Some(path) = path()
    {
        // The first program is mapped before there is a thread.
        let thread = sched::current_thread();
        let pid = thread.map_or(1, |thread| thread.process.pid);
        let by_exec = thread.is_none_or(|thread| !core::ptr::eq(&*thread.mm(), space));
        KERNEL.send_record(&Record::MappedCode(MappedCode {
            tsc: machine::tsc(),
            pid,
            path,
            start: code.range.start.0,
            end: code.range.end.0,
            offset: code.first * PAGE_SIZE as u64,
            by_exec,
            placed,
        }));
    }
}

/// Maps the stubs of `plan` near the module loaded with `bias`.
fn map_stubs(
    space: &AddressSpace,
    plan: &Arc<Plan>,
    bias: u64,
    leaves: Leaves,
) -> Option<(Placement, Range<u64>)> {
    let len = plan.stub_area_len().next_multiple_of(PAGE_SIZE);
    let (low, high) = plan.reach();
    let (low, high) = (low.wrapping_add(bias), high.wrapping_add(bias));
    let phase = bias % STUB_AREA_ALIGN;
    // Below the module first: what lies above a program is its heap.
    let below = (low.saturating_sub(len as u64 + STUB_AREA_ALIGN) & !(STUB_AREA_ALIGN - 1)) + phase;
    let above = high.next_multiple_of(STUB_AREA_ALIGN) + (256 << 20) + phase;
    let mut candidates = (0..64).map(|step| below.saturating_sub(step * STUB_AREA_ALIGN * 4));
    let mut above = (0..16).map(|step| above + step * (16 << 20));
    candidates.by_ref().chain(above.by_ref()).find_map(|at| {
        let placement = plan.place(bias, at).ok()?;
        let mapping = StubArea::of(plan, placement, leaves);
        let protection = Protection::READ | Protection::EXEC;
        let request = MapRequest {
            place: Place::FixedNoReplace(UserAddr(at)),
            ..MapRequest::mapping(mapping, 0, None, len, protection)
        };
        space.map(request).ok()?;
        Some((placement, at..at + len as u64))
    })
}

impl CodePatcher for Rewriter {
    fn range_executable(&self, space: &AddressSpace, code: &CodeRange) {
        let plan = code.file.as_deref().and_then(|file| self.plan_for(file));
        let has_lasting_plan = plan.is_some();
        #[cfg(feature = "rewriter-guest")]
        let plan = plan.or_else(|| self.is_on.then(|| guest::plan_for(code)).flatten());
        let Some(plan) = plan.filter(|plan| plan.patch_count() > 0) else {
            self.report(code, None);
            tell_profiler(space, code, None);
            return;
        };
        let range = code.range.start.0..code.range.end.0;
        let Some(bias) = plan.load_bias(code.first * PAGE_SIZE as u64, range.start) else { return };
        // A file's code may become executable piece by piece: one stub area serves all pieces.
        let placed = {
            let modules = self.modules.read();
            let mut same = modules.iter().filter(|module| {
                Arc::ptr_eq(&module.plan, &plan) && module.placement.load_bias() == bias
            });
            same.next().map(|module| (module.placement, module.stubs.clone()))
        };
        let is_new = placed.is_none();
        let placed = placed.or_else(|| map_stubs(space, &plan, bias, self.leaves));
        if is_new {
            let stubs = placed.as_ref().map(|(placement, _)| placement.stub_base());
            self.report(code, Some(PlacedCode { load_bias: bias, stubs }));
        }
        let stubs = placed.as_ref().map(|(placement, _)| placement.stub_base());
        tell_profiler(space, code, Some(PlacedCode { load_bias: bias, stubs }));
        let Some((placement, stubs)) = placed else {
            log::warn!("no room for the stubs of the code at {:#x}", range.start);
            return;
        };
        let mapping = code.mapping.clone();
        let module = Module { plan, placement, code: range, mapping, stubs, has_lasting_plan };
        self.modules.write().push(module);
    }

    fn at_hand(&self, page: &CodePage<'_>, original: Page) -> Option<Page> {
        let patched = self.with_module(page, |module| {
            PATCHED.lock().get(&module.patched_key(&original)?).cloned()
        });
        patched.unwrap_or(Some(original))
    }

    fn patch(&self, page: &CodePage<'_>, original: &Page) -> Result<Option<Page>, OutOfMemory> {
        let Some(module) = self.with_module(page, Module::clone) else { return Ok(None) };
        let key = module.patched_key(original);
        if let Some(patched) = key.and_then(|key| PATCHED.lock().get(&key).cloned()) {
            return Ok(Some(patched));
        }
        let mut bytes = vec![0; PAGE_SIZE];
        original.read(0, &mut bytes);
        module.plan.patch_page(&module.placement, page.at.0, &mut bytes);
        let patched = Page::zeroed()?;
        patched.write(0, &bytes);
        if let Some(key) = key {
            let limit = KERNEL.memory_info().total_frames / PATCHED_SHARE;
            let mut all = PATCHED.lock();
            if (all.len() as u64) < limit {
                all.insert(key, patched.clone());
            }
        }
        Ok(Some(patched))
    }

    fn original_address(&self, at: UserAddr) -> UserAddr {
        let modules = self.modules.read();
        // Padding in the code may hold a jump to a stub: it stands for the site as well.
        let module = modules
            .iter()
            .rev()
            .find(|module| module.stubs.contains(&at.0) || module.code.contains(&at.0));
        let original =
            module.and_then(|module| module.plan.original_address(&module.placement, at.0));
        original.map_or(at, UserAddr)
    }

    fn resume_address(&self, at: UserAddr) -> Option<UserAddr> {
        let modules = self.modules.read();
        let mut here = modules.iter().rev().filter(|module| module.code.contains(&at.0));
        here.find_map(|module| module.plan.resume_address(&module.placement, at.0)).map(UserAddr)
    }

    fn forked(&self) -> Arc<dyn CodePatcher> {
        let modules = RwLock::new(self.modules.read().clone());
        let Self { leaves, is_on, .. } = *self;
        Arc::new(Self { system: self.system.clone(), leaves, is_on, modules })
    }
}
