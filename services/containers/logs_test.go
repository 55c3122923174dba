package containers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/logfile"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func text(batch []*containersv1.LogRecord) (s string) {
	for _, r := range batch {
		s += string(r.GetData())
		if r.GetNotice() != "" {
			s += "(" + r.GetNotice() + ")"
		}
	}
	return s
}

// write writes as a shim does, into a buffer with room around the bytes.
func write(w *logfile.Writer, s logfile.Stream, at time.Time, text string) {
	buf := append(make([]byte, logfile.Head), text...)
	w.Write(s, at, append(buf, make([]byte, logfile.Foot)...))
}

func (w *world) logs(r *containersv1.LogsRequest) (s string, err error) {
	err = w.Logs(w.t.Context(), r, func(b []*containersv1.LogRecord) error {
		s += text(b)
		return nil
	})
	return s, err
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	c, shim := w.run("web", nil)
	out := logfile.NewWriter(w.state(c.GetMeta().GetId()).Log(), logfile.Limits{}, func(err error) { t.Error(err) })
	then := time.Now().Add(-time.Hour)
	for i := range 5 {
		write(out, logfile.Stdout, then.Add(time.Duration(i)*time.Minute), fmt.Sprintf("line %d\n", i))
	}
	write(out, logfile.Stderr, then.Add(10*time.Minute), "oops\n")
	for _, tc := range []struct {
		r    *containersv1.LogsRequest
		want string
	}{
		{&containersv1.LogsRequest{Tail: -1}, "line 0\nline 1\nline 2\nline 3\nline 4\noops\n"},
		{&containersv1.LogsRequest{Tail: 2}, "line 4\noops\n"},
		{&containersv1.LogsRequest{Tail: 0}, ""},
		{&containersv1.LogsRequest{Tail: -1, NoStdout: true}, "oops\n"},
		{&containersv1.LogsRequest{Tail: -1, NoStderr: true, Since: timestamppb.New(then.Add(150 * time.Second))}, "line 3\nline 4\n"},
		{&containersv1.LogsRequest{Tail: -1, Until: timestamppb.New(then.Add(90 * time.Second))}, "line 0\nline 1\n"},
	} {
		tc.r.Ref = "web"
		if got, err := w.logs(tc.r); err != nil || got != tc.want {
			t.Errorf("%v: %q, %v; want %q", tc.r, got, err, tc.want)
		}
	}
	// following ends with the container, and not before everything is sent
	got, done := make(chan string, 10), make(chan error, 1)
	go func() {
		done <- w.Logs(t.Context(), &containersv1.LogsRequest{Ref: "web", Tail: 1, Follow: true}, func(b []*containersv1.LogRecord) error {
			got <- text(b)
			return nil
		})
	}()
	if s := <-got; s != "oops\n" {
		t.Errorf("%q", s)
	}
	write(out, logfile.Stdout, time.Now(), "more\n")
	if s := <-got; s != "more\n" {
		t.Errorf("%q", s)
	}
	write(out, logfile.Stdout, time.Now(), "last words\n")
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	shim.ends(0)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := <-got; s != "last words\n" {
		t.Errorf("%q", s)
	}
	if _, err := w.logs(&containersv1.LogsRequest{Ref: "nobody"}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := w.logs(&containersv1.LogsRequest{Ref: "web", Since: &timestamppb.Timestamp{Nanos: -1}}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	// whoever does not want more is not sent more, and nothing waits for him
	enough := errors.New("enough")
	if err := w.Logs(t.Context(), &containersv1.LogsRequest{Ref: "web", Tail: -1}, func([]*containersv1.LogRecord) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	w.create("idle", nil)
	if s, err := w.logs(&containersv1.LogsRequest{Ref: "idle", Tail: -1, Follow: true}); s != "" || err != nil {
		t.Errorf("of what never ran: %q, %v", s, err)
	}
	w.clean()
}

func TestLogsEndWithTheirReader(t *testing.T) {
	w := newWorld(t)
	w.run("web", nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.Logs(ctx, &containersv1.LogsRequest{Ref: "web", Follow: true}, func([]*containersv1.LogRecord) error { return nil })
	}()
	time.Sleep(5 * time.Millisecond)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestBatches(t *testing.T) {
	in := make(chan *containersv1.LogRecord, 10_000)
	for range 9000 {
		in <- &containersv1.LogRecord{Data: []byte("x")}
	}
	in <- &containersv1.LogRecord{Data: []byte(strings.Repeat("y", batchBytes))}
	in <- &containersv1.LogRecord{Data: []byte("z")}
	close(in)
	var sizes []int
	for b := range batches(in) {
		sizes = append(sizes, len(b))
	}
	if fmt.Sprint(sizes) != "[4096 4096 809 1]" {
		t.Errorf("%v", sizes)
	}
}
