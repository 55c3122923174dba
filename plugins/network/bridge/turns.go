package bridge

import (
	"context"
	"sync"
)

// turns lets one call at a time work on an endpoint. A caller whose connection broke may
// still be at it, or waiting for it, while it asks again: whoever gets the turn asks first whether anybody
// waits for it still.
type turns struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the turn ends
}

// take waits for the turn. The caller ends it by calling what it gets.
func (t *turns) take(ctx context.Context, key string) (end func(), err error) {
	for {
		before, mine := t.try(key)
		if before == nil {
			end = func() { t.end(key, mine) }
			if err := alive(ctx); err != nil {
				end()
				return nil, err
			}
			return end, nil
		}
		select {
		case <-before:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// try takes the turn, or says whose end to wait for.
func (t *turns) try(key string) (before, mine chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if before = t.held[key]; before != nil {
		return before, nil
	}
	if t.held == nil {
		t.held = map[string]chan struct{}{}
	}
	mine = make(chan struct{})
	t.held[key] = mine
	return nil, mine
}

func (t *turns) end(key string, mine chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.held, key)
	close(mine)
}
