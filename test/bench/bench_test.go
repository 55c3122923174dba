//go:build bench

package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/harness"
)

var (
	rounds = flag.Int("rounds", 30, "how often each command runs")
	pulls  = flag.Int("pulls", 5, "how often each engine pulls the Debian image")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}

// subject is one command of one engine.
type subject struct {
	name  string
	prep  func() // before each run, not measured
	run   func() error
	after func()
}

// interleave runs every subject once a round, and prints what it took.
func interleave(t *testing.T, title string, n int, subjects []subject) {
	t.Helper()
	took := map[string][]time.Duration{}
	for round := range n + 1 {
		for _, s := range subjects {
			if s.prep != nil {
				s.prep()
			}
			began := time.Now()
			err := s.run()
			d := time.Since(began)
			if s.after != nil {
				s.after()
			}
			if err != nil {
				t.Errorf("%s: %s: %v", title, s.name, err)
				continue
			}
			if round > 0 { // the first warms caches and plugins
				took[s.name] = append(took[s.name], d)
			}
		}
	}
	report(title, subjects, took)
}

func report(title string, subjects []subject, took map[string][]time.Duration) {
	fmt.Printf("\n%s\n%-28s %10s %10s %8s\n", title, "", "median", "p95", "ratio")
	base := median(took[subjects[0].name])
	for _, s := range subjects {
		d := took[s.name]
		if len(d) == 0 {
			fmt.Printf("%-28s %10s\n", s.name, "failed")
			continue
		}
		fmt.Printf("%-28s %10s %10s %7.2fx\n", s.name, ms(median(d)), ms(percentile(d, 95)), float64(median(d))/float64(base))
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }

func median(d []time.Duration) time.Duration { return percentile(d, 50) }

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := append([]time.Duration{}, d...)
	sort.Slice(s, func(i, j int) bool { return s[i] < s[j] })
	return s[min(len(s)*p/100, len(s)-1)]
}

// TestPeers is the whole comparison.
func TestPeers(t *testing.T) {
	m := harness.New(t, harness.Flags("--log-level", "warn"))
	busybox := m.Busybox()
	p := startPeers(t, m, busybox)

	time.Sleep(40 * time.Second) // idle: a shim of containerd gives back what it does not need every 30 s
	t.Run("memory", func(*testing.T) { p.memory("an idle container") })
	t.Run("bridge", func(t *testing.T) {
		interleave(t, "run --rm busybox true, bridge network", *rounds, p.pick(t,
			"gantry", "docker", "podman", "ctr, no network"))
	})
	t.Run("none", func(t *testing.T) {
		interleave(t, "run --rm busybox true, no network", *rounds, p.pick(t,
			"gantry, no network", "docker, no network", "podman, no network", "ctr, no network", "runc run", "crun run"))
	})
	t.Run("exec", func(t *testing.T) {
		interleave(t, "exec true", *rounds, p.pick(t, "gantry exec", "docker exec", "podman exec", "ctr exec"))
	})
	t.Run("many", func(t *testing.T) { p.many(t) })
	time.Sleep(10 * time.Second)
	t.Run("memory after execs", func(*testing.T) { p.memory(fmt.Sprintf("a container after %d execs", *rounds+1)) })
	t.Run("pull", func(t *testing.T) { p.pull(t) })
	t.Run("log", func(t *testing.T) { p.logs(t) })
}

