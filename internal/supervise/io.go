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

// streams is an IO.
type streams struct {
	c *net.UnixConn

	sending sync.Mutex
	buf     []byte

	receiving sync.Mutex
	r         *frame.Reader
	over      bool // the exit was received
}

func (c *client) join(ctx context.Context, process string, replay, noStdin bool) (IO, error) {
	conn, err := connect(ctx, c.dir, bundle.IOFile)
	if err != nil {
		return nil, classify(ctx, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
	}
	s := &streams{c: conn, r: frame.NewReader(conn)}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = s.greet(frame.Greeting{Process: process, Replay: replay, NoStdin: noStdin})
	if !stop() || err != nil {
		if err == nil {
			err = context.Cause(ctx)
		}
		_ = conn.Close()
		return nil, classify(ctx, err)
	}
	return s, nil
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

// Recv returns what the process sends next; the exit is last, then io.EOF.
func (s *streams) Recv() (*typesv1.ProcessOutput, error) {
	s.receiving.Lock()
	defer s.receiving.Unlock()
	if s.over {
		return nil, io.EOF
	}
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
			s.over = true
			out.Output = &typesv1.ProcessOutput_Exit{Exit: x}
		default: // from a shim that knows more
			continue
		}
		return out, nil
	}
}

// Close gives up the place.
func (s *streams) Close() error {
	if err := s.c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("io: %w", err)
	}
	return nil
}
