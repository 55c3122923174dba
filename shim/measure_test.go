package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gantryd/gantry/internal/logfile"
	"github.com/gantryd/gantry/internal/supervise"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gantry-shim")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "gantry-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT=nogreenteagc")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the shim: %w: %s", err, out)
	}
	if out, err := exec.Command("sync", path).CombinedOutput(); err != nil { // what is not written back counts as dirty
		return "", fmt.Errorf("sync the shim: %w: %s", err, out)
	}
	return path, nil
})

// real makes a box use the shim as it is released, and not this test program.
func (b *box) real() *box {
	b.t.Helper()
	path, err := program()
	b.ok(err)
	b.sup = supervise.New(supervise.Options{Binary: path, Instance: instance, Log: slog.New(slog.DiscardHandler)})
	return b
}

// private is the shim's private dirty memory, in KiB.
func (b *box) private() int {
	b.t.Helper()
	is, err := b.dir.Shim()
	b.ok(err)
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", is.PID))
	b.ok(err)
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); f[0] == "Private_Dirty:" {
			n, err := strconv.Atoi(f[1])
			b.ok(err)
			return n
		}
	}
	b.t.Fatal("no private dirty memory")
	return 0
}

func (b *box) descriptors() int {
	b.t.Helper()
	is, err := b.dir.Shim()
	b.ok(err)
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", is.PID))
	b.ok(err)
	return len(es)
}

func (b *box) threads() int {
	b.t.Helper()
	is, err := b.dir.Shim()
	b.ok(err)
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", is.PID))
	b.ok(err)
	return len(es)
}

// TestSmall holds the shim to its budgets (HOUSE §15): on disk, and in memory beside a container.
func TestSmall(t *testing.T) {
	b := newBox(t, "sleep", "1000").real().spawn()
	path, err := program()
	b.ok(err)
	st, err := os.Stat(path)
	b.ok(err)
	idle := b.private()
	_, err = b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
	b.ok(err)
	b.start()
	with := b.private()
	t.Logf("%d KiB on disk; private dirty: %d KiB, with a container %d KiB; %d threads, %d descriptors", st.Size()>>10, idle, with, b.threads(), b.descriptors())
	if st.Size() > 8<<20 {
		t.Errorf("%d bytes on disk", st.Size())
	}
	if with > 1536 {
		t.Errorf("%d KiB private dirty", with)
	}
}

// TestFlat starts many processes, eight at a time: afterwards the shim holds what it held before.
func TestFlat(t *testing.T) {
	n := 1000
	if s := os.Getenv("GANTRY_TEST_EXECS"); s != "" { // for a longer look
		n, _ = strconv.Atoi(s)
	}
	b := newBox(t, "sleep", "1000").real().run()
	storm := func(round, n int) {
		var wg sync.WaitGroup
		for k := range 8 {
			wg.Go(func() {
				for i := range n / 8 {
					if h := b.exec(fmt.Sprintf("%d-%d-%d", round, k, i), "echo", "hello"); h.out.String() != "hello\n" || h.exit.GetCode() != 0 {
						t.Errorf("%q %v", h.out.String(), h.exit)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	storm(0, n/4)
	before, fds, began := b.private(), b.descriptors(), time.Now()
	storm(1, n)
	took := time.Since(began)
	after := b.private()
	t.Logf("private dirty after %d execs %d KiB, after %d more %d KiB; %d threads; %v each", n/4, before, n, after, b.threads(), took/time.Duration(n))
	if after > before+512 {
		t.Errorf("%d KiB became %d", before, after)
	}
	for deadline := time.Now().Add(10 * time.Second); b.descriptors() > fds; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors became %d", fds, b.descriptors())
		}
	}
	is, err := b.dir.Shim()
	b.ok(err)
	if kids, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", is.PID, is.PID)); err == nil && len(strings.Fields(string(kids))) > 1 {
		t.Errorf("children are left: %s", kids)
	}
}

func BenchmarkSpawn(b *testing.B) {
	for range b.N {
		b.StopTimer()
		x := newBox(b, "true").real()
		_, err := x.sup.Spawn(x.ctx(), x.dir, x.boot) // the first clones the program's mount
		x.ok(err)
		x.bury()
		b.StartTimer()
		_, err = x.sup.Spawn(x.ctx(), x.dir, x.boot)
		x.ok(err)
		b.StopTimer()
		x.bury()
		b.StartTimer()
	}
}

// BenchmarkRun is all of a run, from Spawn to Gone.
func BenchmarkRun(b *testing.B) {
	var parts [6]time.Duration
	for range b.N {
		b.StopTimer()
		x := newBox(b, "true").real()
		var err error
		b.StartTimer()
		last := time.Now()
		part := func(i int) {
			parts[i] += time.Since(last)
			last = time.Now()
		}
		x.spawn()
		part(0)
		_, err = x.shim.Create(x.ctx(), &shimv1.CreateRequest{})
		x.ok(err)
		part(1)
		x.start()
		part(2)
		x.wait()
		part(3)
		_, err = x.shim.Delete(x.ctx(), &shimv1.DeleteRequest{})
		x.ok(err)
		part(4)
		_, err = x.shim.Shutdown(x.ctx(), &shimv1.ShutdownRequest{})
		x.ok(err)
		<-x.shim.Gone()
		part(5)
	}
	for i, name := range []string{"spawn", "create", "start", "wait", "delete", "shutdown"} {
		b.ReportMetric(float64(parts[i].Microseconds())/float64(b.N), name+"-µs")
	}
}

func BenchmarkExec(b *testing.B) {
	x := newBox(b, "sleep", "1000").real().run()
	i := 0
	for b.Loop() {
		i++
		x.exec("x"+strconv.Itoa(i), "true")
	}
}

// benchmarkLog is how fast a container's lines get into its log, beside a file.
func benchmarkLog(b *testing.B, line string) {
	const total = 512 << 20
	var took time.Duration
	for range b.N {
		x := newBox(b, "sh", "-c", fmt.Sprintf("exec yes %s | head -c %d", strings.TrimSuffix(line, "\n"), total)).real()
		x.boot.Log.MaxBytes = logfile.DefaultMaxBytes
		x.create()
		began := time.Now()
		x.start()
		x.wait()
		took += time.Since(began)
		x.bury()
	}
	b.SetBytes(total)
	b.ReportMetric(float64(total)*float64(b.N)/took.Seconds()/1e6, "logMB/s")
}

func BenchmarkLog100(b *testing.B) { benchmarkLog(b, strings.Repeat("x", 99)+"\n") }
func BenchmarkLog2(b *testing.B)   { benchmarkLog(b, "x\n") }

// benchmarkLines has the process write each line by itself.
func BenchmarkLogLineByLine(b *testing.B) {
	const total = 64 << 20
	var took time.Duration
	for range b.N {
		x := newBox(b, "dd", "if=/dev/zero", "bs=100", fmt.Sprintf("count=%d", total/100)).real()
		x.spec.Mounts = append(x.spec.Mounts[:0:0], x.spec.Mounts...)
		x.create()
		began := time.Now()
		x.start()
		x.wait()
		took += time.Since(began)
		x.bury()
	}
	b.ReportMetric(float64(total)*float64(b.N)/took.Seconds()/1e6, "logMB/s")
}
