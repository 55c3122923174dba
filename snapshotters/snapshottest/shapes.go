package snapshottest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
)

// image stacks layers in the driver, and, by doing what they mean, in a plain directory; and compares what
// can be seen on top after each.
type image struct {
	*env
	plain string
	top   string
	n     int
}

func newImage(e *env) *image {
	return &image{env: e, plain: e.TempDir()}
}

func (i *image) add(steps ...step) {
	i.Helper()
	i.n++
	name := fmt.Sprintf("layer %d", i.n)
	i.layer(name, i.top, steps...)
	i.top = name
	if err := apply(i.plain, false, steps); err != nil {
		i.Fatal(err)
	}
}

func (i *image) same() {
	i.Helper()
	want, err := look(i.plain)
	if err != nil {
		i.Fatal(err)
	}
	i.compare(i.prepare("write on "+i.top, i.top), want)
	i.compare(i.view("read "+i.top, i.top), want)
}

func (i *image) compare(m []plugins.Mount, want tree) {
	i.Helper()
	i.inside(m, func(dir string) {
		got, err := look(dir)
		if err != nil {
			i.Fatal(err)
		}
		for _, d := range differences(got, want) {
			i.Errorf("%s: %s", i.top, d)
		}
	})
}

func testLayers(e *env) {
	i := newImage(e)
	i.add(
		dir("bin", 0o755, 0), file("bin/tool", "tool"), symlink("bin/link", "tool"), hardlink("bin/hard", "bin/tool"), symlink("dangling", "/nowhere"),
		dir("etc", 0o750, 7), file("etc/a", "a1"), file("etc/b", "b1"), file("etc/c", "c1"),
		dir("tmp", 0o1777, 0), file("var/lib/db/one", "1"), file("var/lib/db/two", "2"), file("was/a/dir", "x"), file("wasfile", "x"),
		rich("rich"), sparse("sparse", 4<<20), file("gone/deep/down", "x"),
		node("dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), node("dev/disk", unix.S_IFBLK|0o660, int(unix.Mkdev(7, 9))),
		node("dev/pipe", unix.S_IFIFO|0o600, 0), node("dev/sock", unix.S_IFSOCK|0o600, 0),
		remove("never/was/here"), remove("nor this")) // a whiteout of nothing is no file
	i.same()
	i.add(remove("etc/b"), file("etc/c", "c2"), remove("gone"), empty("var/lib/db"), file("var/lib/db/three", "3"),
		file("was", "a file now"), file("wasfile/a/dir", "now"), file("tmp/x", "the mode of /tmp stays"), hardlink("tmp/y", "tmp/x"))
	i.same()
	i.add(file("etc/b", "b3"), file("gone/again", "x"), remove("bin/link"), empty("dev"), file("was/dir/again", "x"), remove("wasfile"),
		empty("never there"), remove("empty dir too"), remove("var/lib/db/one"))
	i.same()
	i.add(remove("etc"), remove("var"))
	i.add(file("etc/new", "x"), dir("var", 0o700, 3))
	i.same()
}

// testLooks compares what unpackers get wrong in directories: those that a layer passes through without describing them keep their
// owner, mode, attributes and times, the top one included.
func testLooks(e *env) {
	e.layer("base", "", dir(".", 0o751, 11), dir("d", 0o1770, 12), dir("d/e", 0o2711, 13), file("d/e/f", "f"),
		step{path: "x", how: dirs, make: func(p string) error {
			return errors.Join(unix.Setxattr(p, "user.dir", []byte("v"), 0), os.Chtimes(p, then, then))
		}},
		// their times once more: the entries above changed them
		dir("d/e", 0o2711, 13), dir("d", 0o1770, 12), dir(".", 0o751, 11))
	e.layer("mid", "base", file("unrelated", ""), dir(".", 0o751, 11))
	e.layer("top", "mid", file("x/new", "x"), file("d/e/g", "g"), remove("d/e/f"))
	want := map[string]string{
		".": "40751 11", "d": "41770 12", "d/e": "42711 13", "x": "40755 0",
	}
	check := func(dir string, times bool) {
		e.Helper()
		for p, w := range want {
			var st unix.Stat_t
			if err := unix.Lstat(dir+"/"+p, &st); err != nil {
				e.Fatal(err)
			}
			if got := fmt.Sprintf("%o %d", st.Mode, st.Uid); got != w {
				e.Errorf("%s is %s, want %s", p, got, w)
			}
			if times && (st.Mtim.Sec != then.Unix() || st.Mtim.Nsec != int64(then.Nanosecond())) {
				e.Errorf("%s is from %d, want %d", p, st.Mtim.Sec, then.Unix())
			}
		}
		if got, err := attributes(dir + "/x"); err != nil || got != ` user.dir="v"` {
			e.Errorf("attributes of x: %q, %v", got, err)
		}
		if got, err := attributes(dir + "/."); err != nil || got != "" {
			e.Errorf("attributes of the top: %q, %v", got, err)
		}
	}
	e.inside(e.view("v", "top"), func(dir string) { check(dir, e.rebase) }) // without, unpacking changes times, as tar does
	e.inside(e.prepare("c", "top"), func(dir string) { check(dir, e.rebase) })
	e.inside(e.view("w", "mid"), func(dir string) { check(dir, true) })
	e.inside(e.prepare("x", "mid"), func(dir string) { check(dir, true) })
}

// testRandomLayers does the same to layers nobody thought of.
func testRandomLayers(e *env) {
	for seed := range uint64(6) {
		dice := rand.New(rand.NewPCG(seed, 42)) //nolint:gosec // the same layers in every run
		i := newImage(e)
		i.n = int(seed) * 100
		for range 6 {
			i.add(randomLayer(dice)...)
			i.same()
			if e.Failed() {
				e.Fatalf("with seed %d", seed)
			}
		}
	}
}

// randomLayer is a layer that means the same in whatever order it is read: no entry is below one that it removes or replaces.
func randomLayer(dice *rand.Rand) []step {
	var removed, rest []step
	var taken []string
	free := func(p string) bool {
		for _, t := range taken {
			if p == t || strings.HasPrefix(p, t+"/") || strings.HasPrefix(t, p+"/") {
				return false
			}
		}
		taken = append(taken, p)
		return true
	}
	for range 4 + dice.IntN(12) {
		var p string
		for range 1 + dice.IntN(4) {
			p = filepath.Join(p, string(rune('a'+dice.IntN(4))))
		}
		if !free(p) {
			continue
		}
		content := fmt.Sprint(dice.Uint32())
		switch dice.IntN(8) {
		case 0, 1:
			removed = append(removed, remove(p))
		case 2:
			removed = append(removed, empty(p))
			if dice.IntN(2) == 0 {
				rest = append(rest, file(p+"/z", content))
			}
		case 3:
			rest = append(rest, dir(p, 0o700+dice.Uint32N(0o100), dice.IntN(9)))
		case 4:
			rest = append(rest, symlink(p, content))
		case 5:
			rest = append(rest, file(p, content), hardlink(p+"_", p))
		default:
			rest = append(rest, file(p, content))
		}
	}
	return append(removed, rest...)
}

// testManyLayers stacks more layers than Docker allows, and more than fit into one page of mount options.
func testManyLayers(e *env) {
	const layers = 140
	parent := ""
	for n := range layers {
		name := fmt.Sprint("layer ", n)
		e.layer(name, parent, file(fmt.Sprint("f", n), fmt.Sprint(n)), file("last", fmt.Sprint(n)), remove(fmt.Sprint("f", n-3)))
		parent = name
	}
	e.restart()
	e.inside(e.prepare("c", parent), func(dir string) {
		raw, err := os.ReadFile(dir + "/last")
		if got := names(e.T, dir); err != nil || string(raw) != fmt.Sprint(layers-1) || len(got) != 4 {
			e.Errorf("on %d layers: %v, last is %q, %v", layers, got, raw, err)
		}
		if err := os.WriteFile(dir+"/new", nil, 0o600); err != nil {
			e.Error(err)
		}
	})
	if n := len(e.all()); n != layers+1 {
		e.Errorf("%d snapshots, want %d", n, layers+1)
	}
}

// testConcurrency makes, commits and removes from many goroutines at once.
func testConcurrency(e *env) {
	e.layer("base", "", file("f", "base"))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 15 {
				k := fmt.Sprint(w, ".", n)
				if err := e.life(k, n%3 == 0); err != nil {
					e.Errorf("%s: %v", k, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := e.all(); len(got) != 1 {
		e.Errorf("left: %d", len(got))
	}
}

// life takes a snapshot from its beginning to its end.
func (e *env) life(k string, volatile bool) error {
	ctx := e.ctx()
	first, err := e.d.Prepare(ctx, k, "base", snapshotters.Options{Volatile: volatile})
	if err != nil {
		return err
	}
	second, err := e.d.Mounts(ctx, k)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(first, second) {
		return fmt.Errorf("mounts are %+v, were %+v", second, first)
	}
	if err := e.d.Commit(ctx, k, k+"'", ""); err != nil {
		return err
	}
	if _, err := e.d.View(ctx, k+"v", k+"'", snapshotters.Options{}); err != nil {
		return err
	}
	if err := e.d.Remove(ctx, k+"'"); !errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("remove of what is viewed: %w", err)
	}
	if _, err := e.d.Stat(ctx, k+"'"); err != nil {
		return err
	}
	return errors.Join(e.d.Remove(ctx, k+"v"), e.d.Remove(ctx, k+"'"))
}

// testOneKey lets many fight over the same keys: whatever they do, it is one thing after the other.
func testOneKey(e *env) {
	e.layer("base", "", file("f", "base"))
	const fighters = 8
	var wg sync.WaitGroup
	answers := make([]string, fighters)
	for w := range fighters {
		wg.Go(func() {
			m, err := e.d.Prepare(e.ctx(), "k", "base", snapshotters.Options{})
			if err != nil {
				e.Error(err)
				return
			}
			answers[w] = fmt.Sprint(m)
		})
	}
	wg.Wait()
	for _, a := range answers {
		if a != answers[0] {
			e.Errorf("two answers for one key: %s and %s", a, answers[0])
		}
	}
	for range fighters {
		wg.Go(func() {
			if err := e.d.Commit(e.ctx(), "k", "n", "base"); err != nil {
				e.Error(err)
			}
		})
	}
	wg.Wait()
	var made atomic.Int64
	for w := range fighters { // a child or the removal of its parent: not both
		wg.Go(func() {
			_, err := e.d.Prepare(e.ctx(), fmt.Sprint("child ", w), "n", snapshotters.Options{})
			if err == nil {
				made.Add(1)
			} else if !errdefs.IsNotFound(err) {
				e.Error(err)
			}
		})
		wg.Go(func() {
			if err := e.d.Remove(e.ctx(), "n"); err != nil && !errdefs.IsFailedPrecondition(err) {
				e.Error(err)
			}
		})
	}
	wg.Wait()
	held := e.all()
	if _, there := held["n"]; int64(len(held)) != 1+made.Load()+map[bool]int64{true: 1}[there] || made.Load() > 0 != there {
		e.Errorf("%d children were made, parent there: %v, held %d", made.Load(), there, len(held))
	}
	for k := range held {
		if strings.HasPrefix(k, "child") {
			if _, err := e.d.Mounts(e.ctx(), k); err != nil {
				e.Error(err)
			}
		}
	}
}

// testRestart replaces the driver between any two calls.
func testRestart(e *env) {
	e.layer("base", "", file("f", "base"))
	m := e.prepare("c", "base")
	e.view("v", "base")
	e.inside(m, func(dir string) {
		e.restart() // while it is mounted
		if err := os.WriteFile(dir+"/new", []byte("new"), 0o600); err != nil {
			e.Fatal(err)
		}
	})
	before := e.all()
	e.restart()
	if after := e.all(); !reflect.DeepEqual(before, after) {
		e.Errorf("all: %+v, before %+v", after, before)
	}
	if again := e.prepare("c", "base"); !reflect.DeepEqual(again, m) {
		e.Errorf("mounts: %+v, before %+v", again, m)
	}
	e.restart()
	e.commit("c", "n", "base")
	e.restart()
	e.commit("c", "n", "base")
	e.inside(e.prepare("d", "n"), func(dir string) {
		if raw, err := os.ReadFile(dir + "/new"); err != nil || string(raw) != "new" {
			e.Errorf("new: %q, %v", raw, err)
		}
	})
	e.want(errdefs.IsFailedPrecondition, e.d.Remove(e.ctx(), "n"), "remove of what others stand on")
	for _, k := range []string{"d", "n", "v", "base"} {
		e.remove(k)
		e.restart()
	}
	if got := e.all(); len(got) != 0 {
		e.Errorf("left: %+v", got)
	}
}
