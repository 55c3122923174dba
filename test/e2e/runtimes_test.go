package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// runtimes are the OCI runtimes that test/setup.sh installs.
var runtimes = []string{"crun", "runc"}

// eachRuntime runs a test with a machine for every one of them.
func eachRuntime(t *testing.T, test func(t *testing.T, m *harness.Machine, name string)) {
	t.Parallel()
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Fatalf("%v: install it with test/setup.sh", err)
			}
			test(t, harness.New(t), name)
		})
	}
}

// TestRuntimes is a table of what containers see that another program has made.
func TestRuntimes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, m *harness.Machine, name string) {
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
			{"exit code", nil, []string{"sh", "-c", "echo oops >&2; exit 42"}, 42, "oops"},
			{"no command", nil, []string{"not-there"}, 127, "~exec not-there: executable file not found in $PATH"},
			{"no path", nil, []string{"/no/such/path"}, 127, "~/no/such/path"},
			{"a directory", nil, []string{"/etc"}, 126, "~exec /etc: is a directory"},
			{"working directory", []string{"-w", "/var/made/for/it"}, []string{"pwd"}, 0, "/var/made/for/it"},
			{"user by name", []string{"-u", "user"}, []string{"sh", "-c", "id -u; id -g; id -G; echo $HOME"}, 0, "1000\n1000\n1000 2000\n/home"},
			{"unknown user", []string{"-u", "nobody-here"}, []string{"id"}, 125, "~nobody-here"},
			{"hostname", []string{"--hostname", "box"}, []string{"sh", "-c", "hostname; grep -c box /etc/hosts"}, 0, "box\n1"},
			{"bind", []string{"-v", share + ":/share"}, []string{"cat", "/share/file"}, 0, "from the host"},
			{"bind read-only", []string{"-v", share + ":/share:ro"}, []string{"touch", "/share/new"}, 1, "~Read-only"},
			{"tmpfs", []string{"--tmpfs", "/scratch:size=1m"}, []string{"sh", "-c", "grep /scratch /proc/mounts | cut -d' ' -f1,3"}, 0, "tmpfs tmpfs"},
			{"read-only root", []string{"--read-only"}, []string{"touch", "/new"}, 1, "~Read-only"},
			{"pids", []string{"--pids-limit", "20"}, []string{"sh", "-c", "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"}, 0, "20"},
			{"ulimit", []string{"--ulimit", "nofile=100:200"}, []string{"sh", "-c", "ulimit -n; ulimit -Hn"}, 0, "100\n200"},
			{"capabilities", nil, []string{"grep", "CapEff", "/proc/self/status"}, 0, "CapEff:\t00000000a80425fb"},
			{"seccomp", nil, []string{"sh", "-c", "grep Seccomp: /proc/self/status; unshare -m true 2>&1 | grep -c ermi"}, 0, "Seccomp:\t2\n1"},
			{"masked", nil, []string{"sh", "-c", "wc -c < /proc/keys; ls /sys/firmware | wc -l"}, 0, "0\n0"},
			{"network none", []string{"--network", "none"}, []string{"sh", "-c", "ls /sys/class/net"}, 0, "lo"},
			{"bridge", nil, []string{"sh", "-c", "ls /sys/class/net; ping -c1 -W5 " + harness.OutsideAddress + " >/dev/null && echo out"}, 0, "eth0\nlo\nout"},
			{"no init", []string{"--init"}, []string{"true"}, 125, "~runtime " + name + ": it has no small init"},
		} {
			t.Run(c.name, func(t *testing.T) {
				args := append(append(append([]string{"run", "--rm", "--runtime", name}, c.flags...), image), c.args...)
				r := m.Try(args...)
				got := strings.TrimSpace(r.All())
				want, contained := strings.CutPrefix(c.want, "~")
				if r.Code != c.code || contained && !strings.Contains(got, want) || !contained && got != want {
					t.Errorf("gantry %s: exit %d, want %d\n got %q\nwant %q", strings.Join(args, " "), r.Code, c.code, got, want)
				}
			})
		}
	})
}

