// Package harness gives a test a machine of its own inside this one: directories, a network
// namespace, a registry and a daemon with real shims and plugins. At the test's end it proves
// that no process, mount, cgroup, namespace, link or rule was left.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Machine is what a test has of its own.
type Machine struct {
	T        testing.TB
	Dir      string // everything is below it
	Root     string // --root
	State    string // --state
	Host     string // address of the daemon
	Bin      string // directory of the programs
	NS       *NetNS
	Instance string

	daemon *exec.Cmd
	ended  chan error
	level  []string // flags that say how much the daemon says
	flags  []string
	env    []string
}

// Option changes a Machine before its daemon starts.
type Option func(*Machine)

// Flags adds flags to the daemon's.
func Flags(flags ...string) Option { return func(m *Machine) { m.flags = append(m.flags, flags...) } }

// Env adds variables to the daemon's environment.
func Env(vars ...string) Option { return func(m *Machine) { m.env = append(m.env, vars...) } }

// LevelFromFile leaves it to the configuration file how much the daemon says; else it says all.
func LevelFromFile() Option { return func(m *Machine) { m.level = nil } }

// WithFaults runs programs that were built with failpoints.
func WithFaults() Option { return func(m *Machine) { m.Bin = Programs(m.T, "fault") } }

// New makes a machine and starts its daemon.
func New(t testing.TB, options ...Option) *Machine {
	t.Helper()
	m := Bare(t, options...)
	m.Start()
	return m
}

// Bare makes a machine whose daemon does not run yet.
func Bare(t testing.TB, options ...Option) *Machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes containers: run it as root")
	}
	// Short, because the path of a unix socket is.
	dir, err := os.MkdirTemp("/var/tmp", "gy")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	m := &Machine{T: t, Dir: dir, Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Bin: Programs(t, "")}
	m.level = []string{"--log-level", "debug"}
	m.Host = "unix://" + m.State + "/gantry.sock"
	m.Instance = instance(m.Root)
	for _, o := range options {
		o(m)
	}
	m.NS = NewNetNS(t)
	before, err := m.observe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.end(before) })
	return m
}

// end stops everything in the order in which an operator would, and compares.
func (m *Machine) end(before observation) {
	if m.T.Failed() {
		m.T.Logf("daemon log:\n%s", tail(m.LogPath(), 200))
	}
	if m.daemon == nil && m.T.Failed() {
		m.sweepUp()
		return
	}
	if m.removed() {
		m.compare(before)
		m.sweepUp()
		return
	}
	if m.daemon == nil {
		m.Start()
	}
	if out := m.Try("ps", "-aq", "--no-trunc"); out.Code == 0 {
		if ids := strings.Fields(out.Out); len(ids) > 0 {
			m.Try(append([]string{"rm", "-f", "-v"}, ids...)...)
		}
	}
	if out := m.Try("system", "check"); out.Code != 0 {
		m.T.Errorf("system check at the end of the test: %s%s", out.Out, out.Err)
	}
	m.Stop()
	m.compare(before)
	m.sweepUp()
}

// removed reports whether the test has itself taken the whole machine away.
func (m *Machine) removed() bool {
	_, err := os.Stat(m.Dir)
	return errors.Is(err, fs.ErrNotExist)
}

// compare wants nothing of the machine to be left.
func (m *Machine) compare(before observation) {
	if left := m.leaks(before); len(left) > 0 {
		if !m.T.Failed() { // else it was shown already
			m.T.Logf("daemon log:\n%s", tail(m.LogPath(), 100))
		}
		m.T.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
}

// LogPath is the file with what the daemon says.
func (m *Machine) LogPath() string { return filepath.Join(m.Dir, "gantryd.log") }

// Result is how a program ended.
type Result struct {
	Out, Err string
	Code     int
}

// All is both streams.
func (r Result) All() string { return r.Out + r.Err }

// Try runs gantry with args.
func (m *Machine) Try(args ...string) Result { return m.TryIn(nil, args...) }

// TryIn runs gantry with args and something on stdin.
func (m *Machine) TryIn(in io.Reader, args ...string) Result {
	m.T.Helper()
	cmd := m.Command(args...)
	cmd.Stdin = in
	return m.Run(cmd)
}

// Must runs gantry with args, wants success, and returns stdout without its last newline.
func (m *Machine) Must(args ...string) string {
	m.T.Helper()
	r := m.Try(args...)
	if r.Code != 0 {
		m.T.Fatalf("gantry %s: exit %d\n%s%s", strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return strings.TrimSuffix(r.Out, "\n")
}

// Fails runs gantry with args and wants it to end with code and say words.
func (m *Machine) Fails(code int, words string, args ...string) Result {
	m.T.Helper()
	r := m.Try(args...)
	if r.Code != code || !strings.Contains(r.All(), words) {
		m.T.Errorf("gantry %s: exit %d, want %d and %q\n%s%s", strings.Join(args, " "), r.Code, code, words, r.Out, r.Err)
	}
	return r
}

// Command is gantry with args, not yet run, in the machine's network namespace.
func (m *Machine) Command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Minute, errors.New("the test's own limit"))
	m.T.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(m.Bin, "gantry"), args...)
	cmd.Env = append(os.Environ(), "GANTRY_HOST="+m.Host)
	return cmd
}

// Run runs a prepared command to its end.
func (m *Machine) Run(cmd *exec.Cmd) Result {
	m.T.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	var err error
	m.NS.Do(func() { err = cmd.Run() })
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.T.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, errOut.String())
	}
	return Result{Out: out.String(), Err: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

// Sh runs a shell line in the machine's network namespace and wants success.
func (m *Machine) Sh(line string, args ...any) string {
	m.T.Helper()
	cmd := exec.Command("sh", "-ec", fmt.Sprintf(line, args...))
	r := m.Run(cmd)
	if r.Code != 0 {
		m.T.Fatalf("%s: exit %d\n%s%s", cmd.Args[2], r.Code, r.Out, r.Err)
	}
	return strings.TrimSuffix(r.Out, "\n")
}

// Eventually wants ok within limit, and asks again until then.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func tail(path string, lines int) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	return strings.Join(all[max(len(all)-lines, 0):], "\n")
}
