package host

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

var testID = ID{plugins.Volume, "test"}

func self(args ...string) Program {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Program{Path: exe, Args: append([]string{asPlugin}, args...)}
}

// quick are limits that make tests short, and still let a slow machine start a process.
var quick = Limits{Start: 5 * time.Second, Stat: time.Second, Attach: time.Second, Prepare: 20 * time.Second, Hang: 5 * time.Second}

// shortDir is a state directory whose sockets have short names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start hosts a plugin of the given mode until the test ends.
func start(t *testing.T, mode string, with ...func(*Options)) *Host {
	t.Helper()
	o := Options{
		Root: t.TempDir(), State: shortDir(t), Builtin: map[ID]Program{testID: self(mode)}, DropIn: t.TempDir(),
		Limits: quick, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, fn := range with {
		fn(&o)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, h)
	return h
}

func run(t *testing.T, h *Host) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		var pids []uint32
		for _, p := range h.List() {
			if p.GetPid() != 0 {
				pids = append(pids, p.GetPid())
			}
		}
		cancel(errors.New("the test is over"))
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		for _, pid := range pids {
			if s := stateOf(int(pid)); s != "" && !strings.Contains(t.Name(), "Linger") {
				t.Errorf("process %d is left (%s)", pid, s)
			}
		}
	})
}

// stateOf is the letter of a process's state, or nothing.
func stateOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return rest[:1]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func backend(t *testing.T, h *Host) volume.Client {
	t.Helper()
	b, err := h.Volume("test")
	if err != nil {
		t.Fatal(err)
	}
	return b.(volume.Client)
}

func ask(t *testing.T, b volume.Backend, id string) string {
	t.Helper()
	c, err := b.Create(t.Context(), volume.Volume{ID: id, Name: id})
	if err != nil {
		t.Fatal(err)
	}
	return c.Path
}

func the(t *testing.T, h *Host) *systemv1.Plugin {
	t.Helper()
	for _, p := range h.List() {
		if p.GetFamily() == "volume" && p.GetName() == "test" {
			return p
		}
	}
	t.Fatal("the plugin is not listed")
	return nil
}

func TestGood(t *testing.T) {
	t.Parallel()
	options := json.RawMessage(`{"a":1}`)
	h := start(t, "good", func(o *Options) { o.Config = map[ID]Config{testID: {Options: options}} })
	if s := the(t, h); s.GetState() != systemv1.Plugin_STATE_UNSPECIFIED || s.GetPid() != 0 {
		t.Errorf("before it is used: %v", s)
	}
	b := backend(t, h)
	d := newSupervised(h, testID).dirs()
	if got, want := ask(t, b, "config"), d.root+"|"+d.own+"|"+string(options); got != want {
		t.Errorf("configured with %q, want %q", got, want)
	}
	if got, want := ask(t, b, "session"), "true gantry:test /dev/null"; got != want {
		t.Errorf("session, name and stdin: %q, want %q", got, want)
	}
	if env := ask(t, b, "environment"); strings.Contains(env, "HOME=") {
		t.Errorf("the daemon's environment is inherited: %s", env)
	}
	for _, p := range []string{d.root, d.state, d.own} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v, want 0700", p, st.Mode(), err)
		}
	}
	s := the(t, h)
	if s.GetState() != systemv1.Plugin_STATE_READY || s.GetProtocol() != plugins.Protocol || s.GetVersion() != "1" || fmt.Sprint(s.GetPid()) != ask(t, b, "pid") {
		t.Errorf("listed as %v", s)
	}
	if !h.Has(plugins.Volume, "test", "word") || h.Has(plugins.Volume, "test", "missing") || h.Has(plugins.Volume, "none", "word") {
		t.Error("capabilities are not as the plugin says")
	}
	if info, err := h.Info(t.Context(), plugins.Volume, "test"); err != nil || info.Name != "test" {
		t.Errorf("info: %v %v", info, err)
	}
	var ids []string
	for id, err := range b.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("all: %q", ids)
	}
}

func TestHasStartsWhatItAsks(t *testing.T) {
	t.Parallel()
	if h := start(t, "good"); !h.Has(plugins.Volume, "test", "another") {
		t.Error("a plugin that was never started has no capabilities")
	}
}

