package networks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// fake is a driver with the memory of a kernel.
type fake struct {
	mu       sync.Mutex
	networks map[string]network.Network
	held     map[string]network.Endpoint // by endpoint
	on       map[string]string           // endpoint → network
	ports    map[string][]network.Port
	busy     map[uint16]bool // host ports that a process of the host has
	broken   error           // every call fails so
	calls    []string
}

func newFake() *fake {
	return &fake{
		networks: map[string]network.Network{}, held: map[string]network.Endpoint{}, on: map[string]string{},
		ports: map[string][]network.Port{}, busy: map[uint16]bool{},
	}
}

func (f *fake) call(name string) error {
	f.calls = append(f.calls, name)
	return f.broken
}

func (f *fake) CreateNetwork(_ context.Context, n network.Network) (plugins.Handle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("create"); err != nil {
		return nil, err
	}
	f.networks[n.ID] = n
	return plugins.Handle("network " + n.ID), nil
}

func (f *fake) DeleteNetwork(_ context.Context, n network.Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("delete"); err != nil {
		return err
	}
	delete(f.networks, n.ID)
	return nil
}

func (f *fake) Attach(_ context.Context, n network.Network, e network.Endpoint) (network.Attached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("attach"); err != nil {
		return network.Attached{}, err
	}
	f.held[e.ID], f.on[e.ID] = e, n.ID
	return network.Attached{Interface: e.Interface, MAC: "02:00:00:00:00:01", Handle: plugins.Handle("endpoint " + e.ID)}, nil
}

func (f *fake) Detach(_ context.Context, _ network.Network, e network.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("detach"); err != nil {
		return err
	}
	delete(f.held, e.ID)
	delete(f.ports, e.ID)
	return nil
}

func (f *fake) Publish(_ context.Context, _ network.Network, e network.Endpoint, ports []network.Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("publish"); err != nil {
		return err
	}
	for _, p := range ports {
		if f.busy[p.Host.Port()] {
			return fmt.Errorf("port %d is in use by nginx (pid 7): %w", p.Host.Port(), errdefs.ErrAlreadyExists)
		}
	}
	f.ports[e.ID] = ports
	return nil
}

func (f *fake) Endpoints(context.Context) iter.Seq2[network.Held, error] {
	return func(yield func(network.Held, error) bool) {
		f.mu.Lock()
		var all []network.Held
		for id := range f.held {
			all = append(all, network.Held{NetworkID: f.on[id], EndpointID: id})
		}
		f.mu.Unlock()
		for _, h := range all {
			if !yield(h, nil) {
				return
			}
		}
	}
}

