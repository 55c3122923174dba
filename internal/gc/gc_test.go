package gc

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/meta"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var (
	images = meta.NewTable("images", func() *imagesv1.Image { return &imagesv1.Image{} })
	blobs  = meta.NewTable("blobs", func() *storev1.Blob { return &storev1.Blob{} })
)

// shelf is a place that holds things, like a directory of blobs, and refuses to drop what another
// thing on it hangs on.
type shelf struct {
	mu     sync.Mutex
	things map[string]Thing
	order  []string
	stuck  map[string]bool
}

func (s *shelf) put(key string, since time.Time, needs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := Thing{Ref: blob(key), Since: since, Bytes: 1}
	for _, n := range needs {
		t.Refs = append(t.Refs, blob(n))
	}
	s.things[key] = t
}

func (s *shelf) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.things))
}

func (s *shelf) Things(context.Context) iter.Seq2[Thing, error] {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.things))
	s.mu.Unlock()
	return func(yield func(Thing, error) bool) {
		for _, t := range all {
			if !yield(t, nil) {
				return
			}
		}
	}
}

func (s *shelf) Drop(_ context.Context, op *meta.Op, r Ref) error {
	if err := s.drop(r.Key); err != nil {
		return err
	}
	op.Then(func(tx *meta.Tx) error { return blobs.Delete(tx, r.Key) })
	return nil
}

func (s *shelf) drop(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stuck[key] {
		return errors.New("stuck")
	}
	for _, t := range s.things {
		if slices.Contains(t.Refs, blob(key)) {
			return fmt.Errorf("%s hangs on it: %w", t.Key, errdefs.ErrFailedPrecondition)
		}
	}
	delete(s.things, key)
	s.order = append(s.order, key)
	return nil
}

func blob(key string) Ref { return Ref{Kind: "blob", Key: key} }

func fixture(t *testing.T) (*meta.DB, *shelf, *Collector) {
	t.Helper()
	db, err := meta.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := &shelf{things: map[string]Thing{}, stuck: map[string]bool{}}
	db.OnUndo("blob", func(_ context.Context, c *storev1.Claim) error {
		if err := s.drop(c.Ref.Key); err != nil {
			return err
		}
		return db.Update(func(tx *meta.Tx) error { return blobs.Delete(tx, c.Ref.Key) })
	})
	c := New(db)
	c.Root(func(tx *meta.Tx, mark func(Ref)) error {
		for _, i := range images.All(tx) {
			mark(blob(i.Target.Digest))
		}
		return nil
	})
	c.Edges("blob", func(tx *meta.Tx, r Ref, mark func(Ref)) error {
		b, err := blobs.Get(tx, r.Key)
		if errdefs.IsNotFound(err) {
			return nil
		}
		for _, to := range b.GetRefs() {
			mark(blob(to))
		}
		return err
	})
	c.Sweeper("blob", s)
	return db, s, c
}

func record(t *testing.T, db *meta.DB, fn func(tx *meta.Tx) error) {
	t.Helper()
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func image(tx *meta.Tx, name, digest string) error {
	return images.Put(tx, name, &imagesv1.Image{Meta: &typesv1.Meta{Name: name}, Target: &typesv1.Descriptor{Digest: digest}})
}

// TestCollect: image → manifest → config, layer1; layer1 hangs on layer0 by the driver's word only.
func TestCollect(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	db, s, c := fixture(t)
	for _, b := range []string{"manifest", "config", "layer0", "orphan", "child", "used", "made", "claimed-below", "circle1", "circle2", "old-manifest", "shared", "old-layer"} {
		s.put(b, long)
	}
	s.put("young", time.Now())
	s.put("layer1", long, "layer0")
	s.put("child", long, "orphan")
	s.put("circle1", long, "circle2")
	record(t, db, func(tx *meta.Tx) error {
		return errors.Join(
			image(tx, "img", "manifest"),
			blobs.Put(tx, "manifest", &storev1.Blob{Refs: []string{"config", "layer1", "shared"}}),
			blobs.Put(tx, "old-manifest", &storev1.Blob{Refs: []string{"old-layer", "shared"}}),
			blobs.Put(tx, "used", &storev1.Blob{Refs: []string{"claimed-below"}}))
	})
	op, err := db.Begin("image.pull", &storev1.Claim{Ref: blob("used").Proto(), Mode: meta.Use}, &storev1.Claim{Ref: blob("made").Proto(), Mode: meta.Make})
	if err != nil {
		t.Fatal(err)
	}

	r, err := c.Collect(t.Context(), Options{Only: []Ref{blob("old-manifest")}})
	if err != nil || len(r.Dropped) != 2 || r.Bytes != 2 || !slices.Equal(s.order, []string{"old-manifest", "old-layer"}) {
		t.Errorf("only: %+v, %v", r, err)
	}
	if g, err := c.Garbage(t.Context(), Options{Grace: time.Minute}); err != nil || len(g) != 4 {
		t.Errorf("garbage %v, %v", g, err)
	}
	s.stuck["circle1"], s.stuck["circle2"] = true, true
	s.order = nil
	r, err = c.Collect(t.Context(), Options{Grace: time.Minute})
	if err == nil || r.Busy != 0 || !slices.Equal(s.order, []string{"child", "orphan"}) {
		t.Errorf("collect: %+v, %v; dropped %v", r, err, s.order)
	}
	want := []string{"circle1", "circle2", "claimed-below", "config", "layer0", "layer1", "made", "manifest", "shared", "used", "young"}
	if got := s.keys(); !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}

	// what could not be dropped is recovered when it can be
	s.things["circle1"] = Thing{Ref: blob("circle1")}
	s.stuck = map[string]bool{}
	if err := db.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(t.Context(), Options{}); err != nil {
		t.Fatal(err)
	}
	if got, want := s.keys(), []string{"config", "layer0", "layer1", "manifest", "shared"}; !slices.Equal(got, want) {
		t.Errorf("at last %v, want %v", got, want)
	}
	record(t, db, func(tx *meta.Tx) error {
		if n := blobs.Count(tx); n != 1 {
			t.Errorf("%d blobs are recorded", n)
		}
		for op := range tx.Ops() {
			t.Errorf("left in the journal: %v", op)
		}
		return nil
	})
}

