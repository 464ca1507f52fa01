//! Images that are kept between runs.
//!
//! The cache directory holds three kinds of files. `NAME.manifest`, named by a hash of what was asked
//! for (the *key*), lists the files that decided the result with their times and sizes, and names
//! an image. `DIGEST.image` is a root image, named by its content, so that two programs of one
//! package share it; `DIGEST.len` holds the length of its archive. A run whose manifest is still true uses the image as it is: a few dozen
//! `stat`. Files appear under their names by `rename`, so that runs at the same time see whole ones
//! only; two that build the same image do it twice, and one wins.
//!
//! An image file is followed by a hole up to the size of the largest RAM so far, because QEMU maps
//! it as memory.

use std::{
    env,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hx_abi::ROOT_IMAGE_ADDR;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    image::Image,
    machine::RootImage,
};

/// Length of a fresh image file, hole included: larger than most RAM, so that it never has to grow.
const FILE_LEN: u64 = 64 << 30;

/// Images that were not used for longer are removed when the cache exceeds its limit. Longer than
/// any run takes from finding an image to its virtual machine: what that has mapped may go.
const MIN_AGE: Duration = Duration::from_secs(120);

/// Bytes on disk above which old images are removed, where the disk has room for them.
const LIMIT: u64 = 4 << 30;

/// The cache takes at most this part of the disk space that is free or its own.
const SHARE: u64 = 4;

/// A file as it was when an image was built from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    /// Device, inode, size, modification and change time (seconds, nanoseconds); `None` where there
    /// was no such file.
    state: Option<[i64; 7]>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let state = fs::symlink_metadata(path).ok().map(|m| {
            let (dev, ino, size) = (m.dev() as i64, m.ino() as i64, m.size() as i64);
            [dev, ino, size, m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()]
        });
        Self { path: path.to_path_buf(), state }
    }

    fn is_true(&self) -> bool {
        Self::of(&self.path).state == self.state
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    key: Vec<u8>,
    inputs: Vec<Stamp>,
    digest: String,
    len: u64,
}

