package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var containers = meta.NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} },
	func(c *containersv1.Container) map[string]string {
		return map[string]string{"phase": c.GetStatus().GetPhase().String()}
	})

func put(t *testing.T, db *meta.DB, id string, phase containersv1.Phase) {
	t.Helper()
	if err := db.Update(func(tx *meta.Tx) error {
		return containers.Put(tx, id, &containersv1.Container{Meta: &typesv1.Meta{Id: id, Name: "n" + id, Labels: map[string]string{"of": id}}, Status: &containersv1.Status{Phase: phase}})
	}); err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T) (*meta.DB, eventsv1.EventsServiceClient) {
	t.Helper()
	db, err := meta.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer(rpc.ServerOptions(rpc.Options{})...)
	New(db).Register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///x", append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = cc.Close(), db.Close()
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return db, eventsv1.NewEventsServiceClient(cc)
}

// read collects what a watch that does not follow says.
func read(t *testing.T, c eventsv1.EventsServiceClient, r *eventsv1.WatchRequest) (got string, err error) {
	t.Helper()
	r.NoFollow = true
	s, err := c.Watch(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			if err.Error() == "EOF" {
				err = nil
			}
			return got, err
		}
		got += fmt.Sprintf("%d %s %s;", m.Event.Revision, m.Event.Verb, m.Event.Id)
	}
}

func TestWatch(t *testing.T) {
	db, c := serve(t)
	put(t, db, "a1", containersv1.Phase_PHASE_CREATED)
	put(t, db, "b2", containersv1.Phase_PHASE_CREATED)
	put(t, db, "a1", containersv1.Phase_PHASE_RUNNING)
	f := func(kv ...string) (fs []*typesv1.Filter) {
		for i := 0; i < len(kv); i += 2 {
			fs = append(fs, &typesv1.Filter{Key: kv[i], Value: kv[i+1]})
		}
		return fs
	}
	for name, w := range map[string]struct {
		r    *eventsv1.WatchRequest
		want string
	}{
		"from now":          {&eventsv1.WatchRequest{}, ""},
		"from the start":    {&eventsv1.WatchRequest{FromStart: true}, "1 create a1;2 create b2;3 update a1;"},
		"after":             {&eventsv1.WatchRequest{After: 2}, "3 update a1;"},
		"after the last":    {&eventsv1.WatchRequest{After: 3}, ""},
		"kind as one":       {&eventsv1.WatchRequest{After: 2, Filters: f("kind", "container")}, "3 update a1;"},
		"kind as many":      {&eventsv1.WatchRequest{After: 2, Filters: f("kind", "containers")}, "3 update a1;"},
		"another kind":      {&eventsv1.WatchRequest{FromStart: true, Filters: f("kind", "image")}, ""},
		"id by prefix":      {&eventsv1.WatchRequest{FromStart: true, Filters: f("id", "a")}, "1 create a1;3 update a1;"},
		"alternatives":      {&eventsv1.WatchRequest{FromStart: true, Filters: f("id", "b2", "id", "a1", "verb", "create")}, "1 create a1;2 create b2;"},
		"a fact":            {&eventsv1.WatchRequest{FromStart: true, Filters: f("phase", "PHASE_RUNNING")}, "3 update a1;"},
		"the name":          {&eventsv1.WatchRequest{FromStart: true, Filters: f("name", "nb2")}, "2 create b2;"},
		"docker's kind":     {&eventsv1.WatchRequest{FromStart: true, Filters: f("type", "container", "event", "update")}, "3 update a1;"},
		"docker's verb":     {&eventsv1.WatchRequest{FromStart: true, Filters: f("event", "destroy", "event", "create")}, "1 create a1;2 create b2;"},
		"a container":       {&eventsv1.WatchRequest{FromStart: true, Filters: f("container", "na1")}, "1 create a1;3 update a1;"},
		"by its id":         {&eventsv1.WatchRequest{FromStart: true, Filters: f("container", "b")}, "2 create b2;"},
		"another thing":     {&eventsv1.WatchRequest{FromStart: true, Filters: f("volume", "na1")}, ""},
		"its label":         {&eventsv1.WatchRequest{FromStart: true, Filters: f("label", "of=b2")}, "2 create b2;"},
		"labels, every one": {&eventsv1.WatchRequest{FromStart: true, Filters: f("label", "of=b2", "label", "of=a1")}, ""},
		"a phase":           {&eventsv1.WatchRequest{FromStart: true, Filters: f("phase", "running")}, "3 update a1;"},
		"different keys":    {&eventsv1.WatchRequest{FromStart: true, Filters: f("id", "a1", "verb", "remove")}, ""},
		"an empty id is no": {&eventsv1.WatchRequest{FromStart: true, Filters: f("id", "")}, ""},
	} {
		if got, err := read(t, c, w.r); got != w.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", name, got, err, w.want)
		}
	}
	for want, fs := range map[string][]*typesv1.Filter{
		`filter "colour": no such key of events; known are backend, code, container,`: f("colour", "red"),
		"filter event=start: no such event; known are create, update and remove":      f("event", "start"),
		"filter type=daemon: no such kind; known are containers,":                     f("type", "daemon"),
		"filter phase=odd: no such phase; known are created,":                         f("phase", "odd"),
		"filter plugin=overlay: plugins make no events":                               f("plugin", "overlay"),
	} {
		if _, err := read(t, c, &eventsv1.WatchRequest{Filters: fs}); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want %s: %v", want, err)
		}
	}
	if _, err := read(t, c, &eventsv1.WatchRequest{After: 99}); !errdefs.IsOutOfRange(err) {
		t.Errorf("from the future: %v", err)
	}
}

