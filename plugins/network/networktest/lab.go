// Package networktest holds the suite that every network driver passes, and the laboratory
// it runs in: the test process moves into a network namespace of its own, which
// has one neighbour by a cable and nothing else, so that nothing of the machine is touched.
package networktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const inside = "GANTRY_NETWORKTEST_INSIDE"

// Main is what TestMain calls: it runs the tests in a network namespace of their own. Without
// the privilege to make one the tests run where they are, and Lab skips them.
func Main(m *testing.M) {
	if os.Getenv(inside) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), inside+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal comes when this thread ends
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Addresses of the laboratory, out of those set aside for documentation (RFC 5737). The cable's
// packets are smaller than usual, so that a driver that does not look is found out.
var (
	HostAddr    = netip.MustParseAddr("198.51.100.1") // of the host, on the cable
	OutsideAddr = netip.MustParseAddr("198.51.100.2") // of the neighbour, on the cable
	FarAddr     = netip.MustParseAddr("203.0.113.5")  // of the neighbour, known to the host by its default route only
)

// UplinkMTU is that of the cable.
const UplinkMTU = 1400

// Lab is a host with an uplink. The test's own namespace is the host.
type Lab struct {
	t       testing.TB
	dir     string
	Outside string // path of the neighbour's network namespace
	next    int
}

// NewLab builds a laboratory that goes with the test, and fails the test if something else stays.
func NewLab(t testing.TB) *Lab {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("NEEDS ROOT: network namespaces are made; TestMain must call networktest.Main")
	}
	l := &Lab{t: t, dir: t.TempDir()}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	// A new namespace begins with the host's value, and what drivers and dockerd do depends on it.
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0))
	before := State(t)
	t.Cleanup(func() { l.compare(before) })

	l.Outside = l.NetNS()
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU = "uplink0", UplinkMTU
	fd, err := os.Open(l.Outside)
	must(t, err)
	defer fd.Close()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerMTU: UplinkMTU, PeerNamespace: netlink.NsFd(fd.Fd())}))
	up, err := netlink.LinkByName("uplink0")
	must(t, err)
	t.Cleanup(func() { _ = netlink.LinkDel(up) })
	setUp(t, "uplink0", netip.PrefixFrom(HostAddr, 24))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: OutsideAddr.AsSlice()}))
	l.In(l.Outside, func() {
		setUp(t, "eth0", netip.PrefixFrom(OutsideAddr, 24))
		setUp(t, "lo", netip.PrefixFrom(FarAddr, 32))
	})
	return l
}

// NetNS pins a fresh network namespace, until the test ends or Drop is called, and returns its path.
func (l *Lab) NetNS() string {
	l.t.Helper()
	l.next++
	path := filepath.Join(l.dir, fmt.Sprint("ns", l.next))
	must(l.t, os.WriteFile(path, nil, 0o600))
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		errs <- err
	}()
	must(l.t, <-errs)
	l.t.Cleanup(func() { l.Drop(path) })
	return path
}

// Drop lets go of a network namespace, as the daemon does when a container has ended.
func (l *Lab) Drop(path string) {
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}

// In runs fn in a network namespace ("" is the host's). Sockets made there stay there. fn must not call t.FailNow.
func (l *Lab) In(path string, fn func()) {
	l.t.Helper()
	if path == "" {
		fn()
		return
	}
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			fn()
		}
		errs <- err
	}()
	must(l.t, <-errs)
}

