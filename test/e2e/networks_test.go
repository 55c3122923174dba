package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// fetch gets a page from inside the machine's namespace, or from outside of it; "" if it cannot.
// (Debian's busybox wget dies of its own -T, and nothing else of that size is on every machine.)
func fetch(m *harness.Machine, outside bool, address string) (page string) {
	do := m.NS.Do
	if outside {
		do = m.NS.DoOutside
	}
	do(func() { // the socket belongs to this thread's namespace
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp4", address)
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", address); err != nil {
			return
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != http.StatusOK {
			return
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		page = strings.TrimSpace(string(body))
	})
	return page
}

const serve = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"

// TestPublish reaches a published port from everywhere it must be reachable from.
func TestPublish(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "web", "--hostname", "web", "-p", "8080:80", image, "sh", "-c", serve)
	own := m.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
	for _, c := range []struct {
		from    string
		outside bool
		address string
	}{
		{"the host by loopback", false, "127.0.0.1:8080"},
		{"the host by its address", false, harness.UplinkAddress + ":8080"},
		{"another host", true, harness.UplinkAddress + ":8080"},
		{"the host by the container's address", false, own + ":80"},
	} {
		harness.Eventually(t, 10*time.Second, "reachable from "+c.from, func() bool { return fetch(m, c.outside, c.address) == "web" })
	}
	if out := m.Must("run", "--rm", image, "timeout", "5", "wget", "-qO-", "http://"+harness.UplinkAddress+":8080/"); out != "web" {
		t.Errorf("from another container: %q", out)
	}
	if out := m.Must("exec", "web", "timeout", "5", "wget", "-qO-", "http://"+harness.UplinkAddress+":8080/"); out != "web" {
		t.Errorf("from itself: %q", out)
	}
	if out := m.Must("port", "web"); out != "80/tcp -> 0.0.0.0:8080" {
		t.Errorf("port: %q", out)
	}
	if out := m.Must("ps", "--format", "{{.Ports}}"); out != "0.0.0.0:8080->80/tcp" {
		t.Errorf("ps: %q", out)
	}
	// No process for the port: the daemon, its plugins, one shim, its container, and the registry.
	if out := m.Sh("ss -Hltn 'sport = :8080'"); out != "" {
		t.Errorf("somebody listens on the published port: %s", out)
	}
	m.Must("stop", "-t", "0", "web")
	if out := fetch(m, true, harness.UplinkAddress+":8080"); out != "" {
		t.Errorf("stopped, and still %q", out)
	}
}

// TestPublishForms: one address, UDP, ranges, a port that the kernel chooses.
func TestPublishForms(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "local", "-p", "127.0.0.1:8081:80", image, "sh", "-c", serve)
	harness.Eventually(t, 10*time.Second, "loopback", func() bool { return fetch(m, false, "127.0.0.1:8081") != "" })
	if out := fetch(m, true, harness.UplinkAddress+":8081"); out != "" {
		t.Errorf("published on loopback and reachable from another host: %q", out)
	}
	m.Must("run", "-d", "--name", "any", "-p", "80", image, "sh", "-c", serve)
	where := m.Must("port", "any", "80")
	_, port, _ := strings.Cut(where, ":")
	harness.Eventually(t, 10*time.Second, "the chosen port "+where, func() bool { return fetch(m, true, harness.UplinkAddress+":"+port) != "" })
	m.Must("run", "-d", "--name", "range", "-p", "9000-9009:80-89", image, "sh", "-c", "mkdir -p /www; echo 85 > /www/index.html; exec httpd -f -p 85 -h /www")
	harness.Eventually(t, 10*time.Second, "the sixth of the range", func() bool { return fetch(m, true, harness.UplinkAddress+":9005") == "85" })
	// Debian's busybox has nothing that answers UDP: the test does, inside the container's namespace.
	m.Must("run", "-d", "--name", "udp", "-p", "9100:9101/udp", image, "sleep", "1000")
	answer(t, m.Must("inspect", "-f", "{{.State.Pid}}", "udp"), 9101)
	harness.Eventually(t, 10*time.Second, "udp", func() (ok bool) {
		m.NS.DoOutside(func() {
			c, err := net.Dial("udp4", harness.UplinkAddress+":9100")
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			b := make([]byte, 16)
			if _, err := c.Write([]byte("ping")); err != nil {
				return
			}
			n, err := c.Read(b)
			ok = err == nil && string(b[:n]) == "ping"
		})
		return ok
	})
}

