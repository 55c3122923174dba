package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

var when = time.Unix(1_000_000_000, 123_456_789)

// e is an entry: what a test says of it, and sound values for the rest.
func e(typ byte, name string, change ...func(*tar.Header)) entry {
	h := &tar.Header{Typeflag: typ, Name: name, Mode: 0o644, ModTime: when, Format: tar.FormatPAX}
	if typ == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, c := range change {
		c(h)
	}
	return entry{h: h}
}

type entry struct {
	h    *tar.Header
	body string
}

func file(name, body string, change ...func(*tar.Header)) entry {
	x := e(tar.TypeReg, name, change...)
	x.h.Size, x.body = int64(len(body)), body
	return x
}

func dir(name string, change ...func(*tar.Header)) entry { return e(tar.TypeDir, name, change...) }

func sym(name, to string) entry {
	return e(tar.TypeSymlink, name, func(h *tar.Header) { h.Linkname = to })
}

func hard(name, to string) entry {
	return e(tar.TypeLink, name, func(h *tar.Header) { h.Linkname = to })
}

func wh(name string) entry { return file(name, "") }

func owner(uid, gid int) func(*tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}
func mode(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
func dev(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}

func attr(k, v string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+k] = v
	}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range entries {
		if err := w.WriteHeader(x.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, x.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// into unpacks in this process: the inner wall alone.
func into(t testing.TB, root string, job Job, layerBytes []byte) (Result, error) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	old := unix.Umask(0)
	defer unix.Umask(old)
	wd, _ := os.Getwd()
	defer func() { _ = os.Chdir(wd) }()
	return layer(fd, job, bytes.NewReader(layerBytes))
}

// show lists a tree, one line per name.
func show(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := name
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			line += "/"
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			line += " -> " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFIFO:
			line += " fifo"
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %.20q", b)
		}
		names := make([]byte, 4096)
		n, _ := unix.Llistxattr(p, names)
		attrs := strings.Split(strings.TrimRight(string(names[:max(n, 0)]), "\x00"), "\x00")
		slices.Sort(attrs)
		for _, a := range attrs {
			if strings.HasPrefix(a, "trusted.") || strings.HasPrefix(a, "user.") {
				line += " " + a
			}
		}
		if name != "." || line != "./" {
			lines = append(lines, line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root: NOT TESTED")
	}
}

const inherit, opaqueMark = " " + inheritAttr, " " + opaqueAttr

// TestEntries: what archives hold and what becomes of it. Each case runs in apply form over the files of "lower" (already there), and in
// overlay form into an empty directory.
func TestEntries(t *testing.T) {
	root(t)
	lower := func(t *testing.T, dir string) {
		for _, n := range []string{"old/a", "old/b/c", "keep/x"} {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(n)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, n), []byte("lower"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	below := []string{"keep/", `keep/x "lower"`, "old/", `old/a "lower"`, "old/b/", `old/b/c "lower"`}
	with := func(more ...string) []string { return slices.Sorted(slices.Values(append(more, below...))) }
	for name, c := range map[string]struct {
		in             []entry
		apply, overlay []string
		// the error, in both forms unless overlay's is said
		class        error
		says         string
		overlayClass error
	}{
		"nothing": {apply: below, overlay: []string{"./" + inherit}},
		"a file": {
			in: []entry{dir("./"), file("./f", "x")}, apply: with(`f "x"`), overlay: []string{`f "x"`},
		},
		"no parent entries": {
			in: []entry{file("p/q/f", "x")}, apply: with("p/", "p/q/", `p/q/f "x"`),
			overlay: []string{"./" + inherit, "p/" + inherit, "p/q/" + inherit, `p/q/f "x"`},
		},
		"parent entry afterwards": {
			in: []entry{file("p/f", "x"), dir("p"), dir(".")}, apply: with("p/", `p/f "x"`), overlay: []string{"p/", `p/f "x"`},
		},
		"absolute names": {
			in: []entry{dir("/"), dir("/p"), file("/p/f", "x"), hard("/l", "/p/f")}, apply: with(`l "x"`, "p/", `p/f "x"`), overlay: []string{`l "x"`, "p/", `p/f "x"`},
		},
		"dots that stay inside": {
			in: []entry{dir("."), dir("p"), file("p/../f", "x")}, apply: with("p/", `f "x"`), overlay: []string{`f "x"`, "p/"},
		},
		"climbing name":              {in: []entry{file("../f", "x")}, class: errdefs.ErrInvalidArgument, says: "climbs out of the layer"},
		"climbing name, deep":        {in: []entry{file("a/b/../../../f", "x")}, class: errdefs.ErrInvalidArgument, says: "climbs out of the layer"},
		"climbing hard link":         {in: []entry{hard("l", "../../etc/passwd")}, class: errdefs.ErrInvalidArgument, says: "climbs out of the layer"},
		"climbing directory":         {in: []entry{dir("../d")}, class: errdefs.ErrInvalidArgument, says: "climbs out of the layer"},
		"climbing whiteout":          {in: []entry{wh("../.wh.x")}, class: errdefs.ErrInvalidArgument, says: "climbs out of the layer"},
		"whiteout of dot dot":        {in: []entry{wh("old/.wh...")}, class: errdefs.ErrInvalidArgument, says: "nothing that can be named"},
		"whiteout of dot":            {in: []entry{wh("old/.wh..")}, class: errdefs.ErrInvalidArgument, says: "nothing that can be named"},
		"whiteout of nothing":        {in: []entry{wh("old/.wh.")}, class: errdefs.ErrInvalidArgument, says: "nothing that can be named"},
		"inside of a whiteout":       {in: []entry{file(".wh.a/f", "x")}, class: errdefs.ErrInvalidArgument, says: "inside of a whiteout"},
		"hard link to itself":        {in: []entry{hard("l", "./l")}, class: errdefs.ErrInvalidArgument, says: "to itself"},
		"hard link to a directory":   {in: []entry{dir("d"), hard("l", "d")}, class: errdefs.ErrInvalidArgument, says: "to the directory"},
		"hard link to nothing":       {in: []entry{hard("l", "nothing")}, class: errdefs.ErrInvalidArgument, says: "is not there", overlayClass: ErrNeedsParent},
		"hard link to what is lower": {in: []entry{dir("."), hard("l", "old/a")}, apply: with(`l "lower"`), overlayClass: ErrNeedsParent, says: "is not there"},
		"a link to nowhere on the way": {
			in: []entry{sym("l", "nowhere"), file("l/f", "x")}, class: errdefs.ErrInvalidArgument, says: "link to nowhere",
		},
		"links in a circle": {
			in: []entry{sym("l", "m"), sym("m", "l"), file("l/f", "x")}, class: errdefs.ErrInvalidArgument,
		},
		"unknown kind":        {in: []entry{e('Z', "z")}, class: errdefs.ErrNotImplemented, says: "not known"},
		"empty link":          {in: []entry{sym("l", "")}, class: errdefs.ErrInvalidArgument, says: "leads nowhere"},
		"device out of range": {in: []entry{e(tar.TypeChar, "d", dev(1<<13, 1))}, class: errdefs.ErrInvalidArgument, says: "no device has"},
		"owner out of range":  {in: []entry{file("f", "x", owner(1<<32-1, 0))}, class: errdefs.ErrInvalidArgument, says: "nobody's number"},
		"name too long":       {in: []entry{file(strings.Repeat("n", 300), "x")}, class: errdefs.ErrInvalidArgument, says: "name too long"},
		"top is a file":       {in: []entry{file("./.", "x")}, class: errdefs.ErrInvalidArgument, says: "not a directory"},
		"long name": {
			in:      []entry{dir("."), file(strings.Repeat("d", 200)+"/"+strings.Repeat("n", 200), "x")},
			apply:   with(strings.Repeat("d", 200)+"/", strings.Repeat("d", 200)+"/"+strings.Repeat("n", 200)+` "x"`),
			overlay: []string{strings.Repeat("d", 200) + "/" + inherit, strings.Repeat("d", 200) + "/" + strings.Repeat("n", 200) + ` "x"`},
		},
		"links are kept as they are": {
			in:    []entry{dir("."), sym("abs", "/etc/passwd"), sym("up", "../../../etc"), sym("odd", "a//b/./c")},
			apply: with("abs -> /etc/passwd", "up -> ../../../etc", "odd -> a//b/./c"), overlay: []string{"abs -> /etc/passwd", "odd -> a//b/./c", "up -> ../../../etc"},
		},
		"through links, inside": {
			in:      []entry{dir("."), dir("d"), sym("abs", "/d"), sym("up", "../../../d"), file("abs/1", "x"), file("up/2", "x"), hard("l", "abs/1")},
			apply:   with("abs -> /d", "d/", `d/1 "x"`, `d/2 "x"`, `l "x"`, "up -> ../../../d"),
			overlay: []string{"abs -> /d", "d/", `d/1 "x"`, `d/2 "x"`, `l "x"`, "up -> ../../../d"},
		},
		"hard link to a link": {
			in: []entry{dir("."), sym("s", "/etc/passwd"), hard("l", "s")}, apply: with("l -> /etc/passwd", "s -> /etc/passwd"), overlay: []string{"l -> /etc/passwd", "s -> /etc/passwd"},
		},
		"a file over a link is not written through": {
			in: []entry{dir("."), file("f", "first"), sym("s", "f"), file("s", "second")}, apply: with(`f "first"`, `s "second"`), overlay: []string{`f "first"`, `s "second"`},
		},
		"a file over a device is not written through": {
			in: []entry{dir("."), e(tar.TypeBlock, "sda", dev(8, 0)), file("sda", "x")}, apply: with(`sda "x"`), overlay: []string{`sda "x"`},
		},
		"a file over a hard link leaves the other": {
			in: []entry{dir("."), file("f", "first"), hard("l", "f"), file("l", "second")}, apply: with(`f "first"`, `l "second"`), overlay: []string{`f "first"`, `l "second"`},
		},
		"the last one wins": {
			in:      []entry{dir("."), file("f", "1"), file("f", "2"), dir("d"), file("d/x", "1"), file("d", "now a file"), sym("s", "f"), dir("s"), dir("t"), dir("t"), hard("u", "f"), hard("u", "f"), sym("v", "1"), sym("v", "2")},
			apply:   with(`d "now a file"`, `f "2"`, "s/", "t/", `u "2"`, "v -> 2"),
			overlay: []string{`d "now a file"`, `f "2"`, "s/" + opaqueMark, "t/", `u "2"`, "v -> 2"},
		},
		"a file becomes a parent": {
			in: []entry{dir("."), file("f", "1"), file("f/x", "2")}, apply: with("f/", `f/x "2"`), overlay: []string{"f/" + opaqueMark, `f/x "2"`},
		},
		"over what is lower": {
			in:      []entry{dir("."), file("old", "now a file"), dir("keep"), dir("keep/x")},
			apply:   []string{"keep/", "keep/x/", `old "now a file"`},
			overlay: []string{"keep/", "keep/x/", `old "now a file"`},
		},
		"devices and pipes": {
			in:    []entry{dir("."), e(tar.TypeChar, "null", dev(1, 3)), e(tar.TypeBlock, "blk", dev(259, 70000)), e(tar.TypeFifo, "pipe")},
			apply: with("null dev 1:3", "blk dev 259:70000", "pipe fifo"), overlay: []string{"blk dev 259:70000", "null dev 1:3", "pipe fifo"},
		},
		"whiteouts": {
			in:      []entry{dir("."), dir("old"), wh("old/.wh.a"), wh("old/b/.wh.c"), wh(".wh.keep"), wh("nothing/.wh.x")},
			apply:   []string{"old/", "old/b/"},
			overlay: []string{"keep dev 0:0", "nothing/" + inherit, "nothing/x dev 0:0", "old/", "old/a dev 0:0", "old/b/" + inherit, "old/b/c dev 0:0"},
		},
		"overlayfs's own whiteout": {
			in: []entry{dir("."), e(tar.TypeChar, "old", dev(0, 0))}, apply: []string{"keep/", `keep/x "lower"`}, overlay: []string{"old dev 0:0"},
		},
		"whiteout before its namesake": {
			in:      []entry{dir("."), wh(".wh.old"), dir("old"), file("old/new", "x"), wh("keep/.wh.x"), file("keep/x", "new")},
			apply:   []string{"keep/", `keep/x "new"`, "old/", `old/new "x"`},
			overlay: []string{"keep/" + inherit, `keep/x "new"`, "old/" + opaqueMark, `old/new "x"`},
		},
		"whiteout after its namesake": {
			in:      []entry{dir("."), dir("old"), file("old/new", "x"), wh(".wh.old"), file("keep/x", "new"), wh("keep/.wh.x")},
			apply:   []string{"keep/", `keep/x "new"`, "old/", `old/new "x"`},
			overlay: []string{"keep/" + inherit, `keep/x "new"`, "old/" + opaqueMark, `old/new "x"`},
		},
		"opaque": {
			in:      []entry{dir("."), dir("old"), file("old/new", "x"), wh("old/.wh..wh..opq"), file("old/b/new", "x")},
			apply:   []string{"keep/", `keep/x "lower"`, "old/", "old/b/", `old/b/new "x"`, `old/new "x"`},
			overlay: []string{"old/" + opaqueMark, "old/b/" + inherit, `old/b/new "x"`, `old/new "x"`},
		},
		"opaque without an entry": {
			in: []entry{dir("."), wh("old/.wh..wh..opq")}, apply: []string{"keep/", `keep/x "lower"`, "old/"}, overlay: []string{"old/" + inherit + opaqueMark},
		},
		"marks below a file": {
			in:    []entry{dir("."), file("old", "now a file"), wh("old/.wh.a"), wh("old/b/.wh.c"), wh("old/.wh..wh..opq"), wh(".wh.keep"), wh("keep/.wh.x")},
			apply: []string{`old "now a file"`}, overlay: []string{"keep dev 0:0", `old "now a file"`},
		},
		"opaque top": {
			in: []entry{dir("."), wh(".wh..wh..opq"), file("f", "x")}, apply: []string{`f "x"`}, overlay: []string{"./" + opaqueMark, `f "x"`},
		},
		"what aufs kept": {
			in: []entry{dir("."), wh(".wh..wh.aufs"), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1", "x")}, apply: below, overlay: []string{},
		},
		"comments": {
			in: []entry{{h: &tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}}, dir(".")}, apply: below, overlay: []string{},
		},
		"attributes": {
			in:    []entry{dir("."), file("f", "x", attr("user.a", "1"), attr("trusted.overlay.opaque", "y"), attr("trusted.gantry.inherit", "y"), attr("user.overlay.opaque", "y"), attr("security.selinux", "x")), dir("d", attr("trusted.overlay.opaque", "y"), attr("user.b", "2"))},
			apply: with("d/ user.b", `f "x" user.a`), overlay: []string{"d/ user.b", `f "x" user.a`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw := archive(t, c.in...)
			for _, form := range []Form{Apply, Overlay} {
				outside := t.TempDir()
				top := filepath.Join(outside, "a", "b", "top")
				if err := os.MkdirAll(top, 0o755); err != nil {
					t.Fatal(err)
				}
				if form == Apply {
					lower(t, top)
				}
				class, want := c.class, c.apply
				if form == Overlay {
					if want = c.overlay; c.overlayClass != nil {
						class = c.overlayClass
					}
				}
				_, err := into(t, top, Job{Form: form, Parented: true}, raw)
				if class != nil {
					if !errors.Is(err, class) || !strings.Contains(err.Error(), c.says) {
						t.Fatalf("%s: got %v", form, err)
					}
				} else if err != nil {
					t.Fatalf("%s: %v", form, err)
				} else if got := show(t, top); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
					t.Errorf("%s:\n got %q\nwant %q", form, got, want)
				}
				if got, want := show(t, outside)[:2], []string{"a/", "a/b/"}; !slices.Equal(got, want) {
					t.Errorf("%s: outside: %q", form, got)
				}
			}
		})
	}
}

// TestBottom: in the lowest layer nothing is marked, and whiteouts have nothing to do.
func TestBottom(t *testing.T) {
	root(t)
	dst := t.TempDir()
	if _, err := into(t, dst, Job{Form: Overlay}, archive(t, file("p/f", "x"), wh("p/.wh.g"), wh("q/.wh..wh..opq"), hard("l", "p/f"))); err != nil {
		t.Fatal(err)
	}
	if got, want := show(t, dst), []string{`l "x"`, "p/", `p/f "x"`}; !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
	if _, err := into(t, dst, Job{Form: Overlay}, archive(t, hard("l", "gone"))); errors.Is(err, ErrNeedsParent) || !errdefs.IsInvalidArgument(err) {
		t.Fatal(err)
	}
}

// TestMetadata: owners, modes, times, links.
func TestMetadata(t *testing.T) {
	root(t)
	dst := t.TempDir()
	raw := archive(t,
		dir("./", mode(0o751)), dir("d", mode(0o2770), owner(1, 2)),
		file("d/f", "x", mode(0o4755), owner(1000, 1000)), hard("d/g", "d/f"),
		e(tar.TypeSymlink, "d/s", func(h *tar.Header) { h.Linkname = "x"; h.Uid = 7 }),
		e(tar.TypeFifo, "d/p", mode(0o600), owner(3, 4)), e(tar.TypeChar, "d/n", mode(0o666), dev(1, 3)),
		file("d/big", "x", owner(1<<32-2, 1<<31)), file("d/old", "x", func(h *tar.Header) { h.ModTime = time.Unix(-5, 500) }),
		dir("w", mode(0o1777)), file("w/cap", "x", attr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), owner(5, 5)))
	res, err := into(t, dst, Job{Form: Overlay}, raw)
	if err != nil {
		t.Fatal(err)
	}
	if res.DiffID != digest.FromBytes(raw) || res.Bytes != int64(len(raw)) || res.Entries != 11 {
		t.Fatal(res)
	}
	for name, c := range map[string]struct {
		mode     uint32
		uid, gid uint32
		nlink    uint64
	}{
		".": {unix.S_IFDIR | 0o751, 0, 0, 4}, "d": {unix.S_IFDIR | 0o2770, 1, 2, 2},
		"d/f": {unix.S_IFREG | 0o4755, 1000, 1000, 2}, "d/g": {unix.S_IFREG | 0o4755, 1000, 1000, 2},
		"d/s": {unix.S_IFLNK | 0o777, 7, 0, 1}, "d/p": {unix.S_IFIFO | 0o600, 3, 4, 1}, "d/n": {unix.S_IFCHR | 0o666, 0, 0, 1},
		"d/big": {unix.S_IFREG | 0o644, 1<<32 - 2, 1 << 31, 1}, "w": {unix.S_IFDIR | 0o1777, 0, 0, 2}, "w/cap": {unix.S_IFREG | 0o644, 5, 5, 1},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dst, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode != c.mode || st.Uid != c.uid || st.Gid != c.gid || uint64(st.Nlink) != c.nlink {
			t.Errorf("%s: mode %o owner %d:%d links %d", name, st.Mode, st.Uid, st.Gid, st.Nlink)
		}
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(when) {
			t.Errorf("%s: time %v", name, got)
		}
	}
	if fi, _ := os.Stat(filepath.Join(dst, "d/old")); fi.ModTime().Unix() != -5 || fi.ModTime().Nanosecond() != 500 {
		t.Error("a time before 1970:", fi.ModTime())
	}
	if n, err := unix.Lgetxattr(filepath.Join(dst, "w/cap"), "security.capability", make([]byte, 64)); n != 20 {
		t.Error("capability:", n, err)
	}
}

// TestApplyKeepsTimes: writing into a directory that the layer does not describe does not show in its times.
func TestApplyKeepsTimes(t *testing.T) {
	root(t)
	dst := t.TempDir()
	d := filepath.Join(dst, "d")
	if err := errors.Join(os.Mkdir(d, 0o700), os.Chtimes(d, when, when), os.Chtimes(dst, when, when)); err != nil {
		t.Fatal(err)
	}
	if _, err := into(t, dst, Job{Form: Apply}, archive(t, file("d/f", "x"), wh("d/.wh.g"))); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{d, dst} {
		if fi, err := os.Stat(p); err != nil || !fi.ModTime().Equal(when) || p == d && fi.Mode().Perm() != 0o700 {
			t.Error(p, fi.ModTime(), err)
		}
	}
}

// TestSparse: holes stay holes, in the old GNU form and in PAX's three.
func TestSparse(t *testing.T) {
	root(t)
	src, dst := t.TempDir(), t.TempDir()
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 5 << 20, 9 << 20} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("data"), 2048), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(filepath.Join(src, "sparse"))
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		raw := output(t, "tar", append(append([]string{"-cS", "-C", src}, format...), "sparse")...)
		if len(raw) > 1<<20 {
			t.Fatal("tar made no sparse archive")
		}
		if _, err := into(t, dst, Job{Form: Overlay}, raw); err != nil {
			t.Fatal(format, err)
		}
		got, err := os.ReadFile(filepath.Join(dst, "sparse"))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatal(format, "content differs:", err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dst, "sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
			t.Error(format, "takes", st.Blocks*512, "bytes", err)
		}
	}
}

