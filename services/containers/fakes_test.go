package containers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// world is everything around a Service: drivers and shims, which outlive it.
type world struct {
	t     testing.TB
	root  string
	db    *meta.DB
	shims *fakeShims
	snaps *fakeSnapshots
	nets  *fakeNetworks
	vols  *fakeVolumes
	ns    *fakeNetNS
	boot  string
	*Service
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldIn(t, t.TempDir())
}

func newWorldIn(t testing.TB, root string) *world {
	t.Helper()
	w := &world{
		t: t, root: root, boot: "boot-1", snaps: &fakeSnapshots{held: map[string]string{}}, nets: &fakeNetworks{newMind()},
		vols: &fakeVolumes{mind: newMind()}, ns: &fakeNetNS{newMind()},
	}
	w.shims = &fakeShims{t: t, by: map[bundle.Dir]*fakeShim{}, exits: map[bundle.Dir]bundle.Exit{}}
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *world) open() {
	w.t.Helper()
	db, err := meta.Open(filepath.Join(w.root, "db"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.db = db
	w.Service = New(Config{
		Root: filepath.Join(w.root, "root"), State: filepath.Join(w.root, "state"), Instance: "gantry-test", Version: "test", Snapshotter: "overlay",
		BootID: w.boot, Log: slog.New(slog.DiscardHandler),
	}, Parts{DB: db, Images: fakeImages{}, Networks: w.nets, Volumes: w.vols, Snapshots: w.snaps, Shims: w.shims, NetNS: w.ns})
	w.times = times{find: 300 * time.Millisecond, way: 300 * time.Millisecond}
	for kind, undo := range map[string]func(key string){kindSnapshot: w.snaps.drop, "endpoint": w.nets.drop, "volume": w.vols.drop} {
		db.OnUndo(kind, func(_ context.Context, c *storev1.Claim) error {
			undo(c.GetRef().GetKey())
			return nil
		})
	}
	if err := db.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.Service.Close()
	if err := w.db.Close(); err != nil {
		w.t.Error(err)
	}
}

// restart is a new daemon in the same world.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
}

func (w *world) create(name string, spec *containersv1.Spec) *containersv1.Container {
	w.t.Helper()
	if spec == nil {
		spec = &containersv1.Spec{}
	}
	if spec.Image == "" {
		spec.Image = "busybox"
	}
	c, err := w.Create(w.t.Context(), name, nil, spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) run(name string, spec *containersv1.Spec) (*containersv1.Container, *fakeShim) {
	w.t.Helper()
	c := w.create(name, spec)
	c, err := w.Start(w.t.Context(), c.GetMeta().GetId())
	if err != nil {
		w.t.Fatal(err)
	}
	return c, w.shims.of(w.state(c.GetMeta().GetId()))
}

// eventually waits until the container is as ok says.
func (w *world) eventually(ref string, ok func(*containersv1.Container) bool) *containersv1.Container {
	w.t.Helper()
	var last *containersv1.Container
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		c, err := w.Get(w.t.Context(), ref)
		if errdefs.IsNotFound(err) {
			c = nil
		} else if err != nil {
			w.t.Fatal(err)
		}
		if last = c; ok(c) {
			return c
		}
	}
	w.t.Fatalf("container %s never got there: %v", ref, last)
	return nil
}

func inPhase(p containersv1.Phase) func(*containersv1.Container) bool {
	return func(c *containersv1.Container) bool { return c != nil && c.GetStatus().GetPhase() == p }
}

func gone(c *containersv1.Container) bool { return c == nil }

// clean checks that nothing is held beyond what the records say.
func (w *world) clean() {
	w.t.Helper()
	alone := map[string]bool{}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		busy := false
		_ = w.db.View(func(tx *meta.Tx) error {
			for op := range tx.Ops() {
				busy = true
				_ = op
			}
			return nil
		})
		if !busy || time.Now().After(end) {
			break
		}
	}
	records := map[string]*containersv1.Container{}
	for c, err := range w.All(nil, true) {
		if err != nil {
			w.t.Fatal(err)
		}
		records[c.GetMeta().GetId()] = c
	}
	if err := w.db.View(func(tx *meta.Tx) error {
		for op := range tx.Ops() {
			w.t.Errorf("left in the journal: %v", op)
		}
		for name, id := range names.All(tx) {
			if records[id].GetMeta().GetName() != name {
				w.t.Errorf("name %s of %s is left", name, id)
			}
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	for id := range w.snaps.all() {
		alone[id] = records[id] == nil
	}
	for _, c := range records {
		if is := ocispec.Resources(c.GetSpec().GetResources(), nil); alive(c) && !reflect.DeepEqual(is.Pids, w.config(c).Linux.Resources.Pids) {
			w.t.Errorf("%s: its shim starts it with other limits than its record has: %+v", c.GetMeta().GetName(), w.config(c).Linux.Resources.Pids)
		}
	}
	for id := range records {
		if _, ok := w.snaps.all()[id]; !ok {
			w.t.Errorf("%s has no snapshot", id)
		}
	}
	for _, held := range []map[string]bool{w.nets.all(), w.vols.all(), w.ns.all(), w.shims.all()} {
		for id := range held {
			alone[id] = alone[id] || !alive(records[id])
		}
	}
	for id, is := range alone {
		if is {
			w.t.Errorf("%s is left: snapshot %q, endpoint %v, volume %v, namespace %v, shim %v", id, w.snaps.all()[id], w.nets.all()[id], w.vols.all()[id], w.ns.all()[id], w.shims.all()[id])
		}
	}
	found, err := list(filepath.Join(w.Root, "containers"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, id := range found {
		if anID.MatchString(id) && records[id] == nil {
			w.t.Errorf("directory of %s is left", id)
		}
	}
	for _, ch := range w.Checks() {
		if ch.Name == "containers.cgroups" {
			continue // of the machine, not of the world
		}
		if err := ch.Run(w.t.Context(), func(subject, detail string, _ func(context.Context) error) {
			w.t.Errorf("%s: %s: %s", ch.Name, subject, detail)
		}); err != nil {
			w.t.Errorf("%s: %v", ch.Name, err)
		}
	}
}

type fakeImages struct{}

func (fakeImages) Resolve(_ context.Context, ref, _ string) (*imagesv1.Image, error) {
	if ref == "missing" {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return &imagesv1.Image{
		Meta:    &typesv1.Meta{Id: "sha256:0011223344556677", Name: "docker.io/library/" + ref + ":latest"},
		ChainId: "sha256:chain",
		Config:  &imagesv1.Config{Cmd: []string{"sh"}, Env: []string{"A=1"}},
	}, nil
}

// mind is a driver's memory: what it holds, and how it fails.
type mind struct {
	mu   sync.Mutex
	held map[string]bool
	fail map[string]error
	slow chan struct{} // while it is not nil, calls wait for it, or their context
	hook func(point string)
}

func newMind() mind { return mind{held: map[string]bool{}} }

func (m *mind) call(ctx context.Context, verb string) error {
	m.mu.Lock()
	slow, err, hook := m.slow, m.fail[verb], m.hook
	m.mu.Unlock()
	if hook != nil {
		hook(verb)
	}
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

func (m *mind) set(verb string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		m.fail = map[string]error{}
	}
	m.fail[verb] = err
}

func (m *mind) hang(ch chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow = ch
}

func (m *mind) hold(key string, held bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if held {
		m.held[key] = true
	} else {
		delete(m.held, key)
	}
}

func (m *mind) drop(key string) { m.hold(key, false) }

func (m *mind) all() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.held)
}

type fakeSnapshots struct {
	mind
	held map[string]string
}

func (f *fakeSnapshots) drop(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, key)
}

func (f *fakeSnapshots) all() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.held)
}

func (f *fakeSnapshots) Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, _ snapshotters.Options) ([]*typesv1.Mount, error) {
	if err := op.Claim(claim(meta.Make, kindSnapshot, snapshotter, key), claim(meta.Use, kindSnapshot, snapshotter, parent)); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.held[key] = parent
	f.mu.Unlock()
	return f.Mounts(ctx, snapshotter, key)
}

