package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

const short = "4f1c2e9a0b7d"

func exits(code uint32, why string) func(process) *typesv1.Exit {
	return func(p process) *typesv1.Exit {
		p.out("out\n")
		p.err("err\n")
		return &typesv1.Exit{Code: code, Reason: why}
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	t.Run("hello", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.expect(t, 0, "hello\n", "", "run", "hello")
		d.wasCalled(t, "create hello", "attach "+short+" await=true stdin=false", "start "+short)
	})
	t.Run("its own code, and its streams apart", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.process = exits(42, "")
		d.expect(t, 42, "out\n", "err\n", "run", "hello")
	})
	t.Run("says why", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.process = exits(137, "oom")
		d.expect(t, 137, "out\n", "needed more memory than it may have (see --memory)", "run", "-m", "8m", "hello")
	})
	t.Run("detached", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.expect(t, 0, id+"\n", "", "run", "-d", "hello")
		d.wasCalled(t, "create hello", "start "+short)
	})
	t.Run("stdin", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.env.In = strings.NewReader("typed")
		d.process = func(p process) *typesv1.Exit {
			for in := p.in(); in != nil && !in.GetStdinEof(); in = p.in() {
				p.out(string(in.GetStdin()))
			}
			return &typesv1.Exit{}
		}
		d.create = func(r *containersv1.CreateRequest) error {
			if s := r.GetSpec(); !s.GetOpenStdin() || !s.GetStdinOnce() {
				return errors.New("stdin is not open, or not once")
			}
			return nil
		}
		d.expect(t, 0, "typed", "", "run", "-i", "hello")
	})
	t.Run("a stream that ends too early is no success", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.process = func(process) *typesv1.Exit { return nil }
		d.expect(t, 125, "", "without saying how the process ended", "run", "hello")
	})
}

func TestRunFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		start error
		code  int
		want  string
		args  []string
		calls []string
	}{
		{
			"engine", status.Error(codes.Internal, "start container web: disk is full"), 125, "gantry: start container web: disk is full\n",
			[]string{"run", "hello"},
			[]string{"create hello", "attach " + short + " await=true stdin=false", "start " + short},
		},
		{
			"not executable", reason(codes.FailedPrecondition, "command-not-executable", "exec /: is a directory"), 126, "gantry: exec /: is a directory\n",
			[]string{"run", "hello", "/"},
			[]string{"create hello", "attach " + short + " await=true stdin=false", "start " + short},
		},
		{
			"not there, --rm", reason(codes.NotFound, "command-not-found", "exec nope: not found"), 127, "gantry: exec nope: not found\n",
			[]string{"run", "--rm", "hello", "nope"},
			[]string{"create hello", "attach " + short + " await=true stdin=false", "start " + short, "remove " + short + " force=true volumes=false"},
		},
		{
			"detached, --rm", reason(codes.NotFound, "command-not-found", "exec nope: not found"), 127, "gantry: exec nope: not found\n",
			[]string{"run", "--rm", "-d", "hello", "nope"},
			[]string{"create hello", "start " + short, "remove " + short + " force=true volumes=false"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			d.start = func(*containersv1.StartRequest) error { return c.start }
			d.expect(t, c.code, "", c.want, c.args...)
			d.wasCalled(t, c.calls...)
		})
	}
	t.Run("attach, --rm", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.refuse = status.Error(codes.Unavailable, "attach container web: the store is closing")
		d.expect(t, 125, "", "the store is closing", "run", "--rm", "hello")
		d.wasCalled(t, "create hello", "attach "+short+" await=true stdin=false", "remove "+short+" force=true volumes=false")
	})
	t.Run("create", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.create = func(*containersv1.CreateRequest) error {
			return status.Error(codes.AlreadyExists, "create container: name web: already exists")
		}
		d.expect(t, 125, "", "already exists", "run", "--name", "web", "hello")
	})
}

