package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/frame"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/shim/runtime"
)

const (
	// drainTime bounds how long an exit waits until everything is read. A client that wants the
	// whole may take longer over it; it gets the rest, and the exit after that.
	drainTime = 2 * time.Second
	// reasonOOM is why the kernel kills for want of memory.
	reasonOOM = "oom"
)

// process is one process of the container: init, which may run many times, or one added by Exec.
type process struct {
	name  string
	out   *outputs
	in    *input
	once  bool // input ends when the first client that was attached leaves
	reap  *reaper
	stays *lingering

	mu      sync.Mutex
	rp      runtime.Process // of the run; nil: none
	ready   bool            // made, and not yet started
	tty     bool
	stdin   bool // somebody may write to it
	term    *os.File
	pumps   []*pump
	cols    uint16 // of the terminal, as last asked for
	rows    uint16
	began   time.Time // zero: made, not started
	killed  bool      // with SIGKILL, by us
	exit    *typesv1.Exit
	done    chan struct{} // closed once exit is there
	timeout *time.Timer   // ends one that nobody starts
}

func newProcess(name string, out *outputs, once bool, reap *reaper, stays *lingering) *process {
	return &process{name: name, out: out, in: newInput(), once: once, reap: reap, stays: stays, done: make(chan struct{})}
}

// lingering counts the pumps that go on after their process, for its children.
type lingering struct {
	mu sync.Mutex
	n  int
}

const maxLingering = 128

func (l *lingering) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= maxLingering {
		return false
	}
	l.n++
	return true
}

func (l *lingering) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n--
}

// make makes the process of a run, with pipes or a terminal; it waits to be started.
func (p *process) make(tty, stdin bool, create func(runtime.Stdio) (runtime.Process, error)) error {
	ps := &pipes{}
	if !tty {
		var err error
		if ps, err = newPipes(stdin); err != nil {
			return err
		}
	}
	var rp runtime.Process
	var err error
	p.reap.make(func() int {
		if rp, err = create(runtime.Stdio{In: ps.in, Out: ps.out, Err: ps.err}); err != nil {
			return 0
		}
		return rp.PID()
	})
	ps.closeTheirs()
	if err != nil {
		closeFiles(ps.inW, ps.outR, ps.errR)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rp, p.tty, p.stdin, p.term, p.began, p.killed, p.ready = rp, tty, stdin, nil, time.Time{}, false, true
	if tty && rp.PID() == 0 {
		p.pumps = nil
		p.in.expectTerminal()
		return nil // there is a terminal when there is a process
	}
	if tty {
		if err := p.terminal(rp); err != nil {
			p.rp = nil
			p.discard(rp)
			return err
		}
		return nil
	}
	p.pumps = p.out.startPumps(newPump(p.out, frame.Stdout, ps.outR), newPump(p.out, frame.Stderr, ps.errR))
	p.in.open(ps.inW, false)
	return nil
}

// terminal takes over rp's terminal. It is called with mu held.
func (p *process) terminal(rp runtime.Process) error {
	t := rp.Terminal()
	if t == nil {
		return fmt.Errorf("the runtime made no terminal: %w", errdefs.ErrInternal)
	}
	term, err := own(t)
	if err != nil {
		return err
	}
	p.term = term
	p.setSize()
	p.pumps = p.out.startPumps(newPump(p.out, frame.Stdout, term))
	if !p.stdin {
		term = nil
	}
	p.in.open(term, true)
	return nil
}

// discard lets go of a process. One that never ran is ended, and reaped, by the runtime.
func (p *process) discard(rp runtime.Process) {
	_ = rp.Close() // descriptors
	p.reap.forget(rp.PID())
}

// start lets the process of the run go. If it cannot, it is gone when start returns.
func (p *process) start(ctx context.Context) error {
	p.mu.Lock()
	rp, ready := p.rp, p.ready
	p.ready = false
	p.mu.Unlock()
	if rp == nil || !ready {
		return fmt.Errorf("there is no process to start: %w", errdefs.ErrFailedPrecondition)
	}
	late := rp.PID() == 0 // there is a process only once it runs
	var err error
	p.reap.make(func() int {
		if err = rp.Start(ctx); err != nil {
			return 0
		}
		return rp.PID()
	})
	p.mu.Lock()
	if err == nil && late && p.tty {
		if err = p.terminal(rp); err != nil {
			_ = rp.Signal(unix.SIGKILL)
		}
	}
	if err == nil {
		p.began = time.Now()
	}
	p.mu.Unlock()
	if err != nil {
		p.drop()
		return err
	}
	p.out.started(rp.PID())
	return nil
}

func (p *process) runner() runtime.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rp
}