// Check finds networks that are not there, and ports that are not published.
func (f *fake) Check(_ context.Context, n network.Network, want []network.Want) iter.Seq2[network.Difference, error] {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []network.Difference
	if _, there := f.networks[n.ID]; !there {
		all = append(all, network.Difference{Subject: "network", Detail: "it is not there"})
	}
	for _, w := range want {
		if len(w.Ports) != len(f.ports[w.ID]) {
			all = append(all, network.Difference{Subject: "ports of " + w.ID, Detail: "they are not published"})
		}
	}
	return func(yield func(network.Difference, error) bool) {
		for _, d := range all {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// Network and Info make a fake the Drivers of one driver.
func (f *fake) Network(name string) (network.Driver, error) {
	if name != "bridge" {
		return nil, fmt.Errorf("network driver %s: %w", name, errdefs.ErrNotFound)
	}
	return f, nil
}

func (f *fake) Info(context.Context, plugins.Family, string) (plugins.Info, error) {
	return plugins.Info{Capabilities: []string{network.Ports, network.Check}}, nil
}

// host is a Host that uses what it lists.
type host []string

func (h host) InUse(netip.Addr) (out []netip.Prefix, err error) {
	for _, s := range h {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out, nil
}

type bench struct {
	*testing.T
	*Service
	path string
	f    *fake
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, path: filepath.Join(t.TempDir(), "db"), f: newFake()}
	b.open()
	t.Cleanup(func() { _ = b.db.Close() })
	return b
}

func (b *bench) open() {
	b.Helper()
	db, err := meta.Open(b.path)
	b.must(err)
	b.Service = New(db, b.f, Options{Host: host{}, Log: slog.New(slog.DiscardHandler)})
}

// restart ends the daemon as kill -9 would, and starts another.
func (b *bench) restart() {
	b.Helper()
	b.must(b.db.Close())
	b.open()
	b.must(b.db.Recover(b.Context()))
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func container(id string, change ...func(*containersv1.Spec)) *containersv1.Container {
	c := &containersv1.Container{Meta: &typesv1.Meta{Id: id, Name: "name-of-" + id}, Spec: &containersv1.Spec{}}
	for _, f := range change {
		f(c.Spec)
	}
	return c
}

func on(names ...string) func(*containersv1.Spec) {
	return func(s *containersv1.Spec) {
		for _, n := range names {
			n, addr, _ := strings.Cut(n, "@")
			s.Networks = append(s.Networks, &containersv1.NetworkAttachment{Network: n, Address: addr})
		}
	}
}

func publish(ms ...*containersv1.PortMapping) func(*containersv1.Spec) {
	return func(s *containersv1.Spec) { s.Ports = ms }
}

func port(host string, from, to, count uint32) *containersv1.PortMapping {
	return &containersv1.PortMapping{HostAddress: host, HostPort: from, ContainerPort: to, Count: count}
}

// join joins and commits.
func (b *bench) join(c *containersv1.Container) ([]*networksv1.Endpoint, error) {
	op, err := b.db.Begin("container.launch")
	if err != nil {
		return nil, err
	}
	es, err := b.Join(b.Context(), op, c, "/netns/"+c.GetMeta().GetId())
	if err != nil {
		return nil, errors.Join(err, op.Abort(b.Context()))
	}
	return es, op.Commit(nil)
}

func (b *bench) joined(c *containersv1.Container) []*networksv1.Endpoint {
	b.Helper()
	es, err := b.join(c)
	b.must(err)
	return es
}

func (b *bench) leave(c *containersv1.Container) {
	b.Helper()
	op, err := b.db.Begin("container.release")
	b.must(err)
	b.must(b.Leave(b.Context(), op, c))
	b.must(op.Commit(nil))
}

// counts is how many records there are: endpoints, addresses, and handles of endpoints.
func (b *bench) counts() (endpoints, addresses, handles int) {
	b.Helper()
	b.must(b.db.View(func(tx *meta.Tx) error {
		endpoints, addresses = b.endpoints.Count(tx), b.addresses.Count(tx)
		for key := range b.handles.All(tx) {
			if strings.HasPrefix(key, kindEndpoint) {
				handles++
			}
		}
		return nil
	}))
	return endpoints, addresses, handles
}

func (b *bench) empty() {
	b.Helper()
	if e, a, h := b.counts(); e+a+h != 0 || len(b.f.held) != 0 || len(b.f.ports) != 0 {
		b.Errorf("left: %d endpoints, %d addresses, %d handles; in the driver %v %v", e, a, h, b.f.held, b.f.ports)
	}
	b.must(b.db.View(func(tx *meta.Tx) error {
		for op := range tx.Ops() {
			b.Errorf("left under way: %v", op)
		}
		return nil
	}))
}

func TestJoinLeave(t *testing.T) {
	b := newBench(t)
	c := container("c1")
	es := b.joined(c)
	if len(es) != 1 {
		t.Fatalf("endpoints: %v", es)
	}
	e := es[0]
	if e.GetNetwork() != Default || !slices.Equal(e.GetAddresses(), []string{"172.30.0.2/24"}) || !slices.Equal(e.GetGateways(), []string{"172.30.0.1"}) ||
		e.GetInterface() != "eth0" || e.GetMac() == "" || !e.GetAttached() {
		t.Errorf("endpoint: %v", e)
	}
	n, all, err := b.Get(Default)
	b.must(err)
	if len(all) != 1 || all[0].GetId() != e.GetId() || !all[0].GetAttached() || b.f.networks[n.GetMeta().GetId()].Name != Default {
		t.Errorf("recorded: %v", all)
	}
	if !slices.Equal(b.f.calls, []string{"create", "attach"}) {
		t.Errorf("calls of the driver: %v", b.f.calls)
	}
	before := b.db.Revision()
	b.joined(container("c2"))
	if got := b.db.Revision() - before; got != 2 {
		t.Errorf("a join is %d events, want 2 of its endpoint", got)
	}
	if err := b.Remove(t.Context(), Default); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove the default network: %v", err)
	}
	b.leave(container("c2"))
	b.leave(c)
	b.leave(c)
	b.empty()
	for _, mode := range []containersv1.NetworkMode{containersv1.NetworkMode_NETWORK_MODE_NONE, containersv1.NetworkMode_NETWORK_MODE_HOST} {
		if es := b.joined(container("c3", func(s *containersv1.Spec) { s.NetworkMode = mode })); len(es) != 0 {
			t.Errorf("%v: %v", mode, es)
		}
	}
	b.must(b.Release(t.Context()))
	if len(b.f.networks) != 0 {
		t.Error("release left a network in the driver")
	}
}

// A release that claims beforehand costs no commit more in Leave.
func TestDrops(t *testing.T) {
	b := newBench(t)
	c := container("c1")
	b.joined(c)
	var op *meta.Op
	b.must(b.db.Update(func(tx *meta.Tx) (err error) {
		op, err = tx.Begin("container.release", b.Drops(tx, "c1")...)
		return err
	}))
	had := len(op.Claims())
	b.must(b.Leave(t.Context(), op, c))
	if had != 1 || len(op.Claims()) != had {
		t.Errorf("claims: %v", op.Claims())
	}
	b.must(op.Commit(nil))
	b.empty()
}

func TestAddresses(t *testing.T) {
	b := newBench(t)
	create := func(name, subnet string, internal bool) {
		t.Helper()
		_, err := b.Create(t.Context(), &networksv1.Network{Meta: &typesv1.Meta{Name: name}, Subnets: []string{subnet}, Internal: internal})
		b.must(err)
	}
	create("small", "10.1.0.0/29", false) // .1 is the gateway; .2 to .6 are to have
	create("other", "10.2.0.0/24", true)
	address := func(id, network string) string {
		t.Helper()
		es, err := b.join(container(id, on(network)))
		if err != nil {
			return err.Error()
		}
		return es[0].GetAddresses()[0]
	}
	for i := 2; i <= 6; i++ {
		if got, want := address(fmt.Sprint("c", i), "small"), fmt.Sprintf("10.1.0.%d/29", i); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, err := b.join(container("full", on("small"))); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	// Given back: the one that rested longest is last to be given again, but before none at all.
	b.leave(container("c3"))
	if got := address("d", "small"); got != "10.1.0.3/29" {
		t.Errorf("the only free one: %s", got)
	}
	b.leave(container("c5"))
	b.mu.Lock()
	clear(b.rested)
	b.mu.Unlock()
	b.leave(container("c2"))
	if got := address("e", "small"); got != "10.1.0.5/29" {
		t.Errorf("one that does not rest is taken first: %s", got)
	}
	for asked, want := range map[string]func(error) bool{
		"10.2.0.1": errdefs.IsInvalidArgument, "10.2.0.0": errdefs.IsInvalidArgument, "10.2.0.255": errdefs.IsInvalidArgument,
		"10.3.0.9": errdefs.IsInvalidArgument, "nonsense": errdefs.IsInvalidArgument,
	} {
		if _, err := b.join(container("x", on("other@"+asked))); !want(err) {
			t.Errorf("asked for %s: %v", asked, err)
		}
	}
	es := b.joined(container("static", on("other@10.2.0.77", "small@10.1.0.2")))
	if es[0].GetAddresses()[0] != "10.2.0.77/24" || es[0].GetGateways()[0] != "" || es[1].GetAddresses()[0] != "10.1.0.2/29" || es[1].GetInterface() != "eth1" {
		t.Errorf("static: %v", es)
	}
	if _, err := b.join(container("rival", on("other@10.2.0.77"))); !errdefs.IsAlreadyExists(err) || !strings.Contains(fmt.Sprint(err), "container name-of-static") {
		t.Errorf("a taken address: %v", err)
	}
	if _, err := b.join(container("twice", on("other", "other"))); !errdefs.IsInvalidArgument(err) {
		t.Errorf("one network twice: %v", err)
	}
	b.restart()
	if got := address("f", "other"); got != "10.2.0.78/24" {
		t.Errorf("after a restart: %s, want to go on behind the highest", got)
	}
}

// Many at once never get the same address, nor the same port.
func TestAtOnce(t *testing.T) {
	b := newBench(t)
	const many = 60
	got, ports := sync.Map{}, sync.Map{}
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			es, err := b.join(container(fmt.Sprint("c", i), publish(port("", 0, 80, 0))))
			if err != nil {
				t.Error(err)
				return
			}
			if was, dup := got.LoadOrStore(es[0].GetAddresses()[0], i); dup {
				t.Errorf("%s was given to %v and %d", es[0].GetAddresses()[0], was, i)
			}
			if was, dup := ports.LoadOrStore(es[0].GetPorts()[0].GetHostPort(), i); dup {
				t.Errorf("port %d was given to %v and %d", es[0].GetPorts()[0].GetHostPort(), was, i)
			}
		})
	}
	wg.Wait()
	if e, a, h := b.counts(); e != many || a != many || h != many {
		t.Errorf("%d endpoints, %d addresses, %d handles", e, a, h)
	}
	if len(b.f.networks) != 1 {
		t.Errorf("the default network was made %d times", len(b.f.networks))
	}
}

func TestPorts(t *testing.T) {
	b := newBench(t)
	es := b.joined(container("web", publish(port("", 8080, 80, 0), port("127.0.0.1", 0, 90, 3), port("0.0.0.0", 9000, 9000, 10))))
	var all []string
	for _, p := range es[0].GetPorts() {
		sp, err := spanOf(p)
		b.must(err)
		all = append(all, sp.String())
	}
	if want := []string{"8080/tcp", "127.0.0.1:32768-32770/tcp", "9000-9009/tcp"}; !slices.Equal(all, want) {
		t.Errorf("ports: %v, want %v", all, want)
	}
	for name, c := range map[string]struct {
		ports []*containersv1.PortMapping
		want  func(error) bool
		says  string
	}{
		"taken":             {[]*containersv1.PortMapping{port("", 8080, 81, 0)}, errdefs.IsAlreadyExists, "container name-of-web"},
		"taken at one":      {[]*containersv1.PortMapping{port("10.0.0.1", 8080, 81, 0)}, errdefs.IsAlreadyExists, "container name-of-web"},
		"taken in a range":  {[]*containersv1.PortMapping{port("", 8990, 80, 20)}, errdefs.IsAlreadyExists, "container name-of-web"},
		"twice":             {[]*containersv1.PortMapping{port("", 7000, 1, 0), port("127.0.0.1", 7000, 2, 0)}, errdefs.IsInvalidArgument, "twice"},
		"no container port": {[]*containersv1.PortMapping{port("", 7000, 0, 0)}, errdefs.IsInvalidArgument, "1 to 65535"},
		"too far":           {[]*containersv1.PortMapping{port("", 65000, 1, 1000)}, errdefs.IsInvalidArgument, "1 to 65535"},
		"no address":        {[]*containersv1.PortMapping{port("web", 7000, 1, 0)}, errdefs.IsInvalidArgument, "no address"},
		"sctp":              {[]*containersv1.PortMapping{{Protocol: "sctp", HostPort: 1, ContainerPort: 1}}, errdefs.IsInvalidArgument, "tcp or udp"},
		"other address":     {[]*containersv1.PortMapping{port("10.0.0.1", 32768, 81, 0)}, func(err error) bool { return err == nil }, ""},
		"other protocol":    {[]*containersv1.PortMapping{{Protocol: "udp", HostPort: 8080, ContainerPort: 1}}, func(err error) bool { return err == nil }, ""},
	} {
		x := container("x", publish(c.ports...))
		for what, err := range map[string]error{"check": b.Check(t.Context(), x.GetSpec(), ""), "join": second(b.join(x))} {
			if !c.want(err) || c.says != "" && !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		b.leave(x)
	}
	// The container's own ports are not in its way.
	b.must(b.Check(t.Context(), container("web", publish(port("", 8080, 80, 0))).GetSpec(), "web"))
	// A process of the host has the next numbers: others are proposed, but not instead of a number that was asked for.
	b.f.busy[32771], b.f.busy[32772], b.f.busy[81] = true, true, true
	es = b.joined(container("any", publish(port("", 0, 80, 0))))
	if got := es[0].GetPorts()[0].GetHostPort(); got != 32773 {
		t.Errorf("port %d, want 32773", got)
	}
	if _, err := b.join(container("fixed", publish(port("", 81, 80, 0)))); !errdefs.IsAlreadyExists(err) || !strings.Contains(fmt.Sprint(err), "nginx") {
		t.Errorf("a port of the host: %v", err)
	}
	for name, change := range map[string]func(*containersv1.Spec){
		"host": func(s *containersv1.Spec) { s.NetworkMode = containersv1.NetworkMode_NETWORK_MODE_HOST },
		"lost": on("lost"),
	} {
		c := container("y", publish(port("", 1, 1, 0)), change)
		if err := b.Check(t.Context(), c.GetSpec(), ""); !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestNetworks(t *testing.T) {
	// No name here could be the beginning of an id, which is hexadecimal and a name as well.
	b := newBench(t)
	b.host = host{"172.30.0.0/24", "172.30.2.5/32", "10.0.0.0/8"}
	subnet := func(name string) string {
		t.Helper()
		n, err := b.Create(t.Context(), &networksv1.Network{Meta: &typesv1.Meta{Name: name, Labels: map[string]string{"tier": name}}})
		b.must(err)
		return n.GetSubnets()[0] + " " + n.GetGateways()[0]
	}
	if g, i := subnet("g"), subnet("i"); g != "172.30.1.0/24 172.30.1.1" || i != "172.30.3.0/24 172.30.3.1" {
		t.Errorf("picked %s and %s", g, i)
	}
	for name, c := range map[string]struct {
		n    *networksv1.Network
		want func(error) bool
	}{
		"name":              {&networksv1.Network{Meta: &typesv1.Meta{Name: "a b"}}, errdefs.IsInvalidArgument},
		"reserved":          {&networksv1.Network{Meta: &typesv1.Meta{Name: "host"}}, errdefs.IsInvalidArgument},
		"taken":             {&networksv1.Network{Meta: &typesv1.Meta{Name: "g"}}, errdefs.IsAlreadyExists},
		"driver":            {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Driver: "lost"}, errdefs.IsNotFound},
		"no subnet":         {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Subnets: []string{"x"}}, errdefs.IsInvalidArgument},
		"too small":         {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Subnets: []string{"192.168.1.0/31"}}, errdefs.IsInvalidArgument},
		"ipv6":              {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Subnets: []string{"fd00::/64"}}, errdefs.IsNotImplemented},
		"overlaps network":  {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Subnets: []string{"172.30.0.0/22"}}, errdefs.IsFailedPrecondition},
		"overlaps host":     {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Subnets: []string{"10.9.0.0/24"}}, errdefs.IsFailedPrecondition},
		"gateway elsewhere": {&networksv1.Network{Meta: &typesv1.Meta{Name: "j"}, Subnets: []string{"192.168.1.0/24"}, Gateways: []string{"192.168.2.1"}}, errdefs.IsInvalidArgument},
	} {
		if _, err := b.Create(t.Context(), c.n); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n, err := b.Create(t.Context(), &networksv1.Network{Meta: &typesv1.Meta{Name: "k"}, Subnets: []string{"192.168.7.9/24"}, Gateways: []string{"192.168.7.254"}})
	b.must(err)
	if n.GetSubnets()[0] != "192.168.7.0/24" || n.GetGateways()[0] != "192.168.7.254" {
		t.Errorf("masked: %v", n)
	}
	list := func(kv ...string) (got string) {
		var fs []*typesv1.Filter
		for i := 0; i < len(kv); i += 2 {
			fs = append(fs, &typesv1.Filter{Key: kv[i], Value: kv[i+1]})
		}
		for n, err := range b.All(fs) {
			if err != nil {
				return err.Error()
			}
			got += n.GetMeta().GetName()
		}
		return got
	}
	for want, kv := range map[string][]string{"gik": nil, "g": {"label", "tier=g"}, "gi": {"label", "tier"}, "ik": {"name", "i", "name", "k"}, "": {"driver", "x"}} {
		if got := list(kv...); got != want {
			t.Errorf("list %v: %q, want %q", kv, got, want)
		}
	}
	if got := list("x", "y"); !strings.Contains(got, "no such key") {
		t.Errorf("unknown filter: %s", got)
	}
	c := container("c", on("g"))
	b.joined(c)
	if err := b.Remove(t.Context(), "g"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "name-of-c") {
		t.Errorf("remove what is in use: %v", err)
	}
	b.leave(c)
	for range 2 {
		b.must(b.Remove(t.Context(), "g"))
	}
	if _, _, err := b.Get("g"); !errdefs.IsNotFound(err) {
		t.Errorf("get what is removed: %v", err)
	}
	if len(b.f.networks) != 2 {
		t.Errorf("in the driver: %v", b.f.networks)
	}
	// Room is needed for the name again, and for the subnet.
	subnet("g")
}

