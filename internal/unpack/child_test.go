package unpack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotters"
)

func output(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, stderr.String())
	}
	return out
}

func bind(dir string) []Mount {
	return []Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}
}

func TestRun(t *testing.T) {
	root(t)
	dst := t.TempDir()
	raw := archive(t, dir("."), dir("etc"), file("f", "x", owner(12, 34), mode(0o4711)), wh(".wh.gone"), sym("s", "/etc"), file("s/inside", "y"), dir("d"), wh("d/.wh..wh..opq"),
		e('3', "null", dev(1, 3)), file("a", "x", attr("user.x", "1"), attr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")))
	res, err := Run(t.Context(), Job{Mounts: bind(dst), Form: Overlay, Parented: true, DiffID: digest.FromBytes(raw)}, bytes.NewReader(gz(t, raw)))
	if err != nil {
		t.Fatal(err)
	}
	if res.Bytes != int64(len(raw)) || res.Entries != 10 {
		t.Fatal(res)
	}
	want := []string{`a "x" user.x`, "d/" + opaqueMark, "etc/", `etc/inside "y"`, `f "x"`, "gone dev 0:0", "null dev 1:3", "s -> /etc"}
	if got := show(t, dst); !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dst, "f"), &st); err != nil || st.Uid != 12 || st.Gid != 34 || st.Mode&0o7777 != 0o4711 {
		t.Fatal(st, err)
	}
	if _, err := os.Stat("/etc/inside"); err == nil {
		os.Remove("/etc/inside")
		t.Fatal("it was written outside")
	}
}

// TestRunOverlay applies a layer to a mounted overlay.
func TestRunOverlay(t *testing.T) {
	root(t)
	tmp := t.TempDir()
	if err := unix.Mount("t", tmp, "tmpfs", 0, ""); err != nil {
		t.Skip("tmpfs cannot be mounted: NOT TESTED:", err)
	}
	defer unix.Unmount(tmp, unix.MNT_DETACH)
	for _, d := range []string{"lower/old", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "lower/old/f"), []byte("lower"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, lowers := range []int{1, 120} { // 120: more than mount(2) takes
		options := []string{"lowerdir=" + filepath.Join(tmp, "lower")}
		for i := range lowers - 1 {
			d := filepath.Join(tmp, strings.Repeat("l", 60), string(rune('a'+i%26))+strings.Repeat("x", i/26))
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
			options[0] += ":" + d
		}
		options = append(options, "upperdir="+filepath.Join(tmp, "upper"), "workdir="+filepath.Join(tmp, "work"))
		raw := archive(t, hard("l", "old/f"), wh("old/.wh.f"), file("new", "x"))
		if _, err := Run(t.Context(), Job{Mounts: []Mount{{Type: "overlay", Source: "overlay", Options: options}}, Form: Apply}, bytes.NewReader(raw)); err != nil {
			t.Fatal(lowers, err)
		}
		want := []string{`l "lower"`, `new "x"`, "old/", "old/f dev 0:0"}
		got := show(t, filepath.Join(tmp, "upper"))
		for i := range got {
			got[i], _, _ = strings.Cut(got[i], " trusted.") // what overlayfs keeps for itself
		}
		if got = slices.DeleteFunc(got, func(l string) bool { return l == "./" }); !slices.Equal(got, want) {
			t.Fatalf("%q", got)
		}
		for _, d := range []string{"upper", "work"} {
			if err := errors.Join(os.RemoveAll(filepath.Join(tmp, d)), os.Mkdir(filepath.Join(tmp, d), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestInherit: the mark is the one that drivers look for.
func TestInherit(t *testing.T) {
	if inheritAttr != snapshotters.Inherit {
		t.Errorf("we write %s, drivers look for %s", inheritAttr, snapshotters.Inherit)
	}
}

func TestMeasure(t *testing.T) {
	root(t)
	raw := archive(t, file("f", strings.Repeat("x", 3<<20)))
	res, err := Run(t.Context(), Job{Form: Measure, DiffID: digest.FromBytes(raw)}, bytes.NewReader(gz(t, raw)))
	if err != nil || res.Bytes != int64(len(raw)) {
		t.Fatal(res, err)
	}
}

type failing struct {
	r   io.Reader
	err error
}

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = f.err
	}
	return n, err
}

// waiting blocks until it is closed.
type waiting struct {
	r    io.Reader
	done chan struct{}
}

func (w waiting) Read(p []byte) (int, error) {
	if n, err := w.r.Read(p); n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	<-w.done
	return 0, os.ErrClosed
}
func (w waiting) Close() error { close(w.done); return nil }

func TestRunErrors(t *testing.T) {
	root(t)
	raw := archive(t, file("f", strings.Repeat("x", 3<<20)))
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		job  Job
		in   io.Reader
		is   func(error) bool
		says string
	}{
		"wrong diff id":               {in: bytes.NewReader(raw), job: Job{DiffID: digest.FromString("x")}, is: errdefs.IsDataLoss, says: "the image's configuration says"},
		"reader fails":                {in: failing{bytes.NewReader(raw[:1<<20]), boom}, is: func(err error) bool { return errors.Is(err, boom) }},
		"damaged":                     {in: bytes.NewReader(append(gz(t, raw)[:1000:1000], "rubbish"...)), is: errdefs.IsDataLoss},
		"climbs":                      {in: bytes.NewReader(archive(t, file("../x", "x"))), is: errdefs.IsInvalidArgument, says: "climbs out"},
		"needs parent":                {job: Job{Parented: true}, in: bytes.NewReader(archive(t, hard("x", "y"))), is: func(err error) bool { return errors.Is(err, ErrNeedsParent) && errdefs.IsInvalidArgument(err) }},
		"refused early, reader waits": {in: waiting{bytes.NewReader(archive(t, file("../x", "x"), file("y", strings.Repeat("x", 8<<20)))), make(chan struct{})}, is: errdefs.IsInvalidArgument, says: "climbs out"},
		"no mounts":                   {job: Job{Form: "none"}, in: bytes.NewReader(raw), is: errdefs.IsInvalidArgument},
		"missing source":              {job: Job{Mounts: bind("/nonexistent")}, in: bytes.NewReader(raw), is: errdefs.IsInternal, says: "no such file"},
		"read-only":                   {job: Job{Mounts: []Mount{{Type: "bind", Source: "/tmp", Options: []string{"ro"}}}}, in: bytes.NewReader(raw), is: errdefs.IsFailedPrecondition, says: "read-only"},
		"unknown form":                {job: Job{Form: "origami"}, in: bytes.NewReader(raw), is: errdefs.IsInvalidArgument, says: "origami"},
		"resource limits":             {job: Job{Limits: Limits{Bytes: 1 << 20}}, in: bytes.NewReader(raw), is: errdefs.IsResourceExhausted, says: "bytes allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.job.Form == "" {
				c.job.Form = Overlay
			}
			if c.job.Mounts == nil && c.job.Form != "none" {
				c.job.Mounts = bind(t.TempDir())
			}
			_, err := Run(t.Context(), c.job, c.in)
			if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.says) {
				t.Fatal(err)
			}
			if strings.Count(err.Error(), "invalid argument") > 1 {
				t.Error("the class is said twice:", err)
			}
		})
	}
}

