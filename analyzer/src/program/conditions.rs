//! What functions of the C library do only if others have been called, by what their manual pages say.
//!
//! `posix_spawn` makes a session for the child only if `posix_spawnattr_setflags` has been given
//! `POSIX_SPAWN_SETSID`; `malloc` makes a second arena only for a second thread. Objects and variables carry that from
//! one function to the other, which data flow does not follow here. So each [`Condition`] names what makes the calls and
//! what has to be reached for it. A call that is made elsewhere too is not concerned: a condition is
//! about code that nothing but these functions leads to, and about its links to functions that make the calls.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{At, Linking, Solver, is_tunable};
use crate::{
    numbers::Source,
    summary::{Link, Summary},
    value::Place,
};

/// Calls that are made only if something has been reached.
struct Condition {
    /// What makes the calls; with nothing here, any code of a C library.
    within: &'static [&'static str],
    /// Functions that make them, as other functions of the C library call them.
    functions: &'static [&'static str],
    /// Their numbers, where they are made at once.
    calls: &'static [u32],
    /// What of these has to be reached.
    after: &'static [After],
}

/// What a condition asks for.
enum After {
    /// This function has been called, not just by what is under the condition.
    Called(&'static str),
    /// The C library's tunables are set.
    Tuned,
    /// It was given any of these bits in this place.
    Bits(&'static str, Place, u64),
    /// It was given this number in this place.
    Value(&'static str, Place, u64),
}

use After::{Bits, Called, Tuned, Value};

const FIRST: Place = Place::Register(7); // rdi
const SECOND: Place = Place::Register(6); // rsi

/// Functions whose arguments decide, which are recorded wherever they are called.
pub(crate) const DECIDERS: [(&str, Place); 4] = [
    (SPAWN_FLAGS, SECOND),
    ("pthread_attr_setinheritsched", SECOND),
    ("pthread_mutexattr_setprotocol", SECOND),
    ("sysconf", FIRST),
];

/// `man 3 posix_spawn`
const SPAWN: &[&str] = &["posix_spawn", "posix_spawnp", "pidfd_spawn", "pidfd_spawnp"];

const SPAWN_FLAGS: &str = "posix_spawnattr_setflags";

/// `man 3 malloc`
const MALLOC: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "free",
    "cfree",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
];

/// `man 3 pthread_create`, and what copies the attributes of threads.
const THREADS: &[&str] =
    &["pthread_create", "thrd_create", "pthread_getattr_default_np", "timer_create", "mq_notify"];

/// What makes a second thread. The C library makes those that its own functions need by the same code.
const SEVERAL_THREADS: &[After] = &[Called("pthread_create"), Called("thrd_create")];

/// What makes and locks mutexes (`man 3 pthread_mutexattr_setprotocol`).
const MUTEXES: &[&str] = &[
    "pthread_mutex_init",
    "pthread_mutex_lock",
    "pthread_mutex_trylock",
    "pthread_mutex_timedlock",
    "pthread_mutex_clocklock",
    "pthread_mutex_unlock",
    "pthread_mutex_getprioceiling",
    "pthread_mutex_setprioceiling",
    "pthread_mutexattr_getprioceiling",
    "pthread_mutexattr_setprioceiling",
    "pthread_cond_wait",
    "pthread_cond_timedwait",
    "pthread_cond_clockwait",
    "mtx_init",
    "mtx_lock",
    "mtx_trylock",
    "mtx_timedlock",
    "mtx_unlock",
    "cnd_wait",
    "cnd_timedwait",
];

/// `sched_getparam`, `sched_setscheduler`, `sched_getscheduler`.
const SCHEDULING: &[u32] = &[143, 144, 145];

const CONDITIONS: &[Condition] = &[
    // POSIX_SPAWN_RESETIDS
    Condition {
        within: SPAWN,
        functions: &["getuid", "getgid"],
        calls: &[117, 119], // setresuid, setresgid
        after: &[Bits(SPAWN_FLAGS, SECOND, 1)],
    },
    // POSIX_SPAWN_SETPGROUP
    Condition {
        within: SPAWN,
        functions: &["setpgid"],
        calls: &[109],
        after: &[Bits(SPAWN_FLAGS, SECOND, 2)],
    },
    // POSIX_SPAWN_SETSCHEDPARAM
    Condition {
        within: SPAWN,
        functions: &["sched_setparam"],
        calls: &[142],
        after: &[Bits(SPAWN_FLAGS, SECOND, 0x10)],
    },
    // POSIX_SPAWN_SETSCHEDULER
    Condition {
        within: SPAWN,
        functions: &["sched_setscheduler"],
        calls: &[144],
        after: &[Bits(SPAWN_FLAGS, SECOND, 0x20)],
    },
    // POSIX_SPAWN_SETSID
    Condition {
        within: SPAWN,
        functions: &["setsid"],
        calls: &[112],
        after: &[Bits(SPAWN_FLAGS, SECOND, 0x80)],
    },
    // File actions.
    Condition {
        within: SPAWN,
        functions: &["chdir"],
        calls: &[80],
        after: &[
            Called("posix_spawn_file_actions_addchdir_np"),
            Called("posix_spawn_file_actions_addchdir"),
        ],
    },
    Condition {
        within: SPAWN,
        functions: &["fchdir"],
        calls: &[81],
        after: &[
            Called("posix_spawn_file_actions_addfchdir_np"),
            Called("posix_spawn_file_actions_addfchdir"),
        ],
    },
    Condition {
        within: SPAWN,
        functions: &["close_range", "closefrom"],
        calls: &[436],
        after: &[Called("posix_spawn_file_actions_addclosefrom_np")],
    },
    Condition {
        within: SPAWN,
        functions: &["getpgid", "tcsetpgrp"],
        calls: &[121],
        after: &[Called("posix_spawn_file_actions_addtcsetpgrp_np")],
    },
    // PTHREAD_EXPLICIT_SCHED: by default a thread has its creator's scheduling.
    Condition {
        within: THREADS,
        functions: &["sched_getparam", "sched_getscheduler", "sched_setscheduler"],
        calls: SCHEDULING,
        after: &[
            Bits("pthread_attr_setinheritsched", SECOND, 1),
            Called("pthread_setattr_default_np"),
        ],
    },
    // The attributes of a thread that runs hold its processors.
    Condition {
        within: THREADS,
        functions: &["sched_setaffinity"],
        calls: &[203],
        after: &[
            Called("pthread_attr_setaffinity_np"),
            Called("pthread_getattr_np"),
            Called("pthread_setattr_default_np"),
        ],
    },
    // PTHREAD_PRIO_PROTECT
    Condition {
        within: MUTEXES,
        functions: &[
            "sched_get_priority_min",
            "sched_get_priority_max",
            "sched_getparam",
            "sched_getscheduler",
            "sched_setscheduler",
        ],
        calls: SCHEDULING,
        after: &[
            Bits("pthread_mutexattr_setprotocol", SECOND, 2),
            Called("pthread_mutexattr_getprioceiling"),
            Called("pthread_mutexattr_setprioceiling"),
        ],
    },
    // The first thread ends, and others do not (`man 3 pthread_exit`).
    Condition {
        within: &["__libc_start_main"],
        functions: &[],
        calls: &[60], // exit
        after: &[Called("pthread_exit"), Called("pthread_cancel"), Called("thrd_exit")],
    },
    // After `exit_group`, which does not return (`man 2 exit_group`).
    Condition { within: &["_exit"], functions: &[], calls: &[60], after: &[] },
    // The C library lets another thread go on that has a lock.
    Condition { within: &[], functions: &["sched_yield"], calls: &[], after: SEVERAL_THREADS },
    // Arenas (`man 3 mallopt`, M_ARENA_MAX): a limit by the number of processors, and memory that is given back. Huge
    // pages are for who sets glibc.malloc.hugetlb.
    Condition {
        within: MALLOC,
        functions: &["get_nprocs", "madvise"],
        calls: &[],
        after: &[Called("pthread_create"), Called("thrd_create"), Tuned],
    },
    // `man 3 sysconf`: _SC_NPROCESSORS_CONF, _SC_NPROCESSORS_ONLN, _SC_PHYS_PAGES, _SC_AVPHYS_PAGES
    Condition {
        within: &["sysconf"],
        functions: &["get_nprocs_conf"],
        calls: &[],
        after: &[Value("sysconf", FIRST, 83)],
    },
    Condition {
        within: &["sysconf"],
        functions: &["get_nprocs"],
        calls: &[],
        after: &[Value("sysconf", FIRST, 84)],
    },
    Condition {
        within: &["sysconf"],
        functions: &["get_phys_pages"],
        calls: &[],
        after: &[Value("sysconf", FIRST, 85)],
    },
    Condition {
        within: &["sysconf"],
        functions: &["get_avphys_pages"],
        calls: &[],
        after: &[Value("sysconf", FIRST, 86)],
    },
    // What is done in place of `faccessat2`, which Linux has since 5.8 (`man 2 faccessat`).
    Condition {
        within: &["faccessat"],
        functions: &["getuid", "geteuid", "getgid", "getegid", "group_member"],
        calls: &[269], // faccessat
        after: &[],
    },
];

impl After {
    fn name(&self) -> &'static str {
        match self {
            Called(name) | Bits(name, ..) | Value(name, ..) => name,
            Tuned => "",
        }
    }
}

/// What the conditions mean in one file.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    /// By node, the conditions that its code is under.
    within: HashMap<u32, Vec<usize>>,
    /// Under each condition, the nodes of its functions.
    functions: Vec<HashSet<u32>>,
    /// The conditions for all code of the file.
    everywhere: Vec<usize>,
    /// By condition, the nodes that nothing leads to but what is under it and what it asks for.
    own: Vec<HashSet<u32>>,
}

