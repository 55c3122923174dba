package containers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

const (
	// shimTime bounds a call to a shim, long polls excepted.
	shimTime = 10 * time.Second
	// launchTime bounds everything between a record and a process.
	launchTime = 2 * time.Minute
	// releaseTime bounds letting go of what a run held; what is left then, the journal keeps.
	releaseTime = 2 * time.Minute
	// defaultGrace is how long a container may take to stop, as with Docker.
	defaultGrace = 10 * time.Second
	// killTime is how long SIGKILL may take to be answered by an exit before the shim is given up.
	killTime = 10 * time.Second
)

// times are those that tests have less of.
type times struct {
	find time.Duration // looking for a shim: one that lives answers at once
	way  time.Duration // how long whoever is in the way is waited for
}

func newTimes() times { return times{find: 2 * time.Second, way: 5 * time.Second} }

// waiting bounds how long whoever is in the way is waited for.
func (s *Service) waiting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.times.way, fmt.Errorf("somebody was in the way for %v: %w", s.times.way, context.DeadlineExceeded))
}

var errShimTime = fmt.Errorf("the shim did not answer within %v: %w", shimTime, context.DeadlineExceeded)

// keeper moves one container from what is to what is wanted. Its goroutine alone writes the status,
// and alone starts, watches and ends the shim.
type keeper struct {
	s    *Service
	id   string
	wake chan struct{} // of one place: more than one reason to look is one reason to look
	w    *watch        // the shim that is watched; the goroutine's own, like held
	held bool          // a run that ended may still hold a shim, a namespace, endpoints, mounts

	// unwritten writes an exit that could not be written; the goroutine's own.
	unwritten func(context.Context)

	mu       sync.Mutex
	c        *containersv1.Container // as last committed; replaced, never changed
	removed  bool                    // the record is gone; c is its last state
	news     chan struct{}           // closed, and replaced, when anything here changes
	shim     supervise.Shim          // for the verbs
	grace    *time.Duration          // the shortest that was asked for
	by       uint32                  // the signal that was asked for; 0: the container's own
	volumes  bool                    // take volumes without a name along
	failed   error                   // why the run failed.run could not be launched
	tries    int                     // how often removing was tried
	stuck    error                   // why removing did not work
	launched context.CancelCauseFunc // ends the launch under way
	joiners  []*joiner               // who wants the next run from its first byte
}

// keeperOf returns c's keeper, which it starts if there is none.
func (s *Service) keeperOf(c *containersv1.Container) (*keeper, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosing
	}
	id := c.GetMeta().GetId()
	if k := s.keepers[id]; k != nil {
		return k, nil
	}
	k := newKeeper(s, c)
	s.keepers[id] = k
	s.work.Go(func() { k.run(s.ctx) })
	return k, nil
}

func newKeeper(s *Service, c *containersv1.Container) *keeper {
	return &keeper{s: s, id: c.GetMeta().GetId(), c: c, wake: make(chan struct{}, 1), news: make(chan struct{})}
}

// background runs fn, unless the service is closed; Close waits for it.
func (s *Service) background(fn func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosing
	}
	s.work.Go(fn)
	return nil
}

func (s *Service) discard(k *keeper) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keepers, k.id)
}

func (s *Service) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keepers {
		k.wakeUp()
	}
}

// run is the keeper's life: it ends with the record, or with the daemon.
func (k *keeper) run(ctx context.Context) {
	defer k.s.discard(k)
	defer k.unwatch()
	patience := time.Duration(0) // after something went wrong that may come right
	for ctx.Err() == nil {
		c := k.last()
		if c == nil || k.gone() {
			return
		}
		if write := k.unwritten; write != nil {
			k.unwritten = nil
			k.pause(ctx, time.Second)
			write(ctx)
			continue
		}
		do, wait := Next(c)
		if wait = max(wait, patience); wait > 0 && do != Watch && (do != Rest || k.held) {
			if k.pause(ctx, wait) { // woken: look again
				patience = 0
				continue
			}
		}
		var err error
		switch do {
		case Rest:
			if k.held {
				err = k.release(ctx, c)
			} else {
				k.pause(ctx, 0)
			}
		case Launch:
			err = k.launch(ctx, c)
		case Watch:
			k.watchOn(ctx, c)
		case Terminate:
			err = k.terminate(ctx, c)
		case Find:
			k.find(ctx, c)
		case Forget:
			err = k.forget(ctx, c)
		}
		patience = k.after(ctx, do, err, patience)
	}
}

