package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestLeaks plants one of each kind, and wants it seen until it is gone.
func TestLeaks(t *testing.T) {
	m := Bare(t)
	before, err := m.observe()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := "/sys/fs/cgroup/" + m.Instance
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err != nil {
		cgroup = "/sys/fs/cgroup/pids/" + m.Instance
	}
	var sleeper *exec.Cmd
	start := func(change func(*exec.Cmd)) func() {
		return func() {
			sleeper = exec.Command("sleep", "1000")
			change(sleeper)
			if err := sleeper.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop := func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}
	log, err := os.Create(filepath.Join(m.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	sh := func(line string) func() { return func() { m.Sh("%s", line) } }
	mnt := filepath.Join(m.Dir, "mnt")
	for _, c := range []struct {
		name        string
		plant, take func()
		want        string
	}{
		{"link", sh("ip link add stray0 type bridge"), sh("ip link del stray0"), "links:\n"},
		{"route", sh("ip route add 203.0.113.0/24 via " + OutsideAddress), sh("ip route del 203.0.113.0/24"), "+ 203.0.113.0/24"},
		{"route of another table", sh("ip route add 203.0.113.0/24 via " + OutsideAddress + " table 7"), sh("ip route del 203.0.113.0/24 table 7"), "table 7"},
		{"rule", sh("ip rule add from 203.0.113.9 table 7"), sh("ip rule del from 203.0.113.9 table 7"), "203.0.113.9"},
		{"nftables", sh("nft add table inet stray"), sh("nft delete table inet stray"), "+ table inet stray"},
		{"forwarding", sh("sysctl -qw net.ipv4.ip_forward=1"), sh("sysctl -qw net.ipv4.ip_forward=0"), "+ ipv4/ip_forward = 1"},
		{"route_localnet", sh("sysctl -qw net.ipv4.conf.all.route_localnet=1"), sh("sysctl -qw net.ipv4.conf.all.route_localnet=0"), "+ ipv4/conf/all/route_localnet = 1"},
		{"mount", sh("mkdir -p " + mnt + "; mount -t tmpfs stray " + mnt), sh("umount " + mnt), "mount "},
		{"cgroup", sh("mkdir -p " + cgroup), sh("rmdir " + cgroup), "cgroup " + cgroup},
		{"process by its directory", start(func(c *exec.Cmd) { c.Dir = mnt }), stop, "sleep 1000"},
		{"process by its words", start(func(c *exec.Cmd) { c.Stderr = log }), stop, "sleep 1000"},
		{"process by its command line", start(func(c *exec.Cmd) { c.Args[0] = m.Dir + "/sleep" }), stop, m.Dir + "/sleep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.plant()
			seen := strings.Join(m.look(before), "\n")
			c.take()
			if !strings.Contains(seen, c.want) {
				t.Errorf("sees %q, want %q", seen, c.want)
			}
			if left := m.leaks(before); len(left) > 0 {
				t.Errorf("still sees %q", left)
			}
		})
	}
}

// TestObserveNeedsItsTools: where they are missing, two looks are alike whatever is left.
func TestObserveNeedsItsTools(t *testing.T) {
	m := Bare(t)
	path := os.Getenv("PATH")
	t.Setenv("PATH", "")
	_, err := m.observe()
	t.Setenv("PATH", path)
	if err == nil || !strings.Contains(err.Error(), "nft") || !strings.Contains(err.Error(), "ip") {
		t.Errorf("without ip and nft: %v", err)
	}
}
