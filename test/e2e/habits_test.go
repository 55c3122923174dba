package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// TestHabits does what a hand that knows Docker does, and reads what it is told.
func TestHabits(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", "--label", "tier=front", "-v", "data:/data:z,nocopy", image, "sleep", "1000")
	m.Must("run", "-d", "--name", "web2", "--network", "none", image, "sleep", "1000")
	for filters, want := range map[string]string{
		"name=^web$": "web", "name=^/web$": "web", "name=web": "web2 web", "volume=data": "web", "network=none": "web2", "network=bridge": "web",
		"since=web": "web2", "before=web2": "web", "expose=80": "web", "expose=81": "", "label=tier": "web",
	} {
		if got := strings.Join(strings.Fields(m.Must("ps", "--filter", filters, "--format", "{{.Names}}")), " "); got != want {
			t.Errorf("ps --filter %s: %q, want %q", filters, got, want)
		}
	}
	port := m.Must("ps", "--filter", "name=^web$", "--format", "{{.Ports}}")
	port = port[strings.Index(port, ":")+1 : strings.Index(port, "->")]
	if got := m.Must("ps", "--filter", "publish="+port, "--format", "{{.Names}}"); got != "web" {
		t.Errorf("ps --filter publish=%s: %q", port, got)
	}
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{125, "remove that one (gantry rm), or choose another name\n", []string{"run", "--name", "web", image}},
		{5, "or remove it by force (gantry rm -f web)\n", []string{"rm", "web"}},
		{3, "container \"nobody\": there is none of that name or id\n", []string{"logs", "nobody"}},
		{2, "known are ancestor, before, exited,", []string{"ps", "--filter", "health=healthy"}},
		{2, "known are create, update and remove", []string{"events", "--filter", "event=start"}},
		{2, "no such key of events", []string{"events", "--filter", "colour=red"}},
		{125, "joins no other", []string{"run", "--network", "bridge", "--network", "none", image}},
		{125, "networks are IPv4 only", []string{"create", "-p", "[::1]:80:80", image}},
		{125, "it has 4096 or more", []string{"run", "--log-opt", "max-size=10", image}},
		{125, "needs at least 1 argument", []string{"run"}},
		{125, "it is not there for linux/mips64", []string{"run", "--platform", "linux/mips64", image}},
		{125, "not for linux/mips64", []string{"run", "--pull", "never", "--platform", "linux/mips64", image}},
	} {
		want := c.code
		if c.args[0] == "create" {
			want = 2
		}
		got := m.Try(c.args...)
		if got.Code != want || !strings.Contains(got.Err, c.says) {
			t.Errorf("gantry %s: exit %d: %q, want %d and %q", strings.Join(c.args, " "), got.Code, got.Err, want, c.says)
		}
		for _, class := range []string{": already exists", ": failed precondition", ": invalid argument", ": not found", ": not implemented"} {
			if strings.Contains(got.Err, class) {
				t.Errorf("gantry %s says the class: %q", strings.Join(c.args, " "), got.Err)
			}
		}
	}
	elsewhere := m.Try("run", "--rm", "-p", "192.0.2.77:8080:80", image)
	if elsewhere.Code != 125 || !strings.Contains(elsewhere.Err, "port 192.0.2.77:8080/tcp: this host has no such address\n") || strings.Count(elsewhere.Err, "publish ") != 1 {
		t.Errorf("a port elsewhere: exit %d: %q", elsewhere.Code, elsewhere.Err)
	}
	host := m.Try("run", "--rm", "--network", "host", "-p", "80:80", image, "true")
	if host.Code != 0 || host.Err != "WARNING: Published ports are discarded when using host network mode\n" {
		t.Errorf("ports on the host's network: exit %d: %q", host.Code, host.Err)
	}
	if out := m.Must("events", "--since", "1h", "--until", "0s", "--filter", "type=container", "--filter", "container=web", "--filter", "label=tier=front", "--filter", "phase=running"); !strings.Contains(out, "name=web") {
		t.Errorf("events: %q", out)
	}
	m.Must("tag", image, "other:1")
	if tags, digests := m.Must("image", "inspect", "-f", "{{len .RepoTags}}", "other:1"), m.Must("image", "inspect", "-f", "{{.RepoDigests}}", "other:1"); tags != "2" || !strings.HasPrefix(digests, "["+image[:strings.LastIndex(image, ":")]+"@sha256:") {
		t.Errorf("inspect: %s tags, digests %s", tags, digests)
	}
	m.Must("stop", "--timeout", "30", "-s", "KILL", "web")
	if out := m.Must("inspect", "-f", "{{.State.ExitCode}}", "web"); out != "137" {
		t.Errorf("stopped by KILL: exit %s", out)
	}
}

// TestLimitsAreTold: a limit above what the host allows is set as high as may be, and whoever starts is told.
func TestLimitsAreTold(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		t.Fatal(err)
	}
	got := m.Try("run", "--name", "c", "--ulimit", fmt.Sprintf("nofile=%d", have.Max+1), image, "sh", "-c", "ulimit -Hn")
	lowered := strings.TrimSpace(got.Out) == fmt.Sprint(have.Max)
	if warned := strings.HasPrefix(got.Err, "WARNING: ") && strings.Contains(got.Err, "RLIMIT_NOFILE"); got.Code != 0 || warned != lowered {
		t.Errorf("exit %d: the limit is %q: %q", got.Code, got.Out, got.Err)
	}
	if shown := m.Must("inspect", "-f", "{{.State.Warnings}}", "c"); strings.Contains(shown, "RLIMIT_NOFILE") != lowered {
		t.Errorf("inspect: %q", shown)
	}
}

// TestDaemonGoesAway: whoever follows a container is told that the daemon went, not to start one.
func TestDaemonGoesAway(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sh", "-c", "echo ready; sleep 1000")
	for _, how := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM} {
		var followers []*exec.Cmd
		var said []*bytes.Buffer
		for _, args := range [][]string{{"wait", "c"}, {"logs", "-f", "c"}, {"attach", "c"}, {"exec", "c", "sh", "-c", "echo ready; sleep 1000"}} {
			cmd, stderr := m.Command(args...), new(bytes.Buffer)
			cmd.Stderr = stderr
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err == nil && args[0] != "wait" { // which has nothing to say, and began first
				_, err = out.Read(make([]byte, len("ready")))
			}
			if err != nil {
				t.Fatal(args, err)
			}
			followers, said = append(followers, cmd), append(said, stderr)
		}
		if how == unix.SIGKILL {
			m.Kill()
		} else {
			m.Halt()
		}
		for i, cmd := range followers {
			err := cmd.Wait()
			text := said[i].String()
			if err == nil || !strings.Contains(text, "the daemon went away") || strings.Contains(text, "start one with") || strings.Contains(text, "goaway") {
				t.Errorf("%v, after %v: %v: %q", cmd.Args[1:], how, err, text)
			}
		}
		m.Start()
	}
	if out := m.Must("inspect", "-f", "{{.State.Status}}", "c"); out != "running" {
		t.Errorf("the container is %s", out)
	}
}
