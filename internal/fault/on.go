//go:build fault

package fault

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Enabled says whether this program was built with failpoints.
const Enabled = true

// ErrInjected is in the chain of every error that a failpoint returns.
var ErrInjected = errors.New("injected by a failpoint")

type rule struct {
	pattern string
	action  string
	delay   time.Duration
	nth     int
	hits    int
}

// state is what GANTRY_FAULT and Set asked for, and what was hit.
var state struct {
	mu    sync.Mutex
	rules []*rule
	hits  map[string]int
	log   *os.File
	once  sync.Once
}

// Point marks a place where a test may interfere. It panics if told to fail.
func Point(name string) {
	if err := Err(name); err != nil {
		panic(err)
	}
}

// Err is Point for places that can also fail.
func Err(name string) error {
	state.once.Do(environment)
	for _, r := range hit(name) {
		switch r.action {
		case "kill":
			_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		case "pause":
			_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
		case "delay":
			time.Sleep(r.delay)
		case "error":
			return fmt.Errorf("failpoint %s: %w", name, ErrInjected)
		case "unavailable":
			return fmt.Errorf("failpoint %s: %w: %w", name, ErrInjected, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// hit counts, logs, and returns the rules that act now.
func hit(name string) []rule {
	state.mu.Lock()
	defer state.mu.Unlock()
	if state.hits == nil {
		state.hits = map[string]int{}
	}
	state.hits[name]++
	if state.log != nil {
		_, _ = state.log.WriteString(name + "\n")
	}
	var act []rule
	for _, r := range state.rules {
		if ok, _ := path.Match(r.pattern, name); !ok {
			continue
		}
		r.hits++
		if r.nth == 0 || r.nth == r.hits {
			act = append(act, *r)
		}
	}
	return act
}

// Hits says how often each point was passed since the program began or Set was last called.
func Hits() map[string]int {
	state.mu.Lock()
	defer state.mu.Unlock()
	all := make(map[string]int, len(state.hits))
	for k, v := range state.hits {
		all[k] = v
	}
	return all
}

// Set replaces the rules by those in spec, written as in GANTRY_FAULT, and forgets all hits.
func Set(spec string) error {
	state.once.Do(environment)
	rules, err := parse(spec)
	if err != nil {
		return err
	}
	state.mu.Lock()
	defer state.mu.Unlock()
	state.rules, state.hits = rules, nil
	return nil
}

// environment reads what the process was started with. A rule that cannot be read ends the
// program: a crash test that silently injects nothing proves nothing.
func environment() {
	rules, err := parse(os.Getenv("GANTRY_FAULT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "GANTRY_FAULT:", err)
		os.Exit(2)
	}
	state.mu.Lock()
	defer state.mu.Unlock()
	state.rules = rules
	if p := os.Getenv("GANTRY_FAULT_LOG"); p != "" {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_CLOEXEC, 0o644) //nolint:gosec // whoever sets our environment chooses where the log goes
		if err != nil {
			fmt.Fprintln(os.Stderr, "GANTRY_FAULT_LOG:", err)
			os.Exit(2)
		}
		state.log = f
	}
}

func parse(spec string) ([]*rule, error) {
	var rules []*rule
	for _, s := range strings.Split(spec, ";") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		r, err := parseRule(s)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", s, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseRule(s string) (*rule, error) {
	name, what, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return nil, fmt.Errorf("want NAME=ACTION[:NTH]: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := path.Match(name, ""); err != nil {
		return nil, fmt.Errorf("pattern %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	f := strings.Split(what, ":")
	r := &rule{pattern: name, action: f[0]}
	f = f[1:]
	switch r.action {
	case "kill", "error", "unavailable", "pause":
	case "delay":
		if len(f) == 0 {
			return nil, fmt.Errorf("delay wants a duration: %w", errdefs.ErrInvalidArgument)
		}
		d, err := time.ParseDuration(f[0])
		if err != nil || d < 0 {
			return nil, fmt.Errorf("duration %q: write one as 10ms: %w", f[0], errdefs.ErrInvalidArgument)
		}
		r.delay, f = d, f[1:]
	default:
		return nil, fmt.Errorf("no action %q: %w", r.action, errdefs.ErrInvalidArgument)
	}
	if len(f) > 1 {
		return nil, fmt.Errorf("too many colons: %w", errdefs.ErrInvalidArgument)
	}
	if len(f) == 1 {
		n, err := strconv.Atoi(f[0])
		if err != nil || n < 1 {
			return nil, fmt.Errorf("hit %q is no positive number: %w", f[0], errdefs.ErrInvalidArgument)
		}
		r.nth = n
	}
	return r, nil
}
