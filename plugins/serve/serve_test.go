package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
)

// Main itself is tested with processes, in plugins/host.

// fake is a plugin and its driver.
type fake struct {
	mu         sync.Mutex
	configured []plugins.Config
	refuse     error
	closed     int
}

func (f *fake) Info(context.Context) (plugins.Info, error) {
	return plugins.Info{Family: plugins.Volume, Name: "fake"}, nil
}

func (f *fake) Configure(_ context.Context, c plugins.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.configured = append(f.configured, c)
	return f.refuse
}

func (f *fake) Close() error {
	f.closed++
	return nil
}

func (f *fake) Create(context.Context, volume.Volume) (volume.Created, error) {
	panic("a bug of mine")
}
func (f *fake) Delete(context.Context, volume.Volume) error { return nil }
func (f *fake) Mount(context.Context, volume.Volume, string) (plugins.Mount, error) {
	return plugins.Mount{}, nil
}
func (f *fake) Unmount(context.Context, volume.Volume, string) error { return nil }
func (f *fake) All(context.Context) iter.Seq2[string, error] {
	return func(func(string, error) bool) { panic("a bug of mine, too") }
}

// start serves f on a socket as Main does, but for the process around it.
func start(t *testing.T, f *fake) *grpc.ClientConn {
	t.Helper()
	out, err, fd1 := os.Stdout, os.Stderr, dupOf(t, 1)
	t.Cleanup(func() {
		os.Stdout, os.Stderr = out, err
		restore(t, fd1)
	})
	log, lerr := os.CreateTemp(t.TempDir(), "")
	if lerr != nil {
		t.Fatal(lerr)
	}
	s := &served{plugin: &once{p: f}, stderr: log}
	g := s.server(nil)
	plugins.Register(g, s.plugin)
	if err := (Drivers{Volume: f}).register(plugins.Volume, g); err != nil {
		t.Fatal(err)
	}
	dir, derr := os.MkdirTemp("", "gy")
	if derr != nil {
		t.Fatal(derr)
	}
	l, derr := net.Listen("unix", filepath.Join(dir, "s"))
	if derr != nil {
		t.Fatal(derr)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	cc, derr := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if derr != nil {
		t.Fatal(derr)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		g.Stop()
		s.idle.Stop()
		if err := errors.Join(<-done, os.RemoveAll(dir), log.Close()); err != nil {
			t.Error(err)
		}
	})
	return cc
}

func TestNothingBeforeConfigure(t *testing.T) {
	cc := start(t, &fake{})
	v := volume.NewClient(cc)
	if err := v.Delete(t.Context(), volume.Volume{ID: "x"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has not been configured") {
		t.Errorf("got %v", err)
	}
	for _, err := range v.All(t.Context()) {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("list: got %v", err)
		}
	}
	p := plugins.NewClient(cc, "")
	if _, err := p.Info(t.Context()); err != nil {
		t.Errorf("info: %v", err)
	}
	if err := p.Configure(t.Context(), plugins.Config{Root: "/r"}); err != nil {
		t.Fatal(err)
	}
	if err := v.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestPanicsCostOneCall(t *testing.T) {
	cc := start(t, &fake{})
	if err := plugins.NewClient(cc, "").Configure(t.Context(), plugins.Config{Root: "/r"}); err != nil {
		t.Fatal(err)
	}
	v := volume.NewClient(cc)
	if _, err := v.Create(t.Context(), volume.Volume{ID: "x"}); !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "the driver panics: a bug of mine") {
		t.Errorf("got %v", err)
	}
	for _, err := range v.All(t.Context()) {
		if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "a bug of mine, too") {
			t.Errorf("list: got %v", err)
		}
	}
	if err := v.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestConfiguredOnce(t *testing.T) {
	f := &fake{refuse: fmt.Errorf("not yet: %w", errdefs.ErrUnavailable)}
	o := &once{p: f}
	c := plugins.Config{Root: "/r", Options: []byte("{}")}
	if err := o.Configure(t.Context(), c); !errdefs.IsUnavailable(err) || o.configured.Load() {
		t.Fatalf("got %v", err)
	}
	f.refuse = nil
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := o.Configure(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(f.configured); n != 2 {
		t.Errorf("the driver was told %d times, want 2: once refused, once taken", n)
	}
	c.Root = "/elsewhere"
	if err := o.Configure(t.Context(), c); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "for /r") {
		t.Errorf("another one: %v", err)
	}
}

func TestFamilyNeedsItsDriver(t *testing.T) {
	for _, f := range plugins.Families {
		if err := (Drivers{}).register(f, grpc.NewServer()); err == nil {
			t.Errorf("%s: served without a driver", f)
		}
	}
}

// slow does not close.
type slow struct{ fake }

func (s *slow) Close() error { select {} }

func TestClosing(t *testing.T) {
	f := &fake{}
	all := Drivers{Volume: f}.closers(f)
	if len(all) != 1 {
		t.Errorf("%d things to close, want the one that is both plugin and driver", len(all))
	}
	closeAll(all)
	if f.closed != 1 {
		t.Errorf("closed %d times", f.closed)
	}
	began := time.Now()
	closeAll([]io.Closer{&slow{}})
	if d := time.Since(began); d > closeLimit+time.Second {
		t.Errorf("waited %s for what does not close", d)
	}
}

// TestPrintingDoesNotHang: what is printed after the first call goes to the log, by whichever way.
func TestPrintingDoesNotHang(t *testing.T) {
	cc := start(t, &fake{})
	if _, err := plugins.NewClient(cc, "").Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	log := os.Stderr.Name()
	fmt.Fprintln(os.Stdout, "by name")
	writeTo(t, 1, "by number\n")
	raw, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(raw), "by name\n") || !strings.Contains(string(raw), "by number\n") {
		t.Errorf("the log holds %q (%v)", raw, err)
	}
}
