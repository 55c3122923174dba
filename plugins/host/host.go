// Package host finds, launches, watches and replaces plugin processes.
//
// What it hands out are stable handles: a caller keeps one for the life of the
// daemon, and each call finds the process that serves it now.
//
//	host.go       what there is, and the handles           call.go     one call: limits, one more try, the sentence
//	find.go       where executables are, and which ones    verbs.go    what calls are called, and how long they may take
//	supervise.go  one goroutine a plugin: start, watch,    launch.go   one process: execute, shake hands, ask who it is
//	              replace, give up                         process.go  one process: identity, death, last words
//	records.go    finding again what lingered              log.go      what it writes to standard error, bounded
//	turns.go      how many calls are under way             stdio.go     what it prints, where go-plugin keeps it
//
// Of go-plugin this uses the handshake and the choice of a version. Restarting, reattaching, the connection
// and its peer are done here: go-plugin has no restarts, forgets versions, and executes paths that it hashed before.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/volume"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// DropIn is where plugins are found without being configured: <DropIn>/<family>/<name>.
const DropIn = "/usr/lib/gantry/plugins"

// ID names a plugin.
type ID struct {
	Family plugins.Family
	Name   string
}

// String is "family/name".
func (id ID) String() string { return string(id.Family) + "/" + id.Name }

// ParseID reads "family/name".
func ParseID(s string) (ID, error) {
	f, n, _ := strings.Cut(s, "/")
	id := ID{plugins.Family(f), n}
	return id, id.check()
}

func (id ID) check() error {
	if err := plugins.CheckFamily(id.Family); err != nil {
		return err
	}
	return plugins.CheckName(id.Name)
}

// Program is what to execute.
type Program struct {
	Path string
	Args []string // after the program's name
}

// Config is what the operator says about one plugin.
type Config struct {
	Path    string // "": the drop-in directory, then the built-in one
	SHA256  string // of the executable, in hexadecimal; "": not checked
	Options json.RawMessage
}

// Builtins are the drivers of the program gantry-plugin at path, for Options.Builtin.
func Builtins(path string) map[ID]Program {
	out := map[ID]Program{}
	for _, id := range []ID{
		{plugins.Snapshotter, "overlay"},
		{plugins.Snapshotter, "native"},
		{plugins.Network, "bridge"},
		{plugins.Volume, "local"},
	} {
		out[id] = Program{Path: path, Args: []string{id.String()}}
	}
	return out
}

// Limits bounds what one plugin may do to the daemon. Zero means the default.
type Limits struct {
	Start   time.Duration // from execution to the handshake, and from there to Info (5 s)
	Stat    time.Duration // Stat, Mounts (5 s)
	Attach  time.Duration // Attach, Detach, Publish, CheckNetwork, Mount, Unmount (30 s)
	Prepare time.Duration // everything else (60 s)
	Calls   int           // under way in one plugin; more wait for their turn (128)
	Waiting int           // for their turn; more are refused with ResourceExhausted (1024)
	Deaths  int           // before Info, in a row; then it has failed and calls fail at once (5)
	Hang    time.Duration // a call without answer for so long makes us ask for Info, which gets as long (10 s)
	Hangs   int           // calls in a row that ran out of time; then the process is replaced (3)
	Log     int64         // bytes of the file that standard error goes to (1 MiB)
}

func (l Limits) filled() Limits {
	fill := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	fillN := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	fill(&l.Start, 5*time.Second)
	fill(&l.Stat, 5*time.Second)
	fill(&l.Attach, 30*time.Second)
	fill(&l.Prepare, 60*time.Second)
	fill(&l.Hang, 10*time.Second)
	fillN(&l.Calls, 128)
	fillN(&l.Waiting, 1024)
	fillN(&l.Deaths, 5)
	fillN(&l.Hangs, 3)
	if l.Log <= 0 {
		l.Log = 1 << 20
	}
	return l
}

