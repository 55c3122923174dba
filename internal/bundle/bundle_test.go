package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func exit(run uint64) Exit {
	return Exit{Code: 7, At: time.Unix(1_700_000_000, 5).UTC(), StartedAt: time.Unix(1_600_000_000, 0).UTC(), Reason: "oom", Run: run, Signal: 9}
}

func runs(xs []Exit) (out []uint64) {
	for _, x := range xs {
		out = append(out, x.Run)
	}
	return out
}

func TestShimFile(t *testing.T) {
	d := Dir{State: t.TempDir()}
	if _, err := d.Shim(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	want := Shim{Protocol: 1, Container: "c", Nonce: "n", BootID: "b", PID: 4711, Started: 12, Run: 3}
	if err := WriteShim(d, want); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Shim(); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "{", "{}", `{"protocol":1,"container":"c","nonce":"n","boot_id":"b","pid":1,"started":12}`, strings.Repeat(" ", maxShim+1)} {
		if _, err := parseShim([]byte(bad)); !errdefs.IsDataLoss(err) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func TestExits(t *testing.T) {
	d := Dir{Root: t.TempDir()}
	if xs, err := d.ReadExits(); xs != nil || err != nil {
		t.Fatalf("before: %v, %v", xs, err)
	}
	if _, ok, err := d.LastExit(); ok || err != nil {
		t.Fatalf("before: %v, %v", ok, err)
	}
	e, err := d.OpenExits()
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		if err := e.Append(exit(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if x, ok, err := d.LastExit(); !ok || err != nil || !reflect.DeepEqual(x, exit(3)) {
		t.Errorf("last: %+v %v %v", x, ok, err)
	}

	// A power cut in the middle of the fourth.
	whole, err := os.ReadFile(d.Exits())
	if err != nil {
		t.Fatal(err)
	}
	fourth, err := appendExit(nil, exit(4))
	if err != nil {
		t.Fatal(err)
	}
	for n := range fourth {
		if err := os.WriteFile(d.Exits(), append(bytes.Clone(whole), fourth[:n]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if xs, err := d.ReadExits(); err != nil || !reflect.DeepEqual(runs(xs), []uint64{1, 2, 3}) {
			t.Fatalf("cut after %d bytes: %v %v", n, runs(xs), err)
		}
		e, err := d.OpenExits()
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Append(exit(5)); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if xs, err := d.ReadExits(); err != nil || !reflect.DeepEqual(runs(xs), []uint64{1, 2, 3, 5}) {
			t.Fatalf("cut after %d bytes, then 5: %v %v", n, runs(xs), err)
		}
	}
}

func TestExitsAreBounded(t *testing.T) {
	d := Dir{Root: t.TempDir()}
	e, err := d.OpenExits()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close() //nolint:errcheck // a test's
	const n = 5*KeepExits + 3
	for i := range uint64(n) {
		if err := e.Append(exit(i)); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 { // the shim dies, another takes over
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			if e, err = d.OpenExits(); err != nil {
				t.Fatal(err)
			}
		}
	}
	xs, err := d.ReadExits()
	if err != nil || len(xs) < KeepExits || len(xs) > 2*KeepExits {
		t.Fatalf("%d records, %v", len(xs), err)
	}
	for i, x := range xs {
		if want := uint64(n - len(xs) + i); x.Run != want {
			t.Fatalf("record %d is of run %d, not %d", i, x.Run, want)
		}
	}
}

// TestExitsOnAFullDisk shows that the last words find room where the disk was full before them.
func TestExitsOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k", "gantry-test", dir).CombinedOutput(); err != nil {
		t.Skipf("no tmpfs can be mounted here: %v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	d := Dir{Root: dir}
	e, err := d.OpenExits()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close() //nolint:errcheck // a test's
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	if err := e.Append(exit(1)); err != nil {
		t.Fatal(err)
	}
	var failed error
	for i := range uint64(2 * KeepExits) {
		if failed = e.Append(exit(i + 2)); failed != nil {
			break
		}
	}
	if failed == nil {
		t.Skip("this tmpfs has room for all of them")
	}
	xs, err := d.ReadExits()
	if err != nil || len(xs) == 0 {
		t.Fatalf("nothing is left: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
		t.Fatal(err)
	}
	if err := e.Append(exit(9999)); err != nil {
		t.Fatal(err)
	}
	if x, _, err := d.LastExit(); err != nil || x.Run != 9999 {
		t.Fatalf("%v %v", x, err)
	}
}

func TestStartTime(t *testing.T) {
	mine, err := StartTime(os.Getpid())
	if err != nil || mine == 0 {
		t.Fatalf("mine: %d %v", mine, err)
	}
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q %v", id, err)
	}
	c := exec.Command("true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until it is a zombie
		got, err := StartTime(c.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if got == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a zombie counts as a process")
		}
	}
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, err := StartTime(c.Process.Pid); got != 0 || err != nil {
		t.Errorf("of nobody: %d %v", got, err)
	}
	got, zombie, err := parseStat([]byte("12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"))
	if got != 4242 || zombie || err != nil {
		t.Errorf("a name with brackets: %d %v %v", got, zombie, err)
	}
}

func FuzzExits(f *testing.F) {
	one, _ := appendExit(nil, exit(1))
	f.Add(one)
	f.Add([]byte("00000000 {}\n\n\nx"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		xs, whole := parseExits(raw)
		if whole > len(raw) {
			t.Fatal("longer than it is")
		}
		before := len(xs)
		more, err := appendExit(bytes.Clone(raw[:whole]), exit(77))
		if err != nil {
			t.Fatal(err)
		}
		after, end := parseExits(more)
		if end != len(more) || len(after) != before+1 || after[before].Run != 77 {
			t.Errorf("%d records became %d", before, len(after))
		}
	})
}

func FuzzShim(f *testing.F) {
	f.Add([]byte(`{"protocol":1,"container":"c","nonce":"n","boot_id":"b","pid":2,"started":12}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := parseShim(raw); err == nil && (s.PID <= 1 || s.Nonce == "") {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("12 (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _, _ = parseStat(raw) })
}

func ExampleDir() {
	d := Dir{State: "/run/gantry/c/4f5e", Root: "/var/lib/gantry/containers/4f5e"}
	fmt.Println(d.ID(), d.Config(), d.Log())
	// Output: 4f5e /var/lib/gantry/containers/4f5e/config.json /var/lib/gantry/containers/4f5e/log
}