// TestFails fails every call of the driver, then lets it work again: nothing may stay.
func TestFails(t *testing.T) {
	b := newBench(t)
	b.joined(container("first"))
	b.leave(container("first"))
	b.f.broken = fmt.Errorf("plugin bridge: %w", errdefs.ErrUnavailable)
	if _, err := b.join(container("c", publish(port("", 80, 80, 0)))); !errdefs.IsUnavailable(err) {
		t.Errorf("join: %v", err)
	}
	if _, err := b.Create(t.Context(), &networksv1.Network{Meta: &typesv1.Meta{Name: "n"}}); !errdefs.IsUnavailable(err) {
		t.Errorf("create: %v", err)
	}
	b.f.broken = nil
	b.must(b.db.Recover(t.Context()))
	b.empty()
	if got := slices.Collect(func(yield func(string) bool) {
		for n := range b.All(nil) {
			if !yield(n.GetMeta().GetName()) {
				return
			}
		}
	}); !slices.Equal(got, []string{Default}) {
		t.Errorf("networks: %v", got)
	}
}

// TestKilled dies between the claim and the record, in join, leave, create and remove.
func TestKilled(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	op, err := b.db.Begin("container.launch")
	b.must(err)
	_, err = b.Join(ctx, op, container("c", publish(port("", 8080, 80, 0))), "/netns/c")
	b.must(err)
	if len(b.f.held) != 1 || len(b.f.ports) != 1 {
		t.Fatal("nothing was made, so this proves nothing")
	}
	b.restart()
	b.empty()

	c := container("c", publish(port("", 8080, 80, 0)))
	b.joined(c)
	op, err = b.db.Begin("container.release")
	b.must(err)
	b.must(b.Leave(ctx, op, c))
	b.restart()
	b.empty()

	spec := network.Network{ID: "half"}
	_, err = b.db.Begin("network.create", claim(meta.Make, kindNetwork, "bridge", "half"))
	b.must(err)
	_, err = b.f.CreateNetwork(ctx, spec)
	b.must(err)
	b.restart()
	if _, there := b.f.networks["half"]; there {
		t.Error("a network that was being made is still there")
	}

	n, err := b.Create(ctx, &networksv1.Network{Meta: &typesv1.Meta{Name: "gone"}})
	b.must(err)
	_, err = b.db.Begin("network.remove", networkClaim(meta.Drop, n))
	b.must(err)
	b.restart()
	if _, _, err := b.Get("gone"); !errdefs.IsNotFound(err) {
		t.Errorf("a network that was being removed: %v", err)
	}
	_, err = b.Create(ctx, &networksv1.Network{Meta: &typesv1.Meta{Name: "gone"}})
	b.must(err)
}