// Options is what a Host is made of.
type Options struct {
	Root    string // plugins keep what survives reboots under <Root>/plugins/<family>/<name>
	State   string // and their sockets and logs in <State>/plugins/<family>.<name>
	Version string // of the daemon, for the plugins' logs
	Builtin map[ID]Program
	Config  map[ID]Config
	DropIn  string  // "": the constant of that name
	Records Records // nil: plugins that linger are not found again
	Limits  Limits
	Log     *slog.Logger // nil: slog.Default
}

// Host supervises plugin processes.
type Host struct {
	o     Options
	logs  *logs
	calls atomic.Int64 // the limit of calls under way in one plugin, now

	wake    chan struct{} // something in plugins is wanted and has no supervisor yet
	closing chan struct{} // closed by Close
	stopped chan struct{} // closed when Run has returned

	mu      sync.Mutex
	plugins map[ID]*supervised
	running bool
	closed  bool
}

// New returns a Host. It starts nothing: plugins start at first use, or when they are warmed, once Run runs.
func New(o Options) (*Host, error) {
	if !filepath.IsAbs(o.Root) || !filepath.IsAbs(o.State) {
		return nil, fmt.Errorf("host plugins: root %q and state %q must be absolute: %w", o.Root, o.State, errdefs.ErrInvalidArgument)
	}
	for id, c := range o.Config {
		if err := id.check(); err != nil {
			return nil, fmt.Errorf("host plugins: configuration: %w", err)
		}
		if _, err := digestOf(c.SHA256); err != nil {
			return nil, fmt.Errorf("host plugins: configuration of %s: %w", id, err)
		}
	}
	if o.DropIn == "" {
		o.DropIn = DropIn
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Limits = o.Limits.filled()
	l, err := newLogs(o.Limits.Log, o.Log)
	if err != nil {
		return nil, fmt.Errorf("host plugins: %w", err)
	}
	h := &Host{
		o: o, logs: l,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), stopped: make(chan struct{}),
		plugins: map[ID]*supervised{},
	}
	h.calls.Store(int64(o.Limits.Calls))
	return h, nil
}

// LimitCalls replaces Limits.Calls; zero means the default. It holds at once, also for calls that wait for their turn;
// those under way go on.
func (h *Host) LimitCalls(calls int) {
	calls = Limits{Calls: calls}.filled().Calls
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls.Store(int64(calls))
	for _, s := range h.plugins {
		s.turns.bound(calls)
	}
}

// Run supervises until ctx ends or Close is called, and then ends the processes. Call it once.
func (h *Host) Run(ctx context.Context) error {
	h.mu.Lock()
	if h.running {
		h.mu.Unlock()
		return fmt.Errorf("host plugins: already running: %w", errdefs.ErrFailedPrecondition)
	}
	h.running = true
	h.mu.Unlock()
	defer close(h.stopped)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all, logs sync.WaitGroup
	logs.Go(h.logs.run)
	for ctx.Err() == nil {
		for _, s := range h.due() {
			all.Go(func() { s.run(ctx) })
		}
		select {
		case <-h.wake:
		case <-h.closing:
			cancel(errEnding)
		case <-ctx.Done():
		}
	}
	h.mu.Lock()
	h.closed = true
	for _, s := range h.plugins {
		s.stop() // also those that never had a supervisor
	}
	h.mu.Unlock()
	all.Wait()
	h.logs.close()
	logs.Wait()
	return nil
}

// Close ends the processes, except those that linger, and waits for that.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	running := h.running
	if !h.closed {
		h.closed = true
		close(h.closing)
	}
	h.mu.Unlock()
	if !running {
		h.logs.close()
		return nil
	}
	select {
	case <-h.stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end plugins: %w", context.Cause(ctx))
	}
}

// due are the plugins that want a supervisor and have none.
func (h *Host) due() (out []*supervised) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.plugins {
		if s.wanted && !s.supervised {
			s.supervised = true
			out = append(out, s)
		}
	}
	return out
}

