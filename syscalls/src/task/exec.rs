//! Running programs (`man 2 execve`, `man 2 execveat`).
//!
//! The new program is put together in an address space of its own ([`load`]) while the old one is
//! still there, so that whatever goes wrong is an error that `execve` returns. Only then are the
//! other threads ended and the old program replaced ([`commit`]): the point of no return. What
//! Linux notices later than that, and kills the process for, is an error here.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use hx_loader::{
    Arguments, Aslr, AuxValues, Backing, Elf, ElfError, FileBytes, ImagePlan, InitialStack, Layout,
    MAX_INTERPRETER_DEPTH, Placement, ReadError, Role, Script, StackExecution, StackPlace,
};
use linux_raw_sys::general as linux;

use super::{
    Credentials, Ctx, NO_CALL, Program, Thread, UserRegs, rlimit::Resource, rseq,
    signal::min_signal_stack, thread::RestartBlock,
};
use crate::{
    Errno, SysResult, calls,
    fs::{
        FileDescription, Inode, Io, Path, WriteAccess,
        inode::{FileType, Rights, check_permission},
        mount::MountFlags,
        walk::{Final, Lookup},
    },
    mm::{self, AddressSpace, FixedPages, MapRequest, Place, Protection, VmaFlags},
    page::{PAGE_SIZE, Page},
    parts::are_linked_later,
    platform::platform,
    table::{Call, DirFd, Flags, PathArg},
    user::{KernelBuffer, PATH_MAX, UserAddr, UserPtr, read_c_string, read_path},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_execve => execve(path: PathArg, argv: UserPtr<u64>, envp: UserPtr<u64>);
    __NR_execveat => execveat(dirfd: DirFd, path: PathArg, argv: UserPtr<u64>, envp: UserPtr<u64>, flags: Flags);
};

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExecError {
    /// Something on the way failed.
    #[error("{}", describe(*.0))]
    Errno(Errno),
    /// The file's contents.
    #[error("{0}")]
    Elf(ElfError),
    /// The interpreter that a program or script names.
    #[error("its interpreter {path}: {reason}")]
    Interpreter {
        /// Its path.
        path: String,
        /// Why it cannot be used.
        reason: String,
        /// What `execve` answers.
        errno: Errno,
    },
    /// Arguments and environment.
    #[error("{0}")]
    Arguments(hx_loader::ArgumentError),
}

/// What the user is told of an error number.
pub(crate) fn describe(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "no such file in the root image",
        Errno::EACCES => "it is not an executable file (permission denied)",
        Errno::ENOTDIR => "a part of the path is not a directory",
        Errno::ENOEXEC => "it is neither an ELF program nor a #! script",
        // Files that are written are kept in memory, too.
        Errno::ENOMEM | Errno::ENOSPC => "it does not fit into memory: give it more with -m",
        Errno::ELOOP => "too many symbolic links or interpreters",
        Errno::ENAMETOOLONG => "its path is too long",
        Errno::E2BIG => "its arguments and environment take too much room",
        Errno::EISDIR => "it is a directory",
        // The text of all others is 9 KB.
        _ if are_linked_later() => "it cannot be run",
        other => other.description().unwrap_or("it cannot be run"),
    }
}

impl From<Errno> for ExecError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl ExecError {
    /// What `execve` answers.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) | Self::Interpreter { errno, .. } => *errno,
            Self::Elf(error) => Errno::new(error.errno(Role::Program) as i32),
            Self::Arguments(error) => Errno::new(error.errno() as i32),
        }
    }
}

/// A file that is being executed: it cannot be written (`ETXTBSY`) as long as this exists.
pub(crate) struct Executable {
    description: Arc<FileDescription>,
    inode: Arc<dyn Inode>,
}

impl Drop for Executable {
    fn drop(&mut self) {
        if let Some(state) = self.inode.state() {
            state.allow_write_access();
        }
    }
}

