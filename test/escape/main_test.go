package escape

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/internal/unpack"
	shimruntime "github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
	"github.com/gantryd/gantry/test/harness"
)

const (
	// testExe is where this program's file is: once sealed, it does not know any more.
	testExe = "GANTRY_ESCAPE_EXE"
	// doomed says that this process is a runtime that ends while a container of it lives.
	doomed = "GANTRY_ESCAPE_DOOMED"
)

func TestMain(m *testing.M) {
	unpack.Main()
	if os.Args[0] == strangerName {
		stranger(os.Args[1])
		return
	}
	if exe, err := os.Readlink("/proc/self/exe"); err == nil && os.Getenv(testExe) == "" {
		_ = os.Setenv(testExe, exe)
	}
	if err := native.Seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := harness.Main(m)
	if attackerDir != "" {
		_ = os.RemoveAll(attackerDir)
	}
	os.Exit(code)
}

var (
	attackerOnce sync.Once
	attackerDir  string
	attackerErr  error
)

// attacker is the path of the attacker's program.
func attacker(t testing.TB) string {
	t.Helper()
	attackerOnce.Do(func() {
		if attackerDir, attackerErr = os.MkdirTemp("", "gantry-attacker-"); attackerErr != nil {
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(attackerDir, "attack"), "./test/escape/attacker")
		cmd.Dir, cmd.Env = harness.Top(), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			attackerErr = fmt.Errorf("%w: %s", err, out)
		}
	})
	if attackerErr != nil {
		t.Fatal(attackerErr)
	}
	return filepath.Join(attackerDir, "attack")
}

// box is a place for containers whose image has the attacker in /bin/attack.
func box(t *testing.T) *runtimetest.Box {
	t.Helper()
	r, err := native.New()
	if err != nil {
		t.Fatal(err)
	}
	b := runtimetest.New(t, r)
	bring(t, b, "bin/attack", 0o755)
	return b
}

// bring puts a copy of the attacker into an image.
func bring(t *testing.T, b *runtimetest.Box, name string, mode os.FileMode) {
	t.Helper()
	raw, err := os.ReadFile(attacker(t))
	must(t, err)
	b.File(name, string(raw), mode)
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// attack answers what it achieved, "" for nothing.
type attack func(t *testing.T) string

// stands wants an attack to fail, and to succeed with all the guards taken out. Of several guards each
// must do alone.
func stands(t *testing.T, a attack, guards ...insecure.Guard) {
	t.Helper()
	if got := a(t); got != "" {
		t.Errorf("escaped: %q", got)
	}
	if !insecure.Built {
		return
	}
	without := func(guards ...insecure.Guard) string {
		defer take(t, guards...)()
		return a(t)
	}
	for _, g := range guards {
		if len(guards) == 1 {
			break
		}
		if got := without(g); got != "" {
			t.Errorf("escaped without the guard %s, past the others: %q", g, got)
		}
	}
	tries = manyTries
	defer func() { tries = fewTries }()
	if got := without(guards...); got == "" {
		t.Errorf("the attack fails without %q too: it proves nothing", guards)
	} else {
		t.Logf("without %q: %q", guards, got)
	}
}

// differs wants an attack to fail on a container as users get it, and to succeed on one without the
// word of config.json that stops it.
func differs(t *testing.T, with, without attack) {
	t.Helper()
	if got := with(t); got != "" {
		t.Errorf("escaped: %q", got)
	}
	if got := without(t); got == "" {
		t.Error("the attack fails without what stops it too: it proves nothing")
	} else {
		t.Logf("without what stops it: %q", got)
	}
}

// output runs c to its end and answers what it wrote.
func output(b *runtimetest.Box) func(c *shimruntime.Config) string {
	return func(c *shimruntime.Config) string {
		out, _ := b.Run(c)
		return strings.TrimSpace(out)
	}
}

// A race is run a few times against guards, and without them as often as it takes to win it.
const (
	fewTries  = 25
	manyTries = 2000
)

var tries = fewTries

// race runs once until it answers something, as often as is needed to be sure, while somebody else
// swaps the names one and other in a directory.
func race(t *testing.T, dir, one, other string, once func() string) string {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(fd, one, fd, other, unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	for n, end := tries, time.Now().Add(30*time.Second); n > 0 && time.Now().Before(end); n-- {
		if got := once(); got != "" {
			return got
		}
	}
	return ""
}

// created makes a container, asks look about its first process, and deletes it. A container that is
// refused is nothing gained.
func created(t *testing.T, b *runtimetest.Box, c *shimruntime.Config, look func(pid int) string) string {
	t.Helper()
	m, err := b.R.Create(runtimetest.Context(t), c)
	if err != nil {
		t.Logf("refused: %v", err)
		return ""
	}
	defer func() { must(t, m.Delete(runtimetest.Context(t))) }()
	return look(m.Init().PID())
}

// mountinfo is what a process has mounted (proc_pid_mountinfo(5)).
func mountinfo(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	must(t, err)
	return string(raw)
}
