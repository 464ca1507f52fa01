//! From a run configuration and a root image to the first thread's start state.

use alloc::{
    string::{String, ToString},
    sync::Arc,
};

use hx_abi::config::RunConfig;

use crate::{
    Errno,
    fs::{
        self, FdTable,
        inode::{Rights, check_permission},
        walk::{Final, Lookup},
    },
    page::PAGE_SIZE,
    parts::{PATH_CALLS, Part},
    platform::{BootStep, ThreadStart, VectorState, platform},
    task::{
        Credentials, System, Thread,
        exec::{self, NameLasts, Request, describe},
    },
};

/// A boot module: a cpio archive (`hx_abi::cpio`).
#[derive(Clone, Copy, Debug)]
pub struct Archive {
    /// All of it; regular files' data is page-aligned in memory.
    pub bytes: &'static [u8],
}

/// The program cannot be started. The text is the one line that the user gets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The root image is damaged.
    #[error("the root image cannot be read: {0}")]
    Image(hx_abi::cpio::CpioError),
    /// The program cannot be run.
    #[error("{program}: {reason}")]
    Program {
        /// Its path.
        program: String,
        /// Why not.
        reason: String,
    },
    /// The working directory cannot be entered.
    #[error("the working directory {directory}: {reason}")]
    WorkingDirectory {
        /// Its path.
        directory: String,
        /// Why not.
        reason: String,
    },
    /// `/dev` and its like cannot be made.
    #[error("the devices cannot be set up: {reason}")]
    Devices {
        /// Why not.
        reason: String,
    },
    /// A path that is to be read-only is not there.
    #[error("{path} cannot be made read-only: {reason}")]
    ReadOnly {
        /// It.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// Sets up everything that the program finds and loads it. The machine then starts the thread, and
/// calls [`crate::task::return_to_user`] before its first instruction; the selectors in the start
/// state are left to it.
///
/// The archives make up one image for [`Page::of_image`](crate::page::Page::of_image), one after the
/// other, each at the next page boundary. Later ones replace members of earlier ones.
///
/// # Errors
/// [`BootError`], with one line for the user.
pub fn boot(
    config: RunConfig,
    archives: &[Archive],
) -> Result<(Arc<Thread>, ThreadStart), BootError> {
    let system = System::new(config);
    let config = &system.config;
    let mut offset = 0;
    for archive in archives {
        system.vfs.populate(archive.bytes, offset).map_err(BootError::Image)?;
        offset += archive.bytes.len().next_multiple_of(PAGE_SIZE);
    }
    platform().boot_step(BootStep::Files);
    let mut mounted = fs::devfs::mount(&system.vfs);
    // Without a call that takes a path nobody can look there.
    if let Some(mount) = PART_PSEUDO_FILES.get() {
        mounted = mounted.and_then(|()| mount(&system));
    }
    mounted.map_err(|errno| BootError::Devices { reason: describe(errno).into() })?;
    for path in &config.read_only {
        system.vfs.make_read_only(path).map_err(|errno| BootError::ReadOnly {
            path: text(path),
            reason: describe(errno).into(),
        })?;
    }
    if config.missing_files {
        system.vfs.report_missing_files();
    }

    let credentials = Credentials::new(config.uid, config.gid);
    let thread = Thread::first(system.clone(), FdTable::new(), credentials);
    system.console.open_standard_streams(&system.vfs, &thread.files());
    platform().boot_step(BootStep::Mounts);
    // Made where it is missing, as docker does.
    let cwd = system.vfs.make_directories(&config.cwd, 0o755).and_then(|cwd| {
        check_permission(&**cwd.inode(), &thread.credentials(), Rights::EXEC).map(|()| cwd)
    });
    let cwd = cwd.map_err(|errno| BootError::WorkingDirectory {
        directory: text(&config.cwd),
        reason: describe(errno).into(),
    })?;
    thread.fs().update(|state| state.cwd = cwd);

    let failed = |reason: String| BootError::Program { program: text(&config.program), reason };
    let file = Lookup::of(&thread)
        .resolve(&config.program, Final::Follow)
        .map_err(|errno| failed(describe(errno).into()))?;
    let request = Request {
        file,
        name: config.program.clone(),
        argv: config.argv.clone(),
        env: config.env.clone(),
        name_lasts: NameLasts::Yes,
    };
    let loaded = exec::load(&thread, request).map_err(|error| failed(error.to_string()))?;
    let regs = exec::start_regs(&loaded);
    // There is no former memory to be given back.
    drop(exec::commit(&thread, loaded));
    let start = ThreadStart { regs, fs_base: 0, gs_base: 0, vector_state: VectorState::Initial };
    Ok((thread, start))
}

/// Bytes from outside as a user reads them.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

type Mount = fn(&Arc<System>) -> Result<(), Errno>;

/// `/proc` and `/sys`.
static PART_PSEUDO_FILES: Part<Mount> = Part::new(PATH_CALLS, |system| {
    fs::proc::mount(&system.vfs, Arc::downgrade(system))?;
    fs::sysfs::mount(&system.vfs)
});

#[cfg(test)]
mod tests;