// get returns a plugin that can be found, started or not.
func (h *Host) get(f plugins.Family, name string) (*supervised, error) {
	id := ID{f, name}
	if err := id.check(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.plugins[id]; ok {
		return s, nil
	}
	if h.closed {
		return nil, fmt.Errorf("driver %s: %w: %w", name, errEnding, errdefs.ErrUnavailable)
	}
	if _, err := h.find(id); err != nil {
		return nil, fmt.Errorf("driver %s: %w", name, err)
	}
	s := newSupervised(h, id)
	h.plugins[id] = s
	return s, nil
}

// want sees to it that s has a supervisor.
func (h *Host) want(s *supervised) {
	h.mu.Lock()
	due := !s.wanted
	s.wanted = true
	h.mu.Unlock()
	if due {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

// Warm starts a plugin in the background.
func (h *Host) Warm(f plugins.Family, name string) error {
	s, err := h.get(f, name)
	if err == nil {
		h.want(s)
	}
	return err
}

// Snapshotter returns the named storage driver.
func (h *Host) Snapshotter(name string) (snapshotters.Snapshotter, error) {
	s, err := h.get(plugins.Snapshotter, name)
	if err != nil {
		return nil, err
	}
	return snapshotters.NewClient(s), nil
}

// Network returns the named network driver, which is a network.Publisher too; whether that will do anything
// is for Has to say.
func (h *Host) Network(name string) (network.Driver, error) {
	s, err := h.get(plugins.Network, name)
	if err != nil {
		return nil, err
	}
	return network.NewClient(s), nil
}

// Volume returns the named volume backend, which is a volume.Counter too; whether that will do anything is for
// Has to say.
func (h *Host) Volume(name string) (volume.Backend, error) {
	s, err := h.get(plugins.Volume, name)
	if err != nil {
		return nil, err
	}
	return volume.NewClient(s), nil
}

// Info returns what a plugin says of itself, and starts it if it has not said so yet.
func (h *Host) Info(ctx context.Context, f plugins.Family, name string) (plugins.Info, error) {
	s, err := h.get(f, name)
	if err != nil {
		return plugins.Info{}, err
	}
	return s.about(ctx)
}

// Has reports whether a driver has a capability. One that has never said is started, and gets as long as a start may take.
func (h *Host) Has(f plugins.Family, name, capability string) bool {
	s, err := h.get(f, name)
	if err != nil {
		return false
	}
	if i, ok := s.known(); ok {
		return i.Has(capability)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 2*h.o.Limits.Start, errStarting) // the caller has none to give
	defer cancel()
	i, err := s.about(ctx)
	return err == nil && i.Has(capability)
}

// List describes every plugin that was used or can be found, by family and name.
func (h *Host) List() []*systemv1.Plugin {
	h.mu.Lock()
	all := map[ID]*supervised{}
	for id, s := range h.plugins {
		all[id] = s
	}
	h.mu.Unlock()
	for _, id := range h.findable() {
		if _, ok := all[id]; !ok {
			all[id] = newSupervised(h, id) // to describe it, no more
		}
	}
	out := make([]*systemv1.Plugin, 0, len(all))
	for _, s := range all {
		out = append(out, s.describe())
	}
	slices.SortFunc(out, func(a, b *systemv1.Plugin) int {
		return strings.Compare(a.GetFamily()+"/"+a.GetName(), b.GetFamily()+"/"+b.GetName())
	})
	return out
}

// Restart replaces a plugin's process, also one that has failed, and returns once it is ready. Calls wait meanwhile.
func (h *Host) Restart(ctx context.Context, f plugins.Family, name string) (*systemv1.Plugin, error) {
	s, err := h.get(f, name)
	if err != nil {
		return nil, fmt.Errorf("restart plugin: %w", err)
	}
	if err := s.replace(ctx); err != nil {
		return nil, fmt.Errorf("restart plugin: %w", err)
	}
	return s.describe(), nil
}

var (
	errEnding   = errors.New("the daemon is ending")
	errStarting = errors.New("the plugin is still starting")
)