func TestLimits(t *testing.T) {
	root(t)
	bomb := func(t *testing.T) []byte { // 64 MiB of zeros in 64 KiB
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(archive(t, file("z", strings.Repeat("\x00", 64<<20)))); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	sparse := func(t *testing.T) []byte {
		src := t.TempDir()
		if err := os.WriteFile(filepath.Join(src, "s"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(src, "s"), 1<<40); err != nil {
			t.Fatal(err)
		}
		return output(t, "tar", "-cS", "-C", src, "s")
	}
	many := func(t *testing.T) []byte {
		var in []entry
		for i := range 101 {
			in = append(in, file(fmt.Sprint(i), ""))
		}
		return archive(t, in...)
	}
	for name, c := range map[string]struct {
		in     func(*testing.T) []byte
		limits Limits
		says   string
	}{
		"a bomb":              {bomb, Limits{Bytes: 1 << 20}, "more than the 1048576 bytes"},
		"a huge sparse file":  {sparse, Limits{Bytes: 1 << 30}, "claim more than the 1073741824 bytes"},
		"too many entries":    {many, Limits{Entries: 100}, "more than the 100 entries"},
		"under the limits":    {many, Limits{Entries: 101}, ""},
		"under the defaults":  {many, Limits{}, ""},
		"under a bytes limit": {bomb, Limits{Bytes: 65 << 20}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := into(t, t.TempDir(), Job{Form: Overlay, Limits: c.limits}, c.in(t))
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), c.says) {
				t.Fatal(err)
			}
		})
	}
}