func (f *fakeSnapshots) Mounts(ctx context.Context, _, key string) ([]*typesv1.Mount, error) {
	if err := f.call(ctx, "mounts"); err != nil {
		return nil, err
	}
	if _, ok := f.all()[key]; !ok {
		return nil, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
	}
	return []*typesv1.Mount{{Type: "bind", Source: "/nowhere"}}, nil
}

func (f *fakeSnapshots) Remove(ctx context.Context, op *meta.Op, snapshotter, key string) error {
	if err := op.Claim(claim(meta.Drop, kindSnapshot, snapshotter, key)); err != nil {
		return err
	}
	if err := f.call(ctx, "remove"); err != nil {
		return err
	}
	f.drop(key)
	return nil
}

func (f *fakeSnapshots) Usage(context.Context, string, string) (snapshotters.Info, error) {
	return snapshotters.Info{Bytes: 1000}, nil
}

type fakeNetworks struct{ mind }

func (f *fakeNetworks) Check(ctx context.Context, _ *containersv1.Spec, _ string) error {
	return f.call(ctx, "check")
}

func (f *fakeNetworks) Drops(_ *meta.Tx, id string) []*storev1.Claim {
	if !f.all()[id] {
		return nil
	}
	return []*storev1.Claim{claim(meta.Drop, "endpoint", "net", id)}
}