impl Executable {
    /// Opens the file at `path` for execution by `credentials`.
    fn open(path: Path, thread: &Thread) -> Result<Self, Errno> {
        let inode = path.inode().clone();
        if inode.file_type() != FileType::Regular || path.mount.flags().contains(MountFlags::NOEXEC)
        {
            return Err(Errno::EACCES);
        }
        check_permission(&*inode, &thread.credentials(), Rights::EXEC)?;
        if let Some(state) = inode.state() {
            state.deny_write_access()?;
        }
        let opened = inode.clone().open(&path, linux::O_RDONLY, thread);
        let file = match opened {
            Ok(file) => file,
            Err(errno) => {
                if let Some(state) = inode.state() {
                    state.allow_write_access();
                }
                return Err(errno);
            }
        };
        let description = FileDescription::at_path(file, linux::O_RDONLY, path, WriteAccess::None);
        Ok(Self { description, inode })
    }

    /// The open file.
    pub(crate) fn description(&self) -> &Arc<FileDescription> {
        &self.description
    }

    fn path(&self) -> &Path {
        self.description.path().expect("an executable is opened by its path")
    }
}

/// Reads an executable's bytes for the loader.
struct Bytes<'a> {
    file: &'a Executable,
    thread: &'a Thread,
}

impl FileBytes for Bytes<'_> {
    fn len(&self) -> u64 {
        self.file.description.file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let io = Io { thread: self.thread, flags: linux::O_RDONLY };
        let mut done = 0;
        while done < buffer.len() {
            let mut sink = KernelBuffer::new(buffer.len() - done);
            let at = offset.saturating_add(done as u64);
            let count = self
                .file
                .description
                .file
                .read(io, &mut sink, at)
                .map_err(|errno| ReadError(errno.into_raw() as u32))?;
            if count == 0 {
                break;
            }
            buffer[done..done + count].copy_from_slice(&sink.bytes[..count]);
            done += count;
        }
        Ok(done)
    }
}

/// What is to be run.
pub(crate) struct Request {
    /// Where the file is.
    pub(crate) file: Path,
    /// Its path as the caller names it: `AT_EXECFN`, and what a script's interpreter is handed.
    pub(crate) name: Vec<u8>,
    /// Arguments.
    pub(crate) argv: Vec<Vec<u8>>,
    /// Environment.
    pub(crate) env: Vec<Vec<u8>>,
    /// Whether `name` stays valid after close-on-exec descriptors are closed.
    pub(crate) name_lasts: NameLasts,
}

/// See [`Request::name_lasts`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameLasts {
    /// It is a path.
    Yes,
    /// It is `/dev/fd/N` of a descriptor that is closed: a script cannot be opened by it.
    No,
}

/// A program that is ready to run.
pub(crate) struct Loaded {
    space: Arc<AddressSpace>,
    program: Program,
    credentials: Arc<Credentials>,
    is_secure: bool,
    comm: Vec<u8>,
    entry: u64,
    stack_pointer: u64,
}

/// An ELF file, opened and planned.
struct Image {
    file: Executable,
    plan: ImagePlan,
}

/// Follows `#!` lines to the program that is to run; changes the arguments accordingly.
fn find_program(thread: &Thread, request: &mut Request) -> Result<Executable, ExecError> {
    let mut file = Executable::open(request.file.clone(), thread)?;
    let mut name = request.name.clone();
    for depth in 0.. {
        let mut head = [0; 256];
        let len = Bytes { file: &file, thread }
            .read_at(0, &mut head)
            .map_err(|error| Errno::new(error.0 as i32))?;
        let script =
            Script::parse(&head[..len]).map_err(|error| Errno::new(error.errno() as i32))?;
        let Some(script) = script else { return Ok(file) };
        if depth == MAX_INTERPRETER_DEPTH {
            return Err(Errno::ELOOP.into());
        }
        if request.name_lasts == NameLasts::No {
            return Err(Errno::ENOENT.into());
        }
        let arguments = request.argv.drain(..).skip(1);
        let head = [script.interpreter.clone()].into_iter().chain(script.argument).chain([name]);
        let argv: Vec<Vec<u8>> = head.chain(arguments).collect();
        request.argv = argv;
        name = script.interpreter;
        file = open_interpreter(thread, &name)?;
    }
    unreachable!("the loop ends with a program or ELOOP")
}

