// Parallel recursion with stolen work, as rayon does it, on scoped threads.
// @cpus 1 2
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Barrier, Condvar, Mutex, RwLock};
use std::thread;

const WORKERS: usize = 4;

struct Pool {
    queues: Vec<Mutex<VecDeque<(usize, usize)>>>,
    pending: AtomicUsize,
    idle: (Mutex<()>, Condvar),
}

impl Pool {
    fn push(&self, worker: usize, job: (usize, usize)) {
        self.pending.fetch_add(1, Ordering::SeqCst);
        self.queues[worker].lock().unwrap().push_back(job);
        self.idle.1.notify_one();
    }

    fn take(&self, worker: usize) -> Option<(usize, usize)> {
        if let Some(job) = self.queues[worker].lock().unwrap().pop_back() {
            return Some(job);
        }
        (1..WORKERS).find_map(|i| self.queues[(worker + i) % WORKERS].lock().unwrap().pop_front())
    }

    fn work(&self, worker: usize, data: &[u64]) -> u64 {
        let mut sum = 0u64;
        loop {
            match self.take(worker) {
                Some((from, to)) if to - from > 1000 => {
                    let middle = (from + to) / 2;
                    self.push(worker, (from, middle));
                    self.push(worker, (middle, to));
                    self.finished();
                }
                Some((from, to)) => {
                    sum = sum.wrapping_add(data[from..to].iter().map(|n| n * n).sum());
                    self.finished();
                }
                None if self.pending.load(Ordering::SeqCst) == 0 => return sum,
                None => {
                    let guard = self.idle.0.lock().unwrap();
                    let wait = std::time::Duration::from_millis(1);
                    drop(self.idle.1.wait_timeout(guard, wait).unwrap());
                }
            }
        }
    }

    fn finished(&self) {
        if self.pending.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.1.notify_all();
        }
    }
}

fn main() {
    let data: Vec<u64> = (0..200_000).map(|n| n * 7919 % 1009).collect();
    let pool = Pool {
        queues: (0..WORKERS).map(|_| Mutex::default()).collect(),
        pending: AtomicUsize::new(0),
        idle: Default::default(),
    };
    pool.push(0, (0, data.len()));
    let sum: u64 = thread::scope(|scope| {
        let handles: Vec<_> =
            (0..WORKERS).map(|i| scope.spawn({ let (p, d) = (&pool, &data); move || p.work(i, d) })).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).fold(0, u64::wrapping_add)
    });
    let expected: u64 = data.iter().map(|n| n * n).sum();
    println!("{sum} {}", sum == expected);

    let (sender, receiver) = mpsc::sync_channel(8);
    let barrier = Barrier::new(WORKERS);
    let table = RwLock::new(vec![0; WORKERS]);
    let received = thread::scope(|scope| {
        for i in 0..WORKERS {
            let (sender, barrier, table) = (sender.clone(), &barrier, &table);
            scope.spawn(move || {
                for n in 0..200 {
                    if n % 50 == 0 {
                        barrier.wait();
                    }
                    table.write().unwrap()[i] += n;
                    assert!(table.read().unwrap().len() == WORKERS);
                    sender.send(n * i).unwrap();
                }
            });
        }
        drop(sender);
        receiver.iter().sum::<usize>()
    });
    println!("{received} {:?}", table.into_inner().unwrap());
}
