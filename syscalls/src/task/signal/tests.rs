use alloc::{vec, vec::Vec};

use hx_abi::link::Exit;
use linux_raw_sys::general as linux;

use super::{FaultSignal, SigInfo, SignalNumber, SignalSet, deliver_fault, frame::NO_CALL};
use crate::{
    Errno,
    abi::{UserAbi, decode_at},
    platform::{CpuInfo, platform},
    task::{Ctx, Next, UserRegs, return_to_user},
    testing::TestProcess,
    user::UserAddr,
};

const HANDLER: u64 = 0x40_1000;
const RESTORER: u64 = 0x40_2000;
const CODE: u64 = 0x40_0100;

struct Player {
    process: TestProcess,
    regs: UserRegs,
    stack: UserAddr,
}

const STACK_LEN: usize = 64 << 10;

impl Player {
    fn new() -> Self {
        let process = TestProcess::new();
        process.machine.set_cpu_info(CpuInfo {
            xsave_size: 832,
            xfeatures: 7,
            ..CpuInfo::default()
        });
        let stack = process.alloc(STACK_LEN);
        let mut regs = UserRegs {
            rip: CODE,
            rsp: stack.0 + STACK_LEN as u64 - 4096,
            rflags: 0x246,
            cs: 0x10,
            ss: 0x18,
            orig_rax: NO_CALL,
            ..UserRegs::default()
        };
        (regs.r15, regs.r14, regs.rbx, regs.rcx, regs.r11) = (15, 14, 3, 4, 11);
        Self { process, regs, stack }
    }

