//! `epoll` (`man 7 epoll`).
//!
//! An [`Item`] is one watched descriptor. It sits in its file's wait queues as a [`Wake`]; a wake-up
//! puts it on its instance's ready list, and `epoll_wait` looks at the files on that list only: the
//! cost follows the number of ready items, not of all. An item that is level-triggered and still
//! ready goes back on the list.
//!
//! Locks, in this order; none is held while a file is asked for its state:
//! * [`EventPoll::items`]: which items there are, and changes of an item's interest;
//! * a file's wait queue (held by whoever calls [`Item::wake_for`]);
//! * [`EventPoll::ready`]: the ready list;
//! * the instance's own wait queues, which are the wait queues of instances that watch it.
//!
//! Instances may watch instances, up to [`MAX_NESTING`] levels and never in a circle, so wake-ups
//! that pass along them take locks in one order.

use alloc::{
    collections::VecDeque,
    string::String,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::{
    any::Any,
    sync::atomic::{AtomicBool, Ordering},
};

use linux_raw_sys::general as linux;

use super::{File, FileDescription, open_file, poll};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    map::Map,
    parts::Part,
    sync::Mutex,
    table::{Call, Fd, Flags},
    task::{Thread, signal::SignalSet},
    user::{UserPtr, write_bytes},
    wait::{PollEvents, PollTable, Sharing, WaitError, WaitQueue, Waiter, Wake, Woken},
};

/// How deep instances may watch one another: links from the outermost to the innermost.
const MAX_NESTING: usize = 4;

/// The most events that one call may ask for (`EP_MAX_EVENTS`).
const MAX_EVENTS: usize = i32::MAX as usize / size_of::<linux::epoll_event>();

/// Flags of an interest that are no events.
const BEHAVIOUR: u32 =
    linux::EPOLLWAKEUP | linux::EPOLLONESHOT | linux::EPOLLET | linux::EPOLLEXCLUSIVE;

/// What may go with `EPOLLEXCLUSIVE`.
const EXCLUSIVE_ALLOWED: u32 = linux::EPOLLIN
    | linux::EPOLLOUT
    | linux::EPOLLERR
    | linux::EPOLLHUP
    | linux::EPOLLWAKEUP
    | linux::EPOLLET
    | linux::EPOLLEXCLUSIVE;

// `epoll_event` is packed, so its fields cannot be borrowed as `user_struct!` does.
impl UserAbi for linux::epoll_event {
    const SIZE: usize = size_of::<Self>();

    fn encode(&self, out: &mut [u8]) {
        let (events, data) = (self.events, self.data);
        let at = core::mem::offset_of!(Self, data);
        events.encode(&mut out[..u32::SIZE]);
        data.encode(&mut out[at..at + u64::SIZE]);
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            events: crate::abi::decode_at(bytes, core::mem::offset_of!(Self, events)),
            data: crate::abi::decode_at(bytes, core::mem::offset_of!(Self, data)),
        }
    }
}

/// A watched descriptor is known by its number and its open file.
type Key = (i32, usize);

fn key(fd: i32, description: &Arc<FileDescription>) -> Key {
    (fd, Arc::as_ptr(description) as usize)
}

/// What is waited for.
#[derive(Clone, Copy)]
struct Interest {
    /// `EPOLL*`, behaviour included.
    events: u32,
    data: u64,
}

impl Interest {
    fn wanted(self) -> PollEvents {
        PollEvents::from_bits_truncate(self.events & !BEHAVIOUR)
    }

    fn has(self, flag: u32) -> bool {
        self.events & flag != 0
    }
}

/// One watched descriptor.
struct Item {
    instance: Weak<EventPoll>,
    this: Weak<Item>,
    fd: i32,
    description: Weak<FileDescription>,
    interest: Mutex<Interest>,
    /// Whether it is on the ready list; changed under the lock of [`EventPoll::ready`].
    is_listed: AtomicBool,
    /// Its place in the file's wait queues. These hold the item: cleared when it is removed.
    registrations: Mutex<Option<PollTable>>,
    is_removed: AtomicBool,
}