/// The cache directory.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the cache, `$XDG_CACHE_HOME/hermix`, `~/.cache/hermix` or, without a home,
    /// `/tmp/hermix-UID`; creates it where it is missing.
    ///
    /// # Errors
    /// Where none can be created.
    pub(crate) fn open() -> Result<Self> {
        let failed = |(dir, error)| Error::file("cannot create the cache directory", dir, error);
        Ok(Self { dir: hx_libraries::cache::directory().map_err(failed)? })
    }

    /// A cache in this directory.
    ///
    /// # Errors
    /// Where it cannot be created, or belongs to someone else.
    #[cfg(test)]
    pub(crate) fn at(dir: PathBuf) -> Result<Self> {
        hx_libraries::cache::create(&dir)
            .map_err(|error| Error::file("cannot create the cache directory", &dir, error))?;
        Ok(Self { dir })
    }

    /// A file of the cache.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn manifest_path(&self, key: &[u8]) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.path(&format!("{:016x}.manifest", hasher.finish()))
    }

    fn image_path(&self, digest: &str) -> PathBuf {
        self.path(&format!("{digest}.image"))
    }

    /// The image for `key`, if there is one and nothing that it was made from has changed.
    pub(crate) fn find(&self, key: &[u8]) -> Option<RootImage> {
        let path = self.manifest_path(key);
        let bytes = fs::read(&path).ok()?;
        let manifest: Manifest = postcard::from_bytes(&bytes).ok()?;
        if manifest.key != key || !manifest.inputs.iter().all(Stamp::is_true) {
            return None;
        }
        let image = self.image_path(&manifest.digest);
        fs::metadata(&image).ok()?;
        // The time of last use, for `trim`.
        let now = fs::FileTimes::new().set_modified(SystemTime::now());
        let _ = File::open(&image).and_then(|file| file.set_times(now));
        Some(RootImage { path: image, len: manifest.len })
    }

    /// Keeps `image` under `key`. `inputs` are the files of the host that decide what is in it.
    ///
    /// # Errors
    /// Where a file cannot be read, or the cache not written.
    pub(crate) fn store(
        &self,
        key: &[u8],
        image: &Image,
        inputs: &mut dyn Iterator<Item = PathBuf>,
    ) -> Result<RootImage> {
        // Before the files are read: what changes meanwhile makes the manifest false.
        let inputs = inputs.map(|path| Stamp::of(&path)).collect();
        let digest = image.digest();
        let path = self.image_path(&digest);
        let len = match self.existing(&path) {
            Some(len) => len,
            None => {
                self.trim();
                let len = self.publish(&path, |file| write_image(image, file))?;
                self.write(&path.with_extension("len"), &len.to_le_bytes())?;
                len
            }
        };
        let manifest = Manifest { key: key.to_vec(), inputs, digest, len };
        let bytes = postcard::to_stdvec(&manifest);
        let bytes = bytes.map_err(|error| Error::Usage(format!("the manifest: {error}")))?;
        self.write(&self.manifest_path(key), &bytes)?;
        Ok(RootImage { path, len })
    }

    /// Length of an image that is there already, from the file beside it.
    fn existing(&self, path: &Path) -> Option<u64> {
        let bytes = fs::read(path.with_extension("len")).ok()?;
        fs::metadata(path).ok()?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Writes a small file atomically.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        use io::Write as _;
        self.publish(path, |file| {
            file.write_all(bytes).map_err(|error| Error::file("cannot write", path, error))
        })
    }

    /// Writes a file under another name first.
    fn publish<T>(&self, path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
        let temporary = self.path(&format!(".{}.new", unique()));
        let failed = |error| Error::file("cannot write", &temporary, error);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file
            .as_mut()
            .map_err(|error| failed(io::Error::new(error.kind(), error.to_string())))?;
        let result = write(file).and_then(|value| {
            fs::rename(&temporary, path).map_err(failed)?;
            Ok(value)
        });
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    /// Removes the images that were not used for longest, as long as there are too many.
    fn trim(&self) {
        let Ok(disk) = rustix::fs::statvfs(&self.dir) else { return };
        self.trim_to(disk.f_bavail * disk.f_frsize, MIN_AGE);
    }

    /// The same with `free` bytes on the disk, for images older than `min_age`.
    fn trim_to(&self, free: u64, min_age: Duration) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.blocks() * 512, entry.path()))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        let limit = LIMIT.min((free + total) / SHARE);
        for (used, size, path) in files {
            let is_old = used.elapsed().is_ok_and(|age| age > min_age);
            if total > limit && is_old && fs::remove_file(&path).is_ok() {
                total -= size;
            }
        }
    }
}

/// An image for this run only. The file has no name that outlives the run.
///
/// # Errors
/// Where a file cannot be read, or the temporary directory not written.
pub(crate) fn write_uncached(image: &Image) -> Result<(RootImage, Unlink)> {
    let path = env::temp_dir().join(format!("hermix-{}.image", unique()));
    let failed = |error| Error::file("cannot create", &path, error);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    let guard = Unlink(path.clone());
    let len = write_image(image, &mut file)?;
    Ok((RootImage { path, len }, guard))
}

/// Removes a file when dropped.
#[derive(Debug)]
pub(crate) struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes the file at least `ram` bytes long: QEMU maps all of it.
///
/// # Errors
/// Where the file system does not take such a hole.
pub(crate) fn grow(root: &RootImage, ram: u64) -> Result<()> {
    let failed = |error| Error::file("cannot enlarge", &root.path, error);
    if fs::metadata(&root.path).map_err(failed)?.len() >= ram {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(&root.path).map_err(failed)?;
    // Nobody may shrink what another run has mapped.
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| failed(error.into()))?;
    if file.metadata().map_err(failed)?.len() < ram {
        file.set_len(ram).map_err(failed)?;
    }
    Ok(())
}

