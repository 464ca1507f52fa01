//! What only some system calls need.
//!
//! A kernel made for one program is linked from an object that holds all of them
//! (`cargo xtask kernel --parts`, the feature `parts`). `hx-linker` takes the calls that the program
//! cannot make out of [`crate::table::ENTRIES`], and each [`Part`] whose calls are all absent out of its
//! static. The linker then drops what is not referred to any more.
//!
//! In other kernels a part is there, and costs nothing.

/// Whether the calls are chosen when the kernel is linked.
#[must_use]
pub const fn are_linked_later() -> bool {
    cfg!(feature = "parts")
}

/// A function that is only there if the kernel has one of some calls. `hx-linker` knows this layout,
/// and finds parts by the names of their statics, which begin with `PART_`.
#[derive(Debug)]
#[repr(C)]
pub struct Part<F> {
    function: Option<F>,
    calls: &'static str,
}

impl<F: Copy> Part<F> {
    /// A function, and the calls that need it: their names, separated by commas; `name=value` or
    /// `name=first-last` for a call whose deciding argument has such a value (`socket=2`); or what
    /// `hermit-run` asks for ([`CORE_FILES`]).
    pub const fn new(calls: &'static str, function: F) -> Self {
        Self { function: Some(function), calls }
    }

    /// The function, if the kernel has it.
    #[inline]
    pub fn get(&'static self) -> Option<F> {
        if are_linked_later() {
            // The linker's word counts, not the compiler's.
            core::hint::black_box(self).function
        } else {
            self.function
        }
    }

    /// The calls that need it.
    pub const fn calls(&self) -> &'static str {
        self.calls
    }
}

/// Core files: wanted where `hermit-run` asks for them.
pub const CORE_FILES: &str = "@core";

/// The calls by which a program names files. `open` and `openat` with nothing but [`PLAIN_DEVICE`] do
/// not count.
pub const PATH_CALLS: &str = "open=1,openat=1,openat2,creat,memfd_create,execve,execveat,\
chmod,fchmodat,fchmodat2,chown,lchown,fchownat,utime,utimes,futimesat,utimensat,truncate,\
inotify_add_watch,setxattr,lsetxattr,fsetxattr,getxattr,lgetxattr,fgetxattr,listxattr,llistxattr,\
removexattr,lremovexattr,fremovexattr,chdir,chroot,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,\
readlink,readlinkat,link,linkat,unlink,unlinkat,rmdir,rename,renameat,renameat2,mount,umount2,\
pivot_root,name_to_handle_at,stat,lstat,newfstatat,statx,statfs,access,faccessat,faccessat2,mq_open,\
mq_unlink";

/// A file that `open` and `openat` find in any kernel. hx-analyze says 0 for it and 1 for others.
pub const PLAIN_DEVICE: &str = "/dev/null";
