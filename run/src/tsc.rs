//! How fast the time stamp counter counts: measured once per boot of the host, so that no guest has
//! to.
//!
//! A guest that finds no better source measures its counter against the local APIC's timer, which
//! takes half of all instructions of its boot and is no more exact than a quarter of a millisecond
//! allows. Under KVM and under QEMU's emulation on x86-64 a guest's counter runs as fast as the
//! host's, so a guest of a few dozen bytes ([`crate::accel`] has another) measures it thoroughly, and
//! all later ones are told (`tsc_khz=`).

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    accel::{BASE, Code, elf},
    cache::Cache,
    machine::{Engine, Probe},
};

/// The guest takes a tenth of it.
const TIMEOUT: Duration = Duration::from_secs(1);

/// File of the cache that holds the result.
const RESULT: &str = "tsc";

/// Samples that the guest takes, and the time between them in ticks of 1 ns.
const SAMPLES: u32 = 200;
const INTERVAL: u32 = 200_000;

/// Steps of a loop between looks at the timer.
const STEPS: u32 = 20_000;

/// Samples at the beginning and at the end of which the quickest is used.
const CANDIDATES: usize = 50;

/// Frequencies that processors have.
const POSSIBLE_KHZ: std::ops::Range<u64> = 100_000..20_000_000;

/// What was measured, and under which circumstances.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    boot_id: String,
    qemu: PathBuf,
    engine: String,
    /// `None` where it could not be measured, which is not tried again.
    khz: Option<u64>,
}

/// The frequency of a guest's time stamp counter; `None` where it is not known.
pub(crate) fn khz(qemu: &Path, engine: Engine, cache: Option<&Cache>) -> Option<u64> {
    // Without a place to remember it, guests measure it themselves.
    let cache = cache?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let name = engine.names().0;
    let path = cache.path(&format!("{RESULT}-{name}"));
    let known: Option<Measured> =
        fs::read(&path).ok().and_then(|bytes| postcard::from_bytes(&bytes).ok());
    if let Some(known) = known
        && known.boot_id == boot_id
        && known.qemu == qemu
        && known.engine == name
    {
        return known.khz;
    }
    let khz = measure(qemu, engine);
    let measured = Measured { boot_id, qemu: qemu.into(), engine: name.into(), khz };
    if let Ok(bytes) = postcard::to_stdvec(&measured) {
        // Not being able to remember it is no reason not to run.
        let _ = cache.write(&path, &bytes);
    }
    khz
}