func (p *process) pid() int {
	if rp := p.runner(); rp != nil {
		return rp.PID()
	}
	return 0
}

// wait waits until the process of the run has ended, and reaps it.
func (p *process) wait() (*typesv1.Exit, error) {
	ws, err := await(p.runner().PIDFD())
	at := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	x := &typesv1.Exit{At: timestamppb.New(at), StartedAt: timestamppb.New(p.began)}
	switch {
	case err != nil: // nobody can say how: that is as bad as being killed
		x.Code = 255
	case ws.Signaled():
		x.Signal = uint32(ws.Signal()) //nolint:gosec // a signal
		x.Code = 128 + x.GetSignal()
	default:
		x.Code = uint32(ws.ExitStatus()) //nolint:gosec // eight bits
	}
	return x, err
}

// perhapsOOM reports whether x looks like the kernel's doing, and not ours.
func (p *process) perhapsOOM(x *typesv1.Exit) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.killed && (x.GetSignal() == uint32(unix.SIGKILL) || x.GetCode() == 128+uint32(unix.SIGKILL))
}

// drain waits, for a bounded time, until everything that the process wrote is read. linger: its
// children may go on writing, for nobody, rather than die of a broken pipe.
func (p *process) drain(linger bool) {
	p.mu.Lock()
	pumps, tty := p.pumps, p.tty
	p.mu.Unlock()
	for _, pu := range pumps {
		if linger && !tty && p.stays.enter() {
			pu.linger.Store(true)
			go func() {
				<-pu.gone
				p.stays.leave()
			}()
		}
		pu.settle()
	}
	t := time.NewTimer(drainTime)
	defer t.Stop()
	for _, pu := range pumps {
		select {
		case <-pu.rest:
		case <-t.C:
			return
		}
	}
}

// drop lets go of the run: no signal, no input from here on. The pumps go on for as long as
// somebody holds the other ends.
func (p *process) drop() {
	p.mu.Lock()
	rp := p.rp
	p.rp = nil
	p.mu.Unlock()
	if rp != nil {
		p.discard(rp)
	}
	p.in.close()
}

// end tells everyone how the process ended, for good.
func (p *process) end(x *typesv1.Exit) {
	p.in.end()
	p.mu.Lock()
	p.exit = x
	p.mu.Unlock()
	p.out.ended(x)
	close(p.done)
}

// ended is how it ended, or nil.
func (p *process) ended() *typesv1.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// signal sends a signal to the process of the run.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	rp := p.rp
	if sig == unix.SIGKILL {
		p.killed = true
	}
	p.mu.Unlock()
	if rp == nil {
		return fmt.Errorf("%s does not run: %w", p, errdefs.ErrFailedPrecondition)
	}
	if err := rp.Signal(sig); err != nil && !errdefs.IsNotFound(err) { // that it has just ended, its exit says
		return fmt.Errorf("signal %s: %w", p, err)
	}
	return nil
}

// markKilled remembers that we killed it.
func (p *process) markKilled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killed = true
}

// resize sets the size of the terminal, now and for later runs.
func (p *process) resize(cols, rows uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cols, p.rows = cols, rows
	if p.rp != nil && !p.tty {
		return fmt.Errorf("%s has no terminal: %w", p, errdefs.ErrFailedPrecondition)
	}
	return p.setSize()
}

// setSize is called with mu held.
func (p *process) setSize() error {
	if p.term == nil || p.cols == 0 || p.rows == 0 {
		return nil
	}
	rc, err := p.term.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize %s: %w", p, err)
	}
	var serr error
	err = rc.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: p.rows, Col: p.cols}) //nolint:gosec // a descriptor
	})
	if err := errors.Join(err, serr); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("resize %s: %w", p, err)
	}
	return nil
}

func (p *process) String() string {
	if p.name == "" {
		return "the container"
	}
	return "process " + p.name
}

// signalNumber is the number of a signal's name, with or without SIG; 0 if it has none.
func signalNumber(name string) unix.Signal {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return unix.SignalNum(name)
}