// TestRejoin joins a container whose earlier run was never let go of.
func TestRejoin(t *testing.T) {
	b := newBench(t)
	first := b.joined(container("c"))[0]
	again := b.joined(container("c"))[0]
	if first.GetId() == again.GetId() {
		t.Error("the endpoint has the id of the last run")
	}
	if e, a, h := b.counts(); e != 1 || a != 1 || h != 1 || len(b.f.held) != 1 {
		t.Errorf("%d endpoints, %d addresses, %d handles, %d held", e, a, h, len(b.f.held))
	}
	b.leave(container("c"))
	b.empty()
}

func TestRecoverAndCheck(t *testing.T) {
	b := newBench(t)
	c := container("c", publish(port("", 8080, 80, 0)))
	e := b.joined(c)[0]
	differences := func() (all []string) {
		t.Helper()
		for _, ch := range b.Checks() {
			b.must(ch.Run(t.Context(), check.Report(func(subject, detail string, repair func(context.Context) error) {
				all = append(all, subject+": "+detail)
				if repair != nil {
					b.must(repair(t.Context()))
				}
			})))
		}
		return all
	}
	if d := differences(); len(d) != 0 {
		t.Errorf("differences: %v", d)
	}
	// The host lost everything but the links: told, and repaired.
	clear(b.f.networks)
	clear(b.f.ports)
	var told []string
	var repairs []func(context.Context) error
	for _, ch := range b.Checks() {
		b.must(ch.Run(t.Context(), check.Report(func(subject, detail string, repair func(context.Context) error) {
			told = append(told, subject+": "+detail)
			repairs = append(repairs, repair)
		})))
	}
	if want := []string{"network: network bridge: it is not there", "ports of " + e.GetId() + ": network bridge: they are not published"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	for _, repair := range repairs {
		b.must(repair(t.Context()))
	}
	if len(b.f.networks) != 1 || len(b.f.ports[e.GetId()]) != 1 {
		t.Errorf("repaired: %v, %v", b.f.networks, b.f.ports)
	}
	// Again, and the daemon starts.
	clear(b.f.networks)
	clear(b.f.ports)
	b.must(b.Recover(t.Context()))
	if len(b.f.networks) != 1 || len(b.f.ports[e.GetId()]) != 1 {
		t.Errorf("recovered: %v, %v", b.f.networks, b.f.ports)
	}
	// It lost those too: nothing to publish, and a difference.
	delete(b.f.held, e.GetId())
	clear(b.f.ports)
	b.must(b.Recover(t.Context()))
	if len(b.f.ports) != 0 {
		t.Errorf("published for nobody: %v", b.f.ports)
	}
	if d := differences(); len(d) != 2 || !strings.Contains(d[0], "does not hold it") {
		t.Errorf("differences: %v", d)
	}
	b.leave(c)
	b.f.held["stray"] = network.Endpoint{ID: "stray"}
	if d := differences(); len(d) != 1 || !strings.Contains(d[0], "does not know it") {
		t.Errorf("differences: %v", d)
	}
	if len(b.f.held) != 0 {
		t.Error("the stray was not repaired")
	}
	b.f.broken = fmt.Errorf("plugin bridge: %w", errdefs.ErrUnavailable)
	b.must(b.Recover(t.Context())) // nobody is on the network: no driver is needed to start
}

func TestWarns(t *testing.T) {
	b := newBench(t)
	b.joined(container("c"))
	var said strings.Builder
	b.log = slog.New(slog.NewTextHandler(&said, nil))
	b.must(b.Recover(t.Context()))
	if said.Len() != 0 {
		t.Errorf("said: %s", said.String())
	}
	b.host = host{"172.16.0.0/12"}
	b.must(b.Recover(t.Context()))
	if !strings.Contains(said.String(), "overlaps=172.16.0.0/12") {
		t.Errorf("said: %s", said.String())
	}
}

func TestPickSubnet(t *testing.T) {
	use := func(ps ...string) (out []netip.Prefix) {
		out, _ = host(ps).InUse(netip.Addr{})
		return out
	}
	for _, c := range []struct {
		instance string
		use      []netip.Prefix
		want     string
	}{
		{"gantry", nil, "172.30.0.0/24"},
		{"", use("172.30.0.0/16"), "172.31.0.0/24"},
		{"gantry", use("172.16.0.0/12", "10.0.0.0/9"), "10.213.0.0/24"},
		{"gantry", use("172.16.0.0/12", "10.0.0.0/8"), "192.168.0.0/24"},
		{"gantry", use("172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"), ""},
	} {
		p, err := pickSubnet(c.instance, c.use)
		if c.want == "" && !errdefs.IsResourceExhausted(err) || c.want != "" && p.String() != c.want {
			t.Errorf("%v: %s, %v", c, p, err)
		}
	}
	a, _ := pickSubnet("gantry-00000001", nil)
	c, _ := pickSubnet("gantry-00000002", nil)
	if a == c {
		t.Errorf("two instances begin at %s", a)
	}
}

// The kernel's answer must hold this machine's own addresses.
func TestKernel(t *testing.T) {
	use, err := kernel{}.InUse(netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(use, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr("127.0.0.1")) }) {
		t.Errorf("in use: %v, and loopback is not in it", use)
	}
	for _, p := range use {
		if p.Bits() == 0 {
			t.Errorf("the default route is in the way of everything: %v", use)
		}
	}
}

func FuzzAsked(f *testing.F) {
	f.Add("tcp", "127.0.0.1", uint32(80), uint32(80), uint32(1))
	f.Add("", "::", uint32(0), uint32(65535), uint32(65535))
	f.Fuzz(func(t *testing.T, proto, host string, from, to, count uint32) {
		ports, err := asked([]*containersv1.PortMapping{{Protocol: proto, HostAddress: host, HostPort: from, ContainerPort: to, Count: count}})
		if err != nil {
			return
		}
		ws, err := wire(ports)
		if err != nil {
			t.Fatal(err)
		}
		w := ws[0]
		if uint32(w.Host.Port()) != from || uint32(w.Container) != to || int(w.Container)+int(w.Count) > 1<<16 || int(w.Host.Port())+int(w.Count) > 1<<16 {
			t.Errorf("%v from %d %d %d", w, from, to, count)
		}
	})
}
