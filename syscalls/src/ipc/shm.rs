//! System V shared memory (`man 7 sysvipc`, `man 2 shmget`, `man 2 shmop`, `man 2 shmctl`).

use alloc::{format, sync::Arc, vec::Vec};

use super::{Access, Found, Permissions, abi, abi::shmid64_ds, now_s};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    mm::{
        AddressSpace, Backing, FileBacking, FileIdentity, MapRequest, Mapping, Place, Protection,
        SharedMemory, VmaFlags,
    },
    page::PAGE_SIZE,
    parts::Part,
    platform::platform,
    sync::Mutex,
    table::{Call, Flags},
    task::{Capability, Process, System, rlimit::Resource},
    user::{UserAddr, UserPtr},
};

/// `kernel.shmmax` in bytes and `kernel.shmall` in pages.
const LIMIT: u64 = u64::MAX - (1 << 24);
/// `kernel.shmmni`.
const MAX_SEGMENTS: usize = 4096;

/// Memory that processes attach.
pub(crate) struct Segment {
    memory: Arc<SharedMemory>,
    size: usize,
    record: Mutex<Record>,
}

/// Who used a segment last, and when (seconds since the epoch).
#[derive(Clone, Copy)]
struct Record {
    creator: i32,
    last_user: i32,
    attached: i64,
    detached: i64,
    changed: i64,
}

impl Segment {
    fn new(key: i32, size: usize, creator: i32) -> Arc<Self> {
        let name = format!("/SYSV{key:08x} (deleted)");
        // Device 0:1 is the file system that such memory is of in Linux.
        let identity = FileIdentity { device: 1, inode: 0 };
        let record = Record { creator, last_user: 0, attached: 0, detached: 0, changed: now_s() };
        Arc::new(Self {
            memory: SharedMemory::new(size, name.as_bytes(), identity),
            size,
            record: Mutex::new(record),
        })
    }

    fn page_count(&self) -> usize {
        self.size.div_ceil(PAGE_SIZE)
    }

    /// Areas of all processes that show it (`shm_nattch`).
    fn attach_count(&self) -> usize {
        self.memory.mappers().map_or(0, |mappers| mappers.area_count())
    }

    fn is(&self, mapping: &Arc<dyn Mapping>) -> bool {
        core::ptr::addr_eq(Arc::as_ptr(mapping), Arc::as_ptr(&self.memory))
    }

