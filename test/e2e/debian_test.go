package e2e

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/harness"
)

// TestDebian pulls a real system from a real registry and works in it.
func TestDebian(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	r := m.Registry()
	layout := filepath.Join(m.Dir, "debian")
	harness.DebianLayout(t, m.Dir, layout)
	r.PushLayout(layout, "debian")
	ref := r.Address + "/debian:latest"
	m.Must("pull", ref)
	if out := m.Must("image", "inspect", "-f", "{{len .RootFS.Layers}}", ref); out != "7" {
		t.Errorf("layers: %s", out)
	}
	if size, err := strconv.Atoi(m.Must("image", "inspect", "-f", "{{.Size}}", ref)); err != nil || size < 150_000_000 {
		t.Errorf("it has %d bytes (%v): too few to be a system", size, err)
	}

	t.Run("files", func(t *testing.T) {
		m.Must("run", "-d", "--name", "files", ref, "sleep", "1000")
		defer m.Must("rm", "-f", "files")
		skip := func(p string) bool {
			switch p {
			case "proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".":
				return true
			}
			return false
		}
		got, err := harness.Describe("/proc/"+m.Must("inspect", "-f", "{{.State.Pid}}", "files")+"/root", skip)
		if err != nil {
			t.Fatal(err)
		}
		bundle := filepath.Join(m.Dir, "umoci")
		m.Sh("umoci unpack --image %s:latest %s 2>/dev/null", layout, bundle)
		want, err := harness.Describe(filepath.Join(bundle, "rootfs"), skip)
		if err != nil {
			t.Fatal(err)
		}
		// The mount points of etc files touch their directory's time in our writable layer only.
		for _, p := range []string{"etc"} {
			delete(want, p)
			delete(got, p)
		}
		diffs := harness.Differences(want, got)
		for _, d := range diffs[:min(len(diffs), 30)] {
			t.Error(d)
		}
		t.Logf("%d files compared with umoci's, %d differences", len(want), len(diffs))
	})

	t.Run("tools", func(t *testing.T) {
		if out := m.Must("run", "--rm", ref, "apt", "list", "--installed"); !strings.Contains(out, "python3-minimal") {
			t.Errorf("apt list: %s", out)
		}
		out := m.Must("run", "--rm", ref, "ls", "-la", "--time-style=full-iso", "/opt")
		for _, want := range []string{
			"-rwsr-sr-x 1 12345 54321", "2001-02-03 04:05:06.789012345 +0000 old", "drwxrwxrwt", "link -> hard/a", "crw-r--r-- 1 root  root", "a name with",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("ls does not show %q:\n%s", want, out)
			}
		}
		if out := m.Must("run", "--rm", ref, "getcap", "/opt/capable"); !strings.Contains(out, "cap_net_raw=ep") {
			t.Errorf("getcap: %q", out)
		}
	})

	t.Run("server", func(t *testing.T) {
		m.Must("run", "-d", "--name", "server", "-p", "8000:8000", "-w", "/usr/share/common-licenses", ref, "python3", "-m", "http.server", "8000")
		defer m.Must("rm", "-f", "server")
		harness.Eventually(t, 20*time.Second, "the page from another host", func() bool {
			return strings.Contains(fetch(m, true, harness.UplinkAddress+":8000"), "Apache-2.0")
		})
	})

	t.Run("terminal", func(t *testing.T) {
		term := onTerminal(t, m, "run", "-it", "--rm", "-e", "TERM=xterm", "-e", "PS1=ready> ", ref, "bash", "--norc")
		term.expect("ready> ")
		term.size(100, 40)
		term.write("stty size\r")
		term.expect("40 100")
		term.write("sleep 400\r")
		time.Sleep(200 * time.Millisecond) // let it begin: what is tested is that ctrl-c ends it
		term.write("\x03")
		term.expect("ready> ")
		term.write("echo it ended with $?\r")
		term.expect("it ended with 130")
		term.write("sleep 500 &\r")
		term.expect("[1]")
		term.write("fg\r")
		term.expect("sleep 500")
		time.Sleep(100 * time.Millisecond) // let it come to the foreground
		term.write("\x1a")                 // ctrl-z
		term.expect("Stopped")
		term.write("kill %1; wait; jobs; echo jobs-done\r")
		term.expect("jobs-done")
		term.expect("ready> ")
		term.write("less /usr/share/common-licenses/Apache-2.0\r")
		term.expect("Apache License")
		term.write("q")
		term.expect("ready> ")
		term.write("vi /root/typed\r")
		term.expect("typed")
		term.write("ihello from vi\x1b:wq\r")
		term.expect("ready> ")
		term.write("cat /root/typed\r")
		term.expect("hello from vi")
		term.write("exit 3\r")
		if code := term.exit(); code != 3 {
			t.Errorf("exit %d", code)
		}
	})
}
