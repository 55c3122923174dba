package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"overlay": true, "a": true, "0": true, "a.b_c-d": true, strings.Repeat("x", 32): true,
		"": false, "A": false, ".": false, "..": false, "-a": false, "a/b": false, "a b": false, "é": false, strings.Repeat("x", 33): false,
	} {
		if err := CheckName(name); ok != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, f := range Families {
		if err := CheckFamily(f); err != nil {
			t.Error(err)
		}
	}
	if err := CheckFamily("builder"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestDecode(t *testing.T) {
	type options struct {
		A int    `json:"a"`
		B string `json:"b"`
	}
	for raw, want := range map[string]*options{
		``:                 {A: 1, B: "x"},
		`{}`:               {A: 1, B: "x"},
		`{"a": 2}`:         {A: 2, B: "x"},
		`{"a": "2"}`:       nil,
		`{"c": 1}`:         nil,
		`{"a": 1} {"a":2}`: nil,
		`{"a": 1}x`:        nil,
		`[`:                nil,
	} {
		o := options{A: 1, B: "x"}
		err := Config{Options: json.RawMessage(raw)}.Decode(&o)
		switch {
		case want == nil && !errdefs.IsInvalidArgument(err):
			t.Errorf("%q: got %v, want InvalidArgument", raw, err)
		case want != nil && (err != nil || o != *want):
			t.Errorf("%q: got %+v, %v", raw, o, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"a": 2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var o struct{ A int }
		if err := (Config{Options: raw}).Decode(&o); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", raw, err)
		}
	})
}

// fake is a plugin that says what it was told.
type fake struct {
	config Config
	err    error
}

func (f *fake) Info(context.Context) (Info, error) {
	return Info{Family: Volume, Name: "fake", Version: "1.2", Capabilities: []string{"a", "b"}, Lingers: true}, f.err
}

func (f *fake) Configure(_ context.Context, c Config) error {
	f.config = c
	return f.err
}

// serve serves f on a unix socket whose server checks its peers.
func serve(t *testing.T, f *fake, check func(Peer) error) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gy")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(PeerCredentials(check)))
	Register(s, f)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := errors.Join(<-done, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return path
}

func dial(t *testing.T, path string, o grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func anybody(Peer) error { return nil }

func TestWire(t *testing.T) {
	f := &fake{}
	var peer Peer
	path := serve(t, f, func(p Peer) error { peer = p; return nil })
	far := NewClient(dial(t, path, grpc.WithTransportCredentials(PeerCredentials(anybody))), "9.9")
	info, err := far.Info(t.Context())
	want, _ := f.Info(t.Context())
	if err != nil || fmt.Sprint(info) != fmt.Sprint(want) || !info.Has("b") || info.Has("c") {
		t.Errorf("info: %+v, %v", info, err)
	}
	if peer.PID != os.Getpid() || int(peer.UID) != os.Getuid() || int(peer.GID) != os.Getgid() {
		t.Errorf("peer: %+v", peer)
	}
	c := Config{Root: "/r", State: "/s", Options: json.RawMessage(`{"x":1}`)}
	if err := far.Configure(t.Context(), c); err != nil || fmt.Sprint(f.config) != fmt.Sprint(c) {
		t.Errorf("configure: %+v, %v", f.config, err)
	}
	f.err = fmt.Errorf("no: %w", errdefs.ErrFailedPrecondition)
	if err := far.Configure(t.Context(), c); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
	if _, err := far.Info(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

func TestPeersAreChecked(t *testing.T) {
	no := func(Peer) error { return errors.New("you may not") }
	t.Run("by the server", func(t *testing.T) {
		path := serve(t, &fake{}, no)
		for name, o := range map[string]grpc.DialOption{
			"one of ours": grpc.WithTransportCredentials(PeerCredentials(anybody)),
			"any client":  grpc.WithTransportCredentials(insecure.NewCredentials()),
		} {
			if _, err := NewClient(dial(t, path, o), "").Info(t.Context()); !errdefs.IsUnavailable(err) {
				t.Errorf("%s: got %v, want Unavailable", name, err)
			}
		}
	})
	t.Run("by the client", func(t *testing.T) {
		path := serve(t, &fake{}, anybody)
		_, err := NewClient(dial(t, path, grpc.WithTransportCredentials(PeerCredentials(no))), "").Info(t.Context())
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "you may not") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no unix socket", func(t *testing.T) {
		a, b := net.Pipe()
		defer func() { _, _ = a.Close(), b.Close() }()
		if _, _, err := PeerCredentials(anybody).ServerHandshake(a); err == nil {
			t.Error("a pipe has peer credentials")
		}
	})
}

func TestMountsTravel(t *testing.T) {
	in := []Mount{{Type: "overlay", Source: "overlay", Target: "x", Options: []string{"a", "b"}}, {Type: "bind"}}
	if out := MountsFrom(MountsProto(in)); fmt.Sprint(out) != fmt.Sprint(in) {
		t.Errorf("got %v, want %v", out, in)
	}
}