func (f *fakeNetworks) Join(ctx context.Context, op *meta.Op, c *containersv1.Container, netns string) ([]*networksv1.Endpoint, error) {
	id := c.GetMeta().GetId()
	if netns == "" {
		return nil, errors.New("no namespace")
	}
	if err := op.Claim(claim(meta.Make, "endpoint", "net", id)); err != nil {
		return nil, err
	}
	f.hold(id, true)
	if err := f.call(ctx, "join"); err != nil {
		return nil, err
	}
	return []*networksv1.Endpoint{{
		Network: "back", Addresses: []string{"10.4.0.2/24"}, Gateways: []string{"10.4.0.1"},
		Ports: []*networksv1.Port{{HostPort: 8080, ContainerPort: 80}},
	}}, nil
}

func (f *fakeNetworks) Leave(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	if err := op.Claim(claim(meta.Drop, "endpoint", "net", c.GetMeta().GetId())); err != nil {
		return err
	}
	if err := f.call(ctx, "leave"); err != nil {
		return err
	}
	f.drop(c.GetMeta().GetId())
	return nil
}

type fakeVolumes struct {
	mind
	released []bool
}

func (f *fakeVolumes) MountClaims(*meta.Tx, *containersv1.Container) []*storev1.Claim { return nil }

func (f *fakeVolumes) DropClaims(*meta.Tx, *containersv1.Container, bool) []*storev1.Claim {
	return nil
}

func (f *fakeVolumes) Ensure(ctx context.Context, _ *meta.Op, _ *containersv1.Container) error {
	return f.call(ctx, "ensure")
}

func (f *fakeVolumes) Mount(ctx context.Context, _ *meta.Op, c *containersv1.Container) (out []*typesv1.Mount, _ error) {
	if err := f.call(ctx, "mount"); err != nil {
		return nil, err
	}
	for _, v := range c.GetVolumes() {
		if v.GetKind() == containersv1.VolumeMount_KIND_VOLUME {
			out = append(out, &typesv1.Mount{Type: "bind", Source: "/volumes/" + v.GetSource(), Target: v.GetTarget(), Options: []string{"rbind"}})
		}
	}
	return out, nil
}

func (f *fakeVolumes) Unmount(ctx context.Context, _ *meta.Op, _ *containersv1.Container) error {
	return f.call(ctx, "unmount")
}

func (f *fakeVolumes) Release(ctx context.Context, _ *meta.Op, _ *containersv1.Container, anonymous bool) error {
	f.mu.Lock()
	f.released = append(f.released, anonymous)
	f.mu.Unlock()
	return f.call(ctx, "release")
}

