package main

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/internal/frame"
	"github.com/gantryd/gantry/internal/sentence"
)

const (
	// maxConns bounds the connections to io.sock, of all processes together.
	maxConns = 512
	// helloTime bounds how long a connection may be silent about what it wants.
	helloTime = 10 * time.Second
)

// serveIO accepts clients of processes' streams until the listener is closed.
func (s *shim) serveIO(l net.Listener) {
	var conns sync.WaitGroup
	defer conns.Wait()
	room := make(chan struct{}, maxConns)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say
			s.log.Warn("a connection to io.sock was not accepted", "err", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case room <- struct{}{}:
			conns.Go(func() {
				defer func() { <-room }()
				s.join(c.(*net.UnixConn)) //nolint:forcetypeassert // from a unix listener
			})
		default:
			_ = c.Close()
		}
	}
}

// client is one connection to a process's streams.
type client struct {
	c *net.UnixConn
	p *process
	g frame.Greeting
}

// join serves one client until it leaves or the process has ended and it knows.
func (s *shim) join(c *net.UnixConn) {
	defer c.Close() //nolint:errcheck // both sides are done
	_ = c.SetReadDeadline(time.Now().Add(helloTime))
	r := frame.NewReader(c)
	t, b, err := r.Next()
	if err != nil || t != frame.Hello {
		return
	}
	g, err := frame.ParseGreeting(b)
	if err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	cl := &client{c: c, g: g}
	if cl.p, err = s.find(g.Process); err != nil {
		refuse(c, err)
		return
	}
	place, err := cl.p.out.enter(g)
	if err != nil {
		refuse(c, fmt.Errorf("attach to process %q: %w", g.Process, err))
		return
	}
	defer cl.p.out.leave(place)
	if _, err := c.Write(frame.AppendHeader(nil, frame.Welcome, 0)); err != nil {
		return
	}
	var in sync.WaitGroup
	in.Go(func() { cl.inputs(r) })
	cl.outputs(place)
	_ = c.Close() // ends inputs
	in.Wait()
	if !g.NoStdin {
		s.left(cl.p)
	}
}

func refuse(c *net.UnixConn, err error) {
	class := codes.Internal
	if st := code(err); st != codes.Unknown {
		class = st
	}
	_, _ = c.Write(frame.AppendRefused(nil, uint8(class), sentence.Of(err))) //nolint:gosec // one of seventeen
}

// enter takes a place at the streams.
func (o *outputs) enter(g frame.Greeting) (*reader, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.readers) >= maxReaders {
		return nil, fmt.Errorf("%d clients are attached, which is the limit: %w", maxReaders, errdefs.ErrResourceExhausted)
	}
	r := &reader{cursor: o.ring.end(), whole: g.Whole}
	if g.Replay {
		r.cursor = o.ring.begin()
	}
	o.readers[r] = true
	return r, nil
}

func (o *outputs) leave(r *reader) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.readers, r)
	o.room.Broadcast()
}

// frames are what readers' frames are gathered in.
var frames = sync.Pool{New: func() any {
	b := make([]byte, 0, 2*(frame.HeaderSize+frame.MaxPayload))
	return &b
}}

// outputs sends the client what the process writes, as fast as it takes it, until the end.
func (cl *client) outputs(r *reader) {
	for last := false; !last; {
		if !cl.p.out.wait(r, cl.hungUp) {
			return
		}
		buf := frames.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in there
		var b []byte
		b, last = cl.p.out.read(r, (*buf)[:0])
		_, err := cl.c.Write(b)
		frames.Put(buf)
		if err != nil {
			return
		}
	}
}

// wait waits for news; false: the client is gone, or there will be none.
func (o *outputs) wait(r *reader, gone func() bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for r.pos == o.ring.head && !o.over() {
		// Asked before the wait, under the lock that whoever says "gone" must take: a client that left while it
		// was being written to is not waited for.
		if o.closed || gone() {
			return false
		}
		o.news.Wait()
	}
	return true
}

// over reports, with mu held, that the process has ended and all that it wrote is in the ring.
func (o *outputs) over() bool { return o.exit != nil && o.pumps == 0 }

// read appends what a client has not seen to b. last: the exit is in it.
func (o *outputs) read(r *reader, b []byte) (_ []byte, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b = o.ring.read(&r.cursor, b)
	o.room.Broadcast()
	if r.pos != o.ring.head || !o.over() {
		return b, false
	}
	if x, err := frame.AppendExit(b, o.exit); err == nil {
		b = x
	}
	return b, true
}

// inputs passes on what the client sends, until it leaves. While the process does not read, neither
// does it, and the client waits.
func (cl *client) inputs(r *frame.Reader) {
	defer cl.p.out.wake()
	for {
		t, b, err := r.Next()
		if err != nil {
			return
		}
		switch t {
		case frame.Stdin:
			if !cl.g.NoStdin {
				cl.p.in.write(b, cl.hungUp)
			}
		case frame.StdinEOF:
			if !cl.g.NoStdin {
				cl.p.in.eof(false)
			}
		case frame.Resize:
			if cols, rows, err := frame.ParseSize(b); err == nil {
				_ = cl.p.resize(cols, rows) // a process that has ended, or has no terminal, does not mind
			}
		case frame.Signal:
			if sig := signalNumber(string(b)); sig != 0 {
				_ = cl.p.signal(sig) // likewise
			}
		default: // what a newer daemon says and we do not know
		}
	}
}

// wake has everybody look again: somebody may have gone.
func (o *outputs) wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.news.Broadcast()
}

// hungUp reports whether the client has closed its side.
func (cl *client) hungUp() bool {
	rc, err := cl.c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // a descriptor
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