// TestRuntimeLife walks a container that another program has made through every state.
func TestRuntimeLife(t *testing.T) {
	eachRuntime(t, func(t *testing.T, m *harness.Machine, name string) {
		image := m.Busybox()
		m.Must("run", "-d", "--runtime", name, "--name", "web", image, "sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done")
		harness.Eventually(t, 5*time.Second, "its first line is in the log", func() bool { return m.Must("logs", "web") == "up" })
		if out := m.Must("inspect", "-f", "{{.HostConfig.Runtime}}", "web"); out != name {
			t.Errorf("inspect: runtime %q", out)
		}
		if r := m.Try("exec", "-u", "user", "web", "sh", "-c", "id -u; exit 3"); r.Code != 3 || strings.TrimSpace(r.Out) != "1000" {
			t.Errorf("exec: exit %d, %q %q", r.Code, r.Out, r.Err)
		}
		if r := m.TryIn(strings.NewReader("text"), "exec", "-i", "web", "cat"); r.Code != 0 || r.Out != "text" {
			t.Errorf("exec -i: exit %d, %q %q", r.Code, r.Out, r.Err)
		}
		m.Fails(127, "not-there", "exec", "web", "not-there")
		m.Must("pause", "web")
		m.Fails(125, "paused", "exec", "web", "true")
		m.Must("unpause", "web")
		m.Restart() // kill -9 of the daemon
		m.Must("exec", "web", "true")
		m.Must("stop", "web")
		if out := m.Must("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web"); out != "exited 7" {
			t.Errorf("stopped: %q", out)
		}
		if out := m.Must("logs", "web"); out != "up\nbye" {
			t.Errorf("logs: %q", out)
		}
		m.Must("restart", "-t", "1", "web")
		m.Must("kill", "web")
		if out := m.Must("wait", "web"); out != "137" {
			t.Errorf("wait after kill: %q", out)
		}
	})
}

// TestRuntimeTerminal is a person at a shell that another program has made, and at one beside it.
func TestRuntimeTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, m *harness.Machine, name string) {
		image := m.Busybox()
		for _, args := range [][]string{
			{"run", "-it", "--runtime", name, "--name", "c", "-e", "PS1=ready> ", image, "sh"},
			{"exec", "-it", "-e", "PS1=ready> ", "c", "sh"},
		} {
			term := onTerminal(t, m, args...)
			term.expect("ready> ")
			term.write("stty size\r")
			term.expect("24 80")
			term.size(132, 50)
			term.write("sleep 0.2; stty size\r")
			term.expect("50 132")
			term.expect("ready> ")
			term.write("test -t 0 && test -t 2 && tty\r")
			term.expect("/dev/pts/")
			term.expect("ready> ")
			if args[0] == "run" {
				term.write("\x10\x11") // ctrl-p ctrl-q
				if code := term.exit(); code != 0 {
					t.Errorf("detach: exit %d", code)
				}
				continue
			}
			term.write("exit 5\r")
			if code := term.exit(); code != 5 {
				t.Errorf("exit %d", code)
			}
		}
	})
}

// TestRuntimeShimDies: of a container that another program has made nothing is left when its shim is
// killed, and nothing when it is made again. (The machine's end looks for processes, mounts and cgroups.)
func TestRuntimeShimDies(t *testing.T) {
	eachRuntime(t, func(t *testing.T, m *harness.Machine, name string) {
		image := m.Busybox()
		id := m.Must("run", "-d", "--runtime", name, "--name", "c", image, "sh", "-c", "sleep 1000 & sleep 1000")
		m.Must("exec", "-d", "c", "sleep", "1000")
		if err := unix.Kill(parent(t, m.Must("inspect", "-f", "{{.State.Pid}}", "c")), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if out := m.Must("wait", "c"); out != "137" {
			t.Errorf("wait: %q", out)
		}
		if out := m.Must("inspect", "-f", "{{.Gantry.Reason}}", "c"); out != "shim-lost" {
			t.Errorf("reason %q", out)
		}
		if _, err := os.Stat(filepath.Join(m.State, "c", id)); !os.IsNotExist(err) {
			t.Errorf("the state directory is left: %v", err)
		}
		m.Must("start", "c")
		m.Must("exec", "c", "true")
	})
}

// TestRuntimeNames: which there are is configured, and told; other programs are not executed.
func TestRuntimeNames(t *testing.T) {
	t.Parallel()
	m := harness.Bare(t)
	path, err := exec.LookPath("crun")
	if err != nil {
		t.Fatalf("%v: install it with test/setup.sh", err)
	}
	config := filepath.Join(m.Dir, "gantryd.toml")
	write := func(text string) {
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[runtimes.mine]\npath = \"" + path + "\"\nargs = [\"--debug\"]\n")
	harness.Flags("--config", config)(m)
	m.Start()
	image := m.Busybox()
	if out := m.Must("info"); !strings.Contains(out, "native (default), crun, mine") {
		t.Errorf("info: %s", out)
	}
	if out := m.Must("info", "-f", "{{.DefaultRuntime}} {{.Runtimes.mine.Path}} {{.Runtimes.mine.Args}}"); out != "native "+path+" [--debug]" {
		t.Errorf("info: %q", out)
	}
	if out := m.Must("run", "--rm", "--runtime", "mine", image, "echo", "hi"); out != "hi" {
		t.Errorf("run: %q", out)
	}
	m.Fails(2, "there are: crun, mine, native", "create", "--runtime", "other", image)
	m.Fails(2, "is not known", "create", "--runtime", path, image)
	write("[runtimes.other]\npath = \"" + path + "\"\n")
	if err := unix.Kill(m.Pid(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 5*time.Second, "the configuration is read again", func() bool {
		return m.Try("run", "--rm", "--runtime", "other", image, "true").Code == 0
	})
	m.Fails(2, "mine", "create", "--runtime", "mine", image)
}