func TestUnknown(t *testing.T) {
	t.Parallel()
	h := start(t, "good")
	if _, err := h.Volume("none"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want NotFound", err)
	}
	for _, name := range []string{"", "../x", "A", "x/y", strings.Repeat("x", 40)} {
		if _, err := h.Volume(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v, want InvalidArgument", name, err)
		}
	}
	if _, err := h.Restart(t.Context(), "flavour", "x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}

// TestBad: whatever a plugin does instead of serving costs an error that names it and the verb, at once, and nothing else.
func TestBad(t *testing.T) {
	for _, c := range []struct {
		mode  string
		words []string
	}{
		{"dies-at-once", []string{"something is not as I need it", "exit status 3"}},
		{"dies-before-info", []string{"cannot go on: no such device", "exit status 4"}},
		{"never-answers-info", []string{"info: no answer within 700ms"}},
		{"never-shakes-hands", []string{"no handshake within 700ms"}},
		{"rubbish", []string{"no gantry plugin", "Hello, world!"}},
		{"rubbish-without-end", []string{"no gantry plugin", "xxxxx"}},
		{"half-a-line", []string{"no handshake within 700ms"}},
		{"wrong-magic", []string{"exit status 1"}},
		{"wrong-version", []string{`version "7" of the driver contract`}},
		{"wrong-family", []string{"it says it is", "network/test"}},
		{"wrong-name", []string{"it says it is", "volume/other"}},
		{"not-gantry", []string{"no gantry plugin"}},
		{"listens-elsewhere", []string{"/run/some/other.sock"}},
		{"listens-on-tcp", []string{"tcp"}},
		{"serves-from-another-process", []string{"served by process"}},
		{"bad-options", []string{"the option x must be a number"}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			h := start(t, c.mode, func(o *Options) {
				o.Limits.Start = 700 * time.Millisecond
				if strings.HasPrefix(c.mode, "never") || strings.HasPrefix(c.mode, "half") {
					o.Limits.Deaths = 2 // the others die five times, and faster
				}
			})
			b := backend(t, h)
			err := b.Delete(t.Context(), volume.Volume{ID: "x", Name: "data"})
			if !errdefs.IsUnavailable(err) {
				t.Fatalf("got %v, want Unavailable", err)
			}
			t.Log(err)
			for _, w := range append(c.words, "driver test: delete volume data: ", "gantry plugin restart volume/test") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has more than one line", err)
			}
			if s := the(t, h); s.GetState() != systemv1.Plugin_STATE_FAILED || s.GetLastError() == "" {
				t.Errorf("listed as %v", s)
			}
			began := time.Now()
			if err := b.Delete(t.Context(), volume.Volume{ID: "x", Name: "data"}); err == nil || time.Since(began) > 200*time.Millisecond {
				t.Errorf("a failed plugin fails calls after %s: %v", time.Since(began), err)
			}
		})
	}
}

func TestFailedUntilRestarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "plugin")
	script := "#!/bin/sh\nexec %q " + asPlugin + " %s\n"
	write := func(mode string) {
		t.Helper()
		// A new file: the old one may be being executed.
		tmp := path + ".new"
		if err := errors.Join(os.WriteFile(tmp, fmt.Appendf(nil, script, self().Path, mode), 0o700), os.Rename(tmp, path)); err != nil { //nolint:gosec // it is executed
			t.Fatal(err)
		}
	}
	write("dies-at-once")
	h := start(t, "", func(o *Options) { o.Config = map[ID]Config{testID: {Path: path}} })
	b := backend(t, h)
	if err := b.Delete(t.Context(), volume.Volume{ID: "x"}); !errdefs.IsUnavailable(err) {
		t.Fatalf("got %v", err)
	}
	if _, err := h.Restart(t.Context(), plugins.Volume, "test"); !errdefs.IsUnavailable(err) {
		t.Errorf("restart of what still dies: %v", err)
	}
	eventually(t, "failed again", func() bool { return the(t, h).GetState() == systemv1.Plugin_STATE_FAILED })
	write("good")
	p, err := h.Restart(t.Context(), plugins.Volume, "test")
	if err != nil || p.GetState() != systemv1.Plugin_STATE_READY {
		t.Fatalf("restart: %v %v", p, err)
	}
	if err := b.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

