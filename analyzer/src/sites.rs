//! `--sites`: the same plan that `hermit-run` ships, printed.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use hx_rewriter::plan::{Report, plan};
use serde::Serialize;

use crate::Format;

/// How much to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Totals only.
    Summary,
    /// A line for each site as well.
    EverySite,
}

#[derive(Serialize)]
struct FileReport<'a> {
    file: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn print(file: &Path, format: Format, detail: Detail) -> Result<()> {
    let bytes = fs::read(file).context("cannot be read")?;
    let mut report = plan(&bytes).context("no plan; it runs unpatched")?.report;
    let mut out = io::stdout().lock();
    match format {
        Format::Text | Format::Toml => {
            if detail == Detail::EverySite {
                for site in &report.sites {
                    writeln!(out, "{}", site.line())?;
                }
                for address in &report.unreached {
                    writeln!(out, "{address:#x}     - not-reached")?;
                }
            }
            write!(out, "{}: {report}", file.display())?;
        }
        Format::Json => {
            if detail == Detail::Summary {
                report.sites.clear();
            }
            serde_json::to_writer(&mut out, &FileReport { file, report: &report })?;
            writeln!(out)?;
        }
    }
    Ok(())
}
