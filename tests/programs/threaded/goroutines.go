package main

import (
	"fmt"
	"runtime"
	"sync"
	"time"
)

type node struct{ left, right *node }

func tree(depth int) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{tree(depth - 1), tree(depth - 1)}
}
func (n *node) count() int {
	if n.left == nil {
		return 1
	}
	return 1 + n.left.count() + n.right.count()
}

func main() {
	runtime.GOMAXPROCS(4)
	jobs, results := make(chan int), make(chan int)
	var workers sync.WaitGroup
	for w := 0; w < 8; w++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for j := range jobs {
				results <- tree(j%8 + 4).count()
			}
		}()
	}
	go func() {
		for j := 0; j < 400; j++ {
			jobs <- j
		}
		close(jobs)
		workers.Wait()
		close(results)
	}()
	sum := 0
	for r := range results {
		sum += r
	}
	fmt.Println("nodes", sum)
	runtime.GC()
	ticks := 0
	ticker := time.NewTicker(2 * time.Millisecond)
	deadline := time.After(20 * time.Second)
loop:
	for ticks < 5 {
		select {
		case <-ticker.C:
			ticks++
		case <-deadline:
			break loop
		}
	}
	ticker.Stop()
	fmt.Println("ticks", ticks)
	var m sync.Mutex
	n := 0
	var all sync.WaitGroup
	for i := 0; i < 1000; i++ {
		all.Add(1)
		go func() { defer all.Done(); m.Lock(); n++; m.Unlock(); runtime.Gosched() }()
	}
	all.Wait()
	fmt.Println("goroutines", n)
}