// TestRunFullDisk: a full disk names the directory and says what to do.
func TestRunFullDisk(t *testing.T) {
	root(t)
	dst := t.TempDir()
	if err := unix.Mount("t", dst, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("tmpfs cannot be mounted: NOT TESTED:", err)
	}
	defer func() {
		if err := unix.Unmount(dst, 0); err != nil {
			t.Error("still in use:", err)
		}
	}()
	_, err := Run(t.Context(), Job{Mounts: bind(dst), Form: Overlay}, bytes.NewReader(archive(t, file("f", strings.Repeat("x", 3<<20)))))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), dst) || !strings.Contains(err.Error(), "make room") {
		t.Fatal(err)
	}
}

// TestCancel: a cancelled unpack ends at once, with the cause.
func TestCancel(t *testing.T) {
	root(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	w := waiting{bytes.NewReader(archive(t, file("f", "x"))), make(chan struct{})}
	time.AfterFunc(100*time.Millisecond, func() { cancel(boom) })
	if _, err := Run(ctx, Job{Mounts: bind(t.TempDir()), Form: Overlay}, w); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

// TestThreadsKeepTheirPowers: what the child must not have is given up by one thread, which no other work is done on.
func TestThreadsKeepTheirPowers(t *testing.T) {
	root(t)
	if _, err := Run(t.Context(), Job{Mounts: bind(t.TempDir()), Form: Overlay}, bytes.NewReader(nil)); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for without := []string{"?"}; len(without) > 0; { // the thread ends a little after the child
		without = nil
		tasks, err := filepath.Glob("/proc/self/task/*/status")
		if err != nil || len(tasks) == 0 {
			t.Fatal(err)
		}
		for _, p := range tasks {
			if raw, err := os.ReadFile(p); err == nil && strings.Contains(string(raw), "NoNewPrivs:\t1") {
				without = append(without, p)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s stay without privileges", without)
		}
		runtime.Gosched()
	}
}