func gz(t testing.TB, raw []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(t testing.TB, raw []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(raw, nil)
}

// TestStreams: compressions, and what is wrong with them.
func TestStreams(t *testing.T) {
	root(t)
	raw := archive(t, file("f", strings.Repeat("content", 300_000)))
	flip := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)/2] ^= 0xff
		return b
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 'x', 'x', 'x', 'x'}, zst(t, raw)...)
	for name, c := range map[string]struct {
		in    []byte
		class error
		says  string
	}{
		"plain":             {in: raw},
		"gzip":              {in: gz(t, raw)},
		"gzip, two members": {in: append(gz(t, raw[:1000]), gz(t, raw[1000:])...)},
		"zstd":              {in: zst(t, raw)},
		"zstd, two frames":  {in: append(zst(t, raw[:1000]), zst(t, raw[1000:])...)},
		"zstd, skippable":   {in: skippable},
		"gzip, cut short":   {in: gz(t, raw)[:3000], class: errdefs.ErrDataLoss, says: "cut short"},
		"gzip, no trailer":  {in: gz(t, raw)[:len(gz(t, raw))-4], class: errdefs.ErrDataLoss, says: "cut short"},
		"gzip, head only":   {in: gz(t, raw)[:5], class: errdefs.ErrDataLoss, says: "cut short"},
		"gzip, damaged":     {in: flip(gz(t, raw)), class: errdefs.ErrDataLoss, says: "damaged"},
		"zstd, cut short":   {in: zst(t, raw)[:100], class: errdefs.ErrDataLoss, says: "cut short"},
		"zstd, damaged":     {in: flip(zst(t, raw)), class: errdefs.ErrDataLoss},
		"plain, cut short":  {in: raw[:len(raw)/2], class: errdefs.ErrDataLoss, says: "cut short"},
		"not an archive":    {in: bytes.Repeat([]byte("not a tar "), 1000), class: errdefs.ErrInvalidArgument, says: "not well formed"},
		"bzip2":             {in: []byte("BZh91AY&SY"), class: errdefs.ErrNotImplemented, says: "bzip2"},
		"xz":                {in: []byte("\xfd7zXZ\x00\x00\x00"), class: errdefs.ErrNotImplemented, says: "xz"},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := into(t, t.TempDir(), Job{Form: Overlay}, c.in)
			if c.class == nil {
				if err != nil || res.DiffID != digest.FromBytes(raw) {
					t.Fatal(res, err)
				}
				return
			}
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
				t.Fatal(err)
			}
		})
	}
}