/// Opens what a script's first line or `PT_INTERP` names.
fn open_interpreter(thread: &Thread, path: &[u8]) -> Result<Executable, ExecError> {
    let opened = Lookup::of(thread)
        .resolve(path, Final::Follow)
        .and_then(|found| Executable::open(found, thread));
    opened.map_err(|errno| ExecError::Interpreter {
        path: String::from_utf8_lossy(path).into_owned(),
        reason: describe(errno).into(),
        errno,
    })
}

fn plan(thread: &Thread, file: Executable, role: Role) -> Result<Image, ElfError> {
    let plan = Elf::parse(&Bytes { file: &file, thread }, role)?.plan()?;
    Ok(Image { file, plan })
}

/// Loads a program into a new address space.
///
/// # Errors
/// [`ExecError`]; nothing has happened then.
pub(crate) fn load(thread: &Thread, mut request: Request) -> Result<Loaded, ExecError> {
    let stack_limit = thread.process.limits.lock().get(Resource::STACK).soft;
    // Before the arguments are rewritten for a script, as in Linux.
    let name = request.name.clone();
    let file = find_program(thread, &mut request)?;
    let (credentials, is_secure) = new_credentials(thread, &file);
    let program = plan(thread, file, Role::Program).map_err(ExecError::Elf)?;
    let interpreter = match &program.plan.interpreter {
        None => None,
        Some(path) => {
            let file = open_interpreter(thread, path)?;
            Some(plan(thread, file, Role::Interpreter).map_err(|error| ExecError::Interpreter {
                path: String::from_utf8_lossy(path).into_owned(),
                reason: format!("{error}"),
                errno: Errno::new(error.errno(Role::Interpreter) as i32),
            })?)
        }
    };
    let arguments = Arguments::new(&name, &request.argv, &request.env, stack_limit)
        .map_err(ExecError::Arguments)?;

    let mut random = || {
        let mut bytes = [0; 8];
        platform().fill_random(&mut bytes);
        u64::from_ne_bytes(bytes)
    };
    let randomise = thread.process.system.config.aslr
        && thread.process.personality.load(Ordering::Relaxed) & ADDR_NO_RANDOMIZE == 0;
    let aslr = if randomise { Aslr::Random(&mut random) } else { Aslr::Disabled };
    let layout = Layout::new(aslr, stack_limit);

    let mut mm_layout = mm::Layout {
        mmap_base: layout.mmap_base,
        brk_start: 0,
        stack_start: layout.stack_top,
        data_len: program.plan.data.end - program.plan.data.start,
    };
    let space = AddressSpace::new(mm_layout).map_err(|_| Errno::ENOMEM)?;
    if let Some(patcher) = platform().code_patcher(&thread.process.system) {
        space.set_code_patcher(patcher);
    }
    space.set_limits(&thread.process.limits.lock());
    if let Some(old) = thread.process.memory() {
        space.set_dump_filter(old.dump_filter());
    }
    let bias = map_image(&space, &layout, &program)?;
    let interpreter_bias = match &interpreter {
        Some(interpreter) => Some(map_image(&space, &layout, interpreter)?),
        None => None,
    };
    let vdso = map_vdso(&space)?;
    let cpu = platform().cpu_info();
    let aux = AuxValues {
        vdso,
        min_signal_stack: min_signal_stack(),
        hwcap: cpu.hwcap,
        hwcap2: cpu.hwcap2,
        program_headers: match program.plan.program_headers {
            0 => 0,
            headers => headers.wrapping_add(bias),
        },
        program_header_count: program.plan.program_header_count,
        interpreter_base: interpreter_bias.unwrap_or(0),
        entry: program.plan.entry.wrapping_add(bias),
        uid: credentials.uid,
        euid: credentials.euid,
        gid: credentials.gid,
        egid: credentials.egid,
        secure: is_secure,
        rseq: Some((rseq::FEATURE_SIZE, rseq::ALIGN)),
    };
    let mut at_random = [0; 16];
    platform().fill_random(&mut at_random);
    let place = StackPlace { top: layout.stack_top, jitter: layout.stack_jitter };
    let stack = InitialStack::build(&arguments, place, &at_random, &aux);
    map_stack(&space, layout.stack_top, &stack, program.plan.stack_execution, stack_limit)?;

    mm_layout.brk_start = layout.brk_start(&program.plan, bias);
    mm_layout.stack_start = stack.stack_pointer;
    space.set_layout(mm_layout);
    let entry = match (&interpreter, interpreter_bias) {
        (Some(interpreter), Some(bias)) => interpreter.plan.entry.wrapping_add(bias),
        _ => aux.entry,
    };
    let base_name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let moved = |range: &core::ops::Range<u64>| {
        range.start.wrapping_add(bias)..range.end.wrapping_add(bias)
    };
    Ok(Loaded {
        space,
        comm: base_name.to_vec(),
        entry,
        stack_pointer: stack.stack_pointer,
        program: Program {
            path: program.file.path().display(None),
            arguments: stack.arg_start..stack.arg_end,
            environment: stack.env_start..stack.env_end,
            auxv: stack.auxv,
            code: moved(&program.plan.code),
            data: moved(&program.plan.data),
            start_stack: stack.stack_pointer,
            file: Some(Arc::new(program.file)),
        },
        credentials,
        is_secure,
    })
}