func TestRestartReplacesTheProcess(t *testing.T) {
	t.Parallel()
	h := start(t, "good")
	b := backend(t, h)
	before := ask(t, b, "pid")
	if _, err := h.Restart(t.Context(), plugins.Volume, "test"); err != nil {
		t.Fatal(err)
	}
	if after := ask(t, b, "pid"); after == before {
		t.Errorf("still process %s", after)
	}
	pid, _ := strconv.Atoi(before)
	if s := stateOf(pid); s != "" {
		t.Errorf("process %d is left (%s)", pid, s)
	}
	if n := the(t, h).GetCrashes(); n != 0 {
		t.Errorf("a restart counts as %d crashes", n)
	}
}

func TestOlderVersion(t *testing.T) {
	t.Parallel()
	h := start(t, "version-before")
	b := backend(t, h)
	if err := b.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Fatal(err)
	}
	if v := the(t, h).GetProtocol(); v != plugins.Oldest {
		t.Errorf("protocol %d, want %d", v, plugins.Oldest)
	}
	for _, err := range b.All(t.Context()) {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("list: got %v, want NotImplemented: version 1 has none", err)
		}
	}
}

func TestDeathInACall(t *testing.T) {
	for _, c := range []struct{ id, want string }{
		{"die", "the plugin died: exit status 5"},
		{"die-of-panic", "panic: a bug of mine"},
	} {
		t.Run(c.id, func(t *testing.T) {
			h := start(t, "good")
			b := backend(t, h)
			err := b.Delete(t.Context(), volume.Volume{ID: c.id, Name: "data"})
			if !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), "driver test: delete volume data: the plugin died: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if err := b.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
				t.Errorf("the next call: %v", err)
			}
			if n := the(t, h).GetCrashes(); n != 2 {
				t.Errorf("%d crashes, want 2: the call and its second try", n)
			}
		})
	}
}

func TestDeathOnceIsNotNoticed(t *testing.T) {
	t.Parallel()
	h := start(t, "good")
	b := backend(t, h)
	if err := b.Delete(t.Context(), volume.Volume{ID: "die-once"}); err != nil {
		t.Error(err)
	}
	if n := the(t, h).GetCrashes(); n != 1 {
		t.Errorf("%d crashes, want 1", n)
	}
}

