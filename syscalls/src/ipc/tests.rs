use core::mem::{offset_of, size_of};

use linux_raw_sys::general as linux;

use super::*;
use crate::testing::TestProcess;

macro_rules! same_layout {
    ($ours:ty, $theirs:ty { $($field:ident = $other:ident),* $(,)? }) => {
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), stringify!($ours));
        $(assert_eq!(offset_of!($ours, $field), offset_of!($theirs, $other), stringify!($field));)*
    };
}

#[test]
fn layouts_are_those_of_the_c_library() {
    same_layout!(abi::ipc64_perm, libc::ipc_perm {
        key = __key, uid = uid, gid = gid, cuid = cuid, cgid = cgid, mode = mode, seq = __seq,
    });
    same_layout!(abi::shmid64_ds, libc::shmid_ds {
        shm_perm = shm_perm, shm_segsz = shm_segsz, shm_atime = shm_atime, shm_dtime = shm_dtime,
        shm_ctime = shm_ctime, shm_cpid = shm_cpid, shm_lpid = shm_lpid, shm_nattch = shm_nattch,
    });
    same_layout!(abi::semid64_ds, libc::semid_ds {
        sem_perm = sem_perm, sem_otime = sem_otime, sem_ctime = sem_ctime, sem_nsems = sem_nsems,
    });
    same_layout!(abi::msqid64_ds, libc::msqid_ds {
        msg_perm = msg_perm, msg_stime = msg_stime, msg_rtime = msg_rtime, msg_ctime = msg_ctime,
        msg_cbytes = __msg_cbytes, msg_qnum = msg_qnum, msg_qbytes = msg_qbytes,
        msg_lspid = msg_lspid, msg_lrpid = msg_lrpid,
    });
    same_layout!(abi::sembuf, libc::sembuf { sem_num = sem_num, sem_op = sem_op, sem_flg = sem_flg });
    same_layout!(abi::seminfo, libc::seminfo { semmap = semmap, semvmx = semvmx, semaem = semaem });
    same_layout!(abi::msginfo, libc::msginfo { msgpool = msgpool, msgtql = msgtql, msgseg = msgseg });
}

#[test]
fn constants_are_those_of_the_c_library() {
    let pairs = [
        (abi::IPC_CREAT, libc::IPC_CREAT),
        (abi::IPC_EXCL, libc::IPC_EXCL),
        (abi::IPC_NOWAIT, libc::IPC_NOWAIT),
        (abi::IPC_RMID, libc::IPC_RMID),
        (abi::IPC_SET, libc::IPC_SET),
        (abi::IPC_STAT, libc::IPC_STAT),
        (abi::IPC_INFO, libc::IPC_INFO),
        (abi::SHM_RDONLY, libc::SHM_RDONLY),
        (abi::SHM_RND, libc::SHM_RND),
        (abi::SHM_REMAP, libc::SHM_REMAP),
        (abi::SHM_LOCK, libc::SHM_LOCK),
        (abi::SHM_UNLOCK, libc::SHM_UNLOCK),
        (abi::SHM_EXEC, libc::SHM_EXEC),
        (abi::SHM_HUGETLB, libc::SHM_HUGETLB),
        (abi::SEM_UNDO, libc::SEM_UNDO),
        (abi::GETPID, libc::GETPID),
        (abi::GETVAL, libc::GETVAL),
        (abi::GETALL, libc::GETALL),
        (abi::GETNCNT, libc::GETNCNT),
        (abi::GETZCNT, libc::GETZCNT),
        (abi::SETVAL, libc::SETVAL),
        (abi::SETALL, libc::SETALL),
        (abi::SEM_STAT, libc::SEM_STAT),
        (abi::SEM_INFO, libc::SEM_INFO),
        (abi::SEM_STAT_ANY, libc::SEM_STAT_ANY),
        (abi::MSG_NOERROR, libc::MSG_NOERROR),
        (abi::MSG_EXCEPT, libc::MSG_EXCEPT),
        (abi::MSG_COPY, libc::MSG_COPY),
        (abi::MSG_STAT, libc::MSG_STAT),
        (abi::MSG_INFO, libc::MSG_INFO),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours as i32, theirs);
    }
}

