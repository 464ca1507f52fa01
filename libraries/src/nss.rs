//! glibc's Name Service Switch (`man 5 nsswitch.conf`): which modules a program loads that looks up users,
//! groups or hosts. The host's names modules for its network's directories and for systemd; the images that
//! hermit-run makes hold one of their own.

use std::{ffi::OsString, io, path::Path};

use linux_raw_sys::general::S_IFREG;

use crate::tree::{Content, Node, Tree};

/// Where the configuration is.
pub const CONFIGURATION: &str = "/etc/nsswitch.conf";

/// The configuration of an image: files, and DNS for hosts.
pub const OF_IMAGES: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
                             networks: files\nprotocols: files\nservices: files\n";

/// A tree with the configuration that images have.
#[derive(Debug)]
pub struct AsInImages<T>(pub T);

impl<T: Tree> Tree for AsInImages<T> {
    fn lstat(&self, path: &Path) -> io::Result<Node> {
        if path == Path::new(CONFIGURATION) {
            return Ok(Node::made_up(S_IFREG | 0o644, Content::bytes(OF_IMAGES)));
        }
        self.0.lstat(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.0.list(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{HostTree, lookup};

    #[test]
    fn only_the_configuration_is_another() {
        let tree = AsInImages(HostTree::new("/"));
        let (_, node) = lookup(&tree, Path::new(CONFIGURATION)).unwrap();
        assert_eq!(node.content.read().unwrap(), OF_IMAGES.as_bytes());
        let (_, shell) = lookup(&tree, Path::new("/bin/sh")).unwrap();
        assert!(shell.content.read_at(0, 4).unwrap() == b"\x7fELF");
        assert_eq!(tree.list(Path::new("/etc")).unwrap(), tree.0.list(Path::new("/etc")).unwrap());
    }
}
