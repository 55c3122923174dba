package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/host"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/snapshotters"
)

// The test binary is gantry-plugin when its first argument is a driver.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && drivers[os.Args[1]] != nil {
		main()
	}
	os.Exit(m.Run())
}

// TestTheHostKnowsThem: what is built in here is what a host looks for.
func TestTheHostKnowsThem(t *testing.T) {
	var want []string
	for id := range maps.Keys(host.Builtins("x")) {
		want = append(want, id.String())
	}
	slices.Sort(want)
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("built in: %q; the host looks for %q", got, want)
	}
}

// open hosts the built-in drivers until the test ends.
func open(t *testing.T) *host.Host {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.MkdirTemp("", "gy") // short: sockets are named by paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	bridge := host.ID{Family: plugins.Network, Name: "bridge"}
	h, err := host.New(host.Options{
		Root: t.TempDir(), State: state, Builtin: host.Builtins(exe), DropIn: t.TempDir(),
		Config: map[host.ID]host.Config{bridge: {Options: []byte(`{"instance": "gantry-0badcafe", "bridge": "gy0badcafe0"}`)}},
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		if err := h.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h
}

// TestKilledAgainAndAgain: whatever a driver was doing when it was killed, the call succeeds or says who died, and
// afterwards everything works.
func TestKilledAgainAndAgain(t *testing.T) {
	h := open(t)
	s, err := h.Snapshotter("overlay")
	if err != nil {
		t.Fatal(err)
	}
	v, err := h.Volume("local")
	if err != nil {
		t.Fatal(err)
	}
	prepare := func(key string) error {
		_, err := s.Prepare(t.Context(), key, "", snapshotters.Options{})
		return err
	}
	create := func(id string) error {
		_, err := v.Create(t.Context(), volume.Volume{ID: id, Name: id})
		return err
	}
	many := func(round string, check func(error)) {
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { check(prepare(fmt.Sprintf("%s-%d", round, i))) })
			wg.Go(func() { check(create(fmt.Sprintf("%s-%d", round, i))) })
		}
		wg.Wait()
	}
	if err := errors.Join(prepare("first"), create("first")); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		for {
			for _, p := range h.List() {
				if pid := int(p.GetPid()); pid != 0 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	failed := 0
	var mu sync.Mutex
	for round := range 3 {
		many(fmt.Sprintf("killed%d", round), func(err error) {
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			failed++
			if !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "driver overlay: prepare ") && !strings.HasPrefix(err.Error(), "driver local: create volume ") {
				t.Errorf("got %v", err)
			}
		})
	}
	close(over)
	killing.Wait()
	t.Logf("%d of 600 calls failed", failed)
	many("after", func(err error) {
		if err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// TestEveryDriverServes starts each of them as a process.
func TestEveryDriverServes(t *testing.T) {
	h := open(t)
	for _, name := range names() {
		id, err := host.ParseID(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Warm(id.Family, id.Name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names() {
		id, _ := host.ParseID(name)
		began := time.Now()
		info, err := h.Info(t.Context(), id.Family, id.Name)
		if err != nil || info.Family != id.Family || info.Name != id.Name || info.Version == "" {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		t.Logf("%s: %+v after %s", name, info, time.Since(began))
	}
	s, err := h.Snapshotter("overlay")
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range s.All(t.Context()) {
		t.Errorf("a new root holds %v, %v", i, err)
	}
	v, err := h.Volume("local")
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Create(t.Context(), volume.Volume{ID: "data", Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(c.Path); err != nil || !st.IsDir() {
		t.Errorf("%s: %v", c.Path, err)
	}
	for _, p := range h.List() {
		raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(int(p.GetPid())), "smaps_rollup"))
		if err != nil {
			t.Errorf("%s/%s is not running: %v", p.GetFamily(), p.GetName(), err)
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, "Private_Dirty") {
				t.Logf("%s/%s: %s", p.GetFamily(), p.GetName(), strings.TrimSpace(line))
			}
		}
	}
}