    fn detached_by(&self, pid: i32) {
        let mut record = self.record.lock();
        (record.last_user, record.detached) = (pid, now_s());
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_shmget => shmget(key: i32, size: usize, shmflg: Flags);
    __NR_shmat => shmat(shmid: i32, shmaddr: UserAddr, shmflg: Flags);
    __NR_shmdt => shmdt(shmaddr: UserAddr);
    __NR_shmctl => shmctl(shmid: i32, op: u32, buf: UserAddr);
};

/// Drops removed segments that nobody is attached to any more.
fn sweep(system: &System) {
    system.ipc.segments.retain(|permissions, segment| {
        permissions.mode & abi::SHM_DEST == 0 || segment.attach_count() != 0
    });
}

/// Tells the segments that `space` shows that process `pid` is about to leave it for good.
pub(crate) fn leaving(process: &Process, space: &AddressSpace) {
    if let Some(detach) = PART_DETACH.get() {
        detach(process, space);
    }
}

/// What happens at the end of a process that has segments attached.
static PART_DETACH: Part<fn(&Process, &AddressSpace)> = Part::new("shmget", detach_all);

fn detach_all(process: &Process, space: &AddressSpace) {
    let segments = process.system.ipc.segments.all();
    if segments.is_empty() {
        return;
    }
    space.each_area(|area| {
        let Some(file) = area.file() else { return };
        if let Some(found) = segments.iter().find(|found| found.object.is(&file.mapping)) {
            found.object.detached_by(process.pid);
        }
    });
}

/// To be called when an address space has been given up.
pub(crate) fn left(system: &System) {
    if let Some(sweep) = PART_SWEEP.get() {
        sweep(system);
    }
}

static PART_SWEEP: Part<fn(&System)> = Part::new("shmget", sweep);

fn shmget(ctx: &mut Ctx<'_>, key: i32, size: usize, Flags(flags): Flags) -> SysResult {
    let system = &ctx.thread.process.system;
    sweep(system);
    let pages_in_use: usize =
        system.ipc.segments.all().iter().map(|found| found.object.page_count()).sum();
    let check = |segment: &Segment| {
        if size > segment.size { Err(Errno::EINVAL) } else { Ok(()) }
    };
    let create = || {
        if size == 0 || size as u64 > LIMIT {
            return Err(Errno::EINVAL);
        }
        let pages = size.div_ceil(PAGE_SIZE);
        if (pages_in_use as u64).saturating_add(pages as u64) > LIMIT {
            return Err(Errno::ENOSPC);
        }
        // As with huge pages in `mmap`: none are reserved.
        let is_huge = flags & abi::SHM_HUGETLB != 0;
        if is_huge || pages as u64 > platform().memory_info().total_frames {
            return Err(Errno::ENOMEM);
        }
        Ok(Segment::new(key, size, ctx.thread.process.pid))
    };
    let id =
        system.ipc.segments.get_or_create(ctx.thread, key, flags, MAX_SEGMENTS, check, create)?;
    Ok(id as usize)
}

fn shmat(ctx: &mut Ctx<'_>, id: i32, addr: UserAddr, Flags(flags): Flags) -> SysResult {
    let has = |flag| flags & flag != 0;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let place = if addr.is_null() {
        if has(abi::SHM_REMAP) {
            return Err(Errno::EINVAL);
        }
        Place::Anywhere { hint: UserAddr(0) }
    } else {
        let down = addr.0 & !(PAGE_SIZE as u64 - 1);
        let is_null = down == 0 && has(abi::SHM_REMAP);
        if down != addr.0 && (!has(abi::SHM_RND) || is_null) {
            return Err(Errno::EINVAL);
        }
        match (down, has(abi::SHM_REMAP)) {
            (down, true) => Place::Fixed(UserAddr(down)),
            (down, false) => Place::FixedNoReplace(UserAddr(down)),
        }
    };
    let mut access = Access::READ_WRITE;
    let mut protection = Protection::READ | Protection::WRITE;
    let mut area = VmaFlags::SHARED;
    if has(abi::SHM_RDONLY) {
        access = Access::READ;
        protection.remove(Protection::WRITE);
        area |= VmaFlags::NEVER_WRITE;
    }
    if has(abi::SHM_EXEC) {
        access = Access(access.0 | 0o111);
        protection |= Protection::EXEC;
    }
    let process = &ctx.thread.process;
    let segments = &process.system.ipc.segments;
    let segment = segments.find_for(ctx.thread, id, access)?.object;
    let mut request = MapRequest::anonymous(segment.size, protection).with(area);
    request.place = place;
    let mapping: Arc<dyn Mapping> = segment.memory.clone();
    request.backing = Backing::Mapping(FileBacking { mapping, first: 0, file: None });
    request.lock_limit = crate::mm::calls::lock_limit(ctx);
    let at = process.address_space().map(request).map_err(|errno| match errno {
        Errno::EEXIST => Errno::EINVAL,
        errno => errno,
    })?;
    let mut record = segment.record.lock();
    (record.last_user, record.attached) = (process.pid, now_s());
    Ok(at.0 as usize)
}

fn shmdt(ctx: &mut Ctx<'_>, addr: UserAddr) -> SysResult {
    let page = PAGE_SIZE as u64;
    if !addr.0.is_multiple_of(page) {
        return Err(Errno::EINVAL);
    }
    let process = &ctx.thread.process;
    let space = process.address_space();
    let segments = process.system.ipc.segments.all();
    // The areas of one attachment: `mremap` and `munmap` may have left several.
    let mut attached: Option<&Found<Segment>> = None;
    let mut ranges = Vec::new();
    space.each_area(|area| {
        let Some(file) = area.file() else { return };
        let belongs = area.start >= addr.0 && area.start - addr.0 == file.first * page;
        if belongs && let Some(found) = segments.iter().find(|f| f.object.is(&file.mapping)) {
            let first = *attached.get_or_insert(found);
            if Arc::ptr_eq(&first.object, &found.object) {
                ranges.push(UserAddr(area.start)..UserAddr(area.end));
            }
        }
    });
    let found = attached.ok_or(Errno::EINVAL)?;
    for range in ranges {
        space.unmap(range)?;
    }
    found.object.detached_by(process.pid);
    drop(segments);
    sweep(&process.system);
    Ok(0)
}

fn shmctl(ctx: &mut Ctx<'_>, id: i32, op: u32, buf: UserAddr) -> SysResult {
    if id < 0 || op > i32::MAX as u32 {
        return Err(Errno::EINVAL);
    }
    let system = &ctx.thread.process.system;
    let segments = &system.ipc.segments;
    sweep(system);
    match op {
        abi::IPC_INFO => {
            let info = abi::shminfo64 {
                shmmax: LIMIT,
                shmmin: 1,
                shmmni: MAX_SEGMENTS as u64,
                shmseg: MAX_SEGMENTS as u64,
                shmall: LIMIT,
                ..Default::default()
            };
            UserPtr::from(buf).write(&info)?;
            Ok(segments.highest_index())
        }
        abi::SHM_INFO => {
            let all = segments.all();
            let sum = |f: fn(&Segment) -> usize| -> u64 {
                all.iter().map(|found| f(&found.object) as u64).sum()
            };
            let info = abi::shm_info {
                used_ids: all.len() as i32,
                shm_tot: sum(Segment::page_count),
                shm_rss: sum(|segment| segment.memory.resident_pages()),
                ..Default::default()
            };
            UserPtr::from(buf).write(&info)?;
            Ok(segments.highest_index())
        }
        abi::IPC_STAT | abi::SHM_STAT | abi::SHM_STAT_ANY => {
            let (found, result) = segments.stat(ctx.thread, id, op, abi::SHM_STAT_ANY)?;
            UserPtr::from(buf).write(&report(&found))?;
            Ok(result)
        }
        abi::IPC_SET => {
            let new: shmid64_ds = UserPtr::from(buf).read()?;
            segments.change(ctx.thread, id, |permissions, segment| {
                permissions.set(&new.shm_perm)?;
                segment.record.lock().changed = now_s();
                Ok(())
            })?;
            Ok(0)
        }
        abi::IPC_RMID => {
            segments.change(ctx.thread, id, |permissions, _| {
                permissions.mode |= abi::SHM_DEST;
                permissions.key = abi::IPC_PRIVATE;
                Ok(())
            })?;
            sweep(system);
            Ok(0)
        }
        abi::SHM_LOCK | abi::SHM_UNLOCK => lock(ctx, id, op == abi::SHM_LOCK),
        _ => Err(Errno::EINVAL),
    }
}

/// Memory is never swapped out, so locking it is a matter of permission and of the mode.
fn lock(ctx: &Ctx<'_>, id: i32, is_lock: bool) -> SysResult {
    let who = ctx.thread.credentials();
    let segments = &ctx.thread.process.system.ipc.segments;
    let permissions = segments.find(id)?.permissions;
    if !who.is_capable(Capability::IPC_LOCK) {
        let owns = who.euid == permissions.uid || who.euid == permissions.creator_uid;
        let limit = ctx.thread.process.limits.lock().get(Resource::MEMLOCK).soft;
        if !owns || is_lock && limit == 0 {
            return Err(Errno::EPERM);
        }
    }
    segments.update(id, |permissions| {
        permissions.mode &= !abi::SHM_LOCKED;
        permissions.mode |= if is_lock { abi::SHM_LOCKED } else { 0 };
    })?;
    Ok(0)
}

fn report(found: &Found<Segment>) -> shmid64_ds {
    let record = *found.object.record.lock();
    shmid64_ds {
        shm_perm: found.permissions.report(found.id),
        shm_segsz: found.object.size as u64,
        shm_atime: record.attached,
        shm_dtime: record.detached,
        shm_ctime: record.changed,
        shm_cpid: record.creator,
        shm_lpid: record.last_user,
        shm_nattch: found.object.attach_count() as u64,
        ..Default::default()
    }
}

/// One line of `/proc/sysvipc/shm` for each segment (`man 5 proc`).
pub(crate) fn lines(system: &System) -> Vec<alloc::string::String> {
    sweep(system);
    let line = |found: Found<Segment>| {
        let Permissions { key, uid, gid, creator_uid, creator_gid, mode } = found.permissions;
        let ds = report(&found);
        format!(
            "{key:10} {:10}  {mode:4o} {:21} {:5} {:5}  {:5} {uid:5} {gid:5} {creator_uid:5} \
             {creator_gid:5} {:10} {:10} {:10} {:21} {:21}\n",
            found.id,
            ds.shm_segsz,
            ds.shm_cpid,
            ds.shm_lpid,
            ds.shm_nattch,
            ds.shm_atime,
            ds.shm_dtime,
            ds.shm_ctime,
            found.object.memory.resident_pages() * PAGE_SIZE,
            0,
        )
    };
    system.ipc.segments.all().into_iter().map(line).collect()
}

const _: () = assert!(shmid64_ds::SIZE == 112);
