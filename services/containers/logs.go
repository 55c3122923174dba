package containers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/logfile"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

const (
	// batchBytes is how much of a log goes into one message, at least while there is more.
	batchBytes = 256 << 10
	// batchRecords bounds a message of short lines.
	batchRecords = 4096
	// readAhead is how many records are read before somebody takes them.
	readAhead = 64
)

// Logs sends what a container has written, in batches, and waits for whoever reads them: a log is a
// file, and nobody else waits. Following ends once the container is removed or has come to rest and everything is sent.
func (s *Service) Logs(ctx context.Context, r *containersv1.LogsRequest, send func([]*containersv1.LogRecord) error) (err error) {
	c, k, err := s.resolve(ctx, r.GetRef())
	if err != nil {
		return wrap(err, "logs of container %s", r.GetRef())
	}
	defer func() { err = wrap(err, "logs of container %s", label(c)) }()
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	if r.GetFollow() {
		rest := make(chan struct{})
		o.Done = rest
		wg.Go(func() {
			_, _ = k.until(ctx, func(c *containersv1.Container, gone bool) (bool, error) { return gone || resting(c), nil })
			close(rest)
		})
	}
	log, err := logfile.Open(s.state(k.id).Log(), o)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // it is only read
	records := make(chan *containersv1.LogRecord, readAhead)
	var readErr error
	wg.Go(func() {
		defer close(records)
		readErr = readLog(ctx, log, records)
	})
	for batch := range batches(records) {
		if err := send(batch); err != nil {
			cancel(err)
			for range records { //nolint:revive // it ends soon
			}
			return err
		}
	}
	return readErr
}

// resting reports whether nothing will happen to a container until somebody wants it to.
func resting(c *containersv1.Container) bool {
	do, _ := Next(c)
	return do == Rest
}

func logOptions(r *containersv1.LogsRequest) (logfile.Options, error) {
	o := logfile.Options{
		Tail: int(min(r.GetTail(), math.MaxInt32)), NoStdout: r.GetNoStdout(), NoStderr: r.GetNoStderr(), Follow: r.GetFollow(),
	}
	for _, t := range []struct {
		in  *timestamppb.Timestamp
		out *time.Time
	}{{r.GetSince(), &o.Since}, {r.GetUntil(), &o.Until}} {
		if t.in == nil {
			continue
		}
		if err := t.in.CheckValid(); err != nil {
			return o, invalid("%v", err)
		}
		*t.out = t.in.AsTime()
	}
	return o, nil
}

func readLog(ctx context.Context, log *logfile.Reader, out chan<- *containersv1.LogRecord) error {
	for {
		r, err := log.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		m := &containersv1.LogRecord{
			Stderr: r.Stream == logfile.Stderr, Data: bytes.Clone(r.Data), Partial: r.Partial, Sequence: r.Sequence, Notice: r.Notice,
		}
		if !r.At.IsZero() {
			m.At = timestamppb.New(r.At)
		}
		select {
		case out <- m:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// batches gathers what is there already, and never waits to fill one up.
func batches(in <-chan *containersv1.LogRecord) func(yield func([]*containersv1.LogRecord) bool) {
	return func(yield func([]*containersv1.LogRecord) bool) {
		for first := range in {
			batch, size := []*containersv1.LogRecord{first}, len(first.GetData())
		more:
			for size < batchBytes && len(batch) < batchRecords {
				select {
				case r, ok := <-in:
					if !ok {
						break more
					}
					batch, size = append(batch, r), size+len(r.GetData())
				default:
					break more
				}
			}
			if !yield(batch) {
				return
			}
		}
	}
}
