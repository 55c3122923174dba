package supervise

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// slots are shims that were started ahead: executed and initialised, which is half of what a cold one takes to
// listen, and not told anything yet. What is made of one from there on is the same as of a cold one. One that is
// left ends when its stdin does: with the daemon, however that ends.
type slots struct {
	want  int
	start func() (*child, error)
	fail  func(error)

	mu      sync.Mutex
	idle    []*child
	closed  bool
	filling bool // somebody is at it, or will be
	work    sync.WaitGroup
}

// refillPause leaves the processors to the container that has just been given a slot, until it has started: on two
// processors a run is a tenth faster for it.
const refillPause = 20 * time.Millisecond

// take returns a slot's shim, or nil, and has the slots filled behind it.
func (s *slots) take() *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.want == 0 {
		return nil
	}
	if !s.filling {
		s.filling = true
		s.work.Go(s.fill)
	}
	if s.bury(); len(s.idle) == 0 {
		return nil
	}
	c := s.idle[0]
	s.idle = s.idle[1:]
	return c
}

// bury forgets those that somebody killed; mu is held.
func (s *slots) bury() {
	s.idle = slices.DeleteFunc(s.idle, func(c *child) bool {
		select {
		case <-c.done:
			_, _ = c.stdin.Close(), c.stdout.Close()
			return true
		default:
			return false
		}
	})
}

// fill starts shims until there are as many as are wanted.
func (s *slots) fill() {
	time.Sleep(refillPause)
	for s.more() {
		c, err := s.start()
		if err != nil {
			s.fail(err)
		}
		if !s.put(c) {
			return
		}
	}
}

// more reports whether one is missing; if not, nobody fills any more.
func (s *slots) more() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bury()
	s.filling = !s.closed && len(s.idle) < s.want
	return s.filling
}

// put adds a shim; nil is one that could not be started, and the end of trying until the next is taken.
func (s *slots) put(c *child) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c == nil:
		s.filling = false
		return false
	case s.closed:
		c.kill()
		return false
	}
	s.idle = append(s.idle, c)
	return true
}

// close ends those that are left.
func (s *slots) close() {
	s.mu.Lock()
	s.closed = true
	idle := s.idle
	s.idle = nil
	s.mu.Unlock()
	for _, c := range idle {
		c.kill()
	}
	s.work.Wait()
}

// startAhead starts a shim that is for no container yet.
func (s *Supervisor) startAhead() (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("start a shim ahead: %w", err)
	}
	defer null.Close() //nolint:errcheck // the shim has it
	c, err := s.start("/", null)
	if err != nil {
		return nil, fmt.Errorf("start a shim ahead: %w", err)
	}
	return c, nil
}

// Close ends the shims that were started ahead. Those of containers live on.
func (s *Supervisor) Close() { s.slots.close() }
