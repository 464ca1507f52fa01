# Threads with locks, queues and conditions, an executor, and an event loop with threads beside it.
import asyncio, concurrent.futures, queue, threading

lock, total = threading.Lock(), 0
def add():
    global total
    for _ in range(500):
        with lock:
            total += 1
threads = [threading.Thread(target=add) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(total)

jobs, done = queue.Queue(4), queue.Queue()
def worker():
    while (job := jobs.get()) is not None:
        done.put(job * job)
pool = [threading.Thread(target=worker) for _ in range(4)]
for thread in pool: thread.start()
for job in range(200): jobs.put(job)
for _ in pool: jobs.put(None)
for thread in pool: thread.join()
print(sum(done.get() for _ in range(200)))

with concurrent.futures.ThreadPoolExecutor(4) as executor:
    print(sum(executor.map(lambda n: sum(range(n)), range(100))))

async def tick(n):
    await asyncio.sleep(0.001 * (n % 5))
    return n
async def main():
    print(sum(await asyncio.gather(*(tick(n) for n in range(100)))))
    print(await asyncio.to_thread(sum, range(1000)))
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, event.set)
    print(await asyncio.wait_for(event.wait(), 10))
    process = await asyncio.create_subprocess_exec("/bin/echo", "child", stdout=asyncio.subprocess.PIPE)
    print((await process.communicate())[0])
asyncio.run(main())
