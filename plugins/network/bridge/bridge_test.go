package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/network/networktest"
)

// world is a laboratory with a driver, one network and one container that serves port 80.
type world struct {
	*testing.T
	l    *networktest.Lab
	d    *Driver
	n    network.Network
	a    network.Endpoint
	from netip.Addr // the container's address
}

func newWorld(t *testing.T) *world {
	t.Helper()
	l := networktest.NewLab(t)
	d, ok := newDriver(t, t.TempDir()).(*Driver)
	if !ok {
		t.Fatal("not a *Driver")
	}
	w := &world{T: t, l: l, d: d}
	w.n = network.Network{
		ID: "n", Name: "bridge", Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.77.1.1")},
	}
	return w
}

// live makes the network and the container.
func (w *world) live() *world {
	w.Helper()
	w.create()
	w.a = w.endpoint("a", 2)
	w.from = w.a.Addresses[0].Addr()
	w.l.Serve(w.a.NetNS, "a", "tcp", netip.AddrPortFrom(w.from, 80))
	w.l.Serve(w.l.Outside, "outside", "tcp", netip.AddrPortFrom(networktest.FarAddr, 80))
	return w
}

func (w *world) create() {
	w.Helper()
	_, err := w.d.CreateNetwork(w.Context(), w.n)
	w.must(err)
	w.Cleanup(func() { w.must(w.d.DeleteNetwork(context.Background(), w.n)) }) //nolint:usetesting // the test's own context has ended
}

func (w *world) endpoint(id string, host byte) network.Endpoint {
	w.Helper()
	e := network.Endpoint{ID: id, NetNS: w.l.NetNS(), Interface: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 1, host}), 24)}}
	_, err := w.d.Attach(w.Context(), w.n, e)
	w.must(err)
	return e
}

func (w *world) publish(ports ...network.Port) {
	w.Helper()
	w.must(w.d.Publish(w.Context(), w.n, w.a, ports))
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) nft(fn func(c *nftables.Conn)) {
	w.Helper()
	c, err := nftables.New()
	w.must(err)
	fn(c)
	w.must(c.Flush())
}

// works asks in every direction.
func (w *world) works() {
	w.Helper()
	w.l.Reaches(w.a.NetNS, "tcp", netip.AddrPortFrom(networktest.FarAddr, 80), "outside")
	for _, from := range []string{"", w.l.Outside, w.a.NetNS} {
		w.l.Reaches(from, "tcp", netip.AddrPortFrom(networktest.HostAddr, 8080), "a")
	}
	w.l.Reaches("", "tcp", netip.MustParseAddrPort("127.0.0.1:8080"), "a")
}

var web = network.Port{Protocol: "tcp", Host: netip.AddrPortFrom(netip.Addr{}, 8080), Container: 80}

// loopbackVia makes a namespace send what is for 127.0.0.0/8 to a router, as somebody with bad intentions would.
func (w *world) loopbackVia(ns string, via netip.Addr) {
	w.Helper()
	w.l.In(ns, func() {
		for _, f := range []string{"all", "eth0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+f+"/route_localnet", []byte("1"), 0); err != nil {
				w.Error(err)
			}
		}
		// Without its own loopback address nothing there takes the packets, or their answers, for strays.
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}})
		}
		if err != nil {
			w.Error(err)
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			w.Error(err)
			return
		}
		_, dst, _ := net.ParseCIDR("127.0.0.0/8")
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: via.AsSlice()}); err != nil {
			w.Error(err)
		}
	})
}

// TestLoopbackGuard: route_localnet is on for the bridge, so that ports can be published on
// 127.0.0.1; a container must not reach what the host itself serves there (as CVE-2020-8558 let it).
func TestLoopbackGuard(t *testing.T) {
	w := newWorld(t).live()
	w.l.Serve("", "secret", "tcp", netip.MustParseAddrPort("127.0.0.1:6379"))
	w.loopbackVia(w.a.NetNS, w.n.Gateways[0])
	w.l.Misses(w.a.NetNS, "tcp", netip.MustParseAddrPort("127.0.0.1:6379"))
	// Without the guard it does.
	w.nft(func(c *nftables.Conn) { c.FlushChain(w.d.rules.chain("raw")) })
	w.l.Reaches(w.a.NetNS, "tcp", netip.MustParseAddrPort("127.0.0.1:6379"), "secret")
}