// Serve answers on a port in a network namespace, over tcp or udp, with its name and whom it sees, until the test ends.
func (l *Lab) Serve(path, name, proto string, at netip.AddrPort) {
	l.t.Helper()
	var err error
	l.In(path, func() {
		if proto == "udp" {
			var c *net.UDPConn
			if c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
				return
			}
			l.t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 2048)
				for {
					_, from, err := c.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					_, _ = c.WriteToUDPAddrPort([]byte(name+" "+from.Addr().Unmap().String()), from)
				}
			}()
			return
		}
		var s net.Listener
		if s, err = net.Listen("tcp4", at.String()); err != nil {
			return
		}
		l.t.Cleanup(func() { _ = s.Close() })
		go func() {
			for {
				c, err := s.Accept()
				if err != nil {
					return
				}
				from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
				_, _ = io.WriteString(c, name+" "+from.Unmap().String())
				_ = c.Close()
			}
		}()
	})
	must(l.t, err)
}

// Ask connects from a network namespace ("" is the host's) and returns who answered and whom it saw.
func (l *Lab) Ask(path, proto string, to netip.AddrPort, patience time.Duration) (who string, sees netip.Addr, err error) {
	l.t.Helper()
	l.In(path, func() {
		var c net.Conn
		d := net.Dialer{Timeout: patience}
		if c, err = d.Dial(proto+"4", to.String()); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if proto == "udp" {
			if _, err = c.Write([]byte("?")); err != nil {
				return
			}
		}
		b := make([]byte, 256)
		var n int
		if n, err = c.Read(b); err != nil {
			return
		}
		name, addr, _ := strings.Cut(string(b[:n]), " ")
		who = name
		sees, err = netip.ParseAddr(addr)
	})
	return who, sees, err
}

// Reaches fails the test unless who answers. It returns whom that one saw.
func (l *Lab) Reaches(from, proto string, to netip.AddrPort, who string) netip.Addr {
	l.t.Helper()
	got, sees, err := l.Ask(from, proto, to, 3*time.Second)
	if err != nil || got != who {
		l.t.Errorf("from %q to %s/%s: %q answered (%v), want %q\n%s", filepath.Base(from), to, proto, got, err, who, Ruleset())
	}
	return sees
}

// Misses fails the test if anybody answers.
func (l *Lab) Misses(from, proto string, to netip.AddrPort) {
	l.t.Helper()
	if got, _, err := l.Ask(from, proto, to, 250*time.Millisecond); err == nil {
		l.t.Errorf("from %q to %s/%s: %q answered, want nobody\n%s", filepath.Base(from), to, proto, got, Ruleset())
	}
}

// Ruleset is what nft shows of the rules, for messages; empty where there is no nft.
func Ruleset() string {
	out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
	return string(out)
}

// State lists what a driver could leave behind on the host: links, addresses, routes, tables and forwarding.
func State(t testing.TB) []string {
	t.Helper()
	var s []string
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		s = append(s, "link "+l.Attrs().Name+" "+l.Type())
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		must(t, err)
		for _, a := range addrs {
			s = append(s, "address "+a.String())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	must(t, err)
	for _, r := range routes {
		s = append(s, "route "+r.String())
	}
	c, err := nftables.New()
	must(t, err)
	chains, err := c.ListChains()
	must(t, err)
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		must(t, err)
		s = append(s, fmt.Sprintf("chain %s %s: %d rules", ch.Table.Name, ch.Name, len(rules)))
	}
	tables, err := c.ListTables()
	must(t, err)
	for _, tb := range tables {
		s = append(s, "table "+tb.Name)
	}
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	must(t, err)
	s = append(s, "ip_forward "+string(bytes.TrimSpace(raw)))
	slices.Sort(s)
	return s
}

// compare waits for the state before: links go some time after their namespace.
func (l *Lab) compare(before []string) {
	l.t.Helper()
	var after []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if after = State(l.t); slices.Equal(before, after) {
			return
		}
	}
	l.t.Errorf("left on the host:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
}

func setUp(t testing.TB, name string, p netip.Prefix) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Error(err)
		return
	}
	err = errors.Join(
		netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}),
		netlink.LinkSetUp(link))
	if err != nil {
		t.Errorf("set up %s: %v", name, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func netParse(p netip.Prefix) (net.IP, *net.IPNet, error) { return net.ParseCIDR(p.String()) }
