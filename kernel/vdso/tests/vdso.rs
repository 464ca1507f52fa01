//! The vDSO as the host's C library and processor see it.

use hx_vdso::{IMAGE, IMAGE_PAGES, TimeParameters, TimeSource, TscScale, VVAR_SIZE, VvarPage};
use libc::{c_int, c_uint, c_void, clockid_t, time_t, timespec, timeval, timezone};
use proptest::prelude::*;
use std::arch::x86_64::_rdtsc;
use std::ffi::CString;
use std::io::Write;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// The page of data and the image after it, mapped as the kernel does it (the data writable, for
/// the test to play the kernel).
struct Mapped {
    base: *mut u8,
}

// SAFETY: the page is made of atomics, the image is never written.
unsafe impl Sync for Mapped {}

type ClockGettime = unsafe extern "C" fn(clockid_t, *mut timespec) -> c_int;
type Gettimeofday = unsafe extern "C" fn(*mut timeval, *mut timezone) -> c_int;
type Time = unsafe extern "C" fn(*mut time_t) -> time_t;
type Getcpu = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_void) -> c_int;

impl Mapped {
    fn new() -> Self {
        let len = VVAR_SIZE * (1 + IMAGE_PAGES);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(base, libc::MAP_FAILED);
        let base = base.cast::<u8>();
        // SAFETY: the mapping has room for both, and nothing else knows of it.
        unsafe {
            base.cast::<VvarPage>().write(VvarPage::new());
            let image = base.add(VVAR_SIZE);
            ptr::copy_nonoverlapping(IMAGE.as_ptr(), image, IMAGE.len());
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            assert_eq!(libc::mprotect(image.cast(), len - VVAR_SIZE, protection), 0);
        }
        Self { base }
    }

    fn page(&self) -> &VvarPage {
        // SAFETY: written in `new`, and valid as long as the mapping.
        unsafe { &*self.base.cast::<VvarPage>() }
    }

    /// The address of an exported function.
    fn function(&self, name: &str) -> *const u8 {
        let elf = goblin::elf::Elf::parse(IMAGE).unwrap();
        let symbol = elf.dynsyms.iter().find(|symbol| {
            elf.dynstrtab.get_at(symbol.st_name) == Some(name) && symbol.is_function()
        });
        let symbol = symbol.unwrap_or_else(|| panic!("{name} is missing"));
        // SAFETY: within the image.
        unsafe { self.base.add(VVAR_SIZE + symbol.st_value as usize) }
    }

    fn clock(&self, function: &str, clock: clockid_t) -> Result<u64, c_int> {
        let mut time = timespec { tv_sec: -1, tv_nsec: -1 };
        // SAFETY: the symbol is a function of this type.
        let status = unsafe {
            let function: ClockGettime = std::mem::transmute(self.function(function));
            function(clock, &mut time)
        };
        if status != 0 {
            return Err(status);
        }
        assert!((0..NS_PER_SECOND as i64).contains(&time.tv_nsec), "{}", time.tv_nsec);
        Ok(time.tv_sec as u64 * NS_PER_SECOND + time.tv_nsec as u64)
    }

    fn gettime(&self, clock: clockid_t) -> Result<u64, c_int> {
        self.clock("__vdso_clock_gettime", clock)
    }

    fn getres(&self, clock: clockid_t) -> Result<u64, c_int> {
        self.clock("__vdso_clock_getres", clock)
    }

    /// `gettimeofday` in microseconds.
    fn timeofday(&self) -> u64 {
        let mut time = timeval { tv_sec: -1, tv_usec: -1 };
        let mut zone = [-1_i32; 2];
        // SAFETY: the symbol is a function of this type; `struct timezone` is two ints.
        let status = unsafe {
            let function: Gettimeofday = std::mem::transmute(self.function("__vdso_gettimeofday"));
            assert_eq!(function(ptr::null_mut(), ptr::null_mut()), 0);
            function(&mut time, zone.as_mut_ptr().cast())
        };
        assert_eq!(status, 0);
        assert_eq!(zone, [0, 0]);
        assert!((0..1_000_000).contains(&time.tv_usec), "{}", time.tv_usec);
        time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64
    }

    fn time(&self) -> u64 {
        let mut stored = -1;
        // SAFETY: the symbol is a function of this type.
        let (returned, alone) = unsafe {
            let function: Time = std::mem::transmute(self.function("__vdso_time"));
            (function(&mut stored), function(ptr::null_mut()))
        };
        assert_eq!(stored, returned);
        assert!(alone >= returned);
        returned as u64
    }

    fn getcpu(&self) -> (u32, u32) {
        let (mut cpu, mut node) = (u32::MAX, u32::MAX);
        // SAFETY: the symbol is a function of this type.
        unsafe {
            let function: Getcpu = std::mem::transmute(self.function("__vdso_getcpu"));
            assert_eq!(function(ptr::null_mut(), ptr::null_mut(), ptr::null_mut()), 0);
            assert_eq!(function(&mut cpu, &mut node, ptr::null_mut()), 0);
        }
        (cpu, node)
    }
}