impl Conditions {
    /// A file without `posix_spawn`, `pthread_create` and the like has none.
    pub(super) fn new(summary: &Summary) -> Self {
        let mut named: HashMap<&str, Vec<u32>> = HashMap::new();
        for definition in summary.definitions.iter().filter(|definition| definition.is_code) {
            if let Some(node) = definition.node {
                named.entry(&definition.name).or_default().push(node);
            }
        }
        let nodes = |names: &[&str]| -> HashSet<u32> {
            names.iter().filter_map(|name| named.get(name)).flatten().copied().collect()
        };
        let is_c_library = ["__libc_start_main", "malloc", "pthread_create"]
            .iter()
            .all(|name| named.contains_key(name));
        let mut conditions = Self::default();
        if !is_c_library {
            return conditions;
        }
        let mut inner: HashMap<Vec<&str>, HashSet<u32>> = HashMap::new();
        let mut only_by = |names: Vec<&'static str>| {
            let new = || only_by(summary, &nodes(&names));
            inner.entry(names.clone()).or_insert_with(new).clone()
        };
        for (number, condition) in CONDITIONS.iter().enumerate() {
            conditions.functions.push(nodes(condition.functions));
            for node in only_by(condition.within.to_vec()) {
                conditions.within.entry(node).or_default().push(number);
            }
            if condition.within.is_empty() {
                conditions.everywhere.push(number);
            }
            let after = condition.after.iter().map(After::name);
            conditions.own.push(only_by(condition.within.iter().copied().chain(after).collect()));
        }
        conditions
    }

    /// The conditions that a link from a node is under.
    fn of_link(&self, from: u32, link: Link) -> impl Iterator<Item = usize> {
        let to = match link {
            Link::Call(to) | Link::Jump(to) => Some(to),
            _ => None,
        };
        let here = self.within.get(&from).into_iter().flatten().chain(&self.everywhere).copied();
        here.filter(move |number| to.is_some_and(|to| self.functions[*number].contains(&to)))
    }
}