fn write_image(image: &Image, file: &mut File) -> Result<u64> {
    let failed = |error| Error::file("cannot write", "the image", error);
    file.seek(SeekFrom::Start(ROOT_IMAGE_ADDR)).map_err(failed)?;
    let len = image.write(file)?;
    // A file system that takes no such hole (a quota counts it, say) gets it as it is needed.
    if file.set_len(FILE_LEN).is_err() {
        file.set_len(ROOT_IMAGE_ADDR + len.next_multiple_of(4096)).map_err(failed)?;
    }
    Ok(len)
}

fn unique() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hx_libraries::tree::HostTree;

    fn image(dir: &Path) -> Image {
        let mut image = Image::new();
        image.add(&HostTree::new(dir), Path::new("/file")).unwrap();
        image
    }

    #[test]
    fn an_image_is_found_until_an_input_changes() {
        let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cache = Cache::at(dir.path().join("deep/cache")).unwrap();
        let file = files.path().join("file");
        fs::write(&file, "one").unwrap();
        assert_eq!(cache.find(b"key"), None);
        let mut inputs = vec![file.clone(), files.path().join("missing")].into_iter();
        let stored = cache.store(b"key", &image(files.path()), &mut inputs).unwrap();
        assert_eq!(cache.find(b"key"), Some(stored.clone()));
        assert_eq!(cache.find(b"other"), None);
        // The same content under another key is the same file.
        let again = cache.store(b"other", &image(files.path()), &mut std::iter::empty()).unwrap();
        assert_eq!(stored, again);
        fs::write(files.path().join("missing"), "now it is there").unwrap();
        assert_eq!(cache.find(b"key"), None);
        fs::remove_file(files.path().join("missing")).unwrap();
        assert_eq!(cache.find(b"key"), Some(stored));
        fs::write(&file, "two").unwrap();
        assert_eq!(cache.find(b"key"), None);
    }

    #[test]
    fn the_longest_unused_go_first_and_no_further_than_the_disk_needs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().into()).unwrap();
        for (name, age) in [("oldest", 3000), ("old", 2000), ("new", 1000), ("in use", 0)] {
            let mut file = File::create(cache.path(name)).unwrap();
            io::Write::write_all(&mut file, &[1; 64 << 10]).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let names = || {
            let mut names: Vec<_> = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        cache.trim_to(10 << 30, MIN_AGE);
        assert_eq!(names(), ["in use", "new", "old", "oldest"]);
        // 256 KiB are the cache's own: it may keep 128.
        cache.trim_to(256 << 10, MIN_AGE);
        assert_eq!(names(), ["in use", "new"]);
        cache.trim_to(0, MIN_AGE);
        assert_eq!(names(), ["in use"]);
    }

    #[test]
    fn the_archive_follows_a_hole_and_is_followed_by_one() {
        let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(files.path().join("file"), "content").unwrap();
        let cache = Cache::at(dir.path().into()).unwrap();
        let image = image(files.path());
        let root = cache.store(b"", &image, &mut std::iter::empty()).unwrap();
        let metadata = fs::metadata(&root.path).unwrap();
        assert_eq!(metadata.len(), FILE_LEN);
        assert!(metadata.blocks() * 512 < 1 << 20, "the holes take space");
        let bytes = {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; root.len as usize];
            File::open(&root.path).unwrap().read_exact_at(&mut bytes, ROOT_IMAGE_ADDR).unwrap();
            bytes
        };
        let names = hx_abi::cpio::Reader::new(&bytes).map(|entry| entry.unwrap().path.to_vec());
        assert_eq!(names.collect::<Vec<_>>(), [&b"."[..], b"file"]);
        grow(&root, FILE_LEN + 4096).unwrap();
        assert_eq!(fs::metadata(&root.path).unwrap().len(), FILE_LEN + 4096);
        grow(&root, 4096).unwrap();
        assert_eq!(fs::metadata(&root.path).unwrap().len(), FILE_LEN + 4096);
    }
}