func TestDeathOfAList(t *testing.T) {
	t.Parallel()
	h := start(t, "good")
	b := backend(t, h)
	ask(t, b, "pid")
	root := newSupervised(h, testID).dirs().root
	if err := os.WriteFile(filepath.Join(root, "list-dies-once"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list := func() (ids []string, last error) {
		for id, err := range b.All(t.Context()) {
			if err != nil {
				return ids, err
			}
			ids = append(ids, id)
		}
		return ids, nil
	}
	if ids, err := list(); err != nil || len(ids) != 2 {
		t.Errorf("before the first answer: %q, %v", ids, err)
	}
	if err := os.WriteFile(filepath.Join(root, "list-dies-later"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := list(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "driver test: list volumes: the plugin died") {
		t.Errorf("after the first answer: %q, %v", ids, err)
	}
}

func TestKilledUnderLoad(t *testing.T) {
	h := start(t, "good")
	b := backend(t, h)
	ask(t, b, "pid")
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if err := b.Delete(t.Context(), volume.Volume{ID: "slow"}); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
	eventually(t, "calls under way", func() bool { return the(t, h).GetCalls() > 50 })
	if err := unix.Kill(int(the(t, h).GetPid()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if s := the(t, h); s.GetCalls() != 0 || s.GetCrashes() != 1 {
		t.Errorf("afterwards: %v", s)
	}
}

// TestUnsaid: what a driver could not do to what is said once, whoever said it.
func TestUnsaid(t *testing.T) {
	for _, c := range []struct{ text, verb, noun, want string }{
		{"publish ports of endpoint a1b2c3d4: port 80 is in use", "publish", "a1b2", "port 80 is in use"},
		{"publish a1b2: port 80 is in use", "publish", "a1b2", "port 80 is in use"},
		{"publish ports of endpoint ffff: port 80 is in use", "publish", "a1b2", "publish ports of endpoint ffff: port 80 is in use"},
		{"port 80 is published by a1b2", "publish", "a1b2", "port 80 is published by a1b2"},
		{"port a1b2: in use", "publish", "a1b2", "port a1b2: in use"},
		{"list: closed", "list", "", "closed"},
		{"list of a: closed", "list", "", "list of a: closed"},
	} {
		if got := unsaid(c.text, c.verb, c.noun); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	t.Parallel()
	h := start(t, "good")
	b := backend(t, h)
	err := b.Delete(t.Context(), volume.Volume{ID: "refuse", Name: "data"})
	if !errdefs.IsFailedPrecondition(err) || err.Error() != "driver test: delete volume data: three containers use it: failed precondition" {
		t.Errorf("got %v", err)
	}
	err = b.Delete(t.Context(), volume.Volume{ID: "unavailable", Name: "data"})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the server elsewhere is down") {
		t.Errorf("got %v", err)
	}
	err = b.Delete(t.Context(), volume.Volume{ID: "panic", Name: "data"})
	if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), "driver test: delete volume data: the driver panics: a bug of mine") {
		t.Errorf("got %v", err)
	}
	if s := the(t, h); s.GetCrashes() != 0 {
		t.Errorf("a panic in a method costs the process: %v", s)
	}
}

func TestHungVerb(t *testing.T) {
	t.Parallel()
	h := start(t, "good", func(o *Options) { o.Limits.Prepare = 300 * time.Millisecond; o.Limits.Hang = 10 * time.Second })
	b := backend(t, h)
	before := ask(t, b, "pid")
	err := b.Delete(t.Context(), volume.Volume{ID: "hang", Name: "data"})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "driver test: delete volume data: no answer within 300ms, which is the limit") {
		t.Fatalf("got %v", err)
	}
	if after := ask(t, b, "pid"); after != before {
		t.Error("one call that ran out of time costs the process")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("impatient"))
	defer cancel()
	if err := b.Delete(ctx, volume.Volume{ID: "hang", Name: "data"}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "driver test: delete volume data: no answer within") {
		t.Errorf("the caller's deadline: %v", err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { _ = b.Delete(t.Context(), volume.Volume{ID: "hang"}) })
	}
	wg.Wait()
	eventually(t, "another process", func() bool { return ask(t, b, "pid") != before })
}

// TestStopped: a process that is stopped as a whole does not answer Info either, and is replaced long before the verb's limit.
func TestStopped(t *testing.T) {
	t.Parallel()
	h := start(t, "good", func(o *Options) { o.Limits.Hang = 400 * time.Millisecond })
	b := backend(t, h)
	before := ask(t, b, "pid")
	began := time.Now()
	if err := b.Delete(t.Context(), volume.Volume{ID: "stop-once", Name: "data"}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	if ask(t, b, "pid") == before {
		t.Error("it is the same process")
	}
}

func TestTooManyCalls(t *testing.T) {
	t.Parallel()
	h := start(t, "good", func(o *Options) { o.Limits.Calls, o.Limits.Waiting, o.Limits.Hang = 2, 3, 10*time.Second })
	b := backend(t, h)
	ask(t, b, "pid")
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { _ = b.Delete(ctx, volume.Volume{ID: "hang"}) })
	}
	s, err := h.get(plugins.Volume, "test")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a full house", func() bool { _, waiting := s.turns.counts(); return waiting == 3 })
	err = b.Delete(t.Context(), volume.Volume{ID: "x", Name: "data"})
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "driver test: delete volume data: 2 calls are under way and 3 wait") {
		t.Errorf("got %v", err)
	}
	cancel(errors.New("enough"))
	wg.Wait()
	if err := b.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestLimitCalls: a new limit holds for plugins that run, for calls that wait, and for plugins used later.
func TestLimitCalls(t *testing.T) {
	t.Parallel()
	later := ID{plugins.Volume, "later"}
	h := start(t, "good", func(o *Options) {
		o.Limits.Calls, o.Limits.Hang = 1, 10*time.Second
		o.Builtin[later] = self("good")
	})
	b := backend(t, h)
	ask(t, b, "pid")
	s, err := h.get(plugins.Volume, "test")
	if err != nil {
		t.Fatal(err)
	}
	counts := func(taken, waiting int) func() bool {
		return func() bool { a, b := s.turns.counts(); return a == taken && b == waiting }
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { _ = b.Delete(ctx, volume.Volume{ID: "hang"}) })
	}
	eventually(t, "one call under way and two waiting", counts(1, 2))
	h.LimitCalls(3)
	eventually(t, "all three under way", counts(3, 0))
	h.LimitCalls(2)
	wg.Go(func() { _ = b.Delete(ctx, volume.Volume{ID: "x"}) })
	eventually(t, "the fourth waits for two to end", counts(3, 1))
	o, err := h.get(plugins.Volume, "later")
	if err != nil {
		t.Fatal(err)
	}
	if o.turns.limit != 2 {
		t.Errorf("a plugin that is used later may have %d calls under way", o.turns.limit)
	}
	cancel(errors.New("enough"))
	wg.Wait()
	eventually(t, "an empty house", counts(0, 0))
}

// TestTurns: whoever waits longest is next, and who gives up keeps nobody's place.
func TestTurns(t *testing.T) {
	t.Parallel()
	x := &turns{limit: 1, room: 2}
	if err := x.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	impatient, giveUp := context.WithCancelCause(t.Context())
	gone, got := make(chan error), make(chan error)
	go func() { gone <- x.take(impatient) }()
	eventually(t, "one who waits", func() bool { _, n := x.counts(); return n == 1 })
	go func() { got <- x.take(t.Context()) }()
	eventually(t, "two who wait", func() bool { _, n := x.counts(); return n == 2 })
	if err := x.take(t.Context()); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a third who waits: %v", err)
	}
	giveUp(errors.New("enough"))
	if err := <-gone; status.Code(err) != codes.Canceled {
		t.Errorf("gave up: %v", err)
	}
	x.end()
	if err := <-got; err != nil {
		t.Errorf("next: %v", err)
	}
	if taken, waiting := x.counts(); taken != 1 || waiting != 0 {
		t.Errorf("%d under way, %d wait", taken, waiting)
	}
}

