package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/frame"
	"github.com/gantryd/gantry/internal/logfile"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

const (
	// maxReaders bounds the clients of one process.
	maxReaders = 64
	// restBytes bounds what is read of a pipe after its process has exited and before that is told:
	// no pipe holds more, but a child of the process may go on writing.
	restBytes = 2 << 20
)

// outputs is what a process writes: to the log first, then the ring, where readers find it in their
// own time. Over its life a process may run many times.
//
// A reader never slows the process: what the ring has no room for, it loses, and is told. The
// exception is one that asked for the whole, because what it misses is nowhere else ("gantry run",
// "gantry exec c tar c /"): for that one the process waits, as long as its connection stands.
type outputs struct {
	log *logfile.Writer // nil: none

	reading sync.Mutex // one chunk at a time keeps the order of the streams

	mu      sync.Mutex
	news    sync.Cond // for readers: there is more
	room    sync.Cond // for writers: somebody has read
	ring    ring
	readers map[*reader]bool
	pumps   int           // that have not read everything yet
	exit    *typesv1.Exit // once nothing more comes
	closed  bool          // nobody will be told more
}

// reader is one client's place.
type reader struct {
	cursor
	whole bool
}

func newOutputs(log *logfile.Writer) *outputs {
	o := &outputs{log: log, ring: ring{max: 2 * ringPerStream}, readers: map[*reader]bool{}}
	o.news.L, o.room.L = &o.mu, &o.mu
	return o
}

// buffers are what pipes are read into, with room for the log's words around it. There is one for
// each pipe that is being read, not for each pipe.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, logfile.Head+logfile.MaxBlock+logfile.Foot)
	return &b
}}

// chunk reads once and passes on what it got. It does not block. It is called with reading held.
func (o *outputs) chunk(t frame.Type, fd int, discard bool) (int, error) {
	buf := buffers.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in there
	defer buffers.Put(buf)
	n, err := unix.Read(fd, (*buf)[logfile.Head:logfile.Head+logfile.MaxBlock])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, (*buf)[logfile.Head:logfile.Head+logfile.MaxBlock])
	}
	if err != nil || n == 0 || discard {
		return n, err
	}
	if o.log != nil {
		s := logfile.Stdout
		if t == frame.Stderr {
			s = logfile.Stderr
		}
		o.log.Write(s, time.Now(), (*buf)[:logfile.Head+n+logfile.Foot])
	}
	o.add(t, (*buf)[logfile.Head:logfile.Head+n])
	return n, nil
}

func (o *outputs) add(t frame.Type, p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), frame.MaxPayload)
		o.await(entryHead + n)
		o.ring.add(t, p[:n])
		p = p[n:]
		o.news.Broadcast()
	}
}

// await waits, with mu held, until n bytes fit into the ring without overwriting what somebody has not
// read who wants the whole.
func (o *outputs) await(n int) {
	for !o.closed && o.inTheWay(n) {
		o.room.Wait()
	}
}

func (o *outputs) inTheWay(n int) bool {
	for r := range o.readers {
		if r.whole && int(o.ring.head-r.pos)+n > o.ring.max { //nolint:gosec // at most max
			return true
		}
	}
	return false
}

// started tells readers that a run begins.
func (o *outputs) started(pid int) {
	o.add(frame.Started, frame.AppendStarted(nil, uint32(pid))[frame.HeaderSize:]) //nolint:gosec // a pid
}

// ended says that nothing more comes: readers get what is there, then the exit.
func (o *outputs) ended(x *typesv1.Exit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.exit = x
	o.news.Broadcast()
}

// close ends readers that have nothing more to wait for.
func (o *outputs) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.news.Broadcast()
	o.room.Broadcast()
}

// newRun ends the log's last line: what comes now is another process's.
func (o *outputs) newRun() {
	o.reading.Lock()
	defer o.reading.Unlock()
	if o.log != nil {
		o.log.End()
	}
}

// pump reads one pipe, or terminal, until it ends. Nothing stops it: what cannot be kept is lost.
type pump struct {
	o     *outputs
	t     frame.Type
	f     *os.File
	rc    syscall.RawConn
	order *order        // nil: it is alone
	rest  chan struct{} // closed when all that the process itself wrote was read
	gone  chan struct{} // closed when the file is

	once    sync.Once
	linger  atomic.Bool // go on after the process has exited, for its children
	discard atomic.Bool
}

