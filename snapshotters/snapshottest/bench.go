package snapshottest

import (
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/gantryd/gantry/plugins/wiretest"
	"github.com/gantryd/gantry/snapshotters"
)

// Bench measures what creating and removing a container asks of a driver: Prepare and Remove of a
// snapshot on twenty layers, in process and over gRPC, volatile and durable.
func Bench(b *testing.B, factory Factory) {
	for _, w := range wiretest.Wires {
		if w.Name == "faulty" {
			continue
		}
		for _, volatile := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/volatile=%v", w.Name, volatile), func(b *testing.B) {
				near := factory()
				if err := configure(b.Context(), near, b.TempDir()+"/root"); err != nil {
					b.Fatal(err)
				}
				if c, ok := near.(io.Closer); ok {
					b.Cleanup(func() { _ = c.Close() })
				}
				d := wiretest.Over[snapshotters.Snapshotter](b, w, near, snapshotters.Register, snapshotters.NewClient)
				parent := ""
				for n := range 20 {
					key, name := fmt.Sprint("unpack ", n), fmt.Sprint("layer ", n)
					if _, err := d.Prepare(b.Context(), key, parent, snapshotters.Options{}); err != nil {
						b.Fatal(err)
					}
					if err := d.Commit(b.Context(), key, name, parent); err != nil {
						b.Fatal(err)
					}
					parent = name
				}
				var prepare []time.Duration
				for b.Loop() {
					key, began := fmt.Sprint(len(prepare)), time.Now()
					if _, err := d.Prepare(b.Context(), key, parent, snapshotters.Options{Volatile: volatile}); err != nil {
						b.Fatal(err)
					}
					prepare = append(prepare, time.Since(began))
					if err := d.Remove(b.Context(), key); err != nil {
						b.Fatal(err)
					}
				}
				slices.Sort(prepare)
				b.ReportMetric(float64(prepare[len(prepare)/2].Microseconds()), "prepare-p50-µs")
				b.ReportMetric(float64(prepare[len(prepare)*95/100].Microseconds()), "prepare-p95-µs")
			})
		}
	}
}
