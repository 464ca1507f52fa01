//! Random numbers: ChaCha20, seeded by the host and by the processor.

use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};
use hx_syscalls::sync::Mutex;

use crate::machine;

static GENERATOR: Mutex<Option<ChaCha20Rng>> = Mutex::new(None);

/// Seeds the generator from the host's bytes and what the processor adds.
pub fn init(mut seed: [u8; 32]) {
    for chunk in seed.chunks_exact_mut(8) {
        let extra = machine::rdrand().unwrap_or_else(machine::tsc);
        for (byte, extra) in chunk.iter_mut().zip(extra.to_le_bytes()) {
            *byte ^= extra;
        }
    }
    *GENERATOR.lock() = Some(ChaCha20Rng::from_seed(seed));
}

/// Fills `out`.
pub fn fill(out: &mut [u8]) {
    GENERATOR.lock().get_or_insert_with(|| ChaCha20Rng::from_seed([0; 32])).fill_bytes(out);
}