// many runs 100 containers, 8 at a time.
func (p *peers) many(t *testing.T) {
	fmt.Printf("\n100 containers, 8 at a time, bridge\n")
	rate := map[string]float64{}
	for _, name := range []string{"gantry", "docker", "podman"} {
		s, ok := p.subjects[name]
		if !ok {
			continue
		}
		work := make(chan struct{}, 100)
		for range 100 {
			work <- struct{}{}
		}
		close(work)
		began := time.Now()
		var all sync.WaitGroup
		for range 8 {
			all.Add(1)
			go func() {
				defer all.Done()
				for range work {
					if err := s.run(); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}()
		}
		all.Wait()
		rate[name] = 100 / time.Since(began).Seconds()
		fmt.Printf("%-28s %10.1f /s %7.2fx\n", name, rate[name], rate["gantry"]/rate[name])
	}
}

// memory compares what stands beside one container, and the daemons.
func (p *peers) memory(what string) {
	fmt.Printf("\nprivate dirty memory beside %s\n", what)
	for _, c := range []struct{ name, program string }{
		{"gantry-shim", "gantry-shim"}, {"containerd-shim", "containerd-shim"}, {"conmon", "conmon"},
	} {
		if kib := p.privateDirty(c.program); kib > 0 {
			fmt.Printf("%-28s %10d KiB\n", c.name, kib)
		}
	}
	fmt.Printf("\nresident memory\n")
	for _, program := range []string{"gantryd", "gantry-plugin", "dockerd", "containerd"} {
		if kib := p.resident(program); kib > 0 {
			fmt.Printf("%-28s %10d KiB\n", program, kib)
		}
	}
}

// pull compares a cold pull and unpack of the Debian image.
func (p *peers) pull(t *testing.T) {
	layout := filepath.Join(p.m.Dir, "debian")
	harness.DebianLayout(t, p.m.Dir, layout)
	p.registry.PushLayout(layout, "debian")
	ref := p.registry.Address + "/debian:latest"
	fmt.Printf("\n%s compressed\n", p.m.Sh("du -sh %s | cut -f1", layout))
	cold := func() {
		p.m.Sh("sync; echo 1 > /proc/sys/vm/drop_caches; cat %s/data/docker/registry/v2/blobs/sha256/*/*/data > /dev/null", p.registry.Data)
	}
	var s []subject
	s = append(s, subject{"gantry pull", func() { p.m.Try("rmi", "-f", ref); cold() }, p.command("gantry", "pull", "-q", ref), nil})
	if p.docker != nil {
		s = append(s, subject{"docker pull", func() { _ = p.docker("rmi", "-f", ref)(); cold() }, p.docker("pull", "-q", ref), nil})
	}
	if p.ctr != nil {
		s = append(s, subject{"ctr pull", func() { _ = p.ctr("images", "rm", "--sync", ref)(); cold() }, p.ctr("images", "pull", "--plain-http", ref), nil})
	}
	if p.podman != nil {
		s = append(s, subject{"podman pull", func() { _ = p.podman("rmi", "-f", ref)(); cold() }, p.podman("pull", "-q", "--tls-verify=false", ref), nil})
	}
	interleave(t, "pull and unpack of the Debian image from loopback", *pulls, s)
	floor := fmt.Sprintf("for f in %s/blobs/sha256/*; do gzip -dc < $f > /dev/null 2>&1 || true; done", layout)
	interleave(t, "floor: gunzip alone", 3, []subject{{"gzip -d", nil, func() error { return exec.Command("sh", "-c", floor).Run() }, nil}})
}

// logs measures how fast a container's output reaches the disk.
func (p *peers) logs(t *testing.T) {
	fmt.Printf("\nlog through to disk\n")
	for _, c := range []struct {
		what string
		line int
		n    int
	}{{"100-byte lines", 100, 4000000}, {"2-byte lines", 2, 20000000}} {
		script := fmt.Sprintf("yes %s | head -n %d", strings.Repeat("x", c.line-1), c.n)
		mb := float64(c.line) * float64(c.n) / 1e6
		began := time.Now()
		r := p.m.Try("run", "-d", "--name", "log", "--network", "none", "--log-opt", "max-size=-1", p.busybox, "sh", "-c", script)
		if r.Code != 0 {
			t.Error(r.Err)
			continue
		}
		p.m.Must("wait", "log")
		fmt.Printf("gantry, %-20s %8.0f MB/s\n", c.what, mb/time.Since(began).Seconds())
		p.m.Must("rm", "-f", "log")
	}
}

// smaps sums one line of smaps_rollup over the processes of a program, and counts them.
func (p *peers) smaps(program, field string) (kib, n int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, _ := os.ReadFile(d + "/cmdline")
		arg0, _, _ := strings.Cut(string(cmdline), "\x00")
		if !strings.HasPrefix(filepath.Base(arg0), program) || program == "containerd" && filepath.Base(arg0) != program {
			continue
		}
		if wd, _ := os.Readlink(d + "/cwd"); program == "gantry-shim" && wd == "/" {
			continue // started ahead: beside no container yet
		}
		raw, _ := os.ReadFile(d + "/smaps_rollup")
		for _, l := range strings.Split(string(raw), "\n") {
			if f := strings.Fields(l); len(f) > 1 && f[0] == field {
				v, _ := strconv.Atoi(f[1])
				kib += v
				n++
			}
		}
	}
	return kib, n
}

func (p *peers) privateDirty(program string) int {
	kib, n := p.smaps(program, "Private_Dirty:")
	return kib / max(n, 1)
}

func (p *peers) resident(program string) int {
	kib, _ := p.smaps(program, "Rss:")
	return kib
}
