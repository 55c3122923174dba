package e2e

import (
	"testing"
	"time"

	"github.com/gantryd/gantry/test/harness"
)

// TestUpdate changes a container that runs, and the next run, and what its policy does then.
func TestUpdate(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	m.Must("run", "-d", "--name", "web", "-m", "64m", "--pids-limit", "50", m.Busybox(), "sleep", "1000")
	pids, memory := oneOf("pids/pids.max", "pids.max"), oneOf("memory/memory.limit_in_bytes", "memory.max")
	see := func(args []string) string { return m.Must(append([]string{"exec", "web"}, args...)...) }
	if out := m.Must("update", "-m", "128m", "--pids-limit", "20", "--cpus", "0.5", "web"); out != "web" {
		t.Errorf("%q", out)
	}
	if p, b := see(pids), see(memory); p != "20" || b != "134217728" {
		t.Errorf("pids %s, memory %s", p, b)
	}
	if got := m.Must("inspect", "-f", "{{.HostConfig.PidsLimit}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", "web"); got != "20 134217728 500000000" {
		t.Errorf("inspect: %q", got)
	}
	m.Must("update", "--pids-limit", "-1", "web")
	if p := see(pids); p != "max" {
		t.Errorf("pids %s", p)
	}
	m.Must("update", "--memory", "96m", "--restart", "always", "web")
	m.Restart() // of the daemon
	if b := see(memory); b != "100663296" {
		t.Errorf("memory %s after another daemon took over", b)
	}
	m.Must("exec", "web", "kill", "-9", "1") // which does nothing: it is process 1
	pid := m.Must("inspect", "-f", "{{.State.Pid}}", "web")
	m.Sh("kill -9 %s", pid)
	harness.Eventually(t, 10*time.Second, "the new policy starts it again", func() bool {
		return m.Must("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", "web") == "true 1"
	})
	if b := see(memory); b != "100663296" {
		t.Errorf("memory %s in the next run", b)
	}
	m.Fails(2, "memory and swap", "update", "--memory-swap", "1m", "web")
	m.Fails(2, "at least", "update", "-m", "4k", "web")
	m.Fails(3, "nobody", "update", "-m", "64m", "nobody")
	if got := m.Must("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "web"); got != "always" {
		t.Errorf("policy %q", got)
	}
	m.Must("system", "check")
}
