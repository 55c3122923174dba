package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/harness"
)

// TestHello is the first thing that a stranger sees: no registry, no network, one command.
func TestHello(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	out := m.Must("run", "--rm", "hello")
	if !strings.Contains(out, "gantry") {
		t.Errorf("the greeting does not say who greets: %q", out)
	}
	if ps := m.Must("ps", "-aq"); ps != "" {
		t.Errorf("--rm left %q", ps)
	}
	if images := m.Must("images", "--format", "{{.Repository}}:{{.Tag}}"); images != "hello:latest" {
		t.Errorf("images are %q", images)
	}
}

// TestRun is a table of command lines and what they print.
func TestRun(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	share := filepath.Join(m.Dir, "share")
	if err := os.MkdirAll(share, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(share, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		flags []string
		args  []string
		code  int
		want  string // exactly, but for surrounding space; "~" in front: contained
	}{
		{"output", nil, []string{"echo", "hi"}, 0, "hi"},
		{"stderr", nil, []string{"sh", "-c", "echo oops >&2"}, 0, "oops"},
		{"exit code", nil, []string{"sh", "-c", "exit 42"}, 42, ""},
		{"init and signal", []string{"--init"}, []string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{"no command", nil, []string{"not-there"}, 127, "~not-there"},
		{"no path", nil, []string{"/no/such/path"}, 127, "~/no/such/path"},
		{"not executable", nil, []string{"/etc/passwd"}, 126, "~/etc/passwd"},
		{"a directory", nil, []string{"/etc"}, 126, "~/etc"},
		{"environment", []string{"-e", "A=b c", "-e", "EMPTY="}, []string{"sh", "-c", `echo "$A|$EMPTY|$PATH|$HOME"`}, 0, "b c||/bin|/root"},
		{"working directory", []string{"-w", "/var/made/for/it"}, []string{"pwd"}, 0, "/var/made/for/it"},
		{"user by name", []string{"-u", "user"}, []string{"sh", "-c", "id -u; id -g; id -G; echo $HOME"}, 0, "1000\n1000\n1000 2000\n/home"},
		{"user by number", []string{"-u", "7:8"}, []string{"sh", "-c", "id -u; id -g"}, 0, "7\n8"},
		{"unknown user", []string{"-u", "nobody-here"}, []string{"id"}, 125, "~nobody-here"},
		{"entrypoint", []string{"--entrypoint", "echo"}, []string{"one", "two"}, 0, "one two"},
		{"hostname", []string{"--hostname", "box"}, []string{"sh", "-c", "hostname; grep -c box /etc/hosts"}, 0, "box\n1"},
		{"bind", []string{"-v", share + ":/share"}, []string{"cat", "/share/file"}, 0, "from the host"},
		{"bind read-only", []string{"-v", share + ":/share:ro"}, []string{"touch", "/share/new"}, 1, "~Read-only"},
		{"file bind", []string{"-v", share + "/file:/etc/made:ro"}, []string{"cat", "/etc/made"}, 0, "from the host"},
		{"tmpfs", []string{"--tmpfs", "/scratch:size=1m"}, []string{"sh", "-c", "grep /scratch /proc/mounts | cut -d' ' -f1,3"}, 0, "tmpfs tmpfs"},
		{"read-only root", []string{"--read-only"}, []string{"touch", "/new"}, 1, "~Read-only"},
		{"pids", []string{"--pids-limit", "20"}, []string{"sh", "-c", "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"}, 0, "20"},
		{"memory", []string{"-m", "64m"}, []string{"sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"}, 0, "67108864"},
		{"cpus", []string{"--cpus", "0.5"}, []string{"sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max"}, 0, "50000"},
		{"ulimit", []string{"--ulimit", "nofile=100:200"}, []string{"sh", "-c", "ulimit -n; ulimit -Hn"}, 0, "100\n200"},
		{"no new privileges", []string{"--security-opt", "no-new-privileges"}, []string{"grep", "NoNewPrivs", "/proc/self/status"}, 0, "NoNewPrivs:\t1"},
		{"capabilities", nil, []string{"grep", "CapEff", "/proc/self/status"}, 0, "CapEff:\t00000000a80425fb"},
		{"no inheritable", nil, []string{"grep", "CapInh", "/proc/self/status"}, 0, "CapInh:\t0000000000000000"},
		{"seccomp", nil, []string{"grep", "Seccomp:", "/proc/self/status"}, 0, "Seccomp:\t2"},
		{"pid namespace", nil, []string{"sh", "-c", "echo $$"}, 0, "1"},
		{"masked", nil, []string{"sh", "-c", "wc -c < /proc/keys; ls /sys/firmware | wc -l"}, 0, "0\n0"},
		{"core pattern", nil, []string{"sh", "-c", "echo h > /proc/sys/kernel/core_pattern"}, 1, "~Read-only"},
		{"irq", nil, []string{"sh", "-c", "echo 1 > /proc/irq/default_smp_affinity"}, 1, "~Read-only"},
		{"no terminal", nil, []string{"sh", "-c", "test -t 0 || echo none"}, 0, "none"},
		{"network none", []string{"--network", "none"}, []string{"sh", "-c", "ls /sys/class/net"}, 0, "lo"},
		{"network host", []string{"--network", "host"}, []string{"sh", "-c", "ls /sys/class/net | grep up0"}, 0, "up0"},
		{"bridge", nil, []string{"sh", "-c", "ls /sys/class/net; ping -c1 -W5 " + harness.OutsideAddress + " >/dev/null && echo out"}, 0, "eth0\nlo\nout"},
		{"label and name", []string{"--name", "named", "-l", "a=b"}, []string{"true"}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(append(append([]string{"run", "--rm"}, c.flags...), image), c.args...)
			r := m.Try(args...)
			got := strings.TrimSpace(r.All())
			want, contained := strings.CutPrefix(c.want, "~")
			if r.Code != c.code || contained && !strings.Contains(got, want) || !contained && got != want {
				t.Errorf("gantry %s: exit %d, want %d\n got %q\nwant %q", strings.Join(args, " "), r.Code, c.code, got, want)
			}
		})
	}
}

// TestInitReaps: an orphan that ends is reaped by gantry's init, and by nobody where the first
// process of the container is one that waits for no child.
func TestInitReaps(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	zombies := func(name string, flags ...string) func() string {
		args := append(append([]string{"run", "-d", "--name", name}, flags...), image)
		m.Must(append(args, "sh", "-c", "(sleep 0.1 &); exec sleep 1000")...)
		return func() string {
			return m.Must("exec", name, "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l; grep -l '^Name:.sleep' /proc/[0-9]*/status | wc -l")
		}
	}
	// One sleep is left, the first process; the other is a zombie, or gone.
	without, with := zombies("without"), zombies("with", "--init")
	harness.Eventually(t, 10*time.Second, "without an init the orphan stays a zombie", func() bool { return without() == "1\n2" })
	harness.Eventually(t, 10*time.Second, "with one it is reaped", func() bool { return with() == "0\n1" })
}

// TestStdin passes a pipe through a container.
func TestStdin(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	text := strings.Repeat("0123456789abcdef\n", 200000)
	r := m.TryIn(strings.NewReader(text), "run", "--rm", "-i", image, "cat")
	if r.Code != 0 || r.Out != text {
		t.Errorf("cat: exit %d, %d bytes of %d\n%s", r.Code, len(r.Out), len(text), r.Err)
	}
	if r := m.TryIn(strings.NewReader("ignored"), "run", "--rm", image, "cat"); r.Code != 0 || r.Out != "" {
		t.Errorf("without -i: exit %d, %q", r.Code, r.Out)
	}
	m.Must("run", "-d", "--name", "c", image, "sleep", "1000")
	r = m.TryIn(strings.NewReader(text), "exec", "-i", "c", "sh", "-c", "wc -c; exit 3")
	if r.Code != 3 || strings.TrimSpace(r.Out) != "3400000" {
		t.Errorf("exec: exit %d, %q %s", r.Code, r.Out, r.Err)
	}
}

// TestLife walks a container through every state.
func TestLife(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	id := m.Must("create", "--name", "web", image, "sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done")
	if len(id) != 64 {
		t.Errorf("id %q", id)
	}
	state := func() string { return m.Must("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web") }
	if s := state(); s != "created 0" {
		t.Errorf("created: %q", s)
	}
	m.Must("start", "web")
	if s := state(); s != "running 0" {
		t.Errorf("started: %q", s)
	}
	m.Must("start", "web") // of a running one: succeeds
	m.Fails(4, "web", "create", "--name", "web", image)
	m.Fails(5, "web", "rm", "web")
	harness.Eventually(t, 5*time.Second, "its first line is in the log", func() bool { return m.Must("logs", "web") == "up" })
	m.Must("pause", "web")
	if s := state(); s != "paused 0" {
		t.Errorf("paused: %q", s)
	}
	if ps := m.Must("ps", "--format", "{{.Status}}"); !strings.Contains(ps, "(Paused)") {
		t.Errorf("ps: %q", ps)
	}
	m.Must("unpause", "web")
	m.Must("stop", "web")
	if s := state(); s != "exited 7" {
		t.Errorf("stopped: %q", s)
	}
	if out := m.Must("logs", "web"); out != "up\nbye" {
		t.Errorf("logs: %q", out)
	}
	m.Must("stop", "web") // of a stopped one: succeeds
	m.Fails(5, "web", "kill", "web")
	if out := m.Must("wait", "web"); out != "7" {
		t.Errorf("wait: %q", out)
	}
	m.Must("restart", "-t", "1", "web")
	m.Must("kill", "web")
	if out := m.Must("wait", "web"); out != "137" {
		t.Errorf("wait after kill: %q", out)
	}
	if out := m.Must("ps", "-aq", "--no-trunc", "--filter", "status=exited", "--filter", "name=web"); out != id {
		t.Errorf("ps by filter: %q", out)
	}
	m.Must("rm", "web")
	m.Fails(3, "web", "rm", "web")
	m.Must("rm", "-f", "web")
	m.Fails(3, "web", "start", "web")
	r := m.Fails(1, "web", "inspect", "web")
	if strings.TrimSpace(r.Out) != "[]" {
		t.Errorf("inspect of what is not there prints %q", r.Out)
	}
}

// TestStopKillsTheDeaf: a process that ignores the signal is killed when its grace is over.
func TestStopKillsTheDeaf(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "deaf", image, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
	harness.Eventually(t, 5*time.Second, "it is up", func() bool { return m.Must("logs", "deaf") == "up" })
	began := time.Now()
	m.Must("stop", "-t", "1", "deaf")
	if d := time.Since(began); d < time.Second || d > 10*time.Second {
		t.Errorf("stop took %v", d)
	}
	if out := m.Must("inspect", "-f", "{{.State.ExitCode}}", "deaf"); out != "137" {
		t.Errorf("exit code %q", out)
	}
}

// TestOOM: the reason of an exit is told where memory was the reason.
func TestOOM(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	r := m.Try("run", "--name", "hungry", "-m", "16m", image, "sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done")
	if r.Code != 137 || !strings.Contains(r.Err, "memory") {
		t.Errorf("exit %d\n%s", r.Code, r.Err)
	}
	if out := m.Must("inspect", "-f", "{{.State.OOMKilled}}", "hungry"); out != "true" {
		t.Errorf("OOMKilled %q", out)
	}
}

// TestRestartPolicy: the shim starts it again, also while no daemon is there.
func TestRestartPolicy(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	share := filepath.Join(m.Dir, "share")
	if err := os.MkdirAll(share, 0o755); err != nil {
		t.Fatal(err)
	}
	runs := func() int {
		raw, _ := os.ReadFile(filepath.Join(share, "runs"))
		return strings.Count(string(raw), "run\n")
	}
	m.Must("run", "-d", "--name", "again", "--restart", "on-failure:3", "-v", share+":/share", image, "sh", "-c", "echo run >> /share/runs; exit 1")
	m.Kill()
	harness.Eventually(t, 20*time.Second, "four runs", func() bool { return runs() == 4 })
	m.Start()
	harness.Eventually(t, 10*time.Second, "it has come to rest", func() bool {
		return m.Must("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "again") == "exited 1 3"
	})
	m.Must("run", "-d", "--name", "forever", "--restart", "always", image, "sleep", "1000")
	m.Must("stop", "-t", "0", "forever")
	time.Sleep(300 * time.Millisecond) // longer than the first back-off: it must not come back
	if out := m.Must("inspect", "-f", "{{.State.Status}}", "forever"); out != "exited" {
		t.Errorf("stopped by the user, and now %q", out)
	}
}
