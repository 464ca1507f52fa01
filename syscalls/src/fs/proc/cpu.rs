//! `/proc/cpuinfo`: what CPUID says (Intel SDM vol. 2, "CPUID"), with the names that Linux has for
//! features (`arch/x86/include/asm/cpufeatures.h`).

use alloc::{string::String, vec::Vec};

use super::{Target, put};
use crate::{Errno, platform::platform};

/// One register of one leaf, with its bits' names from bit 0 on; empty names are not shown.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: usize,
    names: [&'static str; 32],
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// In the order in which Linux lists them.
static FEATURES: &[Word] = &[
    Word {
        leaf: 1,
        subleaf: 0,
        register: EDX,
        names: [
            "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep",
            "mtrr", "pge", "mca", "cmov", "pat", "pse36", "pn", "clflush", "", "dts", "acpi",
            "mmx", "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe",
        ],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: EDX,
        names: [
            "", "", "", "", "", "", "", "", "", "", "", "syscall", "", "", "", "", "", "", "",
            "mp", "nx", "", "mmxext", "", "", "fxsr_opt", "pdpe1gb", "rdtscp", "", "lm",
            "3dnowext", "3dnow",
        ],
    },
    Word {
        leaf: 1,
        subleaf: 0,
        register: ECX,
        names: [
            "pni",
            "pclmulqdq",
            "dtes64",
            "monitor",
            "ds_cpl",
            "vmx",
            "smx",
            "est",
            "tm2",
            "ssse3",
            "cid",
            "sdbg",
            "fma",
            "cx16",
            "xtpr",
            "pdcm",
            "",
            "pcid",
            "dca",
            "sse4_1",
            "sse4_2",
            "x2apic",
            "movbe",
            "popcnt",
            "tsc_deadline_timer",
            "aes",
            "xsave",
            "",
            "avx",
            "f16c",
            "rdrand",
            "hypervisor",
        ],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: ECX,
        names: [
            "lahf_lm",
            "cmp_legacy",
            "svm",
            "extapic",
            "cr8_legacy",
            "abm",
            "sse4a",
            "misalignsse",
            "3dnowprefetch",
            "osvw",
            "ibs",
            "xop",
            "skinit",
            "wdt",
            "",
            "lwp",
            "fma4",
            "tce",
            "",
            "nodeid_msr",
            "",
            "tbm",
            "topoext",
            "perfctr_core",
            "perfctr_nb",
            "",
            "bpext",
            "ptsc",
            "perfctr_llc",
            "mwaitx",
            "",
            "",
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: EBX,
        names: [
            "fsgsbase",
            "tsc_adjust",
            "sgx",
            "bmi1",
            "hle",
            "avx2",
            "",
            "smep",
            "bmi2",
            "erms",
            "invpcid",
            "rtm",
            "cqm",
            "",
            "mpx",
            "rdt_a",
            "avx512f",
            "avx512dq",
            "rdseed",
            "adx",
            "smap",
            "avx512ifma",
            "",
            "clflushopt",
            "clwb",
            "intel_pt",
            "avx512pf",
            "avx512er",
            "avx512cd",
            "sha_ni",
            "avx512bw",
            "avx512vl",
        ],
    },
    Word {
        leaf: 0xd,
        subleaf: 1,
        register: EAX,
        names: [
            "xsaveopt", "xsavec", "xgetbv1", "xsaves", "", "", "", "", "", "", "", "", "", "", "",
            "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "",
        ],
    },
    Word {
        leaf: 7,
        subleaf: 1,
        register: EAX,
        names: [
            "",
            "",
            "",
            "",
            "avx_vnni",
            "avx512_bf16",
            "",
            "cmpccxadd",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "amx_fp16",
            "",
            "avx_ifma",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: ECX,
        names: [
            "",
            "avx512vbmi",
            "umip",
            "pku",
            "ospke",
            "waitpkg",
            "avx512_vbmi2",
            "",
            "gfni",
            "vaes",
            "vpclmulqdq",
            "avx512_vnni",
            "avx512_bitalg",
            "tme",
            "avx512_vpopcntdq",
            "",
            "la57",
            "",
            "",
            "",
            "",
            "",
            "rdpid",
            "",
            "bus_lock_detect",
            "cldemote",
            "",
            "movdiri",
            "movdir64b",
            "enqcmd",
            "sgx_lc",
            "",
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: EDX,
        names: [
            "",
            "",
            "avx512_4vnniw",
            "avx512_4fmaps",
            "fsrm",
            "",
            "",
            "",
            "avx512_vp2intersect",
            "",
            "md_clear",
            "",
            "",
            "",
            "serialize",
            "",
            "tsxldtrk",
            "",
            "pconfig",
            "arch_lbr",
            "ibt",
            "",
            "amx_bf16",
            "avx512_fp16",
            "amx_tile",
            "amx_int8",
            "",
            "",
            "flush_l1d",
            "arch_capabilities",
            "",
            "",
        ],
    },
];

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let first = platform().cpuid(leaf & 0x8000_0000, 0)[EAX];
    if leaf <= first { platform().cpuid(leaf, subleaf) } else { [0; 4] }
}

/// Registers as the text that they hold.
fn text(registers: impl IntoIterator<Item = u32>) -> String {
    let bytes: Vec<u8> = registers.into_iter().flat_map(u32::to_le_bytes).collect();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().into()
}

/// Family, model and stepping (Intel SDM vol. 2, CPUID leaf 1).
fn signature(eax: u32) -> (u32, u32, u32) {
    let (base_family, base_model, stepping) = (eax >> 8 & 0xf, eax >> 4 & 0xf, eax & 0xf);
    let family = if base_family == 0xf { base_family + (eax >> 20 & 0xff) } else { base_family };
    let model = if family >= 6 { (eax >> 16 & 0xf) << 4 | base_model } else { base_model };
    (family, model, stepping)
}

/// The names of the features that the processor has.
fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    for word in FEATURES {
        let register = cpuid(word.leaf, word.subleaf)[word.register];
        let names = word.names.iter().enumerate();
        let set = names.filter(|(bit, name)| register & 1 << bit != 0 && !name.is_empty());
        found.extend(set.map(|(_, name)| *name));
    }
    found
}

/// KiB of the largest cache: leaf 4 (Intel), else leaf 0x80000006 (AMD).
fn cache_kib() -> u32 {
    let intel = (0..8).map(|index| cpuid(4, index)).take_while(|leaf| leaf[EAX] & 0x1f != 0);
    let sizes = intel.map(|[_, ebx, ecx, _]| {
        let ways = (ebx >> 22) + 1;
        let partitions = (ebx >> 12 & 0x3ff) + 1;
        let line = (ebx & 0xfff) + 1;
        ways * partitions * line / 1024 * (ecx + 1)
    });
    sizes.max().unwrap_or_else(|| cpuid(0x8000_0006, 0)[ECX] >> 16)
}

pub(super) fn cpuinfo(_: &Target, out: &mut Vec<u8>) -> Result<(), Errno> {
    let info = platform().cpu_info();
    let [max_leaf, ebx, ecx, edx] = cpuid(0, 0);
    let vendor = text([ebx, edx, ecx]);
    let [leaf1, leaf1_ebx, ..] = cpuid(1, 0);
    let (family, model, stepping) = signature(leaf1);
    let name = text((0x8000_0002..=0x8000_0004).flat_map(|leaf| cpuid(leaf, 0)));
    let flags = features().join(" ");
    let clflush = (leaf1_ebx >> 8 & 0xff) * 8;
    let sizes = cpuid(0x8000_0008, 0)[EAX];
    let (mhz, khz) = (info.tsc_khz / 1000, info.tsc_khz % 1000);
    let bogomips = info.tsc_khz / 5;
    for cpu in 0..info.count {
        put!(out, "processor\t: {cpu}\n");
        put!(out, "vendor_id\t: {vendor}\n");
        put!(out, "cpu family\t: {family}\n");
        put!(out, "model\t\t: {model}\n");
        put!(out, "model name\t: {name}\n");
        put!(out, "stepping\t: {stepping}\n");
        put!(out, "microcode\t: 0x1\n");
        put!(out, "cpu MHz\t\t: {mhz}.{khz:03}\n");
        put!(out, "cache size\t: {} KB\n", cache_kib());
        put!(out, "physical id\t: 0\nsiblings\t: {}\n", info.count);
        put!(out, "core id\t\t: {cpu}\ncpu cores\t: {}\n", info.count);
        put!(out, "apicid\t\t: {cpu}\ninitial apicid\t: {cpu}\n");
        put!(out, "fpu\t\t: yes\nfpu_exception\t: yes\n");
        put!(out, "cpuid level\t: {max_leaf}\n");
        put!(out, "wp\t\t: yes\n");
        put!(out, "flags\t\t: {flags}\n");
        put!(out, "bugs\t\t:\n");
        put!(out, "bogomips\t: {}.{:02}\n", bogomips / 100, bogomips % 100);
        put!(out, "clflush size\t: {clflush}\ncache_alignment\t: {clflush}\n");
        put!(
            out,
            "address sizes\t: {} bits physical, {} bits virtual\n",
            sizes & 0xff,
            sizes >> 8 & 0xff
        );
        put!(out, "power management:\n\n");
    }
    Ok(())
}
