package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/logfile"
	"github.com/gantryd/gantry/internal/sentence"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/shim/runtime"
)

const (
	// makeTime bounds making or starting a process: a shim must not hang because something in the
	// kernel does.
	makeTime = 30 * time.Second
	// execTime is how long a process may wait to be started.
	execTime = time.Minute
	// maxExecs bounds the processes beside init, and keepExecs those of them that have ended and
	// were not deleted.
	maxExecs  = 1024
	keepExecs = 128
)

// shim is one container: its state, its processes, and the record of its ends.
type shim struct {
	boot    *shimv1.Boot
	nonce   string
	dir     bundle.Dir
	rt      runtime.Runtime
	log     *slog.Logger
	out     *logfile.Writer
	reap    *reaper
	stays   lingering
	init    *process
	exits   exits
	end     chan struct{}  // closed when the shim is to end
	ending  func()         // what is answered now is the last
	leaving chan struct{}  // closed by it
	work    sync.WaitGroup // those who watch processes
	idle    *time.Timer    // a while after the last of them
	once    sync.Once      // the first start
	begun   *beginning

	op sync.Mutex // one change of init's life at a time: create, start, delete, and starting again

	mu       sync.Mutex
	change   uint64
	changed  chan struct{} // closed, and replaced, at each
	phase    shimv1.Phase
	run      uint64 // under way, or the last
	restarts uint32
	exit     *typesv1.Exit
	message  string
	c        runtime.Container // of the run; nil: none
	warnings []string          // of the container as it was made last
	shared   bool              // processes may outlive init: it has no pid namespace of its own
	stopped  bool              // the user wanted it to end
	stopSig  unix.Signal
	delay    time.Duration
	timer    *time.Timer
	execs    map[string]*process
	past     []string // names of those that have ended, oldest first
}

func newShim(boot *shimv1.Boot, nonce string, rt runtime.Runtime, reap *reaper, log *slog.Logger) *shim {
	s := &shim{
		boot: boot, nonce: nonce, rt: rt, log: log, dir: bundle.Dir{State: boot.GetStateDir(), Root: boot.GetDir()},
		reap: reap, end: make(chan struct{}), ending: func() {}, leaving: make(chan struct{}), change: 1, changed: make(chan struct{}),
		phase: shimv1.Phase_PHASE_EMPTY, run: boot.GetRun(), execs: map[string]*process{},
	}
	if p := boot.GetLog().GetPath(); p != "" {
		s.out = logfile.NewWriter(p, logfile.Limits{MaxBytes: boot.GetLog().GetMaxBytes(), MaxFiles: int(boot.GetLog().GetMaxFiles())},
			func(err error) { log.Error("the container's output cannot be written to its log", "err", err) })
	}
	s.exits.dir = s.dir
	s.idle = time.AfterFunc(time.Hour, giveBack)
	s.init = newProcess("", newOutputs(s.out), boot.GetStdinOnce(), s.reap, &s.stays)
	return s
}

// set changes the state and tells those who wait for that.
func (s *shim) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(change)
}

func (s *shim) setLocked(change func()) {
	change()
	s.change++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shim) runNow() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

func (s *shim) phaseNow() shimv1.Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase
}

// state is what State answers, and what is closed when it is old.
func (s *shim) state() (*shimv1.StateResponse, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &shimv1.StateResponse{
		Change: s.change, Phase: s.phase, Run: s.run, Restarts: s.restarts, Exit: s.exit, Message: s.message,
	}
	if s.phase != shimv1.Phase_PHASE_EXITED && s.phase != shimv1.Phase_PHASE_WAITING && s.phase != shimv1.Phase_PHASE_EMPTY {
		r.Pid = uint32(s.init.pid()) //nolint:gosec // a pid
	}
	if t := s.init.since(); !t.IsZero() {
		r.StartedAt = timestamppb.New(t)
	}
	return r, s.changed
}

func (p *process) since() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.began
}

// bounded is a context for what must not be cut short because whoever asked for it went away.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), makeTime,
		fmt.Errorf("not done within %v: %w", makeTime, context.DeadlineExceeded))
}

