//! What the virtual machine monitor hands over: `struct hvm_start_info`.
//!
//! Layout: `xen/include/public/arch-x86/hvm/start_info.h`, version 1.

use alloc::vec::Vec;

use super::paging::phys_slice;
use crate::memory::PhysRange;

const MAGIC: u32 = 0x336e_c578;

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Module {
    address: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Ranges of RAM a machine has at most, as far as this kernel looks.
pub const MAX_RAM_RANGES: usize = 8;

/// The parts of the hand-over that the kernel uses.
pub struct BootInfo {
    /// Usable RAM in ascending order; `len` of them.
    ram: [PhysRange; MAX_RAM_RANGES],
    ram_len: usize,
    /// Boot module 0 (`-initrd`).
    pub module: Option<PhysRange>,
    /// The command line, without its NUL.
    pub command_line: &'static [u8],
}

impl BootInfo {
    /// Reads the structure at physical address `start_info`.
    ///
    /// # Errors
    /// A message where it is not what it should be.
    pub fn read(start_info: u64) -> Result<Self, &'static str> {
        let info: StartInfo = read_at(start_info)?;
        if info.magic != MAGIC {
            return Err("no PVH start_info: this kernel must be started by the PVH protocol");
        }
        if info.version < 1 || info.memory_map == 0 {
            return Err("the PVH start_info has no memory map (version 1 is needed)");
        }
        let mut ram = [PhysRange::EMPTY; MAX_RAM_RANGES];
        let mut ram_len = 0;
        for index in 0..u64::from(info.memory_map_entries.min(128)) {
            let at = info.memory_map + index * size_of::<MemoryMapEntry>() as u64;
            let entry: MemoryMapEntry = read_at(at)?;
            // 1 is RAM (E820 types). The first MiB is left alone: firmware data lies there.
            let range = PhysRange::new(entry.address, entry.address.saturating_add(entry.size));
            let range = range.clamp_start(1 << 20);
            if entry.kind == 1 && !range.is_empty() && ram_len < MAX_RAM_RANGES {
                ram[ram_len] = range;
                ram_len += 1;
            }
        }
        ram[..ram_len].sort_unstable_by_key(|range| range.start);
        let module = if info.module_count > 0 && info.module_list != 0 {
            let module: Module = read_at(info.module_list)?;
            Some(PhysRange::new(module.address, module.address.saturating_add(module.size)))
        } else {
            None
        };
        let command_line = match info.command_line {
            0 => &[],
            at => {
                let bytes = phys_slice(PhysRange::new(at, at + 4096))
                    .ok_or("the command line lies outside the first GiB")?;
                let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                &bytes[..len]
            }
        };
        Ok(Self { ram, ram_len, module, command_line })
    }

    /// Usable RAM above the first MiB, ascending.
    pub fn ram(&self) -> &[PhysRange] {
        &self.ram[..self.ram_len]
    }

    /// The values of every `key=value` word of the command line with this key.
    pub fn parameters<'a>(&'a self, key: &str) -> Vec<&'a str> {
        let line = core::str::from_utf8(self.command_line).unwrap_or_default();
        line.split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .collect()
    }
}

fn read_at<T: Copy>(address: u64) -> Result<T, &'static str> {
    let end = address.checked_add(size_of::<T>() as u64).ok_or("a start_info address overflows")?;
    let bytes = phys_slice(PhysRange::new(address, end))
        .ok_or("a start_info structure lies outside the first GiB")?;
    // SAFETY: the bytes are mapped and long enough, and all the structures read here are plain
    // integers. QEMU does not align them.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