impl Item {
    fn key(&self) -> Key {
        (self.fd, self.description.as_ptr() as usize)
    }

    fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Acquire)
    }
}

impl Wake for Item {
    fn wake(&self) {
        self.wake_for(PollEvents::all());
    }

    fn wake_for(&self, events: PollEvents) -> Woken {
        let interest = *self.interest.lock();
        if !events.intersects(interest.wanted()) {
            return Woken::No;
        }
        let (Some(instance), Some(this)) = (self.instance.upgrade(), self.this.upgrade()) else {
            return Woken::No;
        };
        instance.ready.lock().push(&this);
        let woken = instance.wake();
        if interest.has(linux::EPOLLEXCLUSIVE) { woken } else { Woken::Yes }
    }
}

/// Items that may have events.
#[derive(Default)]
struct Ready {
    list: VecDeque<Arc<Item>>,
}

impl Ready {
    fn push(&mut self, item: &Arc<Item>) {
        if !item.is_listed.swap(true, Ordering::Relaxed) {
            self.list.push_back(item.clone());
        }
    }

    fn pop(&mut self) -> Option<Arc<Item>> {
        let item = self.list.pop_front()?;
        item.is_listed.store(false, Ordering::Relaxed);
        Some(item)
    }

    fn remove(&mut self, item: &Arc<Item>) {
        if item.is_listed.swap(false, Ordering::Relaxed) {
            self.list.retain(|other| !Arc::ptr_eq(other, item));
        }
    }
}

/// The instances that watch an open file, so that its end can take it off their lists.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Vec<Weak<Item>>>);

impl Watchers {
    fn add(&self, item: &Arc<Item>) {
        let mut items = self.0.lock();
        items.retain(|item| item.strong_count() > 0);
        items.push(Arc::downgrade(item));
    }

    /// The file has been closed for good.
    pub(super) fn forget(&self) {
        if let Some(forget) = PART_WATCHED.get() {
            forget(self);
        }
    }
}

static PART_WATCHED: Part<fn(&Watchers)> = Part::new("epoll_create,epoll_create1", |watchers| {
    for item in core::mem::take(&mut *watchers.0.lock()) {
        if let Some(item) = item.upgrade()
            && let Some(instance) = item.instance.upgrade()
        {
            instance.remove(&item);
        }
    }
});

/// An epoll instance.
pub struct EventPoll {
    this: Weak<EventPoll>,
    items: Mutex<Map<Key, Arc<Item>>>,
    ready: Mutex<Ready>,
    /// Threads in `epoll_wait`: one is woken at a time.
    sleepers: Arc<WaitQueue>,
    /// `poll` on the instance itself, and instances that watch it.
    watchers: Arc<WaitQueue>,
    /// Instances that watch this one, for the check against circles.
    parents: Mutex<Vec<Weak<EventPoll>>>,
}

/// Serialises the additions of instances to instances: the check against circles looks at several.
static NESTING: Mutex<()> = Mutex::new(());