type fakeNetNS struct{ mind }

func (f *fakeNetNS) Path(id string) string { return "/netns/" + id }

func (f *fakeNetNS) Pin(id string) (string, error) {
	f.hold(id, true)
	return f.Path(id), f.call(context.Background(), "pin")
}

func (f *fakeNetNS) Remove(id string) error {
	f.drop(id)
	return nil
}

func (f *fakeNetNS) All() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for id := range f.all() {
			if !yield(id, nil) {
				return
			}
		}
	}
}

// fakeShims is a host with shims.
type fakeShims struct {
	mind
	t       testing.TB
	by      map[bundle.Dir]*fakeShim
	exits   map[bundle.Dir]bundle.Exit // as written to disk
	onSpawn func(*fakeShim)
	silent  bool // Find gets no answer
	dying   int  // how often it is refused
}

func (f *fakeShims) of(dir bundle.Dir) *fakeShim {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[dir]
}

func (f *fakeShims) all() map[string]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := map[string]bool{}
	for d, s := range f.by {
		if !s.isGone() {
			m[filepath.Base(d.State)] = true
		}
	}
	return m
}

func (f *fakeShims) set1(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func (f *fakeShims) hush(silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = silent
}

func (f *fakeShims) Spawn(ctx context.Context, dir bundle.Dir, boot *shimv1.Boot) (supervise.Shim, error) {
	if err := f.call(ctx, "spawn"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir.State, 0o700); err != nil {
		return nil, err
	}
	s := &fakeShim{
		dir: dir, boot: proto.CloneOf(boot), gone: make(chan struct{}), moved: make(chan struct{}), phase: shimv1.Phase_PHASE_EMPTY, run: boot.GetRun(),
		fail: map[string]error{}, execs: map[string]*fakeProcess{}, init: newProcess(), hook: f.hook,
	}
	s.record = func(e *typesv1.Exit) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.exits[dir] = bundle.Exit{Code: e.GetCode(), At: e.GetAt().AsTime(), Reason: e.GetReason(), Run: e.GetRun()}
	}
	f.mu.Lock()
	f.by[dir] = s
	delete(f.exits, dir)
	hook := f.onSpawn
	f.mu.Unlock()
	if hook != nil {
		hook(s)
	}
	return s, nil
}

func (f *fakeShims) Find(ctx context.Context, dir bundle.Dir) (supervise.Shim, error) {
	f.mu.Lock()
	s, silent := f.by[dir], f.silent
	dying := f.dying > 0
	f.dying--
	f.mu.Unlock()
	if dying {
		return nil, fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
	}
	if silent || s != nil && s.isHung() {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if s == nil || s.isGone() {
		return nil, fmt.Errorf("shim: %w", errdefs.ErrNotFound)
	}
	return s.reconnect(), nil
}

func (f *fakeShims) Bury(_ context.Context, dir bundle.Dir) (bundle.Exit, error) {
	f.mu.Lock()
	s, e := f.by[dir], f.exits[dir]
	delete(f.by, dir)
	f.mu.Unlock()
	if s != nil {
		s.die()
	}
	if e.At.IsZero() {
		e = bundle.Exit{Code: 137, At: time.Now(), Reason: reasonLost}
	}
	return e, supervise.DropState(dir)
}

// fakePID is a process that is there, and stays as long as the test.
var fakePID = uint32(os.Getpid())

// fakeShim is a shim whose process does what the test says.
type fakeShim struct {
	dir    bundle.Dir
	boot   *shimv1.Boot
	record func(*typesv1.Exit)
	hook   func(point string)
	init   *fakeProcess

	mu       sync.Mutex
	gone     chan struct{}
	dead     bool
	moved    chan struct{}
	change   uint64
	phase    shimv1.Phase
	run      uint64
	exit     *typesv1.Exit
	fail     map[string]error
	signals  []uint32
	last     bool
	deaf     bool // signals do nothing, but SIGKILL
	immortal bool // and SIGKILL neither
	hung     bool // SIGSTOP: it answers nobody
	execs    map[string]*fakeProcess
	deleted  []string
	updates  []*shimv1.UpdateRequest
	restless bool // each look finds another run
	looks    uint64
	instant  bool // the process ends as soon as it starts
	warnings []string
	fatal    bool // and the shim with it
}

// fakeProcess is one process's streams.
type fakeProcess struct {
	mu    sync.Mutex
	out   []*typesv1.ProcessOutput
	in    []*typesv1.ProcessInput
	more  chan struct{}
	ended bool
	read  int // how far anybody has read
}

func (p *fakeProcess) reached() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read
}

