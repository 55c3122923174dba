package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// deepest is how often a point that is hit again and again is died at: the first hits differ most.
const deepest = 3

// journey does a little of everything. It goes on past failures: the daemon may be dead.
func journey(m *harness.Machine, image string) {
	for _, line := range [][]string{
		{"pull", "-q", image},
		{"volume", "create", "data"},
		{"network", "create", "--subnet", "10.99.0.0/24", "side"},
		{"run", "-d", "--name", "web", "-p", "8080:80", "-v", "data:/data", "--network", "side", "--ipc", "shareable", image, "sleep", "1000"},
		{"exec", "web", "touch", "/data/file"},
		{"update", "--pids-limit", "50", "--restart", "on-failure:3", "web"},
		{"run", "--rm", "--name", "short", "--network", "container:web", "--ipc", "container:web", image, "true"},
		{"run", "--rm", "--name", "short", image, "true"},
		{"stop", "-t", "0", "web"},
		{"start", "web"},
		{"rm", "-f", "web"},
		{"network", "rm", "side"},
		{"volume", "rm", "data"},
		{"rmi", image},
	} {
		m.Try(line...)
	}
}

// clean removes what a broken journey left to its user.
func clean(m *harness.Machine) {
	for _, ids := range [][]string{{"ps", "-aq", "--no-trunc"}, {"volume", "ls", "-q"}} {
		if list := strings.Fields(m.Try(ids...).Out); len(list) > 0 {
			if ids[0] == "ps" {
				m.Try(append([]string{"rm", "-f"}, list...)...)
			} else {
				m.Try(append([]string{"volume", "rm"}, list...)...)
			}
		}
	}
	m.Try("network", "rm", "side")
}

// TestEveryPoint finds out which points the journey passes, and dies at each.
func TestEveryPoint(t *testing.T) {
	m := harness.Bare(t, harness.WithFaults())
	log := filepath.Join(m.Dir, "points")
	image := m.Registry().Push("busybox", v1.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, harness.BusyboxLayer(t))
	harness.Env("GANTRY_FAULT_LOG=" + log)(m)
	m.Start()
	journey(m, image)
	m.Must("system", "check")
	points := passed(t, log)
	if len(points) < 20 {
		t.Fatalf("the journey passes only %v", points)
	}
	var names []string
	for p := range points {
		names = append(names, p)
	}
	sort.Strings(names)
	died := 0
	for _, name := range names {
		for nth := 1; nth <= min(points[name], deepest); nth++ {
			t.Run(fmt.Sprintf("%s/%d", name, nth), func(t *testing.T) {
				if dieAt(t, m, image, name, nth) {
					died++
				}
			})
		}
	}
	t.Logf("%d points, died %d times", len(names), died)
	if died < len(names) {
		t.Errorf("of %d points the daemon died at %d", len(names), died)
	}
}

// dieAt restarts the daemon so that it dies at the nth hit of a point, goes on the journey, and
// looks at what the next daemon makes of it.
func dieAt(t *testing.T, m *harness.Machine, image, point string, nth int) (died bool) {
	parent := m.T
	m.T = t
	defer func() { m.T = parent }()
	m.Stop()
	m.SetEnv("GANTRY_FAULT=" + fmt.Sprintf("%s=kill:%d", point, nth))
	m.Launch()
	for range 40 { // until it answers, or has died on its way up
		if m.Dead() || m.Try("info").Code == 0 {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	journey(m, image)
	died = m.Halt() // some points are passed only behind the journey, or on the way to the end
	m.SetEnv()
	m.Start()
	harness.Eventually(t, 10*time.Second, "check finds nothing", func() bool { return m.Try("system", "check").Code == 0 })
	clean(m)
	journey(m, image)
	if r := m.Try("system", "check"); r.Code != 0 {
		t.Errorf("after another journey: %s%s", r.Out, r.Err)
	}
	if r := m.Try("ps", "-aq"); r.Out != "" {
		t.Errorf("containers left: %s", r.Out)
	}
	if t.Failed() {
		m.Report()
	}
	return died
}

// passed counts the hits of each point.
func passed(t *testing.T, log string) map[string]int {
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	points := map[string]int{}
	for _, p := range strings.Fields(string(raw)) {
		points[p]++
	}
	return points
}
