// Durable appends to Tessera's POSIX driver, for comparison with Bulkhead's audit log in the same run.
//
// One log, the driver's defaults but for a batch age of 1 ms; an append counts when its index is known, which is when
// the entry is integrated and synchronised. Prints one JSON object per number of appenders.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crypto/rand"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

type result struct {
	Appenders int     `json:"appenders"`
	PerSecond float64 `json:"per_s"`
	P50Ms     float64 `json:"p50_ms"`
	P99Ms     float64 `json:"p99_ms"`
}

func main() {
	dir := flag.String("dir", "", "directory of the log")
	seconds := flag.Float64("seconds", 3, "of each measurement")
	size := flag.Int("bytes", 800, "of a leaf")
	appenders := flag.String("appenders", "1,16,64,256,1024", "numbers of appenders")
	flag.Parse()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	skey, _, err := note.GenerateKey(rand.Reader, "bench.example/tessera")
	if err != nil {
		log.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		log.Fatal(err)
	}
	driver, err := posix.New(ctx, posix.Config{Path: *dir})
	if err != nil {
		log.Fatal(err)
	}
	options := tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(tessera.DefaultBatchMaxSize, time.Millisecond)
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		log.Fatal(err)
	}
	var serial atomic.Uint64
	for _, text := range strings.Split(*appenders, ",") {
		count, err := strconv.Atoi(text)
		if err != nil {
			log.Fatal(err)
		}
		measured := measure(ctx, appender, count, *size, time.Duration(*seconds*float64(time.Second)), &serial)
		if err := json.NewEncoder(os.Stdout).Encode(measured); err != nil {
			log.Fatal(err)
		}
	}
	if err := shutdown(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func measure(
	ctx context.Context, appender *tessera.Appender, count, size int, length time.Duration, serial *atomic.Uint64,
) result {
	var group sync.WaitGroup
	var guard sync.Mutex
	var took []float64
	started := time.Now()
	for range count {
		group.Add(1)
		go func() {
			defer group.Done()
			var mine []float64
			for time.Since(started) < length {
				leaf := make([]byte, size)
				binary.BigEndian.PutUint64(leaf, serial.Add(1))
				began := time.Now()
				if _, err := appender.Add(ctx, tessera.NewEntry(leaf))(); err != nil {
					continue // pushed back: try again, as the driver asks
				}
				mine = append(mine, float64(time.Since(began).Microseconds())/1e3)
			}
			guard.Lock()
			took = append(took, mine...)
			guard.Unlock()
		}()
	}
	group.Wait()
	elapsed := time.Since(started).Seconds()
	sort.Float64s(took)
	return result{count, float64(len(took)) / elapsed, took[len(took)/2], took[len(took)*99/100]}
}