func TestRunPulls(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		here  bool
		pull  error
		args  []string
		code  int
		calls []string
	}{
		{"missing", false, nil, nil, 0, []string{"create hello", "pull hello platform=", "create hello", "start " + short}},
		{"missing, for a platform", false, nil, []string{"--platform", "linux/arm64"}, 0, []string{"pull hello platform=linux/arm64", "create hello", "start " + short}},
		{"here", true, nil, nil, 0, []string{"create hello", "start " + short}},
		{"always", true, nil, []string{"--pull", "always"}, 0, []string{"pull hello platform=", "create hello", "start " + short}},
		{"never", false, nil, []string{"--pull=never"}, 125, []string{"create hello"}},
		{"failed", false, status.Error(codes.Unavailable, "pull image hello: registry answers 503"), nil, 125, []string{"create hello", "pull hello platform="}},
		{"sometimes", true, nil, []string{"--pull=sometimes"}, 125, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			d.images.here, d.images.pull = c.here, c.pull
			if got := d.gantry(append(append([]string{"run", "-d"}, c.args...), "hello")...); got != c.code {
				t.Errorf("exit %d: %s", got, d.err.String())
			}
			d.wasCalled(t, c.calls...)
			if c.code == 0 && d.out.String() != id+"\n" {
				t.Errorf("stdout %q: how the pull goes does not belong there", d.out.String())
			}
		})
	}
	t.Run("quiet", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.images.here = false
		d.expect(t, 0, id+"\n", "", "run", "-q", "-d", "hello")
	})
}

// TestSpec is how the words of the command line arrive.
func TestSpec(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	var got *containersv1.CreateRequest
	d.create = func(r *containersv1.CreateRequest) error {
		got = r
		return nil
	}
	cid := filepath.Join(t.TempDir(), "cid")
	d.expect(t, 0, id+"\n", "", "create", "--name", "web", "-e", "A=b", "-l", "x=y", "-w", "/w", "-u", "1:2", "--entrypoint", "/e",
		"-h", "host", "-m", "64m", "--cpus", "1.5", "--pids-limit", "50", "-v", "db:/data:ro", "--tmpfs", "/run:size=1m,mode=700",
		"--network", "back", "-p", "8080:80", "--log-opt", "max-size=1m", "--log-opt", "max-file=2", "--init", "--restart", "on-failure:3",
		"--stop-signal", "INT", "--stop-timeout", "3", "--read-only", "--ulimit", "nofile=10:20", "--add-host", "a:1.2.3.4", "--dns", "1.1.1.1",
		"--security-opt", "no-new-privileges", "--cidfile", cid, "hello", "-m", "not", "--a flag")
	s := got.GetSpec()
	for what, ok := range map[string]bool{
		"name":       got.GetName() == "web" && got.GetLabels()["x"] == "y",
		"words":      s.GetImage() == "hello" && slices.Equal(s.GetArgs(), []string{"-m", "not", "--a flag"}) && slices.Equal(s.GetEntrypoint(), []string{"/e"}) && !s.GetClearEntrypoint(),
		"process":    slices.Equal(s.GetEnv(), []string{"A=b"}) && s.GetWorkdir() == "/w" && s.GetUser() == "1:2" && s.GetHostname() == "host",
		"resources":  s.GetResources().GetMemoryBytes() == 64<<20 && s.GetResources().GetCpuMillis() == 1500 && s.GetResources().GetPids() == 50,
		"mounts":     len(s.GetVolumes()) == 2 && s.GetVolumes()[0].GetReadOnly() && slices.Equal(s.GetVolumes()[1].GetOptions(), []string{"size=1m", "mode=700"}),
		"network":    s.GetNetworks()[0].GetNetwork() == "back" && s.GetPorts()[0].GetHostPort() == 8080 && s.GetExtraHosts()[0] == "a:1.2.3.4" && s.GetDns()[0] == "1.1.1.1",
		"log":        s.GetLog().GetMaxBytes() == 1<<20 && s.GetLog().GetMaxFiles() == 2,
		"life":       s.GetInit() && s.GetReadOnly() && s.GetNoNewPrivileges() && s.GetStopSignal() == "INT" && s.GetStopGrace().AsDuration() == 3*time.Second,
		"restart":    s.GetRestart().GetWhen() == containersv1.RestartPolicy_WHEN_FAILED && s.GetRestart().GetMaxAttempts() == 3,
		"rlimit":     s.GetRlimits()[0].GetName() == "nofile" && s.GetRlimits()[0].GetSoft() == 10 && s.GetRlimits()[0].GetHard() == 20,
		"no streams": !s.GetTty() && !s.GetOpenStdin() && !s.GetStdinOnce(),
	} {
		if !ok {
			t.Errorf("%s: %v", what, got)
		}
	}
	if b, err := os.ReadFile(cid); err != nil || string(b) != id {
		t.Errorf("--cidfile: %q, %v", b, err)
	}
	if code := d.gantry("create", "--cidfile", cid, "hello"); code != 2 {
		t.Errorf("a cidfile that is there: exit %d", code)
	}
	if code := d.gantry("create", "--entrypoint", "", "hello"); code != 0 || !got.GetSpec().GetClearEntrypoint() {
		t.Errorf("--entrypoint '': exit %d, %v", code, got)
	}
}

