package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/frame"
	"github.com/gantryd/gantry/internal/rpc"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// readAhead is how much is held here for a client that reads slowly, before the shim has to hold it.
const readAhead = 128 << 10

// streams is an IO.
type streams struct {
	c    *net.UnixConn
	from *client
	r    *frame.Reader
	done chan struct{} // closed when everything was received, or nothing more will be

	sending sync.Mutex
	buf     []byte

	mu    sync.Mutex
	news  sync.Cond
	queue []*typesv1.ProcessOutput
	held  int   // bytes in queue
	all   bool  // hold everything that comes
	err   error // after the queue; io.EOF after the exit
}

func (c *client) join(ctx context.Context, g frame.Greeting) (IO, error) {
	conn, err := connect(ctx, c.dir, bundle.IOFile)
	if err != nil {
		return nil, classify(ctx, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
	}
	s := &streams{c: conn, from: c, r: frame.NewReader(conn), done: make(chan struct{})}
	s.news.L = &s.mu
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = s.greet(g)
	if !stop() || err != nil {
		if err == nil {
			err = context.Cause(ctx)
		}
		_ = conn.Close()
		return nil, classify(ctx, err)
	}
	c.enter(s)
	go s.receive() // until the connection ends, which Close waits for
	return s, nil
}

func (c *client) enter(s *streams) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[s] = true
}

func (c *client) leave(s *streams) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, s)
}

func (s *streams) greet(g frame.Greeting) error {
	if _, err := s.c.Write(frame.Append(nil, frame.Hello, g.Marshal())); err != nil {
		return hungUp(err)
	}
	for {
		t, b, err := s.r.Next()
		if err != nil {
			return hungUp(err)
		}
		switch t {
		case frame.Welcome:
			return nil
		case frame.Refused:
			class, sentence, err := frame.ParseRefused(b)
			if err != nil {
				return err
			}
			return rpc.FromStatus(status.Error(codes.Code(class), sentence))
		default: // what a newer shim says first and we do not know
		}
	}
}

func hungUp(err error) error {
	return fmt.Errorf("the shim hung up: %w: %w", err, errdefs.ErrUnavailable)
}

// Send passes on what a client sends; it waits while the process does not read.
func (s *streams) Send(in *typesv1.ProcessInput) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	b := s.buf[:0]
	switch in := in.GetInput().(type) {
	case *typesv1.ProcessInput_Stdin:
		for p := in.Stdin; len(p) > 0; {
			n := min(len(p), frame.MaxPayload)
			b = frame.Append(b, frame.Stdin, p[:n])
			p = p[n:]
		}
	case *typesv1.ProcessInput_StdinEof:
		if in.StdinEof {
			b = frame.AppendHeader(b, frame.StdinEOF, 0)
		}
	case *typesv1.ProcessInput_Resize:
		cols, rows := in.Resize.GetColumns(), in.Resize.GetRows()
		if cols > 1<<16-1 || rows > 1<<16-1 {
			return fmt.Errorf("a terminal of %d by %d: %w", cols, rows, errdefs.ErrInvalidArgument)
		}
		b = frame.AppendSize(b, uint16(cols), uint16(rows))
	case *typesv1.ProcessInput_Signal:
		b = frame.Append(b, frame.Signal, []byte(in.Signal[:min(len(in.Signal), 32)]))
	default:
		return fmt.Errorf("input of an unknown kind: %w", errdefs.ErrInvalidArgument)
	}
	if cap(b) <= 2*frame.MaxPayload {
		s.buf = b
	}
	if _, err := s.c.Write(b); err != nil {
		return hungUp(err)
	}
	return nil
}

// receive reads ahead, until there is nothing more to come.
func (s *streams) receive() {
	defer close(s.done)
	for err := error(nil); err == nil; {
		var out *typesv1.ProcessOutput
		if out, err = s.next(); err == nil {
			if _, last := out.GetOutput().(*typesv1.ProcessOutput_Exit); last {
				err = io.EOF
			}
		}
		s.put(out, err)
	}
}

// put adds to the queue, when it has room.
func (s *streams) put(out *typesv1.ProcessOutput, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held >= readAhead && !s.all && err == nil {
		s.news.Wait()
	}
	if out != nil {
		s.queue = append(s.queue, out)
		s.held += size(out)
	}
	s.err = err
	s.news.Broadcast()
}

func size(out *typesv1.ProcessOutput) int { return len(out.GetStdout()) + len(out.GetStderr()) }

// fetch waits until everything that the shim has is here.
func (s *streams) fetch(ctx context.Context) {
	s.unbound()
	select {
	case <-s.done:
	case <-ctx.Done():
	}
}

func (s *streams) unbound() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = true
	s.news.Broadcast()
}

// Recv returns what the process sends next; the exit is last, then io.EOF.
func (s *streams) Recv() (*typesv1.ProcessOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		s.news.Wait()
	}
	out := s.queue[0]
	s.queue[0], s.queue = nil, s.queue[1:]
	s.held -= size(out)
	s.news.Broadcast()
	return out, nil
}

// next reads a frame.
func (s *streams) next() (*typesv1.ProcessOutput, error) {
	for {
		t, b, err := s.r.Next()
		if errors.Is(err, frame.ErrMalformed) {
			return nil, fmt.Errorf("the shim said what nobody understands: %w: %w", err, errdefs.ErrInternal)
		}
		if err != nil {
			return nil, hungUp(err)
		}
		out := &typesv1.ProcessOutput{}
		switch t {
		case frame.Stdout:
			out.Output = &typesv1.ProcessOutput_Stdout{Stdout: bytes.Clone(b)}
		case frame.Stderr:
			out.Output = &typesv1.ProcessOutput_Stderr{Stderr: bytes.Clone(b)}
		case frame.Started:
			pid, err := frame.ParseStarted(b)
			if err != nil {
				return nil, err
			}
			out.Output = &typesv1.ProcessOutput_StartedPid{StartedPid: pid}
		case frame.Lost:
			n, err := frame.ParseLost(b)
			if err != nil {
				return nil, err
			}
			out.Output = &typesv1.ProcessOutput_LostBytes{LostBytes: n}
		case frame.Exit:
			x, err := frame.ParseExit(b)
			if err != nil {
				return nil, err
			}
			out.Output = &typesv1.ProcessOutput_Exit{Exit: x}
		default: // from a shim that knows more
			continue
		}
		return out, nil
	}
}

// Close gives up the place.
func (s *streams) Close() error {
	err := s.c.Close()
	s.unbound()
	<-s.done
	s.from.leave(s)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("io: %w", err)
	}
	return nil
}
