package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
)

// testKeys uses keys that mean something to a shell, a path, a mount option or a record.
func testKeys(e *env) {
	e.layer("base", "", file("base", "base"))
	keys := []string{
		" ", ".", "..", "...", "a b", "a:b,c=d\\e", "-rf", "~", "*", "ü", "日本", "\u202e", "\n", "\x01\x7f", "'\"`$(x)",
		"%00", "%2f", "s", "fs", "record", "lock", "trash", "NUL", strings.Repeat("k", snapshotters.MaxKey),
		"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
	}
	for _, k := range keys {
		m := e.prepare(k, "base")
		e.inside(m, func(dir string) {
			if err := os.WriteFile(dir+"/key", []byte(k), 0o600); err != nil {
				e.Fatal(err)
			}
		})
	}
	e.restart()
	held := e.all()
	for n, k := range keys {
		if i, ok := held[k]; !ok || i.Parent != "base" || i.Committed || i.ReadOnly {
			e.Errorf("all: %q is %+v, %v", k, i, ok)
		}
		m, err := e.d.Mounts(e.ctx(), k)
		if err != nil {
			e.Fatal(err)
		}
		e.inside(m, func(dir string) {
			if raw, err := os.ReadFile(dir + "/key"); err != nil || string(raw) != k {
				e.Errorf("key %q finds the files of %q: %v", k, raw, err)
			}
		})
		e.commit(k, fmt.Sprint(n), "")
		e.remove(fmt.Sprint(n))
	}
	if held := e.all(); len(held) != 1 {
		e.Errorf("left: %v", slices.Collect(maps.Keys(held)))
	}
}

func testBadKeys(e *env) {
	for _, k := range []string{"", "a/b", "/", "a\x00b", "\xff\xfe", strings.Repeat("k", snapshotters.MaxKey+1)} {
		calls := map[string]error{"remove": e.d.Remove(e.ctx(), k), "commit of": e.d.Commit(e.ctx(), k, "name", ""), "commit as": e.d.Commit(e.ctx(), "key", k, "")}
		_, calls["prepare"] = e.d.Prepare(e.ctx(), k, "", snapshotters.Options{})
		_, calls["view"] = e.d.View(e.ctx(), k, "", snapshotters.Options{})
		_, calls["mounts"] = e.d.Mounts(e.ctx(), k)
		_, calls["stat"] = e.d.Stat(e.ctx(), k)
		if k != "" { // no parent
			_, calls["prepare on"] = e.d.Prepare(e.ctx(), "key", k, snapshotters.Options{})
			_, calls["view on"] = e.d.View(e.ctx(), "key", k, snapshotters.Options{})
			calls["commit on"] = e.d.Commit(e.ctx(), "key", "name", k)
		}
		for verb, err := range calls {
			e.want(errdefs.IsInvalidArgument, err, fmt.Sprintf("%s %.20q", verb, k))
		}
	}
	if held := e.all(); len(held) != 0 {
		e.Errorf("left: %v", held)
	}
}

func testPrepare(e *env) {
	e.layer("base", "", file("f", "base"))
	first := e.prepare("c", "base")
	for range 3 {
		if again := e.prepare("c", "base"); !reflect.DeepEqual(again, first) {
			e.Errorf("prepare again: got %+v, want %+v", again, first)
		}
		if again, err := e.d.Mounts(e.ctx(), "c"); err != nil || !reflect.DeepEqual(again, first) {
			e.Errorf("mounts: got %+v, %v, want %+v", again, err, first)
		}
	}
	_, err := e.d.Prepare(e.ctx(), "c", "", snapshotters.Options{})
	e.want(errdefs.IsAlreadyExists, err, "prepare on another parent")
	_, err = e.d.View(e.ctx(), "c", "base", snapshotters.Options{})
	e.want(errdefs.IsAlreadyExists, err, "view of a key that is writable")
	_, err = e.d.Prepare(e.ctx(), "base", "", snapshotters.Options{})
	e.want(errdefs.IsAlreadyExists, err, "prepare of a key that is committed")
	_, err = e.d.Mounts(e.ctx(), "nobody")
	e.want(errdefs.IsNotFound, err, "mounts of nothing")
	_, err = e.d.Mounts(e.ctx(), "base")
	e.want(errdefs.IsFailedPrecondition, err, "mounts of what is committed")
	if _, err = e.d.Prepare(e.ctx(), "q", "base", snapshotters.Options{MaxBytes: 1 << 20}); err != nil {
		e.want(errdefs.IsNotImplemented, err, "prepare with a quota")
	}
	e.inside(first, func(dir string) {
		if raw, err := os.ReadFile(dir + "/f"); err != nil || string(raw) != "base" {
			e.Errorf("the parent's file: %q, %v", raw, err)
		}
	})
	if m := e.prepare("empty", ""); m[0].Type != "bind" {
		e.Errorf("on nothing: mounts %+v, want one directory", m)
	}
}