fn operations(list: &[(u16, i16, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, by, flags) in list {
        bytes.extend(number.to_ne_bytes());
        bytes.extend(by.to_ne_bytes());
        bytes.extend((*flags as i16).to_ne_bytes());
    }
    bytes
}

#[test]
fn ids_are_given_as_linux_gives_them() {
    let process = TestProcess::new();
    let get = || process.call(linux::__NR_semget, &[0, 1, 0o600]).unwrap() as u64;
    let remove = |id| process.call(linux::__NR_semctl, &[id, 0, 0]).unwrap();
    let (first, second) = (get(), get());
    assert_eq!((first, second), (0, 1));
    remove(first);
    // The slot is free again, the id is another one.
    let third = get();
    assert_eq!(third, u64::from(SLOTS));
    assert_eq!(process.call(linux::__NR_semctl, &[first, 0, 12]), Err(Errno::EINVAL));
    assert_eq!(get(), u64::from(SLOTS) + 2);
}

#[test]
fn operations_of_a_call_are_done_together_or_not_at_all() {
    let process = TestProcess::new();
    let id = process.call(linux::__NR_semget, &[0, 2, 0o600]).unwrap() as u64;
    let value = |number| process.call(linux::__NR_semctl, &[id, number, 12]).unwrap();
    let run = |list: &[(u16, i16, u32)]| {
        let at = process.put(&operations(list)).0;
        process.call(linux::__NR_semop, &[id, at, list.len() as u64])
    };
    assert_eq!(run(&[(0, 3, 0), (1, 1, 0)]), Ok(0));
    assert_eq!(run(&[(0, -2, 0), (1, -2, abi::IPC_NOWAIT)]), Err(Errno::EAGAIN));
    assert_eq!((value(0), value(1)), (3, 1));
    assert_eq!(run(&[(0, 32_767, 0)]), Err(Errno::ERANGE));
    assert_eq!(run(&[(2, 1, 0)]), Err(Errno::EFBIG));
    assert_eq!(run(&[(0, 0, abi::IPC_NOWAIT)]), Err(Errno::EAGAIN));
    // Down and up again in one call is possible, though the first step alone would wait.
    assert_eq!(run(&[(1, 1, 0), (1, -2, 0)]), Ok(0));
    assert_eq!((value(0), value(1)), (3, 0));
}

#[test]
fn a_message_is_chosen_by_its_type() {
    let process = TestProcess::new();
    let id = process.call(linux::__NR_msgget, &[0, 0o600]).unwrap() as u64;
    for kind in [5i64, 3, 9, 3] {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.push(kind as u8);
        let at = process.put(&bytes).0;
        assert_eq!(process.call(linux::__NR_msgsnd, &[id, at, 1, 0]), Ok(0));
    }
    let to = process.put(&[0; 16]);
    let receive = |kind: i64, flags: u32| {
        let flags = u64::from(flags | abi::IPC_NOWAIT);
        process.call(linux::__NR_msgrcv, &[id, to.0, 8, kind as u64, flags])?;
        Ok(process.read::<i64>(to))
    };
    assert_eq!(receive(2, abi::MSG_COPY), Ok(9));
    assert_eq!(receive(-4, 0), Ok(3));
    assert_eq!(receive(5, abi::MSG_EXCEPT), Ok(9));
    assert_eq!(receive(7, 0), Err(Errno::ENOMSG));
    assert_eq!(receive(0, 0), Ok(5));
    assert_eq!(receive(-2, 0), Err(Errno::ENOMSG));
    assert_eq!(receive(0, 0), Ok(3));
    assert_eq!(receive(0, 0), Err(Errno::ENOMSG));
}

#[test]
fn the_mode_decides_who_may_do_what() {
    let process = TestProcess::new();
    let id = process.call(linux::__NR_shmget, &[7, 4096, 0o1640]).unwrap() as u64;
    *process.thread.credentials.lock() = Credentials::new(1000, 1000);
    assert_eq!(process.call(linux::__NR_shmat, &[id, 0, 0]), Err(Errno::EACCES));
    assert_eq!(process.call(linux::__NR_shmget, &[7, 0, 0o600]), Err(Errno::EACCES));
    assert_eq!(process.call(linux::__NR_shmget, &[7, 0, 0]), Ok(id as usize));
    assert_eq!(process.call(linux::__NR_shmctl, &[id, 0, 0]), Err(Errno::EPERM));
    *process.thread.credentials.lock() = Credentials::new(1000, 0);
    let read_only = u64::from(abi::SHM_RDONLY);
    assert!(process.call(linux::__NR_shmat, &[id, 0, read_only]).is_ok());
    assert_eq!(process.call(linux::__NR_shmat, &[id, 0, 0]), Err(Errno::EACCES));
}
