//! Rewriting plans: which `syscall` instructions of an ELF file the guest may turn into jumps.
//!
//! Planning takes a disassembler, so it is done here, once for each image. The plan of the file
//! `usr/lib/libc.so.6` is the archive's member `.hermix/plans/usr/lib/libc.so.6`; links have none,
//! and neither have files without anything to patch.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use hx_abi::config::PLAN_DIR;
use hx_libraries::tree::{Content, Kind, Node};
use linux_raw_sys::general::S_IFREG;

use crate::image::Image;

/// The `syscall` instruction: a file without these bytes needs no plan.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Adds the plans for all ELF files of the image. A file that cannot be planned runs as it is.
pub(crate) fn add(image: &mut Image) {
    let files: Vec<(&Path, &Content)> = image
        .iter()
        .filter(|(_, node)| node.kind() == Kind::File && node.content.len() > 64)
        .map(|(path, node)| (path, &node.content))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut plans = Vec::new();
        while let Some((path, content)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            plans.extend(plan(content).map(|plan| (member(path), plan)));
        }
        plans
    };
    let plans: Vec<(PathBuf, Vec<u8>)> = thread::scope(|scope| {
        let count = thread::available_parallelism().map_or(1, usize::from).min(8);
        let helpers: Vec<_> = (1..count).map(|_| scope.spawn(work)).collect();
        let mut plans = work();
        for helper in helpers {
            // A planner that panicked has a defect; the files that it had taken run as they are.
            plans.extend(helper.join().unwrap_or_default());
        }
        plans
    });
    for (path, plan) in plans {
        image.insert(path, Node::made_up(S_IFREG | 0o400, Content::bytes(plan)));
    }
}

fn member(path: &Path) -> PathBuf {
    Path::new("/").join(PLAN_DIR).join(path.strip_prefix("/").unwrap_or(path))
}

/// The encoded plan of a file, if it is an ELF file with something to patch.
fn plan(content: &Content) -> Option<Vec<u8>> {
    if content.read_at(0, ELF_MAGIC.len()).ok()? != ELF_MAGIC {
        return None;
    }
    let bytes = content.read().ok()?;
    memchr::memmem::find(&bytes, &SYSCALL)?;
    let plan = hx_rewriter::plan::plan(&bytes).ok()?.plan;
    (plan.patch_count() > 0).then(|| plan.encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hx_libraries::tree::HostTree;

    #[test]
    fn the_c_library_gets_a_plan_and_text_does_not() {
        let mut image = Image::new();
        let host = HostTree::new("/");
        let (libc, _) = image.add(&host, Path::new("/lib/x86_64-linux-gnu/libc.so.6")).unwrap();
        let (text, _) = image.add(&host, Path::new("/etc/passwd")).unwrap();
        add(&mut image);
        assert!(image.get(&member(&text)).is_none());
        let plan = image.get(&member(&libc)).unwrap();
        let plan = hx_rewriter::Plan::decode(&plan.content.read().unwrap()).unwrap();
        assert!(plan.patch_count() > 100, "{}", plan.patch_count());
        assert_eq!(member(Path::new("/bin/x")), Path::new("/.hermix/plans/bin/x"));
    }
}