// newPump takes f over; startPumps starts it.
func newPump(o *outputs, t frame.Type, f *os.File) *pump {
	rc, _ := f.SyscallConn() // there is one of every file
	return &pump{o: o, t: t, f: f, rc: rc, rest: make(chan struct{}), gone: make(chan struct{})}
}

// startPumps starts the pumps of one process.
func (o *outputs) startPumps(pumps ...*pump) []*pump {
	if len(pumps) > 1 {
		together := newOrder(pumps...)
		for _, p := range pumps {
			p.order = together
		}
	}
	o.mu.Lock()
	o.pumps += len(pumps)
	o.mu.Unlock()
	for _, p := range pumps {
		go p.run()
	}
	return pumps
}

// settle says that the process has exited: what is in the pipe is all that it wrote.
func (p *pump) settle() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) }

// close ends the pump, whatever is in the pipe.
func (p *pump) close() {
	_ = p.f.Close()
	<-p.gone
}

// quiet says that nothing more of the process's own will come.
func (p *pump) quiet() {
	p.once.Do(func() {
		close(p.rest)
		p.o.mu.Lock()
		defer p.o.mu.Unlock()
		p.o.pumps--
		p.o.news.Broadcast()
	})
}

func (p *pump) run() {
	defer close(p.gone)
	defer p.f.Close() //nolint:errcheck // it was only read
	defer p.quiet()
	defer p.leave()
	var pace pace
	for {
		n, rerr := 0, error(nil)
		err := p.rc.Read(func(fd uintptr) bool {
			n, rerr = p.chunk(fd)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if p.drain() || !p.linger.Load() {
				return
			}
			p.quiet()
			p.discard.Store(true)
			_ = p.f.SetReadDeadline(time.Time{})
		case err != nil, rerr != nil, n == 0: // a terminal that was hung up says EIO
			return
		default:
			pace.after(n)
		}
	}
}

// drain reads what is there. It reports whether that was the end.
func (p *pump) drain() (end bool) {
	err := p.rc.Control(func(fd uintptr) {
		for left := restBytes; left > 0; {
			n, err := p.chunk(fd)
			if errors.Is(err, unix.EAGAIN) {
				return
			}
			if end = err != nil || n == 0; end {
				return
			}
			left -= n
		}
	})
	return end || err != nil
}

// pace slows a pump that a process feeds in small pieces faster than is worth a read, a write and a
// wake for each: for a moment it lets the pipe fill. A process that writes now and then is read at once.
type pace struct {
	since time.Time
	reads int
}

const (
	paceWindow = 5 * time.Millisecond
	paceReads  = 32
	paceSmall  = 8 << 10
	paceNap    = 400 * time.Microsecond
)

func (p *pace) after(n int) {
	if n > paceSmall {
		p.reads = 0
		return
	}
	if p.reads == 0 {
		p.since = time.Now()
	}
	if p.reads++; p.reads < paceReads {
		return
	}
	if time.Since(p.since) > paceWindow {
		p.reads = 0
		return
	}
	time.Sleep(paceNap)
	p.reads, p.since = paceReads-2, time.Now() // still fast after two more: nap again
}

// input is what a process reads. Over its life a process may run many times, with a pipe each.
type input struct {
	writing sync.Mutex // one client at a time

	mu   sync.Mutex
	news sync.Cond
	f    *os.File // nil: none, yet
	tty  bool
	over bool // there will be none
	once bool // it ended for good: later runs find it ended
}

func newInput() *input {
	in := &input{}
	in.news.L = &in.mu
	return in
}

// open gives the process of a run its pipe, or terminal; a terminal stays its owner's.
func (in *input) open(f *os.File, tty bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.f, in.tty, in.over = f, tty, f == nil
	if in.once && !tty && f != nil {
		_ = f.Close()
		in.f, in.over = nil, true
	}
	in.news.Broadcast()
}

// expectTerminal says that what open will give is a terminal.
func (in *input) expectTerminal() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.tty = true
}

