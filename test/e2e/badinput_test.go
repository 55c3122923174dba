package e2e

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/test/harness"
)

// TestBadInput: what is wrong is named, with the way out; nothing is left; the next command works.
func TestBadInput(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	r := m.Registry()
	good := r.Push("busybox", v1.ImageConfig{Cmd: []string{"sh"}}, harness.BusyboxLayer(t))
	m.Must("pull", "-q", good)
	m.Must("run", "-d", "--name", "taken", good, "sleep", "1000")

	for _, c := range []struct {
		name string
		code int
		args []string
		want []string
	}{
		{"unknown image", 3, []string{"pull", r.Address + "/nothing:here"}, []string{"nothing"}},
		{"unknown image to run", 125, []string{"run", "--rm", r.Address + "/nothing:here"}, []string{"nothing"}},
		{"never pulled", 125, []string{"run", "--pull", "never", r.Address + "/other"}, []string{"other", "gantry pull"}},
		{"unreachable registry", 7, []string{"pull", "127.0.0.1:1/x"}, []string{"127.0.0.1:1"}},
		{"no host there", 7, []string{"pull", "192.0.2.77:5000/x"}, []string{"192.0.2.77:5000"}},
		{"bad reference", 2, []string{"pull", "UPPER/Case:tag:tag"}, []string{"UPPER"}},
		{"bad flag", 125, []string{"run", "--no-such-flag", good}, []string{"no-such-flag"}},
		{"bad verb", 2, []string{"frobnicate"}, []string{"frobnicate"}},
		{"bad memory", 125, []string{"run", "-m", "lots", good}, []string{"lots"}},
		{"bad port", 125, []string{"run", "-p", "99999:80", good}, []string{"99999"}},
		{"bad volume", 125, []string{"run", "-v", "/a:b", good}, []string{"/a:b"}},
		{"volume over the root", 125, []string{"run", "--rm", "-v", "/tmp:/", good}, []string{"/"}},
		{"name in use", 125, []string{"run", "--name", "taken", good}, []string{"taken"}},
		{"bad name", 125, []string{"run", "--name", "a/b", good}, []string{"a/b"}},
		{"bad signal", 2, []string{"kill", "-s", "SIGNOTHING", "taken"}, []string{"SIGNOTHING"}},
		{"no such container", 3, []string{"logs", "nobody"}, []string{"nobody"}},
		{"no such network", 125, []string{"run", "--rm", "--network", "nowhere", good}, []string{"nowhere"}},
		{"no such snapshotter", 125, []string{"run", "--rm", "--snapshotter", "tape", good}, []string{"tape"}},
		{"no such runtime", 125, []string{"run", "--rm", "--runtime", "imaginary", good}, []string{"imaginary"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := m.Try(c.args...)
			if got.Code != c.code {
				t.Errorf("gantry %s: exit %d, want %d\n%s", strings.Join(c.args, " "), got.Code, c.code, got.Err)
			}
			for _, w := range c.want {
				if !strings.Contains(got.Err, w) {
					t.Errorf("gantry %s: %q does not say %q", strings.Join(c.args, " "), got.Err, w)
				}
			}
		})
	}
	if out := m.Must("ps", "-a", "--format", "{{.Names}}"); out != "taken" {
		t.Errorf("containers left: %q", out)
	}
	if out := m.Must("run", "--rm", good, "echo", "still well"); out != "still well" {
		t.Errorf("afterwards: %q", out)
	}
	m.Must("system", "check")
}

// hostile is a layer that tries to get out of its tree.
type hostile struct {
	name    string
	entries []harness.Entry
	refused string // what the pull says; "" where the layer can be taken at its word, inside its tree
	script  string // what is in the container then
	prints  string
}