// answer sends every datagram back that comes to a port in a process's network namespace.
func answer(t *testing.T, pid string, port int) {
	t.Helper()
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		fd, err := unix.Open("/proc/"+pid+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		var c *net.UDPConn
		if err == nil {
			c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		}
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 1500)
				for {
					n, from, err := c.ReadFromUDP(b)
					if err != nil {
						return
					}
					_, _ = c.WriteToUDP(b[:n], from)
				}
			}()
		}
		errs <- err
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// TestPortInUse names who has it.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "first", "-p", "8080:80", image, "sleep", "1000")
	r := m.Try("run", "-d", "--name", "second", "-p", "8080:80", image, "sleep", "1000")
	if r.Code != 125 || !strings.Contains(r.Err, "8080") || !strings.Contains(r.Err, "first") {
		t.Errorf("exit %d: %s", r.Code, r.Err)
	}
	m.Try("rm", "-f", "second")
	m.NS.Do(func() {
		cmd := exec.Command("busybox", "nc", "-l", "-p", "8085")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	})
	harness.Eventually(t, 5*time.Second, "a stranger listens", func() bool { return m.Sh("ss -Hltn 'sport = :8085'") != "" })
	r = m.Try("run", "-d", "--name", "third", "-p", "8085:80", image, "sleep", "1000")
	if r.Code != 125 || !strings.Contains(r.Err, "8085") {
		t.Errorf("exit %d: %s", r.Code, r.Err)
	}
	m.Try("rm", "-f", "third")
	m.Must("rm", "-f", "first")
	m.Must("run", "-d", "--name", "fourth", "-p", "8080:80", image, "sleep", "1000")
}

// TestNeighbours: containers of the default network reach one another, and get addresses of
// their own that outlive a restart.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	seen := map[string]bool{}
	for i := range 5 {
		name := fmt.Sprint("n", i)
		m.Must("run", "-d", "--name", name, image, "sleep", "1000")
		a := m.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
		if a == "" || seen[a] {
			t.Errorf("%s has address %q", name, a)
		}
		seen[a] = true
		m.Must("exec", "n0", "ping", "-c1", "-W5", a)
	}
	if out := m.Must("network", "ls", "--format", "{{.Name}}"); !strings.Contains(out, "bridge") {
		t.Errorf("network ls: %q", out)
	}
	if out := m.Must("network", "inspect", "-f", "{{len .Containers}}", "bridge"); out != "5" {
		t.Errorf("network inspect: %q", out)
	}
	m.Must("network", "create", "--subnet", "10.77.0.0/24", "mine")
	m.Must("run", "-d", "--name", "other", "--network", "mine", image, "sleep", "1000")
	if a := m.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "other"); !strings.HasPrefix(a, "10.77.0.") {
		t.Errorf("address %q", a)
	}
	m.Fails(5, "other", "network", "rm", "mine")
	m.Must("rm", "-f", "other")
	m.Must("network", "rm", "mine")
	m.Fails(1, "mine", "network", "inspect", "mine")
}

// TestMTU follows the uplink.
func TestMTU(t *testing.T) {
	t.Parallel()
	m := harness.Bare(t)
	m.Sh("ip link set up0 mtu 1400")
	m.Start()
	image := m.Busybox()
	if out := m.Must("run", "--rm", image, "cat", "/sys/class/net/eth0/mtu"); out != "1400" {
		t.Errorf("mtu %q", out)
	}
}