// TestTimes reads what happened between two times, and follows until one that is yet to come.
func TestTimes(t *testing.T) {
	db, c := serve(t)
	put(t, db, "a1", containersv1.Phase_PHASE_CREATED)
	time.Sleep(time.Millisecond)
	between := time.Now()
	put(t, db, "b2", containersv1.Phase_PHASE_CREATED)
	for want, r := range map[string]*eventsv1.WatchRequest{
		"2 create b2;":             {Since: timestamppb.New(between)},
		"1 create a1;":             {FromStart: true, Until: timestamppb.New(between)},
		"1 create a1;2 create b2;": {Since: timestamppb.New(between.Add(-time.Hour)), Until: timestamppb.New(between.Add(time.Hour))},
		"":                         {Since: timestamppb.New(between.Add(time.Hour))},
	} {
		if got, err := read(t, c, r); got != want || err != nil {
			t.Errorf("%v: %q, %v; want %q", r, got, err, want)
		}
	}
	end := time.Now().Add(300 * time.Millisecond)
	s, err := c.Watch(t.Context(), &eventsv1.WatchRequest{Until: timestamppb.New(end)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil {
		t.Fatal(err)
	}
	put(t, db, "c3", containersv1.Phase_PHASE_CREATED)
	if m, err := s.Recv(); err != nil || m.GetEvent().GetId() != "c3" {
		t.Errorf("what came: %v, %v", m, err)
	}
	if m, err := s.Recv(); !errors.Is(err, io.EOF) || time.Now().Before(end) {
		t.Errorf("at the end: %v, %v", m, err)
	}
	if got, err := read(t, c, &eventsv1.WatchRequest{After: 1, Until: timestamppb.New(between)}); got != "" || err != nil { // over already
		t.Errorf("until a time that has gone: %q, %v", got, err)
	}
}

func TestFollow(t *testing.T) {
	db, c := serve(t)
	put(t, db, "old", containersv1.Phase_PHASE_CREATED)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := c.Watch(ctx, &eventsv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil { // from here on nothing is missed
		t.Fatal(err)
	}
	for i := range 600 {
		put(t, db, fmt.Sprint(i), containersv1.Phase_PHASE_CREATED)
	}
	for i := range 600 {
		m, err := s.Recv()
		if err != nil || m.Event.Id != fmt.Sprint(i) {
			t.Fatalf("event %d: %v, %v", i, m, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errdefs.IsUnavailable(err) {
		t.Errorf("after the store was closed: %v", err)
	}
}

// TestFromStartWhileForgotten begins at what is kept even if that goes meanwhile.
func TestFromStartWhileForgotten(t *testing.T) {
	h := &forgetful{DB: open(t)}
	put(t, h.DB, "a", containersv1.Phase_PHASE_CREATED)
	n := 0
	for e, err := range New(h).Watch(t.Context(), Query{FromStart: true, NoFollow: true}, func() error { return nil }) {
		if err != nil || e.Id != "a" {
			t.Fatal(e, err)
		}
		n++
	}
	if n != 1 || h.asked != 2 {
		t.Errorf("%d events after asking %d times", n, h.asked)
	}
}

func open(t *testing.T) *meta.DB {
	db, err := meta.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// forgetful forgets its oldest events just after it was first asked.
type forgetful struct {
	*meta.DB
	asked int
}

func (f *forgetful) Events(after uint64, limit int) ([]*eventsv1.Event, error) {
	if f.asked == 1 {
		f.asked++ // the second time it is told again, and has them
		return nil, fmt.Errorf("gone: %w", errdefs.ErrOutOfRange)
	}
	return f.DB.Events(after, limit)
}

func (f *forgetful) Kept() (uint64, error) {
	if f.asked == 0 {
		f.asked++
	}
	return f.DB.Kept()
}
