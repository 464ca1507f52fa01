//! Signal frames: what a handler finds on its stack, and `rt_sigreturn` takes back.
//!
//! The layout is Linux's `struct rt_sigframe` (`arch/x86/include/asm/sigframe.h`): the return
//! address, a `struct ucontext`, a `siginfo_t`, then the vector state in the XSAVE layout with
//! `struct _fpx_sw_bytes` in its spare bytes (`arch/x86/include/uapi/asm/sigcontext.h`).
//! linux-raw-sys has neither, so they are described here.

use alloc::vec;

use linux_raw_sys::general as linux;

use super::{AltStack, SigInfo, SignalAction, SignalSet};
use crate::{
    Errno,
    abi::{UserAbi, decode_at},
    platform::{CpuInfo, platform},
    task::{Ctx, UserRegs},
    user::{USER_END, UserAddr, UserPtr, read_bytes, write_bytes},
};

/// `struct sigcontext_64`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    error_code: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
}

crate::user_struct!(SigContext {
    r8,
    r9,
    r10,
    r11,
    r12,
    r13,
    r14,
    r15,
    rdi,
    rsi,
    rbp,
    rbx,
    rdx,
    rax,
    rcx,
    rsp,
    rip,
    rflags,
    cs,
    gs,
    fs,
    ss,
    error_code,
    trapno,
    oldmask,
    cr2,
    fpstate,
    reserved,
});

/// `stack_t`, with its addresses as numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StackT {
    pub(super) ss_sp: u64,
    pub(super) ss_flags: u32,
    pub(super) ss_size: u64,
}

crate::user_struct!(StackT { ss_sp, ss_flags, ss_size });

const _: () = assert!(size_of::<StackT>() == size_of::<linux::sigaltstack>());

/// `struct ucontext` and what precedes it, without the siginfo.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    return_address: u64,
    uc_flags: u64,
    uc_link: u64,
    uc_stack: StackT,
    uc_mcontext: SigContext,
    uc_sigmask: u64,
}

crate::user_struct!(Frame { return_address, uc_flags, uc_link, uc_stack, uc_mcontext, uc_sigmask });

const UCONTEXT: usize = core::mem::offset_of!(Frame, uc_flags);
const SIGINFO: usize = size_of::<Frame>();
const FRAME_LEN: usize = SIGINFO + linux::SI_MAX_SIZE as usize;

/// `uc_flags`: the frame has extended state; ss is saved, and to be restored as saved.
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// Bytes below the stack pointer that belong to the interrupted function (System V ABI, §3.2.2).
const RED_ZONE: u64 = 128;

/// Alignment of the XSAVE area.
const XSAVE_ALIGN: u64 = 64;
/// Bytes of the legacy part of the XSAVE area, which `fxsave` writes.
const FXSAVE_LEN: usize = 512;
/// XSTATE_BV in the header that follows the legacy part.
const XSTATE_BV: usize = FXSAVE_LEN;
/// Smallest area with a header.
const XSAVE_MIN_LEN: usize = FXSAVE_LEN + 64;
/// Where MXCSR lies in the legacy part, and its bits.
const MXCSR: usize = 24;
const MXCSR_MASK: u32 = 0xffff;
/// Where `struct _fpx_sw_bytes` lies in the legacy part.
const SW_BYTES: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const MAGIC2_LEN: usize = 4;
/// x87 and SSE: what the legacy part holds.
const LEGACY_FEATURES: u64 = 3;

/// Selectors that Linux gives 64-bit programs; ours runs with the kernel's, which are nobody's
/// business.
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;

/// Flags that an application may set: the arithmetic ones, DF, TF, RF, AC and ID
/// (`FIX_EFLAGS` in Linux's `signal_64.c`).
const RFLAGS_APPLICATION: u64 = 0x0005_0dd5;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_DF: u64 = 1 << 10;
const RFLAGS_RF: u64 = 1 << 16;

/// `struct _fpx_sw_bytes`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SwBytes {
    magic1: u32,
    extended_size: u32,
    xfeatures: u64,
    xstate_size: u32,
    padding: [u32; 7],
}

crate::user_struct!(SwBytes { magic1, extended_size, xfeatures, xstate_size, padding });

/// Bytes that a frame takes at most, for `AT_MINSIGSTKSZ`.
#[must_use]
pub fn min_signal_stack() -> u64 {
    let area = platform().cpu_info().xsave_size.max(FXSAVE_LEN) + MAGIC2_LEN;
    (FRAME_LEN as u64 + 16 + 8 + XSAVE_ALIGN + area as u64).next_multiple_of(16)
}

/// Bytes of the vector state in a frame.
fn vector_state_len(info: &CpuInfo) -> usize {
    info.xsave_size.max(FXSAVE_LEN) + if info.xfeatures != 0 { MAGIC2_LEN } else { 0 }
}