// after says how long to wait before the next try.
func (k *keeper) after(ctx context.Context, do Action, err error, patience time.Duration) time.Duration {
	if err == nil || ctx.Err() != nil {
		return 0
	}
	next := min(max(2*patience, 50*time.Millisecond), time.Minute)
	k.s.log.Warn("a container is not where it is wanted", "container", k.id, "action", int(do), "err", err, "again", next)
	return next
}

// pause waits for a reason to look again, or for d if that is not 0; it reports whether there was a reason.
func (k *keeper) pause(ctx context.Context, d time.Duration) bool {
	var late <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-k.wake:
		return true
	case <-late:
		return false
	case <-ctx.Done():
		return true
	}
}

func (k *keeper) wakeUp() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// last is the container as last committed.
func (k *keeper) last() *containersv1.Container {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.c
}

// gone reports whether the record is deleted.
func (k *keeper) gone() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.removed
}

// publish shows a committed record to those who wait. Commits may be told of out of order.
func (k *keeper) publish(c *containersv1.Container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.GetMeta().GetRevision() <= k.c.GetMeta().GetRevision() {
		return
	}
	k.c = c
	k.tell()
}

// tell wakes those who wait; mu is held.
func (k *keeper) tell() {
	close(k.news)
	k.news = make(chan struct{})
}

func (k *keeper) over() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed = true
	k.tell()
}

// look is the latest there is to see, and what is closed when there is more.
func (k *keeper) look() (*containersv1.Container, bool, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.c, k.removed, k.news
}

// until waits until done says so, or fails. done is called with every state that is seen, though not with every state there was.
func (k *keeper) until(ctx context.Context, done func(c *containersv1.Container, gone bool) (bool, error)) (*containersv1.Container, error) {
	for {
		c, gone, news := k.look()
		if ok, err := done(c, gone); ok || err != nil {
			return c, err
		}
		if gone {
			return nil, fmt.Errorf("it was removed meanwhile: %w", errdefs.ErrNotFound)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-k.s.ctx.Done():
			return nil, errClosing
		}
	}
}

// status writes the status, in a transaction that may do more, and shows it. A record that is gone is no error: nobody is left to tell.
func (k *keeper) status(change func(is *containersv1.Status), also ...func(*meta.Tx) error) error {
	var after *containersv1.Container
	err := k.s.DB.Update(func(tx *meta.Tx) error {
		c, err := k.put(tx, change)
		if err != nil {
			return err
		}
		after = c
		for _, fn := range also {
			if err := fn(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if errdefs.IsNotFound(err) {
		k.over()
	}
	if err != nil {
		return err
	}
	k.publish(after)
	return nil
}

// put changes the status inside a transaction and returns the record as it will be.
func (k *keeper) put(tx *meta.Tx, change func(is *containersv1.Status)) (*containersv1.Container, error) {
	c, err := k.s.t.containers.Get(tx, k.id)
	if err != nil {
		return nil, err
	}
	if c.Status == nil {
		c.Status = &containersv1.Status{}
	}
	before := proto.CloneOf(c.Status)
	change(c.Status)
	if proto.Equal(before, c.Status) {
		return c, nil
	}
	return c, k.s.t.containers.Put(tx, k.id, c)
}

// shimNow is the shim to call.
func (k *keeper) shimNow(c *containersv1.Container) (supervise.Shim, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shim == nil {
		if alive(c) {
			return nil, fmt.Errorf("its shim is not there yet: %w", errdefs.ErrUnavailable)
		}
		return nil, notRunning(c)
	}
	return k.shim, nil
}

// patience remembers the shortest grace that was asked for, and the last signal.
func (k *keeper) patience(d *time.Duration, signal uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d != nil && (k.grace == nil || *d < *k.grace) {
		k.grace = d
	}
	if signal != 0 {
		k.by = signal
	}
}

// removal notes that volumes go too.
func (k *keeper) removal(volumes bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.volumes = k.volumes || volumes
}

// interrupt ends the launch under way, if there is one.
func (k *keeper) interrupt(why error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.launched != nil {
		k.launched(why)
	}
}

func (k *keeper) launching(cancel context.CancelCauseFunc) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.launched = cancel
}

// failure is why the last launch failed, with its class, if this daemon saw it.
func (k *keeper) failure(is *containersv1.Status) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed != nil {
		return k.failed
	}
	return fmt.Errorf("%s: %w", is.GetMessage(), errdefs.ErrFailedPrecondition)
}

func (k *keeper) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = err
}

func (k *keeper) attempts() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tries
}

// unremovable is why removing failed, if it did since attempt.
func (k *keeper) unremovable(attempt int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tries > attempt {
		return k.stuck
	}
	return nil
}

func (k *keeper) tried(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tries++
	k.stuck = err
	k.tell()
}