func testView(e *env) {
	e.layer("base", "", file("f", "base"))
	e.layer("top", "base", file("g", "top"), remove("f"))
	for parent, want := range map[string][]string{"": nil, "base": {"f"}, "top": {"g"}} {
		m := e.view("view of "+parent, parent)
		e.inside(m, func(dir string) {
			if err := os.WriteFile(dir+"/new", nil, 0o600); !errors.Is(err, unix.EROFS) {
				e.Errorf("write into a view of %q: %v", parent, err)
			}
			if got := names(e.T, dir); !slices.Equal(got, want) {
				e.Errorf("view of %q has %v, want %v", parent, got, want)
			}
		})
		if again, err := e.d.Mounts(e.ctx(), "view of "+parent); err != nil || !reflect.DeepEqual(again, m) {
			e.Errorf("mounts: got %+v, %v, want %+v", again, err, m)
		}
	}
	e.want(errdefs.IsFailedPrecondition, e.d.Commit(e.ctx(), "view of base", "never", ""), "commit of a view")
	_, err := e.d.View(e.ctx(), "view of base", "top", snapshotters.Options{})
	e.want(errdefs.IsAlreadyExists, err, "view of another parent")
	e.want(errdefs.IsFailedPrecondition, e.d.Remove(e.ctx(), "top"), "remove what is viewed")
	e.remove("view of top")
	e.remove("top")
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	ents, err := os.ReadDir(dir + "/.")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		out = append(out, e.Name())
	}
	return out
}

func testParents(e *env) {
	e.prepare("writable", "")
	e.view("view", "")
	for parent, is := range map[string]func(error) bool{"nobody": errdefs.IsNotFound, "writable": errdefs.IsFailedPrecondition, "view": errdefs.IsFailedPrecondition} {
		_, err := e.d.Prepare(e.ctx(), "c", parent, snapshotters.Options{})
		e.want(is, err, "prepare on "+parent)
		_, err = e.d.View(e.ctx(), "c", parent, snapshotters.Options{})
		e.want(is, err, "view of "+parent)
		if e.rebase {
			e.want(is, e.d.Commit(e.ctx(), "writable", "name", parent), "commit on "+parent)
		}
	}
	if held := e.all(); len(held) != 2 {
		e.Errorf("left: %v", held)
	}
}

