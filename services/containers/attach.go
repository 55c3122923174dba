package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Client is the other end of a process's streams: what a user sends and is sent.
type Client interface {
	// Recv returns what the user sends next; io.EOF says that nothing more comes.
	Recv() (*typesv1.ProcessInput, error)
	// Send sends it a piece of output.
	Send(out *typesv1.ProcessOutput) error
	// Ready tells it that nothing of what follows will be missed.
	Ready() error
}

// joiner wants to join the next run of a container from its first byte.
type joiner struct {
	offer chan offer    // of one place
	ready chan struct{} // closed once it has joined, or has gone
	once  sync.Once
}

// offer is a shim whose process is about to start, or why there is none.
type offer struct {
	shim supervise.Shim
	err  error
}

func (j *joiner) joined() { j.once.Do(func() { close(j.ready) }) }

// register puts a joiner in line, unless the container runs already.
func (k *keeper) register() (*joiner, supervise.Shim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.shim != nil && alive(k.c) {
		return nil, k.shim
	}
	j := &joiner{offer: make(chan offer, 1), ready: make(chan struct{})}
	k.joiners = append(k.joiners, j)
	return j, nil
}

func (k *keeper) leave(j *joiner) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, other := range k.joiners {
		if other == j {
			k.joiners = append(k.joiners[:i:i], k.joiners[i+1:]...)
			return
		}
	}
}

// Attach joins the init process's streams until it has exited for good, or the client leaves. The
// last thing sent is the exit, even of a container that is removed meanwhile.
func (s *Service) Attach(ctx context.Context, start *containersv1.AttachStart, client Client) (err error) {
	c, k, err := s.resolve(ctx, start.GetRef())
	if err != nil {
		return wrap(err, "attach to container %s", start.GetRef())
	}
	defer func() { err = wrap(err, "attach to container %s", label(c)) }()
	if start.GetAwait() {
		return s.await(ctx, k, start, client)
	}
	shim, err := k.shimNow(c)
	if err != nil {
		return err
	}
	streams, err := join(ctx, shim, start, start.GetReplay())
	if err != nil {
		return err
	}
	if err := client.Ready(); err != nil {
		return errors.Join(err, streams.Close())
	}
	return s.attached(ctx, k, streams, start, client)
}

// await joins the next run between its making and its start.
func (s *Service) await(ctx context.Context, k *keeper, start *containersv1.AttachStart, client Client) error {
	j, shim := k.register()
	if j != nil {
		defer k.leave(j)
		defer j.joined()
	}
	if err := client.Ready(); err != nil {
		return err
	}
	if j != nil {
		_, _, news := k.look()
		for shim == nil {
			select {
			case o := <-j.offer:
				if o.err != nil {
					return o.err
				}
				shim = o.shim
			case <-news:
				var gone bool
				if _, gone, news = k.look(); gone {
					return fmt.Errorf("it was removed meanwhile: %w", errdefs.ErrNotFound)
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.ctx.Done():
				return errClosing
			}
		}
	}
	streams, err := join(ctx, shim, start, true)
	if j != nil {
		j.joined()
	}
	if err != nil {
		return err
	}
	return s.attached(ctx, k, streams, start, client)
}

// join joins init's streams. Whoever began the run is waited for and misses nothing; whoever came
// later, and is slow, is told what it has missed. Whoever only looks does not end stdin by leaving.
func join(ctx context.Context, shim supervise.Shim, start *containersv1.AttachStart, replay bool) (streams supervise.IO, err error) {
	switch {
	case start.GetAwait():
		streams, err = supervise.Whole(ctx, shim, "", start.GetNoStdin())
	case start.GetNoStdin():
		streams, err = supervise.Watch(ctx, shim, "", replay)
	default:
		streams, err = shim.IO(ctx, "", replay)
	}
	return streams, rpc.FromTTRPC(err)
}

// attached passes everything on until the end.
func (s *Service) attached(ctx context.Context, k *keeper, streams supervise.IO, start *containersv1.AttachStart, client Client) error {
	defer streams.Close() //nolint:errcheck // it is only read from now on
	if z := start.GetSize(); z.GetColumns() > 0 && z.GetRows() > 0 {
		if err := streams.Send(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Resize{Resize: z}}); err != nil {
			s.log.Debug("a terminal keeps its size", "container", k.id, "err", err)
		}
	}
	exited, err := s.pass(ctx, k, streams, client, !start.GetNoStdin())
	if exited || err != nil {
		return err
	}
	// The shim went without a word: the keeper finds out how it ended, or that it has not.
	short, cancel := context.WithTimeoutCause(ctx, 2*s.times.find+shortly, errHungUp)
	defer cancel()
	c, err := k.until(short, func(c *containersv1.Container, gone bool) (bool, error) {
		return gone || !alive(c), nil
	})
	if err != nil {
		return err
	}
	if c.GetStatus().GetStartFailed() { // it was joined before it was made, and could not be
		return k.failure(c.GetStatus())
	}
	return client.Send(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Exit{Exit: c.GetStatus().GetExit()}})
}

