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

// dockerd is one in the machine's namespace, with a container that answers on port 9090.
type dockerd struct {
	m       *harness.Machine
	dir     string
	process *exec.Cmd
}

// startDocker starts it, and wants it to stand in the way: its FORWARD chain drops, and what
// crosses a bridge passes through it. It ends, with what it leaves behind, before the machine compares.
func startDocker(t *testing.T, m *harness.Machine) *dockerd {
	t.Helper()
	for _, tool := range []string{"dockerd", "docker", "iptables-save"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf(`no %s: "make setup" installs docker.io and iptables`, tool)
		}
	}
	d := &dockerd{m: m, dir: filepath.Join(m.Dir, "docker")}
	if err := os.MkdirAll(d.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(m.Dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	d.process = exec.Command("dockerd", "--data-root", d.dir+"/data", "--exec-root", d.dir+"/exec", "-H", "unix://"+d.dir+"/docker.sock",
		"--pidfile", d.dir+"/pid", "--cgroup-parent", "/"+m.Instance+"-docker")
	d.process.Stdout, d.process.Stderr = log, log
	m.NS.Do(func() { err = d.process.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.end)
	harness.Eventually(t, 60*time.Second, "dockerd answers", func() bool {
		return m.Sh("docker -H unix://%s/docker.sock info >/dev/null 2>&1 && echo up || true", d.dir) == "up"
	})
	if out := m.Sh("iptables -S FORWARD"); !strings.Contains(out, "-P FORWARD DROP") {
		t.Fatalf("dockerd does not drop what is forwarded, so this proves nothing:\n%s", out)
	}
	if out := m.Sh("cat /proc/sys/net/bridge/bridge-nf-call-iptables"); out != "1" {
		t.Fatalf("bridge-nf-call-iptables is %s, so what crosses a bridge is not dropped, and this proves nothing", out)
	}
	image := filepath.Join(m.Dir, "busybox.tar")
	if err := os.WriteFile(image, harness.BusyboxLayer(t), 0o600); err != nil {
		t.Fatal(err)
	}
	d.docker("import %s busybox", image)
	d.docker("run -d --name theirs --hostname theirs -p 9090:80 busybox /bin/sh -c '%s'", serve)
	return d
}

// docker runs docker with a line of arguments.
func (d *dockerd) docker(line string, args ...any) string {
	d.m.T.Helper()
	return d.m.Sh("docker -H unix://%s/docker.sock %s", d.dir, fmt.Sprintf(line, args...))
}

// rules is every rule of iptables, without what counts packets.
func (d *dockerd) rules() string {
	d.m.T.Helper()
	return d.m.Sh(`iptables-save | grep -v '^#' | sed 's/\[[0-9:]*\]//'`)
}

// goesOn wants docker's container to be reached from everywhere, and to reach the world.
func (d *dockerd) goesOn(t *testing.T, when string) {
	t.Helper()
	for _, from := range []struct {
		outside bool
		address string
	}{{true, harness.UplinkAddress}, {false, harness.UplinkAddress}, {false, "127.0.0.1"}} {
		harness.Eventually(t, 10*time.Second, fmt.Sprintf("%s docker's container answers at %s, from outside: %v", when, from.address, from.outside), func() bool {
			return fetch(d.m, from.outside, from.address+":9090") == "theirs"
		})
	}
	d.docker("exec theirs /bin/ping -c1 -W5 %s", harness.OutsideAddress)
}

func (d *dockerd) end() {
	_ = exec.Command("docker", "-H", "unix://"+d.dir+"/docker.sock", "rm", "-f", "theirs").Run()
	_ = d.process.Process.Signal(unix.SIGTERM)
	_ = d.process.Wait()
	d.m.Sh(`ip link del docker0
nft flush ruleset
sysctl -qw net.ipv4.ip_forward=0
for m in $(grep -o '%s/docker[^ ]*' /proc/self/mountinfo | sort -r); do umount -l $m; done
find /sys/fs/cgroup -depth -type d -path '*/%s-docker*' -delete`, d.m.Dir, d.m.Instance)
}

// TestBesideDocker: with dockerd up in the same namespace gantry's network works in full, and docker's goes on.
func TestBesideDocker(t *testing.T) {
	t.Parallel()
	m := harness.Bare(t)
	d := startDocker(t, m)
	d.goesOn(t, "before gantry starts")
	before := d.rules()
	if !strings.Contains(before, "DOCKER") || !strings.Contains(before, "9090") {
		t.Fatalf("docker's rules cannot be seen, so this proves nothing:\n%s", before)
	}

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
	d.goesOn(t, "beside gantry")
	m.Fails(125, "9090", "run", "-d", "--name", "late", "-p", "9090:80", image, "sleep", "1000") // it is docker's
	m.Must("rm", "-f", "web", "late")
	m.Stop()
	if after := d.rules(); after != before {
		t.Errorf("docker's rules before:\n%s\nand after gantry has ended:\n%s", before, after)
	}
	d.goesOn(t, "after gantry has ended")
}