/// Writes the vector state at `to`, which is aligned, as it goes into a frame.
fn save_vector_state(to: UserAddr, info: &CpuInfo) -> Result<(), Errno> {
    let len = vector_state_len(info);
    to.check(len)?;
    if info.xfeatures != 0 {
        let size = len - MAGIC2_LEN;
        let sw = SwBytes {
            magic1: FP_XSTATE_MAGIC1,
            extended_size: len as u32,
            xfeatures: info.xfeatures,
            xstate_size: size as u32,
            padding: [0; 7],
        };
        // What the processor does not write of the legacy part and of the header.
        let mut bytes = [0; XSAVE_MIN_LEN - SW_BYTES];
        sw.encode(&mut bytes[..SwBytes::SIZE]);
        write_bytes(to.offset(SW_BYTES), &bytes)?;
        UserPtr::from(to.offset(size)).write(&FP_XSTATE_MAGIC2)?;
    }
    if platform().save_vector_state_to_user(to) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Makes the thread continue in the handler of `action`, with a frame of its present state on the
/// stack. `saved_mask` is what `rt_sigreturn` will put back.
///
/// # Errors
/// `EFAULT` where the stack cannot be written, or the handler has no restorer.
pub(super) fn push(
    ctx: &mut Ctx<'_>,
    info: &SigInfo,
    action: &SignalAction,
    handler: UserAddr,
    saved_mask: SignalSet,
) -> Result<(), Errno> {
    if !action.has(linux::SA_RESTORER) {
        return Err(Errno::EFAULT);
    }
    let alt = *ctx.thread.alt_stack.lock();
    let rsp = ctx.regs.rsp.wrapping_sub(RED_ZONE);
    let was_on_alt = alt.contains(rsp);
    let enters_alt = action.has(linux::SA_ONSTACK) && !was_on_alt && alt.len != 0;
    let top = if enters_alt { alt.base.0.wrapping_add(alt.len) } else { rsp };

    let info_of_cpu = platform().cpu_info();
    let fpstate = top.wrapping_sub(vector_state_len(&info_of_cpu) as u64) & !(XSAVE_ALIGN - 1);
    let at = (fpstate.wrapping_sub(FRAME_LEN as u64) & !15).wrapping_sub(8);
    // An overflow of the alternate stack must not go on below it.
    if (was_on_alt || enters_alt) && !alt.contains(at) {
        return Err(Errno::EFAULT);
    }

    // Before anything of the frame is in registers.
    let rip = ctx.thread.mm().original_address(UserAddr(ctx.regs.rip)).0;
    let has_xstate = info_of_cpu.xfeatures != 0;
    let fault = *ctx.thread.fault.lock();
    let regs = &*ctx.regs;
    let frame = Frame {
        return_address: action.restorer.0,
        uc_flags: UC_SIGCONTEXT_SS
            | UC_STRICT_RESTORE_SS
            | if has_xstate { UC_FP_XSTATE } else { 0 },
        uc_link: 0,
        uc_stack: alt.describe(),
        uc_mcontext: SigContext {
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rdi: regs.rdi,
            rsi: regs.rsi,
            rbp: regs.rbp,
            rbx: regs.rbx,
            rdx: regs.rdx,
            rax: regs.rax,
            rcx: regs.rcx,
            rsp: regs.rsp,
            rip,
            rflags: regs.rflags,
            cs: USER_CS,
            gs: 0,
            fs: 0,
            ss: USER_SS,
            error_code: fault.error_code,
            trapno: fault.trapno,
            oldmask: saved_mask.0,
            cr2: fault.cr2,
            fpstate,
            reserved: [0; 8],
        },
        uc_sigmask: saved_mask.0,
    };
    let mut bytes = [0; FRAME_LEN];
    frame.encode(&mut bytes[..SIGINFO]);
    info.encode(&mut bytes[SIGINFO..]);
    save_vector_state(UserAddr(fpstate), &info_of_cpu)?;
    write_bytes(UserAddr(at), &bytes)?;

    if alt.flags & linux::SS_AUTODISARM != 0 {
        *ctx.thread.alt_stack.lock() = AltStack::default();
    }
    let regs = &mut *ctx.regs;
    regs.rdi = info.signal().number() as u64;
    regs.rsi = at + SIGINFO as u64;
    regs.rdx = at + UCONTEXT as u64;
    regs.rax = 0;
    regs.rsp = at;
    regs.rip = handler.0;
    regs.rflags &= !(RFLAGS_TF | RFLAGS_DF | RFLAGS_RF);
    // The whole context counts from here on: nothing is left of the system call.
    regs.orig_rax = NO_CALL;
    Ok(())
}

/// [`UserRegs::orig_rax`] of a context that is no system call.
pub(crate) const NO_CALL: u64 = u64::MAX;

/// Takes back the frame that the handler's return left at the stack pointer.
///
/// # Errors
/// `EFAULT` where there is no frame to be read, or it holds what cannot be restored; the caller
/// then sends `SIGSEGV`.
pub(super) fn pop(ctx: &mut Ctx<'_>) -> Result<(), Errno> {
    let at = UserAddr(ctx.regs.rsp.wrapping_sub(8));
    let mut bytes = [0; SIGINFO];
    read_bytes(at, &mut bytes)?;
    let frame = Frame::decode(&bytes);
    let saved = frame.uc_mcontext;
    ctx.thread.set_mask(SignalSet(frame.uc_sigmask));
    restore_vector_state(UserAddr(saved.fpstate))?;
    // Errors are ignored, as Linux does: the frame may have been made elsewhere.
    let _ = super::calls::set_alt_stack(ctx, saved.rsp, frame.uc_stack);
    if saved.rip >= USER_END {
        return Err(Errno::EFAULT);
    }
    let regs = &mut *ctx.regs;
    *regs = UserRegs {
        r15: saved.r15,
        r14: saved.r14,
        r13: saved.r13,
        r12: saved.r12,
        rbp: saved.rbp,
        rbx: saved.rbx,
        r11: saved.r11,
        r10: saved.r10,
        r9: saved.r9,
        r8: saved.r8,
        rax: saved.rax,
        rcx: saved.rcx,
        rdx: saved.rdx,
        rsi: saved.rsi,
        rdi: saved.rdi,
        orig_rax: NO_CALL,
        rip: saved.rip,
        cs: regs.cs,
        rflags: regs.rflags & !RFLAGS_APPLICATION | saved.rflags & RFLAGS_APPLICATION,
        rsp: saved.rsp,
        ss: regs.ss,
    };
    Ok(())
}

/// Whether the vector state of a frame is as [`save_vector_state`] has written it, and may be loaded as
/// it is.
fn is_own_frame(at: UserAddr, info: &CpuInfo) -> Result<bool, Errno> {
    if info.xfeatures == 0 || !at.0.is_multiple_of(XSAVE_ALIGN) {
        return Ok(false);
    }
    let len = vector_state_len(info);
    at.check(len)?;
    let mut bytes = [0; XSTATE_BV + size_of::<u64>() - SW_BYTES];
    read_bytes(at.offset(SW_BYTES), &mut bytes)?;
    let sw = SwBytes::decode(&bytes[..SwBytes::SIZE]);
    let features: u64 = decode_at(&bytes, XSTATE_BV - SW_BYTES);
    Ok(sw.magic1 == FP_XSTATE_MAGIC1
        && sw.extended_size as usize == len
        && sw.xstate_size as usize == len - MAGIC2_LEN
        && sw.xfeatures == info.xfeatures
        && features & !info.xfeatures == 0
        // QEMU's emulation lets XRSTOR load any value; a processor does not.
        && platform().load_user_u32(at.offset(MXCSR)).is_some_and(|mxcsr| mxcsr & !MXCSR_MASK == 0)
        && platform().load_user_u32(at.offset(len - MAGIC2_LEN)) == Some(FP_XSTATE_MAGIC2))
}

/// Loads the vector state of a frame; a NULL pointer asks for the initial one.
fn restore_vector_state(from: UserAddr) -> Result<(), Errno> {
    if from.is_null() {
        platform().reset_vector_state();
        return Ok(());
    }
    let info = platform().cpu_info();
    if is_own_frame(from, &info)? && platform().load_vector_state_from_user(from) {
        return Ok(());
    }
    let mut area = vec![0; info.xsave_size.max(FXSAVE_LEN)];
    read_bytes(from, &mut area[..FXSAVE_LEN])?;
    if info.xfeatures != 0 && area.len() >= XSAVE_MIN_LEN {
        let sw: SwBytes = decode_at(&area, SW_BYTES);
        let len = sw.xstate_size as usize;
        let magic2: u32 = if sw.magic1 == FP_XSTATE_MAGIC1
            && (XSAVE_MIN_LEN..=area.len()).contains(&len)
            && sw.extended_size as usize >= len + MAGIC2_LEN
        {
            UserPtr::from(from.offset(len)).read()?
        } else {
            0
        };
        if magic2 == FP_XSTATE_MAGIC2 {
            read_bytes(from.offset(FXSAVE_LEN), &mut area[FXSAVE_LEN..len])?;
            let features: u64 = decode_at(&area, XSTATE_BV);
            // What the processor does not have it refuses.
            let wanted = sw.xfeatures | !info.xfeatures;
            (features & wanted).encode(&mut area[XSTATE_BV..XSTATE_BV + 8]);
        } else {
            // A frame of somebody who knows the legacy part only.
            LEGACY_FEATURES.encode(&mut area[XSTATE_BV..XSTATE_BV + 8]);
        }
        area[SW_BYTES..FXSAVE_LEN].fill(0);
    }
    if platform().load_vector_state(&area) { Ok(()) } else { Err(Errno::EFAULT) }
}