// shortly is time enough for a keeper to write what it has found out.
const shortly = time.Second

var errHungUp = fmt.Errorf("the connection to its shim is gone: attach again: %w", errdefs.ErrUnavailable)

// pass copies both ways until the process has exited, the client has left, or the connection to the
// shim is gone.
func (s *Service) pass(ctx context.Context, k *keeper, streams supervise.IO, client Client, stdin bool) (exited bool, err error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := newBacklog()
	context.AfterFunc(ctx, func() {
		_ = streams.Close() // ends Recv
		q.close()
	})
	// It ends once the client's stream does, which is after the caller has returned: nobody but
	// Close can wait for it.
	if err := s.background(func() {
		if err := input(streams, client, stdin); err != nil {
			cancel(err)
		}
	}); err != nil {
		return false, err
	}
	wg.Go(func() {
		defer q.close()
		for {
			out, err := streams.Recv()
			if err != nil || !q.put(out) {
				return
			}
		}
	})
	wg.Go(func() {
		_, _ = k.until(ctx, func(c *containersv1.Container, gone bool) (bool, error) { return gone || !alive(c), nil })
		q.lift()
	})
	for {
		out, ok := q.take()
		if !ok {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			return false, nil
		}
		if err := client.Send(out); err != nil {
			return false, err
		}
		if _, is := out.GetOutput().(*typesv1.ProcessOutput_Exit); is {
			return true, nil
		}
	}
}

// input passes on what a client sends. A client that has nothing more to send may still listen.
func input(streams supervise.IO, client Client, stdin bool) error {
	for {
		in, err := client.Recv()
		if errors.Is(err, io.EOF) {
			if stdin {
				_ = streams.Send(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_StdinEof{StdinEof: true}})
			}
			return nil
		}
		if err != nil {
			return err
		}
		switch in.GetInput().(type) {
		case *typesv1.ProcessInput_Stdin, *typesv1.ProcessInput_StdinEof:
			if !stdin {
				continue
			}
		}
		if err := streams.Send(in); err != nil {
			return nil //nolint:nilerr // the process is gone or does not read: its exit says more
		}
	}
}

// handOver gives the shim to those who want to join from the first byte, and waits until they have.
func (k *keeper) handOver(ctx context.Context, shim supervise.Shim) {
	for _, j := range k.takeJoiners() {
		j.offer <- offer{shim: shim}
		select {
		case <-j.ready:
		case <-time.After(k.s.times.find): // it may miss what the ring cannot hold
		case <-ctx.Done():
		}
	}
}

// refuse tells them that there is nothing to join.
func (k *keeper) refuse(err error) {
	for _, j := range k.takeJoiners() {
		j.offer <- offer{err: err}
	}
}

func (k *keeper) takeJoiners() []*joiner {
	k.mu.Lock()
	defer k.mu.Unlock()
	js := k.joiners
	k.joiners = nil
	return js
}