/// Parameters under which the counter does not count: clocks stand still.
fn frozen(monotonic_ns: u64, realtime_offset_ns: u64) -> TimeParameters {
    TimeParameters {
        source: TimeSource::Tsc,
        tsc_base: u64::MAX,
        scale: TscScale::from_hz(1_000_000_000).unwrap(),
        monotonic_ns,
        realtime_offset_ns,
        boottime_offset_ns: 0,
        tai_offset_ns: 0,
        coarse_resolution_ns: 4_000_000,
    }
}

fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and user space may use it.
    unsafe { _rdtsc() }
}

#[test]
fn the_image_is_what_a_dynamic_linker_expects() {
    let elf = goblin::elf::Elf::parse(IMAGE).unwrap();
    assert_eq!(elf.soname, Some("linux-vdso.so.1"));
    assert!(elf.libraries.is_empty());
    let loads: Vec<_> = elf.program_headers.iter().filter(|header| header.p_type == 1).collect();
    let [load] = loads[..] else { panic!("{} segments", loads.len()) };
    assert_eq!((load.p_offset, load.p_vaddr), (0, 0));
    assert_eq!(load.p_filesz, load.p_memsz);
    assert_eq!(load.p_flags, 5, "readable and executable");
    assert!(load.p_memsz <= (IMAGE_PAGES * VVAR_SIZE) as u64 && IMAGE_PAGES <= 2);
    let relocations = elf.dynrelas.len() + elf.dynrels.len() + elf.pltrelocs.len();
    assert_eq!(relocations, 0);

    let versions = elf.verdef.as_ref().unwrap();
    let names: Vec<_> = versions
        .iter()
        .filter_map(|version| elf.dynstrtab.get_at(version.iter().next()?.vda_name))
        .collect();
    assert_eq!(names, ["linux-vdso.so.1", "LINUX_2.6"]);
    let mut symbols: Vec<_> = elf
        .dynsyms
        .iter()
        .filter(|symbol| symbol.is_function())
        .map(|symbol| elf.dynstrtab.get_at(symbol.st_name).unwrap())
        .collect();
    symbols.sort_unstable();
    let names = ["clock_getres", "clock_gettime", "getcpu", "gettimeofday", "time"];
    let prefixed = names.map(|name| format!("__vdso_{name}"));
    assert_eq!(symbols[..5], prefixed);
    assert_eq!(symbols[5..], names);
    let undefined = elf.dynsyms.iter().skip(1).filter(|symbol| symbol.st_shndx == 0).count();
    assert_eq!(undefined, 0);

    // Unwinding: one description for each function.
    let header = elf.program_headers.iter().find(|header| header.p_type == 0x6474_e550).unwrap();
    let header = &IMAGE[header.p_offset as usize..][..12];
    assert_eq!(header[..4], [1, 0x1b, 0x03, 0x3b]);
    assert_eq!(u32::from_le_bytes(header[8..].try_into().unwrap()), 5);
}

#[test]
fn the_code_uses_general_registers_only_and_no_stack() {
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register};
    let elf = goblin::elf::Elf::parse(IMAGE).unwrap();
    let mut factory = InstructionInfoFactory::new();
    let mut count = 0;
    for symbol in elf.dynsyms.iter().filter(|symbol| symbol.is_function()) {
        let start = symbol.st_value as usize;
        let code = &IMAGE[start..start + symbol.st_size as usize];
        for instruction in Decoder::with_ip(64, code, start as u64, DecoderOptions::NONE).iter() {
            count += 1;
            assert!(!instruction.is_invalid());
            let may_touch_stack = instruction.mnemonic() == Mnemonic::Ret;
            for used in factory.info(&instruction).used_registers() {
                let register = used.register();
                assert!(
                    register.is_gpr() || register.is_segment_register(),
                    "{instruction:?} uses {register:?}"
                );
                let is_written = used.access() != OpAccess::Read
                    && used.access() != OpAccess::CondRead
                    && used.access() != OpAccess::NoMemAccess;
                let preserved = [
                    Register::RBX,
                    Register::RBP,
                    Register::RSP,
                    Register::R12,
                    Register::R13,
                    Register::R14,
                    Register::R15,
                ];
                if is_written && !may_touch_stack {
                    assert!(!preserved.contains(&register.full_register()), "{instruction:?}");
                }
            }
        }
    }
    assert!(count > 100);
}