// TestNeighbourGuard: what is published on 127.0.0.1 is for the host alone; a neighbour on the wire who
// sends packets for that address must not get through by way of the translation.
func TestNeighbourGuard(t *testing.T) {
	w := newWorld(t).live()
	p := web
	p.Host = netip.MustParseAddrPort("127.0.0.1:8080")
	w.publish(p)
	w.l.Reaches("", "tcp", p.Host, "a")
	w.loopbackVia(w.l.Outside, networktest.HostAddr)
	w.l.Misses(w.l.Outside, "tcp", p.Host)
	rules, err := w.d.rules.list(nftables.TableFamilyINet, w.d.instance, "prerouting")
	w.must(err)
	w.nft(func(c *nftables.Conn) {
		w.must(c.DelRule(&nftables.Rule{Table: w.d.rules.nft(), Chain: w.d.rules.chain("prerouting"), Handle: rules[0].handle}))
	})
	w.l.Reaches(w.l.Outside, "tcp", p.Host, "a")
}

// TestAdvertisementGuard: a container must not be able to become the host's IPv6 router (CVE-2020-13401).
func TestAdvertisementGuard(t *testing.T) {
	w := newWorld(t).live()
	raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/gytest0/disable_ipv6")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("THIS KERNEL HAS NO IPV6: nothing to guard")
	}
	w.must(err)
	if string(bytes.TrimSpace(raw)) != "1" {
		t.Errorf("disable_ipv6 of the bridge is %s", raw)
	}
}

func TestForwardingIsPutBack(t *testing.T) {
	w := newWorld(t)
	read := func() string {
		raw, err := os.ReadFile(ipForward)
		w.must(err)
		return string(bytes.TrimSpace(raw))
	}
	was := read()
	t.Cleanup(func() { _ = os.WriteFile(ipForward, []byte(was), 0) })
	for _, c := range []struct {
		name, before, after string
		other               func() func()
	}{
		{"we turned it on", "0", "0", nil},
		{"it was on", "1", "1", nil},
		{"another has come to need it", "0", "1", func() func() {
			la := netlink.NewLinkAttrs()
			la.Name = "other0"
			w.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}))
			return func() { w.must(netlink.LinkDel(&netlink.Bridge{LinkAttrs: la})) }
		}},
		{"another filters what is passed on", "0", "1", func() func() {
			w.foreign("FORWARD")
			return w.noForeign
		}},
	} {
		w.must(os.WriteFile(ipForward, []byte(c.before), 0))
		_, err := w.d.CreateNetwork(t.Context(), w.n)
		w.must(err)
		if read() != "1" {
			t.Errorf("%s: not turned on", c.name)
		}
		undo := func() {}
		if c.other != nil {
			undo = c.other()
		}
		w.must(w.d.DeleteNetwork(t.Context(), w.n))
		if read() != c.after {
			t.Errorf("%s: %s afterwards, want %s", c.name, read(), c.after)
		}
		undo()
		_ = os.Remove(w.d.forwardingMark())
	}
}

