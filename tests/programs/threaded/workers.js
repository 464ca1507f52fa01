// Worker threads, each with a loop that the compiler takes up.
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (isMainThread) {
  let ended = 0, sum = 0;
  for (let i = 0; i < 3; i++) {
    const worker = new Worker(__filename, { workerData: i });
    worker.on('message', (value) => { sum += value; });
    worker.on('exit', () => { if (++ended === 3) console.log('sum', sum); });
  }
} else {
  let x = 0;
  for (let i = 0; i < 2e6; i++) x = (x * 31 + i + workerData) | 0;
  parentPort.postMessage(x);
}