// close ends the run's input: the process reads the end of it.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.f != nil && !in.tty {
		_ = in.f.Close()
	}
	in.f = nil
	in.news.Broadcast()
}

// end ends it for good.
func (in *input) end() {
	in.close()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.over = true
	in.news.Broadcast()
}

// eof is a client's end of input. A terminal is told by the character that means it, as from a keyboard.
func (in *input) eof(once bool) {
	in.mu.Lock()
	f, tty := in.f, in.tty
	in.once = in.once || once && !tty
	in.mu.Unlock()
	if !tty {
		in.close()
		if in.isOnce() {
			in.end()
		}
		return
	}
	if f == nil {
		return
	}
	if c, ok := eofChar(f); ok {
		_ = f.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = f.Write([]byte{c})
		_ = f.SetWriteDeadline(time.Time{})
	}
}

func (in *input) isOnce() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.once
}

// ctrlD is what a keyboard sends for the end of input.
const ctrlD = 4

// eofChar is the character that ends input on a terminal: as it is set, or ctrl-d where it is turned off, which
// programs do that read keys and know that one themselves.
func eofChar(f *os.File) (c byte, ok bool) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, false
	}
	_ = rc.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS) //nolint:gosec // a descriptor
		if ok = err == nil; ok {
			c = cmp.Or(t.Cc[unix.VEOF], ctrlD) // 0 is _POSIX_VDISABLE (termios(3))
		}
	})
	return c, ok
}

// lookAfter is how often a client whose input the process does not read is looked after.
const lookAfter = time.Second

// write waits until the process has room for all of p, there is no process to read it, or the client
// is gone. Bytes for a process that ended, or that has closed its input, are dropped.
func (in *input) write(p []byte, gone func() bool) {
	in.writing.Lock()
	defer in.writing.Unlock()
	f := in.wait(gone)
	for f != nil && len(p) > 0 {
		_ = f.SetWriteDeadline(time.Now().Add(lookAfter))
		n, err := f.Write(p)
		p = p[n:]
		if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || gone()) {
			return
		}
	}
}

// wait returns the run's pipe; nil if there will be none, or the client is gone.
func (in *input) wait(gone func() bool) *os.File {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.f == nil && !in.over {
		t := time.AfterFunc(lookAfter, in.news.Broadcast)
		in.news.Wait()
		t.Stop()
		if in.f == nil && gone() {
			return nil
		}
	}
	return in.f
}

// pipes are a process's pipes: its ends, and the shim's.
type pipes struct {
	in, out, err    *os.File // the process's
	inW, outR, errR *os.File // the shim's
}

// newPipes makes the pipes of a process without a terminal.
func newPipes(stdin bool) (p *pipes, err error) {
	p = &pipes{}
	defer func() {
		if err != nil {
			p.closeAll()
			err = fmt.Errorf("pipes: %w", err)
		}
	}()
	if stdin {
		p.in, p.inW, err = pipe(false)
	} else {
		p.in, err = os.Open(os.DevNull)
	}
	if err != nil {
		return p, err
	}
	if p.outR, p.out, err = pipe(true); err != nil {
		return p, err
	}
	p.errR, p.err, err = pipe(true)
	return p, err
}

// pipe makes a pipe. The end that the shim keeps, r if mine, else w, does not block; the process's
// must, as it would from any shell.
func pipe(mine bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	keep := fds[1]
	if mine {
		keep = fds[0]
	}
	if err := unix.SetNonblock(keep, true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil //nolint:gosec // descriptors
}

// closeTheirs closes the process's ends: it has them now.
func (p *pipes) closeTheirs() { closeFiles(p.in, p.out, p.err) }

func (p *pipes) closeAll() { closeFiles(p.in, p.out, p.err, p.inW, p.outR, p.errR) }

func closeFiles(fs ...*os.File) {
	for _, f := range fs {
		if f != nil {
			_ = f.Close()
		}
	}
}

// own returns f as a file that Go's poller waits for, whatever f was, and closes f.
func own(f *os.File) (*os.File, error) {
	defer f.Close() //nolint:errcheck // another descriptor stays
	t, err := shared(f)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return t, nil
}