// TestForwardingIsShared: of several daemons it is the last to leave who turns off what the first has turned
// on, whichever that is, and nobody turns off what was on before all of them.
func TestForwardingIsShared(t *testing.T) {
	w := newWorld(t)
	other := newDriver(w, t.TempDir()).(*Driver) //nolint:forcetypeassert // a test
	other.instance, other.defaultBridge, other.rules.table = "gantry-other", "gyother0", "gantry-other"
	n := network.Network{ID: "m", Name: "bridge", Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.78.0.1")}}
	forwards := func() string {
		raw, err := os.ReadFile(ipForward)
		w.must(err)
		return string(bytes.TrimSpace(raw))
	}
	t.Cleanup(func() { _ = os.WriteFile(ipForward, []byte("0"), 0) })
	for _, before := range []string{"0", "1"} {
		for _, firstLeavesFirst := range []bool{true, false} {
			w.must(os.WriteFile(ipForward, []byte(before), 0))
			for range 2 { // again: as the next process would
				w.d.forwards, other.forwards = false, false
				_, err := w.d.CreateNetwork(t.Context(), w.n)
				w.must(err)
				_, err = other.CreateNetwork(t.Context(), n)
				w.must(err)
			}
			leave := []func() error{
				func() error { return w.d.DeleteNetwork(t.Context(), w.n) },
				func() error { return other.DeleteNetwork(t.Context(), n) },
			}
			if !firstLeavesFirst {
				slices.Reverse(leave)
			}
			w.must(leave[0]())
			if is := forwards(); is != "1" {
				t.Errorf("%s before; one has left, and it is %s", before, is)
			}
			w.must(leave[1]())
			if is := forwards(); is != before {
				t.Errorf("%s before; both have left (the first of them first: %v), and it is %s", before, firstLeavesFirst, is)
			}
		}
	}
}

// TestFlushed: an operator, or a restart of the nftables service, flushed the ruleset.
func TestFlushed(t *testing.T) {
	for name, mend := range map[string]func(w *world){
		"create again": func(w *world) {
			_, err := w.d.CreateNetwork(w.Context(), w.n)
			w.must(err)
		},
		"the next container": func(w *world) { w.endpoint("b", 3) },
		"published again":    func(w *world) { w.publish(web) },
		"by the next process": func(w *world) {
			w.d, _ = newDriver(w, w.d.state).(*Driver)
			_, err := w.d.CreateNetwork(w.Context(), w.n)
			w.must(err)
			w.publish(web) // as the daemon does when it starts
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).live()
			w.publish(web)
			w.works()
			w.nft(func(c *nftables.Conn) { c.FlushRuleset() })
			w.l.Misses("", "tcp", netip.MustParseAddrPort("127.0.0.1:8080"))
			mend(w)
			w.works()
		})
	}
	t.Run("only the rules", func(t *testing.T) {
		w := newWorld(t).live()
		w.publish(web)
		w.nft(func(c *nftables.Conn) { c.FlushTable(w.d.rules.nft()) })
		w.l.Misses("", "tcp", netip.MustParseAddrPort("127.0.0.1:8080"))
		w.endpoint("b", 3)
		w.works()
	})
}

// foreign makes the table that iptables would, with a FORWARD chain that drops, and others.
func (w *world) foreign(chains ...string) {
	w.Helper()
	drop := nftables.ChainPolicyDrop
	w.nft(func(c *nftables.Conn) {
		t := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
		for _, name := range chains {
			ch := &nftables.Chain{Name: name, Table: t}
			if name == "FORWARD" {
				ch.Type, ch.Hooknum, ch.Priority, ch.Policy = nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, &drop
			}
			c.AddChain(ch)
		}
	})
	if slices.Contains(chains, "DOCKER-USER") {
		out, err := exec.Command("iptables", "-A", "FORWARD", "-j", "DOCKER-USER").CombinedOutput()
		if err != nil {
			w.Fatalf("write a jump (\"make setup\" installs iptables): %v %s", err, out)
		}
	}
}

func (w *world) noForeign() {
	w.Helper()
	w.nft(func(c *nftables.Conn) { c.DelTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}) })
}

func (w *world) ours(chain string) (n int) {
	w.Helper()
	rules, err := w.d.rules.list(nftables.TableFamilyIPv4, "filter", chain)
	w.must(err)
	for _, r := range rules {
		if strings.HasPrefix(r.comment, w.d.instance+": ") {
			n++
		}
	}
	return n
}

// TestForeign: another firewall drops what is forwarded, from before or from after us. Ours is let through, by
// rules that iptables can read, and that go with the network.
func TestForeign(t *testing.T) {
	for _, c := range []struct {
		name   string
		chains []string
		target string
		late   bool
	}{
		{"iptables", []string{"FORWARD"}, "FORWARD", false},
		{"docker", []string{"FORWARD", "DOCKER-USER"}, "DOCKER-USER", false},
		{"comes later", []string{"FORWARD"}, "FORWARD", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.late {
				w.live().publish(web)
				w.foreign(c.chains...)
				w.l.Misses(w.a.NetNS, "tcp", netip.AddrPortFrom(networktest.FarAddr, 80)) // it does drop
				w.endpoint("b", 3)
			} else {
				w.foreign(c.chains...)
				w.live().publish(web)
			}
			t.Cleanup(w.noForeign)
			w.works()
			for range 2 {
				_, err := w.d.CreateNetwork(t.Context(), w.n)
				w.must(err)
			}
			if n := w.ours(c.target); n != 2 {
				t.Errorf("%d rules of ours, want 2\n%s", n, networktest.Ruleset())
			}
			if out, err := exec.Command("iptables", "-S", c.target).CombinedOutput(); err != nil || !strings.Contains(string(out), "-i gytest0") || !strings.Contains(string(out), `--comment "gantry-test: from gytest0" -j ACCEPT`) {
				t.Errorf("iptables cannot read our rules: %v\n%s", err, out)
			}
			w.must(w.d.DeleteNetwork(t.Context(), w.n))
			if n := w.ours(c.target); n != 0 {
				t.Errorf("%d rules of ours are left", n)
			}
		})
	}
}