impl EventPoll {
    /// An instance that watches nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            items: Mutex::default(),
            ready: Mutex::default(),
            sleepers: WaitQueue::new(),
            watchers: WaitQueue::new(),
            parents: Mutex::default(),
        })
    }

    /// Tells those who wait that the ready list is not empty.
    fn wake(&self) -> Woken {
        let woken = self.sleepers.wake_one();
        self.watchers.wake_for(PollEvents::READABLE);
        woken
    }

    /// The events that an item's file has now, of those that are wanted.
    fn look(item: &Item, description: &FileDescription) -> PollEvents {
        description.file.poll(&mut PollTable::query()) & item.interest.lock().wanted()
    }

    /// `EPOLL_CTL_ADD`.
    fn add(
        &self,
        fd: i32,
        description: &Arc<FileDescription>,
        interest: Interest,
    ) -> Result<(), Errno> {
        let nested = description.file.as_any().downcast_ref::<EventPoll>();
        let _nesting = nested.map(|_| NESTING.lock());
        if let Some(nested) = nested {
            self.check_nesting(nested)?;
        }
        let item = Arc::new_cyclic(|this| Item {
            instance: self.this.clone(),
            this: this.clone(),
            fd,
            description: Arc::downgrade(description),
            interest: Mutex::new(interest),
            is_listed: AtomicBool::new(false),
            registrations: Mutex::new(None),
            is_removed: AtomicBool::new(false),
        });
        {
            let mut items = self.items.lock();
            let key = key(fd, description);
            if items.contains_key(&key) {
                return Err(Errno::EEXIST);
            }
            items.insert(key, item.clone());
        }
        description.epoll_items.add(&item);
        if let Some(nested) = nested {
            nested.parents.lock().push(self.this.clone());
        }
        let sharing =
            if interest.has(linux::EPOLLEXCLUSIVE) { Sharing::Exclusive } else { Sharing::Shared };
        let mut table = PollTable::waking(item.clone(), sharing);
        let found = description.file.poll(&mut table) & interest.wanted();
        *item.registrations.lock() = Some(table);
        if item.is_removed() {
            // Closed by another thread meanwhile.
            let registrations = item.registrations.lock().take();
            drop(registrations);
            return Ok(());
        }
        if !found.is_empty() {
            self.ready.lock().push(&item);
            self.wake();
        }
        Ok(())
    }

    /// `EPOLL_CTL_MOD`.
    fn modify(
        &self,
        fd: i32,
        description: &Arc<FileDescription>,
        interest: Interest,
    ) -> Result<(), Errno> {
        let item = self.find(fd, description)?;
        {
            let mut current = item.interest.lock();
            if current.has(linux::EPOLLEXCLUSIVE) {
                return Err(Errno::EINVAL);
            }
            *current = interest;
        }
        if !Self::look(&item, description).is_empty() {
            self.ready.lock().push(&item);
            self.wake();
        }
        Ok(())
    }

    fn find(&self, fd: i32, description: &Arc<FileDescription>) -> Result<Arc<Item>, Errno> {
        self.items.lock().get(&key(fd, description)).cloned().ok_or(Errno::ENOENT)
    }

    /// Takes `item` away, on request or because its file has been closed.
    fn remove(&self, item: &Arc<Item>) {
        item.is_removed.store(true, Ordering::Release);
        let removed = self.items.lock().remove(&item.key());
        // Out of the wait queues; dropped without the lock, which a waker may be waiting for.
        let registrations = item.registrations.lock().take();
        drop(registrations);
        self.ready.lock().remove(item);
        if let Some(description) = item.description.upgrade()
            && let Some(nested) = description.file.as_any().downcast_ref::<EventPoll>()
        {
            let mut parents = nested.parents.lock();
            if let Some(at) = parents.iter().position(|parent| parent.ptr_eq(&self.this)) {
                parents.swap_remove(at);
            }
        }
        drop(removed);
    }

    /// # Errors
    /// `ELOOP` where watching `nested` would close a circle or nest too deep.
    fn check_nesting(&self, nested: &EventPoll) -> Result<(), Errno> {
        let below = nested.depth_below(Some(self), 0).ok_or(Errno::ELOOP)?;
        let above = self.depth_above(0).ok_or(Errno::ELOOP)?;
        if below + 1 + above > MAX_NESTING { Err(Errno::ELOOP) } else { Ok(()) }
    }

    /// Levels of instances below this one; `None` where `origin` is among them, or for too many.
    fn depth_below(&self, origin: Option<&EventPoll>, level: usize) -> Option<usize> {
        if level > MAX_NESTING || origin.is_some_and(|origin| core::ptr::eq(origin, self)) {
            return None;
        }
        let descriptions: Vec<_> =
            self.items.lock().values().filter_map(|item| item.description.upgrade()).collect();
        let mut depth = 0;
        for description in descriptions {
            if let Some(nested) = description.file.as_any().downcast_ref::<EventPoll>() {
                depth = depth.max(nested.depth_below(origin, level + 1)? + 1);
            }
        }
        Some(depth)
    }

    fn depth_above(&self, level: usize) -> Option<usize> {
        if level > MAX_NESTING {
            return None;
        }
        let parents = self.parents.lock().clone();
        let mut depth = 0;
        for parent in parents {
            if let Some(parent) = parent.upgrade() {
                depth = depth.max(parent.depth_above(level + 1)? + 1);
            }
        }
        Some(depth)
    }

    /// Takes up to `max` events off the ready list.
    fn collect(&self, max: usize) -> Batch {
        let mut batch = Batch::default();
        // Only what is listed now: level-triggered items come back at the end.
        let mut left = self.ready.lock().list.len();
        while left > 0 && batch.events.len() < max {
            left -= 1;
            let Some(item) = self.ready.lock().pop() else { break };
            let Some(description) = item.description.upgrade() else { continue };
            let found = Self::look(&item, &description);
            if found.is_empty() {
                continue;
            }
            let interest = {
                let mut current = item.interest.lock();
                let interest = *current;
                if interest.has(linux::EPOLLONESHOT) {
                    current.events &= BEHAVIOUR;
                }
                interest
            };
            batch.events.push(linux::epoll_event { events: found.bits(), data: interest.data });
            batch.items.push((item, interest));
        }
        batch
    }

    /// After a batch: level-triggered items go back on the list.
    fn put_back(&self, batch: &Batch) {
        let more = {
            let mut ready = self.ready.lock();
            for (item, interest) in &batch.items {
                let level = !interest.has(linux::EPOLLET) && !interest.has(linux::EPOLLONESHOT);
                if level && !item.is_removed() {
                    ready.push(item);
                }
            }
            !ready.list.is_empty()
        };
        if more {
            // Others may take what this thread did not, or what is still there.
            self.sleepers.wake_one();
        }
    }

    /// Undoes [`Self::collect`]: the events could not be given to the program.
    fn restore(&self, batch: &Batch) {
        let mut ready = self.ready.lock();
        for (item, interest) in &batch.items {
            item.interest.lock().events = interest.events;
            ready.push(item);
        }
    }

    /// Waits until there are events, and gives up to `max` of them.
    fn wait(
        &self,
        thread: &Thread,
        max: usize,
        deadline_ns: Option<u64>,
    ) -> Result<Batch, WaitError> {
        let collect = || {
            let batch = self.collect(max);
            (!batch.events.is_empty()).then_some(batch)
        };
        if let Some(batch) = collect() {
            return Ok(batch);
        }
        if deadline_ns == Some(0) {
            return Err(WaitError::TimedOut);
        }
        let waiter = Waiter::of(thread);
        let registration = self.sleepers.register(waiter.clone(), Sharing::Exclusive);
        let mut waited = Ok(());
        let error = loop {
            if let Some(batch) = collect() {
                return Ok(batch);
            }
            match waited {
                Err(WaitError::Interrupted) => break WaitError::Interrupted,
                Err(WaitError::TimedOut) => break WaitError::TimedOut,
                Ok(()) => {}
            }
            waited = waiter.wait(thread, deadline_ns);
        };
        drop(registration);
        // A wake-up that came just now was for this thread alone: pass it on.
        if !self.ready.lock().list.is_empty() {
            self.sleepers.wake_one();
        }
        Err(error)
    }

    /// The watched descriptors with their interests and data, for `/proc/<pid>/fdinfo`.
    #[must_use]
    pub fn watched(&self) -> Vec<(i32, u32, u64)> {
        let items = self.items.lock();
        let interest = |item: &Arc<Item>| {
            let interest = *item.interest.lock();
            (item.fd, interest.events, interest.data)
        };
        items.values().map(interest).collect()
    }
}

