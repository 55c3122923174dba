package native

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// BenchmarkStart measures create and start, to the program's execution; "µs/…" are its parts.
func BenchmarkStart(b *testing.B) {
	r := newRuntime(b)
	box := runtimetest.New(b, r)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	var create, start, exit, remove time.Duration
	for b.Loop() {
		c := box.Config("/bin/true")
		c.Stdio = runtime.Stdio{In: null, Out: null, Err: null}
		t0 := time.Now()
		m, err := r.Create(context.Background(), c)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := m.Init().Start(context.Background()); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if code := runtimetest.Reap(b, m.Init()); code != 0 {
			b.Fatal(code)
		}
		t3 := time.Now()
		if err := m.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
		create, start, exit, remove = create+t1.Sub(t0), start+t2.Sub(t1), exit+t3.Sub(t2), remove+time.Since(t3)
	}
	for name, d := range map[string]time.Duration{"create": create, "start": start, "exit": exit, "delete": remove} {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N), "µs/"+name)
	}
}

// BenchmarkExec measures another process in a container, to its end.
func BenchmarkExec(b *testing.B) {
	r := newRuntime(b)
	box := runtimetest.New(b, r)
	m := box.Start(box.Config("/bin/sleep", "10000"))
	b.Cleanup(func() { _ = m.Init().Signal(unix.SIGKILL) })
	var started time.Duration
	for b.Loop() {
		t0 := time.Now()
		p, err := m.Container.Exec(context.Background(), m.Process("/bin/true"))
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Start(context.Background()); err != nil {
			b.Fatal(err)
		}
		started += time.Since(t0)
		if code := runtimetest.Reap(b, p); code != 0 {
			b.Fatal(code)
		}
		_ = p.Close()
	}
	b.ReportMetric(float64(started.Microseconds())/float64(b.N), "µs/started")
}