// create makes the container and its init process.
func (s *shim) create(ctx context.Context) (pid int, err error) {
	s.op.Lock()
	defer s.op.Unlock()
	switch s.phaseNow() {
	case shimv1.Phase_PHASE_EMPTY:
	case shimv1.Phase_PHASE_CREATED: // whoever asked did not hear the answer
		return s.init.pid(), nil
	default:
		return 0, fmt.Errorf("the container is created already: %w", errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.make(ctx); err != nil {
		return 0, err
	}
	s.set(func() { s.phase = shimv1.Phase_PHASE_CREATED })
	return s.init.pid(), nil
}

// begin makes the container before anybody calls Create, which waits for it. If it cannot be made, Create
// says why not.
func (s *shim) begin() {
	b := &beginning{done: make(chan struct{})}
	s.begun = b
	s.work.Go(func() {
		defer close(b.done)
		_, b.err = s.create(context.Background())
	})
}

// beginning is a container that is made before Create is called; nil: it is not.
type beginning struct {
	done chan struct{}
	err  error // once done
}

func (b *beginning) wait(ctx context.Context) error {
	if b == nil {
		return nil
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// make makes the container of a run. What it made before it failed is gone when it returns.
func (s *shim) make(ctx context.Context) error {
	c, err := s.config()
	if err != nil {
		return err
	}
	joined, err := s.openJoins(c.Spec)
	if err != nil {
		return err
	}
	defer closeAll(joined)
	s.mu.Lock()
	s.shared, s.warnings = !ownPids(c.Spec), nil
	s.mu.Unlock()
	s.init.out.newRun()
	var made runtime.Container
	err = s.init.make(c.Spec.Process.Terminal, s.boot.GetOpenStdin(), func(io runtime.Stdio) (_ runtime.Process, err error) {
		c.Stdio = io
		if made, err = s.rt.Create(ctx, c); err != nil {
			return nil, err
		}
		return made.Init(), nil
	})
	if err != nil && made != nil {
		return errors.Join(err, made.Delete(ctx))
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c = made
	return nil
}

// made is the container of the run.
func (s *shim) made() (runtime.Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return nil, fmt.Errorf("there is no container: %w", errdefs.ErrFailedPrecondition)
	}
	return s.c, nil
}

// unmake deletes the container of a run, if there is one.
func (s *shim) unmake(ctx context.Context) error {
	c, err := s.made()
	if err != nil {
		return nil //nolint:nilerr // nothing to do
	}
	if err := c.Delete(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c = nil
	return nil
}

// maxWarnings bounds what is told of one container.
const maxWarnings = 16

// warn writes to the log what could only be done in part, and keeps it for whoever asked for the container.
func (s *shim) warn(message string, args ...any) {
	s.log.Warn(message, args...)
	for i := 0; i+1 < len(args); i += 2 {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		message += fmt.Sprintf("%s%v %v", sep, args[i], args[i+1])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.warnings) < maxWarnings {
		s.warnings = append(s.warnings, message)
	}
}

// warned is what warn kept of the container as it is now.
func (s *shim) warned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.warnings)
}

// start lets init go.
func (s *shim) start(ctx context.Context) (pid int, err error) {
	s.op.Lock()
	defer s.op.Unlock()
	if ph := s.phaseNow(); ph != shimv1.Phase_PHASE_CREATED {
		return 0, fmt.Errorf("the container is not created, or has been started: %w", errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if pid, err = s.launch(ctx); err != nil {
		s.mu.Lock()
		s.stopped = true // whoever asked knows: it is theirs to try again
		s.mu.Unlock()
		s.over(s.unstarted(err), sentence.Of(err)) //nolint:contextcheck // an end is recorded, whoever asked for the start
	}
	return pid, err
}

// launch starts the init process that make made. If it cannot, the run is for the caller to end.
func (s *shim) launch(ctx context.Context) (pid int, err error) {
	pid = s.init.pid()
	if err := s.introduce(s.runNow()); err != nil { // before: a run that began must not be forgotten
		return 0, err
	}
	if err := s.init.start(ctx); err != nil {
		return 0, err
	}
	s.set(func() { s.phase, s.message = shimv1.Phase_PHASE_RUNNING, "" })
	s.once.Do(func() { time.AfterFunc(startTime, func() { debug.SetGCPercent(garbage) }) })
	s.work.Go(func() { //nolint:contextcheck // it waits longer than any call
		x, err := s.init.wait()
		if err != nil {
			s.log.Error("how the container ended is not known", "err", err)
		}
		s.over(x, "")
	})
	return pid, nil
}

// kill signals init.
func (s *shim) kill(ctx context.Context, sig unix.Signal, all, last bool) error {
	s.mu.Lock()
	if last {
		s.stopped, s.stopSig = true, sig
		if s.phase == shimv1.Phase_PHASE_WAITING {
			if s.timer != nil && s.timer.Stop() {
				s.finalLocked(s.exit, s.message)
			}
			s.mu.Unlock()
			return nil
		}
	}
	phase := s.phase
	s.mu.Unlock()
	if phase == shimv1.Phase_PHASE_PAUSED && sig == unix.SIGKILL {
		all = true // what is frozen does not die of a signal
	}
	if !all {
		return s.init.signal(sig)
	}
	return s.killAll(ctx, sig)
}

// killAll signals every process of the container.
func (s *shim) killAll(ctx context.Context, sig unix.Signal) error {
	c, err := s.made()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		s.markKilled()
	}
	return c.Kill(ctx, sig)
}

func (s *shim) markKilled() {
	s.init.markKilled()
	for _, p := range s.running() {
		p.markKilled()
	}
}

// running are the other processes that have not ended.
func (s *shim) running() (ps []*process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.execs {
		if p.ended() == nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// freeze pauses or resumes.
func (s *shim) freeze(ctx context.Context, from, to shimv1.Phase, act func(runtime.Container, context.Context) error) error {
	s.op.Lock()
	defer s.op.Unlock()
	switch s.phaseNow() {
	case to:
		return nil
	case from:
	default:
		return fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
	}
	c, err := s.made()
	if err != nil {
		return err
	}
	if err := act(c, ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == from { // it may have ended
		s.setLocked(func() { s.phase = to })
	}
	return nil
}

// remove undoes create.
func (s *shim) remove(ctx context.Context) (*typesv1.Exit, error) {
	s.op.Lock()
	defer s.op.Unlock()
	switch s.phaseNow() {
	case shimv1.Phase_PHASE_EMPTY, shimv1.Phase_PHASE_EXITED:
	case shimv1.Phase_PHASE_CREATED:
		s.init.drop()
	default:
		return nil, fmt.Errorf("the container runs: %w", errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.unmake(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == shimv1.Phase_PHASE_CREATED {
		s.setLocked(func() { s.phase = shimv1.Phase_PHASE_EMPTY })
	}
	return s.exit, nil
}
