//! Summaries, kept by the content of the file and by this program's version.

use std::{
    fs,
    hash::{DefaultHasher, Hasher},
    path::PathBuf,
    process,
};

use hx_rewriter::plan::PlanError;

use crate::summary::{Summary, VERSION, summarise};

/// Where summaries are kept, if anywhere.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    dir: Option<PathBuf>,
}

impl Cache {
    /// The user's cache; without one, every file is analysed each time.
    #[must_use]
    pub fn open() -> Self {
        let dir = hx_libraries::cache::directory().ok().map(|dir| dir.join("analysis"));
        Self { dir: dir.filter(|dir| hx_libraries::cache::create(dir).is_ok()) }
    }

    /// A cache in this directory; none where it cannot be created.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir: Some(dir).filter(|dir| hx_libraries::cache::create(dir).is_ok()) }
    }

    /// No cache.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The summary of a file.
    ///
    /// # Errors
    /// [`PlanError`] for what is no x86-64 ELF file.
    pub(crate) fn summary(&self, bytes: &[u8]) -> Result<Summary, PlanError> {
        let Some(dir) = &self.dir else { return summarise(bytes) };
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        let path = dir.join(format!("{:016x}-{:x}-{VERSION}", hasher.finish(), bytes.len()));
        if let Ok(kept) = fs::read(&path)
            && let Ok(summary) = postcard::from_bytes::<Summary>(&kept)
            && summary.is_sound()
        {
            return Ok(summary);
        }
        let summary = summarise(bytes)?;
        if let Ok(encoded) = postcard::to_stdvec(&summary) {
            // A name of its own first, so that readers see whole files only.
            let new = path.with_extension(format!("{}.new", process::id()));
            if fs::write(&new, encoded).and_then(|()| fs::rename(&new, &path)).is_err() {
                let _ = fs::remove_file(&new);
            }
        }
        Ok(summary)
    }
}