/// `personality` flag: no randomisation (`setarch -R`).
const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;

/// Maps an image; gives its load bias.
fn map_image(space: &AddressSpace, layout: &Layout, image: &Image) -> Result<u64, Errno> {
    let plan = &image.plan;
    let bias = match layout.placement(plan) {
        Placement::Fixed { bias } => bias,
        Placement::MmapArea { len } => {
            // Looks for the place by taking it.
            let request = MapRequest::anonymous(len as usize, Protection::empty());
            let start = space.map(request)?;
            let range = start..UserAddr(start.0 + len);
            space.unmap(range)?;
            plan.bias_in(start.0..start.0 + len)
        }
    };
    let description = image.file.description();
    let mapping = description.file.mapping().map_err(|_| Errno::ENOEXEC)?;
    for part in &plan.mappings {
        let start = UserAddr(part.range.start.wrapping_add(bias));
        let len = (part.range.end - part.range.start) as usize;
        let protection = Protection::from_bits_truncate(part.protection.bits());
        let request = match &part.backing {
            Backing::Zero => MapRequest::anonymous(len, protection),
            Backing::File { offset, .. } => MapRequest::mapping(
                mapping.clone(),
                offset / PAGE_SIZE as u64,
                Some(description.clone()),
                len,
                protection,
            ),
        };
        start.check(len).map_err(|_| Errno::ENOMEM)?;
        space.map(MapRequest { place: Place::FixedNoReplace(start), ..request })?;
        if let Backing::File { clear: Some(clear), .. } = &part.backing {
            let len = (clear.end - clear.start) as usize;
            let at = UserAddr(clear.start.wrapping_add(bias));
            if space.zero_foreign(at, len) != len {
                return Err(Errno::ENOMEM);
            }
        }
    }
    Ok(bias)
}