func TestPrinting(t *testing.T) {
	t.Parallel()
	h := start(t, "good")
	b := backend(t, h)
	for range 3 {
		if err := b.Delete(t.Context(), volume.Volume{ID: "print"}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlood(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	h := start(t, "floods-stderr", func(o *Options) { o.Limits.Log = limit })
	b := backend(t, h)
	ask(t, b, "pid")
	log := the(t, h).GetLog()
	cuts, last := 0, int64(0)
	eventually(t, "the log is cut again and again", func() bool {
		st, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() < last {
			cuts++
		}
		last = st.Size()
		return cuts >= 3
	})
	if st, err := os.Stat(log + ".1"); err != nil || st.Size() != limit/4 {
		t.Errorf("what was kept: %v %v", st, err)
	}
	if err := b.Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Error(err)
	}
}

// TestChildHoldsPipes: a child that keeps the plugin's output open does not hide its death.
func TestChildHoldsPipes(t *testing.T) {
	t.Parallel()
	h := start(t, "child-holds-pipes")
	b := backend(t, h)
	child, err := strconv.Atoi(ask(t, b, "child"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(child, unix.SIGKILL) })
	began := time.Now()
	_ = b.Delete(t.Context(), volume.Volume{ID: "die"})
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("death was noticed after %s", d)
	}
	second, _ := strconv.Atoi(ask(t, b, "child"))
	t.Cleanup(func() { _ = unix.Kill(second, unix.SIGKILL) })
}

func TestChecksum(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(self().Path)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "plugin")
	// A script, so that the mode can be in it.
	script := fmt.Appendf(nil, "#!/bin/sh\nexec %q %s good\n", self().Path, asPlugin)
	if err := os.WriteFile(path, script, 0o700); err != nil { //nolint:gosec // it is executed
		t.Fatal(err)
	}
	sum := sha256.Sum256(script)
	h := start(t, "", func(o *Options) {
		o.Config = map[ID]Config{testID: {Path: path, SHA256: hex.EncodeToString(sum[:])}}
	})
	if err := backend(t, h).Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Errorf("the right checksum: %v", err)
	}
	sum = sha256.Sum256(raw)
	h = start(t, "", func(o *Options) {
		o.Config = map[ID]Config{testID: {Path: path, SHA256: hex.EncodeToString(sum[:])}}
	})
	err = backend(t, h).Delete(t.Context(), volume.Volume{ID: "x", Name: "data"})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the configuration wants "+hex.EncodeToString(sum[:])) {
		t.Errorf("the wrong checksum: %v", err)
	}
}