#[test]
fn glibc_finds_the_functions_by_version() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(IMAGE).unwrap();
    let path = CString::new(file.path().to_str().unwrap()).unwrap();
    // SAFETY: the object has no initialisers; the strings are terminated.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null(), "{:?}", std::ffi::CStr::from_ptr(libc::dlerror()));
        for name in ["clock_gettime", "gettimeofday", "time", "getcpu", "clock_getres"] {
            let name = CString::new(format!("__vdso_{name}")).unwrap();
            assert!(!libc::dlvsym(handle, name.as_ptr(), c"LINUX_2.6".as_ptr()).is_null());
            assert!(libc::dlvsym(handle, name.as_ptr(), c"LINUX_2.5".as_ptr()).is_null());
        }
        libc::dlclose(handle);
    }
}

#[test]
fn clocks_follow_the_counter() {
    let mapped = Mapped::new();
    let parameters = TimeParameters {
        source: TimeSource::Tsc,
        tsc_base: rdtsc() - 10_000_000_000,
        scale: TscScale::from_hz(2_345_678_901).unwrap(),
        monotonic_ns: 5_123_456_789,
        realtime_offset_ns: 1_800_000_000_987_654_321,
        boottime_offset_ns: 777,
        tai_offset_ns: 37 * NS_PER_SECOND,
        coarse_resolution_ns: 4_000_000,
    };
    mapped.page().update(&parameters);
    let offsets = [
        (libc::CLOCK_MONOTONIC, 0),
        (libc::CLOCK_MONOTONIC_RAW, 0),
        (libc::CLOCK_MONOTONIC_COARSE, 0),
        (libc::CLOCK_BOOTTIME, 777),
        (libc::CLOCK_REALTIME, 1_800_000_000_987_654_321),
        (libc::CLOCK_REALTIME_COARSE, 1_800_000_000_987_654_321),
        (libc::CLOCK_TAI, 1_800_000_037_987_654_321),
    ];
    for (clock, offset) in offsets {
        for _ in 0..1000 {
            let earliest = parameters.monotonic_at(rdtsc()) + offset;
            let time = mapped.gettime(clock).unwrap();
            let latest = parameters.monotonic_at(rdtsc()) + offset;
            assert!((earliest..=latest).contains(&time), "clock {clock}: {time}");
        }
    }
    let earliest = parameters.realtime_at(rdtsc());
    let (microseconds, seconds) = (mapped.timeofday(), mapped.time());
    let latest = parameters.realtime_at(rdtsc());
    assert!((earliest / 1000..=latest / 1000).contains(&microseconds));
    assert!((earliest / NS_PER_SECOND..=latest / NS_PER_SECOND).contains(&seconds));
}

#[test]
fn without_a_usable_counter_everything_is_a_system_call() {
    let mapped = Mapped::new();
    for source in [None, Some(TimeSource::SystemCall)] {
        if let Some(source) = source {
            mapped.page().update(&TimeParameters { source, ..frozen(1, 1) });
        }
        let native = |clock| {
            let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the structure is there to be written.
            assert_eq!(unsafe { libc::clock_gettime(clock, &mut time) }, 0);
            time.tv_sec as u64 * NS_PER_SECOND + time.tv_nsec as u64
        };
        for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
            let earliest = native(clock);
            let time = mapped.gettime(clock).unwrap();
            assert!((earliest..=native(clock)).contains(&time));
        }
        assert_eq!(mapped.getres(libc::CLOCK_MONOTONIC), Ok(1));
        let earliest = native(libc::CLOCK_REALTIME);
        let microseconds = mapped.timeofday();
        let latest = native(libc::CLOCK_REALTIME);
        assert!((earliest / 1000..=latest / 1000).contains(&microseconds));
        // Linux's `time` shows the last tick.
        let earliest = native(libc::CLOCK_REALTIME_COARSE);
        let seconds = mapped.time();
        let latest = native(libc::CLOCK_REALTIME);
        assert!((earliest / NS_PER_SECOND..=latest / NS_PER_SECOND).contains(&seconds));
    }
}

