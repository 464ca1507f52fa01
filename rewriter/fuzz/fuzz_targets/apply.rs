//! `Plan::decode` and all that is done with a plan, on any bytes and on damaged plans.
#![no_main]

use std::sync::LazyLock;

use hx_rewriter::{Plan, plan::plan};
use hx_rewriter_fuzz::{TEXT, program, use_plan};
use libfuzzer_sys::fuzz_target;

/// Text with sites of several kinds: `mov $39, %eax; syscall` and a `syscall` that has to be displaced.
static TEXT_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut text = vec![0xb8, 39, 0, 0, 0, 0x0f, 0x05];
    text.extend([0x48, 0x89, 0xf8, 0x0f, 0x05, 0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, 0xc3]);
    text.resize(0x2000, 0x90);
    text
});

static ENCODED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    plan(&program(&TEXT_BYTES)).expect("a program with two sites").plan.encode()
});

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let decoded = if kind & 1 == 0 {
        Plan::decode(bytes)
    } else {
        // Each three bytes are an edit: where, and what.
        let mut encoded = ENCODED.clone();
        for edit in bytes.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % encoded.len();
            encoded[at] = edit[2];
        }
        Plan::decode(&encoded)
    };
    if let Ok(plan) = decoded {
        use_plan(&plan, TEXT, &TEXT_BYTES);
    }
});
