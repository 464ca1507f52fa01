//! The certificates of authorities that the system trusts (`man 8 update-ca-certificates`).
//!
//! What ca-certificates installs is a list; the files that libraries read are made from it by the
//! package's maintainer scripts, belong to no package, and are only recommended by the libraries that
//! read them. Without them every HTTPS server is unknown. An image gets them where the program, one of
//! its libraries, or a TLS library among its packages names their place.

use std::path::{Path, PathBuf};

use hx_libraries::tree::{Kind, Tree};
use memchr::memmem;

use crate::{error::Result, image::Image};

/// The certificates, in one file and one by one with links of OpenSSL's hash values.
const DIRECTORY: &str = "/etc/ssl/certs";

/// OpenSSL's own directory (`openssl version -d`): links to the above, and its settings.
const OPENSSL: &str = "/usr/lib/ssl";
const OPENSSL_LINKS: [&str; 3] = ["certs", "cert.pem", "openssl.cnf"];

/// Libraries that programs load while they run (Python's `ssl`): they are among the packages only.
const LIBRARIES: [&str; 3] = ["libcrypto.so.", "libgnutls.so.", "libcurl"];

/// Adds the certificates to `image`, if something in it reads them; `needed` are the program and its
/// libraries.
///
/// # Errors
/// Where the directory is there and cannot be read.
pub(crate) fn add(tree: &dyn Tree, image: &mut Image, needed: &[PathBuf]) -> Result<()> {
    let directory = Path::new(DIRECTORY);
    if tree.lstat(directory).is_err() {
        return Ok(());
    }
    let is_library = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        LIBRARIES.iter().any(|library| name.starts_with(library))
    };
    let loaded = image.iter().map(|(path, _)| path).filter(|path| is_library(path));
    if !needed.iter().map(PathBuf::as_path).chain(loaded).any(|path| reads_them(image, path)) {
        return Ok(());
    }
    // With the directories on its way.
    if image.add(tree, directory).is_err() {
        return Ok(());
    }
    image.add_tree(tree, directory, directory, &|_| false)?;
    let links = image
        .iter()
        .filter(|(path, node)| node.kind() == Kind::Symlink && path.starts_with(directory));
    let links: Vec<_> = links.map(|(path, _)| path.to_path_buf()).collect();
    let of_openssl = OPENSSL_LINKS.map(|name| Path::new(OPENSSL).join(name));
    for link in links.into_iter().chain(of_openssl) {
        // A link that leads nowhere leads nowhere here as well.
        let _ = image.add(tree, &link);
    }
    Ok(())
}

fn reads_them(image: &Image, path: &Path) -> bool {
    let Ok((_, node)) = image.lookup(path) else { return false };
    node.kind() == Kind::File
        && node.content.read().is_ok_and(|bytes| {
            [DIRECTORY, OPENSSL].iter().any(|name| memmem::find(&bytes, name.as_bytes()).is_some())
        })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hx_libraries::tree::HostTree;

    use super::*;

    fn root(library: &[u8]) -> (tempfile::TempDir, Image) {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("usr/lib/libssl.so.3", library);
        put("usr/share/ca-certificates/one.crt", b"one");
        put("etc/ssl/certs/ca-certificates.crt", b"all");
        let certs = folder.path().join("etc/ssl/certs");
        let link = |to: &str, at: PathBuf| std::os::unix::fs::symlink(to, at).unwrap();
        link("/usr/share/ca-certificates/one.crt", certs.join("one.pem"));
        link("one.pem", certs.join("1234abcd.0"));
        link("/nowhere", certs.join("gone.pem"));
        fs::create_dir_all(folder.path().join("usr/lib/ssl")).unwrap();
        link("/etc/ssl/certs", folder.path().join("usr/lib/ssl/certs"));
        let tree = HostTree::new(folder.path());
        let mut image = Image::new();
        let program = PathBuf::from("/usr/lib/libssl.so.3");
        image.add(&tree, &program).unwrap();
        add(&tree, &mut image, &[program]).unwrap();
        (folder, image)
    }

    #[test]
    fn what_names_their_place_gets_them_with_what_the_links_lead_to() {
        let (_folder, image) = root(b"\x7fELF ... /usr/lib/ssl/certs\0 ...");
        for path in [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/ssl/certs/1234abcd.0",
            "/usr/lib/ssl/certs/one.pem",
        ] {
            assert!(image.has(Path::new(path)), "{path}");
        }
        assert!(image.get(Path::new("/etc/ssl/certs/gone.pem")).is_some());
    }

    #[test]
    fn what_does_not_name_it_does_not() {
        let (_folder, image) = root(b"\x7fELF ... /etc/passwd\0 ...");
        assert!(image.get(Path::new("/etc/ssl")).is_none());
    }
}