func hostiles(dir string) []hostile {
	victim := filepath.Join(dir, "victim")
	up := strings.Repeat("../", 12)
	x := harness.File
	special := func(typ byte, name, target string, major, minor int64) harness.Entry {
		return harness.Entry{Header: tar.Header{Typeflag: typ, Name: name, Linkname: target, Devmajor: major, Devminor: minor, Mode: 0o666}}
	}
	return []hostile{
		{"dots", []harness.Entry{x(up+"victim", "x", 0o644)}, `the name "` + up + `victim" climbs out of the layer`, "", ""},
		{"dots in the middle", []harness.Entry{harness.Dir("a"), x("a/../../victim", "x", 0o644)}, `the name "a/../../victim" climbs out of the layer`, "", ""},
		{"absolute", []harness.Entry{x(victim, "x", 0o644)}, "", "cat " + victim, "x"},
		{"through a link", []harness.Entry{harness.Symlink("out", dir), x("out/victim", "x", 0o644)}, `entries below "out" go through a link to nowhere`, "", ""},
		{"through a relative link", []harness.Entry{harness.Symlink("out", up+dir), x("out/victim", "x", 0o644)}, `entries below "out" go through a link to nowhere`, "", ""},
		{"through a link to what is there", []harness.Entry{harness.Dir("own"), harness.Symlink("out", up+"own"), x("out/victim", "x", 0o644)}, "", "cat /own/victim", "x"},
		{"hard link to an absolute name", []harness.Entry{special(tar.TypeLink, "mine", "/etc/passwd", 0, 0)}, "", "grep -c /home:/bin/sh /mine", "1"},
		{"hard link to the host", []harness.Entry{special(tar.TypeLink, "mine", up+"etc/shadow", 0, 0)}, `the target of hard link "mine", "` + up + `etc/shadow" climbs out of the layer`, "", ""},
		{"a link replaced", []harness.Entry{harness.Symlink("d", dir), harness.Dir("d"), x("d/victim", "x", 0o644)}, "", "cat /d/victim", "x"},
		{"whiteout outside", []harness.Entry{x("../../.wh.keep", "", 0o644)}, `the name "../../.wh.keep" climbs out of the layer`, "", ""},
		{"whiteout through a link", []harness.Entry{harness.Symlink("w", dir), x("w/.wh.keep", "", 0o644)}, `entries below "w" go through a link to nowhere`, "", ""},
		{
			// They are made as the layer says, and the container's devices cgroup keeps them shut.
			"devices",
			[]harness.Entry{special(tar.TypeBlock, "disk", "", 7, 0), special(tar.TypeChar, "mem", "", 1, 1), special(tar.TypeChar, "zero", "", 1, 5)},
			"",
			"stat -c '%F %t %T' disk mem zero; for d in disk mem zero; do head -c1 $d 2>&1 | tr '\\0' 0; echo; done",
			"block special file 7 0\ncharacter special file 1 1\ncharacter special file 1 5\nhead: disk: Operation not permitted\n\nhead: mem: Operation not permitted\n\n0",
		},
	}
}

