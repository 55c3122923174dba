package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/plugins"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

type fakePlugins struct{}

func (fakePlugins) List() []*systemv1.Plugin {
	return []*systemv1.Plugin{{Family: "volume", Name: "local"}, {Family: "network", Name: "bridge"}}
}

func (fakePlugins) Restart(_ context.Context, f plugins.Family, name string) (*systemv1.Plugin, error) {
	if name != "bridge" {
		return nil, fmt.Errorf("no such plugin: %w", errdefs.ErrNotFound)
	}
	return &systemv1.Plugin{Family: string(f), Name: name, State: systemv1.Plugin_STATE_READY}, nil
}

func open(t *testing.T) *meta.DB {
	t.Helper()
	db, err := meta.Open(filepath.Join(t.TempDir(), "gantry.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func update(t *testing.T, db *meta.DB, fn func(tx *meta.Tx) error) {
	t.Helper()
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, s *Service) systemv1.SystemServiceClient {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	g := grpc.NewServer(rpc.ServerOptions(rpc.Options{})...)
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///x", append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return systemv1.NewSystemServiceClient(cc)
}

func TestInfo(t *testing.T) {
	db := open(t)
	update(t, db, func(tx *meta.Tx) error {
		var errs []error
		for i, p := range []containersv1.Phase{containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED, containersv1.Phase_PHASE_EXITED} {
			errs = append(errs, containers.Put(tx, fmt.Sprint(i), &containersv1.Container{Status: &containersv1.Status{Phase: p}}))
		}
		return errors.Join(errs...)
	})
	if _, err := db.Begin("image.pull"); err != nil {
		t.Fatal(err)
	}
	c := serve(t, New(Config{Version: "v", Root: "/r", Instance: "gantry", Warnings: func() []string { return []string{"no swap"} }, Runtimes: func() []*systemv1.Runtime { return []*systemv1.Runtime{{Name: "native"}, {Name: "mine", Path: "/p"}} }}, Parts{DB: db, Plugins: fakePlugins{}}))
	i, err := c.Info(t.Context(), &systemv1.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if i.Containers != 3 || i.Running != 2 || i.Images != 0 || i.Operations != 1 || i.Revision != 3 || i.StoreSchema != meta.SchemaVersion || i.Root != "/r" || !slices.Equal(i.Warnings, []string{"no swap"}) {
		t.Errorf("%v", i)
	}
	if r := i.GetRuntimes(); len(r) != 2 || r[0].GetName() != "native" || r[1].GetPath() != "/p" {
		t.Errorf("runtimes: %v", r)
	}
	if i.Kernel == "" || i.OperatingSystem == "" || i.MemoryBytes < 1<<20 || i.Processors == 0 || i.Architecture == "" || !slices.Contains([]string{"v1", "hybrid", "v2"}, i.Cgroups) {
		t.Errorf("of the host: %v", i)
	}
}

func TestHost(t *testing.T) {
	for text, want := range map[string]string{
		"NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n": "Debian GNU/Linux 12 (bookworm)",
		"# PRETTY_NAME=no\nNAME=Alpine\n":                                             "Alpine",
		"PRETTY_NAME='Void Linux'":                                                    "Void Linux",
		"":                                                                            "",
	} {
		if got := prettyName(strings.NewReader(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	dir := t.TempDir()
	h := host{root: dir}
	if h.kernel() != "" || h.system() != "Linux" || h.memory() != 0 || h.cgroups() != "v1" {
		t.Error("of an empty machine something is known")
	}
	if err := os.MkdirAll(filepath.Join(dir, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "proc/meminfo"), []byte("MemFree: 1 kB\nMemTotal:       2048 kB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if m := h.memory(); m != 2<<20 {
		t.Errorf("memory %d", m)
	}
}

func TestUsage(t *testing.T) {
	db := open(t)
	if err := os.WriteFile(db.Path()+".schema-0", make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	ok := func(context.Context) ([]*systemv1.Usage, error) {
		return []*systemv1.Usage{{Kind: "images", Bytes: 5}, {Kind: "volumes"}}, nil
	}
	c := serve(t, New(Config{}, Parts{DB: db, Usages: []Usage{ok}}))
	r, err := c.Usage(t.Context(), &systemv1.UsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, u := range r.Usage {
		kinds = append(kinds, u.Kind)
	}
	if own := r.Usage[len(r.Usage)-1]; !slices.Equal(kinds, []string{"images", "volumes", "store"}) || own.Bytes == 0 || own.Total != 2 || own.ReclaimableBytes != 8192 {
		t.Errorf("%v", r)
	}
	bad := func(context.Context) ([]*systemv1.Usage, error) { return nil, errdefs.ErrUnavailable }
	c = serve(t, New(Config{}, Parts{DB: db, Usages: []Usage{ok, bad}}))
	if _, err := c.Usage(t.Context(), &systemv1.UsageRequest{}); !errdefs.IsUnavailable(err) {
		t.Errorf("with one that cannot say: %v", err)
	}
}

func TestPlugins(t *testing.T) {
	c := serve(t, New(Config{}, Parts{DB: open(t), Plugins: fakePlugins{}}))
	s, err := c.ListPlugins(t.Context(), &systemv1.ListPluginsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Plugin.Family+"/"+m.Plugin.Name)
	}
	if !slices.Equal(got, []string{"network/bridge", "volume/local"}) {
		t.Errorf("%v", got)
	}
	for _, r := range []struct {
		family, name string
		class        error
	}{{"network", "bridge", nil}, {"network", "nope", errdefs.ErrNotFound}, {"printer", "bridge", errdefs.ErrInvalidArgument}} {
		p, err := c.RestartPlugin(t.Context(), &systemv1.RestartPluginRequest{Family: r.family, Name: r.name})
		if !errors.Is(err, r.class) || err == nil && p.Plugin.State != systemv1.Plugin_STATE_READY {
			t.Errorf("%v: %v, %v", r, p, err)
		}
	}
}

// lines runs a check over the wire and returns what it says.
func lines(t *testing.T, c systemv1.SystemServiceClient, repair bool) []string {
	t.Helper()
	s, err := c.Check(t.Context(), &systemv1.CheckRequest{Repair: repair})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s|%s|%s|%v", m.Invariant, m.Subject, m.Detail, m.Repaired))
	}
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestCheck(t *testing.T) {
	n, fixed := 0, false
	broken := func(context.Context) error { return errors.New("no") }
	checks := []check.Check{
		{Name: "x.fine", Run: func(context.Context, check.Report) error { return nil }},
		{Name: "x.passing", Run: func(_ context.Context, report check.Report) error {
			n++
			report(fmt.Sprint("subject ", n), "only now", nil)
			return nil
		}},
		{Name: "x.wrong", Run: func(_ context.Context, report check.Report) error {
			if !fixed {
				report("thing", "lost", func(context.Context) error { fixed = true; return nil })
			}
			report("other", "a", nil)
			report("other", "b", broken)
			report("third", "c", broken)
			return nil
		}},
		{Name: "x.failing", Run: func(context.Context, check.Report) error { return errdefs.ErrUnavailable }},
		{Name: "x.panicking", Run: func(context.Context, check.Report) error { panic("oh") }},
	}
	c := serve(t, New(Config{}, Parts{DB: open(t), Checks: checks}))
	same := []string{"x.wrong|other|a; b|false", "x.failing|check x.failing|it could not be made: unavailable|false", "x.panicking|check x.panicking|it could not be made: panic: oh|false"}
	expect(t, lines(t, c, false), append(same, "x.wrong|thing|lost|false", "x.wrong|third|c|false")...)
	expect(t, lines(t, c, true), append(same, "x.wrong|thing|lost|true", "x.wrong|third|c; repair: no|false")...)
	expect(t, lines(t, c, true), append(same, "x.wrong|third|c; repair: no|false")...)
}

// TestStoreChecks breaks each invariant of the store and repairs it.
func TestStoreChecks(t *testing.T) {
	db := open(t)
	c := serve(t, New(Config{}, Parts{DB: db}))
	expect(t, lines(t, c, false))
	stuck := true
	db.OnUndo("shim", func(context.Context, *storev1.Claim) error {
		if stuck {
			return errors.New("it hangs")
		}
		return nil
	})
	op, err := db.Begin("container.launch", &storev1.Claim{Ref: &storev1.Ref{Kind: "shim", Key: "c1"}, Mode: meta.Make})
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Abort(t.Context()); err == nil {
		t.Fatal("it did not hang")
	}
	ref := &storev1.Ref{Kind: "endpoint", Scope: "n1", Key: "e"}
	update(t, db, func(tx *meta.Tx) error {
		return errors.Join(
			containers.Put(tx, "c1", &containersv1.Container{Meta: &typesv1.Meta{Id: "c1", Name: "good"}}),
			meta.Names("container").Reserve(tx, "good", "c1"),
			containers.Put(tx, "c2", &containersv1.Container{Meta: &typesv1.Meta{Id: "c2", Name: "lost"}}),
			containers.Put(tx, "c3", &containersv1.Container{Meta: &typesv1.Meta{Id: "c3", Name: "good"}}),
			meta.Names("container").Reserve(tx, "stray", "gone"),
			meta.Names("container").Reserve(tx, "old", "c1"),
			networks.Put(tx, "n1", &networksv1.Network{Meta: &typesv1.Meta{Id: "n1"}}),
			endpoints.Put(tx, meta.Key("n1", "c1"), &networksv1.Endpoint{NetworkId: "n1", ContainerId: "c1", Addresses: []string{"10.4.0.2/24", "10.4.0.3/24"}}),
			endpoints.Put(tx, meta.Key("n2", "c9"), &networksv1.Endpoint{NetworkId: "n2", ContainerId: "c9"}),
			addresses.Put(tx, meta.Key("n1", "10.4.0.1"), &storev1.Ref{Kind: "network", Key: "n1"}),
			addresses.Put(tx, meta.Key("n1", "10.4.0.2"), ref),
			addresses.Put(tx, meta.Key("n1", "10.4.0.9"), ref),
			addresses.Put(tx, "rubbish", ref))
	})
	began := ""
	update(t, db, func(tx *meta.Tx) error {
		for o := range tx.Ops() {
			began = o.BeganAt.AsTime().Format("2006-01-02T15:04:05Z07:00")
		}
		return nil
	})
	lost := []string{
		`store.names|container c3|its name "good" leads to c1|false`,
		"store.addresses|address rubbish|it is no address|false",
		"store.addresses|address n1/10.4.0.3|an endpoint has it, and it is not taken: another may get it too|false",
		"store.endpoints|endpoint n2/c9|its network n2 is not there; its container c9 is not there|false",
	}
	repairable := []string{
		`store.names|container c2|its name "lost" leads nowhere|`,
		`store.names|name container "stray"|it leads to gone, which is not there|`,
		`store.names|name container "old"|it leads to c1, whose name is "good"|`,
		"store.addresses|address n1/10.4.0.9|it is taken, and no endpoint has it|",
	}
	operation := "store.operations|operation " + op.ID() + "|container.launch, begun at " + began + ", could not be undone and holds shim c1"
	with := func(tail string) (all []string) {
		for _, r := range repairable {
			all = append(all, r+tail)
		}
		return append(all, lost...)
	}
	expect(t, lines(t, c, false), append(with("false"), operation+"|false")...)
	expect(t, lines(t, c, true), append(with("true"), operation+"; repair: undo container.launch: shim c1: it hangs|false")...)
	stuck = false
	expect(t, lines(t, c, true), append(lost, operation+"|true")...)
	expect(t, lines(t, c, false), lost...)
}

// TestCheckDamage: a record that cannot be read is not taken for one that is not there.
func TestCheckDamage(t *testing.T) {
	db := open(t)
	update(t, db, func(tx *meta.Tx) error {
		bad := &containersv1.Container{Meta: &typesv1.Meta{Id: "c1", Name: "web"}}
		bad.ProtoReflect().SetUnknown([]byte{0x07})
		return errors.Join(containers.Put(tx, "c1", bad), meta.Names("container").Reserve(tx, "web", "c1"))
	})
	c := serve(t, New(Config{}, Parts{DB: db}))
	got := lines(t, c, true)
	if len(got) != 2 || !strings.HasPrefix(got[0], "store.file|containers c1|") || !strings.HasPrefix(got[1], "store.names|check store.names|it could not be made") {
		t.Errorf("%v", got)
	}
}
