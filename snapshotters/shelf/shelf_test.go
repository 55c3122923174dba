package shelf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func noFill(context.Context, Snapshot, []Snapshot) error { return nil }

func openAt(t *testing.T, root string) *Shelf {
	t.Helper()
	s, err := Open(t.Context(), root, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func reopen(t *testing.T, s *Shelf) *Shelf {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openAt(t, s.Root())
}

func keep(t *testing.T, s *Shelf, key, parent string, volatile bool) Snapshot {
	t.Helper()
	sn, _, err := s.Make(t.Context(), Record{Key: key, Parent: parent, Kind: Active}, volatile, func(_ context.Context, sn Snapshot, _ []Snapshot) error {
		return os.Mkdir(s.Work(sn), 0o700)
	})
	if err != nil {
		t.Fatal(err)
	}
	return sn
}

func commit(t *testing.T, s *Shelf, key, name string) {
	t.Helper()
	if err := s.Commit(t.Context(), key, name, "", true, nil); err != nil {
		t.Fatal(err)
	}
}

func keys(s *Shelf) (out []string) {
	for sn := range s.All() {
		out = append(out, sn.Key+" "+string(sn.Kind))
	}
	return out
}

// the environment of the child of TestKilledAnywhere
const (
	dieAt   = "SHELF_DIE_AT"
	dieRoot = "SHELF_DIE_ROOT"
	dieVerb = "SHELF_DIE_VERB"
)

// TestKilledAnywhere kills a process at each step of each change, for real, and looks at what the next one finds: the old
// state or the new, and nothing besides.
func TestKilledAnywhere(t *testing.T) {
	if os.Getenv(dieVerb) != "" {
		dying(t)
		return
	}
	before, made := []string{"base committed", "old active"}, []string{"base committed", "new active", "old active"}
	for verb, states := range map[string][2][]string{
		"make":          {before, made},
		"make volatile": {before, made},
		"commit":        {before, {"base committed", "name committed"}},
		"remove":        {before, {"base committed"}},
	} {
		t.Run(verb, func(t *testing.T) {
			seen := map[string]int{}
			for n := 1; ; n++ {
				root := t.TempDir() + "/root"
				s := openAt(t, root)
				keep(t, s, "b", "", false)
				commit(t, s, "b", "base")
				keep(t, s, "old", "base", false)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilledAnywhere$")
				cmd.Env = append(os.Environ(), dieVerb+"="+verb, dieAt+"="+strconv.Itoa(n), dieRoot+"="+root)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if err != nil && !(errors.As(err, &exit) && !exit.Exited()) {
					t.Fatalf("step %d: %v: %s", n, err, out)
				}
				s = openAt(t, root)
				got := keys(s)
				switch {
				case slices.Equal(got, states[0]) && err != nil:
					seen["old"]++
				case slices.Equal(got, states[1]):
					seen["new"]++
				default:
					t.Errorf("killed at step %d: %v, want %v or %v", n, got, states[0], states[1])
				}
				whole(t, s)
				if err == nil { // it lived: there are no more steps
					t.Logf("killed at %d steps: %v", n-1, seen)
					if n < 3 || seen["old"] == 0 {
						t.Errorf("only %d steps, %v", n-1, seen)
					}
					return
				}
			}
		})
	}
}

// whole fails if anything lies on the shelf that is not a snapshot, or a snapshot is not whole.
func whole(t *testing.T, s *Shelf) {
	t.Helper()
	known := map[string]bool{}
	for sn := range s.All() {
		known[sn.ID] = true
		if _, err := os.Stat(s.FS(sn)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Work(sn)); sn.Kind == Committed && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is committed and still has its work directory: %v", sn.Key, err)
		}
		if _, _, err := s.Get(sn.Key); err != nil {
			t.Error(err)
		}
	}
	ents, err := os.ReadDir(s.path(shelfName))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		if !known[e.Name()] {
			t.Errorf("on the shelf: %s", e.Name())
		}
	}
	eventually(t, "an empty trash", func() bool {
		ents, err := os.ReadDir(s.path(trashName))
		return err == nil && len(ents) == 0
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// dying is the child: it makes one change and is killed at one of its steps.
func dying(t *testing.T) {
	left, err := strconv.Atoi(os.Getenv(dieAt))
	if err != nil {
		t.Fatal(err)
	}
	armed := false
	s, err := open(t.Context(), os.Getenv(dieRoot), "test", slog.New(slog.DiscardHandler), func(string) {
		if !armed {
			return
		}
		if left--; left == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	armed = true
	switch verb := os.Getenv(dieVerb); verb {
	case "make", "make volatile":
		keep(t, s, "new", "base", verb != "make")
	case "commit":
		commit(t, s, "old", "name")
	case "remove":
		if err := s.Remove(t.Context(), "old"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFillFails(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	boom := errors.New("boom")
	for range 2 {
		_, _, err := s.Make(t.Context(), Record{Key: "k", Kind: Active}, false, func(_ context.Context, sn Snapshot, _ []Snapshot) error {
			return errors.Join(boom, os.WriteFile(s.FS(sn)+"/half", nil, 0o600))
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		whole(t, s)
	}
	keep(t, s, "k", "", false)
	if err := s.Commit(t.Context(), "k", "n", "", false, func(context.Context, Snapshot, []Snapshot) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if got := keys(s); !slices.Equal(got, []string{"k active"}) {
		t.Errorf("after a commit that failed: %v", got)
	}
	commit(t, s, "k", "n")
}

// TestDamage opens roots that no killed process could have left.
func TestDamage(t *testing.T) {
	write := func(t *testing.T, s *Shelf, sn Snapshot, content string) {
		t.Helper()
		if err := os.WriteFile(s.path(shelfName, sn.ID, recordName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		do   func(t *testing.T, s *Shelf, a, b, c Snapshot) // c on b on a
		want []string
		lost []string // of those that are there, what cannot be used
	}{
		"an empty record":     {func(t *testing.T, s *Shelf, _, _, c Snapshot) { write(t, s, c, "") }, []string{"a committed", "b committed"}, nil},
		"zeros":               {func(t *testing.T, s *Shelf, _, _, c Snapshot) { write(t, s, c, "\x00\x00\x00") }, []string{"a committed", "b committed"}, nil},
		"half a record":       {func(t *testing.T, s *Shelf, _, _, c Snapshot) { write(t, s, c, `{"key":"c","par`) }, []string{"a committed", "b committed"}, nil},
		"no record":           {func(t *testing.T, s *Shelf, _, _, c Snapshot) { _ = os.Remove(s.path(shelfName, c.ID, recordName)) }, []string{"a committed", "b committed"}, nil},
		"a kind of tomorrow":  {func(t *testing.T, s *Shelf, _, _, c Snapshot) { write(t, s, c, `{"key":"c","kind":"x"}`) }, []string{"a committed", "b committed"}, nil},
		"a key with a slash":  {func(t *testing.T, s *Shelf, _, _, c Snapshot) { write(t, s, c, `{"key":"../c","kind":"active"}`) }, []string{"a committed", "b committed"}, nil},
		"too large":           {func(t *testing.T, s *Shelf, _, _, c Snapshot) { write(t, s, c, strings.Repeat(" ", maxRecord+1)) }, []string{"a committed", "b committed"}, nil},
		"a file on the shelf": {func(t *testing.T, s *Shelf, _, _, _ Snapshot) { _ = os.WriteFile(s.path(shelfName, "x"), nil, 0o600) }, []string{"a committed", "b committed", "c active"}, nil},
		"a record being written": {func(t *testing.T, s *Shelf, _, _, c Snapshot) {
			_ = os.WriteFile(s.path(shelfName, c.ID, recordName+".new"), []byte("{"), 0o600)
		}, []string{"a committed", "b committed", "c active"}, nil},
		"the parent is gone": {func(t *testing.T, s *Shelf, _, b, _ Snapshot) { _ = os.RemoveAll(s.path(shelfName, b.ID)) }, []string{"a committed", "c active"}, []string{"c"}},
		"a ring": {
			func(t *testing.T, s *Shelf, a, _, _ Snapshot) {
				write(t, s, a, `{"key":"a","parent":"b","kind":"committed"}`)
			},
			[]string{"a committed", "b committed", "c active"},
			[]string{"a", "b", "c"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openAt(t, t.TempDir()+"/root")
			keep(t, s, "x", "", false)
			commit(t, s, "x", "a")
			keep(t, s, "x", "a", false)
			commit(t, s, "x", "b")
			top := keep(t, s, "c", "b", false)
			b, parents, err := s.Get("b")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.do(t, s, parents[0], b, top)
			s = openAt(t, s.Root())
			if got := keys(s); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			for sn := range s.All() {
				if _, _, err := s.Get(sn.Key); slices.Contains(c.lost, sn.Key) != errdefs.IsDataLoss(err) {
					t.Errorf("get %s: %v", sn.Key, err)
				}
			}
			if err := s.Remove(t.Context(), "c"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUnreadableRecordIsNotSwept(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	sn := keep(t, s, "k", "", false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := s.path(shelfName, sn.ID, recordName)
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil { // reading it fails with EISDIR
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s.Root(), "test", slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("a record that cannot be read was taken for one that is not there")
	}
	if _, err := os.Stat(s.FS(sn)); err != nil {
		t.Error(err)
	}
}

func TestReboot(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	keep(t, s, "durable", "", false)
	sn := keep(t, s, "volatile", "", true)
	sn.Boot = "another boot"
	raw, err := json.Marshal(sn.Record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(shelfName, sn.ID, recordName), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	for key, is := range map[string]func(error) bool{"durable": func(err error) bool { return err == nil }, "volatile": errdefs.IsDataLoss} {
		sn, _, err := s.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Alive(sn); !is(err) {
			t.Errorf("%s: %v", key, err)
		}
		if err := s.Commit(t.Context(), key, key+"'", "", false, nil); !is(err) {
			t.Errorf("commit %s: %v", key, err)
		}
	}
	if err := s.Remove(t.Context(), "volatile"); err != nil {
		t.Error(err)
	}
}

func TestFormat(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s.Root(), "another", slog.Default()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the root of another driver: %v", err)
	}
	s = openAt(t, s.Root()) // and it is not locked by the one that failed
	if err := os.WriteFile(s.path(formatName), []byte("test 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s.Root(), "test", slog.Default()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the root of a newer driver: %v", err)
	}
}

// TestIdsAreNotUsedAgain: a path that somebody remembers must not lead to another's files.
func TestIdsAreNotUsedAgain(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	seen := map[string]bool{}
	for n := range 40 {
		sn := keep(t, s, "k", "", true)
		if seen[sn.ID] {
			t.Fatalf("%d: id %s again", n, sn.ID)
		}
		seen[sn.ID] = true
		if err := s.Remove(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if n%10 == 9 {
			s = reopen(t, s)
		}
	}
}

// TestSweepDeep: what a container nests costs a bounded number of descriptors to delete.
func TestSweepDeep(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	sn := keep(t, s, "k", "", true)
	dir := s.FS(sn)
	for range maxNest*3 + 1 {
		dir += "/d"
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	whole(t, s)
}

// TestSweepFollowsNothing plants links out of the trash.
func TestSweepFollowsNothing(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sn := keep(t, s, "k", "", true)
	if err := errors.Join(os.Symlink(outside, s.FS(sn)+"/dir"), os.Symlink(outside+"/precious", s.FS(sn)+"/file"), os.Symlink(outside, s.path(trashName, "zz"))); err != nil {
		t.Fatal(err)
	}
	if u, err := du(t.Context(), s.FS(sn)); err != nil || u.Inodes != 3 {
		t.Errorf("du: %+v, %v", u, err)
	}
	if err := s.Remove(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	whole(t, s)
	if _, err := os.Stat(outside + "/precious"); err != nil {
		t.Error(err)
	}
}

// TestWaiting: a caller whose time is over is let go, whoever holds the key.
func TestWaiting(t *testing.T) {
	s := openAt(t, t.TempDir()+"/root")
	release, err := s.hold(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("no time"))
	defer cancel()
	for verb, err := range map[string]error{
		"remove": s.Remove(ctx, "k"),
		"commit": s.Commit(ctx, "k", "n", "", false, nil),
		"make":   func() error { _, _, err := s.Make(ctx, Record{Key: "k", Kind: Active}, false, noFill); return err }(),
	} {
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no time") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	release()
	// nor does it do anything now that nobody is in its way
	if _, _, err := s.Make(ctx, Record{Key: "k", Kind: Active}, false, noFill); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("make, too late: %v", err)
	}
	keep(t, s, "k", "", false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "k"); !errdefs.IsUnavailable(err) {
		t.Errorf("after close: %v", err)
	}
}

func TestFail(t *testing.T) {
	for _, c := range []struct {
		err error
		is  func(error) bool
	}{
		{unix.ENOSPC, errdefs.IsResourceExhausted},
		{&os.PathError{Op: "mkdir", Path: "x", Err: unix.EDQUOT}, errdefs.IsResourceExhausted},
		{unix.EIO, errdefs.IsInternal},
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), errdefs.IsNotFound},
		{context.DeadlineExceeded, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) && !errdefs.IsInternal(err) }},
	} {
		if err := Fail("prepare", "k", c.err); !c.is(err) || !strings.HasPrefix(err.Error(), `prepare snapshot "k": `) {
			t.Errorf("%v became %v", c.err, err)
		}
	}
	if err := Fail("prepare", "k", nil); err != nil {
		t.Error(err)
	}
}

// FuzzRecord reads records: none crashes, and one that is accepted is written back as it was.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"key":"k","kind":"active"}`))
	f.Add([]byte(`{"key":"k","parent":"p","kind":"committed","labels":{"a":"b"},"boot":"x"}`))
	f.Add([]byte(`{"key":"a/b","kind":"view"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRecord(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseRecord(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if twice, err := json.Marshal(back); err != nil || !bytes.Equal(again, twice) {
			t.Errorf("%s became %s, %v", again, twice, err)
		}
		if strings.ContainsAny(r.Key+r.Parent, "/\x00") || filepath.Base("x"+r.Key) != "x"+r.Key {
			t.Errorf("key %q", r.Key)
		}
	})
}