func testCommit(e *env) {
	labels := map[string]string{"a": "b", "": "c", "l\n": "ü"}
	if _, err := e.d.Prepare(e.ctx(), "k", "", snapshotters.Options{Labels: labels}); err != nil {
		e.Fatal(err)
	}
	e.commit("k", "n", "")
	_, err := e.d.Mounts(e.ctx(), "k")
	e.want(errdefs.IsNotFound, err, "mounts of a key that was committed")
	want := snapshotters.Info{Key: "n", Committed: true, Bytes: -1, Inodes: -1, Labels: labels}
	if got := e.all(); len(got) != 1 || !reflect.DeepEqual(got["n"], want) {
		e.Errorf("all: %+v, want %+v", got, want)
	}
	e.commit("k", "n", "") // the answer was lost
	e.commit("nobody", "n", "")
	e.prepare("twin", "")
	e.commit("twin", "n", "")
	if got := e.all(); len(got) != 1 {
		e.Errorf("a key whose name was there already is still there: %+v", got)
	}
	e.want(errdefs.IsNotFound, e.d.Commit(e.ctx(), "nobody", "new", ""), "commit of nothing")
	e.prepare("c", "n")
	e.want(errdefs.IsInvalidArgument, e.d.Commit(e.ctx(), "c", "c", ""), "commit under its own key")
	e.prepare("d", "n")
	e.want(errdefs.IsAlreadyExists, e.d.Commit(e.ctx(), "d", "c", ""), "commit under the key of a writable one")
	e.want(errdefs.IsFailedPrecondition, e.d.Commit(e.ctx(), "n", "m", ""), "commit of what is committed")
	e.want(errdefs.IsAlreadyExists, e.d.Commit(e.ctx(), "d", "n", ""), "commit under a name with another parent")
	e.commit("d", "m", "n")
	if got := e.all()["m"]; got.Parent != "n" || !got.Committed {
		e.Errorf("a child: %+v", got)
	}
	e.want(errdefs.IsFailedPrecondition, e.d.Remove(e.ctx(), "n"), "remove of what others stand on")
}

// testCommitElsewhere gives Commit a parent that is not the one of Prepare.
func testCommitElsewhere(e *env) {
	e.layer("a", "", file("a", ""))
	e.layer("b", "", file("b", ""))
	e.prepare("on a", "a")
	e.want(errdefs.IsFailedPrecondition, e.d.Commit(e.ctx(), "on a", "n", "b"), "hang what stands on a on b")
	e.prepare("on nothing", "")
	err := e.d.Commit(e.ctx(), "on nothing", "n", "b")
	if !e.rebase {
		e.want(errdefs.IsFailedPrecondition, err, "hang what stands on nothing on b")
		return
	}
	if err != nil {
		e.Fatal(err)
	}
	e.inside(e.prepare("see", "n"), func(dir string) {
		if got := names(e.T, dir); !slices.Equal(got, []string{"b"}) {
			e.Errorf("rebased: %v", got)
		}
	})
	e.want(errdefs.IsAlreadyExists, e.d.Commit(e.ctx(), "gone", "n", "a"), "a name that is there on another parent")
}

func testRemove(e *env) {
	e.remove("nobody")
	e.layer("base", "", file("f", "x"))
	e.layer("mid", "base", file("g", "x"))
	e.prepare("c", "mid")
	for _, k := range []string{"base", "mid"} {
		e.want(errdefs.IsFailedPrecondition, e.d.Remove(e.ctx(), k), "remove "+k)
	}
	for _, k := range []string{"c", "c", "mid", "base", "base"} {
		e.remove(k)
	}
	if got := e.all(); len(got) != 0 {
		e.Errorf("left: %+v", got)
	}
	e.inside(e.prepare("c", ""), func(dir string) {
		if got := names(e.T, dir); len(got) != 0 {
			e.Errorf("a key that is used again has files: %v", got)
		}
	})
	// What is removed while somebody has it mounted does not hold anybody up.
	m := e.prepare("mounted", "")
	e.inside(m, func(string) { e.remove("mounted") })
}

// testRemoveMany removes a lot, deep and wide, and waits until the space is back.
func testRemoveMany(e *env) {
	before := e.usage()
	for i := range 10 {
		m := e.prepare(fmt.Sprint(i), "")
		e.inside(m, func(dir string) {
			for n := range 50 {
				if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(n), "d"), 0o700); err != nil {
					e.Fatal(err)
				}
			}
		})
	}
	for i := range 10 {
		e.remove(fmt.Sprint(i))
	}
	e.eventually("the space of removed snapshots comes back", func() bool { return e.usage() <= before+16 })
}

// usage counts the files below the root.
func (e *env) usage() (n int) {
	e.Helper()
	_ = filepath.WalkDir(e.root, func(string, os.DirEntry, error) error { n++; return nil })
	return n
}

func (e *env) eventually(what string, is func() bool) {
	e.Helper()
	for end := time.Now().Add(callTime); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			e.Fatalf("%s: not within %v", what, callTime)
		}
	}
}

