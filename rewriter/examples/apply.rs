//! Plans a file, then does what the kernel does with the plan: decode, write stubs, patch pages.
//!
//! Run under an instruction counter it says what applying costs; docs/rewriting.md has the command.

use std::{env, fs, hint::black_box, process::ExitCode};

use goblin::elf::{Elf, program_header::PF_X};
use hx_rewriter::{Placement, Plan, plan::plan};

/// Reads a plan back.
#[inline(never)]
fn decode_plan(bytes: &[u8]) -> Plan {
    Plan::decode(bytes).expect("what was encoded decodes")
}

/// Fills the stub area, a page at a time.
#[inline(never)]
fn apply_stubs(plan: &Plan, placement: &Placement, area: &mut [u8]) {
    for (n, page) in area.chunks_mut(4096).enumerate() {
        plan.write_stubs(placement, n * 4096, page, |_| 0xffff_ffff_8000_0000);
    }
}

/// Patches a segment, a page at a time.
#[inline(never)]
fn apply_text(plan: &Plan, placement: &Placement, address: u64, text: &mut [u8]) -> usize {
    let mut patched = 0;
    for (n, page) in text.chunks_mut(4096).enumerate() {
        let address = address + n as u64 * 4096;
        if plan.has_patches(placement, address, page.len() as u64) {
            patched += plan.patch_page(placement, address, page).patched;
        }
    }
    patched
}

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("usage: apply FILE");
        return ExitCode::FAILURE;
    };
    let mut file = fs::read(path).expect("the file is readable");
    let encoded = plan(&file).expect("a plan").plan.encode();
    let plan = decode_plan(&encoded);
    let stubs = plan.reach().1.next_multiple_of(1 << 16);
    let placement = plan.place(0, stubs).expect("near the text");
    let mut area = vec![0; plan.stub_area_len()];
    apply_stubs(&plan, &placement, &mut area);
    let elf = Elf::parse(&file).expect("an ELF file");
    let texts: Vec<_> = elf
        .program_headers
        .iter()
        .filter(|segment| segment.p_flags & PF_X != 0)
        .map(|segment| (segment.p_vaddr, segment.file_range()))
        .collect();
    let mut patched = 0;
    for (address, range) in texts {
        patched += apply_text(&plan, &placement, address, &mut file[range]);
    }
    println!("{patched} patches of {}", plan.patch_count());
    black_box((file, area));
    ExitCode::SUCCESS
}