/// Events on their way to the program.
#[derive(Default)]
struct Batch {
    events: Vec<linux::epoll_event>,
    /// The items they are of, with their interests before `EPOLLONESHOT` took them away.
    items: Vec<(Arc<Item>, Interest)>,
}

impl File for EventPoll {
    fn has_fixed_position(&self) -> bool {
        true
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.watchers);
        // A listed item may have lost its events again: look until one has some.
        let mut left = self.ready.lock().list.len();
        let mut found = PollEvents::empty();
        while left > 0 && found.is_empty() {
            left -= 1;
            let Some(item) = self.ready.lock().pop() else { break };
            let Some(description) = item.description.upgrade() else { continue };
            if !Self::look(&item, &description).is_empty() {
                found = PollEvents::READABLE;
                self.ready.lock().push(&item);
            }
        }
        found
    }

    fn release(&self) {
        let items: Vec<_> = self.items.lock().values().cloned().collect();
        for item in items {
            self.remove(&item);
        }
    }

    fn describe(&self) -> String {
        "anon_inode:[eventpoll]".into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn create(ctx: &mut Ctx<'_>, flags: u32) -> SysResult {
    open_file(ctx.thread, EventPoll::new(), linux::O_RDWR | flags)
}

fn epoll_create(ctx: &mut Ctx<'_>, size: i32) -> SysResult {
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    create(ctx, 0)
}

fn epoll_create1(ctx: &mut Ctx<'_>, Flags(flags): Flags) -> SysResult {
    if flags & !linux::EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    create(ctx, flags)
}

fn epoll_ctl(
    ctx: &mut Ctx<'_>,
    Fd(epfd): Fd,
    op: u32,
    Fd(fd): Fd,
    event: UserPtr<linux::epoll_event>,
) -> SysResult {
    let mut interest = if op == linux::EPOLL_CTL_DEL {
        Interest { events: 0, data: 0 }
    } else {
        let event = event.read()?;
        Interest { events: event.events, data: event.data }
    };
    let files = ctx.thread.files();
    let instance = files.get_open(epfd)?;
    let target = files.get_open(fd)?;
    if !target.file.supports_poll() {
        return Err(Errno::EPERM);
    }
    let epoll = instance.file.as_any().downcast_ref::<EventPoll>();
    let epoll = epoll.filter(|_| !Arc::ptr_eq(&instance, &target)).ok_or(Errno::EINVAL)?;
    // There is no suspend to be kept from.
    interest.events &= !linux::EPOLLWAKEUP;
    if interest.has(linux::EPOLLEXCLUSIVE) {
        let nested = target.file.as_any().is::<EventPoll>();
        let is_add = op == linux::EPOLL_CTL_ADD;
        if !is_add || nested || interest.events & !EXCLUSIVE_ALLOWED != 0 {
            return Err(Errno::EINVAL);
        }
    }
    interest.events |= linux::EPOLLERR | linux::EPOLLHUP;
    match op {
        linux::EPOLL_CTL_ADD => epoll.add(fd, &target, interest)?,
        linux::EPOLL_CTL_MOD => epoll.modify(fd, &target, interest)?,
        linux::EPOLL_CTL_DEL => {
            let item = epoll.find(fd, &target)?;
            epoll.remove(&item);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// The timeout and mask of the variants of `epoll_wait`.
struct WaitArguments {
    timeout_ns: Option<u64>,
    mask: UserPtr<SignalSet>,
    mask_size: usize,
}

fn wait(
    ctx: &mut Ctx<'_>,
    epfd: i32,
    events: UserPtr<linux::epoll_event>,
    max: i32,
    arguments: &WaitArguments,
) -> SysResult {
    poll::apply_mask(ctx.thread, arguments.mask, arguments.mask_size)?;
    let deadline_ns = poll::deadline_after(arguments.timeout_ns);
    let max = usize::try_from(max).ok().filter(|max| (1..=MAX_EVENTS).contains(max));
    let max = max.ok_or(Errno::EINVAL)?;
    events.addr().check(max * linux::epoll_event::SIZE)?;
    let description = ctx.thread.files().get_open(epfd)?;
    let epoll = description.file.as_any().downcast_ref::<EventPoll>().ok_or(Errno::EINVAL)?;
    let batch = match epoll.wait(ctx.thread, max, deadline_ns) {
        Ok(batch) => batch,
        Err(WaitError::TimedOut) => return Ok(0),
        // Never restarted, whatever the handler's flags (`man 7 signal`).
        Err(WaitError::Interrupted) => return Err(Errno::EINTR),
    };
    let mut bytes = vec![0; batch.events.len() * linux::epoll_event::SIZE];
    for (event, out) in batch.events.iter().zip(bytes.chunks_exact_mut(linux::epoll_event::SIZE)) {
        event.encode(out);
    }
    if let Err(errno) = write_bytes(events.addr(), &bytes) {
        epoll.restore(&batch);
        return Err(errno);
    }
    epoll.put_back(&batch);
    Ok(batch.events.len())
}

fn epoll_wait(
    ctx: &mut Ctx<'_>,
    epfd: Fd,
    events: UserPtr<linux::epoll_event>,
    maxevents: i32,
    timeout: i32,
) -> SysResult {
    epoll_pwait(ctx, epfd, events, maxevents, timeout, crate::user::UserAddr(0).into(), 0)
}

fn epoll_pwait(
    ctx: &mut Ctx<'_>,
    Fd(epfd): Fd,
    events: UserPtr<linux::epoll_event>,
    maxevents: i32,
    timeout: i32,
    sigmask: UserPtr<SignalSet>,
    sigsetsize: usize,
) -> SysResult {
    let timeout_ns = poll::timeout_from_ms(timeout);
    let arguments = WaitArguments { timeout_ns, mask: sigmask, mask_size: sigsetsize };
    wait(ctx, epfd, events, maxevents, &arguments)
}

fn epoll_pwait2(
    ctx: &mut Ctx<'_>,
    Fd(epfd): Fd,
    events: UserPtr<linux::epoll_event>,
    maxevents: i32,
    timeout: UserPtr<linux::__kernel_timespec>,
    sigmask: UserPtr<SignalSet>,
    sigsetsize: usize,
) -> SysResult {
    let timeout = timeout.read_optional()?;
    let timeout_ns = timeout.as_ref().map(poll::timeout_from_timespec).transpose()?;
    let arguments = WaitArguments { timeout_ns, mask: sigmask, mask_size: sigsetsize };
    wait(ctx, epfd, events, maxevents, &arguments)
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_epoll_create => epoll_create(size: i32);
    __NR_epoll_create1 => epoll_create1(flags: Flags);
    __NR_epoll_ctl => epoll_ctl(
        epfd: Fd,
        op: u32,
        fd: Fd,
        event: UserPtr<linux::epoll_event>,
    );
    __NR_epoll_wait => epoll_wait(
        epfd: Fd,
        events: UserPtr<linux::epoll_event>,
        maxevents: i32,
        timeout: i32,
    );
    __NR_epoll_pwait => epoll_pwait(
        epfd: Fd,
        events: UserPtr<linux::epoll_event>,
        maxevents: i32,
        timeout: i32,
        sigmask: UserPtr<SignalSet>,
        sigsetsize: usize,
    );
    __NR_epoll_pwait2 => epoll_pwait2(
        epfd: Fd,
        events: UserPtr<linux::epoll_event>,
        maxevents: i32,
        timeout: UserPtr<linux::__kernel_timespec>,
        sigmask: UserPtr<SignalSet>,
        sigsetsize: usize,
    );
};

#[cfg(test)]
mod tests;