fn measure(qemu: &Path, engine: Engine) -> Option<u64> {
    let mut probe = Probe::start(qemu, engine, &guest()).ok()?;
    let begin = Instant::now();
    while begin.elapsed() < TIMEOUT {
        if probe.try_wait().ok()?.is_some() {
            return evaluate(&probe.said());
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

/// One reading of the timer, and of the counter before and after it.
#[derive(Clone, Copy)]
struct Sample {
    before: u64,
    timer: u32,
    after: u64,
}

impl Sample {
    const LEN: usize = 20;

    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
        Some(Self { before: long(0)?, timer: word(8)?, after: long(12)? })
    }

    fn width(&self) -> u64 {
        self.after.wrapping_sub(self.before)
    }
}

/// The frequency by the two samples, far apart, that took the least time.
fn evaluate(said: &[u8]) -> Option<u64> {
    let samples: Option<Vec<Sample>> = said.chunks_exact(Sample::LEN).map(Sample::parse).collect();
    let samples = samples.filter(|samples| samples.len() == SAMPLES as usize)?;
    let first = samples[..CANDIDATES].iter().min_by_key(|sample| sample.width())?;
    let last = samples[samples.len() - CANDIDATES..].iter().min_by_key(|sample| sample.width())?;
    let middle = |sample: &Sample| sample.before + sample.width() / 2;
    let ticks = middle(last).checked_sub(middle(first))?;
    // The timer counts down, in nanoseconds.
    let ns = u64::from(first.timer.checked_sub(last.timer)?);
    let khz = ticks.checked_mul(1_000_000)?.checked_div(ns)?;
    POSSIBLE_KHZ.contains(&khz).then_some(khz)
}

/// The guest: in 32-bit protected mode, as it is started, it reads counter and timer and writes what
/// it has read to QEMU's debug console.
fn guest() -> Vec<u8> {
    const BUFFER: u32 = BASE + 0x1000;
    let mut code = Code::default();
    code.put(&[0xbf, 0x00, 0x00, 0xe0, 0xfe]); // mov edi, 0xfee00000: the local APIC
    for (register, value) in [(0x3e0u32, 0xbu32), (0x320, 0x1_00f0), (0x380, u32::MAX)] {
        // Divide by 1; one shot, masked; from the largest count.
        code.put(&[0xc7, 0x87]); // mov dword [edi + register], value
        code.put(&register.to_le_bytes());
        code.put(&value.to_le_bytes());
    }
    code.put(&[0xbb]); // mov ebx, SAMPLES
    code.put(&SAMPLES.to_le_bytes());
    let again = code.len();
    let store = |code: &mut Code, opcode: &[u8], offset: u32| {
        code.put(opcode);
        code.put(&(BUFFER + offset).to_le_bytes());
    };
    code.put(&[0x0f, 0x31]); // rdtsc
    store(&mut code, &[0xa3], 0); // mov [BUFFER], eax
    store(&mut code, &[0x89, 0x15], 4); // mov [BUFFER + 4], edx
    code.put(&[0x8b, 0x8f, 0x90, 0x03, 0x00, 0x00]); // mov ecx, [edi + 0x390]
    code.put(&[0x0f, 0x31]); // rdtsc
    store(&mut code, &[0x89, 0x0d], 8); // mov [BUFFER + 8], ecx
    store(&mut code, &[0xa3], 12); // mov [BUFFER + 12], eax
    store(&mut code, &[0x89, 0x15], 16); // mov [BUFFER + 16], edx
    code.put(&[0x89, 0xcd]); // mov ebp, ecx
    store(&mut code, &[0xbe], 0); // mov esi, BUFFER
    code.put(&[0xb9]); // mov ecx, LEN
    code.put(&(Sample::LEN as u32).to_le_bytes());
    code.put(&[0xba, 0xe9, 0x00, 0x00, 0x00]); // mov edx, 0xe9
    code.put(&[0xfc, 0xf3, 0x6e]); // cld; rep outsb
    // Between two looks at the timer, which cost an exit each, the counter of instructions of a QEMU
    // with -icount has to get on as well.
    let wait = code.len();
    code.put(&[0xb9]); // mov ecx, STEPS
    code.put(&STEPS.to_le_bytes());
    code.put(&[0xe2, 0xfe]); // loop to itself
    code.put(&[0x89, 0xe8]); // mov eax, ebp
    code.put(&[0x2b, 0x87, 0x90, 0x03, 0x00, 0x00]); // sub eax, [edi + 0x390]
    code.put(&[0x3d]); // cmp eax, INTERVAL
    code.put(&INTERVAL.to_le_bytes());
    code.jump_back(0x72, wait); // jb wait
    code.put(&[0x4b]); // dec ebx
    code.jump_back(0x75, again); // jnz again
    code.put(&[0xb0, 0x00, 0xe6, 0xf4]); // mov al, 0; out 0xf4, al: the end
    code.put(&[0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    elf(code.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(khz: u64, delay: impl Fn(u32) -> u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for index in 0..SAMPLES {
            let ns = u64::from(index) * u64::from(INTERVAL);
            let before = (1 << 40) + ns * khz / 1_000_000;
            bytes.extend(before.to_le_bytes());
            bytes.extend((u32::MAX - ns as u32).to_le_bytes());
            bytes.extend((before + delay(index)).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn interrupted_samples_do_not_count() {
        assert_eq!(evaluate(&said(2_445_432, |_| 100)), Some(2_445_432));
        let often = |index| if index % 3 == 0 { 100 } else { 5_000_000 };
        assert_eq!(evaluate(&said(2_445_432, often)), Some(2_445_432));
        assert_eq!(evaluate(&said(1_000, |_| 0)), None);
        assert_eq!(evaluate(&said(2_445_432, |_| 0)[20..]), None);
    }

    #[test]
    fn the_counter_is_measured_once_per_boot() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().into()).unwrap();
        let qemu = crate::machine::find_qemu(Path::new("qemu-system-x86_64")).unwrap();
        assert_eq!(khz(&qemu, Engine::Tcg, None), None);
        let measured = khz(&qemu, Engine::Tcg, Some(&cache)).expect("TCG has a counter");
        assert!(POSSIBLE_KHZ.contains(&measured));
        // Another value, to see that it is not measured again.
        let path = cache.path("tsc-tcg");
        let mut known: Measured = postcard::from_bytes(&fs::read(&path).unwrap()).unwrap();
        known.khz = Some(1_234_567);
        fs::write(&path, postcard::to_stdvec(&known).unwrap()).unwrap();
        assert_eq!(khz(&qemu, Engine::Tcg, Some(&cache)), Some(1_234_567));
        known.boot_id = "another".into();
        fs::write(&path, postcard::to_stdvec(&known).unwrap()).unwrap();
        let again = khz(&qemu, Engine::Tcg, Some(&cache)).unwrap();
        assert!(again.abs_diff(measured) < measured / 1000, "{again} after {measured}");
    }
}
