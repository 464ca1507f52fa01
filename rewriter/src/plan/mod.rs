//! Planning: the bytes of an ELF file in, a [`Plan`] out.
//!
//! Four steps, each in its module: `image` reads what the file says about its code, `flow` decodes
//! what control flow reaches, `choose` decides on each `syscall` found, `place` lays out the stubs.
//! The time taken is linear in the size of the file, whatever is in it.

mod bits;
mod choose;
pub mod code;
mod emit;
mod flow;
mod image;
mod place;
mod report;

pub use report::{Report, SiteReport};

use crate::format::{DecodeError, Plan};

/// Why there is no plan for a file. Such a file runs unpatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It does not start as an ELF file does.
    #[error("not an ELF file")]
    NotElf,
    /// Another machine, or no program or shared object.
    #[error("not an x86-64 program or shared object")]
    NotX86_64,
    /// The program headers are not inside the file.
    #[error("the program headers are damaged")]
    ProgramHeaders,
    /// Loaded segments overlap, or show the same bytes again and again.
    #[error("segments overlap")]
    Overlap,
    /// More sites than stubs can be reached from.
    #[error("too much text to patch")]
    TooLarge,
    /// The planner contradicted itself. A defect of the planner.
    #[error("the planner made no valid plan: {0}")]
    Internal(DecodeError),
}

/// A plan, and what to tell people about it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What the guest needs.
    pub plan: Plan,
    /// What was found and what was not.
    pub report: Report,
}

/// Plans the patches for an ELF file. The same bytes give the same plan.
///
/// # Errors
/// [`PlanError`]; the file can still run, unpatched.
pub fn plan(elf: &[u8]) -> Result<Planned, PlanError> {
    let image = image::Image::parse(elf)?;
    let flow = flow::Flow::explore(&image);
    let mut chooser = choose::Chooser::new(&image, &flow);
    chooser.choose_all();
    let mut plan = place::place(&chooser.sites, &chooser.choices)?;
    plan.text = image.text();
    let report = report::report(&plan, &image, &flow);
    Ok(Planned { plan, report })
}
