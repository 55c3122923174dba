package snapshotters_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
)

// echo answers what it is told to, and remembers what it was asked.
type echo struct {
	err    error
	asked  []any
	mounts []plugins.Mount
	info   snapshotters.Info
	infos  int
}

func (e *echo) Prepare(_ context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	e.asked = []any{"prepare", key, parent, o}
	return e.mounts, e.err
}

func (e *echo) View(_ context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	e.asked = []any{"view", key, parent, o}
	return e.mounts, e.err
}

func (e *echo) Mounts(_ context.Context, key string) ([]plugins.Mount, error) {
	e.asked = []any{"mounts", key}
	return e.mounts, e.err
}

func (e *echo) Commit(_ context.Context, key, name, parent string) error {
	e.asked = []any{"commit", key, name, parent}
	return e.err
}

func (e *echo) Remove(_ context.Context, key string) error {
	e.asked = []any{"remove", key}
	return e.err
}

func (e *echo) Stat(_ context.Context, key string) (snapshotters.Info, error) {
	e.asked = []any{"stat", key}
	return e.info, e.err
}

func (e *echo) All(context.Context) iter.Seq2[snapshotters.Info, error] {
	return func(yield func(snapshotters.Info, error) bool) {
		for range e.infos {
			if !yield(e.info, nil) {
				return
			}
		}
		if e.err != nil {
			yield(snapshotters.Info{}, e.err)
		}
	}
}

func wire(t *testing.T, d snapshotters.Snapshotter) snapshotters.Snapshotter {
	t.Helper()
	l := bufconn.Listen(64 << 10)
	s := grpc.NewServer()
	snapshotters.Register(s, d)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close(); s.Stop(); wg.Wait() })
	return snapshotters.NewClient(cc)
}

// TestNothingIsLost sends everything that the contract has both ways.
func TestNothingIsLost(t *testing.T) {
	labels := map[string]string{"a": "b"}
	e := &echo{
		mounts: []plugins.Mount{{Type: "overlay", Source: "s", Target: "t", Options: []string{"a", "b=c"}}, {Type: "bind"}},
		info:   snapshotters.Info{Key: "k", Parent: "p", Committed: true, ReadOnly: true, Bytes: 1 << 40, Inodes: -1, Labels: labels},
		infos:  3,
	}
	far := wire(t, e)
	o := snapshotters.Options{MaxBytes: 7, Labels: labels, Volatile: true}
	asked := func(want ...any) {
		t.Helper()
		if !reflect.DeepEqual(e.asked, want) {
			t.Errorf("asked %v, want %v", e.asked, want)
		}
	}
	answered := func(m []plugins.Mount, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(m, e.mounts) {
			t.Errorf("answered %v, %v", m, err)
		}
	}
	answered(far.Prepare(t.Context(), "k", "p", o))
	asked("prepare", "k", "p", o)
	answered(far.View(t.Context(), "k", "", o))
	asked("view", "k", "", snapshotters.Options{Labels: labels})
	answered(far.Mounts(t.Context(), "k"))
	asked("mounts", "k")
	if err := far.Commit(t.Context(), "k", "n", "p"); err != nil {
		t.Error(err)
	}
	asked("commit", "k", "n", "p")
	if err := far.Remove(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	asked("remove", "k")
	if i, err := far.Stat(t.Context(), "k"); err != nil || !reflect.DeepEqual(i, e.info) {
		t.Errorf("%+v, %v", i, err)
	}
	n := 0
	for i, err := range far.All(t.Context()) {
		if err != nil || !reflect.DeepEqual(i, e.info) {
			t.Errorf("%+v, %v", i, err)
		}
		n++
	}
	if n != e.infos {
		t.Errorf("%d of %d", n, e.infos)
	}
}

// TestErrorsKeepTheirClass sends every class, with its sentence, over every method.
func TestErrorsKeepTheirClass(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrAborted,
		errdefs.ErrUnavailable, errdefs.ErrNotImplemented, errdefs.ErrDataLoss, errdefs.ErrInternal, errdefs.ErrResourceExhausted,
		context.DeadlineExceeded, context.Canceled,
	} {
		e := &echo{err: fmt.Errorf("prepare snapshot k: a reason: %w", class), infos: 2}
		far := wire(t, e)
		ctx := t.Context()
		_, prepare := far.Prepare(ctx, "k", "", snapshotters.Options{})
		_, view := far.View(ctx, "k", "", snapshotters.Options{})
		_, mounts := far.Mounts(ctx, "k")
		_, stat := far.Stat(ctx, "k")
		var all error
		n := 0
		for _, err := range far.All(ctx) {
			if all = err; err == nil {
				n++
			}
		}
		if n != e.infos {
			t.Errorf("%v: all gave %d before it failed, want %d", class, n, e.infos)
		}
		for verb, err := range map[string]error{
			"prepare": prepare, "view": view, "mounts": mounts, "stat": stat, "all": all,
			"commit": far.Commit(ctx, "k", "n", ""), "remove": far.Remove(ctx, "k"),
		} {
			if !errors.Is(err, class) || !strings.Contains(err.Error(), "a reason") {
				t.Errorf("%s: %v became %v", verb, e.err, err)
			}
		}
	}
}

func TestCheckKey(t *testing.T) {
	for key, ok := range map[string]bool{
		"k": true, ".": true, "..": true, " ": true, "ü\n": true, "sha256:00": true, strings.Repeat("k", snapshotters.MaxKey): true,
		"": false, "a/b": false, "a\x00": false, "\xff": false, strings.Repeat("k", snapshotters.MaxKey+1): false,
	} {
		if err := snapshotters.CheckKey(key); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.20q: %v", key, err)
		}
	}
}