/// Maps the vDSO with its data below it; gives the address of its ELF header.
fn map_vdso(space: &AddressSpace) -> Result<Option<u64>, Errno> {
    let Some(vdso) = platform().vdso() else { return Ok(None) };
    let pages = |frames: &[crate::platform::Frame]| -> Vec<Page> {
        let shared = frames.iter().map(|frame| {
            platform().retain_frame(*frame);
            Page::from_raw(*frame)
        });
        shared.collect()
    };
    let data_len = vdso.data.len() * PAGE_SIZE;
    let text_len = vdso.text.len() * PAGE_SIZE;
    let whole = MapRequest::anonymous(data_len + text_len, Protection::empty());
    let start = space.map(whole)?;
    let flags = VmaFlags::DONT_EXPAND;
    let text = start.offset(data_len);
    if data_len > 0 {
        let data = FixedPages::new(pages(vdso.data), b"[vvar]");
        let request = MapRequest::mapping(data, 0, None, data_len, Protection::READ);
        space.map(request.at(start).with(flags | VmaFlags::DONT_DUMP))?;
    }
    let code = FixedPages::new(pages(vdso.text), b"[vdso]");
    let protection = Protection::READ | Protection::EXEC;
    let request = MapRequest::mapping(code, 0, None, text_len, protection);
    space.map(request.at(text).with(flags))?;
    Ok(Some(text.0))
}

/// What the stack has beyond its initial contents before it grows (`setup_arg_pages` in Linux).
const STACK_ROOM: u64 = 128 << 10;

fn map_stack(
    space: &AddressSpace,
    top: u64,
    stack: &InitialStack,
    execution: StackExecution,
    limit: u64,
) -> Result<(), Errno> {
    let page = PAGE_SIZE as u64;
    let used = (top - stack.stack_pointer).next_multiple_of(page);
    let len = used.max((used + STACK_ROOM).min(limit & !(page - 1)));
    let mut protection = Protection::READ | Protection::WRITE;
    if execution == StackExecution::Executable {
        protection |= Protection::EXEC;
    }
    let request = MapRequest::anonymous(len as usize, protection).with(VmaFlags::GROWS_DOWN);
    let place = Place::FixedNoReplace(UserAddr(top - len));
    space.map(MapRequest { place, ..request })?;
    if space.write_foreign(UserAddr(stack.stack_pointer), &stack.bytes) == stack.bytes.len() {
        Ok(())
    } else {
        Err(Errno::ENOMEM)
    }
}

/// `man 7 credentials` and `man 7 capabilities`, "Transformation of capabilities during execve";
/// the flag is `AT_SECURE`. Files have no capabilities of their own.
fn new_credentials(thread: &Thread, file: &Executable) -> (Arc<Credentials>, bool) {
    let old = thread.credentials();
    let mut new = (*old).clone();
    let (mode, uid, gid) = file.inode.ownership();
    let honours_bits = !file.path().mount.flags().contains(MountFlags::NOSUID)
        && !thread.no_new_privs.load(Ordering::Relaxed);
    if honours_bits {
        if mode & linux::S_ISUID != 0 {
            new.euid = uid;
        }
        if mode & linux::S_ISGID != 0 && mode & linux::S_IXGRP != 0 {
            new.egid = gid;
        }
    }
    (new.suid, new.fsuid) = (new.euid, new.euid);
    (new.sgid, new.fsgid) = (new.egid, new.egid);
    let changes_ids = new.euid != old.euid || new.egid != old.egid;
    if changes_ids {
        new.ambient = 0;
    }
    let is_root = (new.euid == 0 || new.uid == 0) && new.securebits & SECURE_NOROOT == 0;
    new.permitted = if is_root { new.inheritable | new.bounding } else { new.ambient };
    new.effective = if is_root && new.euid != 0 { 0 } else { new.permitted };
    new.securebits &= !SECURE_KEEP_CAPS;
    let is_secure = new.euid != new.uid || new.egid != new.gid || (changes_ids && old.uid != 0);
    (Arc::new(new), is_secure)
}

/// `SECBIT_NOROOT` and `SECBIT_KEEP_CAPS` of `linux/securebits.h`.
const SECURE_NOROOT: u32 = 1 << 0;
pub(super) const SECURE_KEEP_CAPS: u32 = 1 << 4;

