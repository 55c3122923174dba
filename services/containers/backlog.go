package containers

import (
	"sync"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// lag is how far a client may be behind its daemon, in bytes, while the container runs. Then the
// daemon reads no further: a reader that began the run makes the process wait, any other loses.
const lag = 256 << 10

// backlog is what a daemon has read and a client has not. Once the container has ended the bound
// is lifted: what its shim still holds is little, and is read at once, so that neither shim nor
// network wait for somebody who has stopped reading, "gantry run … | less" say, and he loses nothing.
type backlog struct {
	mu     sync.Mutex
	moved  sync.Cond
	items  []*typesv1.ProcessOutput
	bytes  int
	lifted bool
	closed bool
}

func newBacklog() *backlog {
	q := &backlog{}
	q.moved.L = &q.mu
	return q
}

// put appends out, and waits first while there is too much; false: nobody takes any more.
func (q *backlog) put(out *typesv1.ProcessOutput) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= lag && !q.lifted && !q.closed {
		q.moved.Wait()
	}
	if q.closed {
		return false
	}
	q.items, q.bytes = append(q.items, out), q.bytes+size(out)
	q.moved.Broadcast()
	return true
}

// take waits for the next; false: there is none, and none comes.
func (q *backlog) take() (*typesv1.ProcessOutput, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.moved.Wait()
	}
	if len(q.items) == 0 {
		return nil, false
	}
	out := q.items[0]
	q.items[0] = nil
	q.items, q.bytes = q.items[1:], q.bytes-size(out)
	q.moved.Broadcast()
	return out, true
}

// lift takes the bound away.
func (q *backlog) lift() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lifted = true
	q.moved.Broadcast()
}

// close ends it: what is in it can still be taken.
func (q *backlog) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.moved.Broadcast()
}

func size(out *typesv1.ProcessOutput) int { return len(out.GetStdout()) + len(out.GetStderr()) }