// TestEmpty: nothing at all is a layer too, and so is an archive without entries.
func TestEmpty(t *testing.T) {
	root(t)
	for _, in := range [][]byte{nil, archive(t), gz(t, nil), gz(t, archive(t))} {
		if res, err := into(t, t.TempDir(), Job{Form: Overlay}, in); err != nil || res.Entries != 0 {
			t.Fatal(res, err)
		}
	}
}

// TestPadding: what follows the end of the archive belongs to its digest.
func TestPadding(t *testing.T) {
	root(t)
	raw := append(archive(t, file("f", "x")), make([]byte, 3<<20)...)
	if res, err := into(t, t.TempDir(), Job{Form: Overlay}, gz(t, raw)); err != nil || res.DiffID != digest.FromBytes(raw) {
		t.Fatal(res, err)
	}
}

func TestDiffIDAlgorithm(t *testing.T) {
	root(t)
	raw := archive(t, file("f", "x"))
	want := digest.SHA512.FromBytes(raw)
	if res, err := into(t, t.TempDir(), Job{Form: Overlay, DiffID: want}, raw); err != nil || res.DiffID != want {
		t.Fatal(res, err)
	}
}

func TestManyDirectories(t *testing.T) {
	root(t)
	in := []entry{dir(".")}
	for i := range 3 * maxOpen {
		in = append(in, dir(fmt.Sprintf("d%d", i)), file(fmt.Sprintf("d%d/f", i), "x"), hard(fmt.Sprintf("d%d/l", i), fmt.Sprintf("d%d/f", i/2)))
	}
	in = append(in, file(strings.Repeat("deep/", 500)+"f", "x"))
	for _, form := range []Form{Apply, Overlay} {
		dst := t.TempDir()
		if _, err := into(t, dst, Job{Form: form, Parented: true}, archive(t, in...)); err != nil {
			t.Fatal(err)
		}
		if n := len(show(t, dst)); n != 9*maxOpen+501 {
			t.Fatal(n)
		}
	}
}