/// The nodes that nothing but these functions leads to, with the functions themselves.
fn only_by(summary: &Summary, functions: &HashSet<u32>) -> HashSet<u32> {
    let follow = |mut todo: Vec<u32>, is_end: &dyn Fn(u32) -> bool| {
        let mut seen: HashSet<u32> = todo.iter().copied().collect();
        while let Some(at) = todo.pop() {
            for link in &summary.nodes[at as usize].links {
                if let Some(to) = link.node()
                    && !is_end(to)
                    && seen.insert(to)
                {
                    todo.push(to);
                }
            }
        }
        seen
    };
    let others = summary.definitions.iter().filter_map(|definition| definition.node);
    let others = others.chain(summary.entry).chain(summary.initialisers.iter().copied());
    let others = others.chain(summary.resolvers.iter().copied());
    let is_one = |node: u32| functions.contains(&node);
    let others = follow(others.filter(|node| !is_one(*node)).collect(), &is_one);
    let mut inner = follow(functions.iter().copied().collect(), &|_| false);
    inner.retain(|node| !others.contains(node));
    inner
}

impl Linking<'_> {
    fn conditions(&mut self, file: u32) -> Arc<Conditions> {
        let summary = &self.analysis.files[file as usize].summary;
        let conditions = self.conditions.entry(file);
        Arc::clone(conditions.or_insert_with(|| Arc::new(Conditions::new(summary))))
    }

    /// Whether a link has to wait for a condition.
    pub(super) fn is_conditional(&mut self, at: At, link: Link) -> bool {
        let conditions = self.conditions(at.0);
        conditions.of_link(at.1, link).any(|number| !self.met.contains(&number))
    }

    /// Finds out which conditions are met by now.
    pub(super) fn note_conditions(&mut self) {
        for (number, condition) in CONDITIONS.iter().enumerate() {
            if self.met.contains(&number) {
                continue;
            }
            if condition.after.iter().any(|after| self.is_met(number, after)) {
                self.met.insert(number);
            }
        }
    }

    fn is_met(&mut self, condition: usize, after: &After) -> bool {
        if matches!(after, Tuned) {
            return self.request.variables.iter().any(|name| is_tunable(name));
        }
        let definitions = self.symbols.get(after.name()).cloned().unwrap_or_default();
        for (file, number) in definitions {
            let summary = Arc::clone(&self.analysis.files[file as usize].summary);
            let Some(node) = summary.definitions[number as usize].node else { continue };
            if !self.is_reached((file, node)) {
                continue;
            }
            let (place, is_wanted): (Place, Box<dyn Fn(u64) -> bool>) = match after {
                Called(_) if self.is_called((file, node), condition) => return true,
                Called(_) | Tuned => continue,
                Bits(_, place, bits) => (*place, Box::new(move |value| value & bits != 0)),
                // A number of 32 bits.
                Value(_, place, wanted) => {
                    (*place, Box::new(move |value| value as u32 == *wanted as u32))
                }
            };
            let by = ((file, node), summary.nodes[node as usize].address);
            let mut solver = Solver { linking: self, direct: HashMap::new(), is_strict: true };
            let given = solver.values(file, &[Source::Param(node, place)], by);
            if given.iter().any(|(value, _)| value.map_or(true, &is_wanted)) {
                return true;
            }
        }
        false
    }

    /// Whether a function that is reached is called by more than what the condition is about.
    fn is_called(&mut self, at: At, condition: usize) -> bool {
        let (file, node) = at;
        let world = &self.worlds[self.analysis.files[file as usize].world];
        let definitions = &self.analysis.files[file as usize].summary.definitions;
        let mut names = definitions.iter().filter(|d| d.node == Some(node)).map(|d| &d.name);
        let is_import = |name| world.imports.get(name).is_some_and(|of| !of.links.is_empty());
        if self.analysis.taken.contains_key(&at) || names.any(is_import) {
            return true;
        }
        let conditions = self.conditions(file);
        let callers = self.callers(file);
        let own = conditions.own.get(condition);
        callers.of_node(node).iter().any(|caller| {
            self.is_reached((file, *caller)) && !own.is_some_and(|own| own.contains(caller))
        })
    }

    /// Goes on to what has waited for conditions that are met by now; whether there was anything.
    pub(super) fn open_conditions(&mut self) -> bool {
        if self.conditional.is_empty() {
            return false;
        }
        self.note_conditions();
        let waiting = std::mem::take(&mut self.conditional);
        let (waiting, open): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(at, link)| self.is_conditional(*at, *link));
        self.conditional = waiting;
        for (at, link) in &open {
            if let Link::Call(to) | Link::Jump(to) = link {
                self.touch((at.0, *to), Some(*at), "calls");
            }
        }
        !open.is_empty()
    }

    /// Whether a call that code of a node makes at once has to wait for a condition.
    pub(super) fn is_conditional_call(&mut self, (file, node): At, call: u32) -> bool {
        let conditions = self.conditions(file);
        let mut here = conditions.within.get(&node).into_iter().flatten();
        here.any(|number| CONDITIONS[*number].calls.contains(&call) && !self.met.contains(number))
    }
}