func newProcess() *fakeProcess { return &fakeProcess{more: make(chan struct{})} }

func (p *fakeProcess) write(o *typesv1.ProcessOutput) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	_, p.ended = o.GetOutput().(*typesv1.ProcessOutput_Exit)
	p.out = append(p.out, o)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *fakeProcess) say(s string) {
	p.write(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Stdout{Stdout: []byte(s)}})
}

func (p *fakeProcess) end(e *typesv1.Exit) {
	p.write(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Exit{Exit: e}})
}

func (p *fakeProcess) inputs() []*typesv1.ProcessInput {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.in)
}

// reconnect is the same shim over a new connection.
func (s *fakeShim) reconnect() supervise.Shim { return s }

func (s *fakeShim) isGone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

func (s *fakeShim) isHung() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hung && !s.dead
}

// die is kill -9 of the shim.
func (s *fakeShim) die() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dead {
		s.dead = true
		close(s.gone)
	}
}

func (s *fakeShim) set(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.change++
	close(s.moved)
	s.moved = make(chan struct{})
}

// ends is the process's end, in the order of truth: written, then told.
func (s *fakeShim) ends(code uint32) {
	s.mu.Lock()
	e := &typesv1.Exit{Code: code, At: now(), Run: s.run}
	dead := s.dead || s.phase == shimv1.Phase_PHASE_EXITED
	s.mu.Unlock()
	if dead {
		return
	}
	s.record(e)
	s.set(func() { s.phase, s.exit = shimv1.Phase_PHASE_EXITED, e })
	s.init.end(e)
}

func (s *fakeShim) err(verb string) error {
	if s.hook != nil && verb != "state" {
		s.hook("shim " + verb)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return fmt.Errorf("%s: ttrpc: closed: %w", verb, errdefs.ErrUnavailable)
	}
	return s.fail[verb]
}

func (s *fakeShim) Gone() <-chan struct{} { return s.gone }