// TestUpdate names what it changes, and nothing else.
func TestUpdate(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.expect(t, 0, "web\ndb\n", "", "update", "-m", "64m", "--restart", "always", "--pids-limit", "-1", "web", "db")
	if code := d.gantry("container", "update", "--restart", "no", "web"); code != 0 {
		t.Errorf("exit %d", code)
	}
	const words = "resources.memory_bytes,resources.pids,restart 67108864 0 WHEN_EXITED"
	d.wasCalled(t, "update web "+words, "update db "+words, "update web restart 0 0 WHEN_UNSPECIFIED")
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"create"},
		{"create", "--cpus", "nan", "x"},
		{"create", "--cpus", "0.001", "x"},
		{"create", "-m", "much", "x"},
		{"create", "-m", "-1", "x"},
		{"create", "--pids-limit", "-2", "x"},
		{"create", "--restart", "maybe", "x"},
		{"create", "--restart", "always:3", "x"},
		{"create", "--restart", "on-failure:-1", "x"},
		{"create", "--rm", "--restart", "always", "x"},
		{"create", "--network", "container:", "x"},
		{"create", "--network", "container:y", "-p", "80", "x"},
		{"create", "--network", "none", "-p", "80", "x"},
		{"create", "--network", "bridge", "--network", "none", "x"},
		{"create", "--network", "host", "--net", "back", "x"},
		{"create", "--log-opt", "max-size=0", "x"},
		{"create", "--log-opt", "max-file=0", "x"},
		{"create", "--log-opt", "mode=x", "x"},
		{"create", "--ulimit", "nofile=2:1", "x"},
		{"create", "--security-opt", "seccomp=/no/such/file", "x"},
		{"create", "--stop-timeout", "-1", "x"},
		{"create", "--tmpfs", "run", "x"},
		{"create", "--tmpfs", "/", "x"},
		{"create", "-e", "=", "x"},
		{"create", "-l", "=", "x"},
		{"create", "--nosuchflag", "x"},
		{"ps", "extra"},
		{"ps", "--filter", "x"},
		{"logs"},
		{"logs", "--tail", "x", "web"},
		{"logs", "--since", "x", "web"},
		{"rm"},
		{"nosuchcommand"},
		{"container", "nosuchverb"},
		{"inspect"},
		{"inspect", "--type", "nosuchkind", "x"},
		{"attach", "--detach-keys", "ctrl-", "web"},
		{"wait", "--condition", "x", "web"},
		{"stop", "-t", "-1", "web"},
		{"port"},
		{"update"},
		{"update", "web"},
		{"update", "--memory", "much", "web"},
		{"update", "--restart", "no:3", "web"},
		{"update", "--read-only", "web"},
	} {
		d := newDaemon(t)
		want := 2
		switch args[0] {
		case "exec":
			want = 2
		case "inspect":
			want = map[bool]int{true: 1, false: 2}[len(args) > 1] // told, and then [] as for what is not there
		}
		if code := d.gantry(args...); code != want || d.err.String() == "" {
			t.Errorf("gantry %q: exit %d, %q", args, code, d.err.String())
		}
	}
	for _, args := range [][]string{{"run", "--nosuchflag", "x"}, {"run", "-it", "x"}, {"exec", "-it", "web", "sh"}, {"run", "-p", "x", "y"}} {
		d := newDaemon(t)
		if code := d.gantry(args...); code != 125 || d.err.String() == "" {
			t.Errorf("gantry %q: exit %d, %q", args, code, d.err.String())
		}
		d.wasCalled(t)
	}
	d := newDaemon(t)
	d.expect(t, 2, "", `did you mean "stop"? see "gantry --help"`, "stpo")
}