func testStat(e *env) {
	const size = 1 << 20
	e.layer("base", "", file("big", strings.Repeat("x", size)), hardlink("again", "big"), file("d/small", "x"))
	i, err := e.d.Stat(e.ctx(), "base")
	if err != nil {
		e.Fatal(err)
	}
	if i.Key != "base" || i.Parent != "" || !i.Committed || i.Bytes < size || i.Bytes > size+size/2 || i.Inodes != 4 {
		e.Errorf("base: %+v, want 4 inodes and a megabyte, once", i)
	}
	for all, err := range e.d.All(e.ctx()) {
		if err != nil || all.Bytes != -1 && all.Bytes != i.Bytes || all.Inodes != -1 && all.Inodes != i.Inodes {
			e.Errorf("all: %+v, %v, stat %+v", all, err, i)
		}
	}
	if _, err := e.d.Prepare(e.ctx(), "c", "base", snapshotters.Options{Labels: map[string]string{"l": "v"}}); err != nil {
		e.Fatal(err)
	}
	c, err := e.d.Stat(e.ctx(), "c")
	if err != nil || c.Parent != "base" || c.Committed || c.ReadOnly || c.Labels["l"] != "v" || c.Bytes < 0 || c.Inodes < 1 {
		e.Errorf("writable: %+v, %v", c, err)
	}
	m, err := e.d.Mounts(e.ctx(), "c")
	if err != nil {
		e.Fatal(err)
	}
	e.inside(m, func(dir string) {
		if err := os.WriteFile(dir+"/more", make([]byte, size), 0o600); err != nil {
			e.Fatal(err)
		}
	})
	if more, err := e.d.Stat(e.ctx(), "c"); err != nil || more.Inodes != c.Inodes+1 || more.Bytes < c.Bytes+size {
		e.Errorf("after a write: %+v, %v, before %+v", more, err, c)
	}
	_, err = e.d.Stat(e.ctx(), "nobody")
	e.want(errdefs.IsNotFound, err, "stat of nothing")
}

func testAll(e *env) {
	e.layer("base", "")
	for i := range 300 { // more than fit in one frame
		if _, err := e.d.Prepare(e.ctx(), fmt.Sprintf("%03d %s", i, strings.Repeat("k", 200)), "base", snapshotters.Options{Volatile: true}); err != nil {
			e.Fatal(err)
		}
	}
	e.view("view", "base")
	got := e.all()
	if len(got) != 302 || !got["base"].Committed || !got["view"].ReadOnly || got["view"].Committed {
		e.Errorf("all: %d, base %+v, view %+v", len(got), got["base"], got["view"])
	}
	n := 0
	for _, err := range e.d.All(e.ctx()) {
		if err != nil {
			e.Fatal(err)
		}
		if n++; n == 3 {
			break // and the driver is none the worse
		}
	}
	ctx, cancel := context.WithCancelCause(e.ctx())
	cancel(nil)
	for _, err := range e.d.All(ctx) {
		if err != nil {
			return
		}
	}
	e.Error("all did not end with its context")
}

func testIsolation(e *env) {
	e.layer("base", "", file("f", "base"), file("g", "base"))
	for _, k := range []string{"one", "two"} {
		e.inside(e.prepare(k, "base"), func(dir string) {
			if err := errors.Join(os.WriteFile(dir+"/f", []byte(k), 0o600), os.Remove(dir+"/g"), os.WriteFile(dir+"/"+k, nil, 0o600)); err != nil {
				e.Fatal(err)
			}
		})
	}
	for k, want := range map[string][]string{"one": {"f", "one"}, "two": {"f", "two"}} {
		e.commit(k, k+"'", "")
		e.inside(e.prepare("on "+k, k+"'"), func(dir string) {
			raw, err := os.ReadFile(dir + "/f")
			if got := names(e.T, dir); err != nil || string(raw) != k || !slices.Equal(got, want) {
				e.Errorf("%s: %v, f is %q, %v", k, got, raw, err)
			}
		})
	}
	e.inside(e.view("v", "base"), func(dir string) {
		raw, err := os.ReadFile(dir + "/f")
		if got := names(e.T, dir); err != nil || string(raw) != "base" || !slices.Equal(got, []string{"f", "g"}) {
			e.Errorf("the parent changed: %v, %q, %v", got, raw, err)
		}
	})
}