// TestBesideDocker runs a real dockerd in this test's namespace.
func TestBesideDocker(t *testing.T) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Fatal(`no dockerd: "make setup" installs docker.io`)
	}
	if testing.Short() {
		t.Skip("short: dockerd takes seconds to start")
	}
	w := newWorld(t)
	before := networktest.State(t)
	dir, err := os.MkdirTemp("", "gd") // short: it holds sockets
	w.must(err)
	socket := filepath.Join(dir, "d.sock")
	c := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "-H", "unix://"+socket,
		"--storage-driver", "vfs", "--bip", "10.99.0.1/24")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	w.must(c.Start())
	stop := func() {
		if c.ProcessState == nil {
			_ = c.Process.Signal(syscall.SIGTERM)
			_ = c.Wait()
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // its containerd
		}
		_ = unix.Unmount(dir+"/exec/netns", unix.MNT_DETACH)
		_ = os.RemoveAll(dir)
	}
	t.Cleanup(func() {
		stop()
		w.cleanDocker(before)
	})
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		r, err := client.Get("http://docker/_ping")
		if err == nil {
			_ = r.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("dockerd does not answer: %v\n%s", err, said.String())
		}
	}
	if rules, _ := exec.Command("iptables", "-S", "FORWARD").CombinedOutput(); !strings.Contains(string(rules), "-P FORWARD DROP") {
		t.Fatalf("dockerd does not drop what is forwarded, so this proves nothing:\n%s", rules)
	}
	_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0)
	w.live().publish(web)
	w.works()
	b := w.endpoint("b", 3)
	w.l.Reaches(b.NetNS, "tcp", netip.AddrPortFrom(w.from, 80), "a")
	w.l.Reaches(b.NetNS, "tcp", netip.AddrPortFrom(networktest.HostAddr, 8080), "a")
	if n := w.ours("DOCKER-USER"); n != 2 {
		t.Errorf("%d rules of ours in DOCKER-USER, want 2", n)
	}
	// Docker reads its chains when it starts again, ours in them.
	if out, err := exec.Command("iptables", "-S", "DOCKER-USER").CombinedOutput(); err != nil || !strings.Contains(string(out), "gytest0") {
		t.Errorf("iptables cannot read our rules: %v\n%s", err, out)
	}
}

// cleanDocker takes away what dockerd leaves on the host when it ends: it means to come back.
func (w *world) cleanDocker(before []string) {
	w.Helper()
	if l, err := netlink.LinkByName("docker0"); err == nil {
		w.must(netlink.LinkDel(l))
	}
	c, err := nftables.New()
	w.must(err)
	tables, err := c.ListTables()
	w.must(err)
	for _, t := range tables {
		if !slices.Contains(before, "table "+t.Name) && t.Name != w.d.instance {
			c.DelTable(t)
		}
	}
	w.must(c.Flush())
	for _, s := range before {
		if v, ok := strings.CutPrefix(s, "ip_forward "); ok {
			w.must(os.WriteFile(ipForward, []byte(v), 0))
		}
	}
}

// TestNotOurs: what bears another name is not touched, whatever it is called.
func TestNotOurs(t *testing.T) {
	w := newWorld(t)
	la := netlink.NewLinkAttrs()
	la.Name = "gytest0"
	theirs := &netlink.Bridge{LinkAttrs: la}
	w.must(netlink.LinkAdd(theirs))
	defer func() { w.must(netlink.LinkDel(theirs)) }()
	_, err := w.d.CreateNetwork(t.Context(), w.n)
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("create on another's bridge: %v", err)
	}
	w.must(netlink.LinkSetAlias(theirs, "gantry-other network n"))
	if _, err := w.d.CreateNetwork(t.Context(), w.n); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create on another daemon's bridge: %v", err)
	}
	w.must(netlink.LinkSetAlias(theirs, "gantry-test network m"))
	if _, err := w.d.CreateNetwork(t.Context(), w.n); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "network m") {
		t.Errorf("create on another network's bridge: %v", err)
	}
	w.must(netlink.LinkSetAlias(theirs, "somebody's"))
	w.must(w.d.DeleteNetwork(t.Context(), w.n))
	if _, err := netlink.LinkByName("gytest0"); err != nil {
		t.Errorf("their bridge: %v", err)
	}
	w.must(w.d.Detach(t.Context(), w.n, network.Endpoint{ID: "a", NetNS: "/nonexistent"}))
}

