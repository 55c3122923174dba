package meta

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var update = flag.Bool("update", false, "write testdata/schema-<present>.txt")

// TestDrawing compares the drawing in the package comment with what NewTable allows: names, order,
// and types.
func TestDrawing(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "meta.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`[├└]── (\w+)(/?)\s+(\S.*)`)
	value := regexp.MustCompile(`→ (\S+)`)
	var drawn, declared []string
	for _, m := range line.FindAllStringSubmatch(f.Doc.Text(), -1) {
		if m[1] == string(schemaKey) && m[2] == "" {
			continue
		}
		v := value.FindStringSubmatch(m[3])
		if m[2] == "" || v == nil {
			t.Errorf("line %q draws no table", m[0])
			continue
		}
		drawn = append(drawn, m[1]+" "+v[1])
	}
	for _, s := range schema {
		what := "id"
		if s.record != nil {
			what = strings.TrimPrefix(string(s.record.ProtoReflect().Descriptor().FullName()), "gantry.")
		}
		declared = append(declared, s.name+" "+what)
	}
	if !slices.Equal(drawn, declared) {
		t.Errorf("drawn\n  %s\ndeclared\n  %s", strings.Join(drawn, "\n  "), strings.Join(declared, "\n  "))
	}
}

func TestNewTableRefuses(t *testing.T) {
	for name, declare := range map[string]func(){
		"not drawn":    func() { NewTable("pods", func() *storev1.Blob { return nil }) },
		"internal":     func() { NewTable("ops", func() *storev1.Op { return &storev1.Op{} }) },
		"another type": func() { NewTable("images", func() *storev1.Blob { return &storev1.Blob{} }) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: allowed", name)
				}
			}()
			declare()
		}()
	}
}

