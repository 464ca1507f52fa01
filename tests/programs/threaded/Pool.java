// A thread pool whose tasks allocate, so that the collector and the compilers run beside it.
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.*;

public class Pool {
    public static void main(String[] arguments) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> results = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            final int task = i;
            results.add(pool.submit(() -> {
                long sum = 0;
                for (int k = 0; k < 50000; k++) sum += new int[] {k, task}[k & 1] % 7;
                return sum;
            }));
        }
        long sum = 0;
        for (Future<Long> result : results) sum += result.get();
        pool.shutdown();
        System.out.println(pool.awaitTermination(10, TimeUnit.SECONDS) + " " + sum);
    }
}
