package images

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// shelf is a world with images a (also tagged b), other/c by digest only, and d, whose tag has moved.
func shelf(t *testing.T) (w *world, f *fake, a, c *imagesv1.Image) {
	t.Helper()
	w, f = newWorld(t, ""), newFake(t)
	pull := func(ref string) *imagesv1.Image {
		img, _, err := w.pull(f, ref)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	base := layerOf(t, "base=base")
	f.image("a", base, layerOf(t, "a=a"))
	a = pull("a")
	if _, err := w.Tag(t.Context(), f.host+"/a", f.host+"/b:1"); err != nil {
		t.Fatal(err)
	}
	d, _ := f.image("c", base, layerOf(t, "c=c"))
	c = pull("c@" + d.Digest.String())
	f.image("d", base, layerOf(t, "d=old"))
	pull("d")
	f.image("d", base, layerOf(t, "d=new"))
	pull("d")
	return w, f, a, c
}

func names(images []*imagesv1.Image, host string) (out []string) {
	for _, i := range images {
		n, _, _ := strings.Cut(strings.TrimPrefix(i.GetMeta().GetName(), host+"/"), "@")
		if !tagged(i.GetMeta().GetName()) {
			n += "@"
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func TestFind(t *testing.T) {
	w, f, a, c := shelf(t)
	id := a.GetMeta().GetId()
	for ref, want := range map[string]string{
		f.host + "/a": "a", f.host + "/a:latest": "a", f.host + "/b:1": "a",
		id: "a", strings.TrimPrefix(id, "sha256:"): "a", id[:19]: "a", id[7:17]: "a", a.GetTarget().GetDigest(): "a",
		f.host + "/a@" + a.GetTarget().GetDigest(): "a",
		f.host + "/c@" + c.GetTarget().GetDigest(): "c",
		f.host + "/c": "", "a": "", f.host + "/b": "", "0123456789ab": "", f.host + "/c@" + a.GetTarget().GetDigest(): "",
		digest.FromString("x").String(): "",
	} {
		img, err := w.Get(t.Context(), ref)
		if want == "" {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%s: %v, %v", ref, img, err)
			}
			continue
		}
		if err != nil || img.GetConfig().GetLabels()["name"] != want {
			t.Errorf("%s: %v, %v", ref, img.GetMeta(), err)
		}
	}
	for _, bad := range []string{"", "A", "a b"} {
		if _, err := w.Get(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestAmbiguous: the beginning of several ids is none's.
func TestAmbiguous(t *testing.T) {
	w := newWorld(t, "")
	if err := w.DB.Update(func(tx *meta.Tx) error {
		var errs []error
		for _, n := range []string{"1", "2"} {
			name := "example.org/x:" + n
			errs = append(errs, images.Put(tx, name, &imagesv1.Image{Meta: &typesv1.Meta{Id: "sha256:abcdef" + strings.Repeat(n, 58), Name: name}}))
		}
		return errors.Join(errs...)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get(t.Context(), "abcdef"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "several ids") {
		t.Error(err)
	}
	if i, err := w.Get(t.Context(), "abcdef2"); err != nil || i.GetMeta().GetName() != "example.org/x:2" {
		t.Error(i, err)
	}
}

func TestList(t *testing.T) {
	w, f, _, _ := shelf(t)
	filter := func(kv ...string) (out []*typesv1.Filter) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, &typesv1.Filter{Key: kv[i], Value: kv[i+1]})
		}
		return out
	}
	for name, c := range map[string]struct {
		filters []*typesv1.Filter
		want    []string
	}{
		"all":              {nil, []string{"a:latest", "b:1", "c@", "d:latest", "d@"}},
		"by name":          {filter("reference", f.host+"/b"), []string{"b:1"}},
		"by tag":           {filter("reference", f.host+"/b:1"), []string{"b:1"}},
		"by another tag":   {filter("reference", f.host+"/b:2"), nil},
		"by pattern":       {filter("reference", f.host+"/[ab]"), []string{"a:latest", "b:1"}},
		"by tag pattern":   {filter("reference", "*/*:latest"), []string{"a:latest", "d:latest"}},
		"either":           {filter("reference", f.host+"/a", "reference", f.host+"/b"), []string{"a:latest", "b:1"}},
		"label":            {filter("label", "name"), []string{"a:latest", "b:1", "c@", "d:latest", "d@"}},
		"label, value":     {filter("label", "name=c"), []string{"c@"}},
		"label, not there": {filter("label", "nothing"), nil},
		"dangling":         {filter("dangling", "true"), []string{"c@", "d@"}},
		"not dangling":     {filter("dangling", "false"), []string{"a:latest", "b:1", "d:latest"}},
		"both":             {filter("dangling", "true", "label", "name=d"), []string{"d@"}},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := w.List(t.Context(), c.filters)
			if got := names(found, f.host); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	for _, bad := range [][]*typesv1.Filter{filter("size", "1"), filter("dangling", "perhaps"), filter("reference", "[")} {
		if _, err := w.List(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Error(bad, err)
		}
	}
}

func TestTag(t *testing.T) {
	w, f, a, c := shelf(t)
	for _, bad := range []string{"", "A", f.host + "/x@" + a.GetTarget().GetDigest()} {
		if _, err := w.Tag(t.Context(), f.host+"/a", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := w.Tag(t.Context(), "nothing", "x"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	img, err := w.Tag(t.Context(), c.GetMeta().GetId(), "mine")
	if err != nil || img.GetMeta().GetName() != "docker.io/library/mine:latest" || img.GetMeta().GetId() != c.GetMeta().GetId() {
		t.Fatal(img, err)
	}
	// a tag that moves away from the only name of an image leaves it under its digest
	if _, err := w.Tag(t.Context(), f.host+"/a", f.host+"/d"); err != nil {
		t.Fatal(err)
	}
	found, err := w.List(t.Context(), nil)
	if got := names(found, f.host); err != nil || !slices.Equal(got, []string{"a:latest", "b:1", "c@", "d:latest", "d@", "d@", "docker.io/library/mine:latest"}) {
		t.Error(got, err)
	}
	w.clean()
}

func TestRemove(t *testing.T) {
	for name, c := range map[string]struct {
		ref     func(host string, a, c *imagesv1.Image) string
		force   bool
		users   []User // of a
		class   error
		says    string
		left    []string
		deleted int // blobs
	}{
		"one of two names": {
			ref:  func(host string, _, _ *imagesv1.Image) string { return host + "/b:1" },
			left: []string{"a:latest", "c@", "d:latest", "d@"},
		},
		"one of two names, in use": {
			ref: func(host string, _, _ *imagesv1.Image) string { return host + "/b:1" }, users: []User{{Name: "web", Running: true}},
			left: []string{"a:latest", "c@", "d:latest", "d@"},
		},
		"the last name": {
			ref:  func(_ string, _, c *imagesv1.Image) string { return c.GetMeta().GetName() },
			left: []string{"a:latest", "b:1", "d:latest", "d@"}, deleted: 3, // manifest, configuration, top layer; the base is the others' too
		},
		"by id": {
			ref:  func(_ string, _, c *imagesv1.Image) string { return c.GetMeta().GetId()[7:19] },
			left: []string{"a:latest", "b:1", "d:latest", "d@"}, deleted: 3,
		},
		"by id, several repositories": {
			ref: func(_ string, a, _ *imagesv1.Image) string { return a.GetMeta().GetId() }, class: errdefs.ErrFailedPrecondition, says: "several repositories",
			left: []string{"a:latest", "b:1", "c@", "d:latest", "d@"},
		},
		"by id, by force": {
			ref: func(_ string, a, _ *imagesv1.Image) string { return a.GetMeta().GetId() }, force: true,
			left: []string{"c@", "d:latest", "d@"}, deleted: 3,
		},
		"by id, by force, a container was made from it": {
			ref: func(_ string, a, _ *imagesv1.Image) string { return a.GetMeta().GetId() }, force: true, users: []User{{Name: "web"}},
			left: []string{"c@", "d:latest", "d@"}, deleted: 3,
		},
		"by id, by force, a container runs": {
			ref: func(_ string, a, _ *imagesv1.Image) string { return a.GetMeta().GetId() }, force: true, users: []User{{Name: "web", Running: true}},
			class: errdefs.ErrFailedPrecondition, says: "running container web", left: []string{"a:latest", "b:1", "c@", "d:latest", "d@"},
		},
		"nothing": {
			ref: func(string, *imagesv1.Image, *imagesv1.Image) string { return "nothing" }, class: errdefs.ErrNotFound, says: "docker.io/library/nothing:latest",
			left: []string{"a:latest", "b:1", "c@", "d:latest", "d@"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, f, a, ci := shelf(t)
			w.users[a.GetMeta().GetId()] = c.users
			resp, err := w.Remove(t.Context(), c.ref(f.host, a, ci), c.force)
			if c.class == nil && err != nil || c.class != nil && (!errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says)) {
				t.Fatal(err)
			}
			found, err := w.List(t.Context(), nil)
			if got := names(found, f.host); err != nil || !slices.Equal(got, c.left) {
				t.Errorf("left: %v, %v", got, err)
			}
			if c.class == nil && (len(resp.GetUntagged()) != 5-len(c.left) || len(resp.GetDeleted()) != c.deleted || (resp.GetReclaimedBytes() > 0) != (c.deleted > 0)) {
				t.Errorf("%v", resp)
			}
			w.clean()
		})
	}
}

// TestRemoveInUse: the last name of an image that a container was made from.
func TestRemoveInUse(t *testing.T) {
	w, _, _, c := shelf(t)
	name := c.GetMeta().GetName()
	w.users[c.GetMeta().GetId()] = []User{{Name: "web"}}
	if _, err := w.Remove(t.Context(), name, false); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "--force") {
		t.Fatal(err)
	}
	w.users[c.GetMeta().GetId()] = []User{{Name: "web", Running: true}}
	if _, err := w.Remove(t.Context(), name, true); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stop and remove") {
		t.Fatal(err)
	}
	w.users[c.GetMeta().GetId()] = []User{{Name: "web"}}
	if _, err := w.Remove(t.Context(), name, true); err != nil {
		t.Fatal(err)
	}
	w.clean()
}

// TestRemoveAgainstCreate: while somebody makes a container from an image, its last name does not go.
func TestRemoveAgainstCreate(t *testing.T) {
	w, _, _, c := shelf(t)
	op, err := w.DB.Begin("container.create", imageClaim(c.GetMeta().GetId(), meta.Use))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no time"))
	if _, err := w.Remove(ctx, c.GetMeta().GetName(), true); err == nil {
		t.Error("it went")
	}
	if err := op.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(t.Context(), c.GetMeta().GetName(), true); err != nil {
		t.Error(err)
	}
	w.clean()
}

// TestRemoveAll: after everything is removed, nothing is on the disk.
func TestRemoveAll(t *testing.T) {
	w, _, _, _ := shelf(t)
	if _, err := w.Resolve(t.Context(), "hello", "native"); err != nil {
		t.Fatal(err)
	}
	found, err := w.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range found {
		if _, err := w.Remove(t.Context(), i.GetMeta().GetName(), false); err != nil {
			t.Error(err)
		}
	}
	for info := range w.Blobs.All() {
		t.Error("left:", info.Digest)
	}
	for d := range w.drivers {
		if c, _ := w.held(d); len(c) > 0 {
			t.Error(d, "holds", c)
		}
	}
	w.clean()
}

// TestCollectorKeeps: the collector takes nothing that an image needs, and all that none does.
func TestCollectorKeeps(t *testing.T) {
	w, _, _, _ := shelf(t)
	stray := []byte("nobody wants me")
	if err := w.Blobs.Put(t.Context(), ocispec.Descriptor{Digest: digest.FromBytes(stray), Size: int64(len(stray))}, newBytes(stray)); err != nil {
		t.Fatal(err)
	}
	report, err := w.Collector.Collect(t.Context(), gc.Options{})
	if err != nil || len(report.Dropped) != 1 || report.Dropped[0].Key != digest.FromBytes(stray).String() {
		t.Fatal(report, err)
	}
	w.clean()
}

// TestChecks: each difference is found, and what can be mended is.
func TestChecks(t *testing.T) {
	for name, c := range map[string]struct {
		harm   func(w *world, a *imagesv1.Image) error
		says   string
		mended bool
	}{
		"a blob is gone": {func(w *world, a *imagesv1.Image) error {
			return w.Blobs.Remove(digest.Digest(a.GetLayers()[1].GetBlob().GetDigest()))
		}, "missing: pull it again", false},
		"a blob is short": {func(w *world, a *imagesv1.Image) error {
			return os.Truncate(w.Blobs.Path(digest.Digest(a.GetLayers()[1].GetBlob().GetDigest())), 3)
		}, "has 3 bytes on disk", false},
		"a record is gone": {func(w *world, a *imagesv1.Image) error {
			return w.DB.Update(func(tx *meta.Tx) error { return blobs.Delete(tx, a.GetLayers()[1].GetBlob().GetDigest()) })
		}, "has no record", true},
		"a record too many": {func(w *world, _ *imagesv1.Image) error {
			d := digest.FromString("x").String()
			return w.DB.Update(func(tx *meta.Tx) error { b, _ := blobs.Get(tx, d); b.Digest = d; return blobs.Put(tx, d, b) })
		}, "it is not on disk", true},
		"a snapshot is gone": {func(w *world, a *imagesv1.Image) error {
			op, err := w.DB.Begin("test")
			if err == nil {
				err = w.snaps.Remove(t.Context(), op, "overlay", a.GetChainId())
			}
			return errors.Join(err, op.Commit(nil))
		}, "should hold it unpacked", true},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, a, _ := shelf(t)
			if err := c.harm(w, a); err != nil {
				t.Fatal(err)
			}
			said := ""
			look := func(mend bool) (n int) {
				for _, k := range w.Checks() {
					var repairs []func(context.Context) error
					var r check.Report = func(subject, detail string, repair func(context.Context) error) {
						n++
						said += subject + ": " + detail + "\n"
						if repair != nil {
							repairs = append(repairs, repair)
						}
					}
					if err := k.Run(t.Context(), r); err != nil {
						t.Fatal(err)
					}
					for _, fix := range repairs {
						if err := fix(t.Context()); mend && err != nil {
							t.Error(err)
						}
					}
				}
				return n
			}
			if look(true) == 0 || !strings.Contains(said, c.says) {
				t.Fatalf("%q", said)
			}
			if left := look(false); (left == 0) != c.mended {
				t.Errorf("after mending %d differences: %s", left, said)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	w, _, a, _ := shelf(t)
	w.users[a.GetMeta().GetId()] = []User{{Name: "web"}}
	u, err := w.Usage(t.Context())
	if err != nil || len(u) != 1 || u[0].GetTotal() != 4 || u[0].GetActive() != 1 || u[0].GetBytes() <= u[0].GetReclaimableBytes() || u[0].GetReclaimableBytes() == 0 {
		t.Fatal(u, err)
	}
}

// TestServer speaks to the service as a client does.
func TestServer(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	f.image("app", layerOf(t, "a=a"), layerOf(t, "b="+big(1, 500_000)))
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(rpc.ServerOptions(rpc.Options{})...)
	w.Register(s)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	defer wg.Wait()
	defer s.Stop()
	cc, err := grpc.NewClient("unix://"+socket, append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	c := imagesv1.NewImagesServiceClient(cc)
	pull := func(ref string) (img *imagesv1.Image, verbs map[string]bool, err error) {
		verbs = map[string]bool{}
		stream, err := c.Pull(t.Context(), &imagesv1.PullRequest{Ref: ref})
		for err == nil {
			var m *imagesv1.PullResponse
			if m, err = stream.Recv(); err == nil {
				verbs[m.GetProgress().GetVerb()] = true
				img = m.GetImage()
			}
		}
		if img != nil {
			err = nil
		}
		return img, verbs, err
	}
	img, verbs, err := pull(f.host + "/app")
	if err != nil || !verbs["done"] {
		t.Fatal(img, verbs, err)
	}
	if _, _, err := pull(f.host + "/nothing"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no such image in registry") {
		t.Error(err)
	}
	got, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: img.GetMeta().GetId()})
	if err != nil || got.GetImage().GetMeta().GetName() != img.GetMeta().GetName() {
		t.Error(got, err)
	}
	if _, err := c.Tag(t.Context(), &imagesv1.TagRequest{Ref: img.GetMeta().GetName(), Name: "app:2"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Tag(t.Context(), &imagesv1.TagRequest{Ref: "app:2", Name: img.GetMeta().GetName()}); err != nil { // it has that name already
		t.Error(err)
	}
	wantTags := []string{f.host + "/app:latest", "docker.io/library/app:2"}
	slices.Sort(wantTags)
	for _, ref := range []string{img.GetMeta().GetId(), "app:2", f.host + "/app"} { // whatever it is asked for by
		got, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: ref, Platform: img.GetPlatform()})
		if tags := slices.Sorted(slices.Values(got.GetTags())); err != nil || !slices.Equal(tags, wantTags) || !slices.Equal(got.GetDigests(), []string{f.host + "/app@" + img.GetTarget().GetDigest()}) {
			t.Errorf("%s: tags %q, digests %q, %v", ref, got.GetTags(), got.GetDigests(), err)
		}
	}
	if _, err := w.Resolve(t.Context(), f.host+"/app", "native"); err != nil { // which writes the record again
		t.Error(err)
	}
	if got, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: "app:2"}); err != nil || len(got.GetDigests()) != 1 {
		t.Error(got.GetDigests(), err)
	}
	if _, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: "app:2", Platform: "linux/mips64"}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "not for linux/mips64") {
		t.Error(err)
	}
	if _, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: "app:2", Platform: "a/b/c/d"}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if got, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: "hello"}); err != nil || len(got.GetTags()) != 1 || len(got.GetDigests()) != 0 {
		t.Error("the embedded image:", got, err)
	}
	if _, err := c.Remove(t.Context(), &imagesv1.RemoveRequest{Ref: "hello"}); err != nil {
		t.Error(err)
	}
	list, err := c.List(t.Context(), &imagesv1.ListRequest{})
	n := 0
	for err == nil {
		if _, err = list.Recv(); err == nil {
			n++
		}
	}
	if n != 2 {
		t.Error(n, err)
	}
	for _, ref := range []string{"app:2", img.GetMeta().GetName()} {
		if _, err := c.Remove(t.Context(), &imagesv1.RemoveRequest{Ref: ref}); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Get(t.Context(), &imagesv1.GetRequest{Ref: "app:2"}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	w.clean()
}

// TestBoard: the last word on each thing is always told, also to who reads slowly.
func TestBoard(t *testing.T) {
	b := newBoard()
	last := map[string]string{}
	var wg sync.WaitGroup
	wg.Go(func() {
		b.show(func(p *typesv1.Progress) error { last[p.GetId()] = p.GetVerb(); return nil })
	})
	for i := range 1000 {
		for _, id := range []string{"a", "b", "c"} {
			b.set(&typesv1.Progress{Id: id, Verb: "download", Current: int64(i)})
		}
	}
	b.set(&typesv1.Progress{Id: "a", Verb: "wait"}) // the same layer, a second time: nothing new
	for _, id := range []string{"a", "b", "c"} {
		b.set(&typesv1.Progress{Id: id, Verb: "done"})
	}
	b.close()
	wg.Wait()
	for _, id := range []string{"a", "b", "c"} {
		if last[id] != "done" {
			t.Error(last)
		}
	}
}

func TestPlatforms(t *testing.T) {
	amd := platform{OS: "linux", Architecture: "amd64"}
	for in, want := range map[string]string{
		"": "linux/amd64", "linux/amd64": "linux/amd64", "amd64": "linux/amd64", "x86_64": "linux/amd64", "linux/aarch64": "linux/arm64",
		"linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "armhf": "linux/arm/v7", "Linux/AMD64/v2": "linux/amd64/v2",
		"a/b/c/d": "!", "/": "!", "linux/": "!", "linux/a b": "!",
	} {
		p, err := parsePlatform(in, amd)
		if want == "!" && !errdefs.IsInvalidArgument(err) || want != "!" && (err != nil || p.String() != want) {
			t.Errorf("%q: %v, %v", in, p, err)
		}
	}
	for _, c := range []struct {
		want  string
		has   []string
		picks int
	}{
		{"linux/amd64", []string{"linux/arm64", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64/v3", "linux/386"}, -1},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"}, 2},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v4"}, 0},
		{"linux/arm64", []string{"linux/arm/v7", "linux/arm64/v8"}, 1},
		{"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm64/v8"}, 1},
		{"linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v5"}, 1},
		{"linux/amd64", []string{"unknown/unknown", "windows/amd64"}, -1},
		{"linux/amd64", nil, -1},
	} {
		want, err := parsePlatform(c.want, amd)
		if err != nil {
			t.Fatal(err)
		}
		var index ocispec.Index
		for i, h := range c.has {
			parts := append(strings.Split(h, "/"), "")
			index.Manifests = append(index.Manifests, ocispec.Descriptor{Size: int64(i), Platform: &ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}})
		}
		got, err := choose(index, want)
		if c.picks < 0 && !errdefs.IsNotFound(err) || c.picks >= 0 && (err != nil || got.Size != int64(c.picks)) {
			t.Errorf("%s of %v: %d, %v", c.want, c.has, got.Size, err)
		}
	}
}

// FuzzRead: whatever a registry's documents say, they are read or refused, and nothing panics.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`), []byte(`{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"history":[{}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"x"}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		c, err := read(t.Context(), func(_ context.Context, kind string, _ ocispec.Descriptor) ([]byte, error) {
			if kind == "config" {
				return config, nil
			}
			return manifest, nil
		}, ocispec.Descriptor{Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}, platform{OS: "linux", Architecture: "amd64"}, false)
		if err != nil {
			if errdefs.IsUnknown(errdefs.Resolve(err)) {
				t.Errorf("an error without a class: %v", err)
			}
			return
		}
		c.record("name", make([]int64, len(c.layers)))
		c.blobs()
	})
}