/// Registers of a thread that starts at `entry`. The selectors are the machine's.
pub(crate) fn start_regs(loaded: &Loaded) -> UserRegs {
    UserRegs {
        rip: loaded.entry,
        rsp: loaded.stack_pointer,
        rflags: INITIAL_RFLAGS,
        orig_rax: NO_CALL,
        ..UserRegs::default()
    }
}

/// Interrupts enabled, and the bit that is always set.
const INITIAL_RFLAGS: u64 = 0x202;

/// Replaces what the process has by the loaded program; the thread is its only one. Gives the old
/// memory, to be dropped when the processor is off it.
pub(crate) fn commit(thread: &Arc<Thread>, loaded: Loaded) -> Option<Arc<AddressSpace>> {
    let process = &thread.process;
    let former = process.replace_memory(Some(loaded.space.clone()));
    if let Some(former) = &former {
        crate::ipc::shm::leaving(process, former);
    }
    *process.program.lock() = loaded.program;
    process.has_execed.store(true, Ordering::Relaxed);

    // Dispositions may be shared with another process; from now on they are not.
    let actions = process.actions().duplicate();
    actions.reset_for_exec();
    *process.actions.lock() = actions;
    *thread.alt_stack.lock() = Default::default();
    let no_restart: Option<RestartBlock> = None;
    *thread.restart.lock() = no_restart;
    thread.clear_child_tid.store(0, Ordering::Relaxed);
    thread.set_child_tid.store(0, Ordering::Relaxed);
    thread.robust_list.store(0, Ordering::Relaxed);
    thread.pi_ownership.store(0, Ordering::Relaxed);
    thread.register_rseq(None);
    process.timers.delete_posix_timers();

    // A table that is shared with another process is left to it.
    let files = thread.files();
    let files = if Arc::strong_count(&files) > 2 {
        let own = files.duplicate();
        *thread.files.lock() = own.clone();
        own
    } else {
        files
    };
    files.close_on_exec();

    thread.set_comm(&loaded.comm);
    let raises = *thread.credentials() != *loaded.credentials;
    *thread.credentials.lock() = loaded.credentials;
    process.dumpable.store(if loaded.is_secure { 0 } else { 1 }, Ordering::Relaxed);
    if loaded.is_secure && raises {
        thread.parent_death_signal.store(0, Ordering::Relaxed);
    }
    if let Some(completion) = process.vfork_done.lock().take() {
        completion.complete();
    }
    former
}

/// Ends the other threads of the process and waits until they are gone; the thread becomes the
/// leader, under the process' id.
///
/// # Errors
/// `ERESTARTNOINTR` where the process is ending, or another thread is ahead: this one ends.
fn become_only_thread(thread: &Arc<Thread>) -> Result<(), Errno> {
    let process = &thread.process;
    {
        let _tasks = process.system.tasks.lock();
        if process.is_exiting() || thread.must_exit.load(Ordering::SeqCst) {
            return Err(Errno::ERESTARTNOINTR);
        }
        for other in process.threads() {
            if !Arc::ptr_eq(&other, thread) {
                other.must_exit.store(true, Ordering::SeqCst);
                other.interrupt();
            }
        }
    }
    let is_alone = || (process.threads.lock().len() == 1).then_some(());
    process.exec_wait.wait_killable(thread, is_alone).map_err(|_| Errno::ERESTARTNOINTR)?;
    process.system.tasks.lock().make_leader(thread);
    Ok(())
}

/// Reads an array of string pointers, terminated by NULL. A NULL array counts as empty.
fn read_strings(array: UserPtr<u64>, budget: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    if array.is_null() {
        return Ok(strings);
    }
    loop {
        let pointer = array.at(strings.len()).read()?;
        if pointer == 0 {
            return Ok(strings);
        }
        let string = read_c_string(UserAddr(pointer), MAX_ARG_STRLEN, Errno::E2BIG)?;
        // The exact limits are checked later; this one keeps the kernel's memory.
        *budget = budget.checked_sub(string.len() + 1 + size_of::<u64>()).ok_or(Errno::E2BIG)?;
        strings.push(string);
    }
}

