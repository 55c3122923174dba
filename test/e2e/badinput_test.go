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

// TestHostileLayers: a layer can write into its own tree and nowhere else.
func TestHostileLayers(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	r := m.Registry()
	victim := filepath.Join(m.Dir, "victim")
	base := harness.BusyboxLayer(t)
	link := func(name, target string) harness.Entry {
		return harness.Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
	}
	for i, c := range []struct {
		name    string
		entries []harness.Entry
	}{
		{"dots", []harness.Entry{harness.File("../../../../../../../../.."+victim, "x", 0o644)}},
		{"absolute", []harness.Entry{harness.File(victim, "x", 0o644)}},
		{"through a link", []harness.Entry{harness.Symlink("out", m.Dir), harness.File("out/victim", "x", 0o644)}},
		{"through a relative link", []harness.Entry{harness.Symlink("out", "../../../../../../../../../.."+m.Dir), harness.File("out/victim", "x", 0o644)}},
		{"hard link to the host", []harness.Entry{link("passwd", "/etc/passwd"), link("dots", "../../../../../../../../etc/shadow")}},
		{"a link replaced", []harness.Entry{harness.Symlink("d", m.Dir), harness.Dir("d"), harness.File("d/victim", "x", 0o644)}},
		{"whiteout outside", []harness.Entry{harness.File("../../.wh.keep", "", 0o644), harness.Symlink("w", m.Dir), harness.File("w/.wh.keep", "", 0o644)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			keep := filepath.Join(m.Dir, "keep")
			if err := os.WriteFile(keep, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			ref := r.Push(fmt.Sprint("hostile", i), v1.ImageConfig{Cmd: []string{"true"}}, base, harness.TarLayer(t, c.entries...))
			got := m.Try("run", "--rm", "--network", "none", ref)
			if _, err := os.Lstat(victim); err == nil {
				t.Errorf("a file was written outside the layer (exit %d, %s)", got.Code, got.Err)
			}
			if _, err := os.Lstat(keep); err != nil {
				t.Errorf("a file outside the layer was taken away (exit %d, %s)", got.Code, got.Err)
			}
			if got.Code != 0 && !strings.Contains(got.Err, "layer") && !strings.Contains(got.Err, "unpack") {
				t.Errorf("refused without saying what: %s", got.Err)
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
