package native

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// spawn clones a child that runs p.
func (p *program) spawn(flags uint64, cgroup int) (c child, err error) {
	if p.prelude == nil {
		return spawn(p, flags, cgroup, p.controlFD)
	}
	onThread(func() {
		if err = p.prelude(); err == nil {
			c, err = spawn(p, flags, cgroup, p.controlFD)
		}
	})
	return c, err
}

// after reports whether a record is the forked process's.
func (p *program) after(rec record) bool {
	at := rec.index
	if p.answers[rec.index] != nil {
		at = rec.more
	}
	return rec.index == ready || at >= int64(p.forkedAt)
}

// await waits for the child to be ready, and answers it on its way. If it forks, its own word about
// that and the first ones of the process may come in any order.
func (c *container) await(ctx context.Context, p *program, first child, ctl *control, term *os.File, forks bool) (*proc, error) {
	now, early := first, []record(nil)
	for {
		var rec record
		var err error
		fd := -1
		if !forks && len(early) > 0 {
			rec, early = early[0], early[1:]
		} else {
			rec, fd, err = ctl.next(ctx)
		}
		answer := p.answers[rec.index]
		switch {
		case err == nil && rec.index == forked && fd >= 0 && forks:
			reap(first)
			_ = unix.Close(first.pidfd)
			now, forks = child{pid: int(int32(rec.more)), pidfd: fd}, false
			continue
		case err == nil && forks && p.after(rec):
			early = append(early, rec)
			continue
		case err == nil && rec.index == ready:
			return &proc{c: c, child: now, file: os.NewFile(uintptr(now.pidfd), "pidfd"), control: ctl, term: term, program: p}, nil
		case err == nil && answer != nil:
			if err = answer(ctx, now); err == nil && p.asks>>-rec.index&1 != 0 {
				err = ctl.proceed()
			}
			if err == nil {
				continue
			}
		case err == nil:
			err = p.failed(rec)
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("the process was killed before it was ready: does its seccomp profile allow read, write and execve, and is there memory? %w", errdefs.ErrFailedPrecondition)
		}
		now.destroy()
		return nil, err
	}
}
