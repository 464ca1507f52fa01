//! What was found in a file, for people and for scripts.

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use core::fmt;
use serde::Serialize;

use super::{flow::Flow, image::Image};
use crate::format::{Number, Plan, Reason, Site, Treatment};

/// One site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteReport {
    /// Link-time address of `0f 05`.
    pub address: u64,
    /// The system call's number, if known.
    pub number: Option<u32>,
    /// Name of the treatment.
    pub kind: &'static str,
    /// Why it is left, if it is.
    pub reason: Option<&'static str>,
    /// Known code joins behind the patch and takes the slow way.
    pub bypass: bool,
}

/// What was found in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Bytes of executable sections (or segments).
    pub text_bytes: u64,
    /// Bytes of it that are known instructions.
    pub code_bytes: u64,
    /// Sites found by control flow.
    pub found: usize,
    /// Sites that will be patched.
    pub patched: usize,
    /// Sites by treatment.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Sites left, by reason.
    pub left: BTreeMap<&'static str, usize>,
    /// Link-time addresses of bytes `0f 05` that no known instruction covers: data, or code that
    /// was not found. Never patched.
    pub unreached: Vec<u64>,
    /// Bytes of the stub area.
    pub stub_bytes: usize,
    /// Bytes of the encoded plan.
    pub plan_bytes: usize,
    /// Every site, by address.
    pub sites: Vec<SiteReport>,
}

impl Treatment {
    /// The name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ReplaceMov => "replace-mov",
            Self::ReplaceInstruction => "replace-instruction",
            Self::ShortJump => "short-jump",
            Self::DisplaceForward => "displace-forward",
            Self::DisplaceBackward => "displace-backward",
            Self::Leave(_) => "leave",
        }
    }
}

impl Reason {
    /// The name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::SignalRestorer => "signal-restorer",
            Self::Unproven => "unproven",
            Self::Relocated => "relocated",
            Self::NoRoom => "no-room",
            Self::PageBoundary => "page-boundary",
            Self::Writable => "writable",
        }
    }
}

impl From<&Site> for SiteReport {
    fn from(site: &Site) -> Self {
        Self {
            address: site.address,
            number: match site.number {
                Number::Known(number) => Some(number),
                Number::Computed => None,
            },
            kind: site.treatment.name(),
            reason: match site.treatment {
                Treatment::Leave(reason) => Some(reason.name()),
                _ => None,
            },
            bypass: site.bypass,
        }
    }
}

pub(super) fn report(plan: &Plan, image: &Image<'_>, flow: &Flow<'_, '_>) -> Report {
    let sites: Vec<SiteReport> = plan.sites().iter().map(SiteReport::from).collect();
    let mut kinds = BTreeMap::new();
    let mut left = BTreeMap::new();
    for site in &sites {
        *kinds.entry(site.kind).or_default() += 1;
        if let Some(reason) = site.reason {
            *left.entry(reason).or_default() += 1;
        }
    }
    let unreached = image.regions.iter().flat_map(|region| {
        region
            .bytes
            .windows(2)
            .enumerate()
            .filter(|(_, bytes)| *bytes == [0x0f, 0x05])
            .map(|(offset, _)| region.address + offset as u64)
    });
    Report {
        text_bytes: image.regions.iter().map(|region| region.bytes.len() as u64).sum(),
        code_bytes: flow.known_bytes() as u64,
        found: sites.len(),
        patched: sites.iter().filter(|site| site.reason.is_none()).count(),
        kinds,
        left,
        unreached: unreached.filter(|&address| !flow.is_instruction(address)).collect(),
        stub_bytes: plan.stub_area_len(),
        plan_bytes: plan.encode().len(),
        sites,
    }
}

impl Report {
    /// Sites patched of sites found, in hundredths of a per cent, rounded down.
    #[must_use]
    pub fn coverage(&self) -> usize {
        (self.patched * 10_000).checked_div(self.found).unwrap_or(10_000)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coverage = self.coverage();
        writeln!(
            f,
            "{} sites, {} patched ({}.{:02} %); {} of {} bytes of text decoded",
            self.found,
            self.patched,
            coverage / 100,
            coverage % 100,
            self.code_bytes,
            self.text_bytes,
        )?;
        for (kind, count) in &self.kinds {
            writeln!(f, "  {kind:<20} {count:>6}")?;
        }
        for (reason, count) in &self.left {
            writeln!(f, "  left: {reason:<14} {count:>6}")?;
        }
        let known = self.sites.iter().filter(|site| site.number.is_some()).count();
        let bypassed = self.sites.iter().filter(|site| site.bypass).count();
        writeln!(f, "  number known         {known:>6}")?;
        writeln!(f, "  passed by            {bypassed:>6}")?;
        writeln!(f, "  0f 05 not reached    {:>6}", self.unreached.len())?;
        writeln!(f, "  stub area {} bytes, plan {} bytes", self.stub_bytes, self.plan_bytes)
    }
}

impl SiteReport {
    /// One line: address, number, kind, reason.
    #[must_use]
    pub fn line(&self) -> String {
        let number = self.number.map_or_else(|| String::from("-"), |n| format!("{n}"));
        let reason = self.reason.unwrap_or("");
        let bypass = if self.bypass { "passed by" } else { "" };
        let line = format!("{:#x} {number:>5} {} {reason} {bypass}", self.address, self.kind);
        String::from(line.trim_end())
    }
}
