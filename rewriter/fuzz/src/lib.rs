//! What the fuzz targets share.

use hx_rewriter::Plan;

/// Where the text of [`program`] is.
pub const TEXT: u64 = 0x40_1000;

/// A static program of one executable segment, which holds `text`; its first byte is the entry point.
#[must_use]
pub fn program(text: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 0x1000;
    let mut elf = vec![0; HEADERS];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    // ET_EXEC, EM_X86_64, version 1.
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &TEXT.to_le_bytes());
    // One program header, right behind this one.
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0, 64, 0]);
    // PT_LOAD, readable and executable.
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    let len = text.len() as u64;
    for (at, value) in [(72, HEADERS as u64), (80, TEXT), (88, TEXT), (96, len), (104, len)] {
        put(at, &value.to_le_bytes());
    }
    put(112, &0x1000_u64.to_le_bytes());
    elf.extend_from_slice(text);
    elf
}

/// Does with a plan what a kernel does, on this text at link-time address `address`, and checks what
/// must hold whatever the plan is.
pub fn use_plan(plan: &Plan, address: u64, text: &[u8]) {
    let encoded = plan.encode();
    assert_eq!(Plan::decode(&encoded).as_ref(), Ok(plan));
    let bias = 0x5555_0000_0000;
    let high = plan.reach().1.saturating_add(bias);
    let Some(stubs) = high.checked_next_multiple_of(1 << 16) else { return };
    let Ok(placement) = plan.place(bias, stubs) else { return };
    let mut at_once = text.to_vec();
    let outcome = plan.patch_page(&placement, bias + address, &mut at_once);
    assert!(outcome.patched + outcome.skipped <= plan.patch_count());
    // Page by page, backwards, is the same: no patch crosses a page.
    let mut by_page = text.to_vec();
    if address.is_multiple_of(4096) {
        for (index, page) in by_page.chunks_mut(4096).enumerate().rev() {
            let at = bias + address + index as u64 * 4096;
            plan.patch_page(&placement, at, page);
        }
        assert_eq!(at_once, by_page);
    }
    let mut again = at_once.clone();
    plan.patch_page(&placement, bias + address, &mut again);
    assert_eq!(at_once, again);
    let mut area = vec![0; plan.stub_area_len().min(1 << 20)];
    plan.write_stubs(&placement, 0, &mut area, |_| 0xffff_ffff_8000_0000);
    for (index, (old, new)) in text.iter().zip(&at_once).enumerate() {
        let at = bias + address + index as u64;
        if old != new {
            // What was changed leads back, or traps and goes on, or is behind such an instruction.
            let _ = plan.original_address(&placement, at);
            let _ = plan.resume_address(&placement, at);
        }
    }
    for stub in plan.stubs(&placement) {
        let _ = plan.original_address(&placement, stub.address);
    }
    let _ = plan.load_bias(address, bias);
}