// TestRenamed: an endpoint's link is found by what it says of itself.
func TestRenamed(t *testing.T) {
	w := newWorld(t).live()
	l, err := netlink.LinkByName(w.d.hostName("a"))
	w.must(err)
	w.must(netlink.LinkSetDown(l))
	w.must(netlink.LinkSetName(l, "renamed"))
	w.must(w.d.Detach(t.Context(), w.n, network.Endpoint{ID: "a", NetNS: "/nonexistent"}))
	for h := range w.d.Endpoints(t.Context()) {
		t.Errorf("endpoint %s is there still", h.EndpointID)
	}
}

// TestSideBySide: two daemons have their own tables and links, and do not see each other's.
func TestSideBySide(t *testing.T) {
	w := newWorld(t).live()
	w.publish(web)
	o := New()
	defer o.Close() //nolint:errcheck // never fails
	o.instance, o.defaultBridge, o.rules.table = "gantry-other", "gyother0", "gantry-other"
	n := network.Network{ID: "m", Name: "bridge", Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.78.0.1")}}
	_, err := o.CreateNetwork(t.Context(), n)
	w.must(err)
	e := network.Endpoint{ID: "x", NetNS: w.l.NetNS(), Addresses: []netip.Prefix{netip.MustParsePrefix("10.78.3.4/16")}}
	_, err = o.Attach(t.Context(), n, e)
	w.must(err)
	w.must(o.Publish(t.Context(), n, e, []network.Port{{Protocol: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:8090"), Container: 80}}))
	w.l.Serve(e.NetNS, "x", "tcp", netip.MustParseAddrPort("10.78.3.4:80"))
	w.l.Misses(w.a.NetNS, "tcp", netip.MustParseAddrPort("10.78.3.4:80"))
	w.l.Misses(e.NetNS, "tcp", netip.AddrPortFrom(w.from, 80))
	w.l.Reaches(w.l.Outside, "tcp", netip.AddrPortFrom(networktest.HostAddr, 8090), "x")
	for h := range o.Endpoints(t.Context()) {
		if h.EndpointID != "x" {
			t.Errorf("the other daemon sees %v", h)
		}
	}
	w.must(o.DeleteNetwork(t.Context(), n))
	w.works()
}

// TestTwoNetworks: a container on two has two interfaces and goes out by the first.
func TestTwoNetworks(t *testing.T) {
	w := newWorld(t).live()
	m := network.Network{ID: "m", Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.78.0.1")}}
	_, err := w.d.CreateNetwork(t.Context(), m)
	w.must(err)
	t.Cleanup(func() { w.must(w.d.DeleteNetwork(context.Background(), m)) }) //nolint:usetesting // the test's own context has ended
	e := network.Endpoint{ID: "a2", NetNS: w.a.NetNS, Interface: "eth1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.78.3.4/16")}}
	for range 2 {
		_, err := w.d.Attach(t.Context(), m, e)
		w.must(err)
	}
	// The name is taken in the namespace: said, and nothing made.
	bad := e
	bad.ID, bad.Interface, bad.Addresses = "a3", "eth0", []netip.Prefix{netip.MustParsePrefix("10.78.3.5/16")}
	if _, err := w.d.Attach(t.Context(), m, bad); !errdefs.IsAlreadyExists(err) {
		t.Errorf("attach as eth0 again: %v", err)
	}
	w.l.Serve(w.a.NetNS, "a2", "tcp", netip.MustParseAddrPort("10.78.3.4:81"))
	w.l.Reaches("", "tcp", netip.MustParseAddrPort("10.78.3.4:81"), "a2")
	w.l.Reaches(w.a.NetNS, "tcp", netip.AddrPortFrom(networktest.FarAddr, 80), "outside")
}

// TestHalfMade: the driver was killed between making the pair and furnishing it.
func TestHalfMade(t *testing.T) {
	w := newWorld(t)
	w.create()
	p, err := w.d.plan(w.n)
	w.must(err)
	e := network.Endpoint{ID: "a", NetNS: w.l.NetNS(), Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.1.2/24")}}
	s, err := w.d.seat(p, e)
	w.must(err)
	c, err := dial(unix.NETLINK_ROUTE)
	w.must(err)
	defer c.close()
	br, err := findLink(c, p.bridge)
	w.must(err)
	ns, inside, err := enter(s.netns)
	w.must(err)
	defer inside.close()
	defer unix.Close(ns) //nolint:errcheck // a descriptor
	w.must(c.first(pair(ns, s, br, owner{w.d.instance, p.id, s.id}.String())))
	_, err = w.d.Attach(t.Context(), w.n, e)
	w.must(err)
	w.l.Serve(e.NetNS, "a", "tcp", netip.MustParseAddrPort("10.77.1.2:80"))
	w.l.Reaches("", "tcp", netip.MustParseAddrPort("10.77.1.2:80"), "a")
}

// TestCheck breaks one thing after the other; each is told, and mended by CreateNetwork and Publish, as "check --repair"
// calls them.
func TestCheck(t *testing.T) {
	w := newWorld(t).live()
	w.publish(web)
	differences := func() (all []string) {
		t.Helper()
		for d, err := range w.d.Check(t.Context(), w.n, []network.Want{{Endpoint: w.a, Ports: []network.Port{web}}}) {
			w.must(err)
			all = append(all, d.Subject+": "+d.Detail)
		}
		return all
	}
	link := func(name string) netlink.Link {
		t.Helper()
		l, err := netlink.LinkByName(name)
		w.must(err)
		return l
	}
	host := w.d.hostName("a")
	t.Cleanup(func() {
		if _, err := netlink.LinkByName("gytest0"); err == nil {
			_ = os.WriteFile(ipForward, []byte("0"), 0)
		}
	})
	for _, c := range []struct {
		says  string
		spoil func()
	}{
		{"bridge gytest0: it is not there", func() { w.must(netlink.LinkDel(link("gytest0"))) }},
		{"bridge gytest0: it is down", func() { w.must(netlink.LinkSetDown(link("gytest0"))) }},
		{"bridge gytest0: it has not the address", func() {
			a, err := netlink.ParseAddr("10.77.1.1/24")
			w.must(err)
			w.must(netlink.AddrDel(link("gytest0"), a))
		}},
		{"endpoint a: its link " + host + " is down", func() { w.must(netlink.LinkSetDown(link(host))) }},
		{"endpoint a: its link " + host + " is not on bridge", func() { w.must(netlink.LinkSetNoMaster(link(host))) }},
		{"sysctl net/ipv4/ip_forward: it is off", func() { w.must(os.WriteFile(ipForward, []byte("0"), 0)) }},
		{"sysctl net/ipv4/conf/gytest0/route_localnet: it is off", func() {
			w.must(os.WriteFile("/proc/sys/net/ipv4/conf/gytest0/route_localnet", []byte("0"), 0))
		}},
		{"table inet gantry-test: rules for bridge gytest0", func() {
			w.nft(func(c *nftables.Conn) { c.FlushChain(w.d.rules.chain("into-gytest0")) })
		}},
		{"table inet gantry-test: set sources has no element", func() {
			w.nft(func(c *nftables.Conn) { c.FlushSet(w.d.rules.set(mapSources)) })
		}},
		{"port *:8080/tcp of endpoint a: it should be published", func() {
			w.nft(func(c *nftables.Conn) { c.FlushSet(w.d.rules.set(mapPortAll)) })
		}},
		{"port *:9999/tcp of endpoint nobody: it is published", func() {
			p := port{protocol: unix.IPPROTO_TCP, first: 9999, last: 9999, to: w.from, at: 80, owner: "nobody"}
			w.nft(func(c *nftables.Conn) {
				_, e := p.element()
				w.must(c.SetAddElements(w.d.rules.set(mapPortAll), []nftables.SetElement{e}))
			})
		}},
		{"chain FORWARD: it drops", func() { w.foreign("FORWARD") }},
	} {
		if d := differences(); len(d) != 0 {
			t.Fatalf("before %q: %v", c.says, d)
		}
		c.spoil()
		if d := differences(); !slices.ContainsFunc(d, func(s string) bool { return strings.HasPrefix(s, c.says) }) {
			t.Errorf("want %q, got %v", c.says, d)
		}
		_, err := w.d.CreateNetwork(t.Context(), w.n)
		w.must(err)
		w.publish(web)
	}
	if d := differences(); len(d) != 0 {
		t.Errorf("at the end: %v", d)
	}
	w.works()
	w.noForeign()
}

// TestLateCaller: a call whose caller has gone while it waited for its turn does nothing.
func TestLateCaller(t *testing.T) {
	w := newWorld(t)
	w.create()
	e := network.Endpoint{ID: "a", NetNS: w.l.NetNS(), Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.1.2/24")}}
	end, err := w.d.turns.take(t.Context(), "a")
	w.must(err)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the connection broke")
	done := make(chan error)
	go func() {
		_, err := w.d.Attach(ctx, w.n, e)
		done <- err
	}()
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("attach: %v", err)
	}
	end()
	for h := range w.d.Endpoints(t.Context()) {
		t.Errorf("made for nobody: %v", h)
	}
	if len(w.d.turns.held) != 0 {
		t.Errorf("turns left: %v", w.d.turns.held)
	}
}

func TestOwner(t *testing.T) {
	for _, o := range []owner{{"gantry", "n", ""}, {"gantry-0123abcd", strings.Repeat("n", 64), strings.Repeat("e", 64)}} {
		if got := parseOwner(o.String()); got != o || len(o.String()) > 255 {
			t.Errorf("%q: %+v", o.String(), got)
		}
	}
	for _, alias := range []string{"", "eth0", "gantry network", "gantry network n endpoint", "a b c d e", "my network is fast"} {
		if got := parseOwner(alias); got.endpoint != "" || got.instance == "gantry" {
			t.Errorf("%q: %+v", alias, got)
		}
	}
}

func TestExpand(t *testing.T) {
	s := seat{id: "e", address: netip.MustParsePrefix("10.0.0.2/24")}
	for _, p := range []network.Port{
		{Protocol: "tcp", Host: netip.MustParseAddrPort("1.2.3.4:0"), Container: 1},
		{Protocol: "tcp", Host: netip.MustParseAddrPort("1.2.3.4:1"), Container: 0},
		{Protocol: "sctp", Host: netip.MustParseAddrPort("1.2.3.4:1"), Container: 1},
		{Protocol: "tcp", Host: netip.MustParseAddrPort("1.2.3.4:65535"), Container: 1, Count: 2},
		{Protocol: "tcp", Host: netip.MustParseAddrPort("1.2.3.4:1"), Container: 65535, Count: 2},
		{Protocol: "tcp", Host: netip.MustParseAddrPort("1.2.3.4:1"), Container: 2, Count: 20000},
	} {
		if _, err := expand([]network.Port{p}, s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := expand([]network.Port{{Protocol: "tcp", Host: netip.MustParseAddrPort("[fd00::1]:1"), Container: 1}}, s); !errdefs.IsNotImplemented(err) {
		t.Errorf("IPv6: %v", err)
	}
	if _, err := expand([]network.Port{web, {Protocol: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:8000"), Container: 8000, Count: 100}}, s); !errdefs.IsInvalidArgument(err) {
		t.Errorf("twice: %v", err)
	}
	ps, err := expand([]network.Port{{Protocol: "udp", Host: netip.MustParseAddrPort("[::]:65535"), Container: 65535, Count: 1}, {Protocol: "tcp", Host: netip.MustParseAddrPort("[::ffff:1.2.3.4]:10"), Container: 20, Count: 2}}, s)
	if err != nil || fmt.Sprint(ps) != "[*:65535/udp 1.2.3.4:10/tcp 1.2.3.4:11/tcp]" {
		t.Errorf("%v, %v", ps, err)
	}
	for _, p := range ps {
		id, e := p.element()
		if got, ok := parsePort(id, e); !ok || got != p {
			t.Errorf("%v comes back as %v", p, got)
		}
	}
}

func FuzzParsePort(f *testing.F) {
	f.Add(uint8(mapPortAll), []byte{6, 0, 0, 0, 31, 144, 0, 0}, []byte{}, []byte{10, 0, 0, 2, 0, 80, 0, 0})
	f.Add(uint8(mapRangeAt), []byte{17, 0, 0, 0, 1, 2, 3, 4, 0, 80, 0, 0}, []byte{17, 0, 0, 0, 1, 2, 3, 4, 0, 90, 0, 0}, []byte{10, 0, 0, 2})
	f.Fuzz(func(t *testing.T, id uint8, key, end, val []byte) {
		p, ok := parsePort(uint32(id), nftables.SetElement{Key: key, KeyEnd: end, Val: val})
		if ok && !p.to.IsValid() {
			t.Errorf("%v without a container", p)
		}
	})
}

func FuzzParseOwner(f *testing.F) {
	f.Add("gantry network n endpoint e")
	f.Fuzz(func(t *testing.T, alias string) {
		if o := parseOwner(alias); o != (owner{}) && o.endpoint != "" && o.String() != alias {
			t.Errorf("%q is read as %q", alias, o)
		}
	})
}

func FuzzParseSockets(f *testing.F) {
	f.Add([]byte("  sl  local_address\n   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n"))
	f.Add([]byte("   0: 00000000000000000000000001000000:0016 0:0 0A 0:0 00:0 0 0 0 99 1 0"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, s := range parseSockets(bytes.NewReader(raw), false) {
			if !s.local.Addr().IsValid() {
				t.Errorf("%+v", s)
			}
		}
	})
}

func FuzzParseLink(f *testing.F) {
	head := make([]byte, unix.SizeofIfInfomsg)
	f.Add(append(head, binary.NativeEndian.AppendUint32(nil, 8|unix.IFLA_MTU<<16)...))
	f.Fuzz(func(_ *testing.T, raw []byte) { parseLink(raw) })
}

func TestParseLocal(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("BIG-ENDIAN: the samples are not")
	}
	for in, want := range map[string]string{
		"0100007F:18EB":                         "127.0.0.1:6379",
		"00000000000000000000000001000000:0016": "[::1]:22",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80",
		"":                                      "invalid AddrPort",
		"0100007F":                              "invalid AddrPort",
		"0100007F:18EBX":                        "invalid AddrPort",
	} {
		if got, _ := parseLocal(in); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestMatchFlow(t *testing.T) {
	flow := func(proto uint8, dport uint16, container string) *netlink.ConntrackFlow {
		return &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{Protocol: proto, DstPort: dport}, Reverse: netlink.IPTuple{SrcIP: net.ParseIP(container)},
		}
	}
	p := port{protocol: unix.IPPROTO_UDP, first: 53, last: 54, to: netip.MustParseAddr("10.0.0.2")}
	q := p
	q.protocol = unix.IPPROTO_TCP
	for _, c := range []struct {
		f    flows
		flow *netlink.ConntrackFlow
		want bool
	}{
		{flows{gone: []port{p}}, flow(17, 54, "10.0.0.2"), true},
		{flows{gone: []port{p}}, flow(17, 55, "10.0.0.2"), false},
		{flows{gone: []port{p}}, flow(17, 53, "192.0.2.1"), false},
		{flows{gone: []port{q}}, flow(6, 53, "10.0.0.2"), true},
		{flows{fresh: []port{p}}, flow(17, 53, "192.0.2.1"), true},
		{flows{fresh: []port{p}}, flow(17, 53, "10.0.0.2"), false},
		{flows{fresh: []port{q}}, flow(6, 53, "192.0.2.1"), false},
	} {
		if got := c.f.MatchConntrackFlow(c.flow); got != c.want {
			t.Errorf("%+v %+v: %v", c.f, c.flow, got)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	for _, ports := range []int{0, 1} {
		b.Run(fmt.Sprint(ports, "ports"), func(b *testing.B) {
			l := networktest.NewLab(b)
			d, _ := newDriver(b, b.TempDir()).(*Driver)
			n := network.Network{ID: "n", Name: "bridge", Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.77.0.1")}}
			if _, err := d.CreateNetwork(b.Context(), n); err != nil {
				b.Fatal(err)
			}
			var attach, publish, detach time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				e := network.Endpoint{ID: fmt.Sprint("e", i), NetNS: l.NetNS(), Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(1 + i/200%200), byte(2 + i%200)}), 16)}}
				b.StartTimer()
				t0 := time.Now()
				if _, err := d.Attach(b.Context(), n, e); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if ports > 0 {
					if err := d.Publish(b.Context(), n, e, []network.Port{web}); err != nil {
						b.Fatal(err)
					}
				}
				t2 := time.Now()
				e.NetNS, attach, publish = "", attach+t1.Sub(t0), publish+t2.Sub(t1)
				if err := d.Detach(b.Context(), n, e); err != nil {
					b.Fatal(err)
				}
				detach += time.Since(t2)
				b.StopTimer()
				l.Drop(filepath.Join(filepath.Dir(l.Outside), fmt.Sprint("ns", i+2)))
				b.StartTimer()
			}
			us := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N) }
			b.ReportMetric(us(attach), "µs/attach")
			b.ReportMetric(us(publish), "µs/publish")
			b.ReportMetric(us(detach), "µs/detach")
			if err := d.DeleteNetwork(context.Background(), n); err != nil { //nolint:usetesting // the benchmark's own context may have ended
				b.Fatal(err)
			}
		})
	}
}
