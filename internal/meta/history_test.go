package meta

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func puts(t testing.TB, db *DB, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		write(t, db, func(tx *Tx) error { return containers.Put(tx, fmt.Sprint(i), container(fmt.Sprint(i), "")) })
	}
}

// TestWatch follows while others write: nothing is missed, nothing comes twice, order is that of
// the commits.
func TestWatch(t *testing.T) {
	db := fresh(t)
	puts(t, db, 0, 300)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	const writers, each = 4, 50
	for w := range writers {
		wg.Go(func() { puts(t, db, 1000*(w+1), 1000*(w+1)+each) })
	}
	for w := range 3 {
		wg.Go(func() {
			next := uint64(w * 100)
			for e, err := range db.Watch(ctx, next) {
				if err != nil {
					t.Error(err)
					return
				}
				if next++; e.Revision != next {
					t.Errorf("revision %d came for %d", e.Revision, next)
				}
				if next == 300+writers*each {
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestWatchEnds(t *testing.T) {
	db := fresh(t)
	puts(t, db, 0, 3)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	n := 0
	for e, err := range db.Watch(ctx, 0) {
		if err != nil {
			if !errors.Is(err, why) || n != 3 {
				t.Errorf("%d events, then %v", n, err)
			}
			break
		}
		if n++; e.Revision == 3 {
			cancel(why)
		}
	}
	closed := make(chan error)
	go func() {
		for _, err := range db.Watch(context.WithoutCancel(t.Context()), 3) {
			closed <- err
		}
		close(closed)
	}()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; !errdefs.IsUnavailable(err) {
		t.Errorf("at close: %v", err)
	}
	<-closed
}

func TestForgetting(t *testing.T) {
	db := fresh(t, keepEvents(100))
	puts(t, db, 0, 500)
	var kept uint64
	read(t, db, func(tx *Tx) {
		kept = tx.Kept()
		if n := tx.Revision() - kept; n < 100 || n >= 100+trimEvery {
			t.Errorf("%d events are kept", n)
		}
	})
	if same, err := db.Kept(); err != nil || same != kept {
		t.Errorf("kept since %d, %v; want %d", same, err, kept)
	}
	for after, ok := range map[uint64]bool{0: false, kept - 1: false, kept: true, 499: true, 500: true, 501: false} {
		batch, err := db.Events(after, 1000)
		if ok != (err == nil) || ok && len(batch) != int(500-after) || !ok && !errdefs.IsOutOfRange(err) {
			t.Errorf("after %d: %d events, %v", after, len(batch), err)
		}
	}
	// one who reads too slowly is told
	n := 0
	for _, err := range db.Watch(t.Context(), kept) {
		if n++; n == 1 {
			puts(t, db, 500, 1000)
		}
		if err != nil {
			if !errdefs.IsOutOfRange(err) {
				t.Errorf("%v", err)
			}
			break
		}
		if n > 500 {
			t.Fatal("nobody told it")
		}
	}
}

// TestRevisionSurvives: revisions go on after a restart, also when all events are gone.
func TestRevisionSurvives(t *testing.T) {
	db := fresh(t)
	puts(t, db, 0, 5)
	path := db.Path()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = must(Open(path))(t)
	defer db.Close()
	if db.Revision() != 5 {
		t.Errorf("revision %d", db.Revision())
	}
	write(t, db, func(tx *Tx) error { return tx.trim(5) })
	if kept, err := db.Kept(); kept != 5 || err != nil {
		t.Errorf("kept since %d, %v", kept, err)
	}
	if _, err := db.Events(5, 1); err != nil {
		t.Error(err)
	}
}