// TestWhatIsCheckedIsExecuted: the file behind the path is exchanged after the check, and the checked one runs.
func TestWhatIsCheckedIsExecuted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin")
	for _, content := range []string{"elf", "script"} {
		good := []byte("#!/bin/sh\necho good\n")
		if content == "elf" {
			var err error
			if good, err = os.ReadFile("/bin/true"); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, good, 0o700); err != nil { //nolint:gosec // it is executed
			t.Fatal(err)
		}
		sum := sha256.Sum256(good)
		x, err := openExecutable(path, hex.EncodeToString(sum[:]))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("#!/bin/sh\nexit 66\n"), 0o700)); err != nil { //nolint:gosec // it would be executed
			t.Fatal(err)
		}
		log, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		r := &running{x: x, program: Program{Path: path}, spec: &exec.Cmd{}, stderr: log, process: &process{dead: make(chan struct{})}}
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, r.Stdout()) }()
		<-r.dead
		if r.exit != "exit status 0" {
			t.Errorf("%s: what was executed ended with %q", content, r.exit)
		}
		_ = x.Close()
		r.bury()
	}
}

func TestExecutables(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"none", func(string) error { return nil }, "no such file"},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, "no executable file"},
		{"no-x", func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) }, "no executable file"},
		{"world", func(p string) error { return errors.Join(os.WriteFile(p, []byte("x"), 0o600), os.Chmod(p, 0o777)) }, "may be written by anybody"}, //nolint:gosec // on purpose
		{"fifo", func(p string) error { return unix.Mkfifo(p, 0o700) }, "no executable file"},
		{"text", func(p string) error { return os.WriteFile(p, []byte("what is this"), 0o700) }, "exec format error"}, //nolint:gosec // on purpose
		{"empty", func(p string) error { return os.WriteFile(p, nil, 0o700) }, "exec format error"},                   //nolint:gosec // on purpose
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.name)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			h := start(t, "", func(o *Options) { o.Config = map[ID]Config{testID: {Path: path}} })
			err := backend(t, h).Delete(t.Context(), volume.Volume{ID: "x", Name: "data"})
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDropIn(t *testing.T) {
	t.Parallel()
	h := start(t, "dies-at-once", func(o *Options) {
		path := filepath.Join(o.DropIn, "volume", "test")
		script := fmt.Appendf(nil, "#!/bin/sh\nexec %q %s good\n", self().Path, asPlugin)
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, script, 0o700)); err != nil { //nolint:gosec // it is executed
			t.Fatal(err)
		}
	})
	if err := backend(t, h).Delete(t.Context(), volume.Volume{ID: "x"}); err != nil {
		t.Error(err)
	}
	if p := the(t, h).GetPath(); !strings.HasPrefix(p, h.o.DropIn) {
		t.Errorf("path %s", p)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for _, c := range []map[ID]Config{
		{{plugins.Volume, "Bad"}: {}},
		{{"flavour", "x"}: {}},
		{testID: {SHA256: "12"}},
	} {
		if _, err := New(Options{Root: "/r", State: "/s", Config: c}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: got %v, want InvalidArgument", c, err)
		}
	}
	if _, err := New(Options{Root: "r", State: "/s"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}

func TestStateDirectoryTooLong(t *testing.T) {
	t.Parallel()
	h := start(t, "good", func(o *Options) { o.State = filepath.Join(t.TempDir(), strings.Repeat("x", 80)) })
	if err := backend(t, h).Delete(t.Context(), volume.Volume{ID: "x"}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "too long for the path of a socket") {
		t.Errorf("got %v", err)
	}
}

// TestDaemonKilled: the lifeline. A plugin does not outlive a daemon that is killed, unless it lingers.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode string
		ends bool
	}{{"good", true}, {"lingers", false}} {
		t.Run(c.mode, func(t *testing.T) {
			p := self("daemon", t.TempDir(), shortDir(t), c.mode)
			cmd := exec.Command(p.Path, p.Args...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			gone := func() bool { s := stateOf(pid); return s == "" || s == "Z" }
			if c.ends {
				eventually(t, "the plugin ends", gone)
				return
			}
			time.Sleep(300 * time.Millisecond) // that nothing happens cannot be polled
			if gone() {
				t.Error("it did not linger")
			}
		})
	}
}

// memory is Records that a test can look into.
type memory struct {
	mu sync.Mutex
	p  *storev1.PluginProcess
}

func (m *memory) Load(string, string) (*storev1.PluginProcess, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p == nil {
		return nil, errdefs.ErrNotFound
	}
	return m.p, nil
}

func (m *memory) Save(p *storev1.PluginProcess) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p = p
	return nil
}

