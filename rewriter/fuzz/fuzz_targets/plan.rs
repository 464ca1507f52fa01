//! `plan` on any bytes: a file as it is, or the text of a small program.
#![no_main]

use hx_rewriter::plan::plan;
use hx_rewriter_fuzz::{TEXT, program, use_plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    if kind & 1 == 0 {
        if let Ok(planned) = plan(bytes) {
            use_plan(&planned.plan, 0, bytes);
        }
        return;
    }
    let elf = program(bytes);
    let Ok(planned) = plan(&elf) else { return };
    for site in planned.plan.sites() {
        let at = (site.address - TEXT) as usize;
        assert_eq!(bytes.get(at..at + 2), Some(&[0x0f, 0x05][..]), "a site is a syscall");
    }
    assert_eq!(plan(&elf).map(|again| again.plan.encode()).ok(), Some(planned.plan.encode()));
    use_plan(&planned.plan, TEXT, bytes);
});
