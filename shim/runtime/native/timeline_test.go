//go:build bench

package native

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// TestTimeline prints where a start's time goes: go test -tags bench -run TestTimeline -v
func TestTimeline(t *testing.T) {
	r := newRuntime(t)
	box := runtimetest.New(t, r)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 16
	shared, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	now := func() int64 {
		var ts unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		return ts.Nano()
	}
	var names []string
	var written []int64 // when the parent came to write each step
	clock = func(step string) uintptr {
		names, written = append(names, step), append(written, now())
		return uintptr(unsafe.Pointer(&shared[16*(len(names)-1)]))
	}
	defer func() { clock = nil }()
	all := map[string][]float64{}
	var order []string
	note := func(name string, ns int64) {
		if _, ok := all[name]; !ok {
			order = append(order, name)
		}
		all[name] = append(all[name], float64(ns)/1000)
	}
	for range 60 {
		names, written = nil, nil
		c := box.Config("/bin/true")
		c.Stdio = runtime.Stdio{In: null, Out: null, Err: null}
		t0 := now()
		m, err := r.Create(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		t1 := now()
		if err := m.Init().Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		t2 := now()
		at := func(i int) int64 {
			ts := (*unix.Timespec)(unsafe.Pointer(&shared[16*i]))
			return ts.Nano()
		}
		note("parent: cgroup, root filesystem", written[0]-t0)
		for i, n := range names {
			if i+1 < len(names) {
				f := strings.Fields(n)
				note("  parent: "+strings.Join(f[:min(2, len(f))], " ")+" "+f[len(f)-1], written[i+1]-written[i])
			}
		}
		note("  parent: clone, to the child's first step", at(0)-written[len(written)-1])
		note("= parent, to the child's first step", at(0)-t0)
		sum := map[string]int64{}
		var steps []string
		for i, n := range names {
			end := t1
			if i+1 < len(names) {
				end = at(i + 1)
			}
			if strings.HasPrefix(n, "exec ") {
				end = t2
			}
			f := strings.Fields(n)
			key := "  " + strings.Join(f[:min(2, len(f))], " ")
			if strings.HasPrefix(n, "mount") {
				key = "  mount …"
			}
			if strings.HasPrefix(n, "mask") || strings.HasSuffix(n, "read-only") {
				key = "  " + f[0] + " …"
			}
			if _, ok := sum[key]; !ok {
				steps = append(steps, key)
			}
			sum[key] += end - at(i)
		}
		for _, k := range steps {
			note(k, sum[k])
		}
		note("= create", t1-t0)
		note("= start", t2-t1)
		runtimetest.Reap(t, m.Init())
		if err := m.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range order {
		v := all[n]
		slices.Sort(v)
		if v[len(v)/2] >= 15 {
			fmt.Printf("%8.0f %8.0f µs  %s\n", v[len(v)/10], v[len(v)/2], n)
		}
	}
}