// testRemount mounts snapshots again, as a container that is started again does; also those that may be lost.
func testRemount(e *env) {
	e.layer("base", "", file("f", "base"))
	for _, volatile := range []bool{false, true} {
		for _, parent := range []string{"", "base"} {
			key := fmt.Sprint(volatile, parent)
			m, err := e.d.Prepare(e.ctx(), key, parent, snapshotters.Options{Volatile: volatile})
			for i := range 3 {
				if err != nil {
					e.Fatal(err)
				}
				e.inside(m, func(dir string) {
					if n := len(names(e.T, dir)); n != i+len(parent)/4 {
						e.Errorf("mounted for the %d. time: %d files", i+1, n)
					}
					if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o600); err != nil {
						e.Fatal(err)
					}
				})
				m, err = e.d.Mounts(e.ctx(), key)
			}
			e.commit(key, "n"+key, "")
		}
	}
}

// testNest removes and counts what nests deeper than a path may be long.
func testNest(e *env) {
	const levels = 1500
	e.inside(e.prepare("deep", ""), func(dir string) {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		for range levels {
			if err != nil {
				e.Fatal(err)
			}
			if err = unix.Mkdirat(fd, "nested", 0o700); err != nil {
				e.Fatal(err)
			}
			next, operr := unix.Openat(fd, "nested", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			err = errors.Join(operr, unix.Close(fd))
			fd = next
		}
		if err := unix.Close(fd); err != nil {
			e.Fatal(err)
		}
	})
	if i, err := e.d.Stat(e.ctx(), "deep"); err != nil || i.Inodes < 100 {
		e.Errorf("stat: %+v, %v", i, err)
	}
	e.remove("deep")
	e.eventually("a deep snapshot's space comes back", func() bool { return e.usage() < 100 })
}

func testConfigure(t *testing.T, factory Factory) {
	t.Run("twice", func(t *testing.T) {
		d, root := factory(), t.TempDir()+"/root"
		defer closeDriver(t, d)
		for range 2 {
			if err := configure(t.Context(), d, root); err != nil {
				t.Fatal(err)
			}
		}
		if err := configure(t.Context(), d, root+"2"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("another root: %v", err)
		}
	})
	t.Run("not yet", func(t *testing.T) {
		d := factory()
		if _, err := d.Info(t.Context()); err != nil {
			t.Errorf("info: %v", err)
		}
		_, err := d.Prepare(t.Context(), "k", "", snapshotters.Options{})
		if !errdefs.IsUnavailable(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("prepare: %v", err)
		}
		for _, err = range d.All(t.Context()) {
			if !errdefs.IsUnavailable(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("all: %v", err)
			}
		}
		closeDriver(t, d)
	})
	t.Run("bad", func(t *testing.T) {
		for _, c := range []plugins.Config{{Root: "relative"}, {Root: ""}, {Root: t.TempDir(), Options: []byte(`{"no such": 1}`)}, {Root: t.TempDir(), Options: []byte(`{`)}} {
			d := factory()
			if err := d.Configure(t.Context(), c); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%+v: %v", c, err)
			}
			closeDriver(t, d)
		}
	})
	t.Run("served by another", func(t *testing.T) {
		one, two, root := factory(), factory(), t.TempDir()+"/root"
		if err := configure(t.Context(), one, root); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, context.DeadlineExceeded)
		defer cancel()
		if err := configure(ctx, two, root); !errdefs.IsUnavailable(err) {
			t.Errorf("a root that is in use: %v", err)
		}
		closeDriver(t, one)
		if err := configure(t.Context(), two, root); err != nil {
			t.Errorf("a root that is free again: %v", err)
		}
		if st, err := os.Stat(root); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("others may reach what containers own: %v, %v", st.Mode(), err)
		}
		closeDriver(t, two)
	})
}
