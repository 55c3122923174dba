package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// TestDaemonDies: containers live on, exits that came meanwhile are known, names and ports hold.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	go_ := filepath.Join(m.Dir, "go")
	if err := os.MkdirAll(go_, 0o755); err != nil {
		t.Fatal(err)
	}
	m.Must("run", "-d", "--name", "stays", "-p", "8080:80", image, "sh", "-c", "mkdir -p /www; echo here > /www/index.html; httpd -f -p 80 -h /www")
	m.Must("run", "-d", "--name", "ends", "-v", go_+":/go", image, "sh", "-c", "until [ -e /go/now ]; do sleep 0.05; done; echo last words; exit 23")
	m.Must("run", "-d", "--name", "removed", "--rm", "-v", go_+":/go", image, "sh", "-c", "until [ -e /go/now ]; do sleep 0.05; done; exit 24")
	pid := m.Must("inspect", "-f", "{{.State.Pid}}", "stays")
	address := m.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "stays")

	m.Kill()
	if err := os.WriteFile(filepath.Join(go_, "now"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The kernel's own things serve without any process of gantry's.
	harness.Eventually(t, 5*time.Second, "the published port answers while no daemon is there", func() bool {
		return fetch(m, false, "127.0.0.1:8080") == "here"
	})
	time.Sleep(300 * time.Millisecond)
	m.Start()

	if out := m.Must("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", "stays"); out != pid+" "+address {
		t.Errorf("was %s %s, is %s", pid, address, out)
	}
	if out := m.Must("wait", "ends"); out != "23" {
		t.Errorf("exit code %q", out)
	}
	if out := m.Must("logs", "ends"); out != "last words" {
		t.Errorf("logs %q", out)
	}
	harness.Eventually(t, 5*time.Second, "--rm is done by the next daemon", func() bool { return m.Try("inspect", "removed").Code != 0 })
	if out := m.Must("exec", "stays", "cat", "/www/index.html"); out != "here" {
		t.Errorf("exec after the restart: %q", out)
	}
	m.Must("stop", "-t", "1", "stays")
	m.Must("start", "stays")
	harness.Eventually(t, 5*time.Second, "the port answers again", func() bool {
		return fetch(m, false, "127.0.0.1:8080") == "here"
	})
}

// TestGracefulStop: SIGTERM ends the daemon and nothing else.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sleep", "1000")
	pid := m.Must("inspect", "-f", "{{.State.Pid}}", "c")
	m.Stop()
	if _, err := os.Stat("/proc/" + pid); err != nil {
		t.Errorf("the container ended with the daemon")
	}
	m.Start()
	if out := m.Must("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "c"); out != pid+" running" {
		t.Errorf("after the restart: %q", out)
	}
}

// TestShimDies: the container ends with its shim, and says so.
func TestShimDies(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sleep", "1000")
	pid := m.Must("inspect", "-f", "{{.State.Pid}}", "c")
	kill(t, parent(t, pid))
	if out := m.Must("wait", "c"); out != "137" {
		t.Errorf("exit code %q", out)
	}
	if out := m.Must("inspect", "-f", "{{.Gantry.Reason}}", "c"); out != "shim-lost" {
		t.Errorf("reason %q", out)
	}
	harness.Eventually(t, 5*time.Second, "the process is gone", func() bool { _, err := os.Stat("/proc/" + pid); return err != nil })
	m.Must("start", "c")
	if out := m.Must("exec", "c", "echo", "again"); out != "again" {
		t.Errorf("after the next start: %q", out)
	}

	// The same while no daemon is there to see it.
	pid = m.Must("inspect", "-f", "{{.State.Pid}}", "c")
	m.Kill()
	kill(t, parent(t, pid))
	m.Start()
	if out := m.Must("wait", "c"); out != "137" {
		t.Errorf("exit code %q", out)
	}
}

// TestHungShim: a shim that does not answer hangs nobody else, and can still be removed.
func TestHungShim(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "stuck", image, "sleep", "1000")
	shim := parent(t, m.Must("inspect", "-f", "{{.State.Pid}}", "stuck"))
	if err := unix.Kill(shim, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.Restart()
	began := time.Now()
	m.Must("ps")
	if d := time.Since(began); d > time.Second {
		t.Errorf("ps took %v", d)
	}
	if out := m.Must("run", "--rm", image, "echo", "others go on"); out != "others go on" {
		t.Errorf("run: %q", out)
	}
	m.Must("rm", "-f", "stuck")
}

// parent returns the parent of a pid: of a container's process, its shim.
func parent(t *testing.T, pid string) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(raw), "\n") {
		if v, ok := strings.CutPrefix(l, "PPid:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || n <= 1 {
				t.Fatalf("parent of %s: %q", pid, l)
			}
			return n
		}
	}
	t.Fatalf("no parent of %s", pid)
	return 0
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