// TestHostileLayers: a layer can write into its own tree and nowhere else. What climbs out is refused by its name; absolute
// names are names in the layer; devices are of no use to the container.
func TestHostileLayers(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	r := m.Registry()
	victim, keep := filepath.Join(m.Dir, "victim"), filepath.Join(m.Dir, "keep")
	if err := os.WriteFile(keep, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := harness.BusyboxLayer(t)
	for i, c := range hostiles(m.Dir) {
		t.Run(c.name, func(t *testing.T) {
			ref := r.Push(fmt.Sprint("hostile", i), v1.ImageConfig{Cmd: []string{"true"}}, base, harness.TarLayer(t, c.entries...))
			got := m.Try("pull", "-q", ref)
			switch {
			case c.refused != "":
				if got.Code != 2 || !strings.Contains(got.Err, c.refused) {
					t.Errorf("exit %d, want 2 and %q: %s", got.Code, c.refused, got.Err)
				}
				if out := m.Must("images", "-q", ref); out != "" {
					t.Errorf("an image is left: %q", out)
				}
			case got.Code != 0:
				t.Errorf("exit %d: %s", got.Code, got.Err)
			default:
				if out := m.Must("run", "--rm", "--network", "none", ref, "sh", "-c", c.script); out != c.prints {
					t.Errorf("got %q, want %q", out, c.prints)
				}
			}
			if _, err := os.Lstat(victim); err == nil {
				t.Error("a file was written outside the layer")
			}
			if raw, err := os.ReadFile(keep); string(raw) != "mine" {
				t.Errorf("a file outside the layer was touched: %q, %v", raw, err)
			}
		})
	}
	m.Must("system", "check")
}

// TestDamagedLayers: what came is not what was promised, and nothing of it stays.
func TestDamagedLayers(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	r := m.Registry()
	damage := map[string]func(path string, size int64) error{
		"tampered": func(path string, size int64) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte{0xff, 0x00, 0xff}, size/2)
			return err
		},
		"truncated": func(path string, size int64) error { return os.Truncate(path, size/2) },
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			layer := harness.TarLayer(t, harness.File("data", strings.Repeat(name, 100000), 0o644)) // of its own: what is here already is not fetched
			ref := r.Push(name, v1.ImageConfig{Cmd: []string{"true"}}, harness.BusyboxLayer(t), layer, harness.TarLayer(t, harness.File(name, name, 0o644)))
			// The biggest layer but busybox's: found by its size.
			out, err := exec.Command("sh", "-c", fmt.Sprintf("skopeo inspect --raw oci:%s:latest", filepath.Join(m.Dir, "layout-"+name))).Output()
			if err != nil {
				t.Fatal(err)
			}
			parts := strings.Split(string(out), `"digest":"sha256:`)
			hex := parts[3][:64]
			path := filepath.Join(r.Data, "data/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := do(path, st.Size()); err != nil {
				t.Fatal(err)
			}
			got := m.Try("pull", ref)
			if got.Code == 0 || !strings.Contains(got.Err, hex[:12]) {
				t.Errorf("exit %d: %s", got.Code, got.Err)
			}
			if out := m.Must("images", "-q", name); out != "" {
				t.Errorf("an image is left: %q", out)
			}
			if _, err := os.Stat(filepath.Join(m.Root, "content", "blobs", "sha256", hex)); err == nil {
				t.Errorf("the damaged blob is kept")
			}
			// Mended at the registry, the pull goes through.
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(m.Dir, "layout-"+name, "blobs", "sha256", hex))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, raw, 0o644); err != nil {
				t.Fatal(err)
			}
			m.Must("pull", "-q", ref)
		})
	}
}

// TestFullDisk pulls onto a filesystem that is too small: the error names it, nothing stays,
// and what is already there works on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	m := harness.Bare(t)
	disk := filepath.Join(m.Dir, "disk.img")
	m.Sh("truncate -s 48M %s && mkfs.ext4 -q %s && mkdir -p %s && mount -o loop %s %s", disk, disk, m.Root, disk, m.Root)
	m.Start()
	r := m.Registry()
	small := r.Push("small", v1.ImageConfig{Cmd: []string{"true"}}, harness.BusyboxLayer(t))
	noise := make([]byte, 60<<20)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(noise); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	big := r.Push("big", v1.ImageConfig{Cmd: []string{"true"}}, harness.TarLayer(t, harness.File("noise", string(noise), 0o644)))
	m.Must("pull", "-q", small)
	got := m.Try("pull", big)
	if got.Code == 0 || !strings.Contains(got.Err, "no space left") || !strings.Contains(got.Err, m.Root) {
		t.Errorf("exit %d: %s", got.Code, got.Err)
	}
	harness.Eventually(t, 10*time.Second, "what was begun is taken away (the driver deletes in the background)", func() bool {
		used, err := strconv.Atoi(m.Sh("df --output=pcent %s | tail -1 | tr -dc 0-9", m.Root))
		if err != nil {
			t.Fatal(err)
		}
		return used <= 40
	})
	m.Must("run", "--rm", small, "true")
	m.Must("system", "check")
	m.Stop()
	m.Sh("umount %s && rmdir %s && rm %s", m.Root, m.Root, disk)
	// The machine's own end starts a daemon to compare: on an empty root.
}
