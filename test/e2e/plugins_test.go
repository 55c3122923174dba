package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// pluginPid is the process that serves a driver now, 0 if none does.
func pluginPid(m *harness.Machine, plugin string) int {
	n, _ := strconv.Atoi(strings.TrimSpace(m.Try("plugin", "inspect", "-f", "{{.Pid}}", plugin).Out))
	return n
}

// TestPluginsDie kills a driver's process in the middle of 200 parallel runs: each run succeeds
// or names the plugin; then 200 more succeed; and nothing is left.
func TestPluginsDie(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "--rm", image, "true")
	for _, plugin := range []string{"snapshotter/overlay", "network/bridge"} {
		stop := make(chan struct{})
		var killer sync.WaitGroup
		killer.Add(1)
		kills := 0
		go func() {
			defer killer.Done()
			for {
				select {
				case <-stop:
					return
				case <-time.After(1200 * time.Millisecond):
				}
				if pid := pluginPid(m, plugin); pid > 0 && unix.Kill(pid, unix.SIGKILL) == nil {
					kills++
				}
			}
		}()
		failed := many(m, 200, image, func(r harness.Result) {
			if _, name, _ := strings.Cut(plugin, "/"); !strings.Contains(r.Err, "driver "+name+": ") {
				t.Errorf("%s was killed, and a run failed without naming it: exit %d %s", plugin, r.Code, r.Err)
			}
		})
		close(stop)
		killer.Wait()
		t.Logf("%s: %d kills, %d of 200 runs failed", plugin, kills, failed)
		if kills == 0 {
			t.Errorf("%s was never killed", plugin)
		}
		if failed := many(m, 200, image, func(r harness.Result) { t.Errorf("afterwards: exit %d %s", r.Code, r.Err) }); failed > 0 {
			t.Errorf("%s: %d of 200 runs failed afterwards", plugin, failed)
		}
		m.Must("system", "check")
	}
}

// TestPluginThatDoesNotStart: whoever needs it is told which driver, what was asked of it, and why it does not run; the others
// go on.
func TestPluginThatDoesNotStart(t *testing.T) {
	t.Parallel()
	for plugin, c := range map[string]struct {
		says   string
		need   []string // what fails
		spared []string
	}{
		"network/bridge":      {"driver bridge: ", []string{"run", "--rm", "hello"}, []string{"run", "--rm", "--network", "none", "hello"}},
		"snapshotter/overlay": {"driver overlay: ", []string{"run", "--rm", "hello"}, []string{"run", "--rm", "--snapshotter", "native", "hello"}},
	} {
		t.Run(plugin, func(t *testing.T) {
			m := harness.Bare(t)
			config := filepath.Join(m.Dir, "gantryd.toml")
			if err := os.WriteFile(config, []byte("[plugins.\""+plugin+"\"]\npath = \"/bin/false\"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			harness.Flags("--config", config)(m)
			m.Start()
			m.Fails(125, c.says, c.need...)
			m.Must(c.spared...)
			if err := os.WriteFile(config, nil, 0o600); err != nil { // so that what comes after can compare
				t.Fatal(err)
			}
			m.Restart()
			m.Must(c.need...)
		})
	}
}

// many runs n containers, 8 at a time, and returns how many failed.
func many(m *harness.Machine, n int, image string, onFailure func(harness.Result)) int {
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var mu sync.Mutex
	failed := 0
	var all sync.WaitGroup
	for range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range work {
				if r := m.Try("run", "--rm", image, "true"); r.Code != 0 {
					mu.Lock()
					failed++
					onFailure(r)
					mu.Unlock()
				}
			}
		}()
	}
	all.Wait()
	return failed
}

// TestHungPlugin: a stopped driver hangs only those who need it, and for a bounded time.
func TestHungPlugin(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sleep", "1000")
	pid := pluginPid(m, "network/bridge")
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m.Must("ps")
	m.Must("exec", "c", "true")
	m.Must("run", "--rm", "--network", "none", image, "true")
	m.Must("images")
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("those who do not need it waited %v", d)
	}
	m.Must("plugin", "restart", "network/bridge")
	m.Must("run", "--rm", image, "true")
	if now := pluginPid(m, "network/bridge"); now == pid || now == 0 {
		t.Errorf("served by pid %d, before by %d", now, pid)
	}
}

// TestPluginList shows the built-in drivers.
func TestPluginList(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	m.Must("run", "--rm", "hello")
	out := m.Must("plugin", "ls", "--format", "{{.Plugin}} {{.State}}")
	for _, want := range []string{"snapshotter/overlay ready", "network/bridge ready", "snapshotter/native", "volume/local"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	m.Fails(1, "snapshotter/tape", "plugin", "inspect", "snapshotter/tape")
}
