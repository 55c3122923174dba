package host

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// turns bounds how many calls are under way in one plugin. Its bound may change while they are, and holds at once
// for who waits: an operator who raises it may do so because those under way are stuck.
type turns struct {
	mu    sync.Mutex
	limit int             // under way
	room  int             // for who waits
	taken int             // may be above limit for a while, after that was lowered
	queue []chan struct{} // who waits, in the order of arrival; closed when the turn comes
}

// take waits for a turn; whoever gets one ends it with end. The queue is bounded twice: by its length, and by the
// deadlines of those who stand in it.
func (t *turns) take(ctx context.Context) error {
	t.mu.Lock()
	if t.taken < t.limit && len(t.queue) == 0 {
		t.taken++
		t.mu.Unlock()
		return nil
	}
	if len(t.queue) >= t.room {
		defer t.mu.Unlock()
		return status.Errorf(codes.ResourceExhausted, "%d calls are under way and %d wait", t.taken, len(t.queue))
	}
	mine := make(chan struct{})
	t.queue = append(t.queue, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.queue, mine); i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
	} else { // it came just now
		t.taken--
		t.next()
	}
	return status.FromContextError(ctx.Err()).Err()
}

// end gives a turn back.
func (t *turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	t.next()
}

// bound sets how many may be under way. None that is is ended.
func (t *turns) bound(limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = limit
	t.next()
}

// next gives the turns that are free to who waits longest. It is called under the lock.
func (t *turns) next() {
	for t.taken < t.limit && len(t.queue) > 0 {
		close(t.queue[0])
		t.queue = t.queue[1:]
		t.taken++
	}
}

// counts are how many calls are under way, and how many wait.
func (t *turns) counts() (taken, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken, len(t.queue)
}
