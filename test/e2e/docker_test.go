package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// TestBesideDocker: with dockerd up in the same namespace (its FORWARD chain drops, its
// bridge-nf-call-iptables is 1), gantry's network works in full, and docker's goes on.
func TestBesideDocker(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Fatal(`no dockerd; "make setup" installs docker.io`)
	}
	m := harness.Bare(t)
	dir := filepath.Join(m.Dir, "docker")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(m.Dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "-H", "unix://"+dir+"/docker.sock", "--pidfile", dir+"/pid", "--cgroup-parent", "/"+m.Instance+"-docker")
	cmd.Stdout, cmd.Stderr = log, log
	m.NS.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	// Not part of what gantry must leave as it was: it is ended before the machine compares.
	end := func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		m.Sh("ip link del docker0 2>/dev/null || true; nft flush ruleset; for m in $(grep -o '%s/docker[^ ]*' /proc/self/mountinfo | sort -r); do umount -l $m; done", m.Dir)
	}
	defer end()
	harness.Eventually(t, 60*time.Second, "dockerd answers", func() bool {
		return m.Sh("docker -H unix://%s/docker.sock info >/dev/null 2>&1 && echo up || true", dir) == "up"
	})
	if out := m.Sh("iptables -S FORWARD 2>/dev/null | head -1 || true"); !strings.Contains(out, "DROP") {
		t.Logf("dockerd's FORWARD policy: %q", out)
	}
	rules := func() string {
		return m.Sh("iptables-save 2>/dev/null | grep -v '^#' | sed 's/\\[[0-9:]*\\]//' || true")
	}
	before := rules()

	m.Start()
	image := m.Busybox()
	m.Must("run", "-d", "--name", "web", "--hostname", "web", "-p", "8080:80", image, "sh", "-c", serve)
	for _, outside := range []bool{false, true} {
		harness.Eventually(t, 10*time.Second, fmt.Sprint("published beside dockerd, outside ", outside), func() bool {
			return fetch(m, outside, harness.UplinkAddress+":8080") == "web"
		})
	}
	harness.Eventually(t, 10*time.Second, "published on loopback beside dockerd", func() bool { return fetch(m, false, "127.0.0.1:8080") == "web" })
	if out := m.Must("run", "--rm", image, "sh", "-c", "ping -c1 -W5 "+harness.OutsideAddress+" >/dev/null && echo out"); out != "out" {
		t.Errorf("the way out beside dockerd: %q", out)
	}
	own := m.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
	if out := m.Must("run", "--rm", image, "timeout", "5", "wget", "-qO-", "http://"+own+"/"); out != "web" {
		t.Errorf("container to container beside dockerd: %q", out)
	}
	if subnet := m.Must("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "bridge"); strings.HasPrefix(subnet, "172.17.") {
		t.Errorf("the default network took docker's subnet: %s", subnet)
	}
	m.Must("rm", "-f", "web")
	m.Stop()
	if after := rules(); after != before {
		t.Errorf("docker's rules before:\n%s\nand after gantry has ended:\n%s", before, after)
	}
}