// dump writes a store as text: a line for each key, in order.
func dump(t *testing.T, path string) []byte {
	t.Helper()
	b, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var out bytes.Buffer
	if err := b.View(func(tx *bolt.Tx) error {
		r := tx.Bucket(root)
		return r.ForEach(func(k, v []byte) error {
			if v != nil {
				fmt.Fprintf(&out, "key %s %x\n", k, v)
				return nil
			}
			c := r.Bucket(k)
			fmt.Fprintf(&out, "bucket %s %d\n", k, c.Sequence())
			return c.ForEach(func(kk, vv []byte) error {
				fmt.Fprintf(&out, "record %s %x %x\n", k, kk, vv)
				return nil
			})
		})
	}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// undump makes a store of such text.
func undump(t *testing.T, path string, text []byte) {
	t.Helper()
	b, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	raw := func(s string) []byte {
		v, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if err := b.Update(func(tx *bolt.Tx) error {
		r, err := tx.CreateBucketIfNotExists(root)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
			switch f := strings.Split(line, " "); f[0] {
			case "key":
				err = r.Put([]byte(f[1]), raw(f[2]))
			case "bucket":
				var c *bolt.Bucket
				var n uint64
				if c, err = r.CreateBucket([]byte(f[1])); err == nil {
					if _, err = fmt.Sscan(f[2], &n); err == nil {
						err = c.SetSequence(n)
					}
				}
			case "record":
				err = r.Bucket([]byte(f[1])).Put(raw(f[2]), raw(f[3]))
			default:
				err = fmt.Errorf("line %q", line)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestFixtures opens the store of every schema there ever was. Each holds a container "c1" named
// "web", an operation that makes snapshot overlay/c2, and the history of the first.
func TestFixtures(t *testing.T) {
	if *update {
		writeFixture(t)
	}
	for v := uint32(firstSchema); v <= SchemaVersion; v++ {
		text, err := os.ReadFile(fmt.Sprintf("testdata/schema-%d.txt", v))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "db")
		undump(t, path, text)
		db, err := Open(path)
		if err != nil {
			t.Fatalf("schema %d: %v", v, err)
		}
		if err := db.Verify(func(subject, detail string) { t.Errorf("schema %d: %s: %s", v, subject, detail) }); err != nil {
			t.Fatal(err)
		}
		if err := db.View(func(tx *Tx) error {
			if c, err := containers.Get(tx, "c1"); err != nil || c.GetMeta().GetName() != "web" {
				t.Errorf("schema %d: %v, %v", v, c, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if batch, err := db.Events(0, 10); err != nil || len(batch) != 1 || batch[0].Id != "c1" {
			t.Errorf("schema %d: history %v, %v", v, batch, err)
		}
		undone := ""
		db.OnUndo("snapshot", func(_ context.Context, c *storev1.Claim) error { undone = describe(c.Ref); return nil })
		if err := db.Recover(t.Context()); err != nil || undone != "snapshot overlay/c2" {
			t.Errorf("schema %d: recovery undid %q, %v", v, undone, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(fmt.Sprintf("%s.schema-%d", path, v))
		if kept := err == nil; kept != (v < SchemaVersion) {
			t.Errorf("schema %d: a copy was kept: %v", v, kept)
		}
	}
}

func writeFixture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *Tx) error {
		return errors.Join(containers.Put(tx, "c1", &containersv1.Container{Meta: &typesv1.Meta{Id: "c1", Name: "web"}}), Names("container").Reserve(tx, "web", "c1"))
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Begin("container.create", &storev1.Claim{Ref: &storev1.Ref{Kind: "snapshot", Scope: "overlay", Key: "c2"}, Mode: Make}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("testdata/schema-%d.txt", SchemaVersion), dump(t, path), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMigrate goes up two versions at once, keeps a copy that the old daemon can open, and refuses
// to go back.
func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := must(Open(path))(t).Close(); err != nil {
		t.Fatal(err)
	}
	var ran []uint32
	step := func(v uint32, err error) migration {
		return migration{v, "test", func(tx *bolt.Tx) error {
			ran = append(ran, v)
			return errors.Join(err, tx.Bucket(root).Bucket([]byte("names")).Put([]byte{byte(v)}, nil))
		}}
	}
	if db, err := open(path, []migration{step(2, nil), step(3, errors.New("cannot"))}); err == nil || db != nil || !strings.Contains(err.Error(), "migrate to schema 3 (test): cannot") {
		t.Errorf("a migration that fails: %v", err)
	}
	db, err := open(path, []migration{step(2, nil), step(3, nil)})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil || !slices.Equal(ran, []uint32{2, 3, 2, 3}) {
		t.Errorf("ran %v, %v", ran, err)
	}
	_, err = Open(path)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "it has schema 3, written by a newer gantryd, and this one reads up to 1") || !strings.Contains(err.Error(), path+".schema-1") {
		t.Errorf("a newer schema: %v", err)
	}
	if err := must(Open(path + ".schema-1"))(t).Close(); err != nil {
		t.Error(err)
	}
	ran = nil
	if db, err = open(filepath.Join(t.TempDir(), "new"), []migration{step(2, nil)}); err != nil || len(ran) > 0 {
		t.Errorf("a new store was migrated: %v, %v", ran, err)
	}
	_ = db.Close()
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := must(Open(path))(t)
	if _, err := Open(path); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "another gantryd uses it") || !strings.Contains(err.Error(), path) {
		t.Errorf("while another has it: %v", err)
	}
	for i := range 100 {
		if err := db.Update(func(tx *Tx) error {
			return containers.Put(tx, fmt.Sprint(i), &containersv1.Container{Meta: &typesv1.Meta{Name: strings.Repeat("x", 500)}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(*Tx) error { return nil }); !errdefs.IsUnavailable(err) {
		t.Errorf("write after close: %v", err)
	}
	if err := db.View(func(*Tx) error { return nil }); !errdefs.IsUnavailable(err) {
		t.Errorf("read after close: %v", err)
	}
	good := must(os.ReadFile(path))(t)
	spoil := func(name string, spoiled []byte) {
		p := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(p, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(p)
		if err == nil {
			// what Open does not read, Verify finds, or a record does
			found := 0
			err = db.Verify(func(string, string) { found++ })
			if found == 0 && err == nil {
				t.Errorf("%s: nobody minds", name)
			}
			_ = db.Close()
			return
		}
		if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), p) || !strings.Contains(err.Error(), "put back a copy") {
			t.Errorf("%s: %v", name, err)
		}
	}
	spoil("rubbish", bytes.Repeat([]byte("rubbish "), 4096))
	spoil("both metas gone", append(make([]byte, 8192), good[8192:]...))
	spoil("cut short", good[:3*4096])
	spoil("pages zeroed", append(slices.Clone(good[:2*4096]), make([]byte, len(good)-2*4096)...))
	for page := 2; page < 12; page++ {
		bad := slices.Clone(good)
		copy(bad[page*4096:], bytes.Repeat([]byte{0xff}, 4096))
		if !bytes.Equal(bytes.Trim(good[page*4096:(page+1)*4096], "\x00"), nil) && used(t, path, page) {
			spoil(fmt.Sprint("page ", page, " overwritten"), bad)
		}
	}
	other := filepath.Join(t.TempDir(), "db")
	b := must(bolt.Open(other, 0o600, nil))(t)
	if err := b.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("v2")); return err }); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	if _, err := Open(other); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("somebody else's database: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "no", "db")); err == nil || !strings.Contains(err.Error(), "open store") {
		t.Errorf("no directory: %v", err)
	}
}

// used reports whether a page is part of the present tree.
func used(t *testing.T, path string, page int) bool {
	t.Helper()
	b := must(bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true}))(t)
	defer b.Close()
	tx := must(b.Begin(false))(t)
	defer tx.Rollback()
	info := must(tx.Page(page))(t)
	return info != nil && (info.Type == "leaf" || info.Type == "branch")
}

// TestDiskFull fills a small filesystem: the write that finds no room says so, changes nothing, and
// when there is room again the store goes on.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("DISK FULL IS NOT TESTED: mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("DISK FULL IS NOT TESTED: cannot mount a tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	db := must(Open(filepath.Join(dir, "db")))(t)
	defer db.Close()
	put := func(i int) error {
		return db.Update(func(tx *Tx) error {
			return containers.Put(tx, fmt.Sprint(i), &containersv1.Container{Meta: &typesv1.Meta{Name: strings.Repeat("x", 4000)}})
		})
	}
	n := 0
	var err error
	for ; err == nil && n < 1000; n++ {
		err = put(n)
	}
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "free some space") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("after %d: %v", n, err)
	}
	op, err := db.Begin("x", &storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: "a"}, Mode: Make})
	if err == nil { // a small write may still find a free page
		if err := op.Commit(nil); err != nil && !errdefs.IsResourceExhausted(err) {
			t.Error(err)
		}
	}
	if len(db.journal.ops) > 1 {
		t.Errorf("memory holds operations that the disk has not: %v", db.journal.ops)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if err := put(n); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := db.View(func(tx *Tx) error {
		if got := containers.Count(tx); got != n || tx.Revision() != uint64(n) || db.Revision() != uint64(n) {
			t.Errorf("%d records, revision %d and %d, want %d", got, tx.Revision(), db.Revision(), n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Verify(func(s, d string) { t.Error(s, d) }); err != nil {
		t.Error(err)
	}
}

func FuzzRecords(f *testing.F) {
	op, _ := proto.Marshal(&storev1.Op{Id: "op-1", Verb: "v", Claims: []*storev1.Claim{{Ref: &storev1.Ref{Kind: "k", Key: "a"}, Mode: Make}}})
	f.Add(op, []byte("container\x00web"), []byte("id"))
	f.Add([]byte{0x07}, []byte{}, []byte{})
	path := filepath.Join(f.TempDir(), "db")
	db, err := Open(path)
	if err != nil {
		f.Fatal(err)
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, record, key, value []byte) {
		if len(key) == 0 || len(key) > 1000 {
			key = []byte{1}
		}
		b, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Update(func(tx *bolt.Tx) error {
			r := tx.Bucket(root)
			for _, s := range schema {
				if err := errors.Join(r.DeleteBucket([]byte(s.name)), func() error { _, err := r.CreateBucket([]byte(s.name)); return err }()); err != nil {
					return err
				}
			}
			return errors.Join(r.Bucket([]byte("ops")).Put(key, record), r.Bucket([]byte("events")).Put(revisionKey(1), record),
				r.Bucket([]byte("events")).SetSequence(1), r.Bucket([]byte("names")).Put(key, value), r.Bucket([]byte("containers")).Put(key, record))
		}); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		db, err := Open(path, WithLogger(quiet))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		_, _ = db.Events(0, 10)
		if err := db.View(func(tx *Tx) error {
			for range Names("container").All(tx) {
			}
			for range containers.All(tx) {
			}
			for range tx.Claims() {
			}
			_, _ = Resolve(tx, containers, "container", string(key))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		_ = db.Recover(t.Context())
		if err := db.Verify(func(string, string) {}); err != nil {
			t.Fatal(err)
		}
	})
}
