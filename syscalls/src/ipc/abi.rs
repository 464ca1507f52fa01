//! Constants and structs of `linux/ipc.h`, `linux/shm.h`, `linux/sem.h` and `linux/msg.h`, which
//! `linux-raw-sys` does not have. The tests compare them with the C library's.
#![allow(missing_docs, reason = "they are the headers' names")]

use crate::user_struct;

pub(crate) const IPC_PRIVATE: i32 = 0;
pub(crate) const IPC_CREAT: u32 = 0o1000;
pub(crate) const IPC_EXCL: u32 = 0o2000;
pub(crate) const IPC_NOWAIT: u32 = 0o4000;

pub(crate) const IPC_RMID: u32 = 0;
pub(crate) const IPC_SET: u32 = 1;
pub(crate) const IPC_STAT: u32 = 2;
pub(crate) const IPC_INFO: u32 = 3;

pub(crate) const SHM_RDONLY: u32 = 0o10000;
pub(crate) const SHM_RND: u32 = 0o20000;
pub(crate) const SHM_REMAP: u32 = 0o40000;
pub(crate) const SHM_EXEC: u32 = 0o100000;
pub(crate) const SHM_DEST: u32 = 0o1000;
pub(crate) const SHM_LOCKED: u32 = 0o2000;
pub(crate) const SHM_HUGETLB: u32 = 0o4000;
pub(crate) const SHM_LOCK: u32 = 11;
pub(crate) const SHM_UNLOCK: u32 = 12;
pub(crate) const SHM_STAT: u32 = 13;
pub(crate) const SHM_INFO: u32 = 14;
pub(crate) const SHM_STAT_ANY: u32 = 15;

pub(crate) const SEM_UNDO: u32 = 0x1000;
pub(crate) const GETPID: u32 = 11;
pub(crate) const GETVAL: u32 = 12;
pub(crate) const GETALL: u32 = 13;
pub(crate) const GETNCNT: u32 = 14;
pub(crate) const GETZCNT: u32 = 15;
pub(crate) const SETVAL: u32 = 16;
pub(crate) const SETALL: u32 = 17;
pub(crate) const SEM_STAT: u32 = 18;
pub(crate) const SEM_INFO: u32 = 19;
pub(crate) const SEM_STAT_ANY: u32 = 20;

pub(crate) const MSG_NOERROR: u32 = 0o10000;
pub(crate) const MSG_EXCEPT: u32 = 0o20000;
pub(crate) const MSG_COPY: u32 = 0o40000;
pub(crate) const MSG_STAT: u32 = 11;
pub(crate) const MSG_INFO: u32 = 12;
pub(crate) const MSG_STAT_ANY: u32 = 13;

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[allow(non_camel_case_types, reason = "it is the header's name")]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }
        user_struct!($name { $($field),* });
    )*};
}

structs! {
    /// Owner and mode of an object.
    ipc64_perm {
        key: i32, uid: u32, gid: u32, cuid: u32, cgid: u32, mode: u32, seq: u16, pad: u16,
        unused1: u64, unused2: u64,
    }
    /// `IPC_STAT` of a segment.
    shmid64_ds {
        shm_perm: ipc64_perm, shm_segsz: u64, shm_atime: i64, shm_dtime: i64, shm_ctime: i64,
        shm_cpid: i32, shm_lpid: i32, shm_nattch: u64, unused4: u64, unused5: u64,
    }
    /// `IPC_INFO` of segments.
    shminfo64 {
        shmmax: u64, shmmin: u64, shmmni: u64, shmseg: u64, shmall: u64,
        unused1: u64, unused2: u64, unused3: u64, unused4: u64,
    }
    /// `SHM_INFO`.
    shm_info {
        used_ids: i32, shm_tot: u64, shm_rss: u64, shm_swp: u64, swap_attempts: u64,
        swap_successes: u64,
    }
    /// `IPC_STAT` of a semaphore set.
    semid64_ds {
        sem_perm: ipc64_perm, sem_otime: i64, unused1: u64, sem_ctime: i64, unused2: u64,
        sem_nsems: u64, unused3: u64, unused4: u64,
    }
    /// `IPC_INFO` and `SEM_INFO` of semaphore sets.
    seminfo {
        semmap: i32, semmni: i32, semmns: i32, semmnu: i32, semmsl: i32, semopm: i32, semume: i32,
        semusz: i32, semvmx: i32, semaem: i32,
    }
    /// One operation of `semop`.
    sembuf { sem_num: u16, sem_op: i16, sem_flg: i16 }
    /// `IPC_STAT` of a message queue.
    msqid64_ds {
        msg_perm: ipc64_perm, msg_stime: i64, msg_rtime: i64, msg_ctime: i64, msg_cbytes: u64,
        msg_qnum: u64, msg_qbytes: u64, msg_lspid: i32, msg_lrpid: i32, unused4: u64, unused5: u64,
    }
    /// `IPC_INFO` and `MSG_INFO` of message queues.
    msginfo {
        msgpool: i32, msgmap: i32, msgmax: i32, msgmnb: i32, msgmni: i32, msgssz: i32, msgtql: i32,
        msgseg: u16,
    }
}