#[test]
fn other_clocks_are_system_calls() {
    let mapped = Mapped::new();
    mapped.page().update(&frozen(7, 0));
    // Above any CPU time that this test uses up: not computed from the page.
    let cpu = mapped.gettime(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    assert!(cpu > 7);
    assert!(mapped.gettime(libc::CLOCK_THREAD_CPUTIME_ID).is_ok());
    // The calling thread's CPU clock by its dynamic number, as clock_getcpuclockid makes it.
    assert!(mapped.gettime(-6).is_ok());
    for clock in [10, 15, 16, 31, 32, 33, 1000, i32::MIN, i32::MAX] {
        assert_eq!(mapped.gettime(clock), Err(-libc::EINVAL), "clock {clock}");
        assert_eq!(mapped.getres(clock), Err(-libc::EINVAL), "clock {clock}");
    }
}

#[test]
fn resolutions() {
    let mapped = Mapped::new();
    mapped.page().update(&frozen(7, 0));
    assert_eq!(mapped.getres(libc::CLOCK_MONOTONIC), Ok(1));
    assert_eq!(mapped.getres(libc::CLOCK_REALTIME), Ok(1));
    assert_eq!(mapped.getres(libc::CLOCK_TAI), Ok(1));
    assert_eq!(mapped.getres(libc::CLOCK_MONOTONIC_COARSE), Ok(4_000_000));
    assert_eq!(mapped.getres(libc::CLOCK_REALTIME_COARSE), Ok(4_000_000));
    assert_eq!(mapped.getres(libc::CLOCK_PROCESS_CPUTIME_ID), Ok(1));
    // SAFETY: the symbol is a function of this type; NULL asks whether the clock exists.
    unsafe {
        let function: ClockGettime = std::mem::transmute(mapped.function("__vdso_clock_getres"));
        assert_eq!(function(libc::CLOCK_MONOTONIC, ptr::null_mut()), 0);
    }
}

#[test]
fn getcpu_by_system_call_and_by_segment_limit() {
    let mapped = Mapped::new();
    // SAFETY: a set of one CPU for this thread.
    let pin = |cpu| unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set) == 0
    };
    // The selector that Linux keeps for the same purpose, `__CPUNODE_SEG`.
    for selector in [0, 0x7b] {
        mapped.page().set_cpu_selector(selector);
        for cpu in 0..2 {
            if pin(cpu) {
                assert_eq!(mapped.getcpu().0, cpu as u32);
            }
        }
    }
    // No such segment: the system call knows.
    mapped.page().set_cpu_selector(0xfff8);
    assert!(pin(0));
    assert_eq!(mapped.getcpu().0, 0);
}

#[test]
fn a_reader_never_sees_half_an_update() {
    let mapped = Mapped::new();
    // In each set of parameters realtime is a known function of monotonic.
    let (a, b) = (frozen(1_111_111_111, 1 << 60), frozen(9_999_999_999, 1 << 40));
    mapped.page().update(&a);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                mapped.page().update(&b);
                mapped.page().update(&a);
            }
        });
        let valid = [a, b].map(|parameters| parameters.realtime_at(0));
        let mut seen = [false; 2];
        for count in 0.. {
            let time = mapped.gettime(libc::CLOCK_REALTIME).unwrap();
            let index = valid.iter().position(|valid| *valid == time);
            let Some(index) = index else {
                stop.store(true, Ordering::Relaxed);
                panic!("{time:#x} belongs to neither set of parameters");
            };
            seen[index] = true;
            if count > 200_000 && seen == [true; 2] {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn scales() {
    assert_eq!(TscScale::from_hz(15_999), None);
    let slowest = TscScale::from_hz(16_000).unwrap();
    assert_eq!(slowest.nanoseconds(16_000), NS_PER_SECOND);
    for hz in [1_000_000_000, 2_000_000_000, 2_994_375_000, 3_999_999_999_u64] {
        let scale = TscScale::from_hz(hz).unwrap();
        // Ten years, to the nanosecond per week.
        let seconds = 10 * 365 * 24 * 3600;
        let difference = scale.nanoseconds(hz * seconds).abs_diff(seconds * NS_PER_SECOND);
        assert!(difference <= seconds / (7 * 24 * 3600) * 7, "{hz}: {difference}");
    }
    assert_eq!(TscScale::from_pvclock(1, 33), None);
    assert_eq!(TscScale::from_pvclock(1, -32), None);
    // 2 GHz as KVM puts it: cycles >> 0, times half of 2^32.
    let scale = TscScale::from_pvclock(1 << 31, 0).unwrap();
    assert_eq!(scale.nanoseconds(2_000_000_000), NS_PER_SECOND);
    let scale = TscScale::from_pvclock(1 << 31, -1).unwrap();
    assert_eq!(scale.nanoseconds(4_000_000_000), NS_PER_SECOND);
    let scale = TscScale::from_pvclock(1 << 31, 1).unwrap();
    assert_eq!(scale.nanoseconds(1_000_000_000), NS_PER_SECOND);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn seconds_and_nanoseconds_are_exact(
        near in prop_oneof![
            any::<u64>(),
            (0..18_446_744_073_u64, 0..3_u64).prop_map(|(s, d)| (s * NS_PER_SECOND + d).wrapping_sub(1)),
        ],
    ) {
        let mapped = Mapped::new();
        mapped.page().update(&frozen(near, 0));
        prop_assert_eq!(mapped.gettime(libc::CLOCK_MONOTONIC), Ok(near));
        prop_assert_eq!(mapped.timeofday(), near / 1000);
        prop_assert_eq!(mapped.time(), near / NS_PER_SECOND);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing uses any more.
        unsafe { libc::munmap(self.base.cast(), VVAR_SIZE * (1 + IMAGE_PAGES)) };
    }
}
