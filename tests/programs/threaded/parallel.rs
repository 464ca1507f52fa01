//! Data parallelism as rayon has it: workers with queues of their own that steal from each other, `join` on
//! halves, a parallel sort, a reduction, and a barrier for all.

use std::{
    collections::VecDeque,
    sync::{
        Barrier, Mutex, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

const WORKERS: usize = 4;

/// Tasks for the workers; who has none left takes the oldest of somebody else's.
struct Pool {
    queues: Vec<Mutex<VecDeque<u64>>>,
    left: AtomicUsize,
}

impl Pool {
    fn new(tasks: u64) -> Self {
        let queues: Vec<_> = (0..WORKERS).map(|_| Mutex::new(VecDeque::new())).collect();
        // All in one queue, so that the others have to steal.
        queues[0].lock().unwrap().extend(0..tasks);
        Self { queues, left: AtomicUsize::new(tasks as usize) }
    }

    fn next(&self, me: usize) -> Option<u64> {
        let own = self.queues[me].lock().unwrap().pop_back();
        own.or_else(|| {
            let others = (1..WORKERS).map(|step| &self.queues[(me + step) % WORKERS]);
            others.into_iter().find_map(|queue| queue.lock().unwrap().pop_front())
        })
    }

    fn run(&self, work: impl Fn(u64) -> u64 + Sync) -> u64 {
        let sum = AtomicU64::new(0);
        thread::scope(|scope| {
            for me in 0..WORKERS {
                let (sum, work) = (&sum, &work);
                scope.spawn(move || {
                    while self.left.load(Ordering::Acquire) > 0 {
                        let Some(task) = self.next(me) else {
                            thread::yield_now();
                            continue;
                        };
                        sum.fetch_add(work(task), Ordering::Relaxed);
                        self.left.fetch_sub(1, Ordering::Release);
                    }
                });
            }
        });
        sum.into_inner()
    }
}

fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    thread::scope(|scope| {
        let b = scope.spawn(b);
        (a(), b.join().unwrap())
    })
}

fn sort(values: &mut [u64], depth: u32) {
    if depth == 0 || values.len() < 64 {
        values.sort_unstable();
        return;
    }
    let middle = values.len() / 2;
    values.select_nth_unstable(middle);
    let (low, high) = values.split_at_mut(middle);
    join(|| sort(low, depth - 1), || sort(high, depth - 1));
}

fn collatz(mut n: u64) -> u64 {
    let mut steps = 0;
    while n > 1 {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

fn main() {
    println!("steps {}", Pool::new(2000).run(|task| collatz(task + 1)));

    let mut state = 88_172_645_463_325_252_u64;
    let mut values: Vec<u64> = (0..40_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect();
    sort(&mut values, 4);
    println!("sorted {} {:x} {:x}", values.is_sorted(), values[0], values[39_999]);

    let (sender, receiver) = mpsc::channel();
    let barrier = Barrier::new(WORKERS);
    let table = RwLock::new(vec![0_u64; WORKERS]);
    thread::scope(|scope| {
        for me in 0..WORKERS {
            let (sender, barrier, table) = (sender.clone(), &barrier, &table);
            scope.spawn(move || {
                for round in 1..=50 {
                    table.write().unwrap()[me] += round * (me as u64 + 1);
                    barrier.wait();
                    let sum: u64 = table.read().unwrap().iter().sum();
                    if barrier.wait().is_leader() {
                        sender.send(sum).unwrap();
                    }
                }
            });
        }
    });
    drop(sender);
    let sums: Vec<u64> = receiver.into_iter().collect();
    println!("rounds {} last {} all {}", sums.len(), sums[49], sums.iter().sum::<u64>());

    let handle = thread::Builder::new().name("fails".into()).spawn(|| {
        std::panic::set_hook(Box::new(|_| {}));
        panic!("on purpose")
    });
    println!("panic is caught {}", handle.unwrap().join().is_err());
}
