// Durable appends to Tessera's POSIX driver, for comparison with Bulkhead's audit log in the same run.
//
// The driver's defaults (batches of 256 entries or 250 ms, a checkpoint every 10 s) but for what the flags change. An
// append counts when its future ends: in this driver the entry is then sequenced and integrated, and bundle, tiles and
// tree state are on the disk (files opened with O_SYNC, directories synchronised). A signed checkpoint comes later;
// with -published an append counts only then. Prints one JSON object per number of appenders.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"log"
	"os"
	"path/filepath"
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

const pollPeriod = 10 * time.Millisecond // of the checkpoint, by those who wait for it

type result struct {
	Appenders int     `json:"appenders"`
	PerSecond float64 `json:"per_s"`
	P50Ms     float64 `json:"p50_ms"`
	P99Ms     float64 `json:"p99_ms"`
}

// wait ends when an entry counts.
type wait func(context.Context, tessera.IndexFuture) error

type target struct {
	appender *tessera.Appender
	wait     wait
}

func main() {
	dir := flag.String("dir", "", "directory of the logs")
	seconds := flag.Float64("seconds", 3, "of each measurement")
	size := flag.Int("bytes", 800, "of a leaf")
	appenders := flag.String("appenders", "1,16,64,256,1024", "numbers of appenders")
	logs := flag.Int("logs", 1, "number of logs, each with a driver of its own")
	age := flag.Duration("age", tessera.DefaultBatchMaxAge, "batch age")
	checkpoint := flag.Duration("checkpoint", tessera.DefaultCheckpointInterval, "checkpoint interval")
	published := flag.Bool("published", false, "count an append when a checkpoint covers it")
	flag.Parse()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var targets []target
	var shutdowns []func(context.Context) error
	for number := range *logs {
		made, shutdown := open(ctx, filepath.Join(*dir, strconv.Itoa(number)), *age, *checkpoint, *published)
		targets, shutdowns = append(targets, made), append(shutdowns, shutdown)
	}
	var serial atomic.Uint64
	for _, text := range strings.Split(*appenders, ",") {
		count, err := strconv.Atoi(text)
		if err != nil {
			log.Fatal(err)
		}
		measured := measure(ctx, targets, count, *size, time.Duration(*seconds*float64(time.Second)), &serial)
		if err := json.NewEncoder(os.Stdout).Encode(measured); err != nil {
			log.Fatal(err)
		}
	}
	if *logs == 1 { // so that nothing is left to be integrated when the files are looked at
		for _, shutdown := range shutdowns {
			if err := shutdown(ctx); err != nil {
				log.Print(err)
			}
		}
	}
}

func open(
	ctx context.Context, dir string, age, checkpoint time.Duration, published bool,
) (target, func(context.Context) error) {
	skey, _, err := note.GenerateKey(rand.Reader, "bench.example/tessera")
	if err != nil {
		log.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		log.Fatal(err)
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		log.Fatal(err)
	}
	options := tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(tessera.DefaultBatchMaxSize, age).WithCheckpointInterval(checkpoint)
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		log.Fatal(err)
	}
	if !published {
		return target{appender, func(_ context.Context, future tessera.IndexFuture) error {
			_, err := future()
			return err
		}}, shutdown
	}
	awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, pollPeriod)
	return target{appender, func(ctx context.Context, future tessera.IndexFuture) error {
		_, _, err := awaiter.Await(ctx, future)
		return err
	}}, shutdown
}

func measure(
	ctx context.Context, targets []target, count, size int, length time.Duration, serial *atomic.Uint64,
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
				number := serial.Add(1)
				to := targets[number%uint64(len(targets))]
				leaf := make([]byte, size)
				binary.BigEndian.PutUint64(leaf, number)
				began := time.Now()
				if err := to.wait(ctx, to.appender.Add(ctx, tessera.NewEntry(leaf))); err != nil {
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
