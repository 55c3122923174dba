package meta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// These tests kill a real child with SIGKILL. The child is this test binary, told by its
// environment what to do in which directory; its drivers hold files there.

const (
	childDir  = "META_TEST_DIR"
	childVerb = "META_TEST_VERB" // create, remove, abort or storm
	childDie  = "META_TEST_DIE"  // at which point; none if empty
)

func TestMain(m *testing.M) {
	if os.Getenv(childDir) != "" {
		if err := child(os.Getenv(childDir), os.Getenv(childVerb), os.Getenv(childDie)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// files is a driver: it holds a file for each key.
type files string

func (d files) make(key string) error { return os.WriteFile(filepath.Join(string(d), key), nil, 0o600) }

func (d files) remove(key string) error {
	if err := os.Remove(filepath.Join(string(d), key)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d files) has(key string) bool {
	_, err := os.Stat(filepath.Join(string(d), key))
	return err == nil
}

// world is a store and two drivers in a directory.
type world struct {
	db      *DB
	drivers map[string]files
	point   func()
}

func openWorld(dir string) (*world, error) {
	w := &world{drivers: map[string]files{}, point: func() {}}
	for _, kind := range []string{"snapshot", "volume"} {
		d := filepath.Join(dir, kind)
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
		w.drivers[kind] = files(d)
	}
	var err error
	if w.db, err = Open(filepath.Join(dir, "db")); err != nil {
		return nil, err
	}
	for kind, d := range w.drivers {
		w.db.OnUndo(kind, func(_ context.Context, c *storev1.Claim) error { return d.remove(c.Ref.Key) })
	}
	w.db.OnUndo("container", func(_ context.Context, c *storev1.Claim) error {
		return w.db.Update(func(tx *Tx) error { return w.forget(tx, c.Ref.Key) })
	})
	return w, nil
}

func (w *world) forget(tx *Tx, id string) error {
	return errors.Join(containers.Delete(tx, id), Names("container").Release(tx, "name-"+id, id))
}

func (w *world) create(ctx context.Context, id string, commit bool) (err error) {
	op, err := w.db.Begin("container.create", claimOf(Make, "container", id))
	if err != nil {
		return err
	}
	defer op.End(ctx, &err)
	for _, kind := range []string{"snapshot", "volume"} {
		w.point()
		if err := op.Claim(claimOf(Make, kind, id)); err != nil {
			return err
		}
		w.point()
		if err := w.drivers[kind].make(id); err != nil {
			return err
		}
	}
	w.point()
	if !commit {
		return nil // End takes it back
	}
	err = op.Commit(func(tx *Tx) error {
		return errors.Join(containers.Put(tx, id, container(id, "name-"+id)), Names("container").Reserve(tx, "name-"+id, id))
	})
	w.point()
	return err
}

func (w *world) remove(ctx context.Context, id string) (err error) {
	op, err := w.db.Begin("container.remove", claimOf(Drop, "container", id), claimOf(Drop, "snapshot", id), claimOf(Drop, "volume", id))
	if err != nil {
		return err
	}
	defer op.End(ctx, &err)
	for _, kind := range []string{"volume", "snapshot"} {
		w.point()
		if err := w.drivers[kind].remove(id); err != nil {
			return err
		}
	}
	w.point()
	err = op.Commit(func(tx *Tx) error { return w.forget(tx, id) })
	w.point()
	return err
}

func claimOf(m storev1.Claim_Mode, kind, key string) *storev1.Claim {
	return &storev1.Claim{Ref: &storev1.Ref{Kind: kind, Key: key}, Mode: m}
}

// child does a verb, and dies at a point.
func child(dir, verb, die string) error {
	w, err := openWorld(dir)
	if err != nil {
		return err
	}
	if err := w.db.Recover(context.Background()); err != nil {
		return err
	}
	if n, err := strconv.Atoi(die); err == nil {
		w.point = func() {
			if n--; n < 0 {
				_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	switch verb {
	case "create":
		return w.create(context.Background(), "c", true)
	case "abort":
		return w.create(context.Background(), "c", false)
	case "remove":
		return w.remove(context.Background(), "base")
	case "storm":
		fmt.Println("storming")
		return storm(w)
	}
	return nil
}

// storm creates, aborts and removes from several goroutines until it is killed.
func storm(w *world) error {
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for g := range 4 {
		wg.Go(func() {
			for {
				id := fmt.Sprint(g, "-", rand.IntN(5))
				has := false
				if err := w.db.View(func(tx *Tx) error { has = containers.Has(tx, id); return nil }); err != nil {
					errs <- err
					return
				}
				do := func() error { return w.create(context.Background(), id, rand.IntN(3) > 0) }
				if has {
					do = func() error { return w.remove(context.Background(), id) }
				}
				if err := do(); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	return <-errs
}

// spawn runs a child to its end, and reports whether it was killed.
func spawn(t *testing.T, dir, verb, die string, env ...string) (killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childDir+"="+dir, childVerb+"="+verb, childDie+"="+die), env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	ee := &exec.ExitError{}
	if errors.As(err, &ee) && ee.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	t.Fatalf("child %s at %s: %v\n%s", verb, die, err, out)
	return false
}

// agree recovers, and compares the store with its drivers and itself: all of a container or none.
func agree(t *testing.T, dir, what string) {
	t.Helper()
	w, err := openWorld(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.db.Close()
	if err := w.db.Recover(t.Context()); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if err := w.db.Verify(func(s, d string) { t.Errorf("%s: %s: %s", what, s, d) }); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, d := range w.drivers {
		entries, err := os.ReadDir(string(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			ids[e.Name()] = true
		}
	}
	read(t, w.db, func(tx *Tx) {
		for id := range containers.All(tx) {
			ids[id] = true
		}
		for id := range ids {
			has := containers.Has(tx, id)
			holder, err := Names("container").Resolve(tx, "name-"+id)
			if w.drivers["snapshot"].has(id) != has || w.drivers["volume"].has(id) != has || (err == nil) != has || has && holder != id {
				t.Errorf("%s: %s: record %v, snapshot %v, volume %v, name %q", what, id, has, w.drivers["snapshot"].has(id), w.drivers["volume"].has(id), holder)
			}
		}
		for op := range tx.Ops() {
			t.Errorf("%s: left in the journal: %v", what, op)
		}
	})
	indexed(t, w.db)
}

func based(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	w, err := openWorld(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.create(t.Context(), "base", true), w.db.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestKill kills a process at every point of every verb.
func TestKill(t *testing.T) {
	for _, verb := range []string{"create", "abort", "remove"} {
		die := 0
		for ; ; die++ {
			dir := based(t)
			killed := spawn(t, dir, verb, strconv.Itoa(die))
			agree(t, dir, fmt.Sprint(verb, " killed at ", die))
			if !killed {
				break
			}
		}
		t.Logf("%s: killed at %d points", verb, die)
		if die < 4 {
			t.Errorf("%s was killed at %d points only", verb, die)
		}
	}
}

// TestKillAnywhere kills a busy process at any moment, again and again, in one store.
func TestKillAnywhere(t *testing.T) {
	dir := based(t)
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for n := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir, childVerb+"=storm")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 16)); err != nil { // it is at it
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("it ended by itself: %v", err)
		}
		agree(t, dir, fmt.Sprint("round ", n))
	}
	w, err := openWorld(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d changes survived %d kills", w.db.Revision(), rounds)
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
}