func (s *fakeShim) Hello(ctx context.Context, _ *shimv1.HelloRequest) (*shimv1.HelloResponse, error) {
	s.mu.Lock()
	hung := s.hung
	s.mu.Unlock()
	if hung {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return &shimv1.HelloResponse{Capabilities: []string{changesPolicy}}, s.err("hello")
}

func (s *fakeShim) Create(context.Context, *shimv1.CreateRequest) (*shimv1.CreateResponse, error) {
	if err := s.err("create"); err != nil {
		return nil, err
	}
	s.set(func() { s.phase = shimv1.Phase_PHASE_CREATED })
	return &shimv1.CreateResponse{Pid: fakePID, Warnings: s.warnings}, nil
}

func (s *fakeShim) Start(_ context.Context, r *shimv1.StartRequest) (*shimv1.StartResponse, error) {
	if err := s.err("start"); err != nil {
		return nil, err
	}
	if r.GetProcess() != "" {
		return &shimv1.StartResponse{Pid: 77}, nil
	}
	s.set(func() { s.phase = shimv1.Phase_PHASE_RUNNING })
	s.init.say("first byte\n")
	s.mu.Lock()
	instant, fatal := s.instant, s.fatal
	s.mu.Unlock()
	if fatal {
		s.die()
	}
	if instant {
		s.ends(0)
	}
	return &shimv1.StartResponse{Pid: fakePID}, nil
}

func (s *fakeShim) Exec(_ context.Context, r *shimv1.ExecRequest) (*shimv1.ExecResponse, error) {
	if err := s.err("exec"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.execs[r.GetProcess()] = newProcess()
	return &shimv1.ExecResponse{}, nil
}

func (s *fakeShim) exec() *fakeProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.execs {
		return p
	}
	return nil
}

func (s *fakeShim) State(ctx context.Context, r *shimv1.StateRequest) (*shimv1.StateResponse, error) {
	for {
		if err := s.err("state"); err != nil {
			return nil, err
		}
		s.mu.Lock()
		st := &shimv1.StateResponse{Change: s.change, Phase: s.phase, Pid: fakePID, Run: s.run, Exit: s.exit, StartedAt: now()}
		if r.GetSeen() == 0 && s.restless {
			s.looks++
			st.Run += s.looks
		}
		moved := s.moved
		s.mu.Unlock()
		if st.GetChange() != r.GetSeen() {
			return st, nil
		}
		select {
		case <-moved:
		case <-s.gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *fakeShim) Wait(ctx context.Context, r *shimv1.WaitRequest) (*shimv1.WaitResponse, error) {
	s.mu.Lock()
	p := s.execs[r.GetProcess()]
	s.mu.Unlock()
	if p == nil {
		return nil, fmt.Errorf("process: %w", errdefs.ErrNotFound)
	}
	for {
		p.mu.Lock()
		ended, more := p.ended, p.more
		var e *typesv1.Exit
		if ended {
			e = p.out[len(p.out)-1].GetExit()
		}
		p.mu.Unlock()
		if ended {
			return &shimv1.WaitResponse{Exit: e}, nil
		}
		select {
		case <-more:
		case <-s.gone:
			return nil, errdefs.ErrUnavailable
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *fakeShim) Kill(_ context.Context, r *shimv1.KillRequest) (*shimv1.KillResponse, error) {
	if err := s.err("kill"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.signals, s.last = append(s.signals, r.GetSignal()), s.last || r.GetLast()
	deaf := s.immortal || s.deaf && r.GetSignal() != 9 || r.GetSignal() == 10 || s.phase == shimv1.Phase_PHASE_PAUSED
	s.mu.Unlock()
	if !deaf {
		s.ends(128 + r.GetSignal())
	}
	return &shimv1.KillResponse{}, nil
}

func (s *fakeShim) sent() ([]uint32, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.signals), s.last
}

func (s *fakeShim) Pause(context.Context, *shimv1.PauseRequest) (*shimv1.PauseResponse, error) {
	s.set(func() { s.phase = shimv1.Phase_PHASE_PAUSED })
	return &shimv1.PauseResponse{}, s.err("pause")
}

func (s *fakeShim) Resume(context.Context, *shimv1.ResumeRequest) (*shimv1.ResumeResponse, error) {
	s.set(func() { s.phase = shimv1.Phase_PHASE_RUNNING })
	if sig, _ := s.sent(); len(sig) > 0 {
		s.ends(128 + sig[len(sig)-1]) // the signal waited for the thaw
	}
	return &shimv1.ResumeResponse{}, s.err("resume")
}

func (s *fakeShim) Update(_ context.Context, r *shimv1.UpdateRequest) (*shimv1.UpdateResponse, error) {
	err := s.err("update")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates = append(s.updates, r)
	return &shimv1.UpdateResponse{}, err
}

func (s *fakeShim) Resize(context.Context, *shimv1.ResizeRequest) (*shimv1.ResizeResponse, error) {
	return &shimv1.ResizeResponse{}, nil
}

func (s *fakeShim) Stats(context.Context, *shimv1.StatsRequest) (*shimv1.StatsResponse, error) {
	return &shimv1.StatsResponse{}, nil
}

func (s *fakeShim) Delete(_ context.Context, r *shimv1.DeleteRequest) (*shimv1.DeleteResponse, error) {
	s.mu.Lock()
	s.deleted = append(s.deleted, r.GetProcess())
	delete(s.execs, r.GetProcess())
	s.mu.Unlock()
	return &shimv1.DeleteResponse{}, s.err("delete")
}

func (s *fakeShim) Shutdown(context.Context, *shimv1.ShutdownRequest) (*shimv1.ShutdownResponse, error) {
	if err := s.err("shutdown"); err != nil {
		return nil, err
	}
	s.die()
	return &shimv1.ShutdownResponse{}, nil
}

func (s *fakeShim) IO(_ context.Context, process string, replay bool) (supervise.IO, error) {
	if err := s.err("io"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.init
	if process != "" {
		p = s.execs[process]
	}
	if p == nil {
		return nil, errdefs.ErrNotFound
	}
	x := &fakeIO{s: s, p: p, closed: make(chan struct{})}
	if !replay {
		p.mu.Lock()
		x.at = len(p.out)
		p.mu.Unlock()
	}
	return x, nil
}

type fakeIO struct {
	s      *fakeShim
	p      *fakeProcess
	at     int
	once   sync.Once
	closed chan struct{}
}

func (x *fakeIO) Send(in *typesv1.ProcessInput) error {
	x.p.mu.Lock()
	defer x.p.mu.Unlock()
	x.p.in = append(x.p.in, in)
	return nil
}

func (x *fakeIO) Recv() (*typesv1.ProcessOutput, error) {
	for {
		x.p.mu.Lock()
		if x.at < len(x.p.out) {
			o := x.p.out[x.at]
			x.at++
			x.p.read = max(x.p.read, x.at)
			x.p.mu.Unlock()
			return o, nil
		}
		more, ended := x.p.more, x.p.ended
		x.p.mu.Unlock()
		if ended {
			return nil, io.EOF
		}
		select {
		case <-more:
		case <-x.closed:
			return nil, io.ErrClosedPipe
		case <-x.s.gone:
			return nil, io.ErrUnexpectedEOF
		}
	}
}

func (x *fakeIO) Close() error {
	x.once.Do(func() { close(x.closed) })
	return nil
}

// fakeClient is a user at a terminal.
type fakeClient struct {
	once  sync.Once
	in    chan *typesv1.ProcessInput // closed: nothing more comes
	left  chan struct{}
	ready chan struct{}
	out   chan *typesv1.ProcessOutput
}

func newClient() *fakeClient {
	return &fakeClient{in: make(chan *typesv1.ProcessInput, 10), left: make(chan struct{}), ready: make(chan struct{}), out: make(chan *typesv1.ProcessOutput, 100)}
}

func (c *fakeClient) Recv() (*typesv1.ProcessInput, error) {
	select {
	case in, ok := <-c.in:
		if !ok {
			return nil, io.EOF
		}
		return in, nil
	case <-c.left:
		return nil, errors.New("the client is gone")
	}
}

func (c *fakeClient) Send(o *typesv1.ProcessOutput) error {
	select {
	case <-c.left:
		return errors.New("the client is gone")
	case c.out <- o:
		return nil
	}
}

func (c *fakeClient) leave() { c.once.Do(func() { close(c.left) }) }

func (c *fakeClient) Ready() error {
	close(c.ready)
	return nil
}

func undoing(fn func() error) meta.Undo {
	return func(context.Context, *storev1.Claim) error { return fn() }
}

// txid counts the commits so far.
func txid(t testing.TB, w *world) (n int) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.root, "db"))
	if err != nil {
		t.Fatal(err)
	}
	for page := range 2 { // bbolt's meta pages: txid is the eighth word after the page header
		off := page*os.Getpagesize() + 16 + 48
		n = max(n, int(binary.LittleEndian.Uint64(raw[off:])))
	}
	return n
}

// attach attaches a client, whose stream ends with the call, as over gRPC.
func (w *world) attach(start *containersv1.AttachStart) (*fakeClient, chan error) {
	c, done := newClient(), make(chan error, 1)
	go func() {
		err := w.Attach(w.t.Context(), start, c)
		c.leave()
		done <- err
	}()
	return c, done
}

func (w *world) exec(start *containersv1.ExecStart) (*fakeClient, chan error) {
	c, done := newClient(), make(chan error, 1)
	go func() {
		err := w.Exec(w.t.Context(), start, c)
		c.leave()
		done <- err
	}()
	return c, done
}