    fn ctx<R>(&mut self, f: impl FnOnce(&mut Ctx<'_>) -> R) -> R {
        f(&mut Ctx { thread: &self.process.thread, regs: &mut self.regs })
    }

    /// A system call as the kernel runs it, up to the application.
    fn syscall(&mut self, number: u32, arguments: &[u64]) -> Next {
        let mut registers = [0; 6];
        registers[..arguments.len()].copy_from_slice(arguments);
        self.regs.orig_rax = number.into();
        self.ctx(|ctx| {
            let result = crate::testing::dispatch(ctx, number, registers);
            return_to_user(ctx, Some(result))
        })
    }

    /// As after a call that answered `errno`.
    fn returned(&mut self, number: u32, errno: Errno) -> Next {
        self.regs.orig_rax = number.into();
        self.ctx(|ctx| return_to_user(ctx, Some(Err(errno))))
    }

    fn action(&self, signal: SignalNumber, handler: u64, flags: u32, mask: u64) {
        let act = [handler, u64::from(flags | linux::SA_RESTORER), RESTORER, mask];
        let act = self.process.put(&bytes_of(&act));
        let signal = signal.number() as u64;
        assert_eq!(self.process.call(linux::__NR_rt_sigaction, &[signal, act.0, 0, 8]), Ok(0));
    }

    fn send(&self, signal: SignalNumber) {
        self.process.thread.process.send(SigInfo::user(signal, 7, 8));
    }

    fn rax(&self) -> i64 {
        self.regs.rax as i64
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn a_handler_gets_its_arguments_and_sigreturn_restores_everything() {
    let mut player = Player::new();
    player.action(SignalNumber::SIGUSR1, HANDLER, linux::SA_SIGINFO, 1 << 11);
    let mut vector = vec![0; 832];
    platform().save_vector_state(&mut vector);
    vector[160..176].copy_from_slice(b"an xmm register!");
    // XSTATE_BV: x87 and SSE.
    vector[512] = 3;
    assert!(platform().load_vector_state(&vector));
    let before = player.regs;
    player.send(SignalNumber::SIGUSR1);
    assert_eq!(player.ctx(|ctx| return_to_user(ctx, None)), Next::Resume);
    let regs = player.regs;
    assert_eq!((regs.rip, regs.rdi, regs.rax), (HANDLER, 10, 0));
    assert_eq!(regs.orig_rax, NO_CALL);
    // The stack pointer is as after a call, and below the red zone.
    assert_eq!(regs.rsp % 16, 8);
    assert!(regs.rsp + 440 <= before.rsp - 128);
    let info = SigInfo::decode(&player.process.bytes(UserAddr(regs.rsi), 128));
    assert_eq!((info.signal().number(), info.code(), info.pid(), info.uid()), (10, 0, 7, 8));
    let context = player.process.bytes(UserAddr(regs.rdx), 304);
    // gregs follow uc_flags, uc_link and uc_stack; REG_RSP is 15, REG_RIP 16.
    assert_eq!(decode_at::<u64>(&context, 40 + 15 * 8), before.rsp);
    assert_eq!(decode_at::<u64>(&context, 40 + 16 * 8), CODE);
    assert_eq!(decode_at::<u64>(&context, 40 + 7 * 8), 15, "r15 is the eighth");
    let return_address: u64 = player.process.read(UserAddr(regs.rsp));
    assert_eq!(return_address, RESTORER);
    let fpstate: u64 = decode_at(&context, 40 + 23 * 8);
    assert_eq!(fpstate % 64, 0);
    assert_eq!(player.process.bytes(UserAddr(fpstate + 160), 16), b"an xmm register!");
    let magic1: u32 = player.process.read(UserAddr(fpstate + 464));
    let magic2: u32 = player.process.read(UserAddr(fpstate + 832));
    assert_eq!((magic1, magic2), (0x4650_5853, 0x4650_5845));
    let mask = player.process.thread.mask();
    assert_eq!(mask, SignalSet(1 << 11 | 1 << 9));

    // The handler spoils what it may, and returns.
    platform().reset_vector_state();
    player.regs =
        UserRegs { rsp: regs.rsp + 8, rip: RESTORER, cs: 0x10, ss: 0x18, ..UserRegs::default() };
    player.regs.rflags = before.rflags;
    assert_eq!(player.syscall(linux::__NR_rt_sigreturn, &[]), Next::Resume);
    assert_eq!(player.regs, before);
    assert!(player.process.thread.mask().is_empty());
    let mut after = vec![0; 832];
    platform().save_vector_state(&mut after);
    assert_eq!(after[160..176], vector[160..176]);
}

#[test]
fn calls_restart_or_end_by_the_table_of_man_7_signal() {
    let number = linux::__NR_read;
    // Errno, SA_RESTART, whether a handler runs -> rip offset, rax.
    let eintr = -i64::from(Errno::EINTR.into_raw());
    let again = i64::from(number);
    let resumed = i64::from(linux::__NR_restart_syscall);
    for (errno, flags, is_handled, rip_offset, rax) in [
        (Errno::ERESTARTSYS, linux::SA_RESTART, true, -2, again),
        (Errno::ERESTARTSYS, 0, true, 0, eintr),
        (Errno::ERESTARTSYS, 0, false, -2, again),
        (Errno::ERESTARTNOINTR, 0, true, -2, again),
        (Errno::ERESTARTNOINTR, 0, false, -2, again),
        (Errno::ERESTARTNOHAND, linux::SA_RESTART, true, 0, eintr),
        (Errno::ERESTARTNOHAND, 0, false, -2, again),
        (Errno::ERESTART_RESTARTBLOCK, linux::SA_RESTART, true, 0, eintr),
        (Errno::ERESTART_RESTARTBLOCK, 0, false, -2, resumed),
        (Errno::EINTR, linux::SA_RESTART, true, 0, eintr),
    ] {
        let mut player = Player::new();
        player.action(SignalNumber::SIGUSR1, HANDLER, flags, 0);
        if is_handled {
            player.send(SignalNumber::SIGUSR1);
        }
        assert_eq!(player.returned(number, errno), Next::Resume);
        if is_handled {
            assert_eq!(player.regs.rip, HANDLER);
            let context = player.process.bytes(UserAddr(player.regs.rdx), 304);
            assert_eq!(decode_at::<u64>(&context, 40 + 16 * 8) as i64 - CODE as i64, rip_offset);
            assert_eq!(decode_at::<u64>(&context, 40 + 13 * 8) as i64, rax, "{errno:?} {flags}");
        } else {
            assert_eq!(player.regs.rip as i64 - CODE as i64, rip_offset);
            assert_eq!(player.rax(), rax);
        }
    }
}

#[test]
fn standard_signals_merge_and_real_time_signals_queue_in_order() {
    let player = Player::new();
    let thread = &player.process.thread;
    thread.set_mask(SignalSet(u64::MAX));
    let real_time = SignalNumber::new(35).unwrap();
    let value = |value: u64| {
        let mut bytes = [0; 128];
        bytes[8..12].copy_from_slice(&linux::SI_QUEUE.to_ne_bytes());
        bytes[24..32].copy_from_slice(&value.to_ne_bytes());
        SigInfo::from_user(real_time, &bytes)
    };
    for step in 0..3 {
        player.send(SignalNumber::SIGUSR1);
        thread.process.send(value(step));
    }
    let all = SignalSet(u64::MAX);
    assert_eq!(thread.take_signal(all).map(|info| info.signal()), Some(SignalNumber::SIGUSR1));
    for step in 0..3 {
        let info = thread.take_signal(all).unwrap();
        assert_eq!((info.signal(), info.value()), (real_time, step));
    }
    assert_eq!(thread.take_signal(all), None);
}

#[test]
fn default_actions_end_the_process_or_do_nothing() {
    let mut player = Player::new();
    player.send(SignalNumber::SIGCHLD);
    player.send(SignalNumber::SIGWINCH);
    assert!(!player.process.thread.has_pending_signal());
    player.send(SignalNumber::SIGQUIT);
    assert!(player.process.thread.has_pending_signal());
    assert_eq!(player.ctx(|ctx| return_to_user(ctx, None)), Next::Ended);
    let exit = Exit::Signal { signal: 3, core: true };
    assert_eq!(player.process.thread.process.system.ended(), Some(exit));
}

#[test]
fn exit_group_ends_with_the_status() {
    let mut player = Player::new();
    assert_eq!(player.syscall(linux::__NR_exit_group, &[0x107]), Next::Ended);
    assert_eq!(player.process.thread.process.system.ended(), Some(Exit::Status(7)));
}

fn segv(addr: u64) -> FaultSignal {
    FaultSignal {
        signal: SignalNumber::SIGSEGV,
        code: linux::SEGV_MAPERR as i32,
        addr: UserAddr(addr),
        trapno: 14,
        error_code: 6,
    }
}

#[test]
fn a_fault_tells_its_address_and_trap() {
    let mut player = Player::new();
    player.action(SignalNumber::SIGSEGV, HANDLER, linux::SA_SIGINFO, 0);
    player.ctx(|ctx| {
        deliver_fault(ctx, segv(0x1234));
        assert_eq!(return_to_user(ctx, None), Next::Resume);
    });
    let info = SigInfo::decode(&player.process.bytes(UserAddr(player.regs.rsi), 128));
    assert_eq!((info.code(), info.addr()), (1, UserAddr(0x1234)));
    let context = player.process.bytes(UserAddr(player.regs.rdx), 304);
    // REG_ERR 19, REG_TRAPNO 20, REG_CR2 22.
    let word = |index: usize| decode_at::<u64>(&context, 40 + index * 8);
    assert_eq!((word(19), word(20), word(22)), (6, 14, 0x1234));
    // A second fault in the handler finds the signal blocked: that ends the process.
    player.ctx(|ctx| {
        deliver_fault(ctx, segv(0x1234));
        assert_eq!(return_to_user(ctx, None), Next::Ended);
    });
    let exit = Exit::Signal { signal: 11, core: true };
    assert_eq!(player.process.thread.process.system.ended(), Some(exit));
}

#[test]
fn a_handler_without_a_usable_stack_ends_the_process() {
    let mut player = Player::new();
    player.action(SignalNumber::SIGUSR1, HANDLER, 0, 0);
    player.regs.rsp = 64;
    player.send(SignalNumber::SIGUSR1);
    assert_eq!(player.ctx(|ctx| return_to_user(ctx, None)), Next::Ended);
    let exit = Exit::Signal { signal: 11, core: true };
    assert_eq!(player.process.thread.process.system.ended(), Some(exit));
}

#[test]
fn the_alternate_stack_is_used_told_and_protected() {
    let mut player = Player::new();
    let alt = player.process.alloc(16 << 10);
    let stack_t = |flags: u64, size: u64| bytes_of(&[alt.0, flags, size]);
    let new = player.process.put(&stack_t(0, 16 << 10));
    assert_eq!(player.process.call(linux::__NR_sigaltstack, &[new.0, 0]), Ok(0));
    let small = player.process.put(&stack_t(0, 100));
    let odd = player.process.put(&stack_t(8, 16 << 10));
    assert_eq!(player.process.call(linux::__NR_sigaltstack, &[small.0, 0]), Err(Errno::ENOMEM));
    assert_eq!(player.process.call(linux::__NR_sigaltstack, &[odd.0, 0]), Err(Errno::EINVAL));
    player.action(SignalNumber::SIGUSR1, HANDLER, linux::SA_ONSTACK, 0);
    player.action(SignalNumber::SIGUSR2, HANDLER, linux::SA_ONSTACK, 0);
    player.send(SignalNumber::SIGUSR1);
    player.ctx(|ctx| return_to_user(ctx, None));
    let first = player.regs.rsp;
    assert!((alt.0..alt.0 + (16 << 10)).contains(&first));
    // While on it, it cannot be changed, and a nested handler goes further down.
    assert_eq!(player.syscall(linux::__NR_sigaltstack, &[new.0, 0]), Next::Resume);
    assert_eq!(player.rax(), -i64::from(Errno::EPERM.into_raw()));
    player.regs.orig_rax = NO_CALL;
    player.send(SignalNumber::SIGUSR2);
    player.ctx(|ctx| return_to_user(ctx, None));
    assert!((alt.0..first).contains(&player.regs.rsp));
    let old = player.process.alloc(24);
    assert_eq!(player.syscall(linux::__NR_sigaltstack, &[0, old.0]), Next::Resume);
    let told = player.process.bytes(old, 24);
    assert_eq!(decode_at::<u32>(&told, 8), linux::SS_ONSTACK);
    assert!(player.stack.0 != 0);
}

#[test]
fn sigsuspend_handles_with_its_mask_and_goes_back_to_the_former() {
    let mut player = Player::new();
    let thread = player.process.thread.clone();
    let former = SignalSet::of(SignalNumber::SIGUSR1).with(SignalNumber::SIGUSR2);
    thread.set_mask(former);
    player.action(SignalNumber::SIGUSR1, HANDLER, linux::SA_RESTART, 0);
    player.send(SignalNumber::SIGUSR1);
    let mask = player.process.put(&SignalSet::of(SignalNumber::SIGUSR2).0.to_ne_bytes());
    assert_eq!(player.syscall(linux::__NR_rt_sigsuspend, &[mask.0, 8]), Next::Resume);
    assert_eq!(player.regs.rip, HANDLER);
    let context = player.process.bytes(UserAddr(player.regs.rdx), 304);
    assert_eq!(decode_at::<u64>(&context, 40 + 13 * 8) as i64, -i64::from(Errno::EINTR.into_raw()));
    assert_eq!(decode_at::<u64>(&context, 296), former.0);
    player.regs.rsp += 8;
    player.syscall(linux::__NR_rt_sigreturn, &[]);
    assert_eq!(thread.mask(), former);
}

#[test]
fn sigtimedwait_takes_blocked_signals_times_out_and_is_interrupted() {
    let player = Player::new();
    let process = &player.process;
    process.thread.set_mask(SignalSet::of(SignalNumber::SIGUSR1));
    let set = process.put(&SignalSet::of(SignalNumber::SIGUSR1).0.to_ne_bytes());
    let zero = process.put(&bytes_of(&[0, 0]));
    let bad = process.put(&bytes_of(&[0, 1_000_000_000]));
    let info = process.alloc(128);
    let wait = |timeout: UserAddr| {
        process.call(linux::__NR_rt_sigtimedwait, &[set.0, info.0, timeout.0, 8])
    };
    assert_eq!(wait(zero), Err(Errno::EAGAIN));
    assert_eq!(wait(bad), Err(Errno::EINVAL));
    player.send(SignalNumber::SIGUSR1);
    assert_eq!(wait(zero), Ok(10));
    let info = SigInfo::decode(&process.bytes(info, 128));
    assert_eq!((info.signal(), info.pid()), (SignalNumber::SIGUSR1, 7));
    player.send(SignalNumber::SIGTERM);
    assert_eq!(wait(UserAddr(0)), Err(Errno::EINTR));
}

#[test]
fn sigaction_refuses_what_linux_refuses() {
    let player = Player::new();
    let act = player.process.put(&bytes_of(&[HANDLER, 0, 0, 0]));
    let call = |signal: u64, act: UserAddr, size: u64| {
        player.process.call(linux::__NR_rt_sigaction, &[signal, act.0, 0, size])
    };
    assert_eq!(call(9, act, 8), Err(Errno::EINVAL));
    assert_eq!(call(19, act, 8), Err(Errno::EINVAL));
    assert_eq!(call(9, UserAddr(0), 8), Ok(0));
    assert_eq!(call(0, act, 8), Err(Errno::EINVAL));
    assert_eq!(call(65, act, 8), Err(Errno::EINVAL));
    assert_eq!(call(10, act, 4), Err(Errno::EINVAL));
    assert_eq!(call(10, UserAddr(8), 8), Err(Errno::EFAULT));
}

#[test]
fn kill_checks_signal_target_and_permission() {
    let player = Player::new();
    let kill = |pid: i32, signal: u64| player.process.call(linux::__NR_kill, &[pid as u64, signal]);
    assert_eq!(kill(1, 0), Ok(0));
    assert_eq!(kill(1, 65), Err(Errno::EINVAL));
    assert_eq!(kill(4711, 0), Err(Errno::ESRCH));
    assert_eq!(kill(-4711, 0), Err(Errno::ESRCH));
    assert_eq!(kill(i32::MIN, 0), Err(Errno::ESRCH));
    assert_eq!(kill(-1, 0), Err(Errno::ESRCH));
    assert_eq!(player.process.call(linux::__NR_tgkill, &[1, 1, 0]), Ok(0));
    assert_eq!(player.process.call(linux::__NR_tgkill, &[2, 1, 0]), Err(Errno::ESRCH));
    assert_eq!(player.process.call(linux::__NR_tgkill, &[0, 1, 0]), Err(Errno::EINVAL));
}
