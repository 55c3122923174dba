package main

import (
	"context"
	"fmt"
	goruntime "runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/spec"
)

// maxName bounds the name of a process.
const maxName = 128

// find returns a process by name; "" is init.
func (s *shim) find(name string) (*process, error) {
	if name == "" {
		return s.init, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.execs[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("there is no process %q: %w", name, errdefs.ErrNotFound)
}

// exec makes another process, which waits to be started.
func (s *shim) exec(ctx context.Context, req *shimv1.ExecRequest) error {
	name := req.GetProcess()
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a process's name has 1 to %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	}
	sp, err := spec.Process(req.GetSpec())
	if err != nil {
		return fmt.Errorf("process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	p := newProcess(name, newOutputs(nil), true, s.reap, &s.stays)
	if err := s.enter(p); err != nil {
		return err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	err = p.make(sp.Terminal, req.GetOpenStdin(), func(io runtime.Stdio) (runtime.Process, error) {
		c, err := s.made()
		if err != nil {
			return nil, err
		}
		return c.Exec(ctx, &runtime.Exec{Spec: sp, User: req.GetUser(), Stdio: io})
	})
	if err != nil {
		s.forget(p)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timeout = time.AfterFunc(execTime, func() { s.abandon(p) })
	return nil
}

// enter puts a process into the table. It is of no use before make.
func (s *shim) enter(p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase == shimv1.Phase_PHASE_PAUSED:
		return fmt.Errorf("the container is paused: resume it first: %w", errdefs.ErrFailedPrecondition)
	case s.phase != shimv1.Phase_PHASE_RUNNING:
		return fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
	case s.execs[p.name] != nil:
		return fmt.Errorf("there is a process %q: %w", p.name, errdefs.ErrAlreadyExists)
	case len(s.execs) >= maxExecs:
		return fmt.Errorf("%d processes were added to the container, which is the limit: %w", maxExecs, errdefs.ErrResourceExhausted)
	}
	s.execs[p.name] = p
	return nil
}

// forget takes a process out of the table.
func (s *shim) forget(p *process) {
	s.mu.Lock()
	if s.execs[p.name] == p {
		delete(s.execs, p.name)
		s.past = slices.DeleteFunc(s.past, func(n string) bool { return n == p.name })
	}
	s.mu.Unlock()
	p.out.close()
}

// startExec lets a process go.
func (s *shim) startExec(ctx context.Context, p *process) (pid int, err error) {
	if !p.claim() {
		return 0, fmt.Errorf("%s was started, or is not there: %w", p, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := p.start(ctx); err != nil {
		s.past1(p, s.unstarted(err))
		return 0, err
	}
	pid = p.pid()
	s.work.Go(func() {
		x, err := p.wait()
		if err != nil {
			s.log.Error("how a process ended is not known", "process", p.name, "err", err)
		}
		p.drain(true)
		if p.perhapsOOM(x) && s.oomKills(context.WithoutCancel(ctx)) > 0 {
			x.Reason = reasonOOM
		}
		p.drop()
		s.past1(p, x)
	})
	return pid, nil
}

// claim takes the right to start, or to end, a process that waits; one gets it.
func (p *process) claim() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rp == nil || p.timeout == nil {
		return false
	}
	p.timeout.Stop()
	p.timeout = nil
	return true
}

// abandon ends a process that nobody started.
func (s *shim) abandon(p *process) {
	if !p.claim() {
		return
	}
	p.drop()
	s.past1(p, s.unstarted(nil))
}

// past1 tells how a process ended, and forgets the oldest that did where nobody wants to know.
func (s *shim) past1(p *process, x *typesv1.Exit) {
	p.end(x)
	s.mu.Lock()
	var old *process
	if s.execs[p.name] == p {
		if s.past = append(s.past, p.name); len(s.past) > keepExecs {
			old = s.execs[s.past[0]]
		}
	}
	s.mu.Unlock()
	if old != nil {
		s.forget(old)
	}
	s.idle.Reset(idleTime)
}

// idleTime is how long after a process has ended it is likely that there will be no other soon.
const idleTime = 5 * time.Second

// giveBack gives back what many processes took, if there were many.
func giveBack() {
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	if m.NumGC > 0 && m.HeapSys-m.HeapReleased > 1<<20 {
		debug.FreeOSMemory()
	}
}

// removeExec forgets a process that has ended.
func (s *shim) removeExec(p *process) (*typesv1.Exit, error) {
	s.abandon(p)
	x := p.ended()
	if x == nil {
		return nil, fmt.Errorf("%s runs: %w", p, errdefs.ErrFailedPrecondition)
	}
	s.forget(p)
	return x, nil
}

// left is told that a client which could write has gone.
func (s *shim) left(p *process) {
	if p.once {
		p.in.eof(true)
	}
}
