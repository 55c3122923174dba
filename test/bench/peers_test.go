//go:build bench

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// peers are the engines that are installed, each with directories of its own.
type peers struct {
	m                   *harness.Machine
	registry            *harness.Registry
	busybox             string
	subjects            map[string]subject
	docker, podman, ctr func(args ...string) func() error
	counter             atomic.Int64
}

// command prepares a program to be run in the machine's namespace.
func (p *peers) command(name string, args ...string) func() error {
	return func() error {
		var cmd *exec.Cmd
		if name == "gantry" {
			cmd = exec.Command(filepath.Join(p.m.Bin, "gantry"), args...)
			cmd.Env = append(os.Environ(), "GANTRY_HOST="+p.m.Host)
		} else {
			cmd = exec.Command(name, args...)
		}
		out, err := []byte(nil), error(nil)
		p.m.NS.Do(func() { out, err = cmd.CombinedOutput() })
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// pick returns the subjects of these names that are there.
func (p *peers) pick(t *testing.T, names ...string) []subject {
	var out []subject
	for _, n := range names {
		s, ok := p.subjects[n]
		if !ok {
			t.Logf("SKIPPED: %s is not installed (test/setup.sh bench installs it)", n)
			continue
		}
		s.name = n
		out = append(out, s)
	}
	return out
}

// startPeers starts every engine that is installed and gives each the busybox image.
func startPeers(t *testing.T, m *harness.Machine, busybox string) *peers {
	p := &peers{m: m, busybox: busybox, subjects: map[string]subject{}, registry: &harness.Registry{Address: "127.0.0.1:5000", Data: filepath.Join(m.Dir, "registry")}}
	p.registry.On(m)
	m.Must("run", "-d", "--name", "bench", busybox, "sleep", "100000")
	p.add("gantry", p.command("gantry", "run", "--rm", busybox, "true"))
	p.add("gantry, no network", p.command("gantry", "run", "--rm", "--network", "none", busybox, "true"))
	p.add("gantry exec", p.command("gantry", "exec", "bench", "true"))
	p.startDocker(t)
	p.startPodman(t)
	p.startContainerd(t)
	p.bundles(t)
	return p
}

func (p *peers) add(name string, run func() error) { p.subjects[name] = subject{run: run} }

func (p *peers) must(t *testing.T, run func() error) {
	t.Helper()
	if err := run(); err != nil {
		t.Fatal(err)
	}
}

func (p *peers) start(t *testing.T, name string, args ...string) {
	log, err := os.Create(filepath.Join(p.m.Dir, filepath.Base(name)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	p.m.NS.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		_ = log.Close()
	})
}

func (p *peers) startDocker(t *testing.T) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		return
	}
	dir := filepath.Join(p.m.Dir, "docker")
	t.Cleanup(func() {
		p.m.Sh("ip link del docker0 2>/dev/null || true; nft flush ruleset; for m in $(grep -o '%s/docker[^ ]*' /proc/self/mountinfo | sort -r); do umount -l $m; done", p.m.Dir)
	})
	p.start(t, "dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "-H", "unix://"+dir+"/docker.sock", "--pidfile", dir+"/pid", "--insecure-registry", "127.0.0.1:5000")
	p.docker = func(args ...string) func() error {
		return p.command("docker", append([]string{"-H", "unix://" + dir + "/docker.sock"}, args...)...)
	}
	harness.Eventually(t, 60*time.Second, "dockerd answers", func() bool { return p.docker("info")() == nil })
	p.must(t, p.docker("pull", "-q", p.busybox))
	p.must(t, p.docker("run", "-d", "--name", "bench", p.busybox, "sleep", "100000"))
	t.Cleanup(func() { _ = p.docker("rm", "-f", "bench")() })
	p.add("docker", p.docker("run", "--rm", p.busybox, "true"))
	p.add("docker, no network", p.docker("run", "--rm", "--network", "none", p.busybox, "true"))
	p.add("docker exec", p.docker("exec", "bench", "true"))
}

func (p *peers) startPodman(t *testing.T) {
	if _, err := exec.LookPath("podman"); err != nil {
		return
	}
	dir := filepath.Join(p.m.Dir, "podman")
	p.podman = func(args ...string) func() error {
		return p.command("podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}, args...)...)
	}
	limits := []string{"--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000"}
	if err := p.podman("pull", "-q", "--tls-verify=false", p.busybox)(); err != nil {
		t.Logf("SKIPPED: podman does not work here: %v", err)
		p.podman = nil
		return
	}
	t.Cleanup(func() {
		_ = p.podman("rm", "-af", "-t", "0")()
		_ = p.podman("system", "reset", "-f")()
		p.m.Sh("ip link del cni-podman0 2>/dev/null || true; nft flush ruleset")
	})
	run := func(args ...string) func() error {
		return p.podman(append(append([]string{"run"}, limits...), args...)...)
	}
	if err := run("-d", "--network", "none", "--name", "bench", p.busybox, "sleep", "100000")(); err != nil {
		t.Logf("SKIPPED: podman does not run here: %v", err)
		return
	}
	p.add("podman, no network", run("--rm", "--network", "none", p.busybox, "true"))
	p.add("podman exec", p.podman("exec", "bench", "true"))
	if bridge := run("--rm", p.busybox, "true"); bridge() == nil {
		p.add("podman", bridge)
	} else {
		t.Logf("SKIPPED: podman has no bridge network here")
	}
}

func (p *peers) startContainerd(t *testing.T) {
	if _, err := exec.LookPath("containerd"); err != nil {
		return
	}
	dir := filepath.Join(p.m.Dir, "containerd")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n", dir+"/root", dir+"/state", dir+"/sock")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start(t, "containerd", "--config", dir+"/config.toml")
	p.ctr = func(args ...string) func() error {
		return p.command("ctr", append([]string{"--address", dir + "/sock"}, args...)...)
	}
	harness.Eventually(t, 30*time.Second, "containerd answers", func() bool { return p.ctr("version")() == nil })
	p.must(t, p.ctr("images", "pull", "--plain-http", p.busybox))
	p.must(t, p.ctr("run", "-d", p.busybox, "bench", "sleep", "100000"))
	t.Cleanup(func() { _ = p.ctr("task", "kill", "-s", "9", "bench")(); _ = p.ctr("container", "rm", "bench")() })
	p.add("ctr, no network", func() error {
		return p.ctr("run", "--rm", p.busybox, fmt.Sprint("c", p.counter.Add(1)), "true")()
	})
	p.add("ctr exec", func() error {
		return p.ctr("task", "exec", "--exec-id", fmt.Sprint("e", p.counter.Add(1)), "bench", "true")()
	})
}

// bundles makes an OCI bundle for the runtimes alone.
func (p *peers) bundles(t *testing.T) {
	for _, runtime := range []string{"runc", "crun"} {
		if _, err := exec.LookPath(runtime); err != nil {
			continue
		}
		dir := filepath.Join(p.m.Dir, "bundle-"+runtime)
		p.m.Sh("umoci unpack --image %s:latest %s 2>/dev/null", filepath.Join(p.m.Dir, "layout-busybox"), dir)
		p.m.Sh("cd %s && rm -f config.json && runc spec", dir)
		raw, err := os.ReadFile(dir + "/config.json")
		if err != nil {
			t.Fatal(err)
		}
		var spec map[string]any
		if err := json.Unmarshal(raw, &spec); err != nil {
			t.Fatal(err)
		}
		process := spec["process"].(map[string]any)
		process["terminal"], process["args"], process["rlimits"] = false, []string{"true"}, []any{}
		if raw, err = json.Marshal(spec); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/config.json", raw, 0o600); err != nil {
			t.Fatal(err)
		}
		run := func() error {
			id := fmt.Sprint("b", p.counter.Add(1))
			if runtime == "crun" { // 1.8.1 refuses hybrid cgroups unless the v2 side is hidden
				return p.command("unshare", "-m", "sh", "-c", fmt.Sprintf("umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --root %s/run run -b %s %s", dir, dir, id))()
			}
			return p.command("runc", "--root", dir+"/run", "run", "-b", dir, id)()
		}
		if err := run(); err != nil {
			t.Logf("SKIPPED: %s does not run here: %v", runtime, err)
			continue
		}
		p.add(runtime+" run", run)
	}
}