/// `MAX_ARG_STRLEN` of `linux/binfmts.h`.
const MAX_ARG_STRLEN: usize = 32 * PAGE_SIZE;

/// No limit allows more arguments than three quarters of the default stack limit.
const MAX_ARGUMENTS: usize = linux::_STK_LIM as usize / 4 * 3;

fn execve(ctx: &mut Ctx<'_>, path: PathArg, argv: UserPtr<u64>, envp: UserPtr<u64>) -> SysResult {
    let name = read_path(path.0)?;
    let file = Lookup::of(ctx.thread).resolve(&name, Final::Follow)?;
    exec(ctx, file, name, NameLasts::Yes, argv, envp)
}

fn execveat(
    ctx: &mut Ctx<'_>,
    dirfd: DirFd,
    path: PathArg,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
    flags: Flags,
) -> SysResult {
    if flags.0 & !(linux::AT_EMPTY_PATH | linux::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let path = read_path(path.0)?;
    if path.is_empty() && flags.0 & linux::AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT);
    }
    let last = if flags.0 & linux::AT_SYMLINK_NOFOLLOW != 0 { Final::Keep } else { Final::Follow };
    let is_plain = path.first() == Some(&b'/') || dirfd.0 == linux::AT_FDCWD;
    let mut lookup = Lookup::of(ctx.thread);
    if is_plain {
        let file = lookup.resolve(&path, last)?;
        refuse_link(&file)?;
        return exec(ctx, file, path, NameLasts::Yes, argv, envp);
    }
    let entry = ctx.thread.files().entry(dirfd.0)?;
    let start = entry.description.path().cloned().ok_or(Errno::EACCES)?;
    let file = if path.is_empty() {
        start
    } else {
        if !start.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        lookup.start = start;
        lookup.resolve(&path, last)?
    };
    refuse_link(&file)?;
    let mut name = format!("/dev/fd/{}", dirfd.0).into_bytes();
    if !path.is_empty() {
        name.push(b'/');
        name.extend_from_slice(&path);
    }
    let closes = entry.on_exec == crate::fs::OnExec::Close;
    let lasts = if closes { NameLasts::No } else { NameLasts::Yes };
    exec(ctx, file, name, lasts, argv, envp)
}

/// `AT_SYMLINK_NOFOLLOW` met a symbolic link.
fn refuse_link(file: &Path) -> Result<(), Errno> {
    if file.file_type() == FileType::Symlink { Err(Errno::ELOOP) } else { Ok(()) }
}

fn exec(
    ctx: &mut Ctx<'_>,
    file: Path,
    name: Vec<u8>,
    name_lasts: NameLasts,
    argv: UserPtr<u64>,
    envp: UserPtr<u64>,
) -> SysResult {
    debug_assert!(name.len() <= PATH_MAX);
    let mut budget = MAX_ARGUMENTS;
    let argv = read_strings(argv, &mut budget)?;
    let env = read_strings(envp, &mut budget)?;
    let request = Request { file, name, argv, env, name_lasts };
    let loaded = Box::new(load(ctx.thread, request).map_err(|error| error.errno())?);
    become_only_thread(ctx.thread)?;

    super::exit::release_user_memory(ctx.thread);
    let regs = start_regs(&loaded);
    loaded.space.page_table().activate();
    let former = commit(ctx.thread, *loaded);
    drop(former);
    platform().reset_vector_state();
    platform().set_fs_base(0);
    platform().set_gs_base(0);
    let (cs, ss) = (ctx.regs.cs, ctx.regs.ss);
    *ctx.regs = UserRegs { cs, ss, ..regs };
    Ok(0)
}