func TestExec(t *testing.T) {
	t.Parallel()
	t.Run("its own code", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.process = exits(7, "")
		d.expect(t, 7, "out\n", "err\n", "exec", "-e", "A=b", "-u", "me", "web", "ls", "-l")
		d.wasCalled(t, `exec web ["ls" "-l"] env=["A=b"] user=me detach=false stdin=false`)
	})
	t.Run("detached", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.expect(t, 0, "", "", "exec", "-d", "web", "sleep", "9")
	})
	t.Run("ends too early", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		d.process = func(process) *typesv1.Exit { return nil }
		d.expect(t, 125, "", "without saying", "exec", "web", "ls")
	})
	for code, err := range map[int]error{
		125: status.Error(codes.FailedPrecondition, "exec in container web: it does not run"),
		126: reason(codes.FailedPrecondition, "command-not-executable", "exec /: is a directory"),
		127: reason(codes.NotFound, "command-not-found", "exec nope: not found"),
	} {
		d := newDaemon(t)
		d.refuse = err
		d.expect(t, code, "", status.Convert(err).Message()+"\n", "exec", "-i", "web", "x")
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	old, running := container(&containersv1.Spec{Image: "debian"}), container(&containersv1.Spec{Image: "nginx", Ports: []*containersv1.PortMapping{{ContainerPort: 80}}})
	old.Meta.Id, old.Meta.Name, old.Command = strings.Repeat("b", 64), "old", []string{"sleep", "1000000000000000000"}
	old.Meta.CreatedAt = timestamppb.New(now.Add(-48 * time.Hour))
	old.Status = &containersv1.Status{Phase: containersv1.Phase_PHASE_EXITED, Exit: &typesv1.Exit{Code: 3, At: timestamppb.New(now.Add(-time.Hour))}}
	running.Command, running.Meta.Labels = []string{"nginx"}, map[string]string{"b": "2", "a": "1"}
	running.Status = &containersv1.Status{
		Phase: containersv1.Phase_PHASE_RUNNING, StartedAt: timestamppb.New(now.Add(-10 * time.Minute)),
		Ports: []*containersv1.PortMapping{{HostPort: 8080, ContainerPort: 80}},
	}
	for _, c := range []struct{ args, call, out string }{
		{
			"ps", "list all=false ",
			"CONTAINER ID   IMAGE     COMMAND                  CREATED             STATUS                         PORTS                  NAMES\n" +
				short + "   nginx     \"nginx\"                  About an hour ago   Up 10 minutes                  0.0.0.0:8080->80/tcp   web\n" +
				"bbbbbbbbbbbb   debian    \"sleep 1000000000000…\"   2 days ago          Exited (3) About an hour ago                          old\n",
		},
		{"ps -q", "list all=false ", short + "\nbbbbbbbbbbbb\n"},
		{"ps -aq --no-trunc", "list all=true ", id + "\n" + old.Meta.Id + "\n"},
		{"ps -l --format {{.Names}}", "list all=true ", "web\n"},
		{"ps -n 2 --format {{.Names}}", "list all=true ", "web\nold\n"},
		{"ps -f status=exited -f name=x --format {{.State}}", "list all=true status=exited name=x", "running\nexited\n"},
		{"ps -f label=a=1 --format {{.Labels}}|{{.Ports}}|{{.Networks}}", "list all=false label=a=1", "a=1,b=2|0.0.0.0:8080->80/tcp|bridge\n||bridge\n"},
		{`ps --format table\x20{{.Names}}\t{{.Labels}}`, "list all=false ", "NAMES     LABELS\nweb       a=1,b=2\nold       \n"},
	} {
		d := newDaemon(t)
		d.found = []*containersv1.Container{old, running}
		args := strings.Fields(c.args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], `\x20`, " ")
		}
		d.expect(t, 0, c.out, "", args...)
		d.wasCalled(t, c.call)
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.images.here = false
	d.expect(t, 1, "[]\n", "gantry: container, image, network or volume nope: not found\n", "inspect", "nope")
	d = newDaemon(t)
	d.expect(t, 1, "[]\n", "gantry: get container nope: not found\n", "container", "inspect", "nope")

	here := func(ref string) (*containersv1.Container, error) {
		if ref != "web" {
			return nil, status.Errorf(codes.NotFound, "get container %s: not found", ref)
		}
		c := container(&containersv1.Spec{Image: "nginx"})
		c.Status = &containersv1.Status{Phase: containersv1.Phase_PHASE_RUNNING, Pid: 1234567}
		return c, nil
	}
	d = newDaemon(t)
	d.get = here
	d.expect(t, 0, id+" 1234567 /web true\n", "", "inspect", "-f", "{{.Id}} {{.State.Pid}} {{.Name}} {{.State.Running}}", "web")
	d = newDaemon(t)
	d.get, d.images.here = here, false
	if code := d.gantry("inspect", "--type", "container", "nope", "web"); code != 1 || !strings.Contains(d.out.String(), `"Name": "/web"`) || !strings.Contains(d.err.String(), "container nope: not found") {
		t.Errorf("one there, one not: exit %d, %q, %q", code, d.out.String(), d.err.String())
	}
	d = newDaemon(t)
	d.get = func(string) (*containersv1.Container, error) {
		return nil, status.Error(codes.FailedPrecondition, "get container a: 2 containers begin so")
	}
	d.expect(t, 1, "[]\n", "2 containers begin so", "inspect", "a")
}

