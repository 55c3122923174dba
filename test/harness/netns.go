package harness

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// NetNS is a network namespace with an uplink: another namespace, "outside", at the far end of
// a veth, which is the default route.
type NetNS struct {
	Name, Outside string
	fd            int
}

// The uplink's two addresses.
const (
	UplinkAddress  = "192.0.2.2"
	OutsideAddress = "192.0.2.1"
)

var namespaces atomic.Int64

// NewNetNS makes the pair; they go with the test.
func NewNetNS(t testing.TB) *NetNS {
	t.Helper()
	n := namespaces.Add(1)
	ns := &NetNS{Name: fmt.Sprintf("gyt%d-%d", os.Getpid(), n), Outside: fmt.Sprintf("gyo%d-%d", os.Getpid(), n)}
	for _, line := range []string{
		"netns add " + ns.Name,
		"netns add " + ns.Outside,
		"-n " + ns.Name + " link set lo up",
		"-n " + ns.Outside + " link set lo up",
		"-n " + ns.Name + " link add up0 type veth peer name down0 netns " + ns.Outside,
		"-n " + ns.Name + " addr add " + UplinkAddress + "/24 dev up0",
		"-n " + ns.Name + " link set up0 up",
		"-n " + ns.Outside + " addr add " + OutsideAddress + "/24 dev down0",
		"-n " + ns.Outside + " link set down0 up",
		"-n " + ns.Name + " route add default via " + OutsideAddress,
		"netns exec " + ns.Name + " sysctl -qw net.ipv4.ip_forward=0", // a new namespace may have the host's value
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", line, err, out)
		}
	}
	fd, err := unix.Open("/run/netns/"+ns.Name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ns.fd = fd
	t.Cleanup(func() {
		_ = unix.Close(fd)
		_ = exec.Command("ip", "netns", "del", ns.Name).Run()
		_ = exec.Command("ip", "netns", "del", ns.Outside).Run()
	})
	return ns
}

// Do runs fn on a thread in the namespace; what fn starts is in it too.
func (ns *NetNS) Do(fn func()) { inNetNS(ns.fd, fn) }

// DoOutside runs fn in the namespace at the far end of the uplink.
func (ns *NetNS) DoOutside(fn func()) {
	fd, err := unix.Open("/run/netns/"+ns.Outside, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	defer unix.Close(fd)
	inNetNS(fd, fn)
}

func inNetNS(fd int, fn func()) {
	done := make(chan any, 1)
	go func() {
		// Never unlocked: a thread whose namespace was changed ends with its goroutine.
		runtime.LockOSThread()
		defer func() { done <- recover() }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		fn()
	}()
	if p := <-done; p != nil {
		panic(p)
	}
}