// TestBusy leaves alone what somebody else drops, and what that hangs on.
func TestBusy(t *testing.T) {
	db, s, c := fixture(t)
	s.put("parent", time.Time{})
	s.put("child", time.Time{}, "parent")
	op, err := db.Begin("other", drop(blob("child")))
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Collect(t.Context(), Options{})
	if err != nil || r.Busy != 1 || len(r.Dropped) != 0 || len(s.keys()) != 2 {
		t.Errorf("%+v, %v, left %v", r, err, s.keys())
	}
	if err := op.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err = c.Collect(t.Context(), Options{}); err != nil || len(s.keys()) != 0 {
		t.Errorf("%+v, %v, left %v", r, err, s.keys())
	}
}

// TestDamage: a record that cannot be read may need anything.
func TestDamage(t *testing.T) {
	db, s, c := fixture(t)
	s.put("a", time.Time{})
	record(t, db, func(tx *meta.Tx) error {
		m := &imagesv1.Image{}
		m.ProtoReflect().SetUnknown([]byte{0x07}) // a tag that protobuf does not have
		return images.Put(tx, "bad", m)
	})
	if r, err := c.Collect(t.Context(), Options{}); !errdefs.IsDataLoss(err) || len(r.Dropped) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestRace makes and forgets images while it collects, and looks at every moment whether an image
// has lost what it needs.
func TestRace(t *testing.T) {
	db, s, c := fixture(t)
	ctx, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer stop()
	var wg sync.WaitGroup
	made, refused := 0, 0
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			layer := fmt.Sprint("layer", n%3) // shared, and often just being dropped
			op, err := db.Begin("image.pull", &storev1.Claim{Ref: blob(layer).Proto(), Mode: meta.Use})
			if errdefs.IsAborted(err) {
				refused++
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			s.put(layer, time.Time{})
			name := fmt.Sprint("image", n%2)
			if err := op.Commit(func(tx *meta.Tx) error { return image(tx, name, layer) }); err != nil {
				t.Error(err)
				return
			}
			made++
			if !slices.Contains(s.keys(), layer) {
				t.Errorf("%s was dropped from under %s", layer, name)
			}
			if err := db.Update(func(tx *meta.Tx) error { return images.Delete(tx, fmt.Sprint("image", (n+1)%2)) }); err != nil {
				t.Error(err)
			}
		}
	})
	dropped := 0
	for ctx.Err() == nil {
		r, err := c.Collect(t.Context(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		dropped += len(r.Dropped)
	}
	wg.Wait()
	t.Logf("%d made, %d refused, %d dropped", made, refused, dropped)
	if made == 0 || dropped == 0 {
		t.Error("nothing happened")
	}
}

func TestOneAtATimeAndRun(t *testing.T) {
	_, s, c := fixture(t)
	<-c.turn
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Collect(gone, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("while another runs: %v", err)
	}
	c.turn <- struct{}{}
	s.put("a", time.Time{})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx, time.Millisecond, Options{}) })
	for deadline := time.Now().Add(10 * time.Second); len(s.keys()) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	stop()
	wg.Wait()
	if len(s.keys()) > 0 {
		t.Error("it never collected")
	}
}

func TestRef(t *testing.T) {
	r := Ref{"snapshot", "overlay", "k"}
	if RefOf(r.Proto()) != r || r.String() != "snapshot overlay/k" || blob("x").String() != "blob x" {
		t.Errorf("%v, %v", r, blob("x"))
	}
	if !proto.Equal(drop(r).Ref, r.Proto()) {
		t.Error("claim and ref differ")
	}
}
