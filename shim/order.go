package main

import (
	"slices"

	"golang.org/x/sys/unix"
)

// order reads a process's pipes in the order in which it wrote to them. Each pump waits for its own pipe, and which of
// two that have something wakes first is the scheduler's: of a process that writes a little and ends, the last pipe would
// be read first. The kernel knows better: an epoll instance lists what becomes ready in the order in which it does
// (epoll(7)); edge triggered, so that a pipe's place is that of its first write since it was last listed.
//
// It is used under outputs.reading.
type order struct {
	ep    int
	pumps []*pump // by what their events say
	ready []*pump // listed, and not read since
	left  int     // pumps that have not ended
}

// newOrder returns the order of pumps that do not run yet, or nil where the kernel gives none: then there is none.
func newOrder(pumps ...*pump) *order {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil
	}
	o := &order{ep: ep, pumps: pumps, left: len(pumps)}
	for i, p := range pumps {
		cerr := p.rc.Control(func(fd uintptr) {
			err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(i)}) //nolint:gosec // a descriptor, and an index
		})
		if err != nil || cerr != nil {
			_ = unix.Close(ep)
			return nil
		}
	}
	return o
}

// before are the pumps to be read before p is.
func (o *order) before(p *pump) []*pump {
	if o == nil || o.left < len(o.pumps) { // one that is alone has nobody before it
		return nil
	}
	var events [2]unix.EpollEvent
	n, err := unix.EpollWait(o.ep, events[:], 0)
	for i := 0; err == nil && i < n; i++ {
		if q := o.pumps[events[i].Fd]; !slices.Contains(o.ready, q) {
			o.ready = append(o.ready, q)
		}
	}
	first := o.ready
	o.ready = nil
	if i := slices.Index(first, p); i >= 0 {
		first, o.ready = first[:i], first[i+1:]
	}
	return first
}

// leave says that a pump has ended.
func (o *order) leave() {
	if o == nil {
		return
	}
	if o.left--; o.left == 0 {
		_ = unix.Close(o.ep)
	}
}

// chunk reads a pump's pipe once, after those that were written to before.
func (p *pump) chunk(fd uintptr) (int, error) {
	p.o.reading.Lock()
	defer p.o.reading.Unlock()
	for _, q := range p.order.before(p) {
		// Control keeps the descriptor from being closed meanwhile. How it went is for q to find out.
		_ = q.rc.Control(func(fd uintptr) { _, _ = q.o.chunk(q.t, int(fd), q.discard.Load()) }) //nolint:gosec // a descriptor
	}
	return p.o.chunk(p.t, int(fd), p.discard.Load()) //nolint:gosec // a descriptor
}

// leave says that a pump reads no more.
func (p *pump) leave() {
	p.o.reading.Lock()
	defer p.o.reading.Unlock()
	p.order.leave()
}