func TestLogs(t *testing.T) {
	t.Parallel()
	at := func(nanos int64) *timestamppb.Timestamp { return timestamppb.New(now.Add(time.Duration(nanos))) }
	d := newDaemon(t)
	d.records = []*containersv1.LogRecord{
		{At: at(0), Data: []byte("one\n")},
		{At: at(1), Data: []byte("lo"), Partial: true},
		{At: at(2), Data: []byte("ng"), Partial: true},
		{At: at(3), Stderr: true, Data: []byte("oops\n")},
		{At: at(4), Data: []byte("er\n")},
		{Notice: "12 torn bytes skipped"},
		{At: at(5), Data: []byte("last")},
	}
	d.expect(t, 0, "2026-01-02T03:04:05.000000000Z one\n2026-01-02T03:04:05.000000001Z longer\n2026-01-02T03:04:05.000000005Z last",
		"2026-01-02T03:04:05.000000003Z oops\ngantry: 12 torn bytes skipped\n", "logs", "-t", "--tail", "5", "web")
	d.wasCalled(t, "logs web tail=5 follow=false")

	// Where both go to one terminal, they come in the order in which they were written.
	d2 := newDaemon(t)
	d2.records, d2.env.Err = d.records, &d2.out
	d2.expect(t, 0, "one\nlongoops\ner\ngantry: 12 torn bytes skipped\nlast", "", "logs", "-f", "web")
	d2.wasCalled(t, "logs web tail=-1 follow=true")
}

func TestRemove(t *testing.T) {
	t.Parallel()
	missing := func(r *containersv1.RemoveRequest) error {
		if r.GetRef() == "nope" {
			return status.Error(codes.NotFound, "remove container nope: not found")
		}
		return nil
	}
	d := newDaemon(t)
	d.remove = missing
	d.expect(t, 0, "web\n", "", "rm", "-f", "nope", "web")
	d.wasCalled(t, "remove nope force=true volumes=false", "remove web force=true volumes=false")
	d = newDaemon(t)
	d.remove = missing
	d.expect(t, 3, "web\n", "gantry: remove container nope: not found\n", "rm", "-v", "nope", "web")
	d.wasCalled(t, "remove nope force=false volumes=true", "remove web force=false volumes=true")
}

func TestPort(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.get = func(string) (*containersv1.Container, error) {
		c := container(&containersv1.Spec{})
		c.Status = &containersv1.Status{Phase: containersv1.Phase_PHASE_RUNNING, Ports: []*containersv1.PortMapping{
			{HostPort: 9443, ContainerPort: 443, Protocol: "tcp"}, {HostPort: 8000, ContainerPort: 80, Count: 2}, {HostAddress: "::1", HostPort: 53, ContainerPort: 53, Protocol: "udp"},
		}}
		return c, nil
	}
	d.expect(t, 0, "53/udp -> [::1]:53\n80/tcp -> 0.0.0.0:8000\n81/tcp -> 0.0.0.0:8001\n443/tcp -> 0.0.0.0:9443\n", "", "port", "web")
	if d.gantry("port", "web", "443") != 0 || !strings.HasSuffix(d.out.String(), "\n0.0.0.0:9443\n") {
		t.Errorf("one port: %q", d.out.String())
	}
	if code := d.gantry("port", "web", "444/udp"); code != 3 || d.gantry("port", "web", "x") != 2 {
		t.Errorf("a port that is not published: exit %d", code)
	}
}