func (m *memory) Forget(string, string) error { return m.Save(nil) }

func TestLingersAndIsFoundAgain(t *testing.T) {
	t.Parallel()
	records := &memory{}
	root, state := t.TempDir(), shortDir(t)
	next := func(change func(*storev1.PluginProcess)) (pid int, close func()) {
		if change != nil && records.p != nil {
			change(records.p)
		}
		h, err := New(Options{
			Root: root, State: state, Builtin: map[ID]Program{testID: self("lingers")}, DropIn: t.TempDir(), Limits: quick, Records: records,
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- h.Run(t.Context()) }()
		pid, err = strconv.Atoi(ask(t, backend(t, h), "pid"))
		if err != nil {
			t.Fatal(err)
		}
		if v := the(t, h).GetProtocol(); v != plugins.Protocol {
			t.Errorf("protocol %d", v)
		}
		t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
		return pid, func() {
			if err := errors.Join(h.Close(t.Context()), <-done); err != nil {
				t.Error(err)
			}
		}
	}
	first, end := next(nil)
	end()
	if s := stateOf(first); s == "" || s == "Z" {
		t.Fatal("it did not linger")
	}
	second, end := next(nil)
	end()
	if second != first {
		t.Fatalf("process %d was not found again: %d", first, second)
	}
	for name, change := range map[string]func(*storev1.PluginProcess){
		"another boot":     func(p *storev1.PluginProcess) { p.BootId = "x" },
		"another process":  func(p *storev1.PluginProcess) { p.PidStarted-- },
		"another program":  func(p *storev1.PluginProcess) { p.Checksum = []byte("x") },
		"no such process":  func(p *storev1.PluginProcess) { p.Pid = 1 << 30 },
		"unknown protocol": func(p *storev1.PluginProcess) { p.Protocol = 99 },
		"foreign socket":   func(p *storev1.PluginProcess) { p.Socket = "/run/x.sock" },
		"dead socket":      func(p *storev1.PluginProcess) { p.Socket += "x" },
	} {
		before := int(records.p.GetPid())
		pid, end := next(change)
		end()
		if pid == before {
			t.Errorf("%s: process %d is taken for ours", name, pid)
		}
		if s := stateOf(before); s == "" || s == "Z" {
			t.Errorf("%s: process %d, which might be anybody's, was signalled", name, before)
		}
	}
}

func TestLingererIsWatchedAndReplaced(t *testing.T) {
	t.Parallel()
	records := &memory{}
	root, state := t.TempDir(), shortDir(t)
	h := func() *Host {
		h, err := New(Options{Root: root, State: state, Builtin: map[ID]Program{testID: self("lingers")}, DropIn: t.TempDir(), Limits: quick, Records: records})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	one := h()
	done := make(chan error, 1)
	go func() { done <- one.Run(t.Context()) }()
	first := ask(t, backend(t, one), "pid")
	if err := errors.Join(one.Close(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	two := h()
	go func() { done <- two.Run(t.Context()) }()
	b := backend(t, two)
	if got := ask(t, b, "pid"); got != first {
		t.Fatalf("got %s, want %s", got, first)
	}
	if err := b.Delete(t.Context(), volume.Volume{ID: "die-once"}); err != nil {
		t.Errorf("the death of one that was found again: %v", err)
	}
	second := ask(t, b, "pid")
	if second == first {
		t.Error("it is not replaced")
	}
	if _, err := two.Restart(t.Context(), plugins.Volume, "test"); err != nil {
		t.Fatal(err)
	}
	third, _ := strconv.Atoi(ask(t, b, "pid"))
	if err := errors.Join(two.Close(t.Context()), <-done, unix.Kill(third, unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if pid, _ := strconv.Atoi(second); stateOf(pid) != "" && stateOf(pid) != "Z" {
		t.Errorf("%d was replaced and lives", pid)
	}
}

func TestCallsAfterTheEnd(t *testing.T) {
	t.Parallel()
	h, err := New(Options{Root: t.TempDir(), State: shortDir(t), Builtin: map[ID]Program{testID: self("good")}, DropIn: t.TempDir(), Limits: quick})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Run(t.Context()) }()
	b := backend(t, h)
	ask(t, b, "pid")
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Delete(t.Context(), volume.Volume{ID: "hang"}) })
	eventually(t, "a call under way", func() bool { return the(t, h).GetCalls() > 0 })
	if err := errors.Join(h.Close(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	err = b.Delete(t.Context(), volume.Volume{ID: "x", Name: "data"})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "the daemon is ending") {
		t.Errorf("got %v", err)
	}
}

func TestBackoff(t *testing.T) {
	for n, want := range []time.Duration{0, 0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %s, want %s", n, got, want)
		}
	}
	if got := backoff(1000); got != time.Minute {
		t.Errorf("backoff(1000) = %s, want 1m", got)
	}
}

func TestWords(t *testing.T) {
	for log, want := range map[string]string{
		"":                             "",
		"a\nb\n\n":                     "b",
		`{"msg":"m","err":"e"}` + "\n": "m: e",
		`{"level":"ERROR","msg":"no"}` + "\n" + `{"level":"INFO","msg":"fine"}`: "no",
		"{not json":                           "{not json",
		"x\npanic: boom\n\ngoroutine 1:\nf()": "panic: boom",
		"\x1b[31mred\x00\xff":                 "[31mred ?",
	} {
		if got := wordsIn([]byte(log)); got != want {
			t.Errorf("%q: got %q, want %q", log, got, want)
		}
	}
	if got := oneLine(strings.Repeat("é", 1000)); len(got) > wordsLimit+10 {
		t.Errorf("%d bytes", len(got))
	}
}

func FuzzWords(f *testing.F) {
	f.Add([]byte(`{"msg":"m","err":1}`))
	f.Add([]byte("panic: \xff\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		if w := wordsIn(log); strings.ContainsAny(w, "\n\r\x00\x1b") || len(w) > wordsLimit+10 {
			t.Errorf("%q", w)
		}
	})
}

func FuzzPrinted(f *testing.F) {
	f.Add([]byte("\x08\x01\x12\x02hi"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if out := printed(raw); len(out) > len(raw) {
			t.Errorf("%q of %q", out, raw)
		}
	})
}

func TestPrinted(t *testing.T) {
	if got := string(printed([]byte("\x08\x01\x12\x02hi\x1a\x01x\x12\x01!"))); got != "hi!" {
		t.Errorf("got %q", got)
	}
}

func TestInStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gantry.db")
	db, err := meta.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r := InStore(db)
	if _, err := r.Load("volume", "test"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want NotFound", err)
	}
	want := &storev1.PluginProcess{Family: "volume", Name: "test", Pid: 7, Checksum: []byte{1}}
	if err := errors.Join(r.Save(want), db.Close()); err != nil {
		t.Fatal(err)
	}
	if db, err = meta.Open(path); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	r = InStore(db)
	if got, err := r.Load("volume", "test"); err != nil || got.GetPid() != 7 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := errors.Join(r.Forget("volume", "test"), r.Forget("volume", "test")); err != nil {
		t.Error(err)
	}
	if _, err := r.Load("volume", "test"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want NotFound", err)
	}
}

// BenchmarkCall is one call of a driver in another process, through everything that stands between.
func BenchmarkCall(b *testing.B) {
	state, err := os.MkdirTemp("", "gy")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(state) }()
	h, err := New(Options{Root: b.TempDir(), State: state, Builtin: map[ID]Program{testID: self("good")}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Run(b.Context()) }()
	v, err := h.Volume("test")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := v.Delete(b.Context(), volume.Volume{ID: "x"}); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(h.Close(b.Context()), <-done); err != nil {
		b.Fatal(err)
	}
}

// TestNothingLeaks: a process that is replaced leaves no descriptor and no goroutine behind.
func TestNothingLeaks(t *testing.T) { // not parallel: it counts what all tests have
	h := start(t, "good")
	b := backend(t, h)
	again := func(n int) {
		for range n {
			ask(t, b, "pid")
			if err := unix.Kill(int(the(t, h).GetPid()), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			ask(t, b, "pid")
			if _, err := h.Restart(t.Context(), plugins.Volume, "test"); err != nil {
				t.Fatal(err)
			}
		}
	}
	count := func() (fds, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	again(2)
	fds, goroutines := count()
	again(8)
	eventually(t, "as few descriptors and goroutines as before", func() bool {
		f, g := count()
		return f <= fds+1 && g <= goroutines+2
	})
}
