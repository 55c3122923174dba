//go:build fault

package fault

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestMain(m *testing.M) {
	if os.Getenv("FAULT_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	for i := range 5 { // a child that passes points until one stops it
		Point("a." + strconv.Itoa(i))
		os.Stdout.WriteString(strconv.Itoa(i))
	}
}

func child(t *testing.T, spec string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	out := &bytes.Buffer{}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FAULT_TEST_CHILD=1", "GANTRY_FAULT="+spec, "GANTRY_FAULT_LOG="+filepath.Join(t.TempDir(), "log"))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func TestKill(t *testing.T) {
	for spec, want := range map[string]string{"a.3=kill": "012", "*=kill:2": "0", "a.[24]=kill:2": "0123", "a.0=kill:2": "01234"} {
		cmd, out := child(t, spec)
		err := cmd.Wait()
		if want != "01234" {
			ee := &exec.ExitError{}
			if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("%s: ended with %v, want SIGKILL", spec, err)
			}
		}
		if out.String() != want {
			t.Errorf("%s: printed %q, want %q", spec, out, want)
		}
	}
}

func TestPauseAndLog(t *testing.T) {
	cmd, out := child(t, "a.2=pause")
	stat := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		raw, err := os.ReadFile(stat)
		if err == nil && strings.Fields(string(raw[bytes.LastIndexByte(raw, ')'):]))[1] == "T" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never stopped")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "01234" {
		t.Errorf("ended with %v, printed %q", err, out)
	}
	var log string
	for _, e := range cmd.Env {
		if p, ok := strings.CutPrefix(e, "GANTRY_FAULT_LOG="); ok {
			raw, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			log = string(raw)
		}
	}
	if log != "a.0\na.1\na.2\na.3\na.4\n" {
		t.Errorf("log holds %q", log)
	}
}

func TestErrors(t *testing.T) {
	t.Cleanup(func() { _ = Set("") })
	if err := Set("x=error:2; y=unavailable; z=delay:20ms"); err != nil {
		t.Fatal(err)
	}
	if err := Err("x"); err != nil {
		t.Errorf("first hit: %v", err)
	}
	if err := Err("x"); !errors.Is(err, ErrInjected) {
		t.Errorf("second hit: %v", err)
	}
	if err := Err("y"); !errors.Is(err, ErrInjected) || !errdefs.IsUnavailable(err) {
		t.Errorf("y: %v", err)
	}
	begin := time.Now()
	if err := Err("z"); err != nil || time.Since(begin) < 20*time.Millisecond {
		t.Errorf("z: %v after %v", err, time.Since(begin))
	}
	if h := Hits(); h["x"] != 2 || h["y"] != 1 {
		t.Errorf("hits %v", h)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Point swallowed an error")
			}
		}()
		Point("y")
	}()
}

func TestBadRules(t *testing.T) {
	for _, s := range []string{"x", "=kill", "x=die", "x=delay", "x=delay:soon", "x=delay:-1s", "x=kill:0", "x=kill:1:2", "[=kill", "x=kill:no"} {
		if _, err := parse(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a=kill;b.*=delay:1ms:3")
	f.Fuzz(func(t *testing.T, s string) {
		rules, err := parse(s)
		for _, r := range rules {
			if err != nil || r.pattern == "" {
				t.Fatalf("%q: rule %+v beside error %v", s, r, err)
			}
		}
	})
}
